"""Blocks of shared memory between the world, the emulated arm and the emulated cameras (one writer, many readers).

A block is a file in /dev/shm: the number of finished records, then two places for them in turn. A reader never sees half a
record, never blocks the writer and never waits for it. All blocks of one running simulation live in one directory, named by its
``session``.
"""

from __future__ import annotations

import mmap
import os
import shutil
import time
from pathlib import Path

import numpy as np

ARM_COMMAND = np.dtype([("stamp", "f8"), ("position", "f8", 7), ("velocity", "f8", 7), ("held", "u1", 6), ("damped", "u1")])
"""Written by the emulated arm (200 Hz): drive targets, rad and m (gripper = full stroke), which joints something holds."""

ARM_STATE = np.dtype([("stamp", "f8"), ("position", "f8", 7), ("velocity", "f8", 7), ("effort", "f8", 7)])
"""Written by the world after each physics step: measured joints (rad, m; gripper = full stroke)."""


def camera_frame(width: int, height: int) -> np.dtype:
    """One RGB-D frame: stamp (monotonic s), running number, colour (H, W, 3) uint8 RGB, depth (H, W) uint16 in mm."""
    return np.dtype([("stamp", "f8"), ("number", "u8"), ("color", "u1", (height, width, 3)), ("depth", "u2", (height, width))])


def session_dir(session: str) -> Path:
    """Directory of the blocks of ``session`` (letters, digits, '-', '_')."""
    if not session or not all(c.isalnum() or c in "-_" for c in session):
        raise ValueError(f"session name '{session}': use letters, digits, '-' and '_'")
    return Path("/dev/shm") / f"policytrim-{os.getuid()}-{session}"


def remove_session(session: str) -> None:
    """Removes every block of ``session``; readers that still map them keep their pages."""
    shutil.rmtree(session_dir(session), ignore_errors=True)


class Block:
    """A named record of dtype ``dtype`` shared between processes. ``create=True`` for the one writer."""

    def __init__(self, session: str, name: str, dtype: np.dtype, create: bool = False):
        self.path = session_dir(session) / name
        size = 16 + 2 * dtype.itemsize
        if create:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            beside = self.path.with_suffix(".new")
            with open(beside, "wb") as file:
                file.truncate(size)
            os.replace(beside, self.path)
        with open(self.path, "r+b") as file:
            if os.fstat(file.fileno()).st_size != size:
                raise ValueError(f"{self.path} has another layout than {name} expects; is another version running?")
            self._map = mmap.mmap(file.fileno(), size)
        self._finished = np.frombuffer(self._map, np.uint64, 1)
        self._slots = np.frombuffer(self._map, dtype, 2, offset=16)

    def write(self, **values) -> None:
        """Publishes one record; only the writer may call it. Fields not named keep their last value."""
        finished = int(self._finished[0])
        before, after = self._slots[finished % 2], self._slots[(finished + 1) % 2]
        for name in self._slots.dtype.names:
            if name not in values:
                after[name] = before[name]
        for name, value in values.items():
            after[name] = value
        self._finished[0] = finished + 1

    def read(self):
        """A consistent copy of the newest record (numpy.void), or None before the first write. Waits for nobody: a writer that is
        held up, or dies, in the middle of a record leaves the one before."""
        finished, seen = int(self._finished[0]), -1
        while finished and finished != seen:  # its slot is written again only once the next one is finished
            seen, copy = finished, self._slots[finished % 2].copy()
            finished = int(self._finished[0])
        return copy if finished else None

    @property
    def sequence(self) -> int:
        """Number of finished writes: cheap test for something new."""
        return int(self._finished[0])


def open_block(session: str, name: str, dtype: np.dtype, timeout_s: float = 60.0) -> Block:
    """Opens a block, waiting for its writer to create it; TimeoutError names what is missing."""
    end = time.monotonic() + timeout_s
    while True:
        try:
            return Block(session, name, dtype)
        except FileNotFoundError:
            if time.monotonic() > end:
                raise TimeoutError(
                    f"no '{name}' in simulation session '{session}' after {timeout_s:.0f} s: is the process that writes it running?"
                )
            time.sleep(0.05)
