"""What an arm feels of its policy: rests, pauses between chunks and jerk at their seams, for several latencies of inference.

    python -m benchmarks.seams

No robot and no network: chunks of a policy that wants to follow a smooth path and errs more the further it looks ahead (its
error is drawn anew for every chunk), played by the controller's executor and safety filter at 100 setpoints a second on a
virtual clock. Latencies vary by a log-normal factor (sigma 0.15). The broker is the loop of most peers today: play the
chunk to its end, rest, look again (mode sync). An asynchronous loop slows down over the last actions of a chunk whose
successor is late; "not slowed" is the same loop whose chunks do not say that one follows. Writes docs/results/seams.md and .json.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.results import circumstances, in_words, leave, markdown
from policytrim_ros.core.executor import ChunkExecutor
from policytrim_ros.core.replanning import Replanner
from policytrim_ros.core.safety import SafetyFilter, SafetyLimits
from policytrim_ros.core.types import READY, Chunk
from sim_bridge.piper_emulator import TICK_S
from sim_bridge.virtual_arm import VirtualArm

RATE_HZ, SETPOINTS_HZ, H = 20.0, 100.0, 15
RATES_HZ = (10.0, 20.0, 30.0)
LATENCIES_S = (0.02, 0.09, 0.2, 0.34)
ARMS = (
    ("broker, h = 5", "sync", 5),
    ("broker, h = 15", "sync", 15),
    ("async, h = 5", "async", 5),
    ("async, h = 10", "async", 10),
    ("async, h = 10, not slowed", "async", 10),
)
ERROR_RAD = 0.02
"""Standard deviation of a chunk's error at its far end; it grows from zero, since a chunk begins at the setpoint."""

NEAR_S = 0.1
"""So long after a seam its jerk is counted as the seam's."""

HEAD = (
    "loop",
    "latency",
    "calls",
    "rests + slowed, s a minute",
    "pauses p50 / p99, ticks",
    "jerk at seams / elsewhere, rad/s3",
    "chunk age p95, ms",
)

CURVES_HEAD = (
    "policy",
    "latency",
    "rests, s a minute",
    "linear: jerk at seams / elsewhere",
    "cubic: the same",
    "linear: setpoint off the lines p99, mrad",
    "cubic: the same",
)
CURVES = (
    "Between the actions the controller's path is straight. A cubic Hermite curve through the same actions has a third to two thirds of the jerk "
    "inside a chunk; at the seams of a policy of 20 or 30 Hz it has a tenth more, since the next chunk is not what the curve was bent for, and it keeps no "
    "closer to the plan. The simulated arm, with which the policies were trained and measured, moves in straight lines as well. So lines they stay, and there is "
    "no option; a policy of 10 Hz, where the curve is better in everything, would be the reason to ask again. Async, h = 10, not slowed, a fifth of the time."
)
SETPOINT_RATES_HZ = (30.0, 50.0, 100.0, 200.0)
SETPOINTS_HEAD = (
    "policy",
    "setpoints a second",
    "setpoint off the lines p99, mrad",
    "arm off the lines p50 / p99, mrad",
    "jerk of the arm, rad/s3",
)
STREAMS = (
    "`setpoint_rate_hz` of the controller, 100 by default. Twice as many setpoints halve how far the emulated arm is from the lines half of the time: what remains "
    "of p99 is the limits' doing. From 100 to 200 that is 1 to 2 mrad, about a millimetre at the gripper, for more jerk, twice the frames and twice as many "
    "wake-ups of a process that must not be late; below 100 it is 3 to 9 mrad. Async, h = 10, 90 ms, a fifth of the time."
)
END_HEAD = (
    "end of a chunk after which none comes",
    "deceleration of its limit, mean / p95",
    "overshoot, mrad",
    "rests later by, ms",
)


