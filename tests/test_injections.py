"""What benchmarks/failsafes.py and benchmarks/soak.py break: something for every row of the failsafe table, and every answer is a row."""

from benchmarks.injections import Bench
from policytrim_ros.core.safety import FAILSAFES


def test_every_failsafe_is_injected_into_the_running_processes_and_every_answer_is_a_failsafe():
    answers = {case.failsafe for case in Bench.cases(Bench.__new__(Bench)).values()}
    assert answers - {""} == set(FAILSAFES)
