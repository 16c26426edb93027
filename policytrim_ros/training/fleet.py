"""Workers that play rollouts: in this process, in several of this machine, or as Ray actors on several machines.

    fleet = Fleet(Grounds(...), policy, exploration, processes=2)
    rollouts = fleet.collect(groups, limits={"tape_box": 300})     # with the policy's present weights
    fleet.close()

Groups are dealt out in turn and what is played does not depend on how fast a worker is, so that an iteration is a function
of weights and groups for a given number of workers. What passes between them is pickled, by value: a worker is a child of
this process, or an actor of a cluster that is trusted like this machine. Nothing from a file or a checkpoint is unpickled.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import traceback
from dataclasses import dataclass
from typing import Mapping, Sequence

import torch
from tokenizers import Tokenizer

from policytrim_ros.children import end_with_parent
from policytrim_ros.core.config import ConfigError
from policytrim_ros.core.replanning import SYNC
from policytrim_ros.policies.policy import ChunkPolicy
from policytrim_ros.training.adapters import merged_weights
from policytrim_ros.training.groups import Group, Rollouts, collect
from policytrim_ros.training.recipe import factory
from policytrim_ros.training.rollout import Conditions
from policytrim_ros.training.run_state import TrainingError

BACKENDS = ("cpu", "gpu")


@dataclass(frozen=True)
class Grounds:
    """Where and how rollouts are played: factory of the environment (module:name), setting, size of the rendered pictures (width,
    height) in px, environments of every worker, whether they are single ones (cpu) or one vector environment (gpu), and
    the executor's mode with the latency of a look (s)."""

    environment: str
    setting: str = "standard"
    image_size: tuple[int, int] = (212, 120)
    lanes: int = 8
    backend: str = "cpu"
    mode: str = SYNC
    latency_s: float = 0.0


class Worker:
    """A policy and the environments it plays in; those are built when a task is first asked for, and kept."""

    def __init__(self, grounds: Grounds, policy: ChunkPolicy, exploration):
        self.grounds, self.policy, self.exploration = grounds, policy, exploration
        self._envs: dict[str, object] = {}

    def collect(self, groups: Sequence[Group], limits: Mapping[str, int]) -> Rollouts:
        """Plays ``groups`` task by task; ``limits``: task -> control steps after which a rollout is given up (0: never)."""
        contract = self.policy.contract
        cameras = tuple(camera.name for camera in contract.cameras)
        parts, order = [], []
        for task in dict.fromkeys(group.task for group in groups):
            mine = [i for i, group in enumerate(groups) if group.task == task]
            parts.append(
                collect(
                    self._environments(task, cameras),
                    self.policy,
                    self.exploration,
                    [groups[i] for i in mine],
                    cameras=cameras,
                    object_slots=contract.object_slots,
                    conditions=Conditions(
                        self.grounds.mode,
                        self.grounds.latency_s,
                        rebuild=self.grounds.backend == "cpu",
                        limit=limits.get(task, 0),
                        guarded=contract.moves_joints,
                        cut=False,
                    ),
                )
            )
            order += mine
        return Rollouts.cat(parts).ordered(order)

    def _environments(self, task: str, cameras):
        if task not in self._envs:
            grounds = self.grounds
            options = dict(setting=grounds.setting, cameras=cameras, image_size=grounds.image_size)
            try:
                if grounds.backend == "gpu":
                    make = factory(f"{grounds.environment.partition(':')[0]}:make_vec")
                    self._envs[task] = make(task, grounds.lanes, backend="gpu", **options)
                else:
                    make = factory(grounds.environment)
                    self._envs[task] = [make(task, **options) for _ in range(grounds.lanes)]
            except (ValueError, RuntimeError) as error:
                raise TrainingError(f"the environment for {task} {grounds.setting} cannot be made: {error}") from error
        return self._envs[task]


class Fleet:
    """Workers that all play with the weights that ``policy`` has when `collect` is called.

    ``processes`` = 1 plays here. ``ray`` = "local" or the address of a cluster: the workers are Ray actors, on whatever
    machines the cluster has. TrainingError says what a worker that fails has said.
    """

    def __init__(self, grounds: Grounds, policy: ChunkPolicy, exploration, processes: int = 1, ray: str = ""):
        self.policy, self._workers = policy, []
        if processes == 1 and not ray:
            self._own = Worker(grounds, policy, exploration)
            return
        self._own = None
        kind, blob = (_Actor if ray else _Process), _packed(grounds, policy, exploration)
        if ray:
            _connect(ray)
        self._workers = [kind(blob) for _ in range(processes)]

    def collect(self, groups: Sequence[Group], limits: Mapping[str, int] | None = None) -> Rollouts:
        """What comes of ``groups``, in their order."""
        limits = limits or {}
        if self._own:
            return self._own.collect(groups, limits)
        weights = {name: tensor.detach().cpu() for name, tensor in merged_weights(self.policy).items()}
        count = min(len(self._workers), len(groups))
        dealt = [list(range(first, len(groups), count)) for first in range(count)]
        job = pickle.dumps(weights)
        for worker, mine in zip(self._workers, dealt):
            worker.begin(job, [groups[i] for i in mine], limits)
        parts = [worker.end() for worker, _ in zip(self._workers, dealt)]
        order = [i for mine in dealt for i in mine]
        return Rollouts.cat(parts).ordered(order).to(self.policy.device)

    def close(self) -> None:
        """Ends the workers."""
        for worker in self._workers:
            worker.close()
        self._workers = []