class CubicExecutor(ChunkExecutor):
    """Cubic Hermite curves through the actions instead of straight lines; never slowed.

    A curve begins with the velocity that the path has, and ends with the mean of the velocities before and after its action,
    at the queue's end with its own.
    """

    _end_velocity = np.zeros(7)

    def _begin(self, at: float) -> None:
        self._begin_velocity = self._end_velocity if self.playing else np.zeros(7)
        super()._begin(at)
        after = (self._queue[0][0] - self._to) * self.rate_hz if self._queue else self._velocity
        self._end_velocity = (self._velocity + after) / 2

    def _point(self, now: float):
        point = super()._point(now)
        if not point.playing:
            return point
        s, span = (now - self._began) * self.rate_hz, self._to - self._from
        begin, end = self._begin_velocity / self.rate_hz, self._end_velocity / self.rate_hz
        bend, twist = 3 * span - 2 * begin - end, begin + end - 2 * span
        position = self._from + s * (begin + s * (bend + s * twist))
        return replace(point, position=position, velocity=(begin + s * (2 * bend + s * 3 * twist)) * self.rate_hz)


def path(steps: np.ndarray, rate_hz: float = RATE_HZ) -> np.ndarray:
    """Where the policy wants the arm at the ends of control steps (n,): (n, 7) rad, m."""
    t = np.asarray(steps)[:, None] / rate_hz
    swing = 0.4 * np.sin(2 * np.pi * t * np.array([0.10, 0.13, 0.17, 0.19, 0.23, 0.29])) * np.array([1, 0.5, 0.5, 0.5, 0.5, 0.5])
    return np.concatenate([np.array(READY)[:6] + swing, np.full((len(t), 1), 0.05)], axis=1)


def play(
    mode: str,
    horizon: int,
    latency_s: float,
    seconds: float,
    seed: int = 0,
    follows: bool = False,
    rate_hz: float = RATE_HZ,
    kind: type[ChunkExecutor] = ChunkExecutor,
    setpoints_hz: float = SETPOINTS_HZ,
    arm: VirtualArm | None = None,
) -> dict:
    """Figures of one loop; ``follows``: what its chunks say; ``arm`` is given the setpoints, and what it makes of them is measured."""
    rng = np.random.default_rng(seed)
    executor, replanner = kind(rate_hz), Replanner(mode, horizon, rate_hz)
    guard = SafetyFilter(SafetyLimits())
    start = path(np.array([0]))[0]
    executor.start(start, 0.0)
    guard.reset(start)
    dt, coming, latencies, p99, began = 1 / setpoints_hz, None, [latency_s], latency_s, 0.0
    moved, astray, since = [], [], arm.now if arm else 0.0
    velocities, seams, pauses, rest, ages, looked_at, playing = [], [], [], 0, [], {}, None  # looked_at: chunk -> s
    off = []
    for tick in range(round(seconds * setpoints_hz)):
        now = tick * dt
        if coming and now >= coming[0]:
            executor.accept(coming[1])
            coming = None
        before = executor.next_step
        point = executor.tick(now)
        if point.next_step != before:
            began = now
            if point.chunk_id != playing:
                seams.append(tick)
                pauses.append(rest)
                playing = point.chunk_id
            rest = 0
            ages.append(now - looked_at[playing])
        elif not point.playing and playing:
            rest += 1
        out = guard.step(point.position, point.velocity, dt)
        velocities.append(out.velocity[:6])
        off.append(np.abs(ChunkExecutor._point(executor, now).position - out.setpoint)[:6].max())
        if arm:
            arm.joints(out.setpoint)
            arm.gripper(out.setpoint[6])
            while arm.now - since < now + dt - TICK_S / 2:
                astray.append(np.abs(arm.run(TICK_S)[0] - ChunkExecutor._point(executor, arm.now - since).position)[:6].max())
                moved.append(arm.arm.v[:6].copy())
        if coming is None and replanner.turn(point.next_step, point.queued, point.playing, p99, now):
            first = replanner.first(point.next_step, point.playing, now - began)
            count = replanner.trim(H, p99)
            ahead = np.arange(1, count + 1)
            error = rng.normal(0, ERROR_RAD, 7) * np.append(np.ones(6), 0) * (ahead[:, None] / H)
            latency = latency_s * float(np.exp(rng.normal(0, 0.15)))
            latencies.append(latency)
            number = len(looked_at) + 1
            looked_at[number] = now
            replanner.sent(first, count, now)
            p99 = float(np.percentile(latencies[-200:], 99))
            coming = now + latency, Chunk(path(first + ahead, rate_hz) + error, 1, number, first, rate_hz, follows)
    jerk = np.abs(np.diff(velocities, n=2, axis=0)).max(axis=1) / dt**2
    near = np.zeros(len(jerk), bool)
    for seam in seams[1:]:
        near[max(0, seam - 1) : seam + round(NEAR_S * setpoints_hz)] = True
    of_arm = {
        "arm_off_p50_mrad": 1000 * float(np.percentile(astray, 50)),
        "arm_off_p99_mrad": 1000 * float(np.percentile(astray, 99)),
        "arm_jerk": float((np.abs(np.diff(moved, n=2, axis=0)).max(axis=1) / TICK_S**2).mean()),
    } if arm else {}  # fmt: skip
    return {
        **of_arm,
        "calls": len(looked_at),
        "actions_per_minute": 60 * executor.next_step / seconds,
        "rests_s_per_minute": 60 * executor.stall_s / seconds,
        "slowed_s_per_minute": 60 * executor.slowed_s / seconds,
        "pause_p50_ticks": float(np.percentile(pauses[1:], 50)),
        "pause_p99_ticks": float(np.percentile(pauses[1:], 99)),
        "jerk_seams": float(jerk[near].mean()),
        "jerk_elsewhere": float(jerk[~near].mean()) if (~near).any() else float("nan"),
        "largest_acceleration_of_limit": float(
            (np.abs(np.diff(velocities, axis=0)) / dt / np.array(SafetyLimits().a_max)[:6]).max()
        ),
        "chunk_age_p95_ms": 1000 * float(np.percentile(ages, 95)),
        "off_straight_p99_mrad": 1000 * float(np.percentile(off, 99)),
    }


