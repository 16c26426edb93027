"""Sessions of trials: the order that a seed makes, the desk at which an operator labels, the database that only grows."""

import json
import os
import resource
import sqlite3
import subprocess
import sys
import threading
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_trials import VirtualRig, row

from policytrim_ros.core.config import ConfigError
from policytrim_ros.trials.desk import Desk, NotNow
from policytrim_ros.trials.protocol import Interrupted, RigError, decided_cells, pairs, run_session, upcoming
from policytrim_ros.trials.session import Arm, Session, read_session, schedule
from policytrim_ros.trials.store import FILE, Store, StoreError, history, read, read_sessions

AB = [Arm("A", "models/a"), Arm("B", "models/b", 15)]
EARLIER = [("XS27", 1001, "A"), ("BL79", 1001, "B"), ("F5M5", 1000, "B"), ("Y7BA", 1000, "A"), ("5LVY", 1002, "B"), ("KR5Y", 1002, "A")]
"""What release 1 made of three scenes from seed 1000: code, seed and arm of each trial."""
ONE = Session(arms=[Arm("A")], scenes=1, seed=10, block=0, timeout_s=5.0)


# ---- the plan and its order ----------------------------------------------------------------------------------------------


@given(st.integers(0, 2**31 - 1), st.integers(1, 12), st.integers(0, 5), st.integers(1, 3))
def test_every_arm_meets_every_scene_of_every_cell_once_whatever_the_seed(seed, scenes, block, arms):
    names = "ABC"[:arms]
    plan = Session(
        ["tape_box", "flip_mug"], ["standard", "dynamic"], [Arm(n) for n in names], scenes, min(seed, 2**31 - 100), block
    )
    trials = schedule(plan)
    assert [t.number for t in trials] == list(range(1, len(trials) + 1)) and len({t.code for t in trials}) == len(trials)
    met = Counter((t.task, t.setting, t.seed, t.arm.name) for t in trials)
    assert len(met) == 4 * scenes * arms and set(met.values()) == {1}
    assert schedule(plan) == trials


def test_the_trials_of_a_block_are_shuffled_and_blocks_stay_in_order():
    orders = set()
    for seed in range(40):
        trials = schedule(Session(arms=AB, scenes=6, seed=seed, block=2))
        assert [sorted({t.seed - seed for t in trials[i : i + 4]}) for i in (0, 4, 8)] == [[0, 1], [2, 3], [4, 5]]
        orders.add("".join(t.arm.name for t in trials[:4]))
    assert orders == {"AABB", "ABAB", "ABBA", "BAAB", "BABA", "BBAA"}


def test_without_blocks_the_arms_take_turns():
    trials = schedule(Session(arms=AB, scenes=2, seed=5, block=0))
    assert [(t.seed, t.arm.name) for t in trials] == [(5, "A"), (5, "B"), (6, "A"), (6, "B")]


def test_a_code_says_nothing_about_the_arm_that_a_reader_could_learn():
    trials = schedule(Session(arms=AB, scenes=200, seed=1))
    first = {name: Counter(t.code[0] for t in trials if t.arm.name == name) for name in "AB"}
    assert all(len(counts) > 20 for counts in first.values()) and "models" not in "".join(t.code for t in trials)


def told(trials):
    """What an operator who saw a session unblinded knows of it."""
    return [(t.code, t.task, t.seed, t.arm.label) for t in trials]


def test_a_blind_session_that_was_unblinded_tells_nothing_of_the_next_one_with_the_same_plan():
    plan = Session(arms=AB, scenes=20)
    first, second = plan.salted(), plan.salted()
    assert not {t.code for t in schedule(first)} & {t.code for t in schedule(second)}
    assert [t.arm.label for t in schedule(first)] != [t.arm.label for t in schedule(second)]
    assert sorted((t.seed, t.arm.label) for t in schedule(first)) == sorted((t.seed, t.arm.label) for t in schedule(second))
    assert first.salted().salt != first.salt and first.salted().salt != second.salt


def test_a_salted_session_keeps_its_order_when_it_is_read_from_the_store_again(store, tmp_path):
    begun = Session(arms=AB, scenes=5).salted()
    store.begin("s", begun.as_dict(), {})
    assert told(schedule(Session.from_mapping(read_sessions(tmp_path)[0]["spec"]))) == told(schedule(begun))


