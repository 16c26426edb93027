"""Console node: conducts sessions of trials beside an operator, and serves the web console (policytrim_ros/console).

    browser, terminal <--HTTP--> Server (its own thread) --> Console: state(), order() --> Desk, services of the other nodes
                                                                 ROS and the protocol of the trials: the main thread

Orders come from the server's threads. Those to the robot are service calls that the main thread, which always spins, completes; so
hold goes out at once, whatever the session is doing. On a real robot the node also stands for the scene (nodes/scene.py).
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass

import rclpy
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger

from policytrim_ros.console.access import ConsoleError
from policytrim_ros.console.cockpit import Malformed, Refused
from policytrim_ros.console.server import Server
from policytrim_ros.core.config import ConfigError
from policytrim_ros.core.config import setting as option
from policytrim_ros.core.listening import TOKEN
from policytrim_ros.core.statistics import wilson
from policytrim_ros.nodes.asking import HOLD, answer
from policytrim_ros.nodes.messages import LATCHED, time_to_seconds
from policytrim_ros.nodes.parameters import declare
from policytrim_ros.nodes.process import heartbeat
from policytrim_ros.nodes.provenance import provenance, since
from policytrim_ros.nodes.rig import ANSWER_S, ENABLE_S, INFERENCE, RigConfig, RosRig
from policytrim_ros.nodes.scene import INSTRUCTIONS, HandScene
from policytrim_ros.trials.canary import ROLLED_BACK
from policytrim_ros.trials.cards import SceneCards
from policytrim_ros.trials.desk import Desk, NotNow
from policytrim_ros.trials.protocol import Interrupted, RigError, run_session
from policytrim_ros.trials.report import ReportError
from policytrim_ros.trials.reporter import Reporter
from policytrim_ros.trials.session import Session, schedule
from policytrim_ros.trials.store import UNLABELLED, Store, StoreError, read_sessions
from policytrim_ros.trials.table import is_blind

SHOWN = ("generation", "checkpoint", "horizon", "horizon_now", "cuts", "tail_rad", "slack_ms", "latency_ms_p50", "latency_ms_p99")
SHOWN += ("mode", "calls", "probation", "earlier", "loading", "news", "complaint", "running")
STILL = dict(mode="", complaint="", running=False)
LISTED = 20
DISTURB_S = 3.0
"""How long the operator is asked to move the target."""


@dataclass(frozen=True)
class ConsoleConfig(RigConfig):
    """Parameters of the console node. The token is the environment variable POLICYTRIM_TOKEN."""

    out: str = option("trials", "directory of trials.db and of the scene cards")
    host: str = option("127.0.0.1", "address to listen on; any other than this one needs POLICYTRIM_TOKEN")
    port: int = option(8765, "port to listen on; 0: any that is free", low=0, high=65535)
    read_only: bool = option(False, "the page shows everything and takes no order")
    cameras: list = option(["front", "wrist"], "cameras whose pictures are shown")
    simulated: bool = option(True, "the scene is simulated; false: the operator lays it and names the outcome")
    tasks: list = option(["tape_box", "flip_mug", "hang_mug"], "tasks that a session may have")
    instructions: list = option(list(INSTRUCTIONS), "real robot: what the policy is told, a line for each task, `task: sentence`")
    recorded: bool = option(False, "a recorder writes a file of each trial; one that is not whole is an alarm")


class Console:
    """The cockpit behind the server; see the module."""

    def __init__(self, node, config: ConsoleConfig, rig: RosRig, store: Store, scene: HandScene | None):
        self.node, self.config, self.rig, self.store, self.scene = node, config, rig, store, scene
        self.desk = Desk(store, attended=True, records=config.recorded, hands=not config.simulated, changed=self._tell)
        self._session = self._spec = None  # of the session that is conducted, or was the last
        self._wanted = None  # session and spec to be conducted next, and whether an operator says go
        self._begun = ""  # the session that was started last
        self._conducting, self._ended, self._lock = False, "", threading.Lock()
        self._trainer: dict = {}
        self._pictures: dict[str, tuple[bytes, float]] = {}
        self._arrivals = {camera: deque(maxlen=40) for camera in config.cameras}
        self._sessions: list[dict] = []
        self._hides = False  # whether the newest trial is of a session that is still blind
        self._disturbed = ""  # the recording of the trial whose target was to be moved last
        self._cards, self._reporter = SceneCards(self.desk.alarm), Reporter(store.path.parent)
        for camera in config.cameras:
            node.create_subscription(CompressedImage, f"{camera}/color/image_raw/compressed", self._on_picture(camera), 5)
        node.create_subscription(String, "trainer/status", lambda m: setattr(self, "_trainer", json.loads(m.data)), LATCHED)
        services = dict.fromkeys((HOLD, "controller/clear_fault", "controller/home", "inference/roll_back"), Trigger)
        services |= {"inference/run": SetBool, f"{INFERENCE}/set_parameters": SetParameters}
        self._clients = {name: node.create_client(kind, name) for name, kind in services.items()}
        self._read_sessions()
        if scene is not None:
            rig.live = self._note_disturbance

    # ---- the main thread -------------------------------------------------------------------------------------------------

    def conduct(self, stopped) -> None:
        """Conducts the sessions that are asked for, until ``stopped()``."""
        while not stopped():
            try:
                self.rig.wait(lambda: self._wanted is not None or stopped(), 0.5)
                if self._wanted is not None:
                    self._conduct(*self._wanted)
            except Interrupted:
                continue  # of a signal, which `stopped` sees, or a pause without a session

    def _conduct(self, session: str, spec: Session, attended: bool) -> None:
        with self._lock:
            self._wanted, self._conducting, self._ended = None, True, ""
            self._session, self._spec, self.desk.attended = session, spec, attended
        try:
            self.rig.connect()
            found = next((found for found in read_sessions(self.store.path.parent) if found["id"] == session), None)
            if found is None:
                self.store.begin(session, spec.as_dict(), provenance(self.rig, spec))
            else:
                self.store.note(session, "resumed", **since(found, provenance(self.rig, spec)))
            self._list_sessions()
            rows = self.store.rows_of(session)  # of before a restart: its outcome is missing, or can be taken back
            self.desk.last = next((row for row in rows if row.outcome == UNLABELLED), rows[-1] if rows else None)
            self._cards.make(self.store.path.parent / session / "cards", schedule(spec))
            done = run_session(self.rig, session, spec, schedule(spec), self.store, self.desk, self._say)
            self._ended = done or "complete"
        except Interrupted as error:
            self._ended = str(error)
        except (RigError, StoreError, ConfigError) as error:
            self._ended = str(error)
            self.desk.alarm(str(error))
        finally:
            self._conducting = False
            self.desk.phase("complete" if self._ended == "complete" else "idle")
            self._list_sessions()

    def _say(self, line: str) -> None:
        self.node.get_logger().info(line)
        self._list_sessions()

    def _tell(self) -> None:
        self.rig.tell(self.desk.seen(self._blind()))
        if self.scene is not None and self.desk.verdict is not None:
            self.scene.end(*self.desk.verdict[:2])

    def _note(self, kind: str, **detail) -> None:
        """Keeps an event of the session; where the disk does not take it, an alarm: what has happened has happened."""
        self._keep(self._session or "", kind, **detail)

    def _keep(self, session: str, kind: str, **detail) -> None:
        try:
            self.store.note(session, kind, **detail)
        except StoreError as error:
            self.desk.alarm(f"'{kind}' was done and is missing in the record: {error}")

    def note(self, kind: str, detail: dict) -> None:
        self._note(kind, **detail)

    def _note_disturbance(self) -> None:
        trial = self.desk.seen(blind=True)
        if self._disturb_s(trial) >= 0 and trial["recording"] != self._disturbed:
            self._disturbed = trial["recording"]
            self._note("disturb", trial=trial["card"]["number"], after_s=trial["since_s"])

    def _list_sessions(self) -> None:
        """What there is on the disk; what there was, and an alarm, when it cannot be read."""
        try:
            self._read_sessions()
        except StoreError as error:
            self.desk.alarm(str(error))

    def _read_sessions(self) -> None:
        rows, sessions = self.store.rows, read_sessions(self.store.path.parent)
        counts: dict[str, int] = {}
        for row in rows:
            counts[row.session] = counts.get(row.session, 0) + row.counts
        last = rows[-1] if rows else None
        self._hides = any(
            is_blind(found) and (last is None or found["id"] in (last.session, self.desk.session) or found["began"] > last.ended)
            for found in sessions
        )
        self._sessions = [
            {
                "id": found["id"],
                "began": found["began"],
                "locked": found["locked"] is not None,
                "blind": is_blind(found),
                "trials": counts.get(found["id"], 0),
                "tasks": found["spec"]["tasks"],
                "spec": found["spec"],
            }
            for found in reversed(sessions)
        ]

    def _on_picture(self, camera: str):
        arrivals = self._arrivals[camera]

        def callback(message: CompressedImage):
            stamp = time_to_seconds(message.header.stamp)
            self._pictures[camera] = (bytes(message.data), stamp)
            arrivals.append(time.time())

        return callback

    # ---- what there is to be seen (any thread) -------------------------------------------------------------------------------

    def _blind(self) -> bool:
        """Whether nothing may be seen that tells an arm: of the session here, or of the newest trial, whose checkpoint may be loaded still."""
        return self._hides or (self._spec is not None and self._spec.blind and not self._locked(self._session))

    def _disturb_s(self, trial: dict) -> float:
        """How long ago the operator was to move the target of ``trial`` (Desk.seen); negative before that, and where there is nothing to move."""
        card = trial["card"]
        if self.scene is None or trial["phase"] != "running" or card["setting"] != "dynamic":
            return -1.0
        return trial["since_s"] - card["disturb_s"]

    def _locked(self, session: str) -> bool:
        return any(known["id"] == session and known["locked"] for known in self._sessions)

    def state(self) -> dict:
        """docs/console.md"""
        rig, blind, now = self.rig, self._blind(), time.time()
        trial, scene, status = self.desk.seen(blind), rig.scene, rig.inference
        policy = {"hidden": True} if blind else {name: status.get(name) for name in SHOWN} if status else None
        complaint = status.get("complaint") or ""
        return {
            "stamp": now,
            "robot": {
                "state": rig.controller[0] or "unknown",
                "reason": rig.controller[1],
                "simulated": self.config.simulated,
                "silent": rig.silent(),
            },
            "session": self._session_seen(blind),
            "sessions": [{k: v for k, v in known.items() if k != "spec"} for known in self._sessions[:LISTED]],
            "trial": trial,
            "scene": {
                name: scene.get(name, default)
                for name, default in dict(task="", setting="", seed=0, instruction="", phase="", by_hand=False).items()
            },
            "disturb": 0 <= self._disturb_s(trial) < DISTURB_S,
            "layout": self._cards.layout(self.desk.trial),
            "policy": policy,
            "policy_alarm": ("the policy complains" if blind else complaint) if complaint else "",
            "cameras": [self._camera_seen(camera, now) for camera in self.config.cameras],
            "recorder": rig.recorder or None,
            "trainer": self._trainer or None,
        }

    def _session_seen(self, blind: bool) -> dict | None:
        spec = self._spec
        if spec is None:
            return None
        rows = {row.number: row for row in self.store.rows_of(self._session)}.values()
        return {
            "id": self._session,
            "running": self._conducting,
            "blind": blind,
            "locked": self._locked(self._session),
            "arms": len(spec.arms),
            "planned": spec.planned,
            "done": sum(row.counts for row in rows),
            "attended": self.desk.attended,
            "arm_names": None if blind else [arm.label for arm in spec.arms],
            "ended": self._ended,
            "comparison": None if blind else self._comparison(spec, rows),
        }

    @staticmethod
    def _comparison(spec: Session, rows) -> list[dict]:
        """Success of every arm in every cell so far, with its Wilson interval, and mean seconds of the successes."""
        found = []
        for task, setting in spec.cells:
            for arm in spec.arms:
                of_arm = [r for r in rows if r.counts and (r.task, r.setting, r.label) == (task, setting, arm.label)]
                solved = [r for r in of_arm if r.outcome == "success"]
                low, high = wilson(len(solved), len(of_arm))
                mean = sum(r.seconds for r in solved) / len(solved) if solved else None
                found.append(
                    dict(
                        task=task,
                        setting=setting,
                        arm=arm.label,
                        n=len(of_arm),
                        successes=len(solved),
                        low=low,
                        high=high,
                        seconds=mean,
                    )
                )
        return found

    def _camera_seen(self, camera: str, now: float) -> dict:
        arrivals, kept = list(self._arrivals[camera]), self._pictures.get(camera)
        lasted = arrivals[-1] - arrivals[0] if len(arrivals) > 1 else 0.0
        return {
            "name": camera,
            "age_ms": None if kept is None else round((now - kept[1]) * 1000),
            "fps": round((len(arrivals) - 1) / lasted, 1) if lasted > 0 else 0.0,
        }

    def picture(self, camera: str) -> tuple[bytes, float] | None:
        return self._pictures.get(camera)

    def card(self, camera: str) -> bytes | None:
        return self._cards.picture(self.desk.trial, camera)

    def report(self, session: str, html: bool = True) -> str:
        try:
            page, markdown = self._reporter.report(session)
        except (ReportError, StoreError) as error:
            raise Refused(str(error)) from error
        return page if html else markdown

    # ---- orders (any thread but the main one) ----------------------------------------------------------------------------------

    def order(self, name: str, details: dict, who: str) -> str:
        if name not in self.ORDERS:
            raise Refused(f"no order '{name}'")
        told = {key: value for key, value in details.items() if key not in ("plan", "session")}  # the record has them
        session = details.get("session") or self._session or ""
        try:
            said = self.ORDERS[name](self, who=who, **details)
        except ConfigError as error:
            self._keep(session, "refused", order=name, who=who, why=str(error), **told)
            raise Malformed(str(error)) from error
        except (NotNow, RigError, StoreError) as error:
            self._keep(session, "refused", order=name, who=who, why=str(error), **told)
            raise Refused(str(error)) from error
        if name == "start":
            session = self._begun
        self._keep(session, name, who=who, **told)
        return said or name

    def _start(self, plan: dict, attended: bool, who: str) -> str:
        spec = Session.from_mapping(plan).salted()
        session = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(2).hex()}"
        self._want(session, spec, attended)
        self._begun = session
        return f"session {session} begins"

    def _resume(self, session: str, attended: bool, who: str) -> str:
        known = next((known for known in self._sessions if known["id"] == session), None)
        if known is None:
            raise NotNow(f"there is no session {session}")
        if known["locked"]:
            raise NotNow(f"session {session} is locked; nothing can be added to it")
        self._want(session, Session.from_mapping(known["spec"]), attended)
        return f"session {session} goes on"

    def _want(self, session: str, spec: Session, attended: bool) -> None:
        if not attended and not self.config.simulated:
            raise NotNow("on a real robot an operator says go before every trial")
        if unknown := [task for task in spec.tasks if task not in self.config.tasks]:
            known = ", ".join(self.config.tasks)
            raise NotNow(f"this system was started for {known}, not for {unknown[0]}; start it with task:={unknown[0]}")
        with self._lock:
            if self._conducting or self._wanted is not None:
                raise NotNow("a session is being conducted; pause it first")
            if self._spec is not None and self.desk.unlabelled:
                raise NotNow(f"trial {self.desk.last.number} has no outcome; label it first")
            self._wanted = (session, spec, attended)

    def _go(self, who: str) -> str:
        self.desk.go()
        return "go"

    def _label(self, outcome: str, reason: str, who: str) -> str:
        self.desk.label(outcome, reason, who)
        self._list_sessions()
        return outcome

    def _undo(self, who: str) -> str:
        self.desk.undo(who)
        self._list_sessions()
        return f"the outcome of trial {self.desk.last.number} is taken back; give it another"

    def _confirm(self, who: str) -> str:
        if self.scene is None or not self.scene.confirm():
            raise NotNow("no scene waits for being laid")
        return "the scene lies"

    def _hold(self, who: str) -> str:
        """The arm first; inference may be gone, and is then silent anyway."""
        self._ask(HOLD, Trigger.Request())
        try:
            self._ask("inference/run", SetBool.Request(data=False), 1.0)
        except RigError:
            pass
        return "held"

    def _pause(self, who: str) -> str:
        if not self._conducting:
            raise NotNow("no session is being conducted")
        self._hold(who)
        self.rig.stop_signal = f"paused by {who}"
        return "the session pauses; it can be resumed"

    def _lock_session(self, session: str, reason: str, who: str) -> str:
        if self._conducting and session == self._session:
            raise NotNow("the session is being conducted; pause it first")
        known = next((known for known in self._sessions if known["id"] == session), None)
        if known is None:
            raise NotNow(f"there is no session {session}")
        if known["locked"]:
            raise NotNow(f"session {session} is locked already")
        self.store.lock(session, reason or f"locked by {who}")
        self._list_sessions()
        self._tell()
        return f"session {session} is locked"

    def _swap(self, checkpoint: str, who: str) -> str:
        if self._conducting:
            raise NotNow("the session decides which policy runs; pause it first")
        request = SetParameters.Request(parameters=[Parameter("checkpoint", value=checkpoint).to_parameter_msg()])
        result = self._answer(f"{INFERENCE}/set_parameters", request).results[0]
        if not result.successful:
            raise NotNow(result.reason)
        return f"{checkpoint} is being tried and loaded; the policy's news tell how it went"

    def _roll_back(self, who: str) -> str:
        if not self._conducting:
            return self._ask("inference/roll_back", Trigger.Request())
        if not self._spec.canary:
            raise NotNow("the session decides which policy runs; pause it first")
        if self.desk.trial is None or self.desk.trial.arm != self._spec.arms[1]:
            raise NotNow("the incumbent speaks, there is nothing to roll back; pause the session to end the canary")
        self.rig.stop_signal = f"{ROLLED_BACK} by {who}"  # the protocol puts the incumbent back
        self._hold(who)
        return f"the arm is held, {self._spec.arms[0].label} is put back and the session pauses; lock it to end the canary"

    def _clear_fault(self, who: str) -> str:
        return self._ask("controller/clear_fault", Trigger.Request())

    def _home(self, who: str) -> str:
        if self._conducting:
            raise NotNow("the session moves the arm home by itself; pause it first")
        return self._ask("controller/home", Trigger.Request(), ENABLE_S)

    ORDERS = {"start": _start, "resume": _resume, "go": _go, "label": _label, "undo": _undo, "confirm": _confirm, "hold": _hold}
    ORDERS |= {"pause": _pause, "lock": _lock_session, "swap": _swap, "roll_back": _roll_back, "clear_fault": _clear_fault}
    ORDERS |= {"home": _home}

    def _ask(self, service: str, request, timeout_s: float = ANSWER_S) -> str:
        response = self._answer(service, request, timeout_s)
        if not response.success:
            raise RigError(f"{service} refused: {response.message}")
        return response.message

    def _answer(self, service: str, request, timeout_s: float = ANSWER_S):
        """The response; the main thread spins it in."""
        client = self._clients[service]
        if not client.service_is_ready():
            raise RigError(f"nobody offers {service}: is its process running?")
        response = answer(client, request, _meanwhile, timeout_s, again=service == HOLD)
        if response is None:
            raise RigError(f"service '{service}' did not answer within {timeout_s:.0f} s: is its process running?")
        return response

    def close(self) -> None:
        self._cards.close()
        self._reporter.close()


def _meanwhile(condition, timeout_s: float) -> None:
    """Waits for what the main thread spins in."""
    end = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)


def log_to_stderr() -> None:
    """Lets the server's lines (orders, hand-overs, failures) be read in the process's output."""
    handler, log = logging.StreamHandler(), logging.getLogger("policytrim")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)


def main(args=None) -> int:
    """Serves until SIGINT or SIGTERM; returns the exit code."""
    log_to_stderr()
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node("console", enable_rosout=False)
    rig = store = server = console = scene = None
    code, stopped = 0, threading.Event()
    try:
        config = declare(node, ConsoleConfig)
        rig = RosRig(node, config)
        if not config.simulated:
            scene = HandScene(node.get_namespace(), config.instructions)
            rig.add(scene)
        heartbeat(node)

        def on_signal(number, _frame):
            stopped.set()
            rig.stop_signal = "the console was told to end"

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, on_signal)
        store = Store(config.out, noted=rig.tell_event)
        console = Console(node, config, rig, store, scene)
        server = Server(
            console, host=config.host, port=config.port, token=os.environ.get(TOKEN, ""), read_only=config.read_only
        ).start()
        print(f"console: {server.url}", flush=True)
        console.conduct(stopped.is_set)
    except (ConfigError, ConsoleError, StoreError, RigError) as error:
        print(f"console: {error}", file=sys.stderr, flush=True)
        code = 1
    finally:
        for part in (server, console, store, rig):
            if part is not None:
                part.close()
        for made in (scene, node):
            if made is not None:
                made.destroy_node()
        rclpy.try_shutdown()
    return code


if __name__ == "__main__":
    sys.exit(main())
