"""One step of motion within velocity and acceleration limits. Used by the safety filter, and mirrored in torch by the
simulated agent, so that what a policy learns in simulation is what the arm will do."""

from __future__ import annotations

import numpy as np


def limited_step(x, v, goal, goal_v, dt, v_max, a_max):
    """Moves ``x`` (with velocity ``v``) towards a moving ``goal`` for ``dt`` seconds; returns the new (x, v).

    All arguments but ``dt`` are arrays of one shape. The velocity stays within ``v_max`` and changes by at most
    ``a_max * dt``. A feasible goal path is followed without lag (``goal_v`` is fed forward); a resting goal is
    overshot by less than ``a_max * dt**2``, the grain of time.
    """
    error = goal - x
    closing = np.sign(error) * np.minimum(np.sqrt(2.0 * 0.8 * a_max * np.abs(error)), np.abs(error) / dt)
    wanted = np.clip(goal_v + closing, -v_max, v_max)
    v_new = np.clip(wanted, v - a_max * dt, v + a_max * dt)
    return x + v_new * dt, v_new
