"""A canary: the test that says worse or as good, the plan and its order, and what the protocol does with the candidate."""

import itertools
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from session_samples import about, row_of, store_session
from test_sessions import AttendedRig, phase
from test_trials import VirtualRig, row

from policytrim_ros.core.canary import AS_GOOD, WORSE, CanaryTest
from policytrim_ros.core.config import ConfigError
from policytrim_ros.core.safety import FAILSAFES
from policytrim_ros.core.sequential import UNDECIDED
from policytrim_ros.nodes.trial import TrialConfig, session_of
from policytrim_ros.trials.canary import ROLLED_BACK, UNSAFE, canary_of
from policytrim_ros.trials.claims import claims
from policytrim_ros.trials.desk import Desk
from policytrim_ros.trials.protocol import Interrupted, RigError, run_session
from policytrim_ros.trials.report import report
from policytrim_ros.trials.session import Session, read_session, schedule
from policytrim_ros.trials.store import Store, read, read_sessions

ARMS = [{"name": "old", "checkpoint": "models/old"}, {"name": "new", "checkpoint": "models/new"}]
HELD = f"{FAILSAFES['beyond limits'].name}: 52 mm beyond the workspace or table limit; check the checkpoint"


def plan(**changes) -> Session:
    return Session.from_mapping({"arms": ARMS, "scenes": 80, "seed": 10, "canary": 4, "blind": False, **changes})


PLAN = plan()
TRIALS = schedule(PLAN)
NEW = [trial for trial in TRIALS if trial.arm.name == "new"]


# ---- the test ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("incumbent, candidate", [(0.9, 0.8), (0.5, 0.4), (0.15, 0.05)])
def test_at_the_margin_the_money_of_both_sides_is_1_on_average(incumbent, candidate):
    chance = lambda rate, solved: rate if solved else 1 - rate  # noqa: E731
    worse = as_good = 0.0
    for outcomes in itertools.product((True, False), repeat=9):  # every course of three blocks of three trials
        test, weight = CanaryTest(0.1), 1.0
        for new, *old in zip(*[iter(outcomes)] * 3):
            test.add(new, old)
            weight *= chance(candidate, new) * math.prod(chance(incumbent, one) for one in old)
        worse, as_good = worse + weight * test.worse, as_good + weight * test.as_good
    assert (worse, as_good) == (pytest.approx(1.0), pytest.approx(1.0))


def verdicts(incumbent, candidate, sessions=100, blocks=60, every=4, seed=0):
    """How often each verdict was said when the test is read after every block."""
    draws, said = np.random.default_rng(seed), Counter()
    for _ in range(sessions):
        test = CanaryTest(0.1)
        while test.verdict == UNDECIDED and test.blocks < blocks:
            test.add(draws.random() < candidate, draws.random(every - 1) < incumbent)
        said[test.verdict] += 1
    return {verdict: count / sessions for verdict, count in said.items()}


def test_read_after_every_block_it_is_wrong_at_the_margin_no_more_often_than_alpha():
    said = verdicts(0.9, 0.8)
    assert said.get(WORSE, 0) <= 0.05 + 0.044 and said.get(AS_GOOD, 0) <= 0.05 + 0.044  # two standard errors
    assert verdicts(0.9, 0.9, sessions=30).get(WORSE, 0) == 0


def test_a_clear_loss_is_said_to_be_worse_and_equal_arms_to_be_as_good():
    assert verdicts(0.9, 0.3, sessions=30, blocks=40) == {WORSE: 1.0}
    assert verdicts(0.95, 0.95, sessions=15, blocks=400) == {AS_GOOD: 1.0}


def test_a_candidate_that_always_fails_beside_an_incumbent_that_never_does_takes_eight_blocks():
    test = CanaryTest(0.1)
    for _ in range(7):
        test.add(False, [True] * 3)
    assert test.verdict == UNDECIDED and test.worse < test.needed == 20
    test.add(False, [True] * 3)
    assert test.verdict == WORSE
    for _ in range(200):
        test.add(True, [False])
    assert test.verdict == WORSE, "what was said first stands"


@pytest.mark.parametrize("margin, alpha", [(0.0, 0.05), (1.0, 0.05), (0.1, 0.0), (0.1, 0.5)])
def test_a_margin_or_alpha_that_means_nothing_is_refused(margin, alpha):
    with pytest.raises(ValueError, match="outside"):
        CanaryTest(margin, alpha)


def test_a_block_without_the_incumbent_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        CanaryTest(0.1).add(True, [])


