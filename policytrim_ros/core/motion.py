"""One step of motion within velocity and acceleration limits. Used by the safety filter, and mirrored in torch by the
simulated agent, so that what a policy learns in simulation is what the arm will do."""

from __future__ import annotations

import numpy as np


def stopping_speed(distance, a_max, dt):
    """The greatest speed from which a stop within ``distance`` is possible with steps of ``dt`` that decelerate by ``a_max``."""
    return np.minimum(a_max * (np.sqrt(dt * dt / 4.0 + 2.0 * distance / a_max) - dt / 2.0), distance / dt)


def limited_step(x, v, goal, goal_v, dt, v_max, a_max, braking=0.8):
    """Moves ``x`` (with velocity ``v``) towards a moving ``goal`` for ``dt`` seconds; returns the new (x, v).

    All arguments but ``dt`` are arrays of one shape. The velocity stays within ``v_max`` and changes by at most
    ``a_max * dt``. A feasible goal path is followed without lag (``goal_v`` is fed forward); a resting goal is
    reached without overshoot, braking with the share ``braking`` of ``a_max``.
    """
    error = goal - x
    closing = np.sign(error) * stopping_speed(np.abs(error), braking * a_max, dt)
    change = a_max * dt
    wanted = np.minimum(np.maximum(goal_v + closing, -v_max), v_max)  # np.clip costs a few times as much
    v_new = np.minimum(np.maximum(wanted, v - change), v + change)
    return x + v_new * dt, v_new
