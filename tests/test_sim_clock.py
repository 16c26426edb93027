"""A simulated clock beneath real processes: every way to wait takes its time, all processes agree, and only the wall clock is set."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from policytrim_ros import cli
from policytrim_ros.graph import LaunchArguments, clock_file, session_name
from sim_bridge.sim_clock import SimClock

ROOT = Path(__file__).resolve().parents[1]
FACTOR, WAIT_S = 0.25, 0.1

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")

WAITS = """
import asyncio, ctypes, multiprocessing, os, queue, select, subprocess, sys, threading, time

def kernel():  # seconds that no library changes
    return float(open("/proc/uptime").read().split()[0])

def acquire():
    lock = multiprocessing.Lock()
    lock.acquire()
    lock.acquire(timeout=S)

def from_queue():
    try:
        queue.Queue().get(timeout=S)
    except queue.Empty:
        pass

def epoll():
    with select.epoll() as it:
        it.poll(S)

S = float(sys.argv[1])
read, _ = os.pipe()
library = ctypes.CDLL(None)
waits = {
    "time.sleep": lambda: time.sleep(S),
    "usleep": lambda: library.usleep(int(S * 1e6)),
    "Event.wait": lambda: threading.Event().wait(S),
    "Condition.wait": lambda: [c.wait(S) for c in [threading.Condition()] if c.acquire()],
    "Queue.get": from_queue,
    "a lock of two processes": acquire,
    "select": lambda: select.select([read], [], [], S),
    "poll": lambda: [p.poll(S * 1000) for p in [select.poll()]],
    "epoll": epoll,
    "asyncio.sleep": lambda: asyncio.run(asyncio.sleep(S)),
    "another program": lambda: subprocess.run(["sleep", str(S)]),
}
for name, wait in waits.items():
    real, monotonic, wall = kernel(), time.monotonic(), time.time()
    wait()
    print(name, time.monotonic() - monotonic, time.time() - wall, kernel() - real, sep=";", flush=True)
"""


@pytest.fixture
def clock(tmp_path):
    return SimClock(tmp_path / "clock", FACTOR)


def on(clock, code, *arguments):
    """What Python prints for ``code`` on ``clock``."""
    line = [sys.executable, "-c", code, *arguments]
    return subprocess.run(line, cwd=ROOT, env={**os.environ, **clock.environment}, check=True, capture_output=True, text=True, timeout=120).stdout


@needs_compiler
def test_every_way_to_wait_takes_its_time_on_the_clock_and_longer_in_the_world(clock):
    lines = [line.split(";") for line in on(clock, WAITS, str(WAIT_S)).splitlines()]
    assert len(lines) == 11
    for name, *times in lines:
        monotonic, wall, real = map(float, times)
        assert monotonic >= 0.98 * WAIT_S and wall >= 0.98 * WAIT_S, name
        assert real >= WAIT_S / FACTOR - 0.02, name  # the kernel tells hundredths


@needs_compiler
def test_a_wait_without_an_end_ends_when_what_it_waits_for_comes_and_not_before(clock):
    code = """
import ctypes, os, select, threading, time
library = ctypes.CDLL(None)

def woken_by(wake, wait):
    before = time.monotonic()
    threading.Timer(0.1, wake).start()
    answer = wait()
    print(answer, time.monotonic() - before >= 0.1)

event = threading.Event()
woken_by(event.set, lambda: event.wait(threading.TIMEOUT_MAX))
read, write = os.pipe()
woken_by(lambda: os.write(write, b"x"), lambda: select.select([read], [], [], 2.0**32) == ([read], [], []))
never = (ctypes.c_long * 2)(2**63 - 1, 999999999)
for clock in (0, 1):  # what a renderer waits with for its fence
    condition, mutex, kind = (ctypes.create_string_buffer(64) for _ in range(3))
    library.pthread_condattr_init(kind)
    library.pthread_condattr_setclock(kind, clock)
    library.pthread_cond_init(condition, kind)
    library.pthread_mutex_init(mutex, None)
    library.pthread_mutex_lock(mutex)
    came = []

    def wait():
        while not (came or library.pthread_cond_timedwait(condition, mutex, never)):
            pass
        return bool(came)

    woken_by(lambda: (came.append(1), library.pthread_cond_signal(condition)), wait)
"""
    assert on(clock, code).split() == ["True"] * 8


@needs_compiler
def test_all_processes_agree_on_the_time(clock):
    def read():
        before = time.monotonic()
        shown = float(on(clock, "import time; print(time.monotonic())"))
        return before, shown, time.monotonic()

    before, first, after = read()
    time.sleep(0.5)
    later, second, end = read()
    assert FACTOR * (later - after) <= second - first <= FACTOR * (end - before)


@needs_compiler
def test_a_second_start_joins_the_clock_that_is_there(clock, tmp_path):
    assert SimClock(tmp_path / "clock", 1.0).factor == FACTOR


@needs_compiler
def test_a_clock_made_on_a_clock_shows_the_same_time_until_it_is_set(clock, tmp_path):
    code = """
