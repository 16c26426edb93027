"""Meta-World behind the interface of the project's own tasks: exact from a seed, solvable, clear about what it is not."""

from dataclasses import replace

import numpy as np
import pytest
from policy_samples import TINY

from policytrim_ros.core.config import ConfigError
from policytrim_ros.core.contract import HAND_POSITION, mismatches, robot_contract
from policytrim_ros.policies import checkpoint
from policytrim_ros.policies.flow import FlowConfig
from policytrim_ros.policies.objects import object_features
from policytrim_ros.training import demos, evaluate, sft
from policytrim_ros.training.recipe import Collection, Evaluation, Pictures, Recipe, Training, load_recipe, world_of
from policytrim_ros.training.trim import Trimming
from policytrim_ros.training.trim_recipe import load_trim
from sim_bridge.demonstrators.metaworld import make_demonstrator
from sim_bridge.metaworld import TASKS, TIME_LIMIT, MetaWorldEnv

ENVIRONMENT = "sim_bridge.metaworld:MetaWorldEnv"
_envs = {}


def env_of(task):
    """One scene of a task for all tests."""
    if task not in _envs:
        _envs[task] = MetaWorldEnv(task)
    return _envs[task]


def seen(env):
    """Everything observable (28,)."""
    return np.concatenate([env.proprioception(), *env.objects().values()])


def record(env, actions):
    """Everything observable and the outcome (steps, 30) while ``actions`` are played."""
    rows = []
    for action in actions:
        result = env.step(action)
        rows.append([*seen(env), result.success, result.steps])
    return np.array(rows)


def wander(env, seed=0, steps=12):
    """A random walk of the hand (steps, 7) around the place where it is, the gripper closing."""
    walk = np.tile(env.proprioception()[7:].astype(float), (steps, 1))
    walk[:, :3] += np.cumsum(np.random.default_rng(seed).normal(0, 0.02, (steps, 3)), axis=0)
    walk[:, 6] = np.linspace(0.07, 0.0, steps)
    return walk


def demonstrated(env, style, seed):
    """The last result of an episode of the demonstrator."""
    demonstrator = make_demonstrator(env.task, style)
    env.reset(seed)
    demonstrator.reset(seed)
    while True:
        state = env.proprioception()
        result = env.step(demonstrator.act(state[:7], state[7:], env.objects()))
        if result.over:
            return result


# -- the environment ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_an_episode_is_bit_for_bit_a_function_of_seed_and_actions(task):
    env, other = env_of(task), MetaWorldEnv(task)
    env.reset(3)
    actions = wander(env)
    first = record(env, actions)
    env.reset(4)
    elsewhere = seen(env)
    record(env, wander(env, seed=1))
    for same in (env, other):  # one with a past, one without
        same.reset(3)
        assert np.array_equal(record(same, actions), first)
    assert not np.array_equal(elsewhere[14:], first[0, 14:28]), "another seed lays another scene"


@pytest.mark.parametrize("task", TASKS)
def test_a_restored_state_goes_on_bit_for_bit(task):
    env = env_of(task)
    env.reset(5)
    actions = wander(env, steps=20)
    record(env, actions[:8])
    saved, at = env.save(), seen(env)
    first = record(env, actions[8:])
    for _ in range(2):
        env.restore(saved)
        assert np.array_equal(seen(env), at)
        assert np.array_equal(record(env, actions[8:]), first)


@pytest.mark.parametrize("task", TASKS)
def test_the_expert_succeeds_and_takes_longer_when_it_hesitates(task):
    env = env_of(task)
    clean, slow = (demonstrated(env, style, seed=1) for style in ("clean", "slow"))
    assert clean.success and slow.success and slow.steps > 1.5 * clean.steps


def test_a_hesitant_demonstrator_repeats_itself_from_a_seed_and_differs_between_seeds():
    env = env_of("drawer-open-v3")
    steps = [demonstrated(env, "hesitant", seed).steps for seed in (1, 1, 2)]
    assert steps[0] == steps[1] != steps[2]


def test_the_hand_goes_where_it_is_told_at_its_own_speed():
    env = env_of("reach-v3")
    env.reset(0)
    start, target = env.proprioception(), env.proprioception()[7:].astype(float)
    target[:3] += [0.0, 0.1, 0.0]
    env.step(target)
    assert env.proprioception()[8] - start[8] == pytest.approx(0.04, abs=1e-6), "four steps of 10 mm"
    for _ in range(10):
        env.step(target)
    assert np.allclose(env.proprioception()[7:], target, atol=1e-6)
    assert np.allclose(env.proprioception()[:3], target[:3], atol=0.01)
    target[6] = 0.0
    for _ in range(10):
        env.step(target)
    assert env.proprioception()[6] < start[6] - 0.01, "the gripper has closed"


def test_an_episode_is_truncated_at_the_limit():
    env = env_of("door-open-v3")
    env.reset(0)
    still = env.proprioception()[7:]
    results = [env.step(still) for _ in range(TIME_LIMIT)]
    assert not results[-2].over and results[-1].truncated and not results[-1].success