def test_a_session_that_an_earlier_release_stored_keeps_its_order_and_its_codes():
    stored = {"arms": [{"name": "A"}, {"name": "B"}], "scenes": 3, "seed": 1000}
    assert [(t.code, t.seed, t.arm.label) for t in schedule(Session.from_mapping(stored))] == EARLIER


def test_only_a_blind_session_draws_a_salt():
    assert Session(blind=False).salted() == Session(blind=False) and "salt" not in Session().as_dict()


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"scenes": 0}, "Session.scenes"),
        ({"arms": []}, "name at least one"),
        ({"arms": [{"checkpoint": "x/a"}, {"checkpoint": "y/a"}]}, "each once"),
        ({"arms": [{"chekpoint": "x"}]}, "chekpoint"),
        ({"arms": "models/a"}, "Session.arms = 'models/a': expected a list"),
        ({"arms": [{"checkpoints": {"tape_box": "x"}}]}, "give this arm a name"),
        ({"arms": [{"name": "A", "checkpoints": ["x"]}]}, "expected task: directory"),
        ({"arms": [{"name": "A", "checkpoints": {"tape_box": ""}}]}, "expected task: directory"),
        ({"arms": [{"name": "A", "checkpoints": {"hang_mug": "x"}}]}, "a checkpoint for hang_mug, which is none of the tasks"),
        ({"settings": ["moving"]}, "none of standard, dynamic"),
        ({"tasks": ["../etc"]}, "names such as tape_box"),
        ({"stop": "sequential", "arms": [{"name": "A"}]}, "compares two arms"),
        ({"scense": 3}, "unknown key 'scense'"),
        ({"arms": 5}, "Session.arms = 5: expected a list"),
        ({"arms": [{"horizon": 10**400}]}, "Arm.horizon"),
        ({"arms": [{"name": "a\x1b[2J"}]}, "printable"),
        ({"arms": [{"name": "a" * 101}]}, "at most 100"),
        ({"arms": [{"name": "A", "checkpoints": {"tape_box": "x\r"}}]}, "Arm.checkpoints"),
        ({"arms": [{"checkpoint": "m" * 2001}]}, "Arm.checkpoint"),
        ({"tasks": [[1]]}, "expected a list of names"),
        ({"tasks": ["a" * 101]}, "Session.tasks"),
        ({"settings": [{}]}, "expected a list of names"),
        ({"scenes": 10**400}, "Session.scenes"),
        ({"seed": float("inf")}, "Session.seed"),
        ({"timeout_s": float("nan")}, "Session.timeout_s"),
        ({"notes": "\x1b[2J"}, "Session.notes"),
        ({"salt": "mine"}, "Session.salt"),
        ({"arms": [{"name": str(i)} for i in range(3000)], "scenes": 10_000}, "30000000 trials are planned, 100000 are the most"),
    ],
)
def test_a_plan_that_cannot_be_carried_out_is_refused_with_the_key(changes, said):
    with pytest.raises(ConfigError, match=said):
        Session.from_mapping(changes)


def test_a_plan_survives_its_way_through_yaml_and_json(tmp_path):
    plan = Session(["flip_mug"], ["dynamic"], AB, 4, 7, stop="sequential", notes="<b>")
    (tmp_path / "plan.yaml").write_text(json.dumps(plan.as_dict()))
    assert read_session(tmp_path / "plan.yaml") == plan
    (tmp_path / "plan.yaml").write_text("tasks: [tape_box\n")
    with pytest.raises(ConfigError, match="plan.yaml"):
        read_session(tmp_path / "plan.yaml")


def test_an_arm_may_have_a_checkpoint_for_each_task(tmp_path):
    plan = Session(["tape_box", "flip_mug"], arms=[{"name": "A", "checkpoint": "a", "checkpoints": {"flip_mug": "f"}}], scenes=1)
    loaded = []
    rig = VirtualRig({})
    rig.use = lambda checkpoint, horizon: loaded.append(checkpoint)
    store = Store(tmp_path)
    run_session(rig, "s", plan, schedule(plan), store, Desk(store), lambda line: None)
    assert loaded == ["a", "f"] and {row.label for row in store.rows_of("s")} == {"A"}
    (tmp_path / "plan.yaml").write_text(json.dumps(plan.as_dict()))
    assert read_session(tmp_path / "plan.yaml") == plan
    store.close()


