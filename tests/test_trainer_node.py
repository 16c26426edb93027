"""The trainer node with real trainings of a stand-in task: started, stopped, killed and resumed; nothing outlives it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from stack import ROOT, Operator, Stack, wait_for
from std_msgs.msg import String

from policytrim_ros.children import LOWEST
from policytrim_ros.nodes.messages import LATCHED
from policytrim_ros.policies import checkpoint
from policytrim_ros.training import run_state

pytestmark = pytest.mark.long

PATIENT_S = 600.0  # generous: every start imports torch, and the machine may be busy with other tests
LITTLE = {
    "environment": "reach_task:TiringEnv",
    "camera_width": 64,
    "camera_height": 36,
    "horizon": 6,
    "margin": 0.5,
    "confidence": 0.5,
    "check_every": 4,
    "collapse": 1.0,
    "check_episodes": 2,
    "selection_episodes": 3,
    "evaluation_episodes": 8,
    "grpo": {"learning_rate": 3e-4},
    "extension": {"iterations": 0},
    "saving": {"iterations": 6, "groups": 2, "group_size": 4, "horizons": [5, 6]},
}
"""A run that is an improvement: h = 6 instead of 5 saves looks, and with them steps."""


class TrainerNode(Stack):
    """The node with a recipe of its own, and somebody who gives it orders and hears what it says."""

    def __init__(self, folder: Path, **changes):
        super().__init__(folder)
        self.environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tests"), str(ROOT)])
        self.recipe = folder / "trim.yaml"
        self.recipe.write_text(yaml.safe_dump({**LITTLE, **changes}))
        self.run, self.store = folder / "run", folder / "store"
        self.said: list[dict] = []
        self.operator = Operator(self, beats=())
        self.operator.node.create_subscription(
            String, "trainer/status", lambda message: self.said.append(json.loads(message.data)), LATCHED
        )

    def up(self, **parameters) -> None:
        values = dict(recipe=self.recipe, run_dir=self.run, store=self.store, niceness=0)
        self.start("trainer", "policytrim_ros.nodes.trainer", **{**values, **parameters})

    def order(self, on: bool):
        return self.operator.order("trainer/run", on)

    def until(self, condition) -> dict:
        """The first status from the present one on that ``condition`` likes, or in which the run has ended otherwise."""
        seen = max(0, len(self.said) - 1)

        def found():
            news = self.said[seen:]
            return next((said for said in news if condition(said) or said["state"] in ("failed", "finished")), None)

        said = self.operator.until(found, f"the trainer says only {self.said[-1:]}", PATIENT_S)
        assert condition(said), said
        return said

    def until_state(self, state: str) -> dict:
        return self.until(lambda said: said["state"] == state)

    def until_learning(self) -> dict:
        return self.until(lambda said: said["state"] == "running" and said["iteration"] >= 1)

    def training(self) -> list[int]:
        """Process ids of the pipeline and of what it has started."""
        return descendants(self.processes["trainer"].pid)

    def close(self) -> None:
        super().close()
        self.operator.close()


def descendants(pid: int) -> list[int]:
    try:
        children = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return [*children, *(other for child in children for other in descendants(child))]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def ended(pids, timeout_s: float = PATIENT_S) -> None:
    wait_for(lambda: not any(map(alive, pids)), "something outlives the trainer node", timeout_s)


@pytest.fixture
def node(baseline, tmp_path):
    """A function that makes the node's stage with ``changes`` to the recipe."""
    made = []

    def make(**changes):
        made.append(TrainerNode(tmp_path, parent=str(baseline), **changes))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(scope="module")
def whole(baseline, tmp_path_factory):
    """(the stage of a node in which a run went from start to end, all that it said, how it answered a second start)."""
    one = TrainerNode(tmp_path_factory.mktemp("whole"), parent=str(baseline))
    try:
        one.up()
        assert one.until_state("idle")["phase"] is None
        assert one.order(True).success
        one.until_learning()
        second = one.order(True)
        one.until_state("finished")
        one.kill("trainer", signal.SIGTERM)
        yield one, list(one.said), second
    finally:
        one.close()


def test_a_run_is_started_watched_and_published(whole):
    one, said, _ = whole
    assert [state for state in dict.fromkeys(status["state"] for status in said)] == ["idle", "running", "finished"], said[-1]
    phases = list(dict.fromkeys(status["phase"] for status in said if status["phase"]))
    assert phases[-2:] == ["saving", "evidence"] and set(phases) <= {"baseline", "selection", "saving", "evidence"}, phases
    steps = [status["iteration"] for status in said if status["phase"] == "saving"]
    assert steps == sorted(steps) and all(status["iterations"] == 6 for status in said if status["phase"] == "saving")
    learning = next(status for status in said if status["phase"] == "saving" and status["iteration"])
    assert learning["eta_s"] >= 0 and learning["steps"] > 0 and learning["best"]["success_rate"] > 0 and learning["horizon"] == 6
    last = said[-1]
    assert last["improvement"] is True and last["verdict"].startswith("an improvement"), last
    assert last["checkpoint"] == str(one.store / "trimmed") and last["reason"] == f"published as {last['checkpoint']}"
    manifest = checkpoint.verify(last["checkpoint"])
    assert manifest["files"]["model.safetensors"] == last["weights_sha256"]
    assert manifest["contract"]["execution_horizon"] == 6 and manifest["made"]["improvement"] is True
    assert [path.name for path in one.store.iterdir()] == ["trimmed"]


