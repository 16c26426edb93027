"""Processors that are kept awake, by processes that give way to everybody and outlive nobody."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from stack import wait_for

from policytrim_ros import awake


def spinning(parent: int) -> list[int]:
    """Pids of the children of ``parent`` that spin."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if awake.SPIN.encode() in words and int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1]) == parent:
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def test_every_processor_has_one_that_gives_way_to_everybody_and_none_is_left_afterwards():
    made = awake.Awake(awake.ALWAYS)
    processors = os.sched_getaffinity(0)
    assert made.processors == len(processors)
    wait_for(lambda: {tuple(os.sched_getaffinity(pid)) for pid in spinning(os.getpid())} == {(n,) for n in processors}, "not one on each")
    assert {os.sched_getscheduler(pid) for pid in spinning(os.getpid())} == {os.SCHED_IDLE}
    made.close()
    assert made.processors == 0 and not spinning(os.getpid())


def test_they_end_with_a_process_that_is_killed():
    words = "from policytrim_ros import awake\nmade = awake.Awake('always')\nprint('made', flush=True)\nimport time\ntime.sleep(60)"
    parent = subprocess.Popen([sys.executable, "-c", words], stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline() == "made\n"
    wait_for(lambda: spinning(parent.pid), "nothing spins")
    children = spinning(parent.pid)
    parent.kill()
    parent.wait()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), "they spin on")


@pytest.mark.parametrize("virtual, when, spins", [(True, "auto", True), (False, "auto", False), (True, "never", False), (False, "always", True)])
def test_of_itself_only_a_virtual_machine_is_kept_awake(monkeypatch, virtual, when, spins):
    monkeypatch.setattr(awake, "is_virtual", lambda: virtual)
    made = awake.Awake(when)
    assert bool(made.processors) == spins
    made.close()