# ---- the database --------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path)
    yield made
    made.close()


def test_a_label_that_was_taken_back_stays_in_the_record(store, tmp_path):
    kept = store.append(row(labelled_by="scene"))
    store.label(kept.id, "unlabelled", "undo", "Li")
    assert not read(tmp_path)[0].counts
    store.label(kept.id, "failure", "the tape fell out again", "Li")
    (now,) = read(tmp_path)
    assert (now.outcome, now.reason, now.labelled_by) == ("failure", "the tape fell out again", "Li")
    assert [(h["outcome"], h["labelled_by"]) for h in history(tmp_path, kept.id)] == [
        ("success", "scene"),
        ("unlabelled", "Li"),
        ("failure", "Li"),
    ]


@pytest.mark.parametrize("table", ["trial", "label", "event", "session"])
def test_the_database_itself_refuses_to_forget(store, tmp_path, table):
    store.begin("s", {}, {})
    store.append(row(session="s"))
    store.note("s", "hold", who="Li")
    direct = sqlite3.connect(tmp_path / FILE)
    with pytest.raises(sqlite3.IntegrityError, match="never changed or removed"):
        direct.execute(f"DELETE FROM {table}")
    if table != "session":
        with pytest.raises(sqlite3.IntegrityError, match="never changed"):
            direct.execute(f"UPDATE {table} SET id = id + 1")
    direct.close()


def test_a_locked_session_takes_no_trial_and_no_label_and_is_locked_once(store, tmp_path):
    store.begin("s", {"a": 1}, {"commit": "c"})
    kept = store.append(row(session="s"))
    store.lock("s", "complete")
    for attempt in (
        lambda: store.label(kept.id, "failure", "", "Li"),
        lambda: store.append(row(session="s", seed=2)),
        lambda: store.lock("s", "again"),
    ):
        with pytest.raises(StoreError, match="refused"):
            attempt()
    store.append(row(session="another"))
    (found,) = read_sessions(tmp_path)
    assert found["locked"] and found["spec"] == {"a": 1} and found["lock_reason"] == "complete"
    assert [r.outcome for r in read(tmp_path, "s")] == ["success"]


def test_a_session_with_an_unlabelled_trial_is_not_locked(store):
    store.begin("s", {}, {})
    kept = store.append(row(session="s", number=4))
    store.label(kept.id, "unlabelled", "undo", "Li")
    with pytest.raises(StoreError, match="trial 4 has no outcome"):
        store.lock("s")


def test_a_file_that_is_no_database_and_one_of_a_later_release_are_named(tmp_path):
    (tmp_path / FILE).write_bytes(b"not a database at all, but long enough to be looked at" * 40)
    with pytest.raises(StoreError, match="trials.db cannot be used"):
        Store(tmp_path)
    with pytest.raises(StoreError, match="trials.db cannot be used"):
        read(tmp_path)
    (tmp_path / FILE).unlink()
    Store(tmp_path).close()
    direct = sqlite3.connect(tmp_path / FILE)
    direct.execute("PRAGMA user_version = 99")
    direct.commit()
    direct.close()
    with pytest.raises(StoreError, match="later release"):
        Store(tmp_path)


