"""Tail against head: what two chunks say about the same steps, and a horizon that is cut and given back with hysteresis."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policytrim_ros.core.horizon import HorizonGuard, SceneChange, disagreement, spread, tracking_error


def line(first, count, slope=0.01, offset=0.0):
    steps = first + np.arange(count)
    return np.repeat((slope * steps + offset)[:, None], 7, axis=1)


def test_chunks_of_one_plan_agree_and_a_shift_is_measured_in_rad():
    assert disagreement(line(10, 15), 10, line(15, 15), 15) == pytest.approx(0.0, abs=1e-12)
    assert disagreement(line(10, 15), 10, line(15, 15, offset=0.2), 15) == pytest.approx(0.2)


def test_only_shared_steps_count_and_the_gripper_does_not():
    old, new = line(0, 10), line(8, 10)
    new[2:] += 5.0  # steps 10 and later, which the old one does not know
    new[:, 6] += 1.0
    assert disagreement(old, 0, new, 8) == pytest.approx(0.0, abs=1e-12)
    assert disagreement(old, 0, new, 10) is None and disagreement(old, 5, new, 4) is None


def test_the_horizon_is_cut_at_once_and_given_back_after_a_calm_while():
    guard = HorizonGuard(15, shortest=3, limits={"tail": 0.1}, calm=3)
    assert [guard.judge(tail=x) for x in (0.05, 0.2, 0.2, 0.2)] == [15, 7, 3, 3]
    assert [guard.judge(tail=x) for x in (0.04, 0.07, 0.04, 0.04, 0.04)] == [3, 3, 3, 3, 6]  # 0.07 is not calm
    assert [guard.judge(tail=0.0) for _ in range(6)] == [6, 6, 12, 12, 12, 15]
    assert guard.cuts == 2


def test_without_a_limit_or_without_knowledge_nothing_is_cut():
    assert [HorizonGuard(15).judge(tail=9.0), HorizonGuard(15, limits={"tail": 0.1}).judge(tail=None, motion=1.0)] == [15, 15]
    with pytest.raises(ValueError, match="no score is called speed"):
        HorizonGuard(15, limits={"speed": 1.0})


def test_every_score_cuts_by_a_limit_of_its_own_and_the_reason_is_told():
    guard = HorizonGuard(16, limits={"tail": 0.1, "tracking": 0.05, "motion": 0.02}, calm=1)
    assert guard.judge(tail=0.09, tracking=0.04, motion=0.01) == 16 and guard.because == ""
    assert guard.judge(tail=0.0, tracking=0.06, motion=0.01) == 8 and guard.because == "tracking 0.060 > 0.05 rad"
    assert guard.judge(tail=0.2, tracking=0.0, motion=0.03) == 4
    assert guard.because == "tail 0.200 > 0.1 rad, motion 0.030 > 0.02"
    assert guard.judge(tail=0.0, tracking=0.03, motion=0.0) == 4, "one score is not calm"
    assert guard.judge(tail=None, tracking=0.0, motion=0.0) == 8 and guard.because.startswith("tail")
    assert guard.judge(tracking=0.0) == 16 and guard.because == ""


def test_a_score_that_is_not_a_number_cuts():
    assert HorizonGuard(16, limits={"motion": 0.02}).judge(motion=float("nan")) == 8


scores = st.fixed_dictionaries({name: st.one_of(st.none(), st.floats(0, 1)) for name in ("tail", "tracking", "motion", "spread")})
limits = st.dictionaries(st.sampled_from(["tail", "tracking", "motion", "spread"]), st.floats(0.0, 0.5))


@given(st.lists(scores, max_size=60), st.integers(1, 20), st.integers(1, 20), limits)
def test_the_horizon_stays_between_its_bounds_and_changes_for_a_reason_alone(rows, longest, shortest, limits):
    guard = HorizonGuard(longest, shortest, limits)
    for row in rows:
        before, cuts = guard.horizon, guard.cuts
        after = guard.judge(**row)
        beyond = any(row[name] is not None and 0 < limit < row[name] for name, limit in limits.items())
        assert min(shortest, longest) <= after <= longest and after <= 2 * before
        assert after >= before or beyond
        assert not (after > before and beyond), "extended by a look that says no"
        assert (guard.cuts > cuts) == (after < before) and bool(guard.because) >= (after < longest)


def test_tracking_error_and_spread_are_those_of_the_worst_joint_without_the_gripper():
    state = np.zeros(14)
    state[2], state[11], state[13] = 0.1, -0.2, 0.05
    assert tracking_error(state) == pytest.approx(0.2)
    samples = np.zeros((2, 5, 7))
    samples[1, 3, 1], samples[1, 4] = 0.2, 9.0
    samples[:, :, 6] = 5.0
    assert spread(samples, 3) == pytest.approx(0.1) and spread(samples[:1], 3) is None


def pictures(arm, thing=None):
    """A noisy table with an arm that covers columns up to ``arm``, and perhaps a thing in the other half."""
    picture = np.full((240, 424, 3), 90, np.uint8) + np.random.default_rng(0).integers(0, 6, (240, 424, 3)).astype(np.uint8)
    picture[60:120, :arm] = 200
    if thing is not None:
        picture[160:220, thing : thing + 60] = 30
    return {"front": picture}


def test_what_the_arm_covers_is_explained_by_its_motion_and_what_is_pushed_is_not():
    scene = SceneChange()
    moving = [scene.look(pictures(40 + 10 * k, 200), np.full(7, 0.05 * k)) for k in range(12)]
    assert moving[:4] == [None] * 4 and max(moving[4:]) < 0.01
    pushed = scene.look(pictures(160, 260), np.full(7, 0.6))
    assert pushed > 0.03
    assert scene.look(pictures(160, 260), np.full(7, 0.6)) == 0.0


def test_an_arm_at_rest_teaches_nothing_and_noise_is_no_motion():
    scene = SceneChange()
    for k in range(5):
        scene.look(pictures(40 + 10 * k), np.full(7, 0.05 * k))
    noise = np.random.default_rng(1)
    for _ in range(30):
        seen = {"front": np.clip(pictures(80)["front"] + noise.normal(0, 8, (240, 424, 3)), 0, 255).astype(np.uint8)}
        assert scene.look(seen, np.full(7, 0.2)) == 0.0
    assert scene.look({"front": np.zeros((48, 64, 3), np.uint8)}, np.full(7, 0.2)) is None, "another size"
