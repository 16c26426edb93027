"""How far a trimming run is: progress.json in its directory, replaced as a whole after every iteration and phase.

phase          baseline | extension | selection | saving | hastening | evidence
iteration      updates done in this phase, of ``iterations`` (0: a phase without updates)
eta_s          seconds that the phase still takes at most, null while unknown
success_rate   of the latest rollouts, which explore; at the end of the trimmed policy
steps          mean control steps of the same
horizon        h that is trained for
best           iteration, success_rate, steps and calls of the phase's best check, null before the first
verdict        at the end: improvement or not (``improvement``), and why
checkpoint     once it is published: its directory, and ``weights_sha256``
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Mapping

from policytrim_ros.files import replace_file

FILE = "progress.json"


def write(run_dir, values: Mapping[str, Any]) -> None:
    """Replaces what is said of the run in ``run_dir``. OSError when the disk is full."""
    replace_file(Path(run_dir) / FILE, (json.dumps(values, indent=2, allow_nan=False) + "\n").encode())


def read(run_dir) -> dict[str, Any]:
    """What is said of the run in ``run_dir``; empty when nothing is."""
    try:
        return json.loads((Path(run_dir) / FILE).read_bytes())
    except FileNotFoundError:
        return {}
