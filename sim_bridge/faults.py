"""Faults of the emulated arm on command: what can be injected, the client, and the server inside the emulator.

A request is one JSON object on one line over the Unix socket ``<hub socket>.control``: ``{"fault": "mute", "seconds": 1.0}``;
the answer is one JSON object on one line: ``{"ok": true, ...}`` or ``{"ok": false, "error": "..."}``.

A fault changes what the arm *reports* or what the bus carries. None of them stops the emulated arm from following its
targets: when the arm holds during a test, the product made it hold.
"""

from __future__ import annotations

import json
import math
import os
import random
import select
import socket
import time
from dataclasses import dataclass, field, fields

import numpy as np

from sim_bridge.can_hub import listen


class FaultError(RuntimeError):
    """A fault could not be injected; the message says why."""


@dataclass
class Faults:
    """The faults that are active now. ``deadline`` maps a fault to the monotonic time at which it ends by itself."""

    mute: bool = False
    bus_off: bool = False
    no_transmit: bool = False
    stale_joints: bool = False
    zero_feedback: bool = False
    teach_mode: bool = False
    status: int | None = None
    err_code: int = 0
    foc_bits: list = field(default_factory=lambda: [0] * 6)
    lost_frames: float = 0.0
    joint_offset: list = field(default_factory=lambda: [0.0] * 6)
    blocked: list = field(default_factory=lambda: [False] * 6)
    deadline: dict = field(default_factory=dict)
    random: random.Random = field(default_factory=lambda: random.Random(0))

    def inject(self, name: str, arguments: dict) -> None:
        """Activates fault ``name``; FaultError when it, an argument or a value is unknown."""
        if name not in FAULTS:
            raise FaultError(f"unknown fault '{name}'; known: {', '.join(FAULTS)}")
        arguments = dict(arguments)
        seconds = arguments.pop("seconds", None)
        given = {}
        for key, low, high, default in FAULTS[name].arguments:
            value = arguments.pop(key, default)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
                raise FaultError(f"{name}: {key} = {value!r}, expected a number from {low} to {high}")
            given[key] = value
        if arguments:
            known = ", ".join([key for key, *_ in FAULTS[name].arguments] + ["seconds"])
            raise FaultError(f"{name}: unknown argument '{next(iter(arguments))}'; known: {known}")
        if seconds is not None and not (isinstance(seconds, (int, float)) and math.isfinite(seconds) and seconds > 0):
            raise FaultError(f"{name}: seconds = {seconds!r}, expected a positive number")
        FAULTS[name].apply(self, **given)
        self.deadline.pop(name, None)
        if seconds is not None:
            self.deadline[name] = time.monotonic() + seconds

    def clear(self, name: str | None = None) -> None:
        """Ends fault ``name``, or every fault."""
        fresh = Faults()
        names = list(FAULTS) if name is None else [name]
        for each in names:
            if each not in FAULTS:
                raise FaultError(f"unknown fault '{each}'; known: {', '.join(FAULTS)}")
            self.deadline.pop(each, None)
            for attribute in FAULTS[each].attributes:
                setattr(self, attribute, getattr(fresh, attribute))

    def expire(self, now: float) -> None:
        for name in [name for name, end in self.deadline.items() if now >= end]:
            self.clear(name)

    def active(self) -> list[str]:
        """Names of the fields that differ from a healthy arm."""
        fresh = Faults()
        return [
            f.name
            for f in fields(self)
            if f.name not in ("deadline", "random") and getattr(self, f.name) != getattr(fresh, f.name)
        ]


@dataclass(frozen=True)
class Fault:
    """One injectable fault: ``arguments`` are (name, low, high, default), ``attributes`` the fields of Faults that it sets."""

    doc: str
    apply: object
    attributes: tuple
    arguments: tuple = ()


def _switch(attribute):
    return lambda faults: setattr(faults, attribute, True)


def _driver_bit(bit, status=None, comm=False):
    def apply(faults, joint):
        faults.foc_bits[int(joint) - 1] |= bit
        faults.status = faults.status if status is None else status
        if comm:
            faults.err_code |= 1 << int(joint) - 1

    return apply


def _set_offset(faults, joint, degrees):
    faults.joint_offset[int(joint) - 1] = math.radians(degrees)


def _block(faults, joint):
    faults.blocked[int(joint) - 1] = True


