"""The demonstrators solve their tasks, within the motion limits, with a late arm and a held one."""

import numpy as np
import pytest
import torch

from policytrim_ros.core.kinematics import A_MAX, LIMITS, V_MAX
from policytrim_ros.core.types import READY
from sim_bridge.demonstrators import DEMONSTRATORS, make_demonstrator
from sim_bridge.demonstrators.base import DT, matrix, tool_rotation
from sim_bridge.env import TaskEnv

torch.set_num_threads(1)
_envs = {}


def play(task, setting="standard", style="clean", seed=0, delay=0, held=()):
    """One episode: (result, actions (steps, 7), env). ``delay``: control steps by which actions are late; during the
    steps ``held`` the arm stays where it is."""
    if (task, setting) not in _envs:
        _envs[task, setting] = TaskEnv(task, setting)
    env, demonstrator, actions = _envs[task, setting], make_demonstrator(task, style), []
    env.reset(seed)
    demonstrator.reset(seed)
    setpoint = env.proprioception()[7:]
    while True:
        joints = env.proprioception()
        actions.append(demonstrator.act(joints[:7], joints[7:], env.objects()))
        if env.steps not in held:
            setpoint = actions[max(0, len(actions) - 1 - delay)]
        result = env.step(setpoint)
        if result.over:
            return result, np.array(actions), env


@pytest.mark.parametrize("task", DEMONSTRATORS)
@pytest.mark.parametrize("setting", ["standard", "dynamic"])
def test_the_clean_demonstrator_solves_the_task(task, setting):
    for seed in (0, 1):
        result, _, env = play(task, setting, seed=seed)
        assert result.success and result.steps < 300
        assert (env.shifted() > 0.01) == (setting == "dynamic")


@pytest.mark.parametrize("task", DEMONSTRATORS)
def test_the_hesitant_demonstrator_solves_the_task_more_slowly(task):
    result, _, _ = play(task, style="hesitant", seed=2)
    assert result.success
    assert result.steps > 1.2 * play(task, seed=2)[0].steps


@pytest.mark.parametrize("task", DEMONSTRATORS)
def test_commands_are_feasible_and_the_setpoint_follows_them(task):
    _, actions, _ = play(task, style="hesitant", seed=3)
    speed = np.diff(actions, axis=0) / DT
    assert np.all(np.abs(speed) <= V_MAX + 1e-6)
    assert np.all(np.abs(np.diff(speed, axis=0)) / DT <= A_MAX + 1e-6)
    assert np.all(actions >= LIMITS[:, 0]) and np.all(actions <= LIMITS[:, 1])


def test_an_arm_that_executes_a_step_late_still_succeeds():
    assert play("tape_box", seed=4, delay=1)[0].success


def test_an_arm_that_is_held_for_a_while_still_succeeds():
    result, _, _ = play("tape_box", seed=5, held=range(8, 40))
    assert result.success


def test_a_demonstrator_is_a_function_of_its_seed_and_its_inputs():
    _, _, env = play("tape_box", seed=6)
    first, again = (make_demonstrator("tape_box", "hesitant") for _ in range(2))
    env.reset(6)
    first.reset(6)
    again.reset(6)
    for _ in range(60):
        joints, objects = env.proprioception(), env.objects()
        action = first.act(joints[:7], joints[7:], objects)
        assert np.array_equal(again.act(joints[:7], joints[7:], objects), action)
        env.step(action)


def test_a_demonstrator_without_hope_ends_and_keeps_still():
    demonstrator = make_demonstrator("tape_box")
    objects = {"tape": [1.5, 0, 0.012, 1, 0, 0, 0], "box": [0.3, 0.2, 0, 1, 0, 0, 0]}
    joints = np.array(READY)
    for _ in range(200):
        action = demonstrator.act(joints, joints, objects)
    assert demonstrator.done
    assert np.allclose(action, READY)


def test_unknown_tasks_and_styles_are_refused():
    with pytest.raises(ValueError, match="tape_box"):
        make_demonstrator("pour")
    with pytest.raises(ValueError, match="hesitant"):
        make_demonstrator("tape_box", "nervous")


def test_a_tool_rotation_is_right_handed_with_a_horizontal_closing_axis():
    rotation = tool_rotation(0.7, 0.6)
    assert np.allclose(rotation.T @ rotation, np.eye(3)) and np.isclose(np.linalg.det(rotation), 1.0)
    assert rotation[2, 1] == 0.0 and np.isclose(rotation[2, 2], -np.cos(0.6))
    assert np.allclose(matrix([1, 2, 3, 1, 0, 0, 0]), [[1, 0, 0, 1], [0, 1, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1]])
