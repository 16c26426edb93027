"""AgileX's topic names, for labs with scripts: the same arm, the same gate, and no partial joint list."""

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import Pose
from sensor_msgs.msg import JointState
from stack import Operator, arm_with_controller
from std_msgs.msg import Bool

from policytrim_ros.core.kinematics import forward
from policytrim_ros.core.types import JOINTS, READY

pytestmark = pytest.mark.integration


@pytest.fixture
def stack(tmp_path):
    with arm_with_controller(tmp_path, agilex_topics="true", chunk_timeout_s="20.0") as running:
        yield running


def test_a_lab_script_moves_the_arm_by_agilex_names_and_a_partial_list_moves_nothing(stack):
    operator = Operator(stack)
    heard = {}
    for topic, kind in (("joint_states_single", JointState), ("end_pose", Pose), ("arm_status", DiagnosticStatus)):
        operator.node.create_subscription(kind, topic, lambda message, topic=topic: heard.update({topic: message}), 1)
    target = operator.node.create_publisher(JointState, "joint_ctrl_single", 1)
    enable = operator.node.create_publisher(Bool, "enable_flag", 1)
    operator.ready()
    operator.until(
        lambda: len(heard) == 3 and target.get_subscription_count() and enable.get_subscription_count(), "no AgileX topics"
    )
    assert list(heard["joint_states_single"].name) == list(JOINTS) and heard["arm_status"].message == "normal"
    position = heard["end_pose"].position
    measured = stack.truth()["position"]
    assert [position.x, position.y, position.z] == pytest.approx(forward(measured[:6])[:3, 3], abs=0.002)

    enable.publish(Bool(data=True))
    operator.until(lambda: operator.state == "moving: go", "enable_flag true is not go")
    target.publish(JointState(name=list(JOINTS[:2]), position=[0.5, 0.5]))
    operator.until(lambda: "joint names" in stack.log("controller"), "the partial list is not refused")
    assert np.max(np.abs(np.array(stack.truth()["position"]) - measured)) < 0.003

    wanted = np.array(READY) + [0.2, 0, 0, 0, 0, 0, 0]
    target.publish(JointState(name=list(JOINTS), position=wanted.tolist()))
    operator.until(lambda: abs(stack.truth()["position"][0] - wanted[0]) < 0.01, "the arm does not go where it is told")
    enable.publish(Bool(data=False))
    operator.until(lambda: operator.state.startswith("holding"), "enable_flag false is not hold")
    stack.assert_held(operator.spin)  # held with its motors on: never disabled by a flag
    operator.close()
