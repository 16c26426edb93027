"""Several threads of a node tell its state: what is older is never told after what is newer, for a latched topic keeps the last."""

import json
import threading

from policytrim_ros.nodes.controller import Controller
from policytrim_ros.nodes.inference import Inference


class Topic:
    def __init__(self):
        self.told = []

    def publish(self, message):
        self.told.append(message.data)


def test_inference_does_not_tell_an_old_status_after_a_new_one():
    node = Inference.__new__(Inference)
    node._saying, node._changed, node._status = threading.Lock(), threading.Condition(), Topic()
    generation, slow, others = [1], threading.Event(), []
    node._state_of_things = lambda: {"generation": generation[0]}

    def remember():  # a slow disk, while another policy begins to speak
        if not slow.is_set():
            slow.set()
            generation[0] = 2
            others.append(threading.Thread(target=node._publish_status))
            others[0].start()
            others[0].join(0.2)

    node._remember = remember
    node._publish_status()
    others[0].join()
    assert [json.loads(said)["generation"] for said in node._status.told] == [1, 2]


def test_the_controller_does_not_say_an_old_state_again_after_a_new_one():
    node = Controller.__new__(Controller)
    node._published_state, node._state = "moving: go", Topic()
    publish = node._state.publish

    def interrupted(message):
        if message.data.startswith("moving"):  # the setpoint thread comes first
            node._published_state = "holding: operator hold"
            node._state.told.append(node._published_state)
        publish(message)

    node._state.publish = interrupted
    node._say_again()
    assert node._state.told == ["holding: operator hold", "moving: go", "holding: operator hold"]
    node._published_state = None
    node._say_again()
    assert len(node._state.told) == 3