JOINT = ("joint", 1, 6, 1)
FAULTS = {
    "mute": Fault("the arm sends nothing; it still listens", _switch("mute"), ("mute",)),
    "bus_off": Fault(
        "the bus carries nothing in either direction; sends fail once buffers are full", _switch("bus_off"), ("bus_off",)
    ),
    "no_transmit": Fault(
        "nobody acknowledges what clients send: sends fail once buffers are full; the arm is still heard",
        _switch("no_transmit"),
        ("no_transmit",),
    ),
    "stale_joints": Fault("joint position frames repeat their last values", _switch("stale_joints"), ("stale_joints",)),
    "zero_feedback": Fault("every feedback frame carries zeros", _switch("zero_feedback"), ("zero_feedback",)),
    "teach_mode": Fault(
        "somebody pressed the teach button: ctrl_mode 2, commands are ignored", _switch("teach_mode"), ("teach_mode",)
    ),
    "status": Fault(
        "the arm reports arm_status `code`", lambda f, code: setattr(f, "status", int(code)), ("status",), (("code", 0, 15, 10),)
    ),
    "collision": Fault("collision bit of `joint`, arm_status 7", _driver_bit(0x10, status=7), ("foc_bits", "status"), (JOINT,)),
    "stall": Fault("stall bit of `joint`", _driver_bit(0x80), ("foc_bits",), (JOINT,)),
    "joint_error": Fault(
        "driver error bit of `joint`, arm_status 9", _driver_bit(0x20, status=9), ("foc_bits", "status"), (JOINT,)
    ),
    "comm_error": Fault(
        "communication error of `joint`, arm_status 5",
        _driver_bit(0, status=5, comm=True),
        ("foc_bits", "status", "err_code"),
        (JOINT,),
    ),
    "undervoltage": Fault("undervoltage bit of `joint`", _driver_bit(0x01), ("foc_bits",), (JOINT,)),
    "lost_frames": Fault(
        "`fraction` of all frames is lost, both ways",
        lambda f, fraction: setattr(f, "lost_frames", float(fraction)),
        ("lost_frames",),
        (("fraction", 0.0, 1.0, 0.1),),
    ),
    "joint_offset": Fault(
        "the encoder of `joint` is wrong by `degrees`: reported and real pose differ",
        _set_offset,
        ("joint_offset",),
        (JOINT, ("degrees", -30.0, 30.0, 2.0)),
    ),
    "blocked": Fault(
        "something holds `joint` where it is; its motor pushes and reports nothing of it", _block, ("blocked",), (JOINT,)
    ),
}
"""Every fault that can be injected. All take `seconds`: the fault then ends by itself."""


def inject(socket_path: str, fault: str, timeout_s: float = 2.0, **arguments) -> dict:
    """Injects ``fault`` into the emulator that serves ``socket_path`` and returns its answer.

    ``clear`` (with ``name=...``: only that one) ends faults.

    ``state`` answers with the arm's true condition, see ``PiperEmulator.state``. Raises FaultError when no emulator
    answers or when it refuses.
    """
    path = f"{socket_path}.control"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_s)
            connection.connect(path)
            connection.sendall(json.dumps({"fault": fault, **arguments}).encode() + b"\n")
            line = connection.makefile("rb").readline()
    except OSError as error:
        raise FaultError(f"no emulated arm answers at {path} ({error}): is piper_emulator running with this socket?") from error
    if not line:
        raise FaultError(f"the emulated arm at {path} ended while answering")
    answer = json.loads(line)
    if not answer.pop("ok"):
        raise FaultError(answer["error"])
    return answer


class ControlServer:
    """The emulator's side of the control socket; ``serve`` never blocks and is called from the emulator's loop."""

    def __init__(self, socket_path: str):
        self.path = f"{socket_path}.control"
        self._listener = listen(self.path, socket.SOCK_STREAM)
        self._connections: dict[socket.socket, bytes] = {}
        self._poll = select.poll()
        self._poll.register(self._listener, select.POLLIN)

    def serve(self, answer) -> None:
        """Answers every complete request line with ``answer(request: dict) -> dict``; FaultError becomes a refusal."""
        if not self._poll.poll(0):
            return
        try:
            connection, _ = self._listener.accept()
            connection.setblocking(False)
            self._connections[connection] = b""
            self._poll.register(connection, select.POLLIN)
        except BlockingIOError:
            pass
        for connection in tuple(self._connections):
            try:
                received = connection.recv(65536)
            except BlockingIOError:
                continue
            except OSError:
                received = b""
            if not received:
                self._forget(connection)
                continue
            *lines, rest = (self._connections[connection] + received).split(b"\n")
            self._connections[connection] = rest
            for line in lines:
                self._reply(connection, line, answer)

    def _reply(self, connection, line, answer) -> None:
        try:
            request = json.loads(line)
            if not isinstance(request, dict) or not isinstance(request.get("fault"), str):
                raise FaultError('expected {"fault": "<name>", ...}')
            reply = {"ok": True, **answer(request)}
        except (FaultError, json.JSONDecodeError) as error:
            reply = {"ok": False, "error": str(error)}
        try:
            connection.sendall(json.dumps(reply, default=_plain).encode() + b"\n")
        except OSError:
            self._forget(connection)

    def _forget(self, connection) -> None:
        if self._connections.pop(connection, None) is not None:
            self._poll.unregister(connection)
        connection.close()

    def close(self) -> None:
        for connection in tuple(self._connections):
            self._forget(connection)
        self._listener.close()
        if os.path.exists(self.path):
            os.unlink(self.path)


def _plain(value):
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form")
