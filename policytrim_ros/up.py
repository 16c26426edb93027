"""`policytrim up`: starts the processes of graph.py in order, shows their output, ends them in reverse order.

    waiting --needs ready--> started --first heartbeat, or socket served--> ready        all ready --> running
    SIGUSR1 (`policytrim restart`) --> what has died is started again; the arm stays held until an operator says go
    Ctrl-C, SIGTERM, a failed start, the end of the trials --> ended one after the other, in reverse

A required process that dies is named; the controller then misses its heartbeat (or is itself the one that died, and the
arm keeps its last setpoint) and the arm holds. What happens to the others is ``on_failure``.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from policytrim_ros.children import end_with_parent, share_as
from policytrim_ros.core.types import heartbeats_of
from policytrim_ros.files import claim
from policytrim_ros.graph import (
    RUNNING,
    LaunchArguments,
    Process,
    command,
    consequence,
    forget,
    graph,
    real_time_factor,
    runtime_dir,
    session_name,
)

START_S = 180.0  # the first start of a simulated scene compiles shaders on a slow machine
STOP_S = 8.0  # a controller decelerates and holds well within this
SIGNALS = (signal.SIGINT, signal.SIGTERM)
AGAIN = signal.SIGUSR1
INTERRUPTED = 130  # exit code of trials that a signal ended


class StartRefused(RuntimeError):
    """The system cannot be started; the message says why and what to do."""


def lock_of(session: str) -> Path:
    """The file that the starter of ``session`` holds, with its process id in it."""
    return runtime_dir() / f"{session}.lock"


class SessionLock:
    """One running system a session: a lock that dies with its holder. Raises StartRefused when somebody holds it."""

    def __init__(self, session: str):
        try:
            self._file = claim(lock_of(session))
        except BlockingIOError as error:
            raise StartRefused(
                f"session '{session}' is already running ({error.strerror}); end it with Ctrl-C there, "
                "or choose another session and ROS_DOMAIN_ID"
            ) from None

    def release(self) -> None:
        self._file.close()


def restart(session: str) -> int:
    """Has the starter of ``session`` start again what has died there; returns its process id. Raises StartRefused when none runs."""
    try:
        claim(lock_of(session)).close()
    except BlockingIOError as held:
        pid = int(held.strerror.removeprefix("process "))
        os.kill(pid, AGAIN)
        return pid
    raise StartRefused(
        f"no `policytrim up` runs session '{session}'; under `ros2 launch`, run the line again with which it started the process"
    )


class Readiness:
    """Who is ready: heard on ``heartbeat``, or serving its socket. ``close`` as soon as everybody is: it costs CPU."""

    def __init__(self, namespace: str):
        import rclpy
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.signals import SignalHandlerOptions
        from std_msgs.msg import String

        self._heard: set[str] = set()
        self._context = rclpy.Context()
        rclpy.init(args=[], context=self._context, signal_handler_options=SignalHandlerOptions.NO)
        self._node = rclpy.create_node(
            f"starter_{os.getpid()}",
            context=self._context,
            namespace=namespace.strip("/"),
            enable_rosout=False,
            start_parameter_services=False,
        )
        self._node.create_subscription(
            String, "heartbeat", lambda message: self._heard.update(name for name, _ in heartbeats_of(message.data)), 50
        )
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)

    def spin(self, timeout_s: float) -> None:
        """Listens until something was heard or ``timeout_s`` has passed."""
        self._executor.spin_once(timeout_sec=timeout_s)

    def ready(self, process: Process) -> bool:
        return serves(process.socket) if process.socket else process.name in self._heard

    def close(self) -> None:
        self._executor.shutdown()
        self._node.destroy_node()
        self._context.try_shutdown()


def serves(path: str) -> bool:
    """Whether a process listens on the Unix socket (SEQPACKET) at ``path``."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


@dataclass
class Child:
    """A started process and what has been read of its unfinished output line."""

    process: Process
    popen: subprocess.Popen
    rest: bytes = b""
    ended: bool = False  # its end has been noticed