def test_a_disk_that_fills_up_loses_no_trial_that_was_finished(tmp_path):
    code = (
        f"import resource, signal, sys; sys.path.insert(0, {os.path.dirname(__file__)!r})\n"
        "from test_trials import row\nfrom policytrim_ros.trials.store import Store, StoreError\n"
        f"store = Store({str(tmp_path)!r})\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))\n"
        "try:\n for seed in range(10**6):\n  store.append(row(seed=seed)); print(seed, flush=True)\n"
        "except StoreError as error:\n print(error, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    finished = len(done.stdout.splitlines())
    assert finished > 10 and "free some space; what was finished before is kept" in done.stderr
    assert [r.seed for r in read(tmp_path)] == list(range(finished))
    store = Store(tmp_path)
    store.append(row(seed=finished))
    store.close()
    assert len(read(tmp_path)) == finished + 1 and resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 300_000


def test_an_event_is_told_as_it_is_kept_and_also_when_the_disk_does_not_take_it(store, tmp_path):
    told = []
    store.noted = told.append
    store.note("s", "hold", who="Li")
    store.begin("s", {}, {})
    assert [{**event, "session": "s"} for event in read_sessions(tmp_path)[0]["events"]] == told and told[0]["detail"] == {"who": "Li"}
    store.close()
    with pytest.raises(StoreError):
        store.note("s", "hold", who="Wu")
    assert told[1]["detail"] == {"who": "Wu"}


def test_an_alarm_is_in_the_record_once(store, tmp_path):
    store.begin("s", {}, {})
    desk = Desk(store)
    desk.session = "s"
    for _ in range(2):
        desk.alarm("the disk is nearly full")
    assert [(e["kind"], e["detail"]) for e in read_sessions(tmp_path)[0]["events"]] == [
        ("alarm", {"text": "the disk is nearly full"})
    ]


def test_rows_can_be_read_while_another_thread_writes(store, tmp_path):
    writer = threading.Thread(target=lambda: [store.append(row(seed=seed)) for seed in range(50)])
    writer.start()
    while writer.is_alive():
        seeds = [r.seed for r in read(tmp_path)]
        assert seeds == list(range(len(seeds)))
    writer.join()


# ---- pairs and the stopping rule ----------------------------------------------------------------------------------------


def test_pairs_join_the_rows_of_one_scene_and_leave_out_what_does_not_count():
    plan = Session(arms=AB, scenes=3, seed=0)
    rows = [row(seed=0, id=1), row(seed=0, label="B", id=2), row(seed=1, label="B", id=3)]
    rows += [row(seed=1, outcome="aborted", id=4), row(seed=2, label="B", outcome="failure", id=5), row(seed=2, id=6)]
    found = pairs(plan, rows, "tape_box", "standard")
    assert [(a.id, b.id) for a, b in found] == [(1, 2), (6, 5)]


def test_a_sequential_session_ends_a_cell_when_its_test_has_decided_and_a_fixed_one_does_not():
    plan = Session(arms=AB, scenes=400, seed=0, stop="sequential", margin=0.3)
    rows, number = [], 0
    while (trial := upcoming(plan, schedule(plan), rows)) is not None and number < 800:
        number += 1
        rows.append(row(id=number, number=trial.number, seed=trial.seed, label=trial.arm.label))
    assert 10 < number < 200 and decided_cells(plan, rows) == {("tape_box", "standard")}
    fixed = Session(arms=AB, scenes=400, seed=0, stop="fixed", margin=0.3)
    assert upcoming(fixed, schedule(fixed), rows) is not None


# ---- the desk -----------------------------------------------------------------------------------------------------------


class Disk:
    """The disk below a Store: `fill` lets no file grow any more, as a full one does, `free` ends that."""

    def __init__(self, out):
        self.wal, self.limits = out / f"{FILE}-wal", resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(self):
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.wal.stat().st_size, self.limits[1]))

    def free(self):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.limits)


@pytest.fixture
def disk(tmp_path):
    made = Disk(tmp_path)
    yield made
    made.free()


class AttendedRig(VirtualRig):
    """A rig beside an operator: ``does`` is asked at every step of the world, until nothing is left to do."""

    def __init__(self, script, operator):
        super().__init__(script)
        self.operator, self.stop_signal, self.at_home = operator, None, False

    def wait(self, condition, timeout_s):
        end = self.now + min(timeout_s, 200.0)
        while not condition():
            if self.stop_signal:
                self.stop_signal = None
                raise Interrupted("paused")
            if self.now >= end:
                assert timeout_s <= 200.0, "the operator never answered"
                return False
            self.now += 0.05
            self._live()
            self.operator(self)
        return True

    def at_ready(self):
        return self.at_home and super().at_ready()

    def home(self):
        super().home()
        self.at_home = True

    def run(self, on):
        super().run(on)
        self.at_home = self.at_home and not on

    def go(self):
        super().go()
        self.steps = 0


