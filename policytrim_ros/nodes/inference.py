"""Inference node: looks, predicts a chunk, hands the first h actions to the controller.

    images, joint_states, controller/setpoint, scene/state --> Observation --> Policy.predict --> chunk (JointTrajectory)
    controller/consumed --> when to look again

ROS callbacks only keep the newest of everything; one worker thread looks and predicts. Modes:

    sync   the arm plays h actions, rests, and the policy looks again at the arm at rest (as in the paper)
    async  the policy looks while the old chunk still plays, early enough (by the measured latency) that the new one is
           there before the old one runs out, or a little earlier, when the pictures are youngest (core/arrivals.py);
           alignment is by the control step counted by the controller
    rtc    async, and the new chunk goes on from the old one: a flow policy is guided to what is played meanwhile
           (policies/guidance.py); another policy is played as async, which log and status say

Setting the parameter ``checkpoint`` exchanges the policy, also while it moves the arm: then a child process of low priority tries
the new one (policies/staging.py), and another thread loads it beside the one that speaks; it speaks from the next chunk
boundary on, as the next generation (core/generations.py). When it cannot be used the old one stays, and ``news`` in
inference/status says why. While a new generation is on probation, a hold or fault that a policy can cause, or a chunk
that is cut, brings the one before back; the service inference/roll_back does so at any time. A process that is started again in the same running system
begins with the last checkpoint that had proved itself (last_good.py).
"""

from __future__ import annotations

import collections
import json
import sys
import threading
import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rcl_interfaces.msg import SetParametersResult
from rclpy.node import Node
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Int64MultiArray, String
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from policytrim_ros.core.arrivals import Arrivals
from policytrim_ros.core.config import Config, setting
from policytrim_ros.core.contract import implausible, robot_contract
from policytrim_ros.core.generations import Generation, Generations, NothingToReturnTo
from policytrim_ros.core.horizon import HorizonGuard, SceneChange, disagreement, spread, tracking_error
from policytrim_ros.core.latency import Handover, Latency, still_takes
from policytrim_ros.core.replanning import ASYNC, MODES, RTC, SYNC, Replanner
from policytrim_ros.core.safety import blames_policy
from policytrim_ros.core.types import CONTROL_RATE_HZ, CONTROL_RATES_HZ, Chunk
from policytrim_ros.nodes.last_good import Known, LastGood
from policytrim_ros.nodes.messages import (
    LATCHED,
    NEWEST,
    Consumed,
    Newest,
    chunk_to_message,
    positions_of,
    seconds_to_time,
    time_to_seconds,
)
from policytrim_ros.nodes.parameters import declare
from policytrim_ros.nodes.process import STEADY, run
from policytrim_ros.policies import staging
from policytrim_ros.policies.policy import Observation, repeated
from policytrim_ros.policies.remote import RemoteError, RemotePolicy


