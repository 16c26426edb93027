"""Process `trial_node`: runs trials against the running system without an operator, and prints their table.

It drives the operator's services (controller/*, scene/*, inference/run), watches the states, and stores each trial at once
(trials/store.py). What happens in a trial is trials/protocol.py; the running system is nodes/rig.py. Exit code: 0 when every
trial was run, 1 when something refused, broke or did not answer, 130 after Ctrl-C.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import rclpy
from rclpy.signals import SignalHandlerOptions

from policytrim_ros.core.config import ConfigError
from policytrim_ros.core.config import setting as option
from policytrim_ros.nodes.parameters import declare
from policytrim_ros.nodes.process import heartbeat
from policytrim_ros.nodes.provenance import provenance, since
from policytrim_ros.nodes.rig import RigConfig, RosRig
from policytrim_ros.trials.desk import Desk
from policytrim_ros.trials.protocol import Interrupted, RigError, run_session
from policytrim_ros.trials.session import Arm, Session, Trial, read_session, schedule
from policytrim_ros.trials.store import Store, StoreError, read_sessions
from policytrim_ros.trials.table import show


@dataclass(frozen=True)
class TrialConfig(RigConfig):
    """Which trials, and where they are recorded."""

    task: str = option("tape_box", "task to try")
    setting: str = option("standard", "whether the target stays or is moved", choices=("standard", "dynamic"))
    trials: int = option(10, "how many", low=1, high=10000)
    seed: int = option(1000, "seed of the first scene; the others follow", low=0, high=2**31 - 1)
    label: str = option("", "name of these trials in the table; empty: the checkpoint's name")
    checkpoint: str = option("", "checkpoint that inference loads for these trials; empty: the one that it has loaded")
    compare: str = option("", "a second checkpoint, tried in the same scenes in turn, in the same processes; empty: none")
    canary: str = option("", "a candidate's checkpoint, that has one trial in `every` until it is shown to be worse or as good")
    every: int = option(4, "canary: one trial in so many is the candidate's", low=2, high=1000)
    plan: str = option("", "YAML file of a session (docs/trials.md) in place of all of the above")
    out: str = option("trials", "directory of trials.db")
    timeout_s: float = option(60.0, "a trial without an outcome after this is a failure", low=1.0, high=3600.0, unit="s")
    repeat: bool = option(False, "run trials again that are recorded already")
    recorded: bool = option(False, "a recorder writes a file of each trial; one that is not whole is an alarm")


class Screen:
    """Lines that stay, and on a terminal one line that follows the running trial."""

    def __init__(self, file=sys.stdout):
        self.file = file
        self._terminal = file.isatty()
        self._next = 0.0

    def say(self, text: str) -> None:
        print(("\r\x1b[K" if self._terminal else "") + text, file=self.file, flush=True)

    def live(self, rig: RosRig, desk: Desk, planned: int) -> None:
        now = time.monotonic()
        if not self._terminal or desk.trial is None or now < self._next:
            return
        self._next = now + 0.25
        trial = desk.trial
        line = (
            f"trial {trial.number}/{planned} task={trial.task} setting={trial.setting} seed={trial.seed} left={desk.left} s | "
            f"{rig.controller[0]} | scene {rig.scene.get('phase', '?')} {rig.scene.get('elapsed_s', 0.0):.1f} s"
        )
        print("\r\x1b[K" + line[: shutil.get_terminal_size().columns - 1], end="", file=self.file, flush=True)


def session_of(config: TrialConfig, loaded: str) -> Session:
    """The session that ``config`` asks for while inference has checkpoint ``loaded``: one arm, or two to compare or as a canary."""
    if config.plan:
        return read_session(config.plan)
    if config.compare and config.canary:
        raise ConfigError("TrialConfig.canary: the candidate is either compared scene by scene or a canary; leave compare out")
    second = config.compare or config.canary
    first = config.checkpoint or (loaded if second else "")
    arms = [Arm(config.label or Path(first or loaded or "unnamed").name, first)]
    if second:
        arms.append(Arm(Path(second).name, second))
        if arms[0].label == arms[1].label:
            raise ConfigError(f"TrialConfig: both checkpoints are called '{arms[0].label}' in the table; give a label")
    return Session(
        tasks=[config.task],
        settings=[config.setting],
        arms=arms,
        scenes=config.trials,
        seed=config.seed,
        block=0,
        blind=False,
        canary=config.every if config.canary else 0,
        timeout_s=config.timeout_s,
    )


def open_session(store: Store, spec: Session, described) -> tuple[str, Session]:
    """The session of ``store`` with just this plan that is not locked yet, or a new one: its name, and the plan with its salt.

    ``described(spec)``: its provenance; of a session that goes on, what has changed in it since is noted.
    """
    plan = replace(spec, salt="").as_dict()
    for found in reversed(read_sessions(store.path.parent)):
        stored = {name: value for name, value in found["spec"].items() if name != "salt"}
        if stored == plan and found["locked"] is None:
            spec = Session.from_mapping(found["spec"])
            store.note(found["id"], "resumed", **since(found, described(spec)))
            return found["id"], spec
    name, spec = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(2).hex()}", spec.salted()
    store.begin(name, spec.as_dict(), described(spec))
    return name, spec


def loose_trials(spec: Session, store: Store, repeat: bool) -> list[Trial]:
    """The trials of a plan that came from the command line: without those that any session has recorded, unless ``repeat``."""
    done = set() if repeat else {row.key for row in store.rows if row.counts}
    return [t for t in schedule(spec) if (t.task, t.setting, t.arm.label, t.seed) not in done]


def main(args=None) -> int:
    """Runs the trials; returns the exit code."""
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node("trial", start_parameter_services=False, enable_rosout=False)  # little for others to discover
    screen, code, shown = Screen(), 0, ""
    rig = store = None
    try:
        config = declare(node, TrialConfig)
        rig = RosRig(node, config)
        heartbeat(node)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda received, _frame: setattr(rig, "stop_signal", received))
        store = Store(config.out, noted=rig.tell_event)
        rig.connect()
        spec = session_of(config, rig.inference.get("checkpoint", ""))
        if config.repeat:
            spec = replace(spec, notes=f"repeated at {time.time()}")
        session, spec = open_session(store, spec, lambda spec: provenance(rig, spec))
        whole = bool(config.plan or config.canary)  # what was tried in other sessions is no part of it
        shown = session if whole else ""
        trials = schedule(spec) if whole else loose_trials(spec, store, config.repeat)
        if trials:
            rig.choose(trials[0].task, trials[0].setting, trials[0].seed)
        if not whole and len(trials) < len(schedule(spec)):
            screen.say(
                f"{len(schedule(spec)) - len(trials)} of {len(schedule(spec))} trials are recorded already in {store.path}"
            )
        desk = Desk(store, records=config.recorded, changed=lambda: rig.tell(desk.seen(spec.blind)))
        rig.live = lambda: screen.live(rig, desk, spec.planned)
        reason = run_session(rig, session, spec, trials, store, desk, screen.say)
        desk.phase("complete")
        returned = desk.canary is not None and desk.canary.returned  # stays open: the same plan again does not try it again
        if reason is None and whole and not returned:
            store.lock(session, "complete")
        for alarm in desk.alarms:
            print(f"trial: {alarm}", file=sys.stderr, flush=True)
        if reason is not None:
            print(f"trial: {reason}; the remaining trials were not run", file=sys.stderr, flush=True)
            code = 1
    except Interrupted as error:
        print(f"trial: {error}", file=sys.stderr, flush=True)
        code = 130
    except ConfigError as error:
        print(error, file=sys.stderr, flush=True)
        code = 1
    except (RigError, StoreError) as error:
        print(f"trial: {error}", file=sys.stderr, flush=True)
        code = 1
    finally:
        if store is not None:
            if store.rows:
                screen.say(show(config.out, shown))
            store.close()
        if rig is not None:
            rig.close()
        node.destroy_node()
        rclpy.try_shutdown()
    return code


if __name__ == "__main__":
    sys.exit(main())
