"""A failure while the host gave the processor to others says nothing; any other is a failure."""

import pytest
import real_time
from real_time import Processor


def stat(user: int, idle: int, stolen: int) -> Processor:
    return Processor.read(f"cpu  {user} 0 0 {idle} 0 0 0 {stolen} 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n")


def test_only_time_that_the_host_took_excuses_a_failure_however_busy_the_machine_is():
    before = stat(1000, 500, 40)
    assert real_time.excuse(before, stat(1900, 500, 40)) == "", "busy with our own"
    assert real_time.excuse(before, stat(1900, 500, 140)) == "", "no more than may be"
    assert real_time.excuse(before, stat(1010, 1400, 90)) == "", "most of the little that an idle machine wanted"
    assert "25 % of the processor" in real_time.excuse(before, stat(1200, 600, 140))
    assert real_time.excuse(before, before) == ""


def test_this_machine_is_read():
    passed, stolen = Processor.now()
    assert passed > stolen >= 0


def test_a_test_is_skipped_only_when_time_is_stolen_and_the_controller_is_late(monkeypatch):
    for taken, late, told in ((0, 99.0, ""), (300, 5.0, ""), (300, 99.0, "99 ms late")):
        seen = iter([stat(1000, 0, 0), stat(1700, 0, taken)])
        monkeypatch.setattr(Processor, "now", lambda seen=seen: next(seen))
        monkeypatch.setattr(real_time, "lateness_ms", lambda late=late: late)
        found = real_time.why_not()
        assert told in found and bool(found) == bool(told)


def test_the_host_is_asked_about_only_where_it_was_taking_time(monkeypatch):
    asked = []
    monkeypatch.setattr(real_time, "why_not", lambda: asked.append(1) or "too late")
    monkeypatch.setattr(Processor, "now", lambda: stat(1700, 0, 300))
    monkeypatch.setattr(real_time, "_asked", [float("-inf"), stat(1400, 0, 300), ""])
    real_time.needed()
    assert not asked
    monkeypatch.setattr(real_time, "_asked", [float("-inf"), stat(1000, 0, 0), ""])
    for _ in range(2):
        with pytest.raises(pytest.skip.Exception, match="too late"):
            real_time.needed()
    assert len(asked) == 1, "the answer holds for a while"
