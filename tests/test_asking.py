"""Asking a service: an order that must arrive goes out again until it is answered, any other once."""

import time

import pytest

from policytrim_ros.nodes import asking
from policytrim_ros.nodes.asking import answer


class Future:
    def __init__(self, result=None):
        self._result = result

    def done(self):
        return self._result is not None

    def result(self):
        return self._result


class Client:
    """Hears from request number ``first`` on."""

    def __init__(self, first):
        self.first, self.asked, self.dropped = first, 0, 0

    def call_async(self, request):
        self.asked += 1
        return Future(request if self.asked >= self.first else None)

    def remove_pending_request(self, future):
        self.dropped += 1


def wait(condition, seconds):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.001)


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(asking, "AGAIN_S", 0.02)


def test_an_order_that_is_answered_goes_out_once():
    client = Client(1)
    assert answer(client, "hold", wait, 1.0, again=True) == "hold"
    assert (client.asked, client.dropped) == (1, 0)


def test_an_order_that_must_arrive_goes_out_until_it_is_answered():
    client = Client(3)
    assert answer(client, "hold", wait, 30.0, again=True) == "hold"
    assert (client.asked, client.dropped) == (3, 2)


def test_any_other_goes_out_once_and_is_forgotten_when_nobody_answers():
    client = Client(2)
    assert answer(client, "go", wait, 0.1) is None
    assert (client.asked, client.dropped) == (1, 1)


def test_no_time_left_is_no_answer():
    client = Client(1)
    assert answer(client, "go", wait, 0.0) is None and client.asked == 0
