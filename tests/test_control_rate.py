"""A policy of another rate than 20 Hz, played by the controller's process on the emulated arm."""

import numpy as np
import pytest
from stack import Operator, arm_with_controller

from policytrim_ros.core.types import READY

pytestmark = pytest.mark.integration


@pytest.fixture
def stack(tmp_path):
    with arm_with_controller(tmp_path, control_rate_hz="30.0", chunk_timeout_s="20.0") as running:
        yield running


def test_a_chunk_of_thirty_actions_a_second_is_played_at_that_rate_and_one_of_twenty_is_refused(stack):
    operator, heard = Operator(stack), {}
    operator.ready()
    operator.go()
    began, played = operator.consumed.next_step, np.tile(READY, (90, 1))
    played[:, 0] = np.linspace(0.0, 0.4, 91)[1:]
    operator.send(played, began)
    operator.until(lambda: "20.0 actions/s, the executor plays 30.0" in stack.log("controller"), "no refusal of another rate")
    assert operator.consumed.next_step == began
    operator.send(played, began, rate_hz=30.0)
    for step in (began + 15, began + 75):
        heard[step] = operator.until(lambda step=step: operator.consumed.next_step >= step and operator.heard_at, "no control steps")
    assert heard[began + 75] - heard[began + 15] == pytest.approx(2.0, abs=0.2)
    operator.until(lambda: not operator.consumed.playing, "the chunk does not end")
    assert operator.consumed.next_step == began + 90
    operator.until(lambda: abs(stack.truth()["position"][0] - 0.4) < 0.01, "the arm is not where the chunk ends")
    operator.close()
