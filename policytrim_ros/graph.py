"""The one description of all processes: which, with what, in which order.

    LaunchArguments --graph()--> [Process, ...]  --> launch/piper_deploy.launch.py   (ros2 launch)
                                                 +-> policytrim_ros/up.py            (policytrim up, without a ROS 2 installation)

A process is started when those it needs are ready, and all end in the reverse order of the list. The policy needs nobody: it
loads while the world is built, and says nothing before it is told to run. The simulation is named by dotted module names
only: nothing of it is imported here.
"""

from __future__ import annotations

import json
import os
import resource
import shlex
import shutil
import sys
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Mapping

from policytrim_ros.core.config import Config, ConfigError
from policytrim_ros.core.config import setting as argument  # one of the arguments is called setting
from policytrim_ros.core.contract import is_remote
from policytrim_ros.core.replanning import MODES
from policytrim_ros.core.types import CONTROL_RATE_HZ, CONTROL_RATES_HZ
from policytrim_ros.share import share
from policytrim_ros.trials.session import read_session

TASKS = ("tape_box", "flip_mug", "hang_mug")
SETTINGS = ("standard", "dynamic")
EMULATED_SERIALS = {"front": "emulated-front", "wrist": "emulated-wrist"}
DEMONSTRATORS = ("clean", "slow", "hesitant")
FACTOR = "POLICYTRIM_REAL_TIME_FACTOR"
"""Names the factor of simulated time in the environment: the user's wish, and what the processes are told."""

LOWEST_FACTOR = 0.05
"""Of simulated time; the middleware's own patience ends when seconds become minutes."""

LAVAPIPE = ("lvp_icd.json", "lvp_icd.x86_64.json", "lvp_icd.aarch64.json")
"""Names that Mesa's packages have given to the description of its software renderer."""


