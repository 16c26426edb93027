"""Meta-World's Sawyer (arXiv 1910.10897, `pip install metaworld`) behind the interface of `TaskEnv`: state-based, no pictures.

    env = MetaWorldEnv("push-v3")
    env.reset(seed=7)
    result = env.step(action)            # (7,): where the hand is to be, m; 50 ms pass

Meta-World moves a hand, not joints, so the project's 7-vectors mean (`ACTION_KIND`):

    action        hand x y z (m, Meta-World's frame) at the end of the control step, three zeros, gripper stroke (m)
    state (14,)   the same, measured, and then the setpoint: where the motion-capture body that drags the hand is
    stroke        0 closed .. 0.07 open; Meta-World's effort of 1 .. -1 and its measured opening of 0 .. 1

A control step of 50 ms is four steps of Meta-World. In each the setpoint goes its share of the way to the target, at most the
10 mm that an action of Meta-World's can ask for (0.8 m/s), and stays in the workspace. Success is Meta-World's own, judged
after every control step; 125 of them, Meta-World's 500 steps, truncate an episode. An object and the goal are the two objects a policy is told about.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from policytrim_ros.core.contract import GRIPPER_RANGE_M, HAND_POSITION
from sim_bridge.step import StepResult

ACTION_KIND = HAND_POSITION
SUBSTEPS = 4
TIME_LIMIT = 125
STROKE_M = GRIPPER_RANGE_M[1]
SETTLED = ("body_pos", "body_quat", "site_pos", "site_quat")
"""What tasks move in the model itself."""


@dataclass(frozen=True)
class Task:
    """The task in words; whether Meta-World gives its object's quaternion with the scalar last."""

    instruction: str
    scalar_last: bool = False


TASKS = {
    "reach-v3": Task("move the hand to the goal", scalar_last=True),
    "push-v3": Task("push the puck to the goal", scalar_last=True),
    "pick-place-v3": Task("pick up the puck and bring it to the goal", scalar_last=True),
    "door-open-v3": Task("open the door", scalar_last=True),
    "drawer-open-v3": Task("open the drawer"),
    "button-press-v3": Task("press the button"),
    "window-open-v3": Task("open the window"),
}


