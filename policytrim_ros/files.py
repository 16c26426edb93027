"""Files that are there completely or not at all, and what is in them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

PARTIAL = ".partial"
"""End of the name of a file that is being written; what carries it belongs to a writer that works or was killed."""


def replace_file(path, data) -> None:
    """Writes bytes beside ``path``, down to the disk, and renames: whoever reads finds the old file or the new one.

    Folders are made. OSError, of a full disk for instance, leaves the old file intact and nothing beside it.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")  # hidden: a dataset's readers take every *.parquet
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def sha256_of(path) -> str:
    """SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
