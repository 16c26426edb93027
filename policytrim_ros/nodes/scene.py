"""The scene on a real table, laid by hand: the same topic, services and parameters that the simulated world offers.

scene/reset -> laying (the operator sets objects as the card shows) -- confirm() -> ready -- scene/start -> running -- end() -> done
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

from rcl_interfaces.msg import SetParametersResult
from rclpy.node import Node
from std_msgs.msg import String
from std_srvs.srv import Trigger

from policytrim_ros.core.config import Config, ConfigError
from policytrim_ros.core.config import setting as option
from policytrim_ros.nodes.messages import LATCHED
from policytrim_ros.nodes.parameters import current, declare
from policytrim_ros.nodes.process import STEADY


INSTRUCTIONS = ("tape_box: put the tape into the box", "flip_mug: set the mug upright", "hang_mug: hang the mug on the rack")


@dataclass(frozen=True)
class SceneConfig(Config):
    """Which scene is to be laid next; scene/reset asks for it."""

    task: str = option("tape_box", "what the policy is to do", read_only=False)
    setting: str = option(
        "standard", "whether the target stays or is moved by the operator", choices=("standard", "dynamic"), read_only=False
    )
    seed: int = option(0, "number of the scene card", low=0, high=2**31 - 1, read_only=False)


class HandScene(Node):
    """See the module."""

    def __init__(self, namespace: str = "", instructions=INSTRUCTIONS):
        """``instructions``: what the policy is told, a line for each task, `task: sentence`. What the process was told on its command line is for another node."""
        super().__init__("scene", namespace=namespace, enable_rosout=False, use_global_arguments=False)
        self.config = declare(self, SceneConfig)
        self._sentences = {task.strip(): said.strip() for task, _, said in (line.partition(":") for line in instructions)}
        self.scene_id, self.phase, self.outcome, self.reason = 0, "done", None, ""
        self._laid, self._began, self._took_s = self.config, 0.0, 0.0
        self._state = self.create_publisher(String, "scene/state", LATCHED)
        self.add_on_set_parameters_callback(self._on_parameters)
        self.create_service(Trigger, "scene/reset", self._reset)
        self.create_service(Trigger, "scene/start", self._start)
        self.create_timer(0.5, self._tell, clock=STEADY)
        self._tell()

    def confirm(self) -> bool:
        """The scene lies as the card shows it; False when nothing was asked for."""
        if self.phase != "laying":
            return False
        self.phase = "ready"
        self._tell()
        return True

    def end(self, outcome: str, reason: str) -> None:
        """The operator has named an outcome: the scene's clock stops."""
        if self.phase == "running":
            self._took_s = time.monotonic() - self._began
            self.phase, self.outcome, self.reason = "done", outcome, reason
            self._tell()

    def _on_parameters(self, changes) -> SetParametersResult:
        try:
            wanted = current(self, SceneConfig, changes)
        except ConfigError as error:
            return SetParametersResult(successful=False, reason=str(error))
        if wanted.task not in self._sentences:
            known = ", ".join(self._sentences)
            return SetParametersResult(successful=False, reason=f"task '{wanted.task}' has no instruction; known: {known}")
        self.config = wanted
        return SetParametersResult(successful=True)

    def _reset(self, _request, response):
        self._laid, self.scene_id = self.config, self.scene_id + 1
        self.phase, self.outcome, self.reason, self._took_s = "laying", None, "", 0.0
        self._tell()
        response.success, response.message = True, f"lay scene {self._laid.seed} of {self._laid.task}"
        return response

    def _start(self, _request, response):
        if self.phase != "ready":
            response.success, response.message = False, f"the scene is {self.phase}; it has to lie first"
            return response
        self.phase, self._began = "running", time.monotonic()
        self._tell()
        response.success = True
        return response

    def _tell(self) -> None:
        elapsed_s = time.monotonic() - self._began if self.phase == "running" else self._took_s
        state = dict(
            task=self._laid.task,
            setting=self._laid.setting,
            seed=self._laid.seed,
            instruction=self._sentences.get(self._laid.task, ""),
            phase=self.phase,
            outcome=self.outcome,
            reason=self.reason,
            elapsed_s=round(elapsed_s, 3),
            scene_id=self.scene_id,
            by_hand=True,
        )
        self._state.publish(String(data=json.dumps(state)))
