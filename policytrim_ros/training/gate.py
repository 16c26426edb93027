"""The gate before the robot: a checkpoint plays in the simulated twin as this machine would play it, and the manifest remembers.

    policytrim gate models/mine --task tape_box

The same executor, the same replanner and the controller's limits as on the robot, with the latency of inference measured on
this machine. A task is passed when the controller would not have held the arm in any episode and at least ``min_success`` of them
succeed. On a real robot inference refuses a checkpoint that has not passed for its task (launch argument ``gate``).
"""

from __future__ import annotations

import platform
import time

import numpy as np
import torch

from policytrim_ros.core.config import ConfigError
from policytrim_ros.core.replanning import MODES
from policytrim_ros.policies import checkpoint
from policytrim_ros.policies.policy import ChunkPolicy, blank
from policytrim_ros.training import evaluate
from policytrim_ros.training.recipe import ENVIRONMENT, Evaluation, Pictures, commit

GATE_SEED = 700_000
"""First scene of every task: neither training nor selection nor evidence draws it."""

PREDICTIONS = 60
ROBOT_SIZE = 424, 240
NOT_PASSED = 3


def pass_through(
    directory,
    tasks=(),
    *,
    episodes: int = 20,
    mode: str = "async",
    latency_s: float | None = None,
    min_success: float = 0.5,
    bench: evaluate.Bench = evaluate.Bench(),
    progress: bool = True,
) -> dict[str, dict]:
    """Plays ``tasks`` (none: all of the checkpoint) and writes what came of it into the manifest; what is known of each task.

    ``latency_s``: None: measured here, 99th percentile. Raises what `evaluate.evaluate` raises; ConfigError for an unknown task.
    """
    policy, manifest = checkpoint.load(directory)
    contract = policy.contract
    if unknown := [task for task in tasks if task not in contract.tasks]:
        raise ConfigError(f"{directory} was not made for {unknown[0]}, but for {', '.join(contract.tasks)}")
    latency_s = measured_latency(policy) if latency_s is None else latency_s
    found = dict(manifest.get("gate") or {})
    for task in tasks or contract.tasks:
        row = Evaluation(task, "standard", episodes, contract.execution_horizon, mode, round(latency_s, 4))
        report = evaluate.evaluate(directory, row, bench, progress=progress)
        found[task] = judged(report, min_success)
    checkpoint.annotate(directory, gate=found)
    return found


def judged(report: dict, min_success: float) -> dict:
    """One task's entry, from its report."""
    held = [episode["held"] for episode in report["episodes_list"] if episode["held"]]
    reasons = []
    if held:
        reasons.append(f"the controller would have held the arm in {len(held)} of {report['n']} episodes: {held[0]}")
    if report["success_rate"] < min_success:
        reasons.append(f"success in {report['successes']} of {report['n']} episodes, at least {min_success:.0%} are wanted")
    names = ("n", "successes", "success_interval", "steps_success", "calls_success", "seconds_success", "stalled_success")
    names += ("horizon", "mode", "latency_s", "first_seed")
    facts = {name: report[name] for name in names}
    where = {"machine": platform.node(), "when": int(time.time()), "commit": commit(), "torch": torch.__version__}
    return {"passed": not reasons, "reason": "; ".join(reasons), "held": len(held), "min_success": min_success, **facts, **where}


def measured_latency(policy: ChunkPolicy, predictions: int = PREDICTIONS) -> float:
    """Seconds of one prediction on this machine, 99th percentile, pictures of the robot's size."""
    seen, taken = blank(policy.contract, ROBOT_SIZE), []
    for _ in range(predictions):
        began = time.perf_counter()
        policy.predict(seen, seeds=[0])
        taken.append(time.perf_counter() - began)
    return float(np.percentile(taken[predictions // 6 :], 99))


# -- command line ---------------------------------------------------------------------------------------------------


def add_arguments(parser) -> None:
    """``policytrim gate``."""
    parser.add_argument("checkpoint", help="directory of the checkpoint; its manifest gets the result")
    parser.add_argument("--task", nargs="+", default=[], help="tasks to try (default: all that it was made for)")
    parser.add_argument("--episodes", type=int, default=20, choices=range(1, 1001), metavar="N", help="of each task (20)")
    parser.add_argument("--mode", default="async", choices=MODES, help="as the robot will run it (async)")
    parser.add_argument("--latency", type=float, metavar="S", help="seconds of one inference (default: measured here, p99)")
    parser.add_argument("--min-success", type=float, default=0.5, metavar="SHARE", help="least share of successes (0.5)")
    parser.add_argument("--environment", default=ENVIRONMENT, help="factory of the twin, module:name")
    parser.add_argument(
        "--lanes", type=int, default=10, choices=range(1, 257), metavar="N", help="environments of a process (10)"
    )
    parser.add_argument("--processes", type=int, default=1, choices=range(1, 65), metavar="N", help="processes (1)")


def main(args) -> int:
    """0: passed; 3: not; 1 after one sentence about what went wrong."""
    torch.set_num_threads(1)
    pictures = Pictures(camera_width=ROBOT_SIZE[0], camera_height=ROBOT_SIZE[1])
    try:
        bench = evaluate.Bench(
            args.environment, pictures=pictures, lanes=args.lanes, processes=args.processes, first_seed=GATE_SEED
        )
        options = dict(episodes=args.episodes, mode=args.mode, latency_s=args.latency, min_success=args.min_success, bench=bench)
        found = pass_through(args.checkpoint, args.task, **options)
    except (ConfigError, evaluate.EvaluationError, checkpoint.CheckpointError) as error:
        print(f"gate: {error}")
        return 1
    tried = {task: found[task] for task in args.task or found}
    for task, entry in tried.items():
        low, high = entry["success_interval"]
        print(
            f"gate: {task}: {'passed' if entry['passed'] else 'NOT PASSED'}: {entry['successes']} of {entry['n']} succeed "
            f"[{low:.2f}, {high:.2f}], held in {entry['held']}, {entry['mode']}, latency {1000 * entry['latency_s']:.0f} ms, "
            f"h = {entry['horizon']}" + (f": {entry['reason']}" if entry["reason"] else "")
        )
    if not any(entry["held"] for entry in tried.values()):
        n = min(entry["n"] for entry in tried.values())
        print(f"gate: none held in {n} episodes says that fewer than {1 - 0.05 ** (1 / n):.0%} would be (95 %), in scenes like these")
    return 0 if all(entry["passed"] for entry in tried.values()) else NOT_PASSED