@dataclass(frozen=True)
class LaunchArguments(Config):
    """What may be said at the start. `ros2 launch ... --show-args` and `policytrim up --help` print these sentences."""

    sim: bool = argument(True, "true: simulated world behind an emulated arm and emulated cameras; false: the real robot")
    can_port: str = argument(
        "", "CAN channel of the arm: can0, ... on a robot; empty: can0, or the emulated bus of the session in simulation"
    )
    can_interface: str = argument("", "python-can interface; empty: socketcan, or piper_hub in simulation")
    cameras: str = argument(
        "", "cameras as name=serial,name=serial; empty: the emulated front and wrist cameras (simulation only)"
    )
    camera_size: str = argument(
        "424x240", "pixels of the colour images, WIDTHxHEIGHT; a D435i offers 424x240 and 640x480 among others"
    )
    camera_fps: int = argument(
        0,
        "pictures a second of each camera; 0: 30, in simulation 20, with two processors in real time 10 (a software renderer pays "
        "about 10 ms for each)",
        low=0,
        high=90,
    )
    real_time_factor: float = argument(
        0.0,
        "how fast simulated time runs, for every process alike: 0.5 gives each second of the robot two real ones; 0: 1, with two "
        "processors 0.5; a real robot knows 1 only",
        low=0.0,
        high=1.0,
    )
    task: str = argument("tape_box", "what the arm is to do", choices=TASKS)
    setting: str = argument(
        "standard", "standard: the target stays; dynamic: it is moved once during the approach", choices=SETTINGS
    )
    seed: int = argument(0, "seed of the first scene (simulation)", low=0, high=2**31 - 1)
    checkpoint: str = argument(
        "",
        "directory of the policy, ws://host:port of `policytrim serve`, or demonstrator:clean|slow|hesitant (simulation); empty: the project's own "
        "for the task, in simulation the clean demonstrator where there is none",
    )
    horizon: int = argument(0, "execution horizon h: actions executed of each chunk; 0: the checkpoint's own", low=0, high=1000)
    mode: str = argument(
        "sync",
        "sync: the arm waits for inference; async: the next chunk is predicted while this one runs; rtc: and goes on from it (flow policies)",
        choices=MODES,
    )
    control_rate_hz: float = argument(
        CONTROL_RATE_HZ,
        "actions a second of the policy, as its contract says; the simulated tasks, their demonstrators and the gate's twin know 20 only",
        low=CONTROL_RATES_HZ[0],
        high=CONTROL_RATES_HZ[1],
    )
    gate: bool = argument(
        True, "on the real robot, refuse a policy that has not passed the simulated twin for the task (`policytrim gate`)"
    )
    speed_scale: float = argument(1.0, "speed of the whole motion; begin a first real run at 0.3", low=0.05, high=1.0)
    trials: int = argument(0, "trials to run, after which everything ends; 0: only bring the system up", low=0, high=10000)
    compare: str = argument(
        "", "directory of a second policy, tried in the same scenes in turn, in the same running processes; needs trials"
    )
    plan: str = argument(
        "", "YAML file of a session of trials (docs/trials.md), carried out without an operator, after which everything ends"
    )
    console: bool = argument(
        False, "serve the operator's console: sessions of trials, hold, swap, on a web page and in a terminal"
    )
    console_host: str = argument("127.0.0.1", "address of the console; any other than this one needs a token in POLICYTRIM_TOKEN")
    console_port: int = argument(8765, "port of the console; 0: any that is free", low=0, high=65535)
    out: str = argument("runs", "directory for trial records and recordings")
    label: str = argument("", "name of this policy in the trial table; empty: the checkpoint's name")
    record: bool = argument(
        False,
        "record images (JPEG), joints, setpoints and chunks into MCAP files under out: one a trial with plan or console, else one",
    )
    trainer: bool = argument(
        False, "offer trimming beside the running arm, at the lowest priority; `policytrim trainer start` begins it"
    )
    namespace: str = argument("", "ROS namespace of all nodes; empty: none")
    remap: str = argument("", "remappings for every node, from:=to separated by blanks")
    session: str = argument("", "name of this running system (letters, digits, - and _); empty: domain-<ROS_DOMAIN_ID>")
    on_failure: str = argument(
        "hold",
        "when a required process dies, the arm holds; hold: keep the others for inspection; shutdown: end them",
        choices=("hold", "shutdown"),
    )

    def __post_init__(self):
        super().__post_init__()
        parse_cameras(self.cameras)
        parse_size(self.camera_size)
        parse_remap(self.remap)
        if self.session and not all(c.isalnum() or c in "-_" for c in self.session):
            raise ConfigError(f"LaunchArguments.session = {self.session!r}: use letters, digits, '-' and '_'")
        if self.namespace and not self.namespace.strip("/").replace("/", "_").isidentifier():
            raise ConfigError(
                f"LaunchArguments.namespace = {self.namespace!r}: use letters, digits and '_', not beginning with a digit"
            )
        if self.compare and not self.trials:
            raise ConfigError("LaunchArguments.compare: say with trials how many scenes both policies are tried in")
        if self.console and (self.trials or self.plan):
            raise ConfigError("LaunchArguments.console: sessions are begun at the console; leave trials and plan out")
        if self.plan and self.trials:
            raise ConfigError("LaunchArguments.plan: it says which trials; leave trials out")
        if self.plan and not self.sim:
            raise ConfigError("LaunchArguments.plan: on a real robot an operator says go; use console:=true")
        if not self.sim and self.real_time_factor not in (0.0, 1.0):
            raise ConfigError("LaunchArguments.real_time_factor: the time of a real robot cannot be slowed; its motion can, by speed_scale")
        if 0.0 < self.real_time_factor < LOWEST_FACTOR:
            raise ConfigError(f"LaunchArguments.real_time_factor: at least {LOWEST_FACTOR:g}, or 0")
        if self.sim and self.speed_scale != 1.0 and self.checkpoint.startswith("demonstrator:"):
            raise ConfigError("LaunchArguments.speed_scale: a demonstrator is timed for 1.0")
        if self.control_rate_hz != CONTROL_RATE_HZ and self.checkpoint.startswith("demonstrator:"):
            raise ConfigError(f"LaunchArguments.control_rate_hz: a demonstrator acts {CONTROL_RATE_HZ:g} times a second")