def _packed(grounds, policy, exploration) -> bytes:
    """What a worker elsewhere is built from."""
    return pickle.dumps((grounds, type(policy), policy.config, policy.contract, policy.tokenizer.to_str(), exploration))


def _unpacked(blob: bytes) -> Worker:
    torch.set_num_threads(1)
    grounds, kind, config, contract, tokenizer, exploration = pickle.loads(blob)
    policy = kind(config, contract, Tokenizer.from_str(tokenizer)).eval().requires_grad_(False)
    return Worker(grounds, policy, exploration)


def _work(worker: Worker, weights: bytes, groups, limits) -> Rollouts:
    worker.policy.load_state_dict(pickle.loads(weights))
    return worker.collect(groups, limits)


# -- processes of this machine --------------------------------------------------------------------------------------


class _Process:
    """A worker in a process of its own, at the other end of a pipe."""

    def __init__(self, blob: bytes):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(blob, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def begin(self, weights: bytes, groups, limits) -> None:
        try:
            self._pipe.send_bytes(pickle.dumps((weights, groups, dict(limits))))
        except OSError:
            raise self._gone() from None

    def end(self) -> Rollouts:
        try:
            answer = pickle.loads(self._pipe.recv_bytes())
        except (EOFError, OSError):
            raise self._gone() from None
        if isinstance(answer, str):
            raise TrainingError(f"a rollout process failed: {answer}")
        return answer

    def _gone(self) -> TrainingError:
        self._process.join(5)
        return TrainingError(
            f"a rollout process ended with exit code {self._process.exitcode}; the same command resumes (with fewer --processes "
            "or --lanes if memory ran out)"
        )

    def close(self) -> None:
        self._pipe.close()
        self._process.terminate()
        self._process.join()


def _serve(blob: bytes, pipe) -> None:
    end_with_parent(signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what a Ctrl-C means
    worker = _unpacked(blob)
    while True:
        try:
            weights, groups, limits = pickle.loads(pipe.recv_bytes())
        except (EOFError, OSError):  # the parent is gone
            return
        try:
            answer = _work(worker, weights, groups, limits)
        except (ConfigError, TrainingError, RuntimeError, ValueError, OSError) as error:
            answer = f"{type(error).__name__}: {error}"
        except Exception:  # the boundary of the process: the parent raises it again
            answer = traceback.format_exc()
        pipe.send_bytes(pickle.dumps(answer))


# -- several machines -----------------------------------------------------------------------------------------------


def _connect(address: str) -> None:
    try:
        import ray
    except ImportError as error:
        raise ConfigError("rollouts on several machines need Ray: pip install 'policytrim_ros[ray]'") from error
    if not ray.is_initialized():
        here = {"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}}  # environments that are found here are found there
        local = dict(address="local", runtime_env=here)
        try:
            ray.init(**(local if address == "local" else dict(address=address)), log_to_driver=False, include_dashboard=False)
        except ConnectionError as error:
            raise ConfigError(
                f"--ray {address}: no cluster answers there ({error}); start one with `ray start --head`"
            ) from error


class _Actor:
    """A worker as a Ray actor with one CPU."""

    def __init__(self, blob: bytes):
        import ray

        self._ray = ray
        self._actor = ray.remote(num_cpus=1)(_Remote).remote(blob)

    def begin(self, weights: bytes, groups, limits) -> None:
        self._answer = self._actor.work.remote(weights, groups, dict(limits))

    def end(self) -> Rollouts:
        try:
            return pickle.loads(self._ray.get(self._answer))
        except self._ray.exceptions.RayError as error:
            raise TrainingError(f"a Ray worker failed: {' '.join(str(error).split())}; the same command resumes") from error

    def close(self) -> None:
        self._ray.kill(self._actor)


class _Remote:
    """What runs inside the actor."""

    def __init__(self, blob: bytes):
        self._worker = _unpacked(blob)

    def work(self, weights: bytes, groups, limits) -> bytes:
        return pickle.dumps(_work(self._worker, weights, groups, limits))