@dataclass(frozen=True)
class InferenceConfig(Config):
    """Parameters of the inference node."""

    checkpoint: str = setting("", "directory of the checkpoint (config.json, model.safetensors, manifest.json)", read_only=False)
    cameras: list = setting(["front", "wrist"], "names of the robot's cameras")
    width: int = setting(424, "width of the robot's images", low=32, high=1920, unit="px")
    height: int = setting(240, "height of the robot's images", low=32, high=1080, unit="px")
    horizon: int = setting(
        0,
        "execution horizon h: actions of a chunk that are executed; 0: the checkpoint's own; may change while the arm rests",
        low=0,
        high=100,
        read_only=False,
    )
    control_rate_hz: float = setting(
        CONTROL_RATE_HZ,
        "actions a second that the controller plays; a checkpoint made for another rate is refused",
        low=CONTROL_RATES_HZ[0],
        high=CONTROL_RATES_HZ[1],
        unit="Hz",
    )
    mode: str = setting("sync", "when to look again", choices=MODES)
    tail_limit_rad: float = setting(
        0.0,
        "halve h when a new chunk differs from the tail of the one before by more than this, until they agree again (0: never)",
        low=0.0,
        high=3.0,
        unit="rad",
    )
    tracking_limit_rad: float = setting(
        0.0, "halve h when a joint is farther from its setpoint at a look (0: never)", low=0.0, high=3.0, unit="rad"
    )
    motion_limit: float = setting(
        0.0, "halve h when more of a picture changes than the arm explains, as a share of it (0: never)", low=0.0, high=1.0
    )
    spread_samples: int = setting(
        0, "samples of every look in one batch, by which spread_rad is known (0: one, and it is not); the first is played", low=0, high=64
    )
    spread_limit_rad: float = setting(
        0.0, "halve h when the samples differ by more at the last action that is executed (0: never)", low=0.0, high=3.0, unit="rad"
    )
    shortest_horizon: int = setting(2, "h is not cut below this", low=1, high=100)
    early_looks: float = setting(
        0.1, "look by up to this share of h earlier than needed, when the pictures are youngest (async, rtc; 0: never)", low=0.0, high=1.0
    )
    least_slack_s: float = setting(0.05, "less slack than this is a warning (async, rtc)", low=-1.0, high=5.0, unit="s")
    denoising_steps: int = setting(0, "Euler steps of the flow sampler; 0: the checkpoint's own", low=0, high=50)
    task: str = setting("", "the task that the checkpoint must have been made for; empty: any")
    instruction: str = setting(
        "", "what the policy is told; empty: the scene's instruction, or the only one that the checkpoint knows"
    )
    threads: int = setting(1, "torch threads", low=1, high=32)
    seed: int = setting(0, "seed of the sampler's noise", low=0, high=2**31 - 1)
    device: str = setting("cpu", "torch device of the policy: cpu, cuda, cuda:1")
    stage_on: str = setting(
        staging.AUTO,
        "where a new checkpoint is made ready: on `device`, on the cpu (it moves when it speaks), or auto: on the cpu where both do not fit",
        choices=staging.PLACES,
    )
    gate: bool = setting(False, "refuse a checkpoint that has not passed the simulated twin for the task (`policytrim gate`)")
    keep_generations: int = setting(1, "earlier policies that stay in memory, to come back at once", low=0, high=8)
    probation_chunks: int = setting(
        50,
        "chunks during which a hold that a policy can cause, or a chunk that is cut, brings the one before back (0: never)",
        low=0,
        high=100_000,
    )
    last_good: str = setting(
        "", "file with the checkpoint that a process started again begins with; empty: always with `checkpoint`"
    )
    stale_after_s: float = setting(0.5, "an older image or joint state is not used", low=0.05, high=5.0, unit="s")


WATCH_S = 0.05
"""How often slack is looked at: a warning must come before the arm slows."""

STATUS_S = 0.1
"""How often inference/status is published while the policy runs."""


