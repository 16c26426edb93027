"""Tasks as the nodes see them, in virtual time: the emulated arm moves between the setpoints and the simulated joints.

    policytrim eval --environment benchmarks.behind_the_arm:make --checkpoint models/tape-box-pi0-trimmed --task tape_box --mode async --latency 0.05

`TaskEnv` drives its joints with the controller's setpoints themselves. Here these go to the arm as CAN frames, one of every kind a physics
step, and the joints are driven with what its motors make of them. ``make_with_old_pictures``: what is seen is a control step older
than the joints, too.
"""

from __future__ import annotations

import copy
import functools

from sim_bridge.env import SUBSTEP_S, StepResult, TaskEnv
from sim_bridge.piper_emulator import TICK_S
from sim_bridge.virtual_arm import VirtualArm


class BehindTheArm(TaskEnv):
    """A `TaskEnv` whose drives are given to a `VirtualArm`, which is part of its state."""

    def __init__(self, *arguments, old_pictures: bool = False, **options):
        super().__init__(*arguments, **options)
        self._old_pictures = old_pictures

    def reset(self, seed: int, rebuild: bool = False) -> None:
        self._drive_directly()
        super().reset(seed, rebuild)
        self._drive_with(VirtualArm(pose=self._controller.setpoint).enable())

    def step(self, action) -> StepResult:
        if self._old_pictures:
            self._env.scene.update_render(update_sensors=True, update_human_render_cameras=False)
            self._drawn = True
        return super().step(action)

    def save(self) -> dict:
        return {**super().save(), "arm": copy.deepcopy(self._arm)}

    def restore(self, saved: dict, rebuild: bool = True) -> None:
        self._drive_directly()
        super().restore(saved, rebuild)
        self._drive_with(copy.deepcopy(saved["arm"]))

    def _drive_directly(self) -> None:
        vars(self._controller).pop("drive", None)

    def _drive_with(self, arm: VirtualArm) -> None:
        self._arm, self._drawn = arm, False
        drive = self._controller.drive

        def through_the_arm(position, velocity):
            between_ticks = arm.now + TICK_S / 2
            arm.joints(position, between_ticks)
            arm.gripper(position[6], stamp=between_ticks)
            arm.run(SUBSTEP_S)
            drive(arm.arm.x, arm.arm.v)

        self._controller.drive = through_the_arm

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
