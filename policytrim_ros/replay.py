"""Replay of a recording through the real executor; what another horizon or another checkpoint would have said.

    recording --> Track --> chunks, in the control steps in which they were played --> ChunkExecutor, SafetyFilter --> recorded setpoint?
                        --> Replanner with another h (--what-if)                      --> where it looks again, which action plays
                        --> observations as the policy saw them (--checkpoint)       --> how far its chunks differ

Everything is open loop: the observations stay those that the recorded policy brought about, whatever another would have done.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Callable

import numpy as np

from policytrim_ros.core.config import ConfigError
from policytrim_ros.core.contract import implausible
from policytrim_ros.core.executor import ChunkExecutor, ChunkRefused
from policytrim_ros.core.replanning import MODES, SYNC
from policytrim_ros.core.safety import SafetyFilter, SafetyLimits
from policytrim_ros.core.supervisor import SupervisorConfig
from policytrim_ros.core.types import JOINTS
from policytrim_ros.nodes.messages import BadMessage
from policytrim_ros.nodes.recording import RecordingError
from policytrim_ros.track import Said, Track

SUBSTEPS = 5
"""Setpoints between two control steps: the controller's usual 100 Hz."""

SAME = 1e-6
BATCH = 16


# -- replay -----------------------------------------------------------------------------------------------------------


