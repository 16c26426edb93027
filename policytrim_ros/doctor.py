"""`policytrim doctor`: what this machine offers, one line a subject, each with what to do when something is missing.

With ``live`` also what the running system says of itself (live_doctor.py), before the first go of a day.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import resource
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from policytrim_ros.children import free_memory_mb
from policytrim_ros.graph import has_gpu, renderer, runtime_dir

GOOD, WARNING, BAD = "ok", "warning", "missing"
REALTIME_PRIORITY = 50
"""What the controller asks for by default."""


@dataclass(frozen=True)
class Finding:
    """One line: subject, state, what was found, and what to do unless the state is GOOD."""

    subject: str
    state: str
    found: str
    advice: str = ""


def doctor(robot: bool, checkpoint: str = "", live: bool = False, namespace: str = "") -> int:
    """Prints all findings, each as soon as it is known; 1 when something is missing."""
    subjects = [python, ros, modules, vulkan, lambda: can(robot), lambda: cameras(robot), memory, disk, priority, runtime]
    if checkpoint:
        subjects.append(lambda: policy(checkpoint, robot))
    if live:
        from policytrim_ros.live_doctor import running_system

        subjects.append(lambda: running_system(namespace))
    missing = False
    for subject in subjects:
        found = subject()
        for finding in [found] if isinstance(found, Finding) else found:
            print(
                f"{finding.state:8} {finding.subject:12} {finding.found}" + (f": {finding.advice}" if finding.advice else ""),
                flush=True,
            )
            missing |= finding.state == BAD
    return 1 if missing else 0


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
        timeout=120,
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


def cameras(robot: bool) -> Finding:
    try:
        devices = importlib.import_module("pyrealsense2").context().query_devices()
    except ImportError as error:
        return Finding("cameras", BAD, str(error), "pip install -e '.[robot]', or `make setup`")
    info = importlib.import_module("pyrealsense2").camera_info
    found = [f"{device.get_info(info.name)} serial {device.get_info(info.serial_number)}" for device in devices]
    if not found:
        return Finding(
            "cameras", BAD if robot else WARNING, "no RealSense", "only a robot needs them; plug them into USB 3 ports"
        )
    return Finding("cameras", GOOD, "; ".join(found))


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


def runtime() -> Finding:
    locks = [path.stem for path in runtime_dir().glob("*.lock")]
    return Finding("sessions", GOOD, f"{', '.join(sorted(locks)) or 'none'} known in {runtime_dir()}")
