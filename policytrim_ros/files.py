"""Files that are there completely or not at all, what is in them, and who may write them."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from pathlib import Path
from typing import TextIO

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


def claim(path) -> TextIO:
    """Opens ``path``, a file that only one process at a time may hold: until it closes the file, or ends however it may.

    BlockingIOError, with the holder's process id as ``strerror``, when another process holds it.
    """
    file = open(path, "a+", encoding="ascii")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise BlockingIOError(errno.EWOULDBLOCK, f"process {holder}", str(path)) from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def sha256_of(path) -> str:
    """SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