def attended(tmp_path, operator, script=None, plan=Session(arms=AB, scenes=1, seed=10, block=0)):
    """A session in which ``operator(desk, rig)`` acts between the steps; the desk, and why it ended."""
    store = Store(tmp_path)
    desk = Desk(store, attended=True)
    rig = AttendedRig(script or {}, lambda rig: operator(desk, rig))
    try:
        return desk, run_session(rig, "s", plan, schedule(plan), store, desk, lambda line: None), rig
    finally:
        store.close()


def phase(desk):
    return desk.seen(False)["phase"]


def test_nothing_moves_before_the_operator_says_go(tmp_path):
    waited = []

    def operator(desk, rig):
        if phase(desk) == "ready":
            waited.append(rig.orders[-1] != "go")
            if len(waited) % 20 == 0:
                desk.go()

    _, ended, rig = attended(tmp_path, operator)
    assert ended is None and all(waited) and len(waited) == 40 and rig.orders.count("go") == 2


def test_the_operators_word_counts_and_the_time_runs_from_go_to_the_key(tmp_path):
    def operator(desk, rig):
        if phase(desk) == "ready":
            desk.go()
        elif phase(desk) == "running" and rig.steps == 40:
            desk.label("failure", "knocked over", "Li")

    attended(tmp_path, operator, {10: lambda rig: None})
    rows = read(tmp_path)
    assert [(r.outcome, r.reason, r.labelled_by) for r in rows] == [("failure", "knocked over", "Li")] * 2
    assert all(r.seconds == pytest.approx(2.0, abs=0.1) for r in rows)


def test_a_hold_by_the_operator_asks_for_the_outcome_and_does_not_count_the_time_of_the_decision(tmp_path):
    def operator(desk, rig):
        if phase(desk) == "ready":
            desk.go()
        elif phase(desk) == "running" and rig.steps == 40:
            rig.hold()
            rig.asked_at = rig.now
        elif phase(desk) == "labelling" and rig.now > rig.asked_at + 30:
            desk.label("invalid", "a hand was in the way", "Li") if len(read(tmp_path)) == 0 else desk.label("success", "", "Li")

    _, ended, _ = attended(tmp_path, operator, {10: lambda rig: None})
    rows = read(tmp_path)
    assert ended is None and [(r.number, r.outcome) for r in rows] == [(1, "invalid"), (1, "success"), (2, "success")]
    assert all(r.seconds < 3 for r in rows)


def test_undo_asks_for_another_outcome_before_the_next_go(tmp_path):
    done = []

    def operator(desk, rig):
        if phase(desk) == "ready" and desk.last is not None and not done:
            desk.undo("Li")
            with pytest.raises(NotNow, match="trial 1 has no outcome"):
                desk.go()
            with pytest.raises(NotNow, match="say why"):
                desk.label("invalid", " ", "Li")
            desk.label("failure", "", "Li")
            done.append(True)
        if phase(desk) == "ready":
            desk.go()

    attended(tmp_path, operator)
    assert [(r.number, r.outcome) for r in read(tmp_path)] == [(1, "failure"), (2, "success")]


def test_orders_at_the_wrong_moment_are_refused_with_a_reason(tmp_path):
    store = Store(tmp_path)
    desk = Desk(store, attended=True)
    for order, said in (
        (desk.go, "go is given when a trial is ready"),
        (lambda: desk.label("success", "", "Li"), "no trial is running"),
        (lambda: desk.label("aborted", "", "Li"), "choose one of"),
        (lambda: desk.undo("Li"), "no outcome to take back"),
    ):
        with pytest.raises(NotNow, match=said):
            order()
    store.close()


def test_a_pause_before_go_leaves_no_row_and_the_session_goes_on_later(tmp_path):
    def pause(desk, rig):
        if phase(desk) == "ready":
            rig.stop_signal = True

    with pytest.raises(Interrupted):
        attended(tmp_path, pause)
    assert read(tmp_path) == []
    _, ended, _ = attended(tmp_path, lambda desk, rig: phase(desk) == "ready" and desk.go())
    assert ended is None and len(read(tmp_path)) == 2


