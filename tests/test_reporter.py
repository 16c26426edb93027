"""Reports beside a robot that moves: in a child that steps aside, one at a time, made once, and gone with who asked for them."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from session_samples import plan, row_of, rows_of, store_session
from stack import ROOT

from policytrim_ros.children import Aside
from policytrim_ros.trials import reporter
from policytrim_ros.trials.report import ReportError, report
from policytrim_ros.trials.reporter import Reporter
from policytrim_ros.trials.session import schedule
from policytrim_ros.trials.store import Store, version

STAND_IN = """
import os, sys, time
out, session, directory = sys.argv[1:]
def note(word):
    with open(f"{out}/diary", "a") as file:
        file.write(f"{word} {session} {os.getpid()}\\n")
note("begin")
{work}
for name in ("report.html", "report.md"):
    with open(f"{directory}/{name}", "w") as file:
        file.write(f"{name} of {session}")
note("end")
"""


def stand_in(out, work="pass", **options):
    """A reporter whose program keeps a diary instead of drawing figures."""
    return Reporter(out, [sys.executable, "-c", STAND_IN.replace("{work}", work)], **options)


def diary(out) -> list[str]:
    path = out / "diary"
    return [line.rsplit(" ", 1)[0] for line in path.read_text().splitlines()] if path.exists() else []


def wait_for(condition, timeout_s=60.0):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Whether process ``pid`` works, and does not only wait to be reaped."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_report_of_the_child_is_the_one_that_would_have_been_made_here_and_a_blind_session_has_none(tmp_path):
    spec = plan(scenes=2)
    store_session(tmp_path, spec, rows_of(spec))
    store_session(tmp_path, spec, rows_of(spec, session="blind"), session="blind", lock=False)
    asked, here = Reporter(tmp_path), report(tmp_path, "s1")
    assert asked.report("s1") == (here.html, here.markdown)
    with pytest.raises(ReportError, match="no report of session blind: session blind is blind and not locked; lock it first"):
        asked.report("blind")


def test_a_report_is_made_once_until_something_is_added_to_its_session(tmp_path):
    spec = plan(scenes=2, blind=False)
    rows = rows_of(spec)
    stored = store_session(tmp_path, spec, rows[:-1], lock=False)
    store_session(tmp_path, spec, rows_of(spec, session="s2"), session="s2")
    asked, store = stand_in(tmp_path), Store(tmp_path)
    for added in (
        lambda: None,
        lambda: store.append(row_of(schedule(spec)[-1])),
        lambda: store.label(stored[0].id, "failure", "a second thought", "Ann"),
        lambda: store.note("s1", "hold", who="Ann"),
        lambda: store.lock("s1"),
    ):
        added()
        for _ in range(2):
            assert asked.report("s1") == ("report.html of s1", "report.md of s1")
    assert diary(tmp_path) == 5 * ["begin s1", "end s1"]
    before = version(tmp_path, "s1")
    store.note("s2", "hold", who="Ann")
    store.close()
    asked.report("s1")
    assert len(diary(tmp_path)) == 10 and version(tmp_path, "s1") == before


def test_only_the_newest_reports_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(reporter, "KEPT", 2)
    for session in "abc":
        store_session(tmp_path, plan(scenes=1), [], session=session)
    asked = stand_in(tmp_path)
    for session in "abcba":
        asked.report(session)
    assert diary(tmp_path)[::2] == [f"begin {session}" for session in "abca"]


def test_reports_that_are_asked_for_together_are_made_one_after_the_other_and_each_once(tmp_path):
    for session in "ab":
        store_session(tmp_path, plan(scenes=1), [], session=session)
    asked, found = stand_in(tmp_path, "time.sleep(0.2)"), []
    threads = [threading.Thread(target=lambda s=session: found.append(asked.report(s))) for session in "aabbab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = diary(tmp_path)
    assert sorted(lines) == ["begin a", "begin b", "end a", "end b"] and lines[0][-1] == lines[1][-1] and len(found) == 6


@pytest.mark.parametrize(
    "work, why",
    [
        ("raise MemoryError('no room for a figure')", "no report of session s1: MemoryError: no room for a figure"),
        ("os.kill(os.getpid(), 9)", "its process was ended by SIGKILL, for want of memory perhaps: no words"),
        ("sys.exit(0)", "No such file or directory"),
    ],
)
def test_a_child_that_fails_is_a_sentence_and_the_next_report_is_tried_anew(tmp_path, work, why):
    store_session(tmp_path, plan(scenes=1), [])
    asked = stand_in(tmp_path, work)
    for _ in range(2):
        with pytest.raises(ReportError, match=why):
            asked.report("s1")
    assert diary(tmp_path) == ["begin s1"] * 2


def test_a_child_that_comes_to_no_end_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(reporter, "LONGEST_S", 0.5)
    store_session(tmp_path, plan(scenes=1), [])
    with pytest.raises(ReportError, match="it was not done after 0.5 s"):
        stand_in(tmp_path, "time.sleep(600)").report("s1")


def test_closing_ends_the_child_and_refuses_who_waits(tmp_path):
    store_session(tmp_path, plan(scenes=1), [])
    asked, refused = stand_in(tmp_path, "time.sleep(600)"), []

    def ask():
        with pytest.raises(ReportError) as error:
            asked.report("s1")
        refused.append(str(error.value))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    wait_for(lambda: diary(tmp_path))
    asked.close()
    for thread in threads:
        thread.join(20)
    assert len(refused) == 2 and diary(tmp_path) == ["begin s1"]


def test_the_child_is_killed_with_its_console(tmp_path):
    store_session(tmp_path, plan(scenes=1), [])
    program = [sys.executable, "-c", STAND_IN.replace("{work}", "time.sleep(600)")]
    code = f"from policytrim_ros.trials.reporter import Reporter; Reporter({str(tmp_path)!r}, {program!r}).report('s1')"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as console:
        wait_for(lambda: diary(tmp_path))
        child = int((tmp_path / "diary").read_text().split()[-1])
        assert is_alive(child)
        console.kill()
    wait_for(lambda: not is_alive(child))


def test_a_child_steps_aside_alone_its_parent_keeps_its_share_of_the_processor(tmp_path):
    def share():
        path = Path("/proc/self/autogroup")
        return path.read_text() if path.exists() else ""

    before = share(), os.getsid(0), os.getpriority(os.PRIO_PROCESS, 0)
    told = "import os; open({path!r}, 'w').write(f'{{os.getsid(0) == os.getpid()}} {{os.nice(0)}} {{os.sched_getscheduler(0)}}')"
    for niceness, policy in ((10, os.SCHED_OTHER), (19, os.SCHED_IDLE)):
        path = tmp_path / str(niceness)
        assert Aside([sys.executable, "-c", told.format(path=str(path))], niceness).wait() == ""
        assert path.read_text() in (f"True {niceness} {policy}", f"True {before[2]} {policy}")  # a parent may be lower already
    assert (share(), os.getsid(0), os.getpriority(os.PRIO_PROCESS, 0)) == before


def test_the_last_words_of_a_child_are_told_also_when_it_said_more_than_a_pipe_holds():
    work = "import sys; print('x' * 200_000, file=sys.stderr); print('the end', file=sys.stderr); sys.exit(3)"
    assert Aside([sys.executable, "-c", work]).wait() == "the end"
    child = Aside([sys.executable, "-c", "import time; time.sleep(600)"])
    child.kill()
    assert child.wait().startswith(f"its process was ended by {signal.SIGKILL.name}")