# ---- the plan ------------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)  # a busy machine is no failure
@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(1, 6))
def test_every_block_has_one_trial_of_the_candidate_and_every_scene_is_met_once(seed, every, blocks):
    spec = plan(seed=seed, canary=every, scenes=every * blocks, tasks=["tape_box", "flip_mug"])
    trials = schedule(spec)
    assert len(trials) == spec.planned == 2 * every * blocks and [t.number for t in trials] == list(range(1, len(trials) + 1))
    for begin in range(0, len(trials), every):
        block = trials[begin : begin + every]
        assert [t.arm.name for t in block].count("new") == 1 and len({t.task for t in block}) == 1
    assert len({(t.task, t.seed) for t in trials}) == len(trials) and trials == schedule(spec)


def test_the_candidates_place_in_the_block_is_drawn():
    places = Counter((trial.number - 1) % 4 for trial in schedule(plan(scenes=400)) if trial.arm.name == "new")
    assert sorted(places) == [0, 1, 2, 3] and min(places.values()) > 10


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"canary": 1}, "every trial to the candidate"),
        ({"arms": ARMS[:1]}, "wants two arms, the incumbent and then the candidate, not 1"),
        ({"arms": [{"name": "old"}, ARMS[1]]}, "the checkpoint of both arms"),
        ({"arms": [ARMS[0], {**ARMS[1], "checkpoints": {"tape_box": "x"}}]}, "tries one candidate"),
        ({"blind": True}, "write blind: false"),
        ({"stop": "sequential"}, "leave stop out"),
        ({"scenes": 10}, "whole blocks, 10 scenes are none; plan 12"),
        ({"canary": -1}, "allowed range"),
        ({"canary": 2.5}, "whole number"),
    ],
)
def test_a_canary_that_cannot_be_carried_out_is_refused_with_what_to_do(changes, said):
    with pytest.raises(ConfigError, match=f"Session.canary.*{said}"):
        plan(**changes)


def test_a_plan_without_a_canary_is_stored_as_before_there_were_any():
    spec = Session.from_mapping({"arms": ARMS})
    assert "canary" not in spec.as_dict() and Session.from_mapping(spec.as_dict()) == spec
    assert Session.from_mapping(PLAN.as_dict()) == PLAN and PLAN.as_dict()["canary"] == 4


def test_one_line_makes_a_canary_of_the_loaded_checkpoint_and_a_candidate():
    spec = session_of(TrialConfig(trials=8, canary="models/new"), "models/old")
    assert [arm.checkpoint for arm in spec.arms] == ["models/old", "models/new"] and (spec.canary, spec.blind) == (4, False)
    with pytest.raises(ConfigError, match="whole blocks, 10 scenes are none; plan 12"):
        session_of(TrialConfig(trials=10, canary="models/new"), "models/old")
    with pytest.raises(ConfigError, match="leave compare out"):
        session_of(TrialConfig(trials=8, canary="models/new", compare="models/b"), "models/old")


def test_the_plan_that_comes_with_the_project_can_be_carried_out():
    assert read_session(Path(__file__).parents[1] / "config" / "trials_canary.yaml").planned == 400


# ---- what becomes of the candidate -----------------------------------------------------------------------------------------


class Run:
    """A canary session against the virtual rig: ``script`` is what `VirtualRig` takes, by scene."""

    def __init__(self, out, script, spec=PLAN, rig=None, desk=None):
        store, self.said = Store(out), []
        self.rig, self.desk = rig or VirtualRig(script), desk or Desk(store)
        self.desk.store = store
        if not any(found["id"] == "s" for found in read_sessions(out)):
            store.begin("s", spec.as_dict(), {"simulated": True})
        try:
            self.ended = run_session(self.rig, "s", spec, schedule(spec), store, self.desk, self.said.append)
        finally:
            store.close()
            self.rows, found = read(out, "s"), read_sessions(out)[0]["events"]
            self.events = [event for event in found if event["kind"] == "canary"]
            self.canary = self.desk.seen(False)["canary"]


def held(reason):
    return lambda rig: rig.steps == 10 and setattr(rig, "controller", ("holding", reason))


def loaded(rig):
    return [order for order in rig.orders if order.startswith("models/")]


