"""AgileX's own topic names and units for labs with scripts (as far as standard messages allow).

Published at ``state_rate_hz``: ``joint_states_single`` (JointState, names joint1..joint6 and gripper), ``end_pose`` (geometry_msgs/Pose, m)
and ``arm_status`` (diagnostic_msgs/DiagnosticStatus). Taken: ``joint_ctrl_single`` (JointState, all seven joints; a partial list is refused, where AgileX's own node
would move the missing joints to zero) and ``enable_flag`` (std_msgs/Bool; true means go, false means hold: never a disabled arm).
"""

from __future__ import annotations

from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import Pose
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool

from policytrim_ros.arm.piper import ArmError
from policytrim_ros.core.supervisor import Refused
from policytrim_ros.core.types import Chunk
from policytrim_ros.nodes.messages import BadMessage, positions_of


class Topics:
    """The compatibility topics of one controller node."""

    def __init__(self, controller):
        self._controller = controller
        self._chunk_id = 0
        self._joints = controller.create_publisher(JointState, "joint_states_single", 1)
        self._pose = controller.create_publisher(Pose, "end_pose", 1)
        self._status = controller.create_publisher(DiagnosticStatus, "arm_status", 1)
        controller.create_subscription(JointState, "joint_ctrl_single", self._on_joint_ctrl, 1)
        controller.create_subscription(Bool, "enable_flag", self._on_enable, 1)

    def publish(self, joints: JointState, arm) -> None:
        self._joints.publish(joints)
        pose = arm.end_pose()
        if pose is not None:
            (x, y, z), (qx, qy, qz, qw) = pose
            message = Pose()
            message.position.x, message.position.y, message.position.z = x, y, z
            message.orientation.x, message.orientation.y, message.orientation.z, message.orientation.w = qx, qy, qz, qw
            self._pose.publish(message)
        feedback = arm.feedback()
        if feedback is not None:
            level = DiagnosticStatus.ERROR if feedback.problems else DiagnosticStatus.OK
            self._status.publish(
                DiagnosticStatus(level=level, name="arm_status", message="; ".join(feedback.problems) or "normal")
            )

    def _on_joint_ctrl(self, message: JointState) -> None:
        """One target: the next control step goes there."""
        try:
            position = positions_of(message)
            self._chunk_id += 1
            executor = self._controller.supervisor.executor
            self._controller.take(Chunk(position[None], executor.newest, self._chunk_id, executor.next_step, executor.rate_hz))
        except (BadMessage, ValueError) as error:
            self._controller.get_logger().error(f"joint_ctrl_single refused: {error}", throttle_duration_sec=1.0)

    def _on_enable(self, message: Bool) -> None:
        try:
            self._controller.order("go" if message.data else "hold")
        except (Refused, ArmError) as error:
            self._controller.get_logger().warning(f"enable_flag={message.data} refused: {error}")
