"""The emulated arm without bus and process, in virtual time."""

from __future__ import annotations

import struct

import numpy as np

from sim_bridge.can_hub import FRAME
from sim_bridge.piper_emulator import MDEG, TICK_S, PiperEmulator

ENABLE, CAN_MODE = bytes((7, 2, 0, 0, 0, 0, 0, 0)), bytes((1, 1, 100, 0, 0, 0, 0, 0))


class VirtualArm:
    """A PiperEmulator (``arm``), made with ``options``, and its time ``now`` (s). Frames are stamped ``now``, or ``stamp``."""

    def __init__(self, **options):
        self.arm, self.now = PiperEmulator(**options), 100.0

    def command(self, can_id: int, data: bytes, stamp: float | None = None) -> None:
        """One command frame, filled up to 8 bytes."""
        self.arm.receive(can_id, data.ljust(8, b"\0"), self.now if stamp is None else stamp, self.now)

    def joints(self, position, stamp: float | None = None) -> None:
        """Targets of the joints: the first six of ``position``, rad."""
        for i, pair in enumerate(np.rint(np.asarray(position)[:6] * MDEG).astype(int).reshape(3, 2).tolist()):
            self.command(0x155 + i, struct.pack(">ii", *pair), stamp)

    def gripper(self, stroke: float, code: int = 1, stamp: float | None = None) -> None:
        """Target of the gripper, m."""
        self.command(0x159, struct.pack(">iHBB", round(stroke * 1e6), 1000, code, 0), stamp)

    def enable(self, times: int = 2) -> "VirtualArm":
        """Enables the motors ``times`` times and takes CAN control; returns itself."""
        for _ in range(times):
            self.command(0x471, ENABLE)
        self.command(0x151, CAN_MODE)
        return self

    def run(self, seconds: float) -> np.ndarray:
        """Lets time pass; positions (n, 7) of every tick."""
        path = []
        for _ in range(round(seconds / TICK_S)):
            self.now += TICK_S
            self.arm.step(self.now)
            path.append(self.arm.x.copy())
        return np.array(path)

    def frames(self) -> dict:
        """{CAN id: data} of one tick's feedback."""
        return {can_id: data for can_id, _, data in FRAME.iter_unpack(self.arm.feedback(self.now))}