def test_a_candidate_that_keeps_failing_is_returned_after_eight_blocks_and_nothing_more_is_tried(tmp_path):
    run = Run(tmp_path, {trial.seed: "failure" for trial in NEW})
    assert run.ended is None and len(run.rows) == 32 and loaded(run.rig)[-1] == "models/old"
    assert run.canary["verdict"] == WORSE and run.canary["trials"] == 8 and run.canary["evidence"]["worse"] > 20
    assert run.said[-1].startswith(
        "canary worse: new was returned: it succeeds less often than old by more than 10 points; old speaks again"
    )
    assert "new was returned" in run.desk.alarms[0]
    (event,) = run.events
    assert event["kind"] == "canary" and event["detail"]["verdict"] == WORSE and event["detail"]["trial"] == 32
    again = Run(tmp_path, {})
    assert (
        again.ended is None
        and again.rig.orders == []
        and again.said == run.said[-1:]
        and again.canary == run.canary
        and len(again.events) == 1
    )


def test_one_hold_that_the_candidate_caused_returns_it_at_once(tmp_path):
    run = Run(tmp_path, {NEW[1].seed: held(HELD)})
    assert run.ended is None and run.rows[-1].number == NEW[1].number and run.rows[-1].outcome == "failure"
    assert (
        run.canary["verdict"] == UNSAFE
        and "52 mm beyond the workspace or table limit; old speaks" in run.canary["reason"]
        and run.rig.inference["checkpoint"] == "models/old"
    )
    assert f"canary unsafe: new was returned after trial {NEW[1].number}" in run.said[-1] and len(run.events) == 1
    assert Run(tmp_path, {}).rig.laid == []


def test_the_same_hold_in_a_trial_of_the_incumbent_returns_nobody(tmp_path):
    of_old = next(trial for trial in TRIALS if trial.arm.name == "old")
    run = Run(tmp_path, {of_old.seed: held(HELD)}, plan(scenes=8))
    assert len(run.rows) == 8 and run.canary["verdict"] == UNDECIDED and run.events == [] and run.canary["reason"] == ""


def test_a_fault_that_the_candidate_caused_before_its_first_step_returns_it_too(tmp_path):
    def fault(rig):
        rig.next_step -= 1  # it never began
        rig.controller = ("fault", f"{FAILSAFES['arm status'].name}: collision")

    run = Run(tmp_path, {NEW[0].seed: fault})
    assert run.rows[-1].outcome == "aborted" and "was aborted: controller: fault" in run.ended
    assert run.canary["verdict"] == UNSAFE and "collision" in run.canary["reason"]


def test_a_hold_by_an_operator_or_a_dead_process_does_not_blame_the_candidate(tmp_path):
    run = Run(tmp_path, {NEW[0].seed: held("operator hold")})
    assert run.rows[-1].outcome == "aborted" and run.canary["verdict"] == UNDECIDED
    Run(tmp_path, {NEW[0].seed: lambda rig: setattr(rig, "quiet", "camera")})
    assert len(read(tmp_path)) == NEW[0].number + 1 and canary_of(PLAN, TRIALS, read(tmp_path)).verdict == UNDECIDED


def test_as_good_ends_the_session_and_leaves_the_swap_to_the_operator(tmp_path):
    spec = plan(scenes=40, margin=0.6)
    run = Run(tmp_path, {}, spec)
    assert run.ended is None and len(run.rows) < 40 and run.rig.inference["checkpoint"] == "models/old"
    assert run.canary["verdict"] == AS_GOOD and "`policytrim swap models/new`" in run.said[-1] and run.desk.alarms == []


def test_after_every_trial_of_the_candidate_the_incumbent_is_put_back_also_when_the_operator_ends_the_run(tmp_path):
    def interrupt(rig):
        raise Interrupted("ended by the operator")

    rig = VirtualRig({NEW[2].seed: interrupt})
    with pytest.raises(Interrupted):
        Run(tmp_path, {}, rig=rig)
    assert rig.inference["checkpoint"] == "models/old" and loaded(rig).count("models/new") == 3
    assert [name for i, name in enumerate(loaded(rig)) if loaded(rig)[i - 1 : i] == ["models/new"]] == ["models/old"] * 3


def test_an_incumbent_that_cannot_be_put_back_ends_the_run_with_what_to_do(tmp_path):
    class Rig(VirtualRig):
        def use(self, checkpoint, horizon):
            if checkpoint == "models/old" and self.inference["checkpoint"] == "models/new":
                raise RigError("inference did not load models/old within 180 s")
            super().use(checkpoint, horizon)

    run = Run(tmp_path, {}, rig=Rig())
    assert run.rows[-1].number == NEW[0].number and "could not be put back" in run.ended
    assert "`policytrim swap models/old`" in run.desk.alarms[0] and run.events[0]["detail"]["verdict"] == "not put back"


