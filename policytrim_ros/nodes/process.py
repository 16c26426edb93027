"""What every node process shares: start, heartbeat, clean end on SIGINT/SIGTERM, one sentence and exit code 1 on a failed start."""

from __future__ import annotations

import os
import signal
import sys
import threading

import rclpy
from rclpy.clock import Clock, ClockType
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions
from std_msgs.msg import String

from policytrim_ros.share import share

HEARTBEAT_HZ = 10.0
PROFILES, RANGE = "FASTRTPS_DEFAULT_PROFILES_FILE", "ROS_AUTOMATIC_DISCOVERY_RANGE"
STEADY = Clock(clock_type=ClockType.STEADY_TIME)
"""For every timer: rclpy's own choice is the wall clock, and one that is set back by five minutes would stop them for as long."""


def heartbeat(node) -> None:
    """Publishes the node's name on ``heartbeat`` ten times a second; the controller holds when a required one falls silent.

    ``node.parts()``, where there is one, gives the names of those of its devices that are alive; they follow the node's own, each
    on a line of the same message: every message wakes all who listen. A node may say `name: words`: it lives, and why it cannot do
    its work (inference, without its policy's server).
    """
    publisher = node.create_publisher(String, "heartbeat", 10)
    parts = getattr(node, "parts", tuple)

    def beat():
        publisher.publish(String(data="\n".join((node.get_name(), *parts()))))

    node.create_timer(1.0 / HEARTBEAT_HZ, beat, clock=STEADY)


def ask_for_priority(priority: int) -> str:
    """Asks for SCHED_FIFO ``priority`` (1..99) for every thread of this process, and those started later; '' or why not.

    All of them, since any that holds the interpreter or a lock of the middleware can make the one that matters wait.
    """
    try:
        for thread in os.listdir("/proc/self/task"):
            os.sched_setscheduler(int(thread), os.SCHED_FIFO, os.sched_param(priority))
    except OSError as error:
        return f"{error.strerror}; allow it with an rtprio line for this user in /etc/security/limits.d"
    return ""


def priority_of(thread: int) -> int:
    """The real-time priority that a thread of this machine, by its kernel id, runs at; 0: none."""
    real_time = os.sched_getscheduler(thread) & ~os.SCHED_RESET_ON_FORK in (os.SCHED_FIFO, os.SCHED_RR)
    return os.sched_getparam(thread).sched_priority if real_time else 0


def udp_alone() -> None:
    """Keeps this process out of the middleware's shared memory; to be called before `run`. A profile of the user's own stays.

    The first message to a participant that has just started waits in shared memory until that listens, up to 0.33 s (Fast DDS 2.14,
    a third of healthy_check_timeout_ms), and rclpy keeps every other thread of this process waiting meanwhile.
    """
    ours = str(share("config", "fastdds_shm.xml"))
    if (chosen := os.environ.get(PROFILES, ours)) != ours:
        print(
            f"{PROFILES}={chosen} stays: with shared memory in it this process may stop for 0.33 s whenever another one starts",
            file=sys.stderr,
            flush=True,
        )
        return
    local = os.environ.get(RANGE, "").upper() == "LOCALHOST" or os.environ.get("ROS_LOCALHOST_ONLY") == "1"
    os.environ[PROFILES] = str(share("config", "fastdds_udp_local.xml" if local else "fastdds_udp.xml"))
    if local:
        os.environ[RANGE] = "SYSTEM_DEFAULT"  # LOCALHOST would add shared memory to the profile
        os.environ.pop("ROS_LOCALHOST_ONLY", None)


def _wake(executor, ended: threading.Event) -> None:
    """Ends every wait of ``executor`` after a while: some builds of the middleware wait by the wall clock, for ever when it is set back."""
    while not ended.wait(2.0 / HEARTBEAT_HZ):
        executor.wake()


def run(make_node, args=None) -> int:
    """Runs ``make_node()`` until SIGINT or SIGTERM; returns the process exit code.

    ``make_node`` raises to refuse a start: the message is printed as one line and 1 is returned. A node may have
    ``close()``, called once before it is destroyed. A second signal during the clean-up is ignored.
    """
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    stop, ended = {"signal": None}, threading.Event()

    def on_signal(number, _frame):
        stop["signal"] = number

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    node, executor, code, waker = None, None, 0, None
    try:
        node = make_node()
        heartbeat(node)
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        waker = threading.Thread(target=_wake, args=(executor, ended), name="waker", daemon=True)
        waker.start()
        while stop["signal"] is None and rclpy.ok() and getattr(node, "fatal", None) is None:
            executor.spin_once(timeout_sec=1.0)  # the heartbeat ends it sooner
        if getattr(node, "fatal", None) is not None:
            raise RuntimeError(node.fatal)
    except ExternalShutdownException:
        pass
    except Exception as error:  # the boundary of the process: say it in one sentence, then leave
        name = node.get_name() if node is not None else "start refused"
        print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        code = 1
    finally:
        ended.set()
        if waker is not None:
            waker.join()  # it must not wake what is gone
        if node is not None and hasattr(node, "close"):
            node.close()
        if executor is not None:
            executor.shutdown(0.0)  # left to the garbage collector it may outlive its context, and complain
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
        for number in (signal.SIGINT, signal.SIGTERM):  # the interpreter would restore the default: death by a second Ctrl-C
            signal.signal(number, signal.SIG_IGN)
    return code
