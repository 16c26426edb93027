"""Tasks as the nodes see them, in virtual time: the emulated arm moves between the setpoints and the simulated joints.

    policytrim eval --environment benchmarks.behind_the_arm:make --checkpoint models/tape-box-pi0-trimmed --task tape_box --mode async --latency 0.05

`TaskEnv` drives its joints with the controller's setpoints themselves. Here they go to the arm as CAN frames, five times a control step,
and the joints are driven with what its motors make of them. ``make_with_old_pictures``: what is seen is 50 ms older than the joints, too.
"""

from __future__ import annotations

import functools
import struct

import numpy as np

from policytrim_ros.core.kinematics import A_MAX, LIMITS, V_MAX
from policytrim_ros.core.motion import limited_step
from sim_bridge.env import SUBSTEP_S, SUBSTEPS, TIME_LIMIT, StepResult, TaskEnv
from sim_bridge.piper_emulator import MDEG, TICK_S, PiperEmulator

ENABLE, CAN_MODE = bytes((7, 2, 0, 0, 0, 0, 0, 0)), bytes((1, 1, 100, 0, 0, 0, 0, 0))
OLD = 5
"""Physics steps by which old pictures are behind: a control step."""


class BehindTheArm(TaskEnv):
    """For evaluation: the arm is not part of what `save` returns."""

    def __init__(self, *arguments, old_pictures: bool = False, **options):
        super().__init__(*arguments, **options)
        self._old_pictures = old_pictures

    def reset(self, seed: int, rebuild: bool = False) -> None:
        super().reset(seed, rebuild)
        self._setpoint, self._velocity = np.array(self._controller.setpoint, dtype=float), np.zeros(7)
        self._action, self._now, self._drawn = self._setpoint, 100.0, False
        self._arm = PiperEmulator(self._setpoint)
        for can_id, data in ((0x471, ENABLE), (0x471, ENABLE), (0x151, CAN_MODE)):
            self._arm.receive(can_id, data, self._now, self._now)
        self._tell()

    def step(self, action) -> StepResult:
        begin, self._action = self._action, np.clip(np.asarray(action, dtype=float), *LIMITS.T)
        way = self._action - begin
        for i in range(SUBSTEPS):
            if self._old_pictures and i == SUBSTEPS - OLD:
                self._env.scene.update_render(update_sensors=True, update_human_render_cameras=False)
                self._drawn = True
            goal, speed = begin + way * i / SUBSTEPS, way / (SUBSTEPS * SUBSTEP_S)
            self._setpoint, self._velocity = limited_step(self._setpoint, self._velocity, goal, speed, SUBSTEP_S, V_MAX, A_MAX)
            self._tell()
            for tick in range(round(SUBSTEP_S / TICK_S)):
                self._arm.step(self._now + (tick + 0.5) * TICK_S)
            self._now += SUBSTEP_S
            self.substep(self._arm.x, self._arm.v)
        success, failure = self.control_tick()
        return StepResult(success, failure, not (success or failure) and self.steps >= TIME_LIMIT, self.steps)

    def proprioception(self) -> np.ndarray:
        return np.concatenate([super().proprioception()[:7], self._setpoint]).astype(np.float32)

    def save(self):
        raise NotImplementedError("the emulated arm cannot be saved: train without it")

    def _tell(self) -> None:
        joints = np.rint(self._setpoint[:6] * MDEG).astype(int).reshape(3, 2).tolist()
        frames = [struct.pack(">ii", *pair) for pair in joints]
        gripper = struct.pack(">iHBB", round(self._setpoint[6] * 1e6), 1000, 1, 0)
        for can_id, data in zip((0x155, 0x156, 0x157, 0x159), [*frames, gripper]):
            self._arm.receive(can_id, data, self._now, self._now)

    def _render(self, names, depth):
        if not self._drawn:
            return super()._render(names, depth)
        scene = self._env.scene
        update, scene.update_render = scene.update_render, lambda **_: None
        try:
            return super()._render(names, depth)
        finally:
            scene.update_render = update


make = BehindTheArm
make_with_old_pictures = functools.partial(BehindTheArm, old_pictures=True)
