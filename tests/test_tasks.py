"""The tasks: success and failure are what they say, state can be saved exactly, the target moves once, limits hold."""

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.behind_the_arm import BehindTheArm
from policytrim_ros.core import motion
from policytrim_ros.core.kinematics import A_MAX, LIMITS, V_MAX, tool
from policytrim_ros.core.types import READY
from sim_bridge import agent
from sim_bridge.env import SUBSTEPS, TaskEnv, intrinsics, make_vec
from sim_bridge.tasks import TASKS
from sim_bridge.tasks.hang_mug import PEG_DIRECTION, PEG_ROOT
from sim_bridge.tasks.mug import HOLE
from sim_bridge.world import HELD, LIMP

torch.set_num_threads(1)
HOME = np.array(READY)
_envs = {}


def env_of(task, setting="standard"):
    """One scene for all tests: a second TaskEnv in a process costs time and no new knowledge."""
    if (task, setting) not in _envs:
        _envs[task, setting] = TaskEnv(task, setting)
    return _envs[task, setting]


def done_pose(env):
    """A pose of the target at which the task is done."""
    objects = env.objects()
    if env.task == "tape_box":
        return "tape", [*objects["box"][:2], 0.006 + 0.012, 1, 0, 0, 0]
    if env.task == "flip_mug":
        return "mug", [0.40, 0.10, 0.040, 1, 0, 0, 0]
    hang = objects["rack"][:3] + np.array(PEG_ROOT) + 0.05 * np.array(PEG_DIRECTION)
    return "mug", [*(hang - np.array(HOLE) - [0, 0, 0.010]), 1, 0, 0, 0]


def reach(seed=0, steps=20):
    """A smooth random walk of actions (steps, 7) from READY."""
    random = np.random.default_rng(seed)
    walk = HOME + np.cumsum(random.normal(0, 0.03, (steps, 7)), axis=0)
    walk[:, 6] = np.clip(walk[:, 6], 0, 0.07)
    return walk


def record(env, actions):
    """Everything observable (steps, k) while ``actions`` are played."""
    rows = []
    for action in actions:
        result = env.step(action)
        outcome = [result.success, result.failure, result.steps]
        rows.append(np.concatenate([env.proprioception(), *env.objects().values(), outcome]))
    return np.array(rows)


@pytest.mark.parametrize("task", TASKS)
def test_nothing_is_done_at_reset_and_nothing_happens_while_the_arm_waits(task):
    env = env_of(task)
    for seed in range(5):
        env.reset(seed)
        before = env.objects()
        results = [env.step(HOME) for _ in range(10)]
        assert not any(r.over for r in results)
        assert all(np.linalg.norm(env.objects()[name][:3] - before[name][:3]) < 0.006 for name in before)
        assert results[-1].steps == 10


@pytest.mark.parametrize("task", TASKS)
def test_a_seed_decides_the_scene(task):
    env = env_of(task)
    env.reset(4)
    first, joints = env.objects(), env.proprioception()
    env.reset(5)
    assert not np.allclose(env.objects()[env._env.TARGET], first[env._env.TARGET])
    env.reset(4)
    assert all(np.array_equal(env.objects()[name], first[name]) for name in first)
    assert np.array_equal(env.proprioception(), joints)


@pytest.mark.parametrize("task", TASKS)
def test_success_needs_the_goal_for_five_consecutive_steps(task):
    env = env_of(task)
    env.reset(1)
    env.place(*done_pose(env))
    results = [env.step(HOME).success for _ in range(60)]
    assert True in results
    assert results.index(True) >= 4
    assert all(results[results.index(True) :])


def test_an_upside_down_or_lying_mug_is_not_upright():
    env = env_of("flip_mug")
    env.reset(1)
    env.place("mug", [0.40, 0.10, 0.040, 0, 1, 0, 0])
    assert not any(env.step(HOME).success for _ in range(20))


def test_a_mug_beside_the_rack_does_not_hang():
    env = env_of("hang_mug")
    env.reset(1)
    env.place("mug", [*(env.objects()["rack"][:2] - [0.0, 0.12]), 0.040, 1, 0, 0, 0])
    assert not any(env.step(HOME).success for _ in range(20))


def test_tape_on_the_rim_of_the_box_is_not_inside():
    env = env_of("tape_box")
    env.reset(1)
    box = env.objects()["box"]
    env.place("tape", [box[0], box[1] - 0.11, 0.012, 1, 0, 0, 0])
    assert not any(env.step(HOME).success for _ in range(20))