def test_what_a_blind_desk_shows_does_not_change_with_the_arm(tmp_path):
    shown = {}
    for name, arm in (("A", AB[0]), ("B", AB[1])):
        store = Store(tmp_path / name)
        desk = Desk(store)
        trial = schedule(Session(arms=[arm], scenes=1, seed=3, block=0))[0]
        desk.begin(trial, "s", "s/trial-0001", "?")
        desk.end(row(number=1, code=trial.code, label=arm.label, checkpoint=arm.checkpoint, horizon=arm.horizon))
        shown[name] = {**desk.seen(blind=True), "since_s": 0}
        assert desk.seen(blind=False)["card"]["arm"] == name
        store.close()
    assert shown["A"] == shown["B"]


def test_a_reason_that_names_a_checkpoint_is_kept_in_the_record_and_not_shown_to_a_blind_operator(tmp_path):
    plan = Session(arms=AB, scenes=1, seed=10, block=0)

    class Rig(VirtualRig):
        def use(self, checkpoint, horizon):
            raise RigError(f"{checkpoint} is not used, models/a-b stays")

    store, said = Store(tmp_path), []
    store.begin("s", plan.as_dict(), {})
    desk = Desk(store)
    ended = run_session(Rig(), "s", plan, schedule(plan), store, desk, said.append)
    shown = (ended, said[0], desk.seen(True)["last"]["reason"], store.rows_of("s")[0].reason)
    assert all("(a policy) is not used, models/a-b stays" in text and "models/a " not in text for text in shown)
    (event,) = [event for event in read_sessions(tmp_path)[0]["events"] if event["kind"] != "alarm"]
    assert (event["kind"], event["detail"]["text"]) == ("reason", "models/a is not used, models/a-b stays")
    store.close()


def test_a_recording_that_is_not_whole_is_an_alarm_and_stays_in_the_record(tmp_path):
    class Rig(VirtualRig):
        def recorded(self):
            return "recording failed: No space left on device"

    plan, store = Session(arms=[Arm("A")], scenes=1, seed=3), Store(tmp_path)
    store.begin("s", plan.as_dict(), {})
    desk = Desk(store, records=True)
    assert run_session(Rig(), "s", plan, schedule(plan), store, desk, lambda line: None) is None
    store.close()
    assert "the recording of trial 1 is not whole: recording failed: No space" in desk.seen(True)["alarms"][0]
    (event,) = [event for event in read_sessions(tmp_path)[0]["events"] if event["kind"] != "alarm"]
    assert event["kind"] == "recording" and event["detail"]["trial"] == 1 and "No space" in event["detail"]["reason"]
    assert read(tmp_path)[0].outcome == "success"


def test_with_hands_near_the_arm_it_does_not_move_home_before_a_go_and_that_go_is_not_the_trials(tmp_path):
    plan, store = Session(arms=AB, scenes=1, seed=10, block=0), Store(tmp_path)
    desk, seen = Desk(store, attended=True, hands=True), []

    def operator(rig):
        seen.append((phase(desk), rig.orders[-1] if rig.orders else ""))
        if phase(desk) in ("homing", "ready") and len(seen) % 30 == 0:
            desk.go()

    rig = AttendedRig({}, operator)
    assert run_session(rig, "s", plan, schedule(plan), store, desk, lambda line: None) is None
    store.close()
    phases = [name for i, (name, _) in enumerate(seen) if i == 0 or seen[i - 1][0] != name]
    assert phases[:3] == ["homing", "ready", "running"] and phases.count("ready") == 2
    assert {order for name, order in seen if name == "homing"} <= {"", "hold"}, "it moved home before the go"
    assert sum(name == "ready" for name, _ in seen) > 10, "the go for home started the trial, too"


def test_an_arm_that_rests_at_the_ready_pose_needs_no_go_for_home(tmp_path):
    plan, store = Session(arms=[Arm("A")], scenes=1, seed=10), Store(tmp_path)
    desk, phases = Desk(store, attended=True, hands=True), set()

    def operator(rig):
        phases.add(phase(desk))
        if phase(desk) == "ready":
            desk.go()

    rig = AttendedRig({}, operator)
    rig.controller, rig.at_home = ("holding", "home: arrived"), True
    run_session(rig, "s", plan, schedule(plan), store, desk, lambda line: None)
    store.close()
    assert "homing" not in phases and "ready" in phases