def test_a_roll_back_from_a_terminal_in_a_trial_of_the_candidate_ends_the_canary(tmp_path):
    def roll_back(rig):
        if rig.steps == 20:
            rig.inference["checkpoint"] = "models/old"
        elif rig.steps == 80:
            rig.scene = {**rig.scene, "phase": "done", "outcome": "success"}

    run = Run(tmp_path, {NEW[0].seed: roll_back})
    assert (
        run.canary["verdict"] == ROLLED_BACK
        and run.rows[-1].number == NEW[0].number
        and "was rolled back in trial" in run.said[-1]
    )


def test_a_roll_back_at_the_console_holds_the_arm_and_the_session_does_not_go_on_with_the_candidate(tmp_path):
    def operator(rig):
        if phase(desk) == "ready":
            desk.go()
        elif phase(desk) == "running" and desk.trial.arm.name == "new" and rig.steps == 20:
            rig.stop_signal = True

    class Rig(AttendedRig):
        def wait(self, condition, timeout_s):
            try:
                return super().wait(condition, timeout_s)
            except Interrupted:
                raise Interrupted(f"{ROLLED_BACK} by Li") from None

    desk, rig = Desk(attended=True), Rig({}, operator)
    with pytest.raises(Interrupted):
        Run(tmp_path, {}, rig=rig, desk=desk)
    assert rig.controller[0] == "holding" and rig.inference["checkpoint"] == "models/old"
    assert desk.canary.verdict == ROLLED_BACK and Run(tmp_path, {}).rig.laid == []


def test_an_outcome_that_is_changed_changes_what_is_known_of_the_candidate():
    rows = [row_of(t, outcome="failure" if t.arm.name == "new" else "success", checkpoint=t.arm.checkpoint) for t in TRIALS[:32]]
    assert canary_of(PLAN, TRIALS, rows).verdict == WORSE
    changed = [replace(r, outcome="success") if r.label == "new" else r for r in rows]
    assert canary_of(PLAN, TRIALS, changed).verdict == UNDECIDED
    open_ = [replace(r, outcome="unlabelled") if r.number == 1 else r for r in rows]
    assert canary_of(PLAN, TRIALS, open_).blocks == 7


def test_a_candidate_that_inference_refuses_to_load_was_not_rolled_back():
    refused = row(
        label="new", outcome="aborted", reason="inference: models/new is not used", steps=0, checkpoint="models/old", number=1
    )
    assert canary_of(PLAN, TRIALS, [refused]).verdict == UNDECIDED


def test_a_session_without_a_canary_shows_none_and_a_blind_desk_never_does(tmp_path):
    plain = Session.from_mapping({"arms": ARMS[:1], "scenes": 1, "seed": 10})
    assert canary_of(plain, schedule(plain), []) is None and Run(tmp_path, {}, plain).canary is None
    desk = Desk()
    desk.watch(canary_of(PLAN, TRIALS, []))
    assert desk.seen(False)["canary"]["candidate"] == "new" and desk.seen(True)["canary"] is None


# ---- the report ----------------------------------------------------------------------------------------------------------


def test_the_report_says_what_came_of_the_candidate(tmp_path):
    rows = [row_of(t, outcome="failure" if t.arm.name == "new" else "success", checkpoint=t.arm.checkpoint) for t in TRIALS[:32]]
    store_session(tmp_path, PLAN, rows)
    made = report(tmp_path, "s1")
    assert "canary, worse:" in made.html and "canary, worse:" in made.markdown and "contradicted" in made.html
    assert made.claims.canary.verdict == WORSE and made.claims.comparisons == ()
    assert (
        "and their differences" not in made.markdown
        and "e-value" in made.markdown
        and "One trial in 4 was the candidate's" in made.markdown
    )


def test_a_canary_claims_no_difference_and_says_that_its_intervals_do_not_cover_the_stop():
    rows = [row_of(t, checkpoint=t.arm.checkpoint, id=i) for i, t in enumerate(TRIALS[:8], start=1)]
    stated = claims(PLAN, rows, [about()])
    assert stated.canary.verdict == UNDECIDED and "it is not known yet whether new is worse than old" in stated.canary.sentence
    assert stated.overall == () and [cell.comparisons for cell in stated.cells] == [()]
    assert any("canary's verdict does" in warning for warning in stated.warnings)
    assert [(rate.arm, rate.n) for rate in stated.cells[0].rates] == [("old", 6), ("new", 2)]
