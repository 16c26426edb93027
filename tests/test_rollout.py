"""Rollouts in virtual time: which action is played when, what is rendered, and that it is what the robot would do."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reach_task import ReachEnv

from policytrim_ros.core.executor import ChunkExecutor
from policytrim_ros.core.replanning import Replanner
from policytrim_ros.core.safety import SafetyFilter, SafetyLimits
from policytrim_ros.core.types import READY, Chunk
from policytrim_ros.policies.objects import object_poses
from policytrim_ros.training.rollout import Conditions, Player, RolloutError, Start, play, play_together

STILL = np.array(READY, np.float32).astype(float)  # as proprioception reports it


class TapeEnv(ReachEnv):
    """Never succeeds; remembers every target and every picture. 60 control steps."""

    def __init__(self):
        super().__init__("tape_box")
        self.targets, self.pictures_at = [], []

    def reset(self, seed, rebuild=False):
        super().reset(seed)
        self.targets, self.pictures_at, self.target = [], [], 9.0

    def step(self, action):
        self.targets.append(np.array(action))
        return super().step(action)

    def images(self, names):
        self.pictures_at.append(self.steps)
        return {name: np.zeros((18, 32, 3), np.uint8) for name in names}


def numbered(H):
    """A policy whose actions say which they are: call c, action k -> joint1 = 0.03 c + 0.001 k."""

    def look(observation, seeds):
        chunks = np.tile(STILL, (len(seeds), H, 1))
        chunks[:, :, 0] = 0.03 * (np.asarray(seeds)[:, None] % 1000) + 0.001 * np.arange(H)
        return chunks

    return look


def read(target):
    """(call, action) of a target of `numbered`; None while nothing was played yet."""
    number = round(float(target[0]) * 1000)
    return divmod(number, 30)


def towards_the_dot(observation, seeds):
    """Solves ReachEnv from its true poses: a chunk of 6 steps of 0.05 rad towards the dot."""
    chunks = np.repeat(observation.state[:, None, 7:].astype(float), 6, axis=1)
    way = observation.objects[:, 0, 1] - observation.state[:, 7]
    chunks[:, :, 0] += np.sign(way)[:, None] * np.minimum(np.abs(way)[:, None], 0.05 * np.arange(1, 7))
    return chunks


def one(env, H, horizon, **conditions):
    results = list(play([env], [Start(5, horizon)], numbered(H), Conditions(**conditions), cameras=("front",)))
    assert len(results) == 1
    return results[0][1]


# -- sync -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("horizon", [1, 4, 7])
def test_sync_without_latency_plays_the_first_h_actions_of_every_chunk_and_nothing_else(horizon):
    env = TapeEnv()
    result = one(env, 7, horizon)
    assert [read(t) for t in env.targets] == [divmod(i, horizon) for i in range(60)]
    assert (result.steps, result.control_steps, result.calls) == (60, 60, math.ceil(60 / horizon))
    assert (result.seconds, result.stalled_s, result.outcome) == (3.0, 0.0, "truncated")


def test_pictures_are_rendered_only_when_the_policy_looks():
    env = TapeEnv()
    result = one(env, 7, 4)
    assert env.pictures_at == [look[0] for look in result.looks] == list(range(0, 60, 4))


def test_in_sync_mode_the_arm_rests_while_the_policy_thinks_and_the_scene_goes_on():
    env = TapeEnv()
    result = one(env, 6, 4, latency_s=0.06)  # two control steps
    played = [read(t) for t in env.targets[2:]]
    rests = [i for i in range(1, len(played)) if played[i] == played[i - 1]]
    assert np.array_equal(env.targets[0], STILL) and np.array_equal(env.targets[1], STILL)
    assert rests == [i for i in range(58) if i % 6 in (4, 5)]
    assert result.control_steps == 60 and result.steps == 60 - 2 - len(rests) and result.calls == 10
    assert result.stalled_s == pytest.approx(0.05 * len(rests)) and result.seconds == 3.0


@pytest.mark.parametrize("latency_s, steps", [(0.05, 1), (0.1, 2), (0.15, 3), (0.55, 11), (0.051, 2), (0.0, 0)])
def test_latency_is_rounded_up_to_control_steps_and_whole_ones_stay_whole(latency_s, steps):
    env = TapeEnv()
    one(env, 6, 6, latency_s=latency_s)
    assert [read(target) for target in env.targets[steps : steps + 3]] == [(0, 0), (0, 1), (0, 2)]
    assert all(np.array_equal(target, STILL) for target in env.targets[:steps])


# -- async ----------------------------------------------------------------------------------------------------------


def test_in_async_mode_the_arm_never_rests_after_the_first_chunk():
    env = TapeEnv()
    result = one(env, 15, 5, mode="async", latency_s=0.06)
    assert result.stalled_s == 0.0 and result.steps == 58
    looks = [look[0] for look in result.looks]
    assert looks[0] == 0 and set(np.diff(looks[1:])) == {5}  # one call for every h steps


def test_in_async_mode_a_chunk_is_aligned_by_what_was_consumed_since_the_look():
    env = TapeEnv()
    result = one(env, 15, 5, mode="async", latency_s=0.06)
    looked = [look[0] for look in result.looks]
    for step in range(2, 60):
        call, action = read(env.targets[step])
        if call:  # the step at whose beginning the policy looked would play action 0; two are over when the chunk arrives
            assert step == looked[call] + action
    assert {look[1] for look in result.looks[1:-1]} == {2}


@pytest.mark.parametrize("latency_s, certain", [(0.0, 1), (0.1, 3), (0.2, 5), (0.25, 6)])
def test_in_rtc_mode_a_look_is_told_what_is_left_of_the_plan_and_what_of_it_is_played_meanwhile(latency_s, certain):
    env, told = TapeEnv(), []

    def look(observation, seeds):
        told.append((env.steps, observation.committed))
        return numbered(15)(observation, seeds)

    ((_, result),) = play([env], [Start(5, 5)], look, Conditions("rtc", latency_s), cameras=("front",))
    assert told[0][1] is None and len(told) == result.calls > 4
    for call, ((at, committed), (_, skipped, _)) in enumerate(zip(told[1:-1], result.looks[1:]), 1):
        ((plan,), steps) = (committed, range(at, at + skipped))
        assert plan.certain == certain >= skipped and read(plan.actions[-1]) == (call - 1, 14)
        assert [read(action) for action in plan.actions[:skipped]] == [read(env.targets[step]) for step in steps]


def test_outside_rtc_mode_no_plan_is_told():
    def look(observation, seeds):
        assert observation.committed is None
        return numbered(4)(observation, seeds)

    for conditions in (Conditions("sync", 0.1), Conditions("async", 0.1)):
        list(play([TapeEnv()], [Start(5, 4)], look, conditions))


def test_the_seam_is_how_far_a_chunk_lies_from_what_the_one_before_said_about_its_first_played_action():
    assert one(TapeEnv(), 15, 5, mode="async", latency_s=0.1).seam_rad == pytest.approx(0.03 - 0.005, abs=1e-5)
    assert one(TapeEnv(), 15, 5).seam_rad == pytest.approx(0.03 - 0.005, abs=1e-5)
    assert one(TapeEnv(), 5, 5).seam_rad is None  # the one before has said all that it had to say


def test_an_inference_slower_than_the_chunk_stalls_but_goes_on():
    env = TapeEnv()
    result = one(env, 4, 4, mode="async", latency_s=0.5)
    assert result.stalled_s > 1.0 and result.calls >= 4 and result.outcome == "truncated"


class Robot:
    """The controller's and the inference node's loops as they run in real time: ticks every 5 ms, latency 90 ms."""

    def __init__(self, mode, H, horizon, latency_s):
        self.executor, self.replanner = ChunkExecutor(), Replanner(mode, horizon, 20.0)
        self.executor.start(STILL, 0.0)
        self.played, coming, calls, began = [], None, 0, 0.0
        look = numbered(H)
        for tick in range(12 * 200):
            now = tick * 0.005
            point = self.executor.tick(now)
            if point.playing and (not self.played or self.played[-1][0] != point.next_step):
                self.played.append((point.next_step, *read(self.executor.target)))
                began = now
            if coming and now >= coming[0]:
                self.replanner.sent(coming[1].first, len(coming[1].positions), now)
                self.executor.accept(coming[1])
                coming = None
            elif not coming and self.replanner.turn(point.next_step, point.queued, point.playing, latency_s, now):
                actions = look(None, [calls])[0][: self.replanner.trim(H, latency_s)]
                first = self.replanner.first(point.next_step, point.playing, now - began)
                coming = (now + latency_s, Chunk(actions, 1, calls, first))
                calls += 1


@pytest.mark.parametrize(
    "mode, H, horizon", [("sync", 15, 5), ("sync", 8, 8), ("async", 15, 5), ("async", 15, 15), ("async", 8, 3), ("rtc", 15, 5)]
)
def test_virtual_time_plays_the_same_actions_as_the_200_hz_loops_of_the_robot(mode, H, horizon):
    env = TapeEnv()
    one(env, H, horizon, mode=mode, latency_s=0.09)
    played = [read(t) for i, t in enumerate(env.targets) if i > 1 and (i == 2 or not np.array_equal(t, env.targets[i - 1]))]
    robot = [what for _, *what in Robot(mode, H, horizon, 0.09).played]
    assert [list(p) for p in played] == robot[: len(played)]


# -- anything -------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    H=st.integers(1, 20),
    share=st.floats(0.05, 1.0),
    mode=st.sampled_from(["sync", "async", "rtc"]),
    latency_s=st.sampled_from([0.0, 0.01, 0.05, 0.06, 0.1, 0.15, 0.2, 0.35, 0.7]),
)
def test_whatever_the_horizon_and_latency_every_step_is_accounted_for(H, share, mode, latency_s):
    env, horizon = TapeEnv(), max(1, math.ceil(share * H))
    result = one(env, H, horizon, mode=mode, latency_s=latency_s)
    first = math.ceil(latency_s * 20 - 1e-9)
    assert result.control_steps == 60 and result.steps == sum(look[2] for look in result.looks)
    assert result.control_steps - result.steps == first + round(result.stalled_s / 0.05)
    if mode == "sync":
        assert all(look[1] == 0 for look in result.looks)
        assert all(look[2] == horizon for look in result.looks[:-2])
    numbers = [30 * call + action for call, action in map(read, env.targets[first:])]
    assert all(b >= a for a, b in zip(numbers, numbers[1:]) if a // 30 == b // 30)  # never back within a chunk


def test_many_lanes_play_the_same_episodes_as_one_and_share_batches():
    sizes = []

    def look(observation, seeds):
        sizes.append(len(seeds))
        return towards_the_dot(observation, seeds)

    starts = [Start(seed, 1 + seed % 6) for seed in range(20)]
    alone = dict(play([ReachEnv("tape_box")], starts, towards_the_dot, object_slots=1))
    shared = dict(play([ReachEnv("tape_box") for _ in range(7)], starts, look, object_slots=1))
    assert alone == shared and len(alone) == 20 and max(sizes) == 7
    assert {result.outcome for result in alone.values()} == {"success"}
    assert all(result.calls == math.ceil(result.steps / start.horizon) for start, result in alone.items())


class ReachVec:
    """Several ReachEnv with the interface of `make_vec`."""

    def __init__(self, n):
        self.num_envs, self.envs, self.instruction = n, [ReachEnv("tape_box") for _ in range(n)], ReachEnv.instruction

    def reset(self, seeds):
        for env, seed in zip(self.envs, seeds):
            env.reset(seed)

    def step(self, actions):
        return [env.step(action) for env, action in zip(self.envs, actions)]

    def proprioception(self):
        return np.stack([env.proprioception() for env in self.envs])

    def objects(self):
        return {"dot": np.stack([env.objects()["dot"] for env in self.envs])}

    def images(self, names):
        return {name: np.stack([env.images([name])[name] for env in self.envs]) for name in names}


@pytest.mark.parametrize("conditions", [Conditions(), Conditions("sync", 0.1), Conditions("async", 0.06), Conditions("rtc", 0.1)])
def test_a_vector_environment_plays_the_same_episodes_as_single_ones(conditions):
    starts, options = [Start(seed, 3) for seed in range(8)], dict(cameras=("front",), object_slots=1)
    single = dict(play([ReachEnv("tape_box")], starts, towards_the_dot, conditions, **options))
    assert dict(play_together(ReachVec(3), starts, towards_the_dot, conditions, **options)) == single


def test_a_group_of_one_scene_differs_by_its_draws():
    seen = []

    def look(observation, seeds):
        seen.extend(seeds)
        return towards_the_dot(observation, seeds)

    list(play([ReachEnv("tape_box")], [Start(7, 6, draw=d) for d in (1, 2)], look, object_slots=1))
    assert {seed // 1000 for seed in seen} == {1, 2} and len(set(seen)) == len(seen)


def test_action_noise_is_drawn_from_the_start_and_spares_the_gripper():
    first, second = TapeEnv(), TapeEnv()
    for env in (first, second):
        one(env, 6, 3, action_noise_rad=0.01)
    assert np.array_equal(first.targets, second.targets)
    clean = TapeEnv()
    one(clean, 6, 3)
    off = np.array(first.targets) - np.array(clean.targets)
    assert 0.008 < off[:, :6].std() < 0.012 and not off[:, 6].any()


def test_a_watcher_sees_every_control_step_of_every_episode():
    seen = []
    envs = [ReachEnv("tape_box"), ReachEnv("tape_box")]
    starts = [Start(seed, 2) for seed in range(4)]
    results = dict(
        play(envs, starts, towards_the_dot, object_slots=1, watch=lambda start, env, result: seen.append((start.seed, result)))
    )
    for start, result in results.items():
        mine = [r for seed, r in seen if seed == start.seed]
        assert mine[0] is None and [r.steps for r in mine[1:]] == list(range(1, result.control_steps + 1))


@pytest.mark.parametrize("value", [np.nan, 57.0])
@pytest.mark.parametrize("latency_s, calls", [(0.0, 60), (0.1, 30)])
def test_nonsense_is_not_played_and_the_policy_looks_again(value, latency_s, calls):
    env = TapeEnv()
    ((_, result),) = play([env], [Start(5, 2)], lambda seen, seeds: np.full((1, 4, 7), value), Conditions(latency_s=latency_s))
    assert (result.steps, result.control_steps, result.outcome) == (0, 60, "truncated")
    assert result.calls == calls and result.refused in (calls, calls - 1)  # the last may not have arrived
    assert all(np.array_equal(target, STILL) for target in env.targets)


def test_a_vector_environment_that_cannot_hide_the_target_says_so():
    with pytest.raises(RolloutError, match="cannot hide"):
        list(play_together(ReachVec(2), [Start(1, 2)], towards_the_dot, Conditions(hide_target=True)))


def test_missing_objects_are_nan():
    poses = object_poses({"mug": np.arange(7.0)}, 2)
    assert poses.shape == (2, 7) and np.array_equal(poses[0], np.arange(7.0)) and np.isnan(poses[1]).all()


# -- the simulator --------------------------------------------------------------------------------------------------


def nod(observation, seeds):
    """Moves joint 1 to and fro, differently for each episode."""
    chunks = np.repeat(observation.state[:, None, 7:].astype(float), 10, axis=1)
    chunks[:, :, 0] += 0.02 * np.sin(np.arange(10) + np.asarray(seeds)[:, None])
    return chunks


def test_rebuilt_scenes_play_bit_for_bit_alike_whatever_was_played_before_and_from_saved_states(monkeypatch):
    from sim_bridge.env import TaskEnv

    monkeypatch.setattr("sim_bridge.env.TIME_LIMIT", 60)

    envs = [TaskEnv("hang_mug"), TaskEnv("hang_mug")]
    conditions, starts = Conditions("async", 0.06, rebuild=True), [Start(seed, 5) for seed in (3, 4, 5)]
    alone, shared = (dict(play(lanes, starts, nod, conditions, object_slots=2)) for lanes in (envs[:1], envs))
    assert alone == shared and all(result.control_steps == 60 for result in alone.values())
    envs[0].reset(3, rebuild=True)
    saved = envs[0].save()
    again = list(play(envs, [Start(3, 5, state=saved), Start(3, 5, state=saved, draw=4)], nod, conditions, object_slots=2))
    results = [result for _, result in again]
    assert results[0].moved_m == pytest.approx(alone[starts[0]].moved_m, abs=1e-3)
    assert [result.control_steps for result in results] == [60, 60]


def test_the_simulator_in_processes_plays_the_same_episodes_as_single_environments():
    from sim_bridge.env import TaskEnv, make_vec

    vec, starts = make_vec("tape_box", 2), [Start(1, 5), Start(2, 5)]
    try:
        together = dict(play_together(vec, starts, nod, Conditions("sync", 0.1), object_slots=2))
    finally:
        vec.close()
    apart = dict(play([TaskEnv("tape_box"), TaskEnv("tape_box")], starts, nod, Conditions("sync", 0.1), object_slots=2))
    assert together == apart


def lowered(depth_m: float) -> np.ndarray:
    """READY with the shoulder bent until the arm reaches so far below its limits (m)."""
    guard, low, high = SafetyFilter(SafetyLimits()), 0.0, 1.2
    for _ in range(40):
        bend = (low + high) / 2
        deeper = guard._depth(np.array(READY) + np.eye(7)[1] * bend) > depth_m
        low, high = (low, bend) if deeper else (bend, high)
    return np.array(READY) + np.eye(7)[1] * low


def test_a_guarded_arm_does_not_follow_targets_below_the_table_and_fails_where_the_controller_would_hold():
    above, below, far = lowered(-0.02), lowered(0.02), lowered(0.1)
    for goals, targets, held in (
        ([above, below, above], [above, above, above], ""),
        ([far, above], [READY], "100 mm beyond the workspace or table limit"),
    ):
        for guarded in (True, False):
            player = Player(Start(0, len(goals)), np.array(READY), Conditions(guarded=guarded))
            assert player.begin()
            player.hear(np.array(goals))
            for number, (goal, target) in enumerate(zip(goals, targets)):
                if number:
                    player.begin()
                assert np.allclose(player.target, target if guarded else goal)
                assert (held in player.held and bool(held)) == (guarded and bool(held) and number == 0)
                player.passed()


@pytest.mark.parametrize("mode, latency_s", [("sync", 0.0), ("sync", 0.1), ("async", 0.1)])
def test_of_a_chunk_that_leads_below_the_table_the_beginning_is_played_and_the_policy_looks_again(mode, latency_s):
    above, far = lowered(-0.02), lowered(0.1)
    for guarded in (True, False):
        player, targets = Player(Start(0, 12), np.array(READY), Conditions(mode, latency_s, guarded=guarded)), []
        for _ in range(40):
            if player.begin():
                player.hear(np.array([above] * 9 + [far] * 5))
            targets.append(player.target)
            player.passed()
        result = player.result("truncated", 0.0)
        assert np.any(np.all(np.isclose(targets, far), axis=1)) == (not guarded) and not result.held
        if guarded:  # in async the policy looks again before the cut, and the arm never waits
            assert result.chunks_cut >= len(result.looks) - 1 and {played for *_, played in result.looks[1:-1]} == {9 if mode == "sync" else 5}
            assert mode == "sync" or result.stalled_s == 0.0
        else:
            assert result.chunks_cut == 0


def test_without_cutting_a_target_below_the_table_is_a_failure_where_it_is_reached():
    above, far = lowered(-0.02), lowered(0.1)
    player = Player(Start(0, 12), np.array(READY), Conditions(guarded=True, cut=False))
    for step in range(10):
        if player.begin():
            player.hear(np.array([above] * 9 + [far] * 5))
        assert np.allclose(player.target, above) and bool(player.held) == (step == 9)
        player.passed()
    assert player.result("failure", 0.0).chunks_cut == 0


def test_where_the_controller_would_hold_the_episode_is_a_failure():
    from sim_bridge.env import TaskEnv

    env, far = TaskEnv("tape_box"), lowered(0.1)
    dive = lambda seen, seeds: np.repeat(far[None, None], 5, axis=1)  # noqa: E731
    ((_, result),) = play([env], [Start(5, 5)], dive, Conditions(guarded=True))
    assert (result.outcome, result.control_steps) == ("failure", 1)
    ((_, free),) = play([env], [Start(5, 5)], dive, Conditions(limit=8))
    assert (free.outcome, free.control_steps) == ("truncated", 8)