def test_after_an_aborted_trial_the_arm_waits_for_a_go_before_it_moves_home_again(tmp_path):
    homes = []

    def operator(desk, rig):
        homes.append((phase(desk), rig.orders.count("home")))
        if phase(desk) == "running" and not read(tmp_path):
            rig.quiet = "camera"
        elif phase(desk) == "homing" and len([h for h in homes if h[0] == "homing"]) > 20:
            rig.quiet = None
            desk.go()
        elif phase(desk) == "ready":
            desk.go()

    _, ended, rig = attended(tmp_path, operator, plan=ONE)
    assert ended is None
    assert [r.outcome for r in read(tmp_path)] == ["aborted", "success"]
    assert {count for name, count in homes if name == "homing"} == {1}


CANARY = Session(arms=AB, scenes=2, seed=10, canary=2, blind=False)


def test_a_trial_that_the_disk_does_not_take_is_stored_when_there_is_room_again_and_the_candidate_is_put_back_before(
    tmp_path, disk
):
    told = []

    def operator(desk, rig):
        if phase(desk) == "ready":
            desk.go()
        elif phase(desk) == "running" and desk.trial.arm.name == "B" and rig.steps == 40:
            disk.fill()
        elif desk.alarms:
            told.append((phase(desk), *desk.alarms, rig.inference["checkpoint"]))
            if len(told) == 300:  # 15 s: tried again three times
                disk.free()

    desk, ended, _ = attended(tmp_path, operator, plan=CANARY)
    assert ended is None and [r.outcome for r in read(tmp_path)] == ["success"] * 2 and desk.alarms == []
    assert len(told) > 300 and len(set(told)) == 1, "one alarm, for as long as it is true"
    at, alarm, speaks = told[0]
    assert (
        (at, speaks) == ("ending", "models/a") and "is not stored yet and is tried again" in alarm and "free some space" in alarm
    )


def test_an_operator_who_gives_a_trial_up_that_cannot_be_stored_finds_it_whole_in_the_log(tmp_path, disk):
    plan, store, said = Session(arms=AB, scenes=1, seed=10, block=0), Store(tmp_path), []
    desk = Desk(store, attended=True)

    def operator(rig):
        if phase(desk) == "ready":
            desk.go()
        elif phase(desk) == "running" and rig.steps == 40:
            disk.fill()
            desk.label("failure", "models/a fell asleep", "Li")
        elif desk.alarms:
            rig.stop_signal = True

    with pytest.raises(
        StoreError, match='free some space; .*; trial 1 is not in it: its row stands in the log, after {"unstored":'
    ):
        run_session(AttendedRig({}, operator), "s", plan, schedule(plan), store, desk, said.append)
    disk.free()
    (line,) = said
    lost = row(**json.loads(line)["unstored"])
    assert (lost.number, lost.outcome, lost.reason, lost.session) == (1, "failure", "models/a fell asleep", "s")
    assert desk.alarms == [] and store.rows == []
    store.append(lost)
    store.close()


@pytest.mark.parametrize("attended", [False, True])
def test_a_run_that_nobody_attends_or_that_was_interrupted_does_not_wait_for_a_disk_and_leaves_the_incumbent_speaking(
    tmp_path, disk, attended
):
    class Rig(VirtualRig):
        def wait(self, condition, timeout_s):
            if phase(desk) == "ready":
                desk.go() if attended else None
            return super().wait(condition, timeout_s)

    def middle(rig):
        if rig.inference["checkpoint"] == "models/a":
            rig.scene = {**rig.scene, "phase": "done", "outcome": "success"}
        elif rig.steps == 40:
            disk.fill()
            if attended:
                raise Interrupted("the console was told to end")
            rig.scene = {**rig.scene, "phase": "done", "outcome": "success"}

    store, said, rig = Store(tmp_path), [], Rig({10: middle, 11: middle})
    desk = Desk(store, attended=attended)
    with pytest.raises(StoreError, match="is not in it"):
        run_session(rig, "s", CANARY, schedule(CANARY), store, desk, said.append)
    began = rig.now
    disk.free()
    lost = json.loads(said[-1])["unstored"]
    assert (lost["label"], lost["outcome"]) == ("B", "aborted" if attended else "success")
    assert rig.inference["checkpoint"] == "models/a" and rig.now == began and desk.alarms == []
    store.close()


def hold_long(rig):
    if rig.steps == 40:
        rig.controller = ("holding", "beyond limits: joint6")


