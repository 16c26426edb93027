"""Where the files that are not Python lie: the source tree, or share/policytrim_ros of the installation."""

from __future__ import annotations

import os
import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1]


def share(*parts: str) -> Path:
    """Path of a shared file or folder, such as ``share("config", "camera.yaml")``; FileNotFoundError names what is missing."""
    prefixes = [prefix for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if prefix] + [sys.prefix]
    roots = [SOURCE] if (SOURCE / "package.xml").is_file() else []
    roots += [Path(prefix) / "share" / "policytrim_ros" for prefix in prefixes]
    for root in roots:
        if root.joinpath(*parts).exists():
            return root.joinpath(*parts)
    raise FileNotFoundError(f"{'/'.join(parts)} is not installed; looked in {', '.join(map(str, roots))}")
