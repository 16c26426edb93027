"""The whole simulated robot as `policytrim up` starts it: a trial through every node, then processes die one by one."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import real_time
from sensor_msgs.msg import JointState
from stack import ROOT, Operator, Stack, wait_for
from std_msgs.msg import Int64MultiArray, String

from benchmarks.injections import damaged_checkpoint
from policytrim_ros.core.contract import Normalisation
from policytrim_ros.core.safety import SafetyLimits
from policytrim_ros.graph import own_checkpoint, runtime_dir
from policytrim_ros.nodes.messages import LATCHED, Consumed
from policytrim_ros.policies import checkpoint
from policytrim_ros.policies.golden import Golden
from policytrim_ros.trials.store import Store

SESSION = f"test-{os.getpid()}"
DRIFT_RAD = 0.06

pytestmark = pytest.mark.integration


class System(Stack):
    """`policytrim up` in a session of its own; the emulated arm is asked for the truth as in the other fault tests."""

    def __init__(self, folder):
        super().__init__(folder)
        self.socket = str(runtime_dir() / f"{SESSION}.can")

    def up(self, name: str, *arguments: str) -> subprocess.Popen:
        real_time.needed()
        line = [sys.executable, "-m", "policytrim_ros.cli", "up", f"session:={SESSION}", *arguments]
        with open(self.folder / f"{name}.log", "w") as log:
            self.processes[name] = subprocess.Popen(line, cwd=ROOT, env=self.environment, stdout=log, stderr=subprocess.STDOUT)
        return self.processes[name]

    def pid(self, module: str) -> int:
        """Process id of the part of this session that runs ``module``."""
        out = subprocess.run(["pgrep", "-f", "--", f"-m {module} "], capture_output=True, text=True).stdout.split()
        mine = [int(pid) for pid in out if f"ROS_DOMAIN_ID={self.domain}".encode() in environment_of(pid)]
        assert mine, f"{module} does not run"
        return mine[0]


def environment_of(pid: str) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read().split(b"\0")
    except OSError:
        return []


@pytest.fixture
def system(tmp_path):
    made = System(tmp_path)
    yield made
    made.close()


def test_a_trial_runs_through_every_node_and_its_row_says_what_happened(system, tmp_path):
    system.up("up", "checkpoint:=demonstrator:clean", "trials:=1", "seed:=3", f"out:={tmp_path / 'runs'}")
    code = system.exit_code_within("up", 240)
    assert code == 0, system.log("up")[-3000:]
    (row,) = Store(tmp_path / "runs").rows
    assert (row.task, row.setting, row.seed, row.label) == ("tape_box", "standard", 3, "demonstrator-clean")
    assert row.outcome == "success", row.reason
    assert row.steps > 40 and row.calls > 40 and 2.0 < row.seconds < 25.0
    order = re.findall(r"^(\w+): ready after", system.log("up"), re.M)
    assert order.index("world") < order.index("piper_emulator") < order.index("controller") < order.index("trial")


def test_a_second_start_in_the_session_is_refused_and_the_first_goes_on(system):
    first = system.up("first", "checkpoint:=demonstrator:clean")
    wait_for(lambda: "running;" in system.log("first"), "the system does not come up", 240)
    system.up("second", "checkpoint:=demonstrator:clean")
    assert system.exit_code("second") == 1
    assert f"session '{SESSION}' is already running" in system.log("second")
    assert first.poll() is None
    first.send_signal(signal.SIGINT)
    assert system.exit_code_within("first", 60) in (0, 130)
    ended = re.findall(r"\[(\w+)\].*(?:ended|holds its position)", system.log("first"))
    assert "controller" in ended and "all processes have ended" in system.log("first")


@pytest.mark.parametrize(
    "module, dead, state, reason",
    [
        ("sim_bridge.world", "world", "fault", "feedback"),  # frozen joints at first, then silence
        ("sim_bridge.demonstrator_node", "demonstrator", "holding", "demonstrator"),
        ("policytrim_ros.nodes.camera", "camera", "holding", "'camera' is silent"),
    ],
)
def test_a_process_killed_in_motion_is_named_and_the_arm_holds(system, module, dead, state, reason):
    system.up("up", "checkpoint:=demonstrator:clean")
    wait_for(lambda: "running;" in system.log("up"), "the system does not come up", 240)
    operator = Operator(system, beats=())
    try:
        operator.ready()
        assert operator.order("scene/reset").success
        operator.go()
        assert operator.order("scene/start").success
        assert operator.order("inference/run", True).success
        began = operator.consumed.next_step
        operator.until(lambda: operator.consumed.next_step > began + 8, "the arm does not move")
        os.kill(system.pid(module), signal.SIGKILL)
        operator.until(lambda: operator.state.startswith(state), f"the death of {dead} is not noticed", 10.0)
        assert reason in operator.state or "chunk starved" in operator.state
        wait_for(lambda: re.search(rf"^{dead} died \(signal SIGKILL\)", system.log("up"), re.M), f"nobody says that {dead} died")
        truth = system.truth()
        assert truth["disables"] == 0 and truth["power_cuts"] == 0
        if dead != "world":
            system.assert_held(operator.spin)
        assert not operator.order("controller/go").success
    finally:
        operator.close()
    system.processes["up"].send_signal(signal.SIGINT)
    assert system.exit_code_within("up", 60) != 0


def test_the_learned_policy_drives_the_arm_from_the_images_that_arrive_over_ros(system, tmp_path):
    checkpoint = Path(own_checkpoint("tape_box"))
    system.up("up", f"checkpoint:={checkpoint}", "trials:=1", "seed:=5", f"out:={tmp_path / 'runs'}")
    assert system.exit_code_within("up", 240) == 0, system.log("up")[-3000:]
    (row,) = Store(tmp_path / "runs").rows
    h = json.loads((checkpoint / "manifest.json").read_text())["contract"]["execution_horizon"]
    assert row.outcome in ("success", "failure") and row.horizon == h  # one trial proves that it runs, not how well
    assert row.calls >= 5 and row.steps <= row.calls * h and row.steps > (row.calls - 2) * h


def bent_checkpoint(directory: Path, source: str, bend) -> Path:
    """A checkpoint that is whole, fits the robot and agrees with its golden observations, and whose actions (H, 7) are those of
    ``source`` as ``bend`` changes them. Nothing gives it away before it moves the arm."""
    policy, manifest = checkpoint.load(source)
    actions = policy.contract.normalisation["actions"]
    bent = Normalisation(*(bend(np.array(quantile)).tolist() for quantile in (actions.q01, actions.q99)))
    policy = policy.under(replace(policy.contract, normalisation={**policy.contract.normalisation, "actions": bent})).eval()
    golden = Golden.of(policy, checkpoint.golden_of(source, manifest).observation)
    checkpoint.save(directory, policy, made=manifest["made"], gate=manifest.get("gate"), golden=golden)
    return directory


def drifting(actions):
    """With every action of a chunk joint6 turns DRIFT_RAD further."""
    actions[:, 5] += DRIFT_RAD * np.arange(1, len(actions) + 1)
    return actions


def calm(actions):
    """The joints turn a tenth as far: a slow machine loads it when the first policy is long done with its task, and from there
    a policy that goes as far as it was taught may lead beyond the limits, for which it is rightly taken back."""
    actions[:, :6] *= 0.1
    return actions


def test_the_policy_is_exchanged_while_it_moves_the_arm_taken_back_by_hand_and_on_probation_and_a_damaged_one_is_refused(system, tmp_path):
    first, second = (str(ROOT / "models" / name) for name in ("piper-pi0-tiny", "tape-box-oft-tiny"))
    system.up("up", f"checkpoint:={first}")
    wait_for(lambda: "running;" in system.log("up"), "the system does not come up", 240)
    operator, heard = Operator(system, beats=()), []
    speeds, generations, now = [], [], time.monotonic
    operator.node.create_subscription(JointState, "controller/setpoint", lambda m: speeds.append((now(), *m.velocity)), 50)
    operator.node.create_subscription(String, "controller/state", lambda m: heard.append(m.data), LATCHED)
    operator.node.create_subscription(
        Int64MultiArray, "controller/consumed", lambda m: generations.append(Consumed.from_message(m).generation), 50
    )

    def moves():
        """A new scene, and the policy moves the arm: a policy that has long done its task may ask for what the arm must not do."""
        operator.order("inference/run", False)
        operator.order("controller/hold")
        operator.ready()
        assert operator.order("scene/reset").success
        operator.go()
        assert operator.order("inference/run", True).success
        began = operator.consumed.next_step
        operator.until(lambda: operator.consumed.next_step > began + 8, "the arm does not move")
        heard.clear(), speeds.clear(), generations.clear()

    def swap(directory):
        line = [sys.executable, "-m", "policytrim_ros.cli", "swap", str(directory)]
        process = subprocess.Popen(
            line, cwd=ROOT, env=system.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        operator.until(lambda: process.poll() is not None, "the swap does not come to an end", 180.0)
        return process.returncode, process.communicate()[0]

    try:
        moves()
        code, said = swap(damaged_checkpoint(tmp_path))
        assert code == 1 and "changed or truncated" in said, said
        played = operator.consumed.next_step
        operator.until(lambda: operator.consumed.next_step > played + 3, "a refused swap stops the arm")
        assert set(generations) == {1}

        moves()
        code, said = swap(bent_checkpoint(tmp_path / "calm", second, calm))
        assert code == 0 and "generation 2 speaks after" in said and "h = 8" in said, said
        operator.until(lambda: generations[-1] == 2, "no action of the second generation is played")
        operator.until(lambda: operator.consumed.generation == 2, "")
        operator.spin(1.0)

        assert sorted(set(generations)) == [1, 2] == list(dict.fromkeys(generations)), "a retired generation came back"
        assert {state.partition(":")[0] for state in heard} <= {"moving"}, heard
        changes = np.diff(speeds, axis=0)
        missed = np.maximum(changes[:, :1], 0.05) + 0.01  # s; of the setpoints a busy subscriber misses some
        assert np.all(np.abs(changes[:, 1:]) <= np.array(SafetyLimits().a_max) * missed + 1e-6), "the velocity jumps"

        assert operator.order("inference/roll_back").success
        operator.until(lambda: generations[-1] == 3, "the first checkpoint does not come back")

        moves()
        code, said = swap(bent_checkpoint(tmp_path / "drifting", first, drifting))
        assert code == 0 and "generation 4 speaks after" in said, said
        operator.until(lambda: '"generation": 5' in operator.status, "the one on probation is not taken back")
        assert f"{tmp_path / 'drifting'} was taken back on probation: its chunk was cut" in operator.status, operator.status
        operator.until(lambda: generations[-1] == 5, "the one before does not move the arm again")
        assert operator.state.startswith("moving"), operator.state
    finally:
        operator.close()
