"""What the doctor says of a running system that is well, of one that has a fault, and of none."""

import re
import subprocess
import sys

import pytest
from stack import ROOT, Operator

pytestmark = pytest.mark.integration


def asked(stack, *arguments) -> subprocess.Popen:
    line = [sys.executable, "-m", "policytrim_ros.cli", "doctor", "--live", *arguments]
    return subprocess.Popen(line, cwd=ROOT, env=stack.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def answer(doctor: subprocess.Popen) -> tuple[int, dict[str, str]]:
    """(exit code, {subject: state and what was found})."""
    try:
        said, errors = doctor.communicate(timeout=120)
    finally:
        doctor.kill()  # one that does not answer in time
    assert not errors.strip(), errors
    found = dict(re.findall(r"^\w+ +(\S+(?: \S+)?)  +(.*)$", said, re.M))
    states = dict((subject, state) for state, subject in re.findall(r"^(\w+) +(\S+(?: \S+)?)  +", said, re.M))
    return doctor.returncode, {subject: f"{states[subject]} {said}" for subject, said in found.items()}


def examined(stack, *arguments) -> tuple[int, dict[str, str]]:
    return answer(asked(stack, *arguments))


def test_a_system_that_is_well_one_with_a_fault_and_none(stack):
    code, found = examined(stack)
    assert code == 1 and "nobody speaks" in found["system"]

    stack.start_emulator()
    stack.start_controller()
    operator = Operator(stack)
    try:
        operator.ready()
        code, found = examined(stack)
        assert found["controller"].startswith("ok holding") and found["motors"].startswith("ok 6 of 6"), found
        assert float(found["CAN"].split()[1]) > 1000 and found["feedback"].split()[1].replace(".", "").isdigit(), found
        assert found["limits"] == "ok the arm's own are as wide as ours" and found["stamps"].startswith("ok within"), found
        assert float(found["joint rate"].split()[1]) > 50 and "real-time priority" in found["priority"], found
        assert float(found["time"].split()[1]) < 60, found
        assert "silent" in found["inference"]

        stack.fault("collision", joint=3)
        operator.until(lambda: operator.state.startswith("fault"), "the collision is not noticed")
        code, found = examined(stack)
        assert code == 1 and found["controller"].startswith("missing fault: arm status"), found
    finally:
        operator.close()


def test_a_damaged_checkpoint_and_one_that_was_not_gated(stack, tmp_path):
    ungated = asked(stack, "--robot", "--checkpoint", str(ROOT / "models" / "tape-box-oft-tiny"))
    code, found = examined(stack, "--checkpoint", str(tmp_path))
    assert code == 1 and "is not a checkpoint" in found["checkpoint"] and "is not a checkpoint" in found["contract"]
    code, found = answer(ungated)
    assert "was not tried in the simulated twin" in found["checkpoint"] and found["checkpoint"].startswith("missing")
    assert found["contract"].startswith("warning the inference node does not tell")