@pytest.mark.parametrize("place", [[0.3, 0.0, -0.2], [0.55, 0.30, 0.04]])
def test_a_target_below_the_table_or_out_of_reach_is_a_failure_for_good(place):
    env = env_of("flip_mug")
    env.reset(1)
    env.place("mug", [*place, 1, 0, 0, 0])
    assert env.step(HOME).failure
    env.place("mug", [0.3, 0.0, 0.04, 1, 0, 0, 0])
    assert env.step(HOME).failure


def test_the_time_limit_truncates():
    env = env_of("flip_mug")
    env.reset(1)
    env.steps = 448
    assert not env.step(HOME).truncated
    assert env.step(HOME).truncated


def test_an_action_that_is_not_seven_finite_numbers_is_refused():
    env = env_of("flip_mug")
    with pytest.raises(ValueError, match="7 finite numbers"):
        env.step(np.zeros(6))
    with pytest.raises(ValueError, match="7 finite numbers"):
        env.step([np.nan] * 7)


@pytest.mark.parametrize("arguments", [("pour",), ("flip_mug", "windy"), ("flip_mug", "standard", ("left",))])
def test_unknown_names_are_refused_with_the_known_ones(arguments):
    with pytest.raises(ValueError, match="flip_mug|standard|front"):
        TaskEnv(*arguments)


@pytest.mark.parametrize("task", TASKS)
def test_restored_rollouts_are_bit_identical(task):
    env = env_of(task, "dynamic")
    env.reset(2)
    record(env, reach(1, 10))
    saved, actions = env.save(), reach(2, 25)
    env.restore(saved)
    first = record(env, actions)
    record(env, reach(3, 5))
    env.restore(saved)
    assert np.array_equal(record(env, actions), first)
    env.reset(9)
    record(env, reach(4, 5))
    env.restore(saved)
    assert np.array_equal(record(env, actions), first)


def test_a_restored_rollout_agrees_with_the_one_that_went_on():
    env = env_of("tape_box")
    env.reset(2)
    record(env, reach(1, 10))
    saved, actions = env.save(), reach(2, 25)
    assert np.allclose(record(env, actions), (env.restore(saved), record(env, actions))[1], atol=1e-4)


def hover(env, height):
    """Drives the open gripper over the target, TCP ``height`` m above its centre; returns the results' count."""
    from policytrim_ros.core.kinematics import solve_ik
    from sim_bridge.demonstrators.base import heading, pose_at, tool_rotation

    place = env.objects()[env._env.TARGET][:3] + [0, 0, height]
    poses = [pose_at(place, tool_rotation(heading(place), pitch)) for pitch in np.radians([0, 10, 20, 30, 40])]
    q = next(q for q in (solve_ik(pose, HOME[:6]) for pose in poses) if q is not None)
    for share in np.linspace(0, 1, 30):
        env.step(np.append(HOME[:6] + share * (q - HOME[:6]), 0.07))
    for _ in range(15):
        env.step(np.append(q, 0.07))


@pytest.mark.parametrize("task", TASKS)
def test_the_dynamic_target_moves_once_when_the_gripper_comes_near(task):
    env = env_of(task, "dynamic")
    for seed in (1, 2):
        env.reset(seed)
        target = env._env.TARGET
        for _ in range(5):
            env.step(HOME)
        start = env.objects()[target][:2]
        assert env.shifted() == 0.0
        hover(env, 0.055 if task == "flip_mug" else 0.095 if task == "hang_mug" else 0.045)
        middle = env.objects()[target][:2]
        assert 0.029 < np.linalg.norm(middle - start) < 0.053
        assert np.isclose(env.shifted(), np.linalg.norm(middle - start), atol=0.004)
        for _ in range(30):
            env.step(HOME)
        hover(env, 0.10)
        assert np.linalg.norm(env.objects()[target][:2] - middle) < 0.004


def test_the_standard_target_stays_when_the_gripper_comes_near():
    env = env_of("flip_mug")
    env.reset(1)
    env.step(HOME)
    start = env.objects()["mug"][:2]
    hover(env, 0.06)
    assert np.linalg.norm(env.objects()["mug"][:2] - start) < 0.002
    assert env.shifted() == 0.0


GOALS = {  # middle and spread of the target's place, and what else stands there, so that a task is done about half the time
    "tape_box": ((0.30, 0.20, 0.03), 0.04, {"box": (0.30, 0.20, 0.0)}),
    "flip_mug": ((0.40, 0.10, 0.04), 0.006, {}),
    "hang_mug": ((0.325, 0.20, 0.16), 0.01, {"rack": (0.37, 0.25, 0.0)}),
}