@dataclass(frozen=True)
class Process:
    """One process. ``name`` is its node name, its word on ``heartbeat`` and the mark before each of its output lines."""

    name: str
    executable: str
    module: str
    ros: bool = True
    parameters: Mapping[str, Any] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    remappings: tuple[tuple[str, str], ...] = ()
    needs: tuple[str, ...] = ()
    socket: str = ""  # ready when somebody serves this socket; empty: ready at its first heartbeat
    required: bool = True  # its death means hold
    finite: bool = False  # it ends by itself, and the system with it
    clock: tuple[str, ...] = ()  # the file of a simulated clock that it runs on, and its factor
    niceness: int = 0  # asked for where the user may; what must answer within 0.1 s goes before what thinks

    @property
    def parameter_file(self) -> Path | None:
        """config/<name>.yaml, for a ROS node with parameters that no launch argument decides."""
        path = share("config") / f"{self.name}.yaml"
        return path if self.ros and path.is_file() else None


def graph(arguments: LaunchArguments) -> list[Process]:
    """All processes in the order of their start. Raises ConfigError when the arguments do not go together."""
    session, sim, typed = session_name(arguments), arguments.sim, typed_as(arguments)
    if arguments.plan:
        arguments = planned(arguments)
    checkpoint = resolve_checkpoint(arguments)
    can_port = arguments.can_port or (str(runtime_dir() / f"{session}.can") if sim else "can0")
    cameras = parse_cameras(arguments.cameras) or (EMULATED_SERIALS if sim else {})
    if not cameras:
        raise ConfigError(
            "LaunchArguments.cameras: name the cameras as front=<serial>,wrist=<serial>; `policytrim doctor` lists them"
        )
    width, height = parse_size(arguments.camera_size)
    fps = camera_fps(arguments)
    demonstrated = checkpoint.startswith("demonstrator:")
    compared = checkpoint_at("compare", arguments.compare) if arguments.compare else ""
    if demonstrated and compared:
        raise ConfigError(
            "LaunchArguments.compare: a demonstrator cannot be exchanged while the system runs; give two checkpoints"
        )
    driver = "demonstrator" if demonstrated else "inference"
    factor = real_time_factor(arguments)
    common = dict(
        environment={**environment(arguments), "POLICYTRIM_COMMAND": typed},
        remappings=parse_remap(arguments.remap),
        clock=(str(clock_file(session)), f"{factor:g}") if factor != 1.0 else (),
    )

    processes = []
    if sim:
        processes += [
            Process(
                "world",
                "world_node",
                "sim_bridge.world",
                niceness=-5,
                **{**common, "environment": {**common["environment"], **renderer()}},
                parameters=dict(
                    task=arguments.task,
                    setting=arguments.setting,
                    seed=arguments.seed,
                    session=session,
                    camera_width=width,
                    camera_height=height,
                    camera_fps=float(fps),
                ),
            ),
            Process(
                "piper_emulator",
                "piper_emulator",
                "sim_bridge.piper_emulator",
                ros=False,
                niceness=-10,
                environment=common["environment"],
                clock=common["clock"],
                arguments=("--socket", can_port, "--session", session),
                socket=can_port,
                needs=("world",),
            ),
        ]
    processes += [
        Process(
            "camera",
            "camera_node",
            "policytrim_ros.nodes.camera",
            niceness=-5,
            **common,
            needs=("world",) if sim else (),
            parameters=dict(
                cameras=list(cameras),
                serials=list(cameras.values()),
                width=width,
                height=height,
                fps=fps,
                **(dict(realsense_context="sim_bridge.realsense:context") if sim else {}),
            ),
        ),
        Process(
            "controller",
            "controller_node",
            "policytrim_ros.nodes.controller",
            niceness=-10,
            **common,
            needs=("piper_emulator",) if sim else (),
            parameters=dict(
                can_interface=arguments.can_interface or ("piper_hub" if sim else "socketcan"),
                can_port=can_port,
                speed_scale=arguments.speed_scale,
                control_rate_hz=arguments.control_rate_hz,
                required_nodes=[
                    "camera",
                    *(f"camera/{name}" for name in cameras),
                    driver,
                    *(["console"] if arguments.console else []),  # no operator, no motion
                ],
            ),
        ),
    ]
    if demonstrated:
        processes.append(
            Process(
                "demonstrator",
                "demonstrator_node",
                "sim_bridge.demonstrator_node",
                niceness=-5,
                **common,
                parameters=dict(style=checkpoint.split(":")[1]),
            )
        )
    else:
        processes.append(
            Process(
                "inference",
                "inference_node",
                "policytrim_ros.nodes.inference",
                niceness=-5,
                **common,
                parameters=dict(
                    checkpoint=checkpoint,
                    task="" if arguments.plan or (arguments.console and sim) else arguments.task,  # each session says which
                    cameras=list(cameras),
                    width=width,
                    height=height,
                    horizon=arguments.horizon,
                    mode=arguments.mode,
                    control_rate_hz=arguments.control_rate_hz,
                    gate=arguments.gate and not sim,
                    last_good=str(last_good(session)),
                ),
            )
        )
    if arguments.record:
        processes.append(
            Process(
                "recorder",
                "recorder_node",
                "policytrim_ros.nodes.recorder",
                **common,
                needs=("controller",),
                required=False,
                parameters=dict(
                    out=arguments.out, cameras=list(cameras), split="trial" if arguments.plan or arguments.console else "run"
                ),
            )
        )
    if arguments.trainer:
        processes.append(Process("trainer", "trainer_node", "policytrim_ros.nodes.trainer", **common, required=False))
    if arguments.console:
        processes.append(
            Process(
                "console",
                "console_node",
                "policytrim_ros.nodes.console",
                niceness=-5,  # the arm holds when it is not heard for a second
                **common,
                needs=("controller",),
                parameters=dict(
                    out=arguments.out,
                    host=arguments.console_host,
                    port=arguments.console_port,
                    cameras=list(cameras),
                    simulated=sim,
                    tasks=list(TASKS) if sim else [arguments.task],  # on a robot the gate was passed for this one
                    scene_node="world" if sim else "scene",
                    recorded=arguments.record,
                ),
            )
        )
    if arguments.plan:
        processes.append(_trial(common, processes, dict(plan=arguments.plan, out=arguments.out, recorded=arguments.record)))
    if arguments.trials:
        label = arguments.label or (checkpoint.replace(":", "-") if demonstrated else Path(checkpoint).name)
        values = dict(
            task=arguments.task, setting=arguments.setting, trials=arguments.trials, seed=arguments.seed, out=arguments.out
        )
        processes.append(_trial(common, processes, dict(**values, label=label, compare=compared)))
    return processes


