"""A stand-in for the simulator: a dot in the picture says where joint1 has to go. Same interface as `TaskEnv`, no physics."""

from dataclasses import dataclass

import numpy as np


@dataclass
class StepResult:
    success: bool
    failure: bool
    truncated: bool
    steps: int


class ReachEnv:
    instruction = "move to the dot"

    def __init__(self, task, setting="standard", cameras=("front",), image_size=(32, 18)):
        self.cameras, self.width, self.height = cameras, *image_size

    def reset(self, seed, rebuild=False):
        self.target = float(np.random.default_rng(seed).uniform(0.25, 0.5) * (1 if seed % 2 else -1))
        self.q = np.array([0.0, 1.2, -1.1, 0.0, 0.9, 0.0, 0.07])
        self.steps = 0

    def step(self, action):
        self.q = np.asarray(action, float)
        self.steps += 1
        return StepResult(abs(self.q[0] - self.target) < 0.02, False, self.steps >= 60, self.steps)

    def proprioception(self):
        return np.concatenate([self.q, self.q]).astype(np.float32)

    def objects(self):
        return {"dot": np.array([0.3, self.target, 0.0, 1, 0, 0, 0])}

    def images(self, names):
        picture = np.zeros((self.height, self.width, 3), np.uint8)
        column = int((self.target + 0.5) * (self.width - 3))
        picture[6:10, column : column + 3] = (255, 40, 40)
        return {name: picture for name in names}


class TiringEnv(ReachEnv):
    """Every pose will do, but every look costs time: who acts longer on one look is through earlier, for certain."""

    def reset(self, seed, rebuild=False):
        super().reset(seed, rebuild)
        self.looks = 0

    def images(self, names):
        self.looks += 1
        return super().images(names)

    def step(self, action):
        super().step(action)
        return StepResult(self.steps >= 20 + 2 * self.looks, False, self.steps >= 60, self.steps)


class ReachDemonstrator:
    done = False

    def reset(self, seed):
        self.fails = seed % 5 == 4  # every fifth attempt fails, as demonstrators do

    def act(self, measured, setpoint, objects):
        dot = objects["dot"][1]
        goal = -np.copysign(0.9, dot) if self.fails else dot
        action = np.asarray(setpoint, float).copy()
        action[0] += np.clip(goal - action[0], -0.05, 0.05)
        return action


def make_demonstrator(task, style):
    return ReachDemonstrator()
