"""The version of the source, for everything that says how it was made."""

from __future__ import annotations

import subprocess
from pathlib import Path


def commit() -> str:
    """The version of the source, for manifests: git's description, or 'unknown' outside a repository."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"
