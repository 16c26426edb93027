"""Trainer node: trimming beside a running arm, as a child process of the lowest priority (training/background.py).

    trainer/run (SetBool)     true: start or resume; false: save the state and stop
    trainer/status (String)   JSON, latched: state idle | running | stopped | finished | failed, progress, verdict, reason

A run that ends with an improvement has published it as <store>/<name>, whole, before the status names it with the digest of
its weights. One that is none has ended just as well: finished, with ``improvement`` false and the verdict.
"""

from __future__ import annotations

import json
import sys

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rcl_interfaces.msg import SetParametersResult
from rclpy.node import Node
from std_msgs.msg import String
from std_srvs.srv import SetBool

from policytrim_ros.core.config import ConfigError
from policytrim_ros.nodes.messages import LATCHED
from policytrim_ros.nodes.parameters import current, declare
from policytrim_ros.nodes.process import STEADY, run
from policytrim_ros.training.background import Background, TrainerConfig

WATCH_S = 0.5


class Trainer(Node):
    """See the module. Raises ConfigError on parameters that do not fit; with ``autostart`` also when the run is refused."""

    def __init__(self):
        super().__init__("trainer")
        self._background = Background(declare(self, TrainerConfig))
        self._said: dict = {}
        self._status = self.create_publisher(String, "trainer/status", LATCHED)
        self._diagnostics = self.create_publisher(DiagnosticArray, "diagnostics", 10)
        self.add_on_set_parameters_callback(self._check)
        self.create_service(SetBool, "trainer/run", self._on_run)
        self.create_timer(WATCH_S, self._watch, clock=STEADY)
        self.create_timer(1.0, self._publish_diagnostics, clock=STEADY)
        if self._background.config.autostart:
            self.get_logger().info(self._background.start(self._background.config))
        self._publish_status()

    def _check(self, changes) -> SetParametersResult:
        try:
            current(self, TrainerConfig, changes)
        except ConfigError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _on_run(self, request, response):
        try:
            response.message = self._background.start(current(self, TrainerConfig)) if request.data else self._background.stop()
            response.success = True
        except ConfigError as error:
            response.success, response.message = False, str(error)
        self._publish_status()
        return response

    def _watch(self) -> None:
        self._background.watch()
        self._publish_status()

    def _publish_status(self) -> None:
        status = self._background.status()
        if status == self._said:
            return
        if status["state"] != self._said.get("state"):
            self.get_logger().info(f"state={status['state']} run={status['run_dir']} reason={status['reason'] or 'none'}")
        self._said = status
        self._status.publish(String(data=json.dumps(status)))

    def _publish_diagnostics(self) -> None:
        failed = self._said["state"] == "failed"
        status = DiagnosticStatus(
            level=DiagnosticStatus.ERROR if failed else DiagnosticStatus.OK,
            name="trainer",
            message=": ".join(filter(None, (self._said["state"], self._said["reason"]))),
            values=[KeyValue(key=k, value=str(v)) for k, v in self._said.items() if v is not None],
        )
        array = DiagnosticArray(status=[status])
        array.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(array)

    def close(self) -> None:
        self._background.close()
        self._publish_status()


def main() -> None:
    sys.exit(run(Trainer))


if __name__ == "__main__":
    main()
