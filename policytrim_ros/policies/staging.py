"""A checkpoint made ready to take over from a running one: whole, fitting, warm, and saying what it said when it was made.

    policy, weights_sha256 = stage("models/mine", robot)       # StagingError: one sentence, nothing has changed

A server's address (ws://...) in place of the directory is another machine's policy (remote.py); there the server has made the comparison.
Every step is a reason to refuse: memory, files and hashes, contract, coverage of the weights, warm-up, golden observations (finite,
within the limits of the arm, close to what the manifest's own policy predicted).
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from policytrim_ros.children import end_with_parent, free_memory_mb, hurry, step_aside
from policytrim_ros.core.commitment import Commitment
from policytrim_ros.core.contract import Contract, implausible, is_remote, mismatches
from policytrim_ros.core.safety import SafetyFilter, SafetyLimits
from policytrim_ros.policies import checkpoint
from policytrim_ros.policies.golden import FAR
from policytrim_ros.policies.policy import ChunkPolicy, blank, repeated
from policytrim_ros.policies.remote import RemoteError, RemotePolicy

WARM_UPS = MEASURED = 3
NICENESS = 10
"""Of the child, and of the thread that loads: not the lowest, or a busy machine would never let them come to an end."""

PATIENCE_S = 30.0
"""A child that is not done after so long, on a machine with no time to spare, gets the share of any other process."""

AUTO, CPU, DEVICE = "auto", "cpu", "device"
PLACES = AUTO, CPU, DEVICE
"""Where a checkpoint is made ready: on the policy's device, on the CPU, or there only where both do not fit on the device."""

OVERHEAD = 2.0
"""Memory that loading takes, in sizes of the weights' file: the network and, for a moment, the tensors on their way into it."""


LATE = 1.05
"""A live latency up to so many times the gated one is that latency measured again."""


class StagingError(ValueError):
    """A checkpoint cannot take over; one sentence: which, what is wrong, what to do."""