def _trial(common, before: list[Process], parameters) -> Process:
    """Runs trials once everything else is ready, and ends the system."""
    needs = tuple(process.name for process in before)
    return Process(
        "trial",
        "trial_node",
        "policytrim_ros.nodes.trial",
        **common,
        required=False,
        finite=True,
        needs=needs,
        parameters=parameters,
    )


RUNNING = "running; `policytrim go` lets the policy move the arm, Ctrl-C ends everything and leaves the arm held"


def consequence(process: Process, arguments: LaunchArguments) -> str:
    """What the death of a running ``process`` means, in words."""
    if not process.required:
        return "the arm does not depend on it"
    held = "the arm keeps its last setpoint" if process.name == "controller" else "the controller holds the arm"
    return held + (
        "; ending the others" if arguments.on_failure == "shutdown" else "; the others stay for inspection, end them with Ctrl-C"
    )


def stages(processes: list[Process]) -> list[list[Process]]:
    """The processes in groups: each group needs only processes of the groups before it."""
    level: dict[str, int] = {}
    for process in processes:
        level[process.name] = max((level[name] + 1 for name in process.needs), default=0)
    return [[p for p in processes if level[p.name] == number] for number in range(max(level.values()) + 1)]


def command(process: Process, namespace: str = "") -> list[str]:
    """The command line that starts ``process`` with this interpreter; may be copied from the log and run by hand."""
    line = [*prefix(process), sys.executable, "-u", "-m", process.module, *process.arguments]
    if not process.ros:
        return line
    line += ["--ros-args"] + (["--params-file", str(process.parameter_file)] if process.parameter_file else [])
    for name, value in process.parameters.items():
        line += ["-p", f"{name}:={json.dumps(value)}"]
    for source, target in process.remappings:
        line += ["-r", f"{source}:={target}"]
    return line + (["-r", f"__ns:=/{namespace.strip('/')}"] if namespace else [])