class Judged:
    """A task's judgement without its scene: poses, TCP, stroke and force are what it is told to `see`."""

    device, setting = "cpu", "dynamic"

    def __init__(self, task, n=None):
        self.gpu_sim_enabled, self.num_envs = n is not None, n or 1
        self.task, self.TARGET = TASKS[task], TASKS[task].TARGET
        self._take_course(self._course())

    def __getattr__(self, name):
        return getattr(self.task, name).__get__(self)

    def _push_target(self, moving):
        assert moving.shape == (self.num_envs,) and moving.any()

    def see(self, poses, tcp, stroke, force):
        self.pose, self.finger_force = poses.__getitem__, lambda: force
        controller = SimpleNamespace(measured=lambda: (stroke, None))
        self.agent = SimpleNamespace(tcp_position=tcp, controller=controller)


@pytest.mark.parametrize("task", TASKS)
def test_a_batch_of_tensors_is_judged_as_each_scene_is_in_numbers(task):
    n, random = 50, np.random.default_rng(0)
    batch, singles = Judged(task, n), [Judged(task) for _ in range(n)]
    middle, spread, rest = GOALS[task]
    seen = []
    for _ in range(12):
        places = {
            batch.TARGET: middle + random.normal(0, spread, (n, 3)),
            **{name: np.tile(at, (n, 1)) for name, at in rest.items()},
        }
        turns = {name: [1, 0, 0, 0] + (name == batch.TARGET) * random.normal(0, 0.05, (n, 4)) for name in places}
        poses = {name: np.hstack([places[name], turns[name]]).astype(np.float32) for name in places}
        tcp = (places[batch.TARGET] + random.normal(0, 0.04, (n, 3))).astype(np.float32)
        stroke, force = np.full((n, 7), 0.06, np.float32), random.choice([0.0, 0.1, 1.0], n, p=[0.9, 0.05, 0.05])
        stroke[:5] = 0.02
        tensors = {name: torch.from_numpy(pose).unbind(-1) for name, pose in poses.items()}
        batch.see(tensors, torch.from_numpy(tcp).unbind(-1), torch.from_numpy(stroke), torch.from_numpy(force))
        batch.tick()
        for i, single in enumerate(singles):
            single.see({name: tuple(pose[i]) for name, pose in poses.items()}, tuple(tcp[i]), stroke[i], force[i])
            single.tick()
        seen.append(batch._course())
        for name, values in seen[-1].items():
            assert values.tolist() == [single._course()[name].item() for single in singles], name
    assert max(course["streak"].max() for course in seen) > 1
    assert not seen[-1]["moved"].all() and max(course["moves_made"].max() for course in seen) == 5


def test_the_limited_step_in_torch_equals_the_one_in_numpy():
    random = np.random.default_rng(0)
    x, goal = random.uniform(-1, 1, (2, 200, 7))
    v, goal_v = random.uniform(-1, 1, (2, 200, 7)) * V_MAX
    expected = motion.limited_step(x, v, goal, goal_v, 0.01, V_MAX, A_MAX)
    actual = agent.limited_step(*map(torch.from_numpy, (x, v, goal, goal_v)), 0.01, torch.tensor(V_MAX), torch.tensor(A_MAX))
    for e, a in zip(expected, actual):
        assert np.allclose(e, a.numpy(), atol=1e-12)


@contextmanager
def setpoints_of(controller):
    """Gathers (position, velocity), each (7,), that the controller commands in every physics step."""
    gathered, before = [], controller.before_simulation_step

    def watched():
        before()
        gathered.append((controller.setpoint.copy(), controller.setpoint_velocity.copy()))

    controller.before_simulation_step = watched
    try:
        yield gathered
    finally:
        del controller.before_simulation_step


def test_setpoints_keep_the_motion_limits_whatever_the_actions_are():
    env = env_of("flip_mug")
    env.reset(3)
    random = np.random.default_rng(0)
    with setpoints_of(env._controller) as gathered:
        for _ in range(30):
            env.step(random.uniform(LIMITS[:, 0], LIMITS[:, 1]))
    speeds = np.array([velocity for _, velocity in gathered], dtype=float)
    assert len(speeds) == 30 * SUBSTEPS
    assert np.all(np.abs(speeds) <= V_MAX + 1e-4)
    assert np.all(np.abs(np.diff(speeds, axis=0)) / 0.01 <= A_MAX + 1e-2)


def test_substeps_of_the_real_time_world_equal_the_control_step():
    env = env_of("tape_box", "dynamic")
    env.reset(6)
    actions = reach(5, 30)
    saved = env.save()
    env.restore(saved)
    with setpoints_of(env._controller) as driven:
        expected = record(env, actions)
    env.restore(saved)
    actual = []
    for i in range(len(actions)):
        for position, velocity in driven[SUBSTEPS * i : SUBSTEPS * (i + 1)]:
            env.substep(position, velocity)
        success, failure = env.control_tick()
        actual.append(np.concatenate([env.proprioception(), *env.objects().values(), [success, failure, env.steps]]))
    assert np.array_equal(np.array(actual), expected)