class Starter:
    """Runs one graph to its end. ``run`` returns the exit code; it may be used once, from the main thread."""

    def __init__(self, processes: list[Process], arguments: LaunchArguments, say=lambda text: print(text, flush=True)):
        self._processes, self._arguments, self._say = processes, arguments, say
        self._children: dict[str, Child] = {}
        self._output = selectors.DefaultSelector()
        self._signal = None
        self._again = False  # what has died is to be started again
        self._code = 0

    def run(self) -> int:
        handlers = {number: signal.signal(number, self._on_signal) for number in (*SIGNALS, AGAIN)}
        try:
            if self._start():
                self._watch()
        except StartRefused as error:
            self._say(f"start refused: {error}")
            self._code = 1
        finally:
            if self._signal is not None and any(process.finite for process in self._processes):
                self._code = self._code or INTERRUPTED  # what should have ended by itself was not done
            self._end()
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return self._code

    def _on_signal(self, number, _frame) -> None:
        if number == AGAIN:
            self._again = True
        else:
            self._signal = number

    # ---- start --------------------------------------------------------------------------------------------------------

    def _start(self) -> bool:
        """Starts everything in order; False when a signal came in between."""
        began = time.monotonic()
        readiness = Readiness(self._arguments.namespace)
        ready: set[str] = set()
        try:
            while len(ready) < len(self._processes):
                for process in self._processes:
                    if process.name not in self._children and ready.issuperset(process.needs):
                        self._spawn(process)
                    elif (
                        process.name in self._children
                        and process.name not in ready
                        and (process.finite or readiness.ready(process))
                    ):
                        ready.add(process.name)
                        self._say(
                            f"{process.name}: ready after {time.monotonic() - began:.1f} s"
                            f" ({len(ready)} of {len(self._processes)})"
                        )
                readiness.spin(0.05)
                self._forward(0.0)
                if self._signal is not None:
                    return False
                for child in self._children.values():
                    if not child.process.finite and child.popen.poll() is not None:
                        raise StartRefused(
                            f"{child.process.name} ended during the start ({outcome(child.popen.returncode)}); "
                            "its last lines say why"
                        )
                if time.monotonic() - began > START_S:
                    late = ", ".join(p.name for p in self._processes if p.name in self._children and p.name not in ready)
                    raise StartRefused(f"{late} not ready after {START_S:.0f} s; look at its output above")
        finally:
            readiness.close()
        return True

    def _spawn(self, process: Process) -> None:
        line = command(process, self._arguments.namespace)
        popen = subprocess.Popen(
            line,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **process.environment},
            preexec_fn=lambda: _enter(process.niceness),
        )
        os.set_blocking(popen.stdout.fileno(), False)
        self._children[process.name] = Child(process, popen)
        self._output.register(popen.stdout, selectors.EVENT_READ, process.name)

    # ---- running ------------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Until a signal, the end of a finite process, or a death that ends the system."""
        if not any(process.finite for process in self._processes):
            self._say(RUNNING)
        while self._signal is None:
            self._forward(0.1)
            for child in self._newly_ended():
                code = child.popen.returncode
                if child.process.finite:
                    self._code = self._code or code
                    return
                if not child.process.required and code == 0:
                    continue
                self._code = 1
                self._say(f"{child.process.name} died ({outcome(code)}): {consequence(child.process, self._arguments)}")
                if child.process.required and self._arguments.on_failure == "shutdown":
                    return
            if self._again:
                self._start_again()

    def _start_again(self) -> None:
        """What has died, in the order of the graph. Nothing waits for anything: all that the arm needs is heard before it moves."""
        self._again = False
        for process in self._processes:
            if process.name in self._children and self._children[process.name].ended:
                self._say(f"{process.name} is started again; the arm stays held until `policytrim go`")
                self._spawn(process)

    def _newly_ended(self) -> list[Child]:
        ended = [child for child in self._children.values() if not child.ended and child.popen.poll() is not None]
        for child in ended:
            child.ended = True
            self._forward(0.0)
        return ended

    # ---- end ----------------------------------------------------------------------------------------------------------

    def _end(self) -> None:
        """Ends what still runs, in the reverse order of the graph: SIGINT, then SIGTERM, then SIGKILL."""
        for child in [self._children[process.name] for process in reversed(self._processes) if process.name in self._children]:
            for number, patience_s in ((signal.SIGINT, STOP_S), (signal.SIGTERM, 2.0), (signal.SIGKILL, 2.0)):
                if child.popen.poll() is not None:
                    break
                if number == signal.SIGKILL:
                    self._say(f"{child.process.name} does not end; killed")
                child.popen.send_signal(number)
                end = time.monotonic() + patience_s
                while child.popen.poll() is None and time.monotonic() < end:
                    self._forward(0.05)
        self._forward(0.0)
        self._output.close()
        if self._children:
            self._say("all processes have ended")

    # ---- output -------------------------------------------------------------------------------------------------------

    def _forward(self, timeout_s: float) -> None:
        """Prints whole lines of the children's output, each marked with its process."""
        if not self._output.get_map():
            time.sleep(timeout_s)
            return
        for key, _ in self._output.select(timeout_s):
            child = self._children[key.data]
            data = os.read(key.fd, 65536)
            *lines, child.rest = (child.rest + data).split(b"\n")
            if not data:
                lines, child.rest = ([child.rest] if child.rest else []), b""
                self._output.unregister(key.fileobj)
                key.fileobj.close()
            for line in lines:
                self._say(f"[{key.data}] {line.decode(errors='replace').rstrip()}")


def outcome(code: int) -> str:
    """An exit code in words."""
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _enter(niceness: int) -> None:
    """In the child, before it becomes the process."""
    end_with_parent()
    share_as(niceness)


def up(arguments: LaunchArguments, say=lambda text: print(text, flush=True)) -> int:
    """Brings the system up and runs it to its end; returns the exit code.

    Raises ConfigError and StartRefused before anything was started.
    """
    processes = graph(arguments)
    session = session_name(arguments)
    lock = SessionLock(session)
    try:
        forget(session)
        if (factor := real_time_factor(arguments)) != 1.0:
            say(f"simulated time: {factor:g} of real time (real_time_factor)")
        return Starter(processes, arguments, say).run()
    finally:
        forget(session)
        lock.release()


def wait(processes: list[Process], names: list[str], namespace: str, timeout_s: float = START_S) -> list[str]:
    """Waits until the processes called ``names`` are ready; returns those that are not after ``timeout_s``."""
    waiting = [process for process in processes if process.name in names]
    readiness = Readiness(namespace)
    end = time.monotonic() + timeout_s
    try:
        while waiting and time.monotonic() < end:
            readiness.spin(0.05)
            waiting = [process for process in waiting if not readiness.ready(process)]
    finally:
        readiness.close()
    return [process.name for process in waiting]