def prefix(process: Process) -> list[str]:
    """``nice``, where this user may raise a process as far as ``process`` asks, and the simulated clock that it runs on."""
    allowed = os.geteuid() == 0 or 20 - resource.getrlimit(resource.RLIMIT_NICE)[0] <= process.niceness
    nice = ["nice", "-n", str(process.niceness)] if process.niceness and allowed else []
    return nice + (on_clock(*process.clock) if process.clock else [])


def on_clock(file: str, factor: str) -> list[str]:
    """What stands before a command that is to run on the simulated clock in ``file``, made with ``factor`` where there is none yet."""
    return [sys.executable, "-m", "sim_bridge.sim_clock", file, factor]


def environment(arguments: LaunchArguments) -> dict[str, str]:
    """What every process gets unless the user has set it already."""
    wanted = {
        "OMP_NUM_THREADS": "1",  # on few cores, more threads in one process make all others late
        "PYTHONUNBUFFERED": "1",
        "FASTRTPS_DEFAULT_PROFILES_FILE": str(share("config", "fastdds_shm.xml")),  # room for whole images in shared memory
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",  # ROS asks nobody for a token: an arm does not answer to other machines
    }
    chosen = {name: value for name, value in wanted.items() if name not in os.environ}
    if arguments.sim:
        chosen["POLICYTRIM_SESSION"] = session_name(arguments)
        chosen["POLICYTRIM_CAMERA_SIZE"] = arguments.camera_size
        chosen["POLICYTRIM_CAMERA_FPS"] = str(camera_fps(arguments))
        chosen[FACTOR] = f"{real_time_factor(arguments):g}"
    return chosen


def typed_as(arguments: LaunchArguments) -> str:
    """The command that brings up the same system."""
    given = {s.name: getattr(arguments, s.name) for s in fields(arguments) if getattr(arguments, s.name) != s.default}
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in given.items()}
    return shlex.join(["policytrim", "up", *(f"{name}:={text}" for name, text in texts.items())])


def renderer() -> dict[str, str]:
    """Vulkan's software renderer, for a machine without a GPU and where the user chose none."""
    if any(name in os.environ for name in ("VK_DRIVER_FILES", "VK_ICD_FILENAMES")) or has_gpu():
        return {}
    for folder in ("/usr/share/vulkan/icd.d", "/etc/vulkan/icd.d"):
        for name in LAVAPIPE:
            path = os.path.join(folder, name)
            if os.path.exists(path):
                chosen = {"VK_DRIVER_FILES": path, "VK_ICD_FILENAMES": path}  # the second is the name older loaders know
                if few_processors() and "LP_NUM_THREADS" not in os.environ:
                    chosen["LP_NUM_THREADS"] = "1"  # drawing sweeps the caches: one processor stays for arm, controller and policy
                return chosen
    return {}


def few_processors() -> bool:
    """Whether drawing takes from the robot's processes what they need."""
    return (os.cpu_count() or 1) <= 2