def test_a_second_start_while_one_runs_is_refused_and_the_run_goes_on(whole):
    _, _, second = whole
    assert not second.success and second.message.startswith("trimmed is running already; stop it first (saving, ")


def test_who_comes_late_or_starts_the_node_again_learns_how_the_run_ended(whole):
    one, said, _ = whole
    one.said.clear()
    one.up()
    again = one.until_state("finished")
    assert {**again, "reason": ""} == {**said[-1], "reason": ""}
    late, heard = Operator(one, beats=()), []
    try:
        late.node.create_subscription(String, "trainer/status", lambda message: heard.append(json.loads(message.data)), LATCHED)
        late.until(lambda: heard, "no latched status")
        assert heard == [again]
    finally:
        late.close()
        one.kill("trainer", signal.SIGTERM)


def history(run: Path) -> list[dict]:
    """What a run has seen and learned in every iteration, without what depends on the clock."""
    _, facts = run_state.load(run / "trim_state.safetensors")
    clock = ("rollout_s", "update_s", "memory_mb")
    return [{key: value for key, value in entry.items() if key not in clock} for entry in facts["history"]]


def test_a_training_that_was_stopped_and_then_killed_ends_like_one_that_was_not(whole, node):
    uninterrupted, said, _ = whole
    one = node()
    one.up()
    assert one.order(False).message == "nothing is running"
    assert one.order(True).success
    one.until_learning()
    answer = one.order(False)
    assert answer.success and "saves its state" in answer.message
    stopped = one.until_state("stopped")
    assert "the same command resumes" in stopped["reason"] and stopped["iteration"] >= 1

    assert one.order(True).success
    resumed = one.until(lambda status: status["state"] == "running" and status["phase"])
    assert (resumed["phase"], resumed["iteration"]) >= (stopped["phase"], stopped["iteration"])
    for pid in one.training()[:1]:
        os.kill(pid, signal.SIGKILL)
    failed = one.until_state("failed")
    assert "was killed (SIGKILL)" in failed["reason"] and "a start resumes it" in failed["reason"]
    assert one.processes["trainer"].poll() is None  # the node is none the worse

    assert one.order(True).success
    assert one.until_state("finished")["weights_sha256"] == said[-1]["weights_sha256"]
    assert len(history(one.run)) == 6 and history(one.run) == history(uninterrupted.run)
    assert history(one.run)[-1]["ratio"] > 0  # it did learn


def test_a_run_that_is_no_improvement_is_finished_with_its_verdict_and_publishes_nothing(node):
    one = node(horizon=5, saving={"iterations": 0})
    one.up(autostart="true")
    last = one.until_state("finished")
    assert (last["state"], last["improvement"], last["checkpoint"]) == ("finished", False, None)
    assert last["verdict"].startswith("no improvement: ") and last["reason"].startswith("not published; the checkpoint stays in")
    assert not one.store.exists()


def test_what_cannot_be_trained_is_refused_or_fails_with_the_reason(node):
    one = node(nonsense=3)
    one.up()

    def policytrim(*words):
        line = [sys.executable, "-m", "policytrim_ros.cli", "trainer", *words]
        return subprocess.run(line, cwd=ROOT, env=one.environment, capture_output=True, text=True, timeout=PATIENT_S)

    for words, reason in (
        (["recipe:=/nowhere/trim.yaml"], "TrainerConfig.recipe = '/nowhere/trim.yaml': there is no such file"),
        ([f"recipe:={one.recipe}", "checkpoint:=/nowhere"], "TrainerConfig.checkpoint = '/nowhere': no manifest.json there"),
        (["name:=../out"], "TrainerConfig.name = '../out': expected the name of a directory"),
        (["processes:=0"], "TrainerConfig.processes = 0: allowed range is 1 to 256"),
    ):
        result = policytrim("start", *words)
        assert result.returncode == 1 and reason in result.stderr and result.stderr.count("\n") == 1, result
    result = policytrim("start", "checkpoint:=")
    assert result.returncode == 0 and "trainer/run: started trimmed" in result.stdout, result
    failed = one.until_state("failed")
    assert "trim.yaml: TrimRecipe: unknown key 'nonsense'" in failed["reason"] and "trainer.log" in failed["reason"]
    result = policytrim("status")
    assert result.returncode == 0 and "state           failed" in result.stdout and "unknown key" in result.stdout


def test_training_has_the_lowest_priority(node):
    one = node()
    one.up(niceness=LOWEST)
    assert one.order(True).success
    (pid, *_) = wait_for(one.training, "no training process")
    wait_for(lambda: os.sched_getscheduler(pid) == os.SCHED_IDLE, "the training process competes with the arm")
    assert os.getpriority(os.PRIO_PROCESS, pid) == LOWEST


@pytest.mark.parametrize("number, processes", [(signal.SIGTERM, 1), (signal.SIGKILL, 2)])
def test_nothing_outlives_the_node_and_the_state_is_there(node, number, processes):
    one = node(saving={"iterations": 10_000, "groups": 2, "group_size": 2})
    one.up(processes=processes)
    assert one.order(True).success
    one.until_learning()
    pids = one.training()
    assert len(pids) >= (1 if processes == 1 else 1 + processes)  # the pipeline and its rollout processes
    one.kill("trainer", number)
    if number == signal.SIGKILL:
        ended(pids)
    else:
        ended(pids, 1.0)  # the node has waited for them
    one.up()
    left = one.until(lambda said: said["reason"] == f"found in {one.run}; a start resumes it")
    assert (left["state"], left["phase"]) == ("stopped", "saving") and left["iteration"] >= 1
    assert (one.run / "trim_state.safetensors").exists()
