"""What the inference node does at a look and beside one, without ROS, a policy or a thread: the cut of h, and the alarm of slack."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from policytrim_ros.core.generations import Generations
from policytrim_ros.core.horizon import HorizonGuard
from policytrim_ros.core.latency import Latency
from policytrim_ros.core.replanning import Replanner
from policytrim_ros.nodes.inference import Inference, InferenceConfig
from policytrim_ros.nodes.messages import Consumed

RATE = 20.0


@pytest.fixture
def node():
    """An inference node in mode async, h = 10, whose policy takes 0.1 s, playing the first of ten planned actions."""
    made = Inference.__new__(Inference)
    made.config = InferenceConfig(mode="async", checkpoint="models/x")
    made.logged, made.told = [], 0
    made.get_logger = lambda: SimpleNamespace(warning=lambda text, **_: made.logged.append(text))
    made._publish_diagnostics = made._publish_status = lambda: setattr(made, "told", made.told + 1)
    made._replanner = Replanner("async", 10, RATE)
    made._replanner.sent(0, 10, 0.0)
    made._guard = HorizonGuard(10, 2, {"tail": 0.1}, calm=2)
    made._generations = SimpleNamespace(
        current=SimpleNamespace(latency=Latency([0.1])), waiting=None, unproved=0
    )
    made._changed = threading.Condition()
    made._before, made._scores, made._chunk_id, made._calls = None, {}, 7, 7
    made._passed = {}
    made._running, made._controller_state, made._thinks_since = True, "moving: go", None
    made._slack, made._late, made._said_at, made._complaint = None, False, time.monotonic(), ""
    made._stepped_at = time.monotonic()
    made._consumed = Consumed(1, 7, 1, 9, True, 0, 0.0)
    return made


def chunk(shift_rad=0.0):
    actions = np.zeros((1, 15, 7))
    actions[..., 0] = shift_rad
    return actions


def test_a_chunk_that_contradicts_the_one_before_halves_h_and_says_why(node):
    node._trust(1, 0, chunk(), tracking=0.0, motion=None)
    assert node._replanner.horizon == 10 and node._scores["tail"] is None and node.logged == []
    node._trust(1, 8, chunk(0.5), tracking=0.0, motion=None)
    assert node._replanner.horizon == 5 and node._guard.cuts == 1
    assert node.logged == ["h 10 -> 5 chunk=7 because=tail 0.500 > 0.1 rad"]
    for first in (12, 16):
        node._trust(1, first, chunk(0.5), tracking=0.0, motion=None)
    assert node._replanner.horizon == 10 and node.logged[-1] == "h 5 -> 10 chunk=7 because=calm again"


def test_another_generations_chunk_is_not_compared(node):
    node._trust(1, 0, chunk(), tracking=0.0, motion=None)
    node._trust(2, 8, chunk(0.5), tracking=0.0, motion=None)
    assert node._replanner.horizon == 10 and node._scores["tail"] is None


def test_slack_is_what_is_left_of_the_plan_when_the_next_chunk_comes(node):
    now = node._stepped_at
    assert node._slack_at(now) == pytest.approx(9 / RATE - 0.1 + 1 / RATE)
    assert node._slack_at(now + 0.03) == pytest.approx(9 / RATE - 0.1 + 0.02)
    node._thinks_since = now - 0.04  # a prediction runs already
    assert node._slack_at(now) == pytest.approx(9 / RATE - 0.06 + 1 / RATE)
    node._controller_state = "holding: operator hold"
    assert node._slack_at(now) is None


def test_too_little_slack_is_said_at_once_and_not_again(node):
    node._watch()
    assert node.logged == [] and not node._late and node._said == ""
    node._consumed = Consumed(1, 7, 9, 1, True, 0, 0.0)
    node._stepped_at = time.monotonic()
    node._watch()
    assert node._late and node.told == 1 and node.logged[0].startswith("slack_ms=") and "longer h or a faster policy" in node._said
    node._watch()
    assert len(node.logged) == 1
    node._running = False
    node._watch()
    assert node._slack is None and not node._late


def consumed(generation, chunk_id, next_step, queued, playing=True):
    return Consumed(generation, chunk_id, next_step, queued, playing, 0, 0.0).to_message()


@pytest.fixture
def probation(node):
    """The second of two generations has just begun to speak; the first one's last chunk (number 8, ten actions from step 2) is on its way."""
    node.errors = []
    node.get_logger = lambda: SimpleNamespace(error=node.errors.append)
    node._speaks, node._hurry = lambda generation, news: None, False
    node._generations = Generations(probation=5)
    for name in ("models/before", "models/new"):
        node._generations.stage(name, "", None)
        node._generations.switch()
    node._replanner.sent(2, 10, 0.0, (1, 8))
    return node


def test_a_generation_on_probation_whose_chunk_the_controller_cuts_is_taken_back(probation):
    probation._replanner.sent(2, 10, 0.0, (2, 9))
    for chunk_id, next_step, queued in ((8, 2, 8), (9, 3, 9), (9, 4, 8)):
        probation._on_consumed(consumed(2, chunk_id, next_step, queued))
    assert probation.errors == [] and probation._generations.current.number == 2
    probation._on_consumed(consumed(2, 9, 5, 2))
    assert len(probation.errors) == 1 and probation.errors[0].startswith("models/new was taken back") and "cut" in probation.errors[0]
    assert probation._generations.current.checkpoint == "models/before" and probation._generations.current.number == 3 and probation._hurry


def test_a_hold_that_ends_its_plan_is_not_the_new_generations_doing(probation):
    probation._replanner.sent(7, 10, 0.0, (2, 9))
    probation._on_consumed(consumed(2, 9, 8, 0, playing=False))
    assert probation.errors == [] and probation._generations.current.number == 2


def test_a_cut_of_what_the_generation_before_sent_last_is_not_held_against_the_new_one(probation):
    probation._on_consumed(consumed(1, 8, 3, 4))
    assert probation.errors == [] and probation._generations.current.number == 2