class MetaWorldEnv:
    """One task of Meta-World in MuJoCo. A scene is bit for bit a function of its seed, an episode of seed and actions.

    ``image_size`` is ignored. ValueError names an unknown task or setting, and refuses cameras; RuntimeError says what to
    install.
    """

    def __init__(self, task: str, setting: str = "standard", cameras=(), image_size=(128, 128)):
        if task not in TASKS:
            raise ValueError(f"task '{task}' does not exist; choose one of {', '.join(TASKS)}")
        if setting != "standard":
            raise ValueError(f"setting '{setting}' does not exist for {task}; choose standard")
        if cameras:
            raise ValueError(f"Meta-World is played without pictures: leave out the cameras {', '.join(cameras)}")
        try:
            import mujoco
            from metaworld.env_dict import ALL_V3_ENVIRONMENTS
        except ImportError as error:
            raise RuntimeError(f"Meta-World is not installed ({error}): pip install 'policytrim_ros[metaworld]'") from error
        self.task, self.setting, self.cameras, self.image_size = task, setting, (), tuple(image_size)
        self._mujoco, self._env = mujoco, (env := ALL_V3_ENVIRONMENTS[task]())
        env._partially_observable, env._set_task_called = False, True  # the goal is seen, and drawn here:
        env._freeze_rand_vec, env.seeded_rand_vec = False, True
        env.touching_object = lambda geom: False  # only rewards want to know, and looking through all contacts takes long
        del env.sawyer_observation_space  # cached while the goal was hidden
        self._model = {name: getattr(env.model, name).copy() for name in SETTLED}
        self.seed = self.steps = 0
        self._stroke = STROKE_M

    @property
    def instruction(self) -> str:
        """The task in words, as a policy is told."""
        return TASKS[self.task].instruction

    def reset(self, seed: int, rebuild: bool = False) -> None:
        """Lays the scene that belongs to ``seed``: positions of object and goal; the hand at rest, the gripper open.

        ``rebuild`` makes no difference: nothing is left over from earlier episodes.
        """
        env = self._env
        for name, values in self._model.items():
            getattr(env.model, name)[:] = values
        self._mujoco.mj_resetData(env.model, env.data)
        env.seed(int(seed))
        env.reset_model()
        self._mujoco.mj_forward(env.model, env.data)  # some tasks move their object last
        self.seed, self.steps, self._stroke = int(seed), 0, STROKE_M

    def step(self, action) -> StepResult:
        """Plays one action (7,) for one control step of 50 ms; a target that is too far away is not reached."""
        action = np.asarray(action, dtype=np.float64)
        if action.shape != (7,) or not np.all(np.isfinite(action)):
            raise ValueError(f"an action is 7 finite numbers, got {action}")
        env = self._env
        self._stroke = float(np.clip(action[6], 0.0, STROKE_M))
        effort = 1.0 - 2.0 * self._stroke / STROKE_M
        for left in range(SUBSTEPS, 0, -1):
            way = (action[:3] - env.data.mocap_pos[0]) / (left * env.action_scale)
            env.set_xyz_action(way)  # clips it
            env.do_simulation([effort, -effort], env.frame_skip)
        self._mujoco.mj_forward(env.model, env.data)
        success = bool(env.evaluate_state(env._get_obs(), np.append(way, effort))[1]["success"])
        self.steps += 1
        return StepResult(success, False, not success and self.steps >= TIME_LIMIT, self.steps)

    # Observation --------------------------------------------------------------------------------------------------

    def proprioception(self) -> np.ndarray:
        """Measured hand and gripper (7) and their setpoint (7) as (14,) float32, as in the module: m."""
        seen, pause = self._env._get_curr_obs_combined_no_goal(), np.zeros(3)
        measured = (*seen[:3], *pause, STROKE_M * seen[3])
        return np.array([*measured, *self._env.data.mocap_pos[0], *pause, self._stroke], np.float32)

    def objects(self) -> dict:
        """Name -> pose (7,) float64: the task's object, then its goal. x y z in m and quaternion w x y z."""
        seen = self._env._get_curr_obs_combined_no_goal()
        turn = np.roll(seen[7:11], 1) if TASKS[self.task].scalar_last else seen[7:11]
        turn = turn if turn.any() else (1.0, 0.0, 0.0, 0.0)  # a task whose object cannot turn
        return {
            "object": np.array([*seen[4:7], *turn]),
            "goal": np.array([*self._env._target_pos, 1.0, 0.0, 0.0, 0.0]),
        }

    def images(self, names=None) -> dict:
        """No pictures: an empty dict; ValueError when ``names`` asks for some."""
        if names:
            raise ValueError(f"Meta-World is played without pictures: there is no camera '{names[0]}'")
        return {}

    def hide(self, *names) -> None:
        """ValueError: where there are no pictures, nothing can be hidden in them."""
        raise ValueError("Meta-World is played without pictures: no object can be hidden in them")

    # State --------------------------------------------------------------------------------------------------------

    def save(self) -> dict:
        """Everything that the future depends on, at the end of a control step; may be restored any number of times."""
        model, data, parts = self._env.model, self._env.data, self._mujoco.mjtState.mjSTATE_INTEGRATION
        state = np.empty(self._mujoco.mj_stateSize(model, parts))
        self._mujoco.mj_getState(model, data, state, parts)
        return {"seed": self.seed, "state": state, "steps": self.steps, "stroke": self._stroke}

    def restore(self, saved: dict, rebuild: bool = True) -> None:
        """Returns to ``saved``, of this task: what follows is bit for bit what followed then."""
        self.reset(saved["seed"])
        model, data, parts = self._env.model, self._env.data, self._mujoco.mjtState.mjSTATE_INTEGRATION
        self._mujoco.mj_setState(model, data, saved["state"], parts)
        self._mujoco.mj_forward(model, data)  # positions of bodies, but it also replaces the solver's first guess:
        self._mujoco.mj_setState(model, data, saved["state"], parts)
        self.steps, self._stroke = saved["steps"], saved["stroke"]

    def close(self) -> None:
        self._env.close()