def has_gpu() -> bool:
    return os.path.exists("/dev/nvidia0") or (
        os.path.isdir("/dev/dri") and any(n.startswith("renderD") for n in os.listdir("/dev/dri"))
    )


def resolve_checkpoint(arguments: LaunchArguments) -> str:
    """The directory of the checkpoint, or ``demonstrator:<style>``; ConfigError says what to give instead."""
    given = arguments.checkpoint
    if given.startswith("demonstrator:"):
        style = given.split(":", 1)[1]
        if not arguments.sim:
            raise ConfigError(
                f"LaunchArguments.checkpoint = {given!r}: demonstrators know the simulated scene; on a robot give a checkpoint"
            )
        if style not in DEMONSTRATORS:
            raise ConfigError(f"LaunchArguments.checkpoint = {given!r}: allowed demonstrators are {', '.join(DEMONSTRATORS)}")
        return given
    if given:
        return checkpoint_at("checkpoint", given)
    own = own_checkpoint(arguments.task, gated=not arguments.sim)
    if own is None and not arguments.sim:
        raise ConfigError(
            f"LaunchArguments.checkpoint: no checkpoint for {arguments.task} comes with the project; give a directory"
        )
    return str(own) if own else "demonstrator:clean"


def checkpoint_at(argument: str, directory: str) -> str:
    """The resolved ``directory``, or the address of a server as it is; ConfigError where there is no checkpoint."""
    if is_remote(directory):
        return directory
    if not (Path(directory) / "manifest.json").is_file():
        raise ConfigError(
            f"LaunchArguments.{argument} = {directory!r}: no manifest.json there; give the directory of a checkpoint"
        )
    return str(Path(directory).resolve())


def planned(arguments: LaunchArguments) -> LaunchArguments:
    """``arguments`` with task, setting, seed and first checkpoint of the plan; ConfigError when an arm is missing or lacks a task."""
    session = read_session(arguments.plan)
    for checkpoint, task in ((arm.checkpoint_for(task), task) for arm in session.arms for task in session.tasks):
        if not checkpoint or is_remote(checkpoint):
            continue
        if task not in json.loads(Path(checkpoint_at("plan", checkpoint), "manifest.json").read_text())["tasks"]:
            raise ConfigError(f"{arguments.plan}: {checkpoint} was not made for {task}")
    first = session.arms[0].checkpoint_for(session.tasks[0]) or arguments.checkpoint
    return replace(arguments, task=session.tasks[0], setting=session.settings[0], seed=session.seed, checkpoint=first)


def own_checkpoint(task: str, gated: bool = True) -> Path | None:
    """The project's checkpoint for ``task``: of those that a robot can use (no true object poses) what was trimmed for it, ``gated``
    rather one that did not fail the gate, with the longest h and then the longest way from its baseline; else the one of most tasks."""
    manifests = _own_manifests()
    able = [path for path, m in manifests.items() if task in m.get("tasks", ()) and not m["contract"].get("object_slots")]
    able.sort(key=lambda path: -len(manifests[path]["tasks"]))
    lines = {path: line for path in able if (line := _line(manifests[path], manifests))}
    if not lines:
        return next((path for path in able if not _trimmed(manifests[path])), next(iter(able), None))

    def merit(path: Path) -> tuple:
        tried = (manifests[path].get("gate") or {}).get(task, {})
        return not gated or tried.get("passed", True), manifests[path]["contract"]["execution_horizon"], len(lines[path])

    return max(lines, key=merit)


def baseline_of(checkpoint) -> Path | None:
    """The project's checkpoint that ``checkpoint`` is compared with: the one that its evidence was against, else the one that it was
    trimmed from, in one run or in several one after another; None without one."""
    manifest, manifests = json.loads((Path(checkpoint) / "manifest.json").read_text()), _own_manifests()
    line = _line(manifest, manifests)
    if not line:
        return None
    against = Path(manifest["made"].get("settings", {}).get("against", "")).name
    return next((path for path in manifests if path.name == against), line[-1])


