"""Which checkpoint a policy process starts with when the one before it has died: the last that had proved itself.

A small file of the running system (`graph.py` says where; a fresh start removes it):

    {"checkpoint": "models/a", "weights_sha256": "...", "tried": "models/b"}

``tried`` is what was being loaded, waited or spoke on probation; it is not started again.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from policytrim_ros.files import replace_file


@dataclass(frozen=True)
class Known:
    """What the file says."""

    checkpoint: str
    weights_sha256: str
    tried: str = ""

    @property
    def news(self) -> str:
        """What the operator is told of a start with ``checkpoint``."""
        why = f"; {self.tried} was being tried when this process ended, and is not started again" if self.tried else ""
        return f"started again with {self.checkpoint}, the last checkpoint that had proved itself{why}"


class LastGood:
    """The file at ``path``; without a path nothing is remembered. Not thread-safe: the caller serialises."""

    def __init__(self, path: str):
        self._path, self._written = Path(path) if path else None, None

    def read(self) -> Known | None:
        """What a process before this one has left; None when there was none, or its file cannot be read."""
        try:
            return Known(**json.loads(self._path.read_text())) if self._path else None
        except (OSError, ValueError, TypeError):
            return None

    def write(self, known: Known) -> None:
        """Remembers ``known``, when it is not what was written last. OSError leaves the file as it was."""
        if self._path is not None and known != self._written:
            replace_file(self._path, json.dumps(asdict(known)).encode())
            self._written = known