import os, subprocess, sys, time
from sim_bridge.sim_clock import SimClock
made = SimClock(sys.argv[1], 1.0)
show = [sys.executable, "-c", "import time; print(time.monotonic(), time.time())"]
read = lambda: map(float, subprocess.run(show, env={**os.environ, **made.environment}, stdout=-1, check=True).stdout.split())
before, (shown, wall), after = time.monotonic(), read(), time.monotonic()
made.jump(1000.0)
print(made.factor, before <= shown <= after, 900 < list(read())[1] - wall < 1100, time.time() - wall < 100)
"""
    (tmp_path / "elsewhere").mkdir()  # with a library of its own
    assert on(clock, code, str(tmp_path / "elsewhere" / "copy")).split() == [str(FACTOR), "True", "True", "True"]


@needs_compiler
@pytest.mark.parametrize("factor", [1.0, FACTOR])
def test_setting_the_wall_clock_moves_no_other_and_can_be_taken_back(tmp_path, factor):
    clock = SimClock(tmp_path / "clock", factor)
    both = "import time; print(time.time(), time.monotonic())"

    def ahead():
        wall, monotonic = map(float, on(clock, both).split())
        return wall - monotonic

    first = ahead()
    clock.jump(300.0)
    assert abs(ahead() - first - 300.0) < 0.5
    clock.jump(-600.0)
    assert abs(ahead() - first + 300.0) < 0.5
    clock.right()
    assert abs(ahead() - first) < 0.5


@needs_compiler
def test_a_wait_by_the_wall_clock_ends_though_that_is_set_back_meanwhile(clock):
    code = """
import ctypes, time
library, now = ctypes.CDLL(None, use_errno=True), time.time() + 0.2
class Time(ctypes.Structure):
    _fields_ = [("s", ctypes.c_long), ("ns", ctypes.c_long)]
semaphore = ctypes.create_string_buffer(64)
library.sem_init(semaphore, 0, 0)
print("waits", flush=True)
print(library.sem_timedwait(semaphore, ctypes.byref(Time(int(now), int(now % 1 * 1e9)))), time.time() - now)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, **clock.environment}, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "waits\n"
        clock.jump(0.5)  # the end has come
        result, late = process.stdout.readline().split()
    assert result == "-1" and float(late) >= 0.0


@needs_compiler
def test_the_command_line_becomes_the_command_and_one_on_a_clock_stays_on_that(tmp_path):
    line = [sys.executable, "-m", "sim_bridge.sim_clock"]
    asked = [sys.executable, "-c", "import os; print(os.environ['POLICYTRIM_SIM_CLOCK'], os.environ['POLICYTRIM_REAL_TIME_FACTOR'])"]
    environment = {name: value for name, value in os.environ.items() if name != "POLICYTRIM_SIM_CLOCK"}
    done = subprocess.run(
        [*line, str(tmp_path / "a"), "0.5", *line, str(tmp_path / "b"), "0.25", *asked],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=True,
    )
    assert done.stdout.split() == [str(tmp_path / "a"), "0.5"] and not (tmp_path / "b").exists()


def test_without_a_compiler_one_sentence_says_so(tmp_path):
    line = [sys.executable, "-m", "sim_bridge.sim_clock", str(tmp_path / "clock"), "0.5", "true"]
    environment = {"PATH": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.strip().endswith("a simulated clock needs a C compiler: install gcc")
    assert not (tmp_path / "clock").exists()


def test_commands_that_time_a_running_system_go_by_its_clock_and_hold_waits_for_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("POLICYTRIM_SIM_CLOCK", raising=False)
    became = []
    monkeypatch.setattr(os, "execv", lambda path, line: became.append(line))
    monkeypatch.setattr(cli.Doctor, "run", lambda self, options: 0)
    monkeypatch.setattr(cli.Hold, "run", lambda self, options: 0)
    assert cli.main(["doctor"]) == 0 and not became
    clock_file(session_name(LaunchArguments())).write_bytes(b"")
    assert cli.main(["doctor"]) == 0 and became[0][-1] == "doctor" and "sim_bridge.sim_clock" in became[0]
    assert cli.main(["hold"]) == 0 and len(became) == 1
    monkeypatch.setenv("POLICYTRIM_SIM_CLOCK", "its own")
    assert cli.main(["doctor"]) == 0 and len(became) == 1
