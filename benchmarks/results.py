"""How a benchmark leaves its figures: what ran and on what, a table in Markdown, the raw figures in JSON beside it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Iterable, Sequence

import torch

from policytrim_ros.files import replace_file
from policytrim_ros.training.version import commit


def circumstances(module: str, load_before: float, **more) -> dict:
    """Command, commit, machine and library of this run; ``load_before``: load average before it began."""
    return {
        "command": f"python -m benchmarks.{module} " + " ".join(sys.argv[1:]),
        "commit": commit(),
        "cores": os.cpu_count(),
        "load_before": round(load_before, 2),
        "torch": torch.__version__,
        **more,
    }


def in_words(head: dict) -> str:
    """`circumstances` as the beginning of a sentence."""
    return (
        f"`{head['command']}`, commit {head['commit']}, {head['cores']} cores, load before {head['load_before']}, "
        f"torch {head['torch']}"
    )


def markdown(head: Sequence[str], rows: Iterable[Sequence]) -> str:
    """A table."""
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in [head, ("---",) * len(head), *rows])


def write(out: Path, title: str, about: str, table: str, figures: dict) -> None:
    """Writes <out>.json and <out>.md, whole or not at all."""
    replace_file(out.with_suffix(".json"), (json.dumps(figures, indent=1) + "\n").encode())
    replace_file(out.with_suffix(".md"), f"# {title}\n\n{about}\n\n{table}\n".encode())


def leave(out: Path, title: str, about: str, table: str, figures: dict) -> None:
    """Prints the table and writes <out>.json and <out>.md."""
    print(f"\n{table}")
    write(out, title, about, table, figures)