def starved(follows: bool, chunks: int = 200, seed: int = 0) -> dict:
    """How the arm comes to rest at the end of ``chunks`` (each alone, without error) after which none comes; means over them.

    deceleration: of its limit, the greatest for 0.05 s of any joint; overshoot: the furthest beyond the last action.
    """
    rng, dt = np.random.default_rng(seed), 1 / SETPOINTS_HZ
    hard, beyond, later = [], [], []
    for first in rng.integers(0, 10_000, chunks):
        executor, guard = ChunkExecutor(RATE_HZ), SafetyFilter(SafetyLimits())
        actions = path(np.arange(first, first + H + 1))
        executor.start(actions[0], 0.0)
        guard.reset(actions[0])
        executor.accept(Chunk(actions[1:], 1, 1, 0, follows=follows))
        outs, rests = [], 0
        while rests < SETPOINTS_HZ / 2:
            point = executor.tick(len(outs) * dt)
            rests += not point.playing
            outs.append(guard.step(point.position, point.velocity, dt))
        last = slice(round((H - 2) * SETPOINTS_HZ / RATE_HZ), None)
        speed = np.abs([out.velocity[:6] for out in outs[last]])
        along = np.sign(actions[-1] - actions[-2])
        hard.append((speed[:-5] - speed[5:]).max() / (5 * dt) / SafetyLimits().a_max[0])
        beyond.append(max(((out.setpoint - actions[-1]) * along)[:6].max() for out in outs[last]))
        later.append((len(outs) - rests - 1) * dt - H / RATE_HZ)
    return {
        "deceleration_of_limit": float(np.mean(hard)),
        "deceleration_of_limit_p95": float(np.percentile(hard, 95)),
        "overshoot_mrad": 1000 * float(np.mean(beyond)),
        "later_ms": 1000 * float(np.mean(later)),
    }