def test_the_simulated_hand_is_where_the_kinematics_say():
    env = env_of("flip_mug")
    env.reset(7)
    for action in reach(6, 15):
        env.step(action)
    q = env.joint_state()[0]
    simulated = env._env.agent.tcp_pose.to_transformation_matrix()[0].numpy()
    assert np.allclose(simulated, tool(q[:6]), atol=1e-4)


def test_the_joint_state_reports_the_stroke_and_the_force_of_a_closed_gripper():
    env = env_of("flip_mug")
    env.reset(7)
    for _ in range(30):
        env.step(np.append(HOME[:6], 0.04))
    position, velocity, effort = env.joint_state()
    assert np.isclose(position[6], 0.04, atol=1e-3) and abs(velocity[6]) < 1e-3
    for _ in range(30):
        env.step(np.append(HOME[:6], 0.0))
    position, _, effort = env.joint_state()
    assert abs(position[6]) < 1e-3 and effort[6] < -1.0


def test_images_need_a_camera_that_was_asked_for():
    with pytest.raises(ValueError, match="not asked for"):
        env_of("flip_mug").images(["front"])
    assert env_of("flip_mug").images() == {}


@pytest.mark.parametrize("loose, sinks", [((1,), True), ((5,), False), (range(6), True), ((), False)])
def test_a_joint_whose_motor_is_off_bears_no_weight_and_the_others_hold(loose, sinks):
    env, pose = env_of("tape_box"), np.array((0.0, 0.9, -0.9, 0.0, 0.6, 0.0, 0.07))
    env.reset(8)
    env.place_arm(pose)
    resistance = HELD.copy()
    resistance[list(loose)] = LIMP[list(loose)]
    try:
        env.loosen(resistance)
        for _ in range(100):
            env.substep(pose, np.zeros(7))
        moved = np.abs(env.joint_state()[0] - pose)[:6]
        held = np.delete(moved, list(loose))
        assert (moved.max() > 0.2) == sinks and (len(held) == 0 or held.max() < 0.02)
    finally:
        env.loosen(HELD)


def test_a_square_picture_is_the_middle_of_a_wide_one():
    assert intrinsics("front", (424, 240))[:2] == intrinsics("front", (240, 240))[:2]


def test_environments_in_processes_agree_with_one_in_this_process():
    vec = make_vec("flip_mug", 2)
    try:
        vec.reset([3, 4])
        actions = reach(7, 5)
        for action in actions:
            results = vec.step(np.stack([action, action]))
        assert [r.steps for r in results] == [5, 5]
        saved, joints = vec.save(), vec.proprioception()
        vec.step(np.stack([HOME, HOME]))
        vec.restore(saved)
        assert np.array_equal(vec.proprioception(), joints)
        env = env_of("flip_mug")
        env.reset(4)
        record(env, actions)
        assert np.allclose(joints[1], env.proprioception(), atol=1e-6)
        assert np.allclose(vec.objects()["mug"][1], env.objects()["mug"], atol=1e-4)
        with pytest.raises(RuntimeError, match="7 finite numbers"):
            vec.step(np.full((2, 7), np.nan))
    finally:
        vec.close()


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="'cpu' or 'gpu'"):
        make_vec("flip_mug", 1, backend="tpu")


def test_behind_the_emulated_arm_the_joints_follow_the_setpoints_and_success_is_the_same():
    env = BehindTheArm("flip_mug")
    env.reset(3, rebuild=True)
    rows = record(env, reach(steps=30))
    measured, setpoint = rows[:, :6], rows[:, 7:13]
    assert np.abs(measured - setpoint).max() < 0.03
    assert np.abs(measured[-1] - HOME[:6]).max() > 0.05  # it moved
    saved, actions = env.save(), reach(seed=1)
    env.restore(saved)
    first = record(env, actions)
    env.restore(saved)
    assert (record(env, actions) == first).all()
    assert np.abs(first[:, :6] - first[:, 7:13]).max() > 0.001  # the arm, not the drives themselves
    env.place(*done_pose(env))
    assert any(env.step(env.proprioception()[7:]).success for _ in range(40))
    env.close()


def test_behind_the_emulated_arm_pictures_can_be_a_control_step_old():
    env = BehindTheArm("tape_box", cameras=("front",), image_size=(64, 48), old_pictures=True)
    env.reset(0)
    far = np.append(HOME[:6] + (0.4, 0, 0, 0, 0, 0), 0.07)
    shown = []
    for _ in range(4):
        env.step(far)
        shown.append((env.images()["front"], TaskEnv._render(env, ("front",), False)["front"][0]))
    env.close()
    for (_, now), (seen, _) in zip(shown, shown[1:]):
        assert (seen == now).all()
    assert (shown[-1][0] != shown[-1][1]).any()
