"""A service's answer, for callers that let time pass in different ways."""

from __future__ import annotations

import time
from typing import Callable

AGAIN_S = 1.0
SETTLE_S = 0.3
"""A client that has just found a service waits so long before it asks: a server that has not yet found the client drops its answer."""

HOLD = "controller/hold"
"""The order that must arrive; twice does no harm."""


def answer(client, request, wait: Callable[[Callable[[], bool], float], object], timeout_s: float, again: bool = False):
    """The response to ``request``, or None after ``timeout_s``.

    ``wait(condition, seconds)`` lets responses arrive until ``condition()`` or for so long. ``again``: the request may arrive twice and is
    sent again every AGAIN_S. Discovery lists a killed process for up to 20 s; its successor does not hear what is asked before it is found.
    """
    sent, end = [], time.monotonic() + timeout_s
    try:
        while (left := end - time.monotonic()) > 0:
            sent.append(client.call_async(request))
            wait(lambda: any(future.done() for future in sent), min(left, AGAIN_S) if again else left)
            if answered := [future for future in sent if future.done()]:
                return answered[0].result()
        return None
    finally:
        for future in sent:
            if not future.done():
                client.remove_pending_request(future)


def spinning(executor) -> Callable[[Callable[[], bool], float], object]:
    """A `wait` that serves ``executor`` meanwhile."""

    def wait(condition, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not condition() and time.monotonic() < end:
            executor.spin_once(timeout_sec=0.05)

    return wait
