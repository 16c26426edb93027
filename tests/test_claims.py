"""Claims from rows: what is supported, what is not, what contradicts it, and what a reader is warned of."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from session_samples import TWO, about, failing, plan, rows_of

from policytrim_ros.core.statistics import bootstrap_mean, difference, paired_difference, t_mean, wilson
from policytrim_ros.trials.claims import claims
from policytrim_ros.trials.combination import combined
from policytrim_ros.trials.evidence import ClaimsError, Evidence
from policytrim_ros.trials.fixed import _holm, _p_of_success, fixed

THREE = [*TWO, {"name": "third", "checkpoint": "models/c"}]


def only(stated):
    """The comparison of a session with one cell and two arms."""
    (cell,) = stated.cells
    (comparison,) = cell.comparisons
    return comparison


def drawn(spec, rates, seed=0, agreement=0.0, seconds=None):
    """Rows with random outcomes: success rates by arm; with probability ``agreement`` a scene decides for both arms alike."""
    draws = np.random.default_rng(seed)
    shared = {s: (draws.random() < agreement, draws.random()) for s in range(spec.seed, spec.seed + spec.scenes)}
    rows = []
    for row in rows_of(spec):
        same, luck = shared[row.seed]
        won = (luck if same else draws.random()) < rates[row.label]
        took = seconds(row.label, draws) if seconds else row.seconds
        rows.append(replace(row, outcome="success" if won else "failure", seconds=took))
    return rows


# ---- success ---------------------------------------------------------------------------------------------------------------


def test_pairs_give_newcombes_paired_interval_and_rates_wilsons():
    spec = plan()
    stated = claims(spec, rows_of(spec, failing(0, 1, 2)), [about()])
    gap = only(stated).success.difference
    assert (gap.estimate, gap.low, gap.high) == paired_difference(17, 3, 0, 0)
    assert gap.paired and gap.n == 20
    rate = stated.cells[0].rates[1]
    assert (rate.successes, rate.n, rate.low, rate.high) == (17, 20, *wilson(17, 20))


def test_75_against_70_percent_in_20_unpaired_trials_supports_nothing_and_leaves_minus_22_to_31_points():
    spec = plan(scenes=40)
    rows = [r for r in rows_of(spec) if (r.label == "baseline") == (r.seed < 1020)]
    rows = [
        replace(r, outcome="failure" if (r.seed - 1000) % 20 < {"baseline": 6, "trimmed": 5}[r.label] else "success")
        for r in rows
    ]
    stated = claims(spec, rows, [about()])
    claim = only(stated).success
    assert (claim.difference.estimate, claim.difference.low, claim.difference.high) == difference(14, 20, 15, 20)
    assert claim.difference.words == "+5 points [-22, +31]" and not claim.difference.paired
    assert claim.verdict == "not supported" and claim.needed > 200
    assert any("compared unpaired" in warning for warning in stated.warnings)


def test_a_loss_within_the_margin_is_supported_only_when_the_one_sided_bound_says_so():
    spec = plan(scenes=200)
    claim = only(claims(spec, rows_of(spec, failing(*range(4))), [about()])).success
    assert claim.verdict == "supported" and claim.p < 0.05 and claim.needed is None
    assert claim.bound == paired_difference(196, 4, 0, 0, 0.9)[1] > -0.1
    few = plan(scenes=10)
    claim = only(claims(few, rows_of(few), [about()])).success
    assert claim.difference.estimate == 0 and claim.verdict == "not supported", "equal rates in 10 scenes show nothing"
    assert "does not show a loss either" in claim.sentence and claim.needed > 0


def test_a_loss_beyond_the_margin_contradicts_the_claim():
    spec = plan()
    claim = only(claims(spec, rows_of(spec, failing(*range(15))), [about()])).success
    assert claim.verdict == "contradicted" and "by more than the margin of 10 points" in claim.sentence and claim.needed is None


def test_the_smallest_alpha_is_the_one_at_which_the_bound_meets_the_margin():
    spec = plan(scenes=60)
    claim = only(claims(spec, rows_of(spec, failing(0, 1)), [about()])).success
    assert paired_difference(58, 2, 0, 0, 1 - 2 * claim.p)[1] == pytest.approx(-0.1, abs=1e-3)


def test_non_inferiority_at_the_margin_is_claimed_wrongly_about_as_often_as_alpha_allows():
    spec = plan(scenes=100)
    wrong = 0
    for seed in range(120):
        rows = drawn(spec, {"baseline": 0.8, "trimmed": 0.7}, seed)
        wrong += _p_of_success(Evidence.of(spec, rows, ("tape_box", "standard"), 1)) <= spec.alpha
    assert wrong <= 13  # 6 expected; more than 13 has probability 0.3 %


def test_a_scene_with_an_invalid_trial_is_in_no_pair_until_it_was_tried_again():
    spec = plan()
    rows = rows_of(spec, lambda t: "invalid" if t.arm.label == "trimmed" and t.seed == 1003 else "success")
    stated = claims(spec, rows, [about()])
    assert only(stated).success.difference.n == 19
    assert any("1 trials met a scene that the other arm has no outcome for" in w for w in stated.warnings)
    assert any("trimmed 1 invalid of 20 (5 %)" in w for w in stated.warnings)
    again = next(r for r in rows if r.outcome == "invalid")
    stated = claims(spec, [*rows, replace(again, outcome="success", id=99)], [about()])
    assert only(stated).success.difference.n == 20


# ---- time ------------------------------------------------------------------------------------------------------------------


def test_time_is_judged_over_the_scenes_in_which_both_succeeded_and_apart_from_success():
    spec = plan()
    comparison = only(claims(spec, rows_of(spec, failing(*range(8))), [about()]))
    assert comparison.success.verdict == "contradicted" and comparison.time.verdict == "supported"
    assert comparison.time.difference.n == 12 and comparison.time.difference.estimate == pytest.approx(-6.0, abs=1.0)
    assert [(c.quantity, c.difference.n) for c in comparison.changes] == [
        (q, 12) for q in ("seconds", "steps", "calls", "stall_s")
    ]
    assert comparison.changes[3].ratio is None, "no stall in either arm has no ratio"


def test_a_slower_arm_contradicts_superiority_of_time():
    spec = plan(arms=TWO[::-1])
    comparison = only(claims(spec, rows_of(spec), [about()]))
    assert comparison.time.verdict == "contradicted" and "slower" in comparison.time.sentence


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ([6.0], "not supported"),
        ([6.0, 5.5], "not supported"),  # so few are no ground for a verdict
        ([6.0, 5.5, 5.8, 6.1, 5.9], "supported"),
        ([9.0, 1.0, 3.0, 0.5, 2.0], "not supported"),
    ],
)
def test_with_few_differences_the_wider_interval_of_students_t_decides(gains, verdict):
    spec = plan(scenes=len(gains))
    rows = [replace(r, seconds=14.0 if r.label == "baseline" else 14.0 - gains[r.seed - 1000]) for r in rows_of(spec)]
    claim = only(claims(spec, rows, [about()])).time
    assert claim.verdict == verdict
    assert claim.difference.high == t_mean([-gain for gain in gains])[2] > bootstrap_mean([-gain for gain in gains])[2]


def test_superiority_of_time_between_equal_arms_is_claimed_wrongly_about_as_often_as_alpha_allows():
    spec = plan(scenes=20)
    equal = lambda label, draws: 10 + draws.normal(0, 2)  # noqa: E731
    wrong = 0
    for seed in range(60):
        rows = drawn(spec, {"baseline": 1.0, "trimmed": 1.0}, seed, seconds=equal)
        wrong += only(claims(spec, rows, [about()])).time.verdict == "supported"
    assert wrong <= 8  # 3 expected; more than 8 has probability 0.3 %


def test_without_a_scene_in_which_both_succeeded_nothing_is_said_about_time():
    spec = plan()
    claim = only(claims(spec, rows_of(spec, lambda t: "failure"), [about()])).time
    assert claim.verdict == "not supported" and "no scene in which both succeeded" in claim.sentence and math.isnan(claim.bound)


def test_the_scenes_still_needed_for_a_gain_that_was_seen_are_told():
    spec = plan(scenes=12)
    rows = [replace(r, seconds=10.0 if r.label == "baseline" else 8.0 + 3.5 * (r.seed % 2)) for r in rows_of(spec)]
    claim = only(claims(spec, rows, [about()])).time
    assert claim.verdict == "not supported" and claim.difference.estimate == -0.25
    assert claim.needed > 100, "a gain of 0.25 s in a spread of 1.8 s takes hundreds of scenes"


TIGHT = [1.6, -0.4]  # s gained in turn: over 12 scenes the two-sided interval holds zero, the one-sided does not


def gaining(spec, gains):
    return [
        replace(r, seconds=14.0 if r.label == "baseline" else 14.0 - gains[(r.seed - spec.seed) % len(gains)])
        for r in rows_of(spec)
    ]


def test_a_verdict_states_the_one_sided_bound_on_which_it_rests():
    spec = plan(scenes=12)
    faster = only(claims(spec, gaining(spec, TIGHT), [about()])).time
    assert faster.verdict == "supported" and faster.difference.low < 0 < faster.difference.high
    assert f"by at least {-faster.bound:.2f} s (95 %, one-sided)" in faster.sentence and faster.bound < 0
    slower = only(claims(spec, gaining(spec, [-gain for gain in TIGHT]), [about()])).time
    assert slower.verdict == "contradicted" and f"by at least {-faster.bound:.2f} s (95 %, one-sided)" in slower.sentence
    spec = plan()
    worse = only(claims(spec, rows_of(spec, failing(*range(7))), [about()])).success
    bound = paired_difference(13, 7, 0, 0, 0.9)[2]
    assert worse.verdict == "contradicted" and f"by at least {-100 * bound:.0f} points (95 %, one-sided)" in worse.sentence


def test_a_single_scene_has_no_interval():
    spec = plan(scenes=1)
    (seconds, *_) = only(claims(spec, rows_of(spec), [about()])).changes
    assert seconds.difference.words == "-7.8 s" and seconds.ratio is None


# ---- several cells, several arms ---------------------------------------------------------------------------------------------


def test_cells_together_add_their_pairs_and_never_pair_across_cells():
    spec = plan(tasks=["tape_box", "flip_mug"], scenes=30)
    rows = rows_of(
        spec, lambda t: "failure" if t.task == "flip_mug" and t.arm.label == "trimmed" and t.seed < 1001 else "success"
    )
    stated = claims(spec, rows, [about()])
    (overall,) = stated.overall
    assert overall.success.difference.n == 60
    assert overall.success.difference.estimate == paired_difference(59, 1, 0, 0)[0]
    assert overall.success.verdict == "supported" and stated.comparisons[0] is overall
    assert overall.time.difference.n == 59


def test_claims_about_single_cells_are_corrected_after_holm():
    spec = plan(tasks=["tape_box", "flip_mug"], scenes=28)
    alone = plan(scenes=28)
    assert only(claims(alone, rows_of(alone), [about()])).success.verdict == "supported"
    stated = claims(spec, rows_of(spec), [about()])
    claim = stated.cells[0].comparisons[0].success
    assert claim.p <= 0.05 < claim.adjusted and claim.verdict == "not supported" and "Holm" in claim.sentence
    assert stated.overall[0].success.verdict == "supported"
    assert any("corrected after Holm" in warning for warning in stated.warnings)


def test_a_contradiction_in_single_cells_is_corrected_after_holm_like_the_claim_itself():
    alone, spec = plan(), plan(tasks=["tape_box", "flip_mug"])
    worse = failing(*range(6))
    assert only(claims(alone, rows_of(alone, worse), [about()])).success.verdict == "contradicted"
    claim = claims(spec, rows_of(spec, worse), [about()]).cells[0].comparisons[0].success
    assert claim.verdict == "not supported"
    assert "would contradict it, but not among 2 claims (Holm: p = 0.037 becomes 0.074)" in claim.sentence
    alone, spec = plan(scenes=12), plan(tasks=["tape_box", "flip_mug"], scenes=12)
    slow = [-gain for gain in TIGHT]
    assert only(claims(alone, gaining(alone, slow), [about()])).time.verdict == "contradicted"
    claim = claims(spec, gaining(spec, slow), [about()]).cells[0].comparisons[0].time
    assert claim.verdict == "not supported" and "would contradict it, but not among 2 claims" in claim.sentence


def test_holm_agrees_with_statsmodels():
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    p = [0.01, 0.04, 0.03, 0.005, 0.9, 0.04]
    assert [adjusted for _, adjusted in _holm(p)] == pytest.approx(list(multitest.multipletests(p, method="holm")[1]))
    assert fixed([]) == []


def test_every_later_arm_is_compared_with_the_first():
    spec = plan(arms=THREE, scenes=6)
    stated = claims(spec, rows_of(spec), [about()])
    assert [(c.first, c.second) for c in stated.cells[0].comparisons] == [("baseline", "trimmed"), ("baseline", "third")]


def test_one_arm_has_rates_and_no_claim():
    spec = plan(arms=TWO[:1])
    stated = claims(spec, rows_of(spec), [about()])
    assert stated.comparisons == () and stated.cells[0].rates[0].successes == 20
    assert stated.warnings == ("There is one arm only: nothing is compared.",)


def test_without_a_trial_nothing_is_supported():
    for spec in (plan(), plan(stop="sequential"), plan(tasks=["tape_box", "flip_mug"])):
        stated = claims(spec, [], [about()])
        assert {claim.verdict for c in stated.comparisons for claim in (c.success, c.time)} == {"not supported"}


# ---- sequential --------------------------------------------------------------------------------------------------------------


def test_a_sequential_session_is_judged_by_the_anytime_valid_test():
    spec = plan(stop="sequential", margin=0.2, scenes=60)
    claim = only(claims(spec, rows_of(spec), [about()])).success
    assert claim.verdict == "supported" and claim.e_value >= 20 and claim.p is None
    assert "anytime-valid" in claim.sentence and claim.difference.method == "confidence sequence"
    worse = only(claims(spec, rows_of(spec, failing(*range(50))), [about()])).success
    assert worse.verdict == "contradicted"
    few = [row for row in rows_of(spec) if row.seed < 1004]
    claim = only(claims(spec, few, [about()])).success
    assert claim.verdict == "not supported" and claim.needed > 0 and "more pairs decide" in claim.sentence


def test_in_a_sequential_session_time_is_judged_by_the_sign_test():
    spec = plan(stop="sequential", scenes=20)
    claim = only(claims(spec, rows_of(spec), [about()])).time
    assert claim.verdict == "supported" and "in 20 of 20 scenes" in claim.sentence and claim.e_value >= 20


def test_cells_that_stopped_by_their_results_are_not_added_but_must_all_agree():
    spec = plan(stop="sequential", tasks=["tape_box", "flip_mug"], margin=0.2, scenes=60)
    bad = lambda t: "failure" if t.task == "flip_mug" and t.arm.label == "trimmed" else "success"  # noqa: E731
    stated = claims(spec, rows_of(spec), [about()])
    assert stated.overall[0].success.verdict == "supported" and math.isnan(stated.overall[0].success.difference.low)
    assert claims(spec, rows_of(spec, bad), [about()]).overall[0].success.verdict == "contradicted"
    half = [row for row in rows_of(spec) if row.task == "tape_box"]
    assert claims(spec, half, [about()]).overall[0].success.verdict == "not supported"


def test_only_a_fixed_session_is_told_that_looking_early_is_not_covered():
    rows = rows_of(plan())[:12]
    said = lambda **changes: " ".join(claims(plan(**changes), rows, [about()]).warnings)  # noqa: E731
    assert "Looking early and stopping is not covered" in said()
    assert "Looking early and stopping is not covered" not in said(stop="sequential")


# ---- warnings ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "session", "words"),
    [
        ({"blind": False}, about(), "was not blind"),
        ({}, about(locked=None), "not locked"),
        ({}, about(simulated=None), "does not say whether"),
        ({}, about(), "20 scenes a cell are few for a margin of 10 points"),
        ({"stop": "sequential"}, about(), "do not cover a session that stops by its results"),
    ],
)
def test_a_reader_is_warned_of(changes, session, words):
    spec = plan(**changes)
    assert any(words in warning for warning in claims(spec, rows_of(spec), [session]).warnings)


def test_a_large_blind_locked_session_has_nothing_to_warn_of():
    spec = plan(scenes=100)
    assert claims(spec, rows_of(spec), [about()]).warnings == ()


def test_a_reader_is_warned_of_arms_that_were_not_one_policy_each():
    spec = plan()
    rows = rows_of(spec)
    other = [replace(r, weights_sha256="f" * 64) if r.label == "trimmed" and r.seed > 1010 else r for r in rows]
    assert any("Different weights under the name trimmed" in w for w in claims(spec, other, [about()]).warnings)
    horizons = [replace(r, horizon=10) if r.seed == 1001 else r for r in rows]
    assert sum("Different execution horizons" in w for w in claims(spec, horizons, [about()]).warnings) == 2
    same = [replace(r, weights_sha256="f" * 64) for r in rows]
    assert any("baseline and trimmed are the same policy" in w for w in claims(spec, same, [about()]).warnings)
    whole = plan(
        tasks=["tape_box", "flip_mug"], arms=[TWO[0], {"name": "trimmed", "checkpoints": {"tape_box": "a", "flip_mug": "b"}}]
    )
    each = [replace(r, weights_sha256=r.label[0] + r.task) if r.label == "trimmed" else r for r in rows_of(whole)]
    assert not any("Different" in w for w in claims(whole, each, [about()]).warnings)  # each task has a policy of its own
    one = [replace(r, weights_sha256=r.label[0] * 64) for r in each]  # both tasks the same trimmed policy
    assert not any("same policy" in w for w in claims(whole, one, [about()]).warnings)
    each[-1] = replace(each[-1], label="trimmed", weights_sha256="e" * 64)
    assert any("under the name trimmed (flip_mug)" in w for w in claims(whole, each, [about()]).warnings)
    strange = [*rows, replace(rows[0], label="stranger")]
    assert any("Trials of stranger are left out" in w for w in claims(spec, strange, [about()]).warnings)


def test_a_reader_is_told_which_outcomes_were_changed():
    spec = plan()
    assert any("trials 3, 7 was changed" in w for w in claims(spec, rows_of(spec), [about()], relabelled=[7, 3]).warnings)


# ---- robot and simulator ---------------------------------------------------------------------------------------------------


def test_simulated_and_real_trials_are_never_pooled():
    spec = plan()
    rows = [*rows_of(spec, session="real"), *rows_of(spec, session="sim")]
    with pytest.raises(ClaimsError, match="trials that are real and simulated are not pooled"):
        claims(spec, rows, [about("real", simulated=False), about("sim")])
    with pytest.raises(ClaimsError, match="of unknown origin and simulated"):
        claims(spec, rows, [about("sim")])


def test_the_simulator_narrows_what_is_known_of_the_robot_without_counting_as_trials_of_it():
    sessions = [about("real", simulated=False), about("sim")]
    spec, wide = plan(scenes=40), plan(scenes=400)
    chances = {"baseline": 0.6, "trimmed": 0.62}
    outcome = lambda t: "success" if np.random.default_rng([t.seed, ord(t.arm.label[0])]).random() < chances[t.arm.label] else "failure"  # noqa: E731, E501  # fmt: skip
    real, virtual = rows_of(spec, outcome, "real"), rows_of(wide, outcome, "sim")
    (found,) = combined(spec, real, virtual, sessions)
    assert found.scenes == 40 and found.further == 360 and found.simulator_weight > 0.5
    gap = found.claim.difference
    assert gap.high - gap.low < 0.7 * (found.real_alone.high - found.real_alone.low)
    assert "No simulated success is counted as a real one" in found.claim.sentence


def test_combining_wants_origins_and_scenes_that_fit():
    sessions = [about("real", simulated=False), about("sim")]
    spec = plan()
    real, virtual = rows_of(spec, session="real"), rows_of(plan(scenes=40), session="sim")
    with pytest.raises(ClaimsError, match="must say simulated: false"):
        combined(spec, virtual, real, sessions)
    with pytest.raises(ClaimsError, match="20 scenes of the robot were not simulated"):
        combined(spec, real, [row for row in virtual if row.seed >= 1020], sessions)
    with pytest.raises(ClaimsError, match="too few"):
        combined(spec, real, [row for row in virtual if row.seed < 1021], sessions)


def strangers(rows, label="trimmed", **changes):
    return [replace(row, **changes) if row.label == label else row for row in rows]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"weights_sha256": "f" * 64},
            "tape_box standard, trimmed: weights trimmedtrimm on the robot, ffffffffffff in the simulator",
        ),
        ({"weights_sha256": ""}, "weights trimmedtrimm on the robot, unknown in the simulator"),
        ({"horizon": 15}, "trimmed: h 5 on the robot, 15 in the simulator"),
    ],
)
def test_only_trials_of_the_same_policy_are_combined_whatever_their_names(changes, words):
    sessions = [about("real", simulated=False), about("sim")]
    spec, wide = plan(), plan(scenes=60)
    real, virtual = rows_of(spec, session="real"), rows_of(wide, session="sim")
    assert combined(spec, real, virtual, sessions)
    with pytest.raises(ClaimsError, match=re.escape(words)):
        combined(spec, real, strangers(virtual, **changes), sessions)
    with pytest.raises(ClaimsError, match="trimmed: (weights|h) "):
        combined(spec, strangers(real[:20], **changes) + real[20:], virtual, sessions)  # exchanged in the session
    if not changes.get("weights_sha256", "known"):
        with pytest.raises(ClaimsError, match="weights unknown on the robot, unknown in the simulator"):
            combined(spec, strangers(real, **changes), strangers(virtual, **changes), sessions)
    baseline = strangers(virtual, "baseline", **changes)
    with pytest.raises(ClaimsError, match="standard, baseline: "):
        combined(spec, real, baseline, sessions)


def test_each_later_arm_is_combined_in_each_cell_and_corrected_after_holm():
    sessions = [about("real", simulated=False), about("sim")]
    worse = failing(*range(12), *range(30, 52))
    alone, wide = plan(), plan(scenes=60)
    (one,) = combined(alone, rows_of(alone, session="real"), rows_of(wide, session="sim"), sessions)
    assert one.claim.verdict == "supported"
    several = {"arms": THREE, "tasks": ["tape_box", "flip_mug"]}
    spec, wide = plan(**several), plan(scenes=60, **several)
    found = combined(spec, rows_of(spec, worse, "real"), rows_of(wide, worse, "sim"), sessions)
    cells = [("tape_box standard", "trimmed"), ("tape_box standard", "third"), ("flip_mug standard", "trimmed"), ("flip_mug standard", "third")]  # fmt: skip
    assert [(one.name, one.second) for one in found] == cells
    assert [one.claim.verdict for one in found] == ["contradicted", "not supported"] * 2
    assert "Alone this comparison would show it, but not among 4 claims" in found[1].claim.sentence
    assert found[1].claim.adjusted == pytest.approx(4 * found[1].claim.p)


def test_what_the_real_trials_say_alone_names_its_method():
    sessions = [about("real", simulated=False), about("sim")]
    spec, wide = plan(scenes=40), plan(scenes=90)
    real, virtual = rows_of(spec, session="real"), rows_of(wide, session="sim")
    (found,) = combined(spec, real, virtual, sessions)
    assert found.real_alone.method == "Newcombe, paired" and "(Newcombe, paired)" in found.claim.sentence
    apart = [row for row in real if row.seed < 1010 or (row.label == "baseline") == (row.seed % 2 == 0)]
    (found,) = combined(spec, apart, virtual, sessions)
    assert (
        found.scenes == 10 and found.real_alone.method == "Newcombe, unpaired" and "(Newcombe, unpaired)" in found.claim.sentence
    )