def interpolations(seconds: float) -> tuple[list[dict], str]:
    """Straight lines beside cubic curves, async, h = 10, not slowed: the rows and their table."""
    rows, table = [], []
    for rate_hz in RATES_HZ:
        for latency_s in LATENCIES_S:
            pair = [play("async", 10, latency_s, seconds, rate_hz=rate_hz, kind=kind) for kind in (ChunkExecutor, CubicExecutor)]
            for name, found in zip(("linear", "cubic"), pair):
                rows.append({"interpolation": name, "rate_hz": rate_hz, "latency_s": latency_s, **found})
            table.append((
                f"{rate_hz:.0f} Hz", f"{1000 * latency_s:.0f} ms", f"{pair[0]['rests_s_per_minute']:.1f}",
                *(f"{found['jerk_seams']:.0f} / {found['jerk_elsewhere']:.0f}" for found in pair),
                *(f"{found['off_straight_p99_mrad']:.1f}" for found in pair),
            ))  # fmt: skip
    return rows, markdown(CURVES_HEAD, table)


def setpoint_rates(seconds: float) -> tuple[list[dict], str]:
    """Setpoints 30, 50, 100 and 200 times a second, async, h = 10, 90 ms, and what the emulated arm makes of them: rows and table."""
    rows, table = [], []
    for rate_hz in RATES_HZ:
        for setpoints_hz in SETPOINT_RATES_HZ:
            arm = VirtualArm(pose=path(np.array([0]))[0]).enable()
            found = play("async", 10, 0.09, seconds, follows=True, rate_hz=rate_hz, setpoints_hz=setpoints_hz, arm=arm)
            rows.append({"rate_hz": rate_hz, "setpoints_hz": setpoints_hz, **found})
            table.append((
                f"{rate_hz:.0f} Hz", f"{setpoints_hz:.0f}", f"{found['off_straight_p99_mrad']:.1f}",
                f"{found['arm_off_p50_mrad']:.1f} / {found['arm_off_p99_mrad']:.1f}", f"{found['arm_jerk']:.0f}",
            ))  # fmt: skip
    return rows, markdown(SETPOINTS_HEAD, table)


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0, help="virtual seconds of each loop (300)")
    parser.add_argument("--out", type=Path, default=Path("docs/results/seams"))
    options = parser.parse_args(arguments)
    load = os.getloadavg()[0]
    rows, table = [], []
    for latency_s in LATENCIES_S:
        for name, mode, horizon in ARMS:
            found = play(mode, horizon, latency_s, options.seconds, follows=mode == "async" and "not slowed" not in name)
            rows.append({"loop": name, "latency_s": latency_s, **found})
            table.append((
                name, f"{1000 * latency_s:.0f} ms", found["calls"],
                f"{found['rests_s_per_minute']:.1f} + {found['slowed_s_per_minute']:.1f}",
                f"{found['pause_p50_ticks']:.0f} / {found['pause_p99_ticks']:.0f}",
                f"{found['jerk_seams']:.0f} / {found['jerk_elsewhere']:.0f}", f"{found['chunk_age_p95_ms']:.0f}",
            ))  # fmt: skip
    rates, streams = setpoint_rates(options.seconds / 5)
    curves, comparison = interpolations(options.seconds / 5)
    ends = {name: starved(follows) for name, follows in (("not slowed", False), ("slowed", True))}
    end = markdown(END_HEAD, [
        (name, f"{found['deceleration_of_limit']:.2f} / {found['deceleration_of_limit_p95']:.2f}",
         f"{found['overshoot_mrad']:.1f}", f"{found['later_ms']:.0f}")
        for name, found in ends.items()
    ])  # fmt: skip
    head = circumstances("seams", load, seconds=options.seconds, seed=0)
    about = (
        f"{__doc__.strip().split(chr(10) * 2)[2]}\n\n{in_words(head)}, {options.seconds:g} virtual seconds a row, seed 0. A tick is 10 ms. "
        "Chunk age: from the look to the end of an action's control step. No setpoint asked for more than the acceleration limit: at most "
        f"{max(row['largest_acceleration_of_limit'] for row in rows):.2f} of it."
    )
    tables = (
        f"{markdown(HEAD, table)}\n\n{end}\n\n## Straight lines or cubic curves\n\n{CURVES}\n\n{comparison}\n\n"
        f"## Setpoints a second\n\n{STREAMS}\n\n{streams}"
    )
    raw = {"rows": rows, "ends": ends, "interpolation": curves, "setpoint_rates": rates}
    leave(options.out, "Rests and seams", about, tables, {**head, **raw})
    return 0


if __name__ == "__main__":
    sys.exit(main())