@dataclass
class Replayed:
    """The recorded chunks, played again. A row for each recorded control step; NaN where the executor had no action for it.

    targets: (S, 7) where the executor wanted to be at its end; limited: what the controller's limits made of that; setpoint: what was
    recorded then; rad, m. ``other``: steps that played another chunk than recorded; ``refused``: chunks that could not be played.
    """

    steps: np.ndarray
    targets: np.ndarray
    limited: np.ndarray
    setpoint: np.ndarray
    other: int = 0
    refused: int = 0
    stalls: int = 0
    stall_s: float = 0.0

    @property
    def lost(self) -> int:
        """Recorded steps for which there was no action."""
        return int(np.isnan(self.targets[:, 0]).sum())

    def errors(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(7,) max and (7,) mean of |targets or limited - setpoint|, rad and m."""
        error = np.abs(getattr(self, name) - self.setpoint)
        error = error[~np.isnan(error[:, 0])]
        return (error.max(0), error.mean(0)) if len(error) else (np.full(7, np.nan),) * 2


def replay(track: Track) -> Replayed:
    """Plays the recorded chunks in virtual time: a chunk arrives before the first control step that was played of it."""
    config = track.parameters("controller", SupervisorConfig)
    executor, filter_ = ChunkExecutor(config.control_rate_hz, config.speed_scale), SafetyFilter(track.parameters("controller", SafetyLimits))
    arrivals, period, now, before = _arrivals(track), executor.period_s, 0.0, None
    found = Replayed(np.array([step.number for step in track.steps]), *np.full((3, len(track.steps), 7), np.nan))
    for index, step in enumerate(track.steps):
        if before is None or step.run != before.run:
            start = track.setpoint_at(step.at)
            executor.start(start, now)
            filter_.reset(start)
            executor.next_step = step.number
        elif step.rested_s > 0:
            _tick(executor, filter_, now, step.rested_s, max(1, round(step.rested_s / period * SUBSTEPS)))
            now += step.rested_s
        for said in arrivals.get(index, ()):
            try:
                allowed, _ = filter_.cut(said.chunk, executor.next_step)
                executor.accept(replace(allowed, follows=False))  # it is in time here: none comes within a step
            except ChunkRefused:
                found.refused += 1
        executor.advance(now)
        if executor.playing and executor.next_step == step.number + 1:
            found.targets[index] = executor.target
            found.other += (executor.generation, executor.chunk_id) != (step.generation, step.chunk_id)
            _tick(executor, filter_, now, period, SUBSTEPS)
            found.limited[index] = filter_.setpoint
        else:  # its chunk is not in the recording
            executor.start(executor.target, now)
            executor.next_step = step.number + 1
        found.setpoint[index] = track.setpoint_at(step.at + period)
        now += period
        before = step
    found.stalls, found.stall_s = executor.stalls, executor.stall_s
    return found


def _tick(executor: ChunkExecutor, filter_: SafetyFilter, now: float, seconds: float, ticks: int) -> None:
    """Setpoints during ``seconds`` from ``now`` on; the end itself belongs to the next control step."""
    for tick in range(1, ticks + 1):
        path = executor.tick(now + seconds * min(tick / ticks, 1 - 1e-9))
        filter_.step(path.position, path.velocity, seconds / ticks)


def _arrivals(track: Track) -> dict[int, list[Said]]:
    """Index of a control step -> the chunks that arrive before it begins."""
    played, arrivals = {}, {}
    for index, step in enumerate(track.steps):
        played.setdefault((step.generation, step.chunk_id), index)
    times = [step.at for step in track.steps]
    for said in track.chunks:
        at = played.get((said.chunk.generation, said.chunk.chunk_id), int(np.searchsorted(times, said.sent)))
        arrivals.setdefault(at, []).append(said)
    return arrivals


# -- another horizon ---------------------------------------------------------------------------------------------------


@dataclass
class WhatIf:
    """Another execution horizon, open loop.

    looks: control steps at which the policy would have looked; actions: (S, 7) that would have been executed, NaN where nothing is
    known; same: of the S steps, those with the recorded action; short: looks at which the recorded chunks held fewer than h actions.
    """

    horizon: int
    mode: str
    latency_s: float
    looks: list[int] = field(default_factory=list)
    actions: np.ndarray | None = None
    same: int = 0
    short: int = 0
    max_rad: float = 0.0
    mean_rad: float = 0.0
    max_m: float = 0.0


def what_if(track: Track, replayed: Replayed, found: WhatIf, says: Callable[[int], np.ndarray]) -> WhatIf:
    """Fills ``found``: `training.rollout.Player`, as in evaluation, looks again by ``found``'s horizon, mode and latency.

    ``says(index)``: (n, 7) actions from control step ``track.steps[index]`` on, for who looks as that step begins.
    """
    from policytrim_ros.training.rollout import Conditions, Player, Start

    found.actions = np.full_like(replayed.targets, np.nan)
    offset = 0
    for run in track.runs:
        conditions = Conditions(mode=found.mode, latency_s=found.latency_s)
        player = Player(Start(0, found.horizon), track.setpoint_at(run[0].at), conditions)
        while player.steps < len(run) and player.control_steps < 100 * len(run):
            index = offset + player.steps
            if player.begin():
                actions = says(index)
                found.looks.append(track.steps[index].number)
                found.short += len(actions) < min(found.horizon, offset + len(run) - index)
                player.hear(actions)
            target = player.target
            player.passed()
            if offset + player.steps > index:
                found.actions[index] = target
        offset += len(run)
    difference = np.abs(found.actions - replayed.targets)
    difference = difference[~np.isnan(difference).any(1)]
    if len(difference):
        far = difference[:, :6].max(1)
        found.same = int((difference.max(1) < SAME).sum())
        found.max_rad, found.mean_rad, found.max_m = float(far.max()), float(far.mean()), float(difference[:, 6].max())
    return found


def recorded_chunks(track: Track, replayed: Replayed) -> Callable[[int], np.ndarray]:
    """``says`` for `what_if`: the newest recorded chunk that had been looked for by then, from that step on."""

    def says(index: int) -> np.ndarray:
        step = track.steps[index]
        near = [
            said.chunk
            for said in track.chunks
            if said.chunk.generation == step.generation
            and said.chunk.first <= step.number < said.chunk.first + len(said.chunk.positions)
        ]
        if near:
            newest = max(near, key=lambda chunk: (chunk.first, chunk.chunk_id))
            return newest.positions[step.number - newest.first :]
        return replayed.targets[index : index + 1]

    return says


# -- another checkpoint ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """One chunk beside what another checkpoint says to the same observation: over the first ``actions`` of both, rad and m."""

    generation: int
    chunk_id: int
    first: int
    actions: int
    max_rad: float
    mean_rad: float
    max_m: float
    mean_m: float


class Other:
    """A checkpoint that looks at what the recorded policy saw. CheckpointError or RecordingError when it cannot."""

    def __init__(self, directory, track: Track):
        from policytrim_ros.policies import checkpoint

        self.directory, self._track = str(directory), track
        self.policy, self.manifest = checkpoint.load(directory)
        contract = self.policy.contract
        if contract.object_slots or not contract.moves_joints:
            raise RecordingError(f"{directory}: needs what no robot records (true poses of objects); give a policy that sees")
        settings = track.recording.parameters("inference")
        self.seed, self._steps = settings.get("seed"), settings.get("denoising_steps") or None
        self._cameras = [camera.name for camera in contract.cameras]
        self._instruction = contract.instructions[0] if len(contract.instructions) == 1 else ""
        self.same_weights = self.manifest["files"].get("model.safetensors") == track.status.get("weights_sha256")

    def chunks(self, moments: list[tuple[float, float, int]]) -> np.ndarray:
        """(N, H, 7) absolute actions for N moments: (stamp of the picture, time of the states, seed)."""
        from policytrim_ros.policies.policy import Observation

        predicted = []
        for begin in range(0, len(moments), BATCH):
            batch = moments[begin : begin + BATCH]
            pictures = [self._track.pictures_at(stamp, self._cameras) for stamp, _, _ in batch]
            observation = Observation(
                {name: np.stack([row[name] for row in pictures]) for name in self._cameras},
                np.stack([self._track.state_at(at) for _, at, _ in batch]),
                [self._told(at) for _, at, _ in batch],
            )
            predicted.append(self.policy.predict(observation, seeds=[seed for _, _, seed in batch], steps=self._steps))
        return np.concatenate(predicted)

    def differences(self) -> list[Difference]:
        """A row for every recorded chunk."""
        track = self._track
        # the n-th chunk of inference was drawn with seed + n - 1
        moments = [(said.stamp, track.seen_at(said), (self.seed or 0) + said.chunk.chunk_id - 1) for said in track.chunks]
        found = []
        for said, actions in zip(track.chunks, self.chunks(moments) if moments else ()):
            count = min(track.horizon, len(said.chunk.positions), len(actions))
            error = np.abs(actions[:count] - said.chunk.positions[:count])
            far, grip = error[:, :6].max(1), error[:, 6]
            numbers = (float(value) for value in (far.max(), far.mean(), grip.max(), grip.mean()))
            found.append(Difference(said.chunk.generation, said.chunk.chunk_id, said.chunk.first, count, *numbers))
        return found

    def says(self, index: int) -> np.ndarray:
        """For `what_if`: its chunk from control step ``track.steps[index]`` on."""
        at = self._track.steps[index].at
        actions = self.chunks([(at - self._track.picture_age_s(), at, (self.seed or 0) + index)])[0]
        if doubt := implausible(actions):
            raise RecordingError(f"{self.directory}: its chunk would not be sent: {doubt}")
        return actions

    def _told(self, at: float) -> str:
        told = self._track.instruction_at(at) or self._instruction
        if not told:
            raise RecordingError(f"{self._track.recording.path}: holds no instruction, and {self.directory} knows several")
        return told


# -- command line -------------------------------------------------------------------------------------------------------


def add_arguments(parser) -> None:
    """``policytrim replay``."""
    parser.add_argument("recording", metavar="FILE", help="a recording (.mcap) of a trial or a run")
    parser.add_argument(
        "--what-if",
        metavar="h=N",
        help="another execution horizon: where the policy would have looked again and which actions would have been executed",
    )
    parser.add_argument("--mode", choices=MODES, help="with --what-if: when to look again (default: as recorded)")
    parser.add_argument(
        "--latency-ms", type=float, help="with --what-if: from look to chunk (default: the recorded 99th percentile)"
    )
    parser.add_argument("--checkpoint", metavar="DIR", help="what another policy would have said to the recorded observations")
    parser.add_argument("--plot", metavar="FILE.svg", help="targets beside the recorded setpoints, joint by joint")
    parser.add_argument("--json", metavar="FILE", help="all numbers")
    parser.add_argument("--rerun", metavar="FILE.rrd", help="pictures and joints for Rerun (optional: rerun-sdk, extra 'rerun')")
    parser.epilog = "\n".join(
        [
            "examples:",
            "  policytrim replay runs/s1/trial-0007.mcap                       the recorded chunks through the executor",
            "  policytrim replay runs/s1/trial-0007.mcap --what-if h=5         looking again after five actions",
            "  policytrim replay runs/s1/trial-0007.mcap --checkpoint models/mine --plot difference.svg",
            "",
            "What-if and checkpoint are open loop: the observations stay those that the recorded policy saw; a policy that had acted",
            "otherwise would have seen something else. They tell how far two policies agree, not which one succeeds.",
        ]
    )


def main(options) -> int:
    """0, or 1 after one sentence about what went wrong."""
    refusals = (RecordingError, BadMessage, ConfigError)
    if options.checkpoint:
        from policytrim_ros.policies.checkpoint import CheckpointError  # torch, and only here

        refusals += (CheckpointError,)
    try:
        report(options)
    except refusals as error:
        print(f"replay: {error}")
        return 1
    return 0


def report(options) -> None:
    """Prints and writes what ``options`` ask for."""
    horizon = _horizon(options.what_if)
    rerun = _rerun() if options.rerun else None
    track = Track(options.recording)
    replayed = replay(track)
    numbers = {"recording": str(options.recording), **_summary(track, replayed)}
    print(_words(track, replayed, numbers))
    other = Other(options.checkpoint, track) if options.checkpoint else None
    if other:
        rows = other.differences()
        numbers["checkpoint"] = {
            "directory": other.directory,
            "seed_known": other.seed is not None,
            "chunks": [asdict(r) for r in rows],
        }
        print(_difference_words(other, rows, track))
    found = None
    if horizon:
        found = _what_if(options, horizon, track, replayed, other)
        numbers["what_if"] = {name: value for name, value in asdict(found).items() if name != "actions"}
        print(_what_if_words(found, track, other))
    if options.json:
        Path(options.json).write_text(json.dumps(numbers, indent=1) + "\n")
    if options.plot:
        plot(options.plot, track, replayed, found)
    if rerun:
        _log_to_rerun(rerun, options.rerun, track, replayed)


def _horizon(text: str | None) -> int:
    """N of ``h=N``, 0 for none."""
    if text is None:
        return 0
    name, _, number = text.partition("=")
    if name != "h" or not number.isdigit() or int(number) < 1:
        raise ConfigError(f"--what-if {text}: expected h=N with N of at least 1, such as h=5")
    return int(number)


def _what_if(options, horizon: int, track: Track, replayed: Replayed, other: Other | None) -> WhatIf:
    mode = options.mode or track.status.get("mode") or SYNC
    latency_ms = track.status.get("latency_ms_p99", 0.0) if options.latency_ms is None else options.latency_ms
    longest = other.policy.contract.prediction_horizon if other else track.horizon
    if horizon > longest:
        raise RecordingError(
            f"{track.recording.path}: h={horizon} cannot be answered: "
            + (
                f"{other.directory} predicts {longest} actions"
                if other
                else f"inference sends what is executed, here h={longest}; what it predicted beyond is not recorded. "
                "Give the policy with --checkpoint, which predicts again"
            )
        )
    says = other.says if other else recorded_chunks(track, replayed)
    return what_if(track, replayed, WhatIf(horizon, mode, latency_ms / 1000.0), says)


# -- words --------------------------------------------------------------------------------------------------------------


def _summary(track: Track, replayed: Replayed) -> dict:
    def table(name):
        top, mean = replayed.errors(name)
        return {joint: {"max": round(float(a), 6), "mean": round(float(b), 6)} for joint, a, b in zip(JOINTS, top, mean)}

    generations = [said.chunk.generation for said in track.chunks]
    return {
        "trial": track.recording.trial,
        "mode": track.status.get("mode", ""),
        "horizon": track.horizon,
        "checkpoint": track.status.get("checkpoint", ""),
        "generations": {str(number): generations.count(number) for number in sorted(set(generations))},
        "chunks": len(track.chunks),
        "calls": track.calls,
        "S": len(track.steps),
        "runs": len(track.runs),
        "lost": replayed.lost,
        "other_chunk": replayed.other,
        "refused": replayed.refused,
        "stalls": {"recorded": track.stalls, "replayed": replayed.stalls},
        "stall_s": {"recorded": round(track.stall_s, 3), "replayed": round(replayed.stall_s, 3)},
        "target_to_setpoint": table("targets"),
        "limited_to_setpoint": table("limited"),
    }


def _words(track: Track, replayed: Replayed, numbers: dict) -> str:
    trial = numbers["trial"]
    number = trial.get("trial") or (trial.get("card") or {}).get("number")
    generations = ", ".join(f"generation {name}: {count}" for name, count in numbers["generations"].items())
    lines = [
        f"recording {numbers['recording']}" + (f" (session {trial.get('session')}, trial {number})" if trial else ""),
        f"policy {numbers['checkpoint'] or 'unknown'}, mode {numbers['mode'] or 'unknown'}, h={numbers['horizon']}",
        f"chunks={numbers['chunks']} ({generations or 'none'}) calls={'unknown' if track.calls is None else track.calls} "
        f"S={numbers['S']} runs={numbers['runs']}",
        f"stalls={replayed.stalls} (recorded {track.stalls}) stall_s={replayed.stall_s:.2f} (recorded {track.stall_s:.2f})",
        f"replayed {numbers['S'] - replayed.lost} of {numbers['S']} control steps, {replayed.other} with another chunk than recorded, "
        f"{replayed.refused} chunks refused",
        "",
        "| joint | target to setpoint: max | mean | through the limits: max | mean | unit |",
        "| --- " * 6 + "|",
    ]
    for joint in JOINTS:
        cells = [numbers[name][joint][key] for name in ("target_to_setpoint", "limited_to_setpoint") for key in ("max", "mean")]
        lines.append(
            f"| {joint} | " + " | ".join(f"{cell:.4f}" for cell in cells) + f" | {'m' if joint == 'gripper' else 'rad'} |"
        )
    return "\n".join(lines)


def _difference_words(other: Other, rows: list[Difference], track: Track) -> str:
    lines = [
        "",
        f"checkpoint {other.directory}, open loop"
        + (", the weights that were recorded" if other.same_weights else "")
        + ("" if other.seed is not None else "; the seed of the recorded policy is unknown, so its noise differs, too"),
        "| generation | chunk | first | actions | max rad | mean rad | max m | mean m |",
        "| --- " * 8 + "|",
    ]
    for row in rows:
        lines.append(
            f"| {row.generation} | {row.chunk_id} | {row.first} | {row.actions} | {row.max_rad:.4f} | {row.mean_rad:.4f} "
            f"| {row.max_m:.4f} | {row.mean_m:.4f} |"
        )
    if rows:
        mean, top = np.mean([row.mean_rad for row in rows]), max(row.max_rad for row in rows)
        lines.append(
            f"{len(rows)} chunks: mean {mean:.4f} rad, max {top:.4f} rad; gripper mean {np.mean([row.mean_m for row in rows]):.4f} m, "
            f"max {max(row.max_m for row in rows):.4f} m"
        )
    return "\n".join(lines)


def _what_if_words(found: WhatIf, track: Track, other: Other | None) -> str:
    known = int((~np.isnan(found.actions[:, 0])).sum())
    whose = f"chunks of {other.directory}" if other else "recorded chunks"
    lines = [
        "",
        f"what if h={found.horizon} ({found.mode}, {found.latency_s * 1000:.0f} ms from look to chunk; {whose}, open loop)",
        f"it would have looked {len(found.looks)} times instead of {len(track.chunks)}, at control steps "
        + ", ".join(map(str, found.looks[:20]))
        + (f" and {len(found.looks) - 20} more" if len(found.looks) > 20 else ""),
        f"same action in {found.same} of {known} control steps; difference over all: mean {found.mean_rad:.4f} rad, "
        f"max {found.max_rad:.4f} rad, gripper max {found.max_m:.4f} m",
    ]
    if found.short:
        lines.append(f"at {found.short} looks the newest recorded chunk held fewer than {found.horizon} further actions")
    return "\n".join(lines)


# -- pictures ------------------------------------------------------------------------------------------------------------


def plot(path, track: Track, replayed: Replayed, found: WhatIf | None = None) -> None:
    """Writes an SVG: for every joint the replayed targets, the recorded setpoints, and what another h would have executed."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG  # half a second of import, and only here
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 14.0), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots(len(JOINTS), 1, sharex=True)
    steps = replayed.steps
    for joint, axis in enumerate(axes):
        axis.plot(steps, replayed.setpoint[:, joint], color="0.6", linewidth=2.5, label="recorded setpoint")
        axis.plot(steps, replayed.targets[:, joint], linewidth=1.0, label="replayed target")
        if found is not None:
            axis.plot(steps, found.actions[:, joint], linewidth=1.0, linestyle="--", label=f"what if h={found.horizon}")
        axis.set_ylabel(f"{JOINTS[joint]} [{'m' if joint == 6 else 'rad'}]")
        axis.grid(alpha=0.3)
    for said in track.chunks:
        axes[0].axvline(said.chunk.first, color="0.85", linewidth=0.5, zorder=0)
    axes[0].legend(fontsize="small")
    axes[0].set_title(f"{Path(track.recording.path).name}: thin lines are the beginnings of chunks", fontsize="small")
    axes[-1].set_xlabel("control step")
    figure.savefig(path, format="svg")


def _rerun():
    try:
        import rerun
    except ImportError:
        raise RecordingError(
            "--rerun needs rerun-sdk (extra 'rerun'): `pip install rerun-sdk`, or look at the recording in Foxglove"
        ) from None
    return rerun


def _log_to_rerun(rerun, path, track: Track, replayed: Replayed) -> None:
    """Pictures as they were compressed, and joint by joint the recorded setpoint and the replayed target, against time."""
    with rerun.RecordingStream("policytrim") as stream:  # the file is whole when the block ends
        stream.save(path)
        for camera, pictures in track.pictures.items():
            for stamp, data in pictures:
                stream.set_time("time", timestamp=stamp)
                stream.log(f"cameras/{camera}", rerun.EncodedImage(contents=bytes(data), media_type="image/jpeg"))
        for step, target, setpoint in zip(track.steps, replayed.targets, replayed.setpoint):
            stream.set_time("time", timestamp=step.at)
            for joint, wanted, was in zip(JOINTS, target, setpoint):
                stream.log(f"joints/{joint}/setpoint", rerun.Scalars(float(was)))
                if not np.isnan(wanted):
                    stream.log(f"joints/{joint}/target", rerun.Scalars(float(wanted)))
