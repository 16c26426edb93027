"""Interventions: a policy acts, as on the robot, until a demonstrator takes over (HG-DAgger, Kelly et al. 2019).

Cloned demonstrations never show where a cloned policy gets itself into; what the demonstrator does from there does. Only that is
recorded (training/demos.py, ``start: intervention``).
"""

from __future__ import annotations

import numpy as np

from policytrim_ros.core.replanning import ASYNC
from policytrim_ros.policies import checkpoint
from policytrim_ros.training.evaluate import looking_with
from policytrim_ros.training.rollout import Conditions, Player, Start, observation, outcome_of, view

TAKEN_OVER_STEPS = (100, 300)
"""Control steps after which the demonstrator takes over: most scenes that a policy can do are done before the end of this."""

HELD_M = 0.004
"""The fingers stand so far (m) apart from where they were told to be: something is between them."""


class Driver:
    """The checkpoint in ``directory``, executed asynchronously with h = ``horizon`` (0: its own) and ``latency_s``.

    CheckpointError when it cannot be loaded.
    """

    def __init__(self, directory, horizon: int = 0, latency_s: float = 0.0):
        policy, manifest = checkpoint.load(directory)
        self.weights_sha256 = manifest["files"][checkpoint.WEIGHTS]
        self._look, self._slots = looking_with(policy), policy.contract.object_slots
        self._cameras = tuple(camera.name for camera in policy.contract.cameras)
        self._horizon = horizon or policy.contract.execution_horizon
        self._conditions = Conditions(ASYNC, latency_s, guarded=True)

    def drive(self, env, seed: int) -> int | None:
        """Acts in ``env``, which was reset, and says after how many control steps the demonstrator takes over; None when it must not.

        That is when a number of steps drawn by ``seed`` is over or the controller would have held the arm, and nothing is held: a
        demonstrator that begins anew would drop it. It must not when the episode has ended before.
        """
        player = Player(Start(seed, self._horizon), env.proprioception()[7:], self._conditions)
        after = np.random.default_rng((seed, 13)).integers(*TAKEN_OVER_STEPS)
        while not (player.held or player.control_steps >= after) or holds(env):
            if player.begin():
                row = view(env, self._cameras, self._slots)
                player.hear(self._look(observation([row], [player.committed]), [player.look_seed])[0], row)
            result = env.step(player.target)
            player.passed()
            if outcome_of(result):
                return None
        return player.control_steps


def holds(env) -> bool:
    """Whether there is something between the fingers."""
    state = env.proprioception()
    return bool(state[6] - state[13] > HELD_M)