def tried(directory, robot: Contract, *, device: str = "cpu", stage_on: str = DEVICE, say=lambda text: None, **needs: bool) -> tuple:
    """`stage`, for a process that must not be disturbed: every check is made in a child at low priority first.

    A checkpoint that eats all memory or brings a library down takes the child along and nothing else; its words are the refusal.
    Then memory is looked at once more, and a thread at low priority loads it here.
    """
    device = device if is_remote(directory) else place(directory, device, stage_on)
    order = {"directory": str(directory), "robot": robot.to_dict(), "device": device, **needs}
    child = subprocess.Popen(
        [sys.executable, "-m", __spec__.name, json.dumps(order)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: (end_with_parent(signal.SIGKILL), step_aside(NICENESS)),
    )
    try:
        told, complained = child.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        hurry(child.pid)
        told, complained = child.communicate()
    *said, last = told.splitlines() or [""]
    for line in said:
        say(line)
    if child.returncode == 1:
        raise StagingError(last)
    if child.returncode != 0:
        guess = ", for want of memory perhaps" if child.returncode == -signal.SIGKILL else ""
        words = (complained.strip().splitlines() or ["no words"])[-1]
        raise StagingError(f"{directory}: the process that tried it ended with {child.returncode}{guess}: {words}")
    if not is_remote(directory):  # the child has given back what it had; others may have taken it
        _room(directory, device, say)
    policy, weights = aside(lambda: _loaded(directory, robot, device))
    if weights != last:
        raise StagingError(f"{directory}: other weights lie there than those that were tried; ask again")
    return policy, weights


def stage(
    directory,
    robot: Contract,
    *,
    device: str = "cpu",
    stage_on: str = DEVICE,
    golden_needed: bool = False,
    gate_needed: bool = False,
    mode: str = "",
    say=lambda text: None,
) -> tuple:
    """(policy, SHA-256 of its weights), ready. ``golden_needed``: refuse a checkpoint without golden observations;
    ``gate_needed``: and one that has not passed the simulated twin for the robot's tasks, on this machine, with the robot's h, in ``mode``.

    ``stage_on``: where, see PLACES; `settle` brings the policy to ``device`` when it is to speak. ``say`` gets a sentence about
    memory and about the comparison. Raises StagingError or CheckpointError.
    """
    if is_remote(directory):
        policy, weights = _loaded(directory, robot, device)
        if gate_needed and (refusal := not_passed(directory, policy.metadata, robot.tasks, mode=mode, horizon=robot.execution_horizon)):
            raise StagingError(refusal)
        say(f"{directory} answers; its weights are {weights[:12]}")
        return policy, weights
    device = place(directory, device, stage_on)
    _room(directory, device, say)
    policy, weights = _loaded(directory, robot, device)
    manifest = checkpoint.read_manifest(directory)
    if gate_needed and (refusal := not_passed(directory, manifest, robot.tasks, mode=mode, horizon=robot.execution_horizon)):
        raise StagingError(refusal)
    golden = checkpoint.golden_of(directory, manifest)
    if golden is None and golden_needed:
        raise StagingError(
            f"{directory}: has no golden observations, so it cannot be compared while the arm moves; stop the policy first, or "
            f"record them with `policytrim checkpoint golden {directory}`"
        )
    if golden is not None:
        say(f"{directory}: {compared(directory, policy, golden)}")
    return policy, weights


def place(directory, device: str, stage_on: str) -> str:
    """The device on which ``directory`` is made ready for ``device``."""
    if stage_on == AUTO:
        return device if device == "cpu" or needed_mb(directory) <= free_mb(device) else "cpu"
    return "cpu" if stage_on == CPU else device


def _room(directory, device: str, say) -> None:
    """Says what loading needs and what is free; StagingError when it does not fit."""
    need, free = needed_mb(directory), free_mb(device)
    say(f"{directory} needs about {need:.0f} MB of memory on {device}, {free:.0f} MB are free")
    if need > free:
        raise StagingError(
            f"{directory}: needs about {need:.0f} MB of memory on {device}, only {free:.0f} MB are free; "
            "end something, or keep fewer earlier generations (keep_generations)"
        )


def lies_on(policy) -> str | None:
    """The device of ``policy``; None of one on another machine."""
    return str(policy.device) if isinstance(policy, ChunkPolicy) else None


def settle(policy, device: str, others) -> bool:
    """Brings ``policy`` to ``device`` where it lies elsewhere, after ``others``, which do not speak, have gone to the CPU; whether it did.

    Nobody may be predicting with any of them.
    """
    if lies_on(policy) in (None, device) or torch.device(device) == policy.device:
        return False
    for other in others:
        if other is not policy and lies_on(other) not in (None, "cpu"):
            other.to("cpu")
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    policy.to(device)
    warm_up(policy)
    return True


def aside(work):
    """What ``work()`` answers or raises, from a thread at low priority (NICENESS, where the system has that for threads)."""
    threads = torch.get_num_threads()

    def lower():
        torch.set_num_threads(threads)  # each thread's own setting
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), max(NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))

    with ThreadPoolExecutor(1, "loader", initializer=lower) as pool:
        return pool.submit(work).result()


def _loaded(directory, robot: Contract, device: str) -> tuple:
    if is_remote(directory):
        try:
            policy = RemotePolicy(str(directory))
            if misfits := mismatches(policy.contract, robot):
                raise StagingError(f"{directory}: does not fit this robot: {'; '.join(misfits)}")
            warm_up(policy)
        except RemoteError as error:
            raise StagingError(str(error)) from error
        return policy, policy.weights_sha256
    policy, manifest = checkpoint.load(directory, robot=robot, device=device)
    warm_up(policy)
    return policy, manifest["files"][checkpoint.WEIGHTS]


def compared(directory, policy: ChunkPolicy, golden) -> str:
    """What the comparison with the golden observations found, in words; StagingError when the policy must not speak."""
    actions, far = golden.compare(policy)
    if doubt := implausible(actions):
        raise StagingError(f"{directory}: its chunk for a golden observation is nonsense: {doubt}")
    if far > FAR:
        raise StagingError(
            f"{directory}: predicts other actions for its golden observations than when it was made (by up to {far:.3g} rad or m): "
            "this machine computes it differently; check versions and device, or record them anew after an evaluation here"
        )
    guard = SafetyFilter(SafetyLimits())
    for target in actions.reshape(-1, actions.shape[-1]).astype(np.float64):
        if held := guard.judge(target)[1]:
            raise StagingError(f"{directory}: its chunk for a golden observation would be held: {held}")
    return f"{len(actions)} golden observations agree within {far:.1g} rad or m"


