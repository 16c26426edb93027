"""The version of the source, for everything that says how it was made."""

from __future__ import annotations

import subprocess
from pathlib import Path


def commit(inside: Path = Path(__file__).parent) -> str:
    """The version of the source, for manifests: git's description, '-dirty' where tracked files differ from it, or 'unknown' outside a
    repository. Results that were written again (docs/results) are not source."""
    version = _git(inside, "describe", "--always", "--abbrev=12").stdout.strip()
    if not version:
        return "unknown"
    changed = _git(inside, "diff", "--quiet", "HEAD", "--", ":/", ":(top,exclude)docs/results").returncode
    return f"{version}-dirty" if changed else version


def _git(inside: Path, *command: str) -> subprocess.CompletedProcess:
    return subprocess.run(["git", *command], cwd=inside, capture_output=True, text=True, check=False)
