"""`policytrim doctor`: what this machine offers, one line a subject, each with what to do when something is missing; under 60 s.

With ``live`` also what the running system says of itself (live_doctor.py), before the first go of a day. How the time is shared and what
happens to a subject that hangs: findings.py.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Iterator, Mapping, Sequence

import yaml

from policytrim_ros.children import free_memory_mb
from policytrim_ros.core.contract import Contract, mismatches, robot_contract
from policytrim_ros.findings import BAD, GOOD, WARNING, Finding, Subject, report
from policytrim_ros.graph import EMULATED_SERIALS, LaunchArguments, has_gpu, parse_size, renderer, runtime_dir
from policytrim_ros.share import share

REALTIME_PRIORITY = 50
"""What the controller asks for by default."""

TIME_ERROR = 5
"""adjtimex(2): "the system clock is not synchronized to a reliable server"."""

VULKAN_S, CAMERAS_S, GPU_S, LIVE_S = 10.0, 8.0, 5.0, 20.0
"""Shares of what takes longest; the last: listening for 5 s, asking three nodes, and what it takes to begin and to end."""

SMI = "nvidia-smi"
SMI_QUERY = "--query-gpu=name,memory.free,memory.total", "--format=csv,noheader,nounits"

FIND_CAMERAS = """
import json, pyrealsense2 as rs
name, serial = rs.camera_info.name, rs.camera_info.serial_number
print(json.dumps([[device.get_info(name), device.get_info(serial)] for device in rs.context().query_devices()]))
"""


def doctor(robot: bool, checkpoint: str = "", live: bool = False, namespace: str = "") -> int:
    """Prints all findings, each as soon as it is known; 1 when something is missing."""
    return report(subjects(robot, checkpoint, live, namespace))


def subjects(robot: bool, checkpoint: str = "", live: bool = False, namespace: str = "") -> list[Subject]:
    """What is looked at, in this order; the checkpoint last, which may take all the time that the others leave."""
    needed = BAD if robot else WARNING
    found = [
        Subject("Python", python),
        Subject("ROS 2", ros, 8.0),
        Subject("packages", modules),
        Subject("Vulkan", vulkan, VULKAN_S + 1.0, advice="the graphics driver hangs: restart this machine, or install Mesa's"),
        Subject("CAN", lambda: can(robot), silent=needed, advice="unplug the adapter and plug it in again"),
        Subject("cameras", lambda: cameras(robot), CAMERAS_S + 1.0, needed, "unplug the cameras and plug them in again"),
        Subject("serials", lambda: configured_serials(robot), CAMERAS_S + 1.0, needed, "see cameras"),
        Subject("memory", memory),
        *([Subject("GPU", gpu, GPU_S + 1.0, WARNING, "its driver hangs: restart this machine")] if shutil.which(SMI) else []),
        Subject("disk", disk, advice="a mounted disk hangs: see `dmesg`, and `mount` for what is mounted here"),
        Subject("clock", clock, silent=WARNING),
        Subject("real time", priority, silent=WARNING),
        Subject("sessions", runtime, silent=WARNING),
    ]
    running: dict[str, dict] | None = {} if live else None
    if live:
        advice = "the middleware is missing or hangs: see ROS 2, ROS_DOMAIN_ID and the network interfaces"
        found.append(Subject("system", lambda: system(namespace, running), LIVE_S, advice=advice))
    if checkpoint:
        advice = "it is large, or its disk slow: `policytrim checkpoint verify` takes its time"
        found.append(Subject("contract", lambda: contract(checkpoint, running), 15.0, WARNING, advice))
        found.append(Subject("checkpoint", lambda: policy(checkpoint, robot), 60.0, WARNING, advice))
    return found


def python() -> Finding:
    version = platform.python_version()
    supported = (3, 10) <= sys.version_info[:2] <= (3, 12)
    return Finding(
        "Python",
        GOOD if supported else WARNING,
        f"{version} in {sys.prefix}",
        "" if supported else "3.10 to 3.12 are meant, 3.11 is tested",
    )


def ros() -> Finding:
    try:
        importlib.import_module("rclpy")
    except ImportError as error:
        return Finding("ROS 2", BAD, str(error), "source your ROS 2 installation, or run `make setup` for the wheels")
    where = "a sourced installation" if os.environ.get("AMENT_PREFIX_PATH") else "wheels in this environment"
    return Finding("ROS 2", GOOD, f"rclpy from {where}, ROS_DOMAIN_ID={os.environ.get('ROS_DOMAIN_ID') or 0}")


def modules():
    """The Python packages of the robot, the policy and the simulation."""
    for name, distribution, extra in (
        ("piper_sdk", "piper_sdk", "robot"),
        ("pyrealsense2", "pyrealsense2", "robot"),
        ("torch", "torch", "policy"),
        ("transformers", "transformers", "policy"),
        ("mani_skill", "mani_skill", "sim"),
    ):
        try:
            yield Finding(name, GOOD, importlib.metadata.version(distribution))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, BAD, "not installed", f"pip install -e '.[{extra}]', or `make setup`")


def vulkan() -> Finding:
    """Whether the simulator can draw, tried in a process of its own: a bad driver may end the process."""
    trial = subprocess.run(
        [sys.executable, "-c", "import sapien; sapien.render.RenderMaterial(); print('drawn')"],
        env={**os.environ, **renderer()},
        capture_output=True,
        text=True,
        timeout=VULKAN_S,
    )
    if trial.returncode == 0 and "drawn" in trial.stdout:
        return Finding("Vulkan", GOOD, "a GPU" if has_gpu() else "Mesa's software renderer")
    last = (trial.stderr.strip().splitlines() or ["no message"])[-1]
    return Finding("Vulkan", BAD, last, "install libvulkan1 and mesa-vulkan-drivers (Mesa 23 or newer); `make setup` does")


def can(robot: bool) -> Finding:
    interfaces = [path.name for path in Path("/sys/class/net").glob("*") if (path / "type").read_text().strip() == "280"]
    if not interfaces:
        return Finding(
            "CAN",
            BAD if robot else WARNING,
            "no interface",
            "only a robot needs one; plug in the adapter, then: ip link set can0 up type can bitrate 1000000",
        )
    down = [name for name in interfaces if (Path("/sys/class/net") / name / "operstate").read_text().strip() == "down"]
    return Finding(
        "CAN",
        WARNING if down else GOOD,
        ", ".join(interfaces),
        f"{down[0]} is down: ip link set {down[0]} up type can bitrate 1000000" if down else "",
    )


@functools.lru_cache(maxsize=1)
def devices() -> tuple[tuple[str, str], ...]:
    """(name, serial) of every RealSense on the USB, asked in a process of its own: a hanging driver holds the interpreter.

    ImportError where the library is missing; subprocess.TimeoutExpired where it hangs.
    """
    asked = subprocess.run([sys.executable, "-c", FIND_CAMERAS], capture_output=True, text=True, timeout=CAMERAS_S)
    if asked.returncode:
        raise ImportError((asked.stderr.strip().splitlines() or ["no message"])[-1])
    return tuple((name, serial) for name, serial in json.loads(asked.stdout.splitlines()[-1]))


def cameras(robot: bool) -> Finding:
    try:
        found = devices()
    except ImportError as error:
        return Finding("cameras", BAD, str(error), "pip install -e '.[robot]', or `make setup`")
    if not found:
        return Finding(
            "cameras", BAD if robot else WARNING, "no RealSense", "only a robot needs them; plug them into USB 3 ports"
        )
    return Finding("cameras", GOOD, "; ".join(f"{name} serial {serial}" for name, serial in found))


def serials(camera: Mapping[str, Any], present: Sequence[tuple[str, str]], robot: bool) -> Iterator[Finding]:
    """Whether the serials among the camera node's parameters are those of different cameras that are connected.

    ``present``: (name, serial) of what is connected.
    """
    named = {name: str(serial) for name, serial in zip(camera.get("cameras", ()), camera.get("serials", ())) if serial}
    if not named:
        advice = "give them as cameras:=front=<serial>,wrist=<serial>"
        yield Finding("serials", WARNING if robot else GOOD, "none is configured", advice if robot else "")
        return
    there = sorted(serial for _, serial in present)
    for serial in sorted(set(named.values())):
        owners = [name for name, own in named.items() if own == serial]
        if len(owners) > 1:
            yield Finding("serials", BAD, f"{' and '.join(owners)} both have serial {serial}", "give each camera its own")
        if serial not in there:
            what = f"{' and '.join(owners)} is to be serial {serial}, connected: {', '.join(there) or 'none'}"
            yield Finding("serials", BAD, what, "plug it in, or configure one that is connected")
    if set(named.values()) <= set(there) and len(set(named.values())) == len(named):
        yield Finding("serials", GOOD, ", ".join(f"{name} is {serial}" for name, serial in named.items()) + ", connected")


def configured_serials(robot: bool) -> Iterator[Finding]:
    """The serials in config/camera.yaml, if there are any, against what is connected."""
    camera = {"cameras": list(EMULATED_SERIALS)} | configured("camera")
    yield from serials(camera, devices() if any(camera.get("serials", ())) else (), robot)


def configured(node: str) -> dict[str, Any]:
    """The parameters of ``node`` in config/<node>.yaml."""
    return (yaml.safe_load((share("config") / f"{node}.yaml").read_text()) or {}).get("/**", {}).get("ros__parameters", {})


def clock(state: int | None = None) -> Finding:
    """Whether the wall clock follows a time server; ``state`` as adjtimex(2) returns it, which is asked without it."""
    state = clock_state() if state is None else state
    advice = "`timedatectl set-ntp true`, or chrony: dates of recordings and stamps from other machines are in doubt"
    if state < 0 and Path("/run/systemd/timesync/synchronized").exists():
        return Finding("clock", GOOD, "synchronised, says systemd")
    if state < 0:
        return Finding("clock", WARNING, "this system does not say whether it is synchronised", advice)
    if state == TIME_ERROR:
        return Finding("clock", WARNING, "not synchronised", advice)
    return Finding("clock", GOOD, "synchronised")


def clock_state() -> int:
    """What adjtimex(2) says of the wall clock, unchanged; -1 when it cannot be asked."""
    try:
        return ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(1024))  # a timex of zeros: change nothing
    except (OSError, AttributeError):
        return -1


def disk() -> Finding:
    free = shutil.disk_usage(".").free / 1e9
    shared = shutil.disk_usage("/dev/shm").free / 1e6
    enough = free > 2 and shared > 200
    return Finding(
        "disk",
        GOOD if enough else WARNING,
        f"{free:.0f} GB here, {shared:.0f} MB shared memory",
        "" if enough else "recordings want 2 GB here, images 200 MB of /dev/shm (in a container: --shm-size=1g)",
    )


def memory() -> Finding:
    free = free_memory_mb() / 1e3
    return Finding(
        "memory", GOOD if free > 4 else WARNING, f"{free:.1f} GB free", "" if free > 4 else "the whole system takes 4 GB"
    )


def gpu() -> Finding:
    """What is free on each NVIDIA GPU; what a checkpoint needs is said when it is loaded."""
    asked = subprocess.run([SMI, *SMI_QUERY], capture_output=True, text=True, timeout=GPU_S)
    if asked.returncode:
        said = (asked.stdout + asked.stderr).strip().splitlines() or [f"{SMI} ended with {asked.returncode}"]
        return Finding("GPU", WARNING, said[0], "policies run on the CPU until the driver is well; see `nvidia-smi`")
    rows = [[cell.strip() for cell in line.split(",")] for line in asked.stdout.splitlines() if line.strip()]
    free = [f"{name}: {int(free) / 1024:.1f} of {int(total) / 1024:.1f} GB free" for name, free, total in rows]
    return Finding("GPU", GOOD, "; ".join(free))


def priority() -> Finding:
    """Whether the controller may ask for real-time priority."""
    most = resource.getrlimit(resource.RLIMIT_RTPRIO)[1]
    allowed = os.geteuid() == 0 or most == resource.RLIM_INFINITY or most >= REALTIME_PRIORITY
    return Finding(
        "real time",
        GOOD if allowed else WARNING,
        "the controller may have priority" if allowed else f"rtprio is limited to {most}",
        "" if allowed else "setpoints will be late on a busy machine; add an rtprio line to /etc/security/limits.d",
    )


def policy(directory: str, robot: bool) -> Finding:
    """Whether the checkpoint is whole, and what the simulated twin said of it."""
    from policytrim_ros.policies import checkpoint, staging

    try:
        manifest = checkpoint.verify(directory)
    except checkpoint.CheckpointError as error:
        return Finding("checkpoint", BAD, str(error))
    refusal = staging.not_passed(directory, manifest, ())
    facts = f"{directory}: {manifest['family']}, {', '.join(manifest['tasks'])}"
    return Finding("checkpoint", GOOD if not refusal else BAD if robot else WARNING, facts, refusal)


def system(namespace: str, parameters: dict[str, dict]) -> Iterator[Finding]:
    """What the running system says; fills ``parameters`` with those of its nodes."""
    from policytrim_ros.live_doctor import running_system  # not before its turn: it needs ROS 2

    return running_system(namespace, parameters)


def contract(directory: str, running: Mapping[str, Mapping] | None) -> Finding:
    """Whether the checkpoint fits the running system's parameters, {node: {name: value}}, or without them what is configured."""
    from policytrim_ros.policies import checkpoint

    try:
        theirs = checkpoint.contract_of(checkpoint.read_manifest(directory), directory)
    except checkpoint.CheckpointError as error:
        return Finding("contract", BAD, str(error))
    if running is None:
        return fits(theirs, deployment(), "config/*.yaml and the defaults of `policytrim up`", WARNING)
    if not running.get("inference"):
        return Finding("contract", WARNING, "the inference node does not tell its parameters", "start it, or leave --live out")
    finding = fits(theirs, deployed(running["inference"]), "the parameters of the running inference node", BAD)
    rates = [running.get(node, {}).get("control_rate_hz") for node in ("inference", "controller")]
    if finding.state == GOOD and None not in rates and rates[0] != rates[1]:
        what = f"control rate (Hz): inference speaks for {rates[0]:g}, the controller plays {rates[1]:g}"
        return Finding("contract", BAD, what, "start both with the same control_rate_hz")
    return finding


