"""A failure on a machine that was too slow says nothing; on one that was not it is a failure."""

import time

import pytest
import real_time


@pytest.mark.alone
def test_a_failure_is_excused_by_the_arithmetic_of_its_own_time_alone(tmp_path, monkeypatch):
    pulse = real_time.Pulse(tmp_path)
    try:
        began = time.time()
        beats = tmp_path / "pulse"
        while not beats.exists() or len(beats.read_text().splitlines()) <= real_time.FEWEST:
            assert time.time() < began + 30.0, "nobody does arithmetic"
            time.sleep(0.05)
        monkeypatch.setattr(real_time, "SLOW_S", float("inf"))
        assert pulse.slow_since(began) == ""
        monkeypatch.setattr(real_time, "SLOW_S", 0.0)
        assert "too slow for real time in" in pulse.slow_since(began)
        assert pulse.slow_since(time.time() + 1.0) == "", "nothing is known of that time"
    finally:
        pulse.close()


def test_real_time_is_doubted_only_when_arithmetic_and_the_controller_are_slow(monkeypatch):
    for took, late, told in ((0.05, 99.0, ""), (0.5, 5.0, ""), (0.5, 99.0, "99 ms late")):
        monkeypatch.setattr(real_time, "arithmetic_s", lambda took=took: took)
        monkeypatch.setattr(real_time, "lateness_ms", lambda late=late: late)
        assert told in real_time.why_not() and bool(real_time.why_not()) == bool(told)