def not_passed(directory, manifest, tasks, *, mode: str = "", horizon: int = 0) -> str:
    """Why a robot does not take the checkpoint for ``tasks`` (none: all of its own), in one sentence; '' when it does.

    The gate is ``policytrim gate``, whose result is in the manifest. What passed is this machine in ``mode`` ('': any) with ``horizon``
    (0: the checkpoint's own); a server's machine (`is_remote`) is not asked: there the latency is watched (`slower_than_gated`).
    """
    known = manifest.get("gate") or {}
    for task in tasks or manifest["tasks"]:
        why, again = "", f"policytrim gate {directory} --task {task}" + (f" --mode {mode}" if mode else "")
        if task not in known:
            why = "was not tried in the simulated twin"
        elif not known[task].get("passed"):
            why = f"failed in the simulated twin ({known[task]['reason']})"
        elif not is_remote(directory) and (there := known[task].get("machine")) != (here := platform.node()):
            why = f"passed the simulated twin with the latency of machine '{there}', this is '{here}'"
        elif mode and known[task].get("mode") != mode:
            why = f"passed the simulated twin in mode {known[task].get('mode')}, it is to run in mode {mode}"
        elif (tried := known[task].get("horizon")) != (wanted := horizon or manifest["contract"]["execution_horizon"]):
            why = f"passed the simulated twin with h = {tried}, it is to run with h = {wanted}"
            again = "" if horizon else again  # the gate plays the checkpoint's own h
        if why:
            advice = f"run `{again}`" if again else f"leave horizon at 0 for the checkpoint's own, or give it h = {horizon} first"
            return f"{directory}: {task} {why}; {advice}, or set gate:=false at your own risk"
    return ""


def record_of(directory, policy) -> dict:
    """The manifest of a policy that was made ready, which holds its record of the gate; {} when it lies there no more."""
    try:
        return policy.metadata if is_remote(directory) else checkpoint.read_manifest(directory)
    except checkpoint.CheckpointError:
        return {}


def slower_than_gated(manifest, tasks, p99_s: float) -> str:
    """A warning when inference takes longer (``p99_s``, measured live) than the simulated twin was played with; '' when it does not."""
    for task, entry in (manifest.get("gate") or {}).items():
        if (not tasks or task in tasks) and entry.get("passed") and p99_s > LATE * entry["latency_s"]:
            return (
                f"inference takes {1000 * p99_s:.0f} ms (p99), the simulated twin of {task} was passed with {1000 * entry['latency_s']:.0f} ms: "
                "take load from this machine, or run `policytrim gate` again under it"
            )
    return ""


def warm_up(policy: ChunkPolicy) -> None:
    """The first predictions are slow; they are made for blank pictures."""
    seen = blank(policy.contract)
    for _ in range(WARM_UPS):
        policy.predict(seen, seeds=[0])


def latencies(policy, robot: Contract, *, steps: int | None = None, guided: bool = False, samples: int = 1) -> tuple[float, ...]:
    """Seconds of MEASURED predictions as ``robot`` will ask for them: pictures of its size, with a plan to go on from when ``guided``,
    ``samples`` rows. RemoteError as `predict`."""
    camera = robot.cameras[0] if robot.cameras else None
    seen = blank(policy.contract, (camera.width, camera.height) if camera else None)
    plan = Commitment(np.zeros((policy.contract.prediction_horizon, 7)), 1) if guided and policy.guided else None
    seen = repeated(seen, samples, plan)
    took = []
    for seed in range(MEASURED + 1):
        began = time.monotonic()
        policy.predict(seen, seeds=[seed + row for row in range(samples)], steps=steps)
        took.append(time.monotonic() - began)
    return tuple(took[1:])  # the first of a new size of pictures is slow


def needed_mb(directory) -> float:
    """Memory (MB) that loading ``directory`` takes, from the size of its weights. CheckpointError when there are none."""
    path = Path(directory) / checkpoint.WEIGHTS
    try:
        return OVERHEAD * path.stat().st_size / 1e6
    except OSError:
        checkpoint.read_manifest(directory)  # which says more exactly what is missing
        raise checkpoint.CheckpointError(f"{path}: is missing; take an intact copy") from None


def free_mb(device: str) -> float:
    """Free memory (MB) of the machine, or of the GPU that ``device`` names."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0] / 1e6
    return free_memory_mb()


def main(argument: str) -> int:
    """The child of `tried`: says what `stage` says; the last line is the SHA-256 of the weights, or why they are refused."""
    order = json.loads(argument)
    torch.set_num_threads(1)
    robot = Contract.from_dict(order.pop("robot"))
    try:
        print(stage(order.pop("directory"), robot, **order, say=print)[1])
        return 0
    except (StagingError, checkpoint.CheckpointError) as error:
        print(error)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