def _line(manifest: Mapping[str, Any], manifests: Mapping[Path, dict]) -> list[Path]:
    """From which of ``manifests`` a checkpoint was trimmed, from which that one was, and so on to a baseline; [] without one."""
    line: list[Path] = []
    while _trimmed(manifest):
        before = manifest["made"].get("parent")
        parent = next((path for path, m in manifests.items() if m["files"]["model.safetensors"] == before), None)
        if parent is None or parent in line:
            return []
        line.append(parent)
        manifest = manifests[parent]
    return line


def _own_manifests() -> dict[Path, dict]:
    try:
        return {path.parent: json.loads(path.read_text()) for path in sorted(share("models").glob("*/manifest.json"))}
    except FileNotFoundError:
        return {}


def _trimmed(manifest: Mapping[str, Any]) -> bool:
    return manifest.get("made", {}).get("method") == "trim"


def camera_fps(arguments: LaunchArguments) -> int:
    usual = 30 if not arguments.sim else 10 if few_processors() and real_time_factor(arguments) > 0.5 else 20
    return arguments.camera_fps or usual


def real_time_factor(arguments: LaunchArguments) -> float:
    """Simulated seconds in a real one: as the arguments say, else POLICYTRIM_REAL_TIME_FACTOR, else what suits the machine.
    ConfigError for what is not allowed."""
    if not arguments.sim:
        return 1.0
    if arguments.real_time_factor:
        return arguments.real_time_factor
    if given := os.environ.get(FACTOR):
        try:
            return replace(arguments, real_time_factor=float(given)).real_time_factor or 1.0
        except ValueError as error:
            raise ConfigError(f"{FACTOR}={given} in the environment: {error}") from None
    return 0.5 if few_processors() and shutil.which("cc") else 1.0


def session_name(arguments: LaunchArguments) -> str:
    return arguments.session or f"domain-{os.environ.get('ROS_DOMAIN_ID') or 0}"


def runtime_dir() -> Path:
    """The user's own directory for sockets and locks, made when missing."""
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or "/tmp")
    path = base / f"policytrim-{os.getuid()}"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.stat().st_uid != os.getuid():
        raise PermissionError(f"{path} belongs to another user; set XDG_RUNTIME_DIR to a directory of your own")
    return path


def last_good(session: str) -> Path:
    """Where inference keeps its last good checkpoint while ``session`` runs."""
    return runtime_dir() / f"{session}.last_good"


def clock_file(session: str) -> Path:
    """The simulated clock of ``session``, while it runs slower than real time."""
    return runtime_dir() / f"{session}.clock"


def forget(session: str) -> None:
    """Removes what is left of the ``session`` before: nothing of it may have a say in the next."""
    for path in (last_good(session), clock_file(session)):
        path.unlink(missing_ok=True)


def parse_cameras(text: str) -> dict[str, str]:
    """``front=123,wrist=456`` as {name: serial}."""
    cameras = {}
    for part in filter(None, text.split(",")):
        name, equals, serial = part.partition("=")
        if not equals or not name.isidentifier() or not serial or name in cameras:
            raise ConfigError(f"LaunchArguments.cameras = {text!r}: expected name=serial,name=serial with each name once")
        cameras[name] = serial
    return cameras


def parse_size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit() and 32 <= int(width) <= 1920 and 32 <= int(height) <= 1080):
        raise ConfigError(f"LaunchArguments.camera_size = {text!r}: expected WIDTHxHEIGHT, at most 1920x1080")
    return int(width), int(height)


def parse_remap(text: str) -> tuple[tuple[str, str], ...]:
    pairs = [part.split(":=") for part in text.split()]
    if any(len(pair) != 2 or not all(pair) for pair in pairs):
        raise ConfigError(f"LaunchArguments.remap = {text!r}: expected from:=to separated by blanks")
    return tuple((source, target) for source, target in pairs)
