"""Trials: the protocol against a virtual rig with a virtual clock, the file that loses nothing, the table, and the real node."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rcl_interfaces.msg import SetParametersResult
from sensor_msgs.msg import JointState
from stack import Beside
from std_msgs.msg import Int64MultiArray, String
from std_srvs.srv import SetBool, Trigger

from policytrim_ros.core.safety import FAILSAFES
from policytrim_ros.core.types import READY
from policytrim_ros.nodes.messages import LATCHED, Consumed, joint_state, seconds_to_time
from policytrim_ros.trials.desk import Desk
from policytrim_ros.trials.protocol import Interrupted, RigError, run_session
from policytrim_ros.trials.session import Arm, Session, schedule
from policytrim_ros.trials.store import FILE, Row, Store, StoreError, read
from policytrim_ros.trials.table import comparison, show, table

PLAN = Session(arms=[Arm("A")], scenes=3, seed=10, timeout_s=30.0, block=0, blind=False)


def row(**changes) -> Row:
    values = dict(
        task="tape_box",
        setting="standard",
        label="A",
        seed=0,
        outcome="success",
        reason="",
        seconds=4.0,
        steps=80,
        calls=16,
        horizon=5,
        stalls=0,
        stall_s=0.0,
        mode="async",
        generation=1,
        checkpoint="c",
        began=1.0,
        ended=5.0,
    )
    return Row(**{**values, **changes})


class VirtualRig:
    """Answers at once; a trial ends as ``script[seed]`` says: an outcome, or an event at a step of 50 ms."""

    real_time_factor = 1.0

    def __init__(self, script=None):
        self.script = script or {}
        self.scene = {"scene_id": 0, "phase": "ready", "outcome": None}
        self.inference = {"calls": 100, "horizon": 5, "mode": "async", "generation": 2, "checkpoint": "models/x"}
        self.controller, self.went = ("unconfigured", "the arm waits"), False
        self.next_step, self.stalls, self.stall_s = 1000, 7, 1.5
        self.now, self.laid, self.runs, self.orders, self.quiet = 50.0, [], False, [], None

    def clock(self):
        return self.now

    def wait(self, condition, timeout_s):
        end = self.now + timeout_s
        while not condition():
            if self.now >= end:
                return False
            self.now += 0.05
            self._live()
        return True

    def _live(self):
        if not self.runs or self.controller[0] != "moving":
            return
        self.next_step += 1
        if self.next_step % 5 == 0:
            self.inference["calls"] += 1
        self.steps += 1
        event = self.script.get(self.laid[-1], "success")
        if callable(event):
            event(self)
        elif self.steps == 80:
            self.scene = {**self.scene, "phase": "done", "outcome": event}

    def silent(self):
        return self.quiet

    def at_ready(self):
        return self.controller[0] == "holding"

    def lay(self, task, setting, seed):
        self.laid.append(seed)
        self.scene = {"task": task, "setting": setting, "scene_id": self.scene["scene_id"] + 1, "phase": "ready", "outcome": None}

    def home(self):
        self.orders.append("home")
        self.controller = ("holding", "home: arrived")

    def go(self):
        self.orders.append("go")
        self.controller, self.went = ("moving", "go"), True

    def use(self, checkpoint, horizon):
        if checkpoint:
            self.orders.append(checkpoint)
            self.inference["checkpoint"] = checkpoint
        if horizon:
            self.inference["horizon"] = horizon

    def start(self):
        self.steps = 0
        self.scene = {**self.scene, "phase": "running"}

    def run(self, on):
        self.orders.append("run" if on else "stop")
        self.runs = on

    def hold(self):
        self.orders.append("hold")
        if self.controller[0] == "moving":
            self.controller = ("holding", "operator hold")

    def recorded(self):
        return ""


def trials(tmp_path, rig, plan=PLAN):
    store, said = Store(tmp_path), []
    try:
        return run_session(rig, "s", plan, schedule(plan), store, Desk(store), said.append), said
    finally:
        store.close()


def test_what_is_left_is_told_in_real_seconds(tmp_path):
    rig = VirtualRig()
    rig.real_time_factor = 0.5
    _, said = trials(tmp_path, rig)
    planned = len(said)
    assert [words.rpartition("left=")[2] for words in said] == ["? s"] + [f"{8 * (planned - done):.0f} s" for done in range(1, planned)]


def test_a_hold_before_the_first_control_step_ends_the_trial_at_once(tmp_path):
    class Startled(VirtualRig):
        def run(self, on):
            super().run(on)
            self.hold()

    why, _ = trials(tmp_path, Startled())
    (row,) = read(tmp_path)
    assert (row.outcome, row.reason) == ("aborted", "controller: holding: operator hold") and row.seconds < 1.0
    assert "operator hold" in why


def test_a_policy_whose_first_chunk_is_refused_has_failed(tmp_path):
    class Wild(VirtualRig):
        def run(self, on):
            super().run(on)
            if on:
                self.controller = ("holding", "beyond limits: joint6")

    trials(tmp_path, Wild())
    assert {(row.outcome, row.reason) for row in read(tmp_path)} == {("failure", "held by the controller: beyond limits: joint6")}


def test_a_policy_that_was_held_and_taken_back_on_probation_is_the_one_that_is_named(tmp_path):
    def held(rig):
        if rig.steps == 40:
            rig.controller = ("holding", "beyond limits: joint6")
            rig.inference |= {"generation": 3, "checkpoint": "models/before", "horizon": 15, "calls": rig.inference["calls"]}

    rig = VirtualRig({10: held})
    rig.silent = lambda: None
    trials(tmp_path, rig)
    first = read(tmp_path)[0]
    assert (first.outcome, first.reason) == ("failure", "held by the controller: beyond limits: joint6")
    assert (first.generation, first.checkpoint, first.horizon, first.calls) == (2, "models/x", 5, 8)


def test_a_trial_goes_home_then_go_run_stop_hold_and_is_counted_from_go_to_the_outcome(tmp_path):
    rig = VirtualRig({11: "failure"})
    stopped, said = trials(tmp_path, rig)
    assert stopped is None and len(said) == 3 and "trial 2/3" in said[1] and "seed=11 failure" in said[1]
    assert rig.orders == ["home", "go", "run", "stop", "hold"] * 3
    rows = read(tmp_path)
    assert [(r.seed, r.outcome) for r in rows] == [(10, "success"), (11, "failure"), (12, "success")]
    assert all((r.steps, r.calls, r.stalls, r.stall_s, r.horizon) == (80, 16, 0, 0.0, 5) for r in rows)
    assert all(r.seconds == pytest.approx(4.0) and r.generation == 2 and r.mode == "async" for r in rows)


def test_recorded_trials_are_not_repeated_and_aborted_ones_are(tmp_path):
    store = Store(tmp_path)
    store.append(row(session="s", number=1, seed=10))
    store.append(row(session="s", number=2, seed=11, outcome="aborted"))
    store.append(row(session="another", number=3, seed=12))
    store.close()
    rig = VirtualRig()
    trials(tmp_path, rig)
    assert rig.laid == [11, 12]


def test_two_policies_meet_the_same_scenes_in_turn(tmp_path):
    rig = VirtualRig({11: "failure"})
    plan = replace(PLAN, arms=[Arm(name, f"models/{name}") for name in "AB"], scenes=2)
    stopped, said = trials(tmp_path, rig, plan)
    assert stopped is None and rig.laid == [10, 10, 11, 11] and "trial 2/4 B " in said[1]
    assert [order for order in rig.orders if "models" in order] == ["models/A", "models/B"] * 2
    assert [(r.label, r.checkpoint, r.seed) for r in read(tmp_path)] == [
        (name, f"models/{name}", seed) for seed in (10, 11) for name in "AB"
    ]


def test_an_arm_may_be_the_same_checkpoint_at_another_horizon(tmp_path):
    rig = VirtualRig()
    trials(tmp_path, rig, replace(PLAN, arms=[Arm("short", "models/A", 5), Arm("long", "models/A", 15)], scenes=1))
    assert [(r.label, r.horizon) for r in read(tmp_path)] == [("short", 5), ("long", 15)]


def test_a_checkpoint_that_inference_cannot_use_aborts_before_the_arm_goes(tmp_path):
    rig = VirtualRig()

    def refuse(checkpoint, horizon):
        raise RigError(f"inference: {checkpoint} is not used, models/x stays: is not a checkpoint")

    rig.use = refuse
    stopped, _ = trials(tmp_path, rig, replace(PLAN, arms=[Arm("A", "models/broken")]))
    assert "models/broken is not used" in stopped and "go" not in rig.orders


@pytest.mark.parametrize(
    "state", [("fault", "feedback silent: 0.20 s"), ("holding", "operator hold"), ("unconfigured", "no feedback")]
)
def test_a_fault_or_an_operators_hold_aborts_the_trial_and_the_rest_are_not_run(tmp_path, state):
    rig = VirtualRig({11: lambda rig: setattr(rig, "controller", state)})
    stopped, _ = trials(tmp_path, rig)
    assert rig.laid == [10, 11] and rig.orders[-2:] == ["stop", "hold"]
    assert state[1] in stopped and read(tmp_path)[-1].outcome == "aborted" and state[1] in read(tmp_path)[-1].reason


def test_a_silent_process_aborts_the_trial_and_is_named(tmp_path):
    stopped, _ = trials(tmp_path, VirtualRig({10: lambda rig: setattr(rig, "quiet", "inference")}))
    assert "inference has fallen silent" in stopped and [r.outcome for r in read(tmp_path)] == ["aborted"]


def test_no_outcome_in_time_is_a_failure_with_the_reason(tmp_path):
    stopped, _ = trials(tmp_path, VirtualRig({seed: lambda rig: None for seed in (10, 11, 12)}))
    assert stopped is None and {(r.outcome, r.reason) for r in read(tmp_path)} == {("failure", "no success within 30 s")}


def test_a_hold_before_the_first_action_is_an_abort_and_not_a_failure_of_the_policy(tmp_path):
    rig = VirtualRig()
    rig.go = rig.hold
    stopped, _ = trials(tmp_path, rig)
    assert "controller: holding" in stopped
    assert read(tmp_path)[0].outcome == "aborted"


def test_a_scene_laid_by_somebody_else_makes_the_trial_invalid_and_it_is_tried_again(tmp_path):
    def once(rig):
        rig.scene.update(scene_id=99)
        rig.script[11] = "failure"

    stopped, _ = trials(tmp_path, VirtualRig({11: once}))
    assert stopped is None
    assert [(r.number, r.outcome) for r in read(tmp_path)] == [(1, "success"), (2, "invalid"), (2, "failure"), (3, "success")]


def test_an_unattended_run_ends_when_a_trial_stays_invalid(tmp_path):
    stopped, _ = trials(tmp_path, VirtualRig({11: lambda rig: rig.scene.update(scene_id=99)}))
    assert "somebody laid another scene" in stopped and [r.outcome for r in read(tmp_path)] == ["success"] + ["invalid"] * 3


def test_a_hold_that_the_policy_caused_is_its_failure_and_the_trials_go_on(tmp_path):
    held = ("holding", f"{FAILSAFES['beyond limits'].name}: 52 mm beyond the workspace or table limit")
    stopped, _ = trials(tmp_path, VirtualRig({11: lambda rig: rig.steps == 10 and setattr(rig, "controller", held)}))
    rows = read(tmp_path)
    assert stopped is None and [r.outcome for r in rows] == ["success", "failure", "success"] and "52 mm" in rows[1].reason


def test_an_arm_that_does_not_reach_ready_aborts_with_the_controllers_reason(tmp_path):
    rig = VirtualRig()
    rig.home = lambda: setattr(rig, "controller", ("fault", "arm status: teach mode"))
    stopped, _ = trials(tmp_path, rig)
    assert "teach mode" in stopped and "run" not in rig.orders


def test_an_interrupt_stores_the_aborted_row_and_holds(tmp_path):
    def interrupt(rig):
        rig.script[10] = "success"
        raise Interrupted("ended by the operator")

    rig = VirtualRig({10: interrupt})
    with pytest.raises(Interrupted):
        trials(tmp_path, rig)
    assert rig.orders[-2:] == ["stop", "hold"] and read(tmp_path)[0].outcome == "aborted"


def test_a_controller_that_does_not_take_the_hold_ends_the_run(tmp_path):
    def refuse():
        raise RigError("controller/hold did not answer within 5 s")

    rig = VirtualRig()
    rig.hold = refuse
    stopped, _ = trials(tmp_path, rig)
    assert "did not answer" in stopped and len(read(tmp_path)) == 1


def test_a_second_writer_is_refused(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(StoreError, match="another trial run"):
        Store(tmp_path)
    store.close()


def test_a_directory_that_cannot_be_written_is_one_clear_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        Store(tmp_path / "file")


def test_a_killed_process_loses_no_row_that_was_appended(tmp_path):
    code = (
        f"import sys; from policytrim_ros.trials.store import Store\n"
        f"sys.path.insert(0, {os.path.dirname(__file__)!r}); from test_trials import row\n"
        f"store = Store({str(tmp_path)!r})\nfor seed in range(10**6):\n store.append(row(seed=seed)); print(seed, flush=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    said = [process.stdout.readline() for _ in range(20)]
    process.send_signal(signal.SIGKILL)
    said += process.stdout.readlines()
    process.wait()
    assert [r.seed for r in read(tmp_path)][: len(said)] == list(range(len(said)))
    assert process.returncode == -signal.SIGKILL and os.path.getsize(tmp_path / FILE) > 0


def test_the_table_counts_success_and_failure_only_and_keeps_labels_apart():
    rows = [row(seed=s, seconds=3.0 + s % 3) for s in range(18)] + [
        row(seed=s, outcome="failure", seconds=99.0) for s in (18, 19)
    ]
    rows += [row(seed=20, outcome="aborted", steps=5000), row(seed=0, label="B", horizon=10, calls=8)]
    lines = table(rows).splitlines()
    assert len(lines) == 4 and len({len(line) for line in lines}) == 1
    first = [cell.strip() for cell in lines[2].split("|")[1:-1]]
    assert first[:5] == ["tape_box", "standard", "A", "18/20", "90 [70, 97]"]
    assert first[5].startswith("4.0 [") and first[6] == "80 [80, 80]" and first[8] == "5" and first[-1] == "1 aborted"
    assert [cell.strip() for cell in lines[3].split("|")[3:5]] == ["B", "1/1"]


def test_the_second_table_compares_policies_over_the_scenes_in_which_both_succeeded():
    rows = [row(seed=seed, seconds=8.0, steps=160, calls=32) for seed in range(4)]
    rows += [
        row(seed=seed, label="B", seconds=4.0, steps=80, calls=6, outcome="failure" if seed == 3 else "success")
        for seed in range(4)
    ]
    rows += [row(seed=9, label="B", seconds=99.0), row(seed=0, task="flip_mug")]
    lines = comparison(rows).splitlines()
    cells = [cell.strip() for cell in lines[2].split("|")[1:-1]]
    assert len(lines) == 3 and cells[2:7] == ["A", "B", "4", "4 -> 3", "3"]
    assert cells[7:] == ["8.0 -> 4.0 (2.00 x)", "160.0 -> 80.0 (2.00 x)", "32.0 -> 6.0 (5.33 x)"]
    assert comparison(rows[:4]) == "" and "nan" not in comparison([row(outcome="failure"), row(label="B")])


def test_a_repeated_trial_replaces_what_it_repeats_in_the_table():
    assert "| 1/1 " in table([row(outcome="aborted"), row(outcome="failure"), row()])


def test_every_try_that_does_not_count_is_counted_also_when_it_was_repeated():
    rows = [row(outcome="aborted"), row(outcome="aborted"), row(outcome="invalid"), row(), row(seed=1, outcome="invalid")]
    cells = [cell.strip() for cell in table(rows).splitlines()[2].split("|")[1:-1]]
    assert cells[3] == "1/1" and cells[-1] == "2 aborted, 2 invalid"


def test_means_of_one_and_two_stand_alone_and_three_have_an_interval():
    tables = [table([row(seed=seed) for seed in range(n)]).splitlines()[2] for n in (1, 2, 3)]
    one, two, three = ([cell.strip() for cell in line.split("|")] for line in tables)
    assert one[6:9] == two[6:9] == ["4.0", "80", "16"] and one[10] == "0.0"
    assert three[6:9] == ["4.0 [4.0, 4.0]", "80 [80, 80]", "16 [16, 16]"]


def test_a_table_without_a_success_or_without_rows_can_be_read(tmp_path):
    assert "0/1" in table([row(outcome="failure")]) and "nan" not in table([row(outcome="failure")])
    assert "nan" not in table([row(outcome="aborted")])
    assert show(tmp_path) == f"no trials in {tmp_path}"


# ---- the node ------------------------------------------------------------------------------------------------------


class FakeSystem(Beside):
    """Controller, world and inference as one node in a thread: every trial succeeds after 10 control steps by default."""

    def __init__(self, scene=True):
        """``scene``: whether it also lays the scenes and sees the outcome, as a simulated world does."""
        self.lays = scene
        super().__init__("world")
        node = self.node
        for name, value in (("task", "tape_box"), ("setting", "standard"), ("seed", 0)):
            node.declare_parameter(name, value)
        node.add_on_set_parameters_callback(self._check)
        self.orders, self.steps, self.scene_id, self.phase, self.state = [], 500, 0, "ready", "holding: home: arrived"
        self.calls, self.running, self.endless, self.alive = (
            40,
            False,
            False,
            ["controller", *(["world"] if scene else []), "inference"],
        )
        topics = ("controller/state", "inference/status", *(["scene/state"] if scene else []))
        self._latched = {name: node.create_publisher(String, name, LATCHED) for name in topics}
        self._consumed = node.create_publisher(Int64MultiArray, "controller/consumed", 10)
        self._joints = node.create_publisher(JointState, "joint_states", 10)
        self._heartbeat = node.create_publisher(String, "heartbeat", 10)
        for order in ("controller/home", "controller/go", "controller/hold", *(["scene/reset", "scene/start"] if scene else [])):
            node.create_service(Trigger, order, lambda request, response, order=order: self._order(order, response))
        node.create_service(SetBool, "inference/run", lambda request, response: self._order(f"run {request.data}", response))
        node.create_timer(0.02, self._tick)
        self.serve()

    def _check(self, parameters):
        known = all(p.name != "task" or p.value in ("tape_box", "flip_mug") for p in parameters)
        return SetParametersResult(successful=known, reason="" if known else "task: allowed values are 'tape_box', 'flip_mug'")

    def _order(self, order, response):
        self.orders.append(order)
        if order == "scene/reset":
            self.scene_id, self.phase = self.scene_id + 1, "ready"
        elif order == "scene/start":
            self.phase, self._end = "running", self.steps + 10
        elif order.startswith("run"):
            self.running = order == "run True"
        else:
            self.state = {"controller/home": "holding: home: arrived", "controller/go": "moving: go"}.get(
                order, "holding: operator hold"
            )
        response.success = True
        self._tell()
        return response

    def _tick(self):
        if self.running and self.state == "moving: go" and (self.phase == "running" or not self.lays):
            self.steps, self.calls = self.steps + 1, self.calls + 1
            if self.lays and not self.endless and self.steps >= self._end:
                self.phase = "done"
        for name in self.alive:
            self._heartbeat.publish(String(data=name))
        self._joints.publish(joint_state(seconds_to_time(0.0), READY, [0.0] * 7))
        self._consumed.publish(Consumed(3, 1, self.steps, 0, self.running, 0, 0.0).to_message())
        self._tell()

    def _tell(self):
        task, setting, seed = (self.node.get_parameter(name).value for name in ("task", "setting", "seed"))
        scene = dict(
            task=task,
            setting=setting,
            seed=seed,
            scene_id=self.scene_id,
            phase=self.phase,
            elapsed_s=0.0,
            outcome="success" if self.phase == "done" else None,
        )
        status = dict(generation=3, checkpoint="models/x", horizon=5, mode="sync", calls=self.calls, running=self.running)
        for name, text in (
            ("controller/state", self.state),
            ("scene/state", json.dumps(scene)),
            ("inference/status", json.dumps(status)),
        ):
            if name in self._latched:
                self._latched[name].publish(String(data=text))


@pytest.fixture
def system():
    running = FakeSystem()
    yield running
    running.close()


def node(out, **parameters):
    line = [sys.executable, "-u", "-m", "policytrim_ros.nodes.trial", "--ros-args", "-p", f"out:={out}"]
    for name, value in parameters.items():
        line += ["-p", f"{name}:={value}"]
    return subprocess.Popen(
        line, cwd=Path(__file__).resolve().parents[1], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def until_running(system, process):
    while not (system.running and system.steps > 505):
        assert process.poll() is None, process.communicate()


@pytest.mark.integration
def test_the_node_runs_its_trials_prints_the_table_and_ends_with_0(system, tmp_path):
    out, err = node(tmp_path, trials=2, seed=7, task="flip_mug").communicate(timeout=120)
    assert "2/2" in out.splitlines()[-1] and "| x " in out.splitlines()[-1], (out, err)
    assert [(r.task, r.seed, r.outcome, r.generation, r.horizon, r.mode) for r in read(tmp_path)] == [
        ("flip_mug", 7, "success", 3, 5, "sync"),
        ("flip_mug", 8, "success", 3, 5, "sync"),
    ]
    assert all(r.steps in (9, 10) and r.calls == 10 for r in read(tmp_path))  # the last step and the outcome arrive in any order
    assert (
        system.orders
        == ["controller/home", "scene/reset", "controller/go", "scene/start", "run True", "run False", "controller/hold"] * 2
    )


@pytest.mark.integration
def test_ctrl_c_in_a_trial_stops_inference_holds_and_keeps_the_aborted_row(system, tmp_path):
    system.endless = True
    process = node(tmp_path, trials=3)
    until_running(system, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "told to end" in err and "1 aborted" in out
    assert system.orders[-2:] == ["run False", "controller/hold"] and [r.outcome for r in read(tmp_path)] == ["aborted"]


@pytest.mark.integration
def test_a_process_that_falls_silent_in_a_trial_aborts_it_and_is_named(system, tmp_path):
    system.endless = True
    process = node(tmp_path, trials=3)
    until_running(system, process)
    system.alive.remove("inference")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "inference has fallen silent" in err and "the remaining trials were not run" in err
    assert system.orders[-1] == "controller/hold" and len(read(tmp_path)) == 1


@pytest.mark.integration
def test_a_task_that_the_scene_does_not_know_is_refused_in_its_words_and_records_nothing(system, tmp_path):
    process = node(tmp_path, task="make_coffee")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "world: task: allowed values are 'tape_box', 'flip_mug'" in err
    assert read(tmp_path) == [] and "run True" not in system.orders


@pytest.mark.integration
def test_without_a_running_system_the_node_says_what_is_missing(tmp_path):
    process = node(tmp_path, startup_s=1.0)
    _, err = process.communicate(timeout=60)
    assert (
        process.returncode == 1
        and err.startswith("trial: no controller answers")
        and "policytrim up" in err
        and "Traceback" not in err
    )


def test_a_checkpoint_that_was_published_again_in_the_same_place_is_another_one(tmp_path):
    from policytrim_ros.nodes.rig import weights_at

    assert weights_at(str(tmp_path)) == "" and weights_at("ws://127.0.0.1:8000") == ""
    (tmp_path / "manifest.json").write_text('{"files": {"model.safetensors": "abc"}}')
    assert weights_at(str(tmp_path)) == "abc"
    (tmp_path / "manifest.json").write_text("{")
    assert weights_at(str(tmp_path)) == ""