def test_what_the_environment_cannot_do_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match="task 'fly-v3' does not exist; choose one of reach-v3"):
        MetaWorldEnv("fly-v3")
    with pytest.raises(ValueError, match="setting 'dynamic' does not exist for reach-v3"):
        MetaWorldEnv("reach-v3", setting="dynamic")
    with pytest.raises(ValueError, match="without pictures: leave out the cameras front"):
        MetaWorldEnv("reach-v3", cameras=("front",))
    env = env_of("reach-v3")
    for bad in (np.zeros(4), np.full(7, np.nan)):
        with pytest.raises(ValueError, match="an action is 7 finite numbers"):
            env.step(bad)
    with pytest.raises(ValueError, match="there is no camera 'wrist'"):
        env.images(("wrist",))
    with pytest.raises(ValueError, match="no object can be hidden"):
        env.hide("object")
    for task, style, message in (("fly-v3", "clean", "task 'fly-v3' has no demonstrator"), ("reach-v3", "bold", "style 'bold'")):
        with pytest.raises(ValueError, match=message):
            make_demonstrator(task, style)


# -- the pipeline ---------------------------------------------------------------------------------------------------


def test_an_environment_says_which_tasks_it_has_and_what_its_actions_are():
    world = world_of(ENVIRONMENT)
    assert world.tasks == tuple(TASKS) and world.action_kind == HAND_POSITION
    with pytest.raises(ConfigError, match="task 'tape_box' does not exist; choose from reach-v3"):
        load_trim(None, {"environment": ENVIRONMENT, "tasks": ["tape_box"]})
    with pytest.raises(ConfigError, match="'sim_bridge.metaworld:Fly' cannot be imported"):
        world_of("sim_bridge.metaworld:Fly")


def test_objects_are_seen_from_the_hand():
    state, pose = np.zeros((1, 14), np.float32), np.array([[[0.1, 0.7, 0.2, 1, 0, 0, 0]]])
    state[0, :3] = 0.1, 0.6, 0.1
    features = object_features(pose, state, HAND_POSITION)[0, 0]
    assert np.allclose(features[:7], [1, 1, 7, 2, 0, 1, 1], atol=1e-5)


def test_shipped_recipes_name_tasks_that_exist():
    for name in ("metaworld_demos", "metaworld_sft"):
        recipe = load_recipe(f"config/{name}.yaml")
        assert {row.task for row in (*recipe.collect, *recipe.evaluation)} <= set(world_of(recipe.environment).tasks)
    assert load_trim("config/metaworld_trim.yaml").environment == ENVIRONMENT


def test_demonstrations_training_evaluation_and_trimming_work_as_on_the_arm(tmp_path):
    tasks = ("button-press-v3", "window-open-v3")
    recipe = Recipe(
        name="little",
        environment=ENVIRONMENT,
        demonstrator="sim_bridge.demonstrators.metaworld:make_demonstrator",
        pictures=Pictures(cameras=()),
        object_slots=2,
        collect=tuple(Collection(task=task, style="clean", episodes=3) for task in tasks),
        network=FlowConfig(horizon=6, **{**TINY, "hidden": 32}),
        training=Training(
            steps=150, batch=32, learning_rate=5e-3, warmup_steps=10, shift_px=(), held_out=0.2, evaluate_every=500
        ),
    )
    index = demos.make(recipe, tmp_path / "demos", progress=False)
    assert {facts["task"] for facts in index["episodes"]} == set(tasks) and len(index["episodes"]) == 6
    trainer = sft.Trainer(recipe, tmp_path / "demos", tmp_path / "sft", progress=False, device="cpu")
    trainer.run()
    manifest = trainer.save_checkpoint(tmp_path / "baseline")
    contract = checkpoint.contract_of(manifest)
    assert contract.action_kind == HAND_POSITION and contract.tasks == tasks
    refused = mismatches(contract, replace(robot_contract({}), object_slots=2))
    assert refused == ["kind of action: the checkpoint uses absolute_hand_position, the robot absolute_joint_position"]

    bench = evaluate.Bench(ENVIRONMENT, recipe.demonstrator, recipe.pictures, lanes=2)
    report = evaluate.evaluate(tmp_path / "baseline", Evaluation(tasks[0], episodes=4, horizon=3), bench, progress=False)
    assert report["n"] == 4 and report["successes"] > 0

    changes = {"parent": str(tmp_path / "baseline"), "environment": ENVIRONMENT, "tasks": [tasks[0]], "horizon": 6}
    sizes = {"check_every": 1, "check_episodes": 2, "selection_episodes": 2, "evaluation_episodes": 2, "collapse": 1.0}
    stage = {"extension.iterations": 0, "saving.iterations": 1, "saving.groups": 1, "saving.group_size": 2}
    trimming = Trimming(load_trim(None, {**changes, **sizes, **stage}), tmp_path / "trim", lanes=2, progress=False, say=str)
    evidence = trimming.run()
    assert len(trimming.history) == 1 and "verdict" in evidence