@pytest.mark.parametrize("event, outcome", [("success", "success"), (lambda rig: None, "failure"), (hold_long, "failure")])
def test_a_word_that_comes_after_the_outcome_is_refused_and_an_undo_leads_to_it(tmp_path, event, outcome):
    late = []

    def too_late(desk):
        with pytest.raises(NotNow, match="has ended already; when it is stored, undo takes its outcome back"):
            desk.label("invalid", "too late", "Li")
        with pytest.raises(NotNow, match="is being stored"):
            desk.undo("Li")
        late.append(phase(desk))

    def operator(desk, rig):
        if phase(desk) == "ready":
            rest, rig.hold = rig.hold, lambda: (too_late(desk), rest())
            desk.go()
        elif phase(desk) == "ending":
            too_late(desk)

    desk, ended, _ = attended(tmp_path, operator, {10: event}, plan=ONE)
    assert ended is None and set(late) == {"ending"}
    (stored,) = read(tmp_path)
    assert (stored.outcome, desk.verdict) == (outcome, None) and "too late" not in stored.reason


def test_after_the_word_that_was_asked_for_there_is_no_second_one(tmp_path):
    phases, store = [], Store(tmp_path)
    desk = Desk(store, attended=True, changed=lambda: phases.append(phase(desk)))

    def operator(rig):
        if phase(desk) == "ready":
            desk.go()
        elif phase(desk) == "running" and rig.steps == 40:
            rig.hold()
        elif phase(desk) == "labelling":
            desk.label("success", "", "Li")

    run_session(AttendedRig({10: lambda rig: None}, operator), "s", ONE, schedule(ONE), store, desk, lambda line: None)
    store.close()
    phases = [name for i, name in enumerate(phases) if i == 0 or phases[i - 1] != name]
    assert phases == ["preparing", "ready", "running", "ending", "labelling", "ending", "done"]


def test_an_outcome_taken_back_while_nobody_says_go_is_given_again_before_the_next_trial_begins(tmp_path):
    plan, store, waited = Session(arms=AB, scenes=1, seed=10, block=0), Store(tmp_path), []
    store.begin("s", plan.as_dict(), {})
    desk = Desk(store)

    class Rig(AttendedRig):
        def home(self):
            super().home()
            if self.laid:
                desk.undo("Li")

    def operator(rig):
        if desk.unlabelled:
            waited.append(phase(desk))
            if len(waited) == 50:
                desk.label("failure", "it fell out again", "Li")

    assert run_session(Rig({}, operator), "s", plan, schedule(plan), store, desk, lambda line: None) is None
    assert [(r.number, r.outcome) for r in store.rows] == [(1, "failure"), (2, "success")] and waited == ["ready"] * 50
    store.lock("s")
    store.close()


def test_an_outcome_taken_back_is_still_asked_for_when_the_next_trial_cannot_begin(tmp_path):
    plan, store = Session(arms=AB, scenes=1, seed=10, block=0), Store(tmp_path)
    store.begin("s", plan.as_dict(), {})
    desk = Desk(store)

    class Rig(VirtualRig):
        def home(self):
            super().home()
            if self.laid:
                desk.undo("Li")
                raise RigError("controller/home refused: the arm has no power")

    assert "trial 2 (seed 10) was aborted" in run_session(Rig(), "s", plan, schedule(plan), store, desk, lambda line: None)
    assert desk.seen(True)["unlabelled"] == 1
    desk.label("failure", "", "Li")
    assert [(r.number, r.outcome) for r in store.rows] == [(1, "failure"), (2, "aborted")]
    store.lock("s")
    store.close()


@pytest.mark.parametrize("attended", [False, True])
def test_after_the_go_no_outcome_is_taken_back(tmp_path, attended):
    store = Store(tmp_path)
    desk = Desk(store, attended=attended)
    desk.begin(schedule(ONE)[0], "s", "s/trial-0001", "?")
    desk.end(store.append(row(number=1, session="s")))
    desk.phase("ready")
    if attended:
        assert not desk.may_go()
        desk.go()
    assert desk.may_go()
    with pytest.raises(NotNow, match="a trial is running"):
        desk.undo("Li")
    desk.phase("done")
    desk.undo("Li")
    store.close()