class Inference(Node):
    """See the module. Raises on a checkpoint that is missing, damaged or does not fit the robot."""

    def __init__(self):
        super().__init__("inference")
        self.fatal = None
        self.config = declare(self, InferenceConfig)
        self._calls = self._chunk_id = 0
        self._newest: dict[str, tuple[float, float, np.ndarray]] = {}  # camera -> (taken, monotonic s; stamp, ROS time; image)
        self._consumed = None
        self._stepped_at = 0.0  # when the newest control step was heard of
        self._controller_state = ""
        self._instruction = self.config.instruction
        self._changed = threading.Condition()  # guards everything the callbacks write
        self._saying = threading.Lock()  # taken before `_changed`, never the other way round
        self._stirred = False  # something has been written since the worker looked
        self._running, self._stop = False, threading.Event()
        self._slack, self._late = None, False  # s, now; whether it is less than the least
        self._scores = {}  # of the latest look, see HorizonGuard
        self._scene = None  # what has changed since the look before; None: nobody asks
        self._thinks_since = None  # when the running prediction began, monotonic s
        self._ages = collections.deque(maxlen=200), collections.deque(maxlen=200)  # s, of the oldest picture: at a look, at its chunk
        self._handover = Handover()
        self._said_at = 0.0  # when the status was published
        self._before = None  # the chunk before: generation, first control step, all H actions
        self._wanted = self._complaint = ""  # checkpoint that is being loaded; why something is not as it should be
        self._loading_news, self._status = "", None
        self._news, self._exchanges = "", 0  # the latest of the generations, in words; exchanges that have come to an end
        self._arrivals = Arrivals(self.config.cameras)
        self._generations = Generations(self.config.keep_generations, self.config.probation_chunks)
        self._replanner = Replanner(self.config.mode, 1, self.config.control_rate_hz)
        self._last_good = LastGood(self.config.last_good)
        news = self._stage_first()
        self._switch(news)
        for camera in self.config.cameras:
            self.create_subscription(Image, f"{camera}/color/image_raw", self._on_image(camera), NEWEST)

        self._chunks = self.create_publisher(JointTrajectory, "chunk", 10)
        self._heartbeat = self.create_publisher(String, "heartbeat", 10)
        self._status = self.create_publisher(String, "inference/status", LATCHED)
        self._diagnostics = self.create_publisher(DiagnosticArray, "diagnostics", 10)
        self._states = Newest(self, JointState, {"measured": "joint_states", "setpoint": "controller/setpoint"})
        self.create_subscription(Int64MultiArray, "controller/consumed", self._on_consumed, 10)
        self.create_subscription(String, "controller/state", self._on_controller, LATCHED)
        self.create_subscription(String, "scene/state", self._on_scene, LATCHED)
        self.create_service(SetBool, "inference/run", self._on_run)
        self.create_service(Trigger, "inference/roll_back", self._on_roll_back)
        self.create_timer(1.0, self._publish_diagnostics, clock=STEADY)
        self.create_timer(WATCH_S, self._watch, clock=STEADY)
        self.add_on_set_parameters_callback(self._on_parameters)
        self._publish_status()
        self._worker = self._abandoned = None
        self._put_to_work()

    # ---- generations -----------------------------------------------------------------------------------------------

    def _stage(self, directory: str, load, **how) -> None:
        """Loads the checkpoint in ``directory``, which then waits for `_switch`; raises, with nothing changed, when it does not fit."""
        torch.set_num_threads(self.config.threads)  # each thread's own setting
        began = time.monotonic()
        robot = robot_contract(
            {name: (self.config.width, self.config.height) for name in self.config.cameras},
            control_rate_hz=self.config.control_rate_hz,
            execution_horizon=self.config.horizon,
            tasks=[self.config.task] if self.config.task else [],
        )
        say = self.get_logger().info
        how |= dict(stage_on=self.config.stage_on, gate_needed=self.config.gate, mode=self.config.mode)
        policy, weights = load(directory, robot, device=self.config.device, say=self._say_loading, **how)
        took = staging.latencies(
            policy,
            robot,
            steps=self.config.denoising_steps or None,
            guided=self.config.mode == RTC,
            samples=self._samples(policy),
        )
        with self._changed:
            self._generations.stage(directory, weights, policy, Latency(took))
        say(
            f"loaded checkpoint={directory} family={policy.family} load_s={time.monotonic() - began:.1f} "
            f"latency_ms={1000 * max(took):.0f}"
        )

    def _say_loading(self, text: str) -> None:
        """What staging says is in the log, and in the status until the exchange is over."""
        self.get_logger().info(text)
        self._loading_news = text
        if self._status is not None:
            self._publish_status()

    def _stage_first(self) -> str:
        """Loads the checkpoint to begin with: the last good one of a process before, or the one of the parameter; news of the former."""
        known = self._last_good.read()
        if known is not None:
            try:
                self._stage(known.checkpoint, staging.stage)
                if self._generations.waiting[1] == known.weights_sha256:
                    return known.news
                why = "other weights lie there now"
            except Exception as error:  # whatever it is, there is another one to begin with
                why = str(error)
            self.get_logger().error(f"{known.checkpoint}, the last good one, is not used: {why}")
        self._stage(self.config.checkpoint, staging.stage)
        return (
            f"started again with {self.config.checkpoint}; {known.checkpoint}, the last good one, is not used: {why}"
            if known
            else ""
        )

    def _remember(self) -> None:
        """For a process that is started when this one has died; `_saying` is held."""
        with self._changed:
            good, tried = self._generations.good, self._generations.tried(self._wanted)
        try:
            self._last_good.write(Known(good.checkpoint, good.weights_sha256, tried))
        except OSError as error:
            self.get_logger().error(f"{self.config.last_good} cannot be written: {error.strerror}", throttle_duration_sec=60.0)

    def _switch(self, news: str = "") -> None:
        """At a chunk boundary: what waits becomes the generation that speaks."""
        with self._changed:
            generation = self._generations.switch()
        if generation is not None:
            self._speaks(generation, news)
            self._exchanges += 1

    def _speaks(self, generation: Generation, news: str = "") -> None:
        contract = generation.policy.contract
        with self._changed:
            horizon = self._replanner.horizon = self.config.horizon or contract.execution_horizon
            unguided = self.config.mode == RTC and not generation.policy.guided
            mode = self._replanner.mode = ASYNC if unguided else self.config.mode
            self._guard = HorizonGuard(horizon, self.config.shortest_horizon, self._limits(generation.policy))
            self._scene = SceneChange() if self.config.motion_limit else None
            self._handover, self._news = Handover(), news
            self._passed = staging.record_of(generation.checkpoint, generation.policy) if self.config.gate else {}
            if not self._instruction and len(contract.instructions) == 1:
                self._instruction = contract.instructions[0]
        if horizon != contract.execution_horizon:
            self.get_logger().warning(
                f"horizon={horizon} trained_for={contract.execution_horizon}: success was not measured at this horizon"
            )
        if unguided:
            family = generation.policy.family
            self.get_logger().warning(f"mode={mode}: a policy of family '{family}' does not go on from a plan, as mode=rtc asks")
        self.get_logger().info(
            f"speaks checkpoint={generation.checkpoint} generation={generation.number} H={contract.prediction_horizon} "
            f"h={horizon} mode={mode}"
        )

    def _limits(self, policy) -> dict[str, float]:
        """What cuts h: score -> limit."""
        config = self.config
        return dict(
            tail=config.tail_limit_rad,
            tracking=config.tracking_limit_rad,
            motion=config.motion_limit,
            spread=config.spread_limit_rad if self._samples(policy) > 1 else 0.0,
        )

    def _samples(self, policy) -> int:
        """Rows of a batch; a policy on another machine takes one observation at a time."""
        return 1 if policy.family == RemotePolicy.family else max(1, self.config.spread_samples)

    def _on_parameters(self, parameters) -> SetParametersResult:
        for parameter in parameters:
            if parameter.name == "horizon" and (refusal := self._change_horizon(parameter.value)):
                return SetParametersResult(successful=False, reason=refusal)
            if parameter.name == "checkpoint":
                with self._changed:
                    if self._wanted:
                        reason = f"{self._wanted} is being loaded; ask again in a moment"
                        return SetParametersResult(successful=False, reason=reason)
                    self._wanted, self._complaint, self._news = parameter.value, "", ""
                threading.Thread(target=self._exchange, args=(parameter.value,), name="stager", daemon=True).start()
                self._publish_status()
        return SetParametersResult(successful=True)

    def _change_horizon(self, horizon: int) -> str:
        """Executes ``horizon`` actions of each chunk from now on; '' or why not."""
        longest = self._generations.current.policy.contract.prediction_horizon
        with self._changed:
            if self._running:
                return "h is changed while the arm rests: stop inference first"
            if horizon > longest:
                return f"horizon {horizon}: the policy predicts {longest} actions"
            self.config = replace(self.config, horizon=horizon)
        self._speaks(self._generations.current, self._news)
        self._publish_status()
        return ""

    def _exchange(self, directory: str) -> None:
        """The stager's work: when it is done the new checkpoint waits for the worker, or the old one stays and it is said why."""
        refusal = ""
        try:
            if self._running:
                self._stage(directory, staging.tried, golden_needed=True)
            else:
                self._stage(directory, staging.stage)
        except Exception as error:  # whatever it is, the running generation goes on
            refusal = f"{directory} is not used, {self._generations.current.checkpoint} stays: {error}"
            self.get_logger().error(refusal)
        with self._changed:
            self._wanted = self._loading_news = ""
            if refusal:
                self._news, self._exchanges = refusal, self._exchanges + 1
            self._stir()
        self._publish_status()

    def _on_roll_back(self, _request, response):
        try:
            with self._changed:
                generation = self._generations.roll_back()
        except NothingToReturnTo as error:
            response.success, response.message = False, f"{error}; set the parameter checkpoint instead"
            return response
        self._returns(generation, "rolled back by the operator")
        response.success, response.message = True, f"generation {generation.number}: {generation.checkpoint}"
        return response

    def _trouble(self, why: str, number: int | None = None) -> None:
        """A new generation on probation is taken back; the arm moves on with the one before, or holds until an operator says go.
        ``number``: whose doing it was, where that is known: another generation's is not held against the one that speaks now."""
        with self._changed:
            culprit = self._generations.current
            generation = self._generations.trouble() if number in (None, culprit.number) else None
        if generation is not None:
            news = f"{culprit.checkpoint} was taken back on probation: {why}"
            self.get_logger().error(news)
            self._returns(generation, news)

    def _returns(self, generation: Generation, news: str) -> None:
        """An earlier generation speaks again, and looks at once: the plan of the other one plays on meanwhile."""
        self._speaks(generation, news)
        with self._changed:
            self._hurry = True
            if self._thinks_since is not None and threading.current_thread() is not self._worker:
                self._put_to_work()  # nobody waits for a prediction that is not played
            self._stir()
        self._publish_status()

    def _stir(self) -> None:
        """Something that the worker has to know has been written; `_changed` is held."""
        self._stirred = True
        self._changed.notify_all()

    # ---- what arrives ----------------------------------------------------------------------------------------------

    def _on_consumed(self, message: Int64MultiArray) -> None:
        consumed = Consumed.from_message(message)
        with self._changed:
            if self._consumed is None or consumed.next_step != self._consumed.next_step:
                self._stepped_at = time.monotonic()
            self._consumed = consumed
            sooner = self._replanner.plays((consumed.generation, consumed.chunk_id), consumed.next_step, consumed.queued)
            self._generations.follow(consumed.generation)  # the controller refuses what an earlier process has used up
            self._stir()
        if sooner and consumed.playing:  # at rest it was a hold that ended the plan
            self._trouble("its chunk was cut, since it leads beyond the limits of the arm", consumed.generation)

    def _on_controller(self, message: String) -> None:
        with self._changed:
            before, self._controller_state = self._controller_state, message.data
            self._stir()
        if before.startswith("moving") and blames_policy(message.data.partition(": ")[2]):
            self._trouble(message.data)

    def _on_image(self, camera: str):
        def callback(message: Image):
            if message.encoding != "rgb8" or (message.width, message.height) != (self.config.width, self.config.height):
                self.fatal = (
                    f"camera '{camera}' sends {message.width}x{message.height} {message.encoding}, this node was started for "
                    f"{self.config.width}x{self.config.height} rgb8; start camera and inference with the same size"
                )
                return
            image = np.frombuffer(message.data, np.uint8).reshape(message.height, message.width, 3)
            stamp, now = time_to_seconds(message.header.stamp), time.monotonic()
            age = time.time() - stamp
            with self._changed:  # by the monotonic clock from here on: a wall clock that is set must not make old pictures fresh
                self._newest[camera] = (now - max(0.0, age), stamp, image)
                self._arrivals.came(camera, now, age)
                self._stir()

        return callback

    def _on_scene(self, message: String) -> None:
        if not self.config.instruction:
            with self._changed:
                self._instruction = json.loads(message.data)["instruction"]

    def _on_run(self, request, response):
        with self._changed:
            if request.data and not self._running:
                if self._wanted:  # it is not tried as strictly as beside a moving arm
                    response.success, response.message = False, f"{self._wanted} is being loaded; ask again in a moment"
                    return response
                self._replanner.reset()
            self._running = bool(request.data)
            self._stir()
        self._publish_status()
        response.success, response.message = True, "running" if request.data else "stopped"
        return response

    # ---- the worker --------------------------------------------------------------------------------------------------

    def _put_to_work(self) -> None:
        """Starts a worker; the one before ends with the prediction that it is at."""
        self._abandoned, self._thinks_since, self._hurry = self._worker, None, self._worker is not None
        self._worker = threading.Thread(target=self._work, name="policy", daemon=True)
        self._worker.start()

    @property
    def _at_work(self) -> bool:
        """Whether this thread is the worker."""
        return threading.current_thread() is self._worker

    def _work(self) -> None:
        torch.set_num_threads(self.config.threads)  # each thread's own setting
        try:
            while self._at_work and not self._stop.is_set():
                observed = self._wait_for_turn()
                if observed is not None:
                    self._infer(*observed)
        except Exception as error:  # without a worker nothing is predicted: the process must end and say why
            if self._at_work:
                self.fatal = f"prediction stopped: {type(error).__name__}: {error}"

    def _wait_for_turn(self):
        """Blocks until the policy should look; returns what it sees, or None to ask again."""
        with self._changed:
            self._changed.wait_for(lambda: self._stirred, timeout=0.1)
            self._stirred = False
            consumed = self._consumed
            if not self._running or consumed is None or not self._controller_state.startswith("moving"):
                self._replanner.reset()  # a new go begins with a new plan
                self._before = None
                rests, looks, self._hurry = True, False, False
            else:
                turn = self._replanner.turn(
                    consumed.next_step, consumed.queued, consumed.playing, self._expected(), time.monotonic()
                )
                rests, looks = False, turn or self._early(consumed) or (self._hurry and self._replanner.mode != SYNC)
        if self._generations.waiting and (rests or looks and self._takes_over(consumed)):
            self._switch()
            self._publish_status()
        if not looks:
            return None
        with self._changed:
            return self._observe(self._consumed)

    def _early(self, consumed: Consumed) -> bool:
        """Whether a look that is due soon is better made now, with pictures that are younger than they will be then."""
        now, replanner = time.monotonic(), self._replanner
        due = replanner.until_turn(consumed.next_step, self._expected(), now - self._stepped_at)
        may = consumed.playing and replanner.may_look(due, self.config.early_looks)
        return may and self._arrivals.best_now(self._seen_by_policy, now, due)

    @property
    def _seen_by_policy(self) -> list[str]:
        return [camera.name for camera in self._generations.current.policy.contract.cameras]

    def _takes_over(self, consumed: Consumed) -> bool:
        """Whether the generation that waits makes this look, or the one that speaks once more for a longer plan."""
        if self._replanner.mode == SYNC or not consumed.playing:
            return True
        waits = self._generations.waiting[-1]
        return self._handover.takes_over(self._replanner.slack(consumed.next_step, waits.planned))

    def _observe(self, consumed: Consumed):
        """(images, when the oldest was taken, state (14,), instruction, first control step, stamp, plan), or None while something is
        missing."""
        now, images = time.monotonic(), {}
        cameras = self._seen_by_policy
        for camera in cameras:
            taken, _, image = self._newest.get(camera, (None, None, None))
            if taken is None:
                return self._complain(f"no image of camera '{camera}' yet")
            if now - taken > self.config.stale_after_s:
                return self._complain(f"no image of camera '{camera}' for {now - taken:.1f} s")
            if self._replanner.predates(taken):
                return None  # the next one will do
            images[camera] = image
        measured, setpoint = self._states.take("measured"), self._states.take("setpoint")
        if measured is None or setpoint is None:
            return self._complain("no joint_states from the controller")
        if not self._instruction:
            return self._complain("no instruction: set the parameter or start a scene")
        self._complain("")
        state = np.concatenate([positions_of(measured), positions_of(setpoint)]).astype(np.float32)
        stamp = min((self._newest[camera][1] for camera in cameras), default=time.time())
        oldest = min((self._newest[camera][0] for camera in cameras), default=now)
        self._arrivals.looked(cameras)
        first = self._replanner.first(consumed.next_step, consumed.playing, time.monotonic() - self._stepped_at)
        self._hurry = False
        return images, oldest, state, self._instruction, first, stamp, self._plan(first, consumed.playing)

    def _plan(self, first: int, playing: bool):
        """In mode rtc what is left of the plan that plays for a chunk that begins at ``first``; else, and at rest, None. It may be the plan
        of the generation before: its last actions play until the first chunk of this one arrives."""
        if self._before is None:
            return None
        _, old_first, actions = self._before
        return self._replanner.remainder(actions, old_first, first, playing, self._planned())

    def _complain(self, text: str) -> None:
        if text and text != self._complaint:
            self.get_logger().warning(text)
        self._complaint = text

    def _infer(self, images, oldest, state, instruction, first, stamp, plan) -> None:
        generation = self._generations.current
        self._settle(generation)
        with self._changed:
            if not self._at_work or generation is not self._generations.current:
                return
            began = self._thinks_since = time.monotonic()
            self._ages[0].append(began - oldest)
        try:
            samples = self._predict(generation.policy, images, state, instruction, plan)
        except RemoteError as error:
            if self._at_work:
                self._complain(str(error))
                self._heartbeat.publish(String(data=f"{self.get_name()}: {error}"))  # why no chunk comes, for the controller
            return
        finally:
            with self._changed:
                if self._at_work:
                    self._thinks_since = None
        with self._changed:
            if not self._running or generation is not self._generations.current:  # stopped, or rolled back meanwhile
                return
        if doubt := implausible(samples[0]):
            self.get_logger().error(f"the policy's chunk is not sent: {doubt}")
            self._complain(f"the policy predicts nonsense: {doubt}")
            self._trouble(f"its chunk was not sent: {doubt}")
            return
        motion = self._scene.look(images, state) if self._scene else None
        with self._changed:
            if not self._running or generation is not self._generations.current:
                return
            now = time.monotonic()
            generation.latency.add(now - began)
            self._ages[1].append(now - oldest)
            self._calls += 1
            self._chunk_id += 1
            self._trust(generation.number, first, samples, tracking=tracking_error(state), motion=motion)
            trimmed = samples[0][: self._replanner.trim(len(samples[0]), self._expected())]
            chunk = Chunk(
                trimmed, generation.number, self._chunk_id, first, self.config.control_rate_hz, follows=self.config.mode != SYNC
            )
            self._replanner.sent(first, len(chunk.positions), now, (chunk.generation, chunk.chunk_id))
            if self._generations.said():
                self._news = f"generation {generation.number} has proved itself in {self.config.probation_chunks} chunks"
        self._chunks.publish(chunk_to_message(chunk, seconds_to_time(stamp)))
        self._publish_status()

    def _settle(self, generation: Generation) -> None:
        """A policy that was made ready on the CPU, or had to make room there, comes to the device before it looks."""
        if staging.lies_on(generation.policy) in (None, self.config.device):
            return
        if self._abandoned is not None:
            self._abandoned.join()  # it may still compute with one that has to go
        began, others = time.monotonic(), [other.policy for other in self._generations.previous]
        if staging.settle(generation.policy, self.config.device, others):
            self.get_logger().info(f"moved generation={generation.number} to={self.config.device} s={time.monotonic() - began:.2f}")

    def _trust(self, generation: int, first: int, samples: np.ndarray, **scores) -> None:
        """Compares the chunk with the one before, and its samples with each other, and sets how much of it is executed."""
        actions = samples[0]
        before, self._before = self._before, (generation, first, actions)
        same = before is not None and before[0] == generation
        scores["tail"] = disagreement(before[2], before[1], actions, first) if same else None
        scores["spread"] = spread(samples, self._replanner.trim(len(actions), self._expected()) - 1)
        was, cuts, self._scores = self._replanner.horizon, self._guard.cuts, scores
        now = self._replanner.horizon = self._guard.judge(**scores)
        if now != was:
            why = self._guard.because if self._guard.cuts > cuts else "calm again"
            self.get_logger().warning(f"h {was} -> {now} chunk={self._chunk_id} because={why}")

    def _predict(self, policy, images, state, instruction, plan) -> np.ndarray:
        """Chunks (k, H, 7) of absolute actions, of which the first is to be played."""
        rows = self._samples(policy)
        observation = Observation({name: image[None] for name, image in images.items()}, state[None], [instruction])
        seeds = [self.config.seed + self._chunk_id + 1_000_000 * row for row in range(rows)]
        return policy.predict(repeated(observation, rows, plan), seeds=seeds, steps=self.config.denoising_steps or None)

    # ---- reports ------------------------------------------------------------------------------------------------------

    def _planned(self) -> float:
        return self._generations.current.latency.planned

    def _expected(self) -> float:
        """What the next chunk takes (s), whoever makes it: while a generation waits, the slower of the two."""
        waiting = self._generations.waiting
        return max(self._planned(), waiting[-1].planned) if waiting else self._planned()

    def _watch(self) -> None:
        """Says slack as it is now, and warns before the arm slows."""
        now = time.monotonic()
        with self._changed:
            self._slack = self._slack_at(now)
            late, self._late = self._late, self._slack is not None and self._slack < self.config.least_slack_s
            due = self._running and now - self._said_at >= STATUS_S
        if self._late and not late:
            self.get_logger().warning(f"slack_ms={1000 * self._slack:.0f} chunk={self._chunk_id + 1}", throttle_duration_sec=1.0)
            self._publish_diagnostics()
        elif due:
            self._publish_status()

    def _slack_at(self, now: float) -> float | None:
        """Seconds for which the plan still plays when the chunk is there that is being predicted, or would be from now on; None where
        nothing is played or no chunk is to follow. Of a plan that has run out it is what it was last."""
        consumed = self._consumed
        if not self._running or self._replanner.mode == SYNC or consumed is None or not self._controller_state.startswith("moving"):
            return None
        if not consumed.playing:
            return self._slack
        period = 1.0 / self.config.control_rate_hz
        running = None if self._thinks_since is None else now - self._thinks_since
        rest = max(0.0, period - (now - self._stepped_at))  # of the action that plays
        return self._replanner.slack(consumed.next_step, still_takes(self._planned(), running, period)) + rest

    @property
    def _said(self) -> str:
        """What is not as it should be."""
        if self._complaint:
            return self._complaint
        if not self._late:
            took = self._generations.current.latency.p99
            return staging.slower_than_gated(self._passed, [self.config.task] if self.config.task else [], took)
        return f"{self._slack * 1000:.0f} ms of the plan are left when the next chunk comes: a longer h or a faster policy"

    def _measures(self) -> dict:
        """What status and diagnostics both tell, rounded; None: unknown."""

        def ms(seconds):
            return None if seconds is None else round(1000 * float(seconds), 1)

        def rounded(name):
            return None if self._scores.get(name) is None else round(self._scores[name], 4)

        latency, (looks, chunks) = self._generations.current.latency, (list(ages) for ages in self._ages)
        return dict(
            latency_ms_p50=ms(latency.percentile(50)),
            latency_ms_p99=ms(latency.p99),
            slack_ms=ms(self._slack),
            look_age_ms_p50=ms(np.percentile(looks, 50) if looks else None),
            look_age_ms_p95=ms(np.percentile(looks, 95) if looks else None),
            observation_age_ms_p50=ms(np.percentile(chunks, 50) if chunks else None),
            observation_age_ms_p95=ms(np.percentile(chunks, 95) if chunks else None),
            tail_rad=rounded("tail"),
            tracking_rad=rounded("tracking"),
            motion=rounded("motion"),
            spread_rad=rounded("spread"),
            cut_because=self._guard.because,
        )

    def _publish_status(self) -> None:
        """Says what is so now; of several threads one after the other, so that nothing newer is followed by something older."""
        with self._saying:
            with self._changed:
                values = self._state_of_things()
                self._said_at = time.monotonic()
            self._remember()
            self._status.publish(String(data=json.dumps(values)))

    def _state_of_things(self) -> dict:
        generations = self._generations
        return dict(
            generation=generations.current.number,
            checkpoint=generations.current.checkpoint,
            weights_sha256=generations.current.weights_sha256,
            loading_news=self._loading_news,
            loading=self._wanted or (generations.waiting[0] if generations.waiting else ""),
            earlier=[generation.checkpoint for generation in generations.previous],
            probation=generations.unproved,
            news=self._news,
            exchanges=self._exchanges,
            horizon=self._guard.longest,
            horizon_now=self._replanner.horizon,
            cuts=self._guard.cuts,
            mode=self._replanner.mode,
            calls=self._calls,
            **self._measures(),
            running=self._running,
            complaint=self._said,
        )

    def _publish_diagnostics(self) -> None:
        self._publish_status()
        with self._changed:
            values = {"calls": self._calls, "horizon": self._replanner.horizon, "mode": self._replanner.mode}
            values |= {name: "unknown" if value is None else value for name, value in self._measures().items()}
            for camera in self.config.cameras:
                if per_second := self._arrivals.per_second(camera):
                    values[f"{camera}_images_per_s"] = f"{per_second:.1f}"
                    values[f"{camera}_age_ms_p50"], values[f"{camera}_age_ms_p99"] = (
                        f"{v * 1000:.1f}" for v in np.percentile(self._arrivals.ages(camera), [50, 99])
                    )
        said = self._said
        level = DiagnosticStatus.WARN if said else DiagnosticStatus.OK
        status = DiagnosticStatus(
            level=level,
            name="inference",
            message=said or ("running" if self._running else "ready"),
            values=[KeyValue(key=k, value=str(v)) for k, v in values.items()],
        )
        array = DiagnosticArray(status=[status])
        array.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(array)

    def close(self) -> None:
        self._stop.set()
        with self._changed:
            self._running = False
            self._stir()
        self._worker.join(timeout=2.0)
        self._states.close()


def main() -> None:
    sys.exit(run(Inference))


if __name__ == "__main__":
    main()
