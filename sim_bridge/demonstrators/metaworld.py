"""Meta-World's scripted experts as demonstrators, clean, slow and hesitant.

    demonstrator = make_demonstrator("push-v3", "hesitant")
    demonstrator.reset(seed)
    action = demonstrator.act(measured7, setpoint7, objects)      # one action (7,) a control step

An expert says where the hand should go from where it is; a style decides how much of the way it goes in a control step, when
it stops for a while, and how much it trembles.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from sim_bridge.metaworld import STROKE_M, SUBSTEPS, TASKS

REACH_M = SUBSTEPS * 0.01
"""Farthest the hand goes in a control step: four full actions of Meta-World."""


@dataclass(frozen=True)
class Style:
    """How a demonstrator moves; ranges are drawn from anew in each episode (speed) or pause (its control steps)."""

    speed: tuple = (1.0, 1.0)
    """Share of the expert's speed."""
    pause: float = 0.0
    """Probability of stopping, in every control step."""
    pause_steps: tuple = (3, 10)
    jitter_m: float = 0.0
    """Standard deviation of a slow random motion laid over the expert's, per control step."""


STYLES = {
    "clean": Style(),
    "slow": Style(speed=(0.4, 0.4)),
    "hesitant": Style(speed=(0.25, 0.5), pause=0.03, jitter_m=0.001),
}


class Demonstrator:
    """One expert in one style. It never ends: when the task is solved it keeps on."""

    done = False

    def __init__(self, task: str, style: Style = STYLES["clean"]):
        from metaworld.policies import ENV_POLICY_MAP

        warnings.filterwarnings("ignore", "Constant", module="metaworld")  # experts ask for more than an action can be: clipped
        self._expert, self._scalar_last, self.style = ENV_POLICY_MAP[task](), TASKS[task].scalar_last, style
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Starts over; ``seed`` decides everything random about the hesitation."""
        self.random = np.random.default_rng([13, int(seed)])
        self.speed = float(self.random.uniform(*self.style.speed))
        self._rest, self._jitter = 0, np.zeros(3)

    def act(self, measured7, setpoint7, objects) -> np.ndarray:
        """The action (7,) of this control step; arguments as from `MetaWorldEnv.proprioception` and `objects`."""
        setpoint = np.array(setpoint7, dtype=float)
        if not self._rest and self.random.random() < self.style.pause:
            self._rest = int(self.random.integers(*self.style.pause_steps))
        if self._rest:
            self._rest -= 1
            return setpoint
        way = self._expert.get_action(self._observation(np.asarray(measured7, dtype=float), objects))
        self._jitter = 0.9 * self._jitter + np.sqrt(1 - 0.81) * self.style.jitter_m * self.random.normal(size=3)
        setpoint[:3] += REACH_M * self.speed * np.clip(way[:3], -1.0, 1.0) + self._jitter
        setpoint[6] = STROKE_M * (1.0 - np.clip(way[3], -1.0, 1.0)) / 2.0
        return setpoint

    def _observation(self, measured, objects) -> np.ndarray:
        """What Meta-World shows its experts (39,); they do not look at the frame before."""
        position, turn = objects["object"][:3], objects["object"][3:]
        now = np.zeros(18)
        now[:11] = *measured[:3], measured[6] / STROKE_M, *position, *(np.roll(turn, -1) if self._scalar_last else turn)
        return np.concatenate([now, now, objects["goal"][:3]])


def make_demonstrator(task: str, style: str = "clean") -> Demonstrator:
    """The demonstrator of ``task`` in ``style`` ("clean", "slow" or "hesitant"); ValueError names what exists."""
    if task not in TASKS:
        raise ValueError(f"task '{task}' has no demonstrator; choose one of {', '.join(TASKS)}")
    if style not in STYLES:
        raise ValueError(f"style '{style}' does not exist; choose one of {', '.join(STYLES)}")
    return Demonstrator(task, STYLES[style])