def fits(checkpoint: Contract, robot: Contract, where: str, misfit: str) -> Finding:
    """One line: what of ``checkpoint`` does not fit ``robot``, as ``where`` describes it."""
    if sentences := mismatches(checkpoint, robot):
        what = f"does not fit {where}: {'; '.join(sentences)}"
        return Finding("contract", misfit, what, "take a checkpoint made for it, or start with its camera_size and control_rate_hz")
    cameras = ", ".join(f"{camera.name} {camera.width}x{camera.height}" for camera in robot.cameras)
    return Finding("contract", GOOD, f"fits {where} ({cameras}, {robot.control_rate_hz:g} Hz)")


def deployed(inference: Mapping[str, Any]) -> Contract:
    """The robot as the parameters of an inference node declare it."""
    return robot_contract(
        {name: (inference["width"], inference["height"]) for name in inference["cameras"]},
        control_rate_hz=inference["control_rate_hz"],
        execution_horizon=inference.get("horizon", 0),
        tasks=[inference["task"]] if inference.get("task") else [],
    )


def deployment() -> Contract:
    """The robot as config/inference.yaml and the defaults of the launch arguments declare it."""
    arguments = LaunchArguments()
    width, height = parse_size(arguments.camera_size)
    defaults = dict(cameras=list(EMULATED_SERIALS), width=width, height=height, control_rate_hz=arguments.control_rate_hz)
    return deployed(defaults | configured("inference"))


def runtime() -> Finding:
    locks = [path.stem for path in runtime_dir().glob("*.lock")]
    return Finding("sessions", GOOD, f"{', '.join(sorted(locks)) or 'none'} known in {runtime_dir()}")
