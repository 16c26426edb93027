"""Lateness of the setpoint thread, images at the inference node and CPU of every process: alone, and with everything running.

    python benchmarks/control_loop.py [--seconds 20] [--checkpoint models/tape_box] [--out docs/results/control_loop]

Starts the processes of `policytrim up` itself, in a session and a ROS domain of its own. Figures come from the nodes' own
diagnostics; lateness is how long after its deadline the setpoint thread woke up, over the last five seconds of each sample.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Mapping
from unittest.mock import patch

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.signals import SignalHandlerOptions
from std_srvs.srv import SetBool, Trigger

from policytrim_ros.graph import FACTOR
from policytrim_ros.nodes.process import udp_alone
from policytrim_ros.training.version import commit

ROOT = Path(__file__).resolve().parents[1]
DOMAIN = "77"


class Probe:
    """Hears diagnostics and gives orders; by UDP alone, like the controller, since it outlives the processes that it kills.

    With shared memory it would write to a killed process's port until the wall clock has passed the latest one ever told (Fast DDS 2.14):
    minutes, after a clock that was set back by minutes.
    """

    def __init__(self):
        with patch.dict(os.environ):  # the others choose for themselves
            udp_alone()
            rclpy.init(signal_handler_options=SignalHandlerOptions.NO)  # Ctrl-C is Python's own: what was measured is kept
            self.node = rclpy.create_node("benchmark")
        self._clients, self.heard = {}, {}  # by service; what each node has said in its diagnostics, newest last
        self.node.create_subscription(DiagnosticArray, "diagnostics", self._on, 50)

    def _on(self, message):
        for status in message.status:
            values = {value.key: value.value for value in status.values}
            self.heard.setdefault(status.name, []).append(values | {"message": status.message})

    def close(self):
        self.node.destroy_node()
        rclpy.shutdown()

    def spin(self, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            rclpy.spin_once(self.node, timeout_sec=0.1)

    def order(self, name, request=None):
        if name not in self._clients:  # one for each: every other process keeps account of them
            self._clients[name] = self.node.create_client(SetBool if request is not None else Trigger, name)
        client = self._clients[name]
        if not client.wait_for_service(60.0):
            raise SystemExit(f"no service {name}")
        future = client.call_async(Trigger.Request() if request is None else SetBool.Request(data=request))
        rclpy.spin_until_future_complete(self.node, future, timeout_sec=20.0)
        if future.result() is None:
            raise SystemExit(f"{name} does not answer")
        if not future.result().success:
            raise SystemExit(f"{name} refused: {future.result().message}")


@contextmanager
def running_system(*arguments: str, said: list | None = None, environment: Mapping[str, str] | None = None):
    """`policytrim up` with ``arguments``, in a session and a ROS domain of its own, ended afterwards; gives its command line.

    ``said`` gets every line that it prints, ``environment`` is set for it alone.
    """
    os.environ.update(ROS_DOMAIN_ID=DOMAIN, ROS_AUTOMATIC_DISCOVERY_RANGE="LOCALHOST")
    os.environ.setdefault(FACTOR, "1")  # the benchmark and what it measures go by one clock
    words = [sys.executable, "-m", "policytrim_ros.cli", "up", "session:=benchmark", *arguments]
    variables = {**os.environ, **(environment or {})}
    system = subprocess.Popen(words, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    running = threading.Event()

    def read():
        for line in system.stdout:
            print("   ", line.rstrip(), flush=True)
            if said is not None:
                said.append(line.rstrip())
            if line.startswith("running;"):
                running.set()

    threading.Thread(target=read, daemon=True).start()
    try:
        while not running.wait(1.0):
            if system.poll() is not None:
                raise SystemExit("the system did not start; see its lines above")
        yield " ".join(words[1:])
    finally:
        if system.poll() is None:
            system.send_signal(signal.SIGINT)
            system.wait(60)


def cpu_seconds(pids: dict[str, int]) -> dict[str, float]:
    ticks = os.sysconf("SC_CLK_TCK")
    return {
        name: sum(map(int, Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13])) / ticks
        for name, pid in pids.items()
    }


def processes() -> dict[str, int]:
    """Name -> pid of the project's processes in this benchmark's ROS domain."""
    modules = {
        "sim_bridge.world": "world",
        "sim_bridge.piper_emulator": "piper_emulator",
        "policytrim_ros.nodes.camera": "camera",
        "policytrim_ros.nodes.controller": "controller",
        "policytrim_ros.nodes.inference": "inference",
        "sim_bridge.demonstrator_node": "demonstrator",
        "policytrim_ros.nodes.recorder": "recorder",
        "policytrim_ros.nodes.console": "console",
    }
    found: dict[str, int] = {}
    for folder in sorted(Path("/proc").glob("[0-9]*"), key=lambda folder: int(folder.name)):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if f"ROS_DOMAIN_ID={DOMAIN}".encode() not in (folder / "environ").read_bytes().split(b"\0"):
                continue
        except OSError:
            continue
        for module, name in modules.items():
            if module.encode() in words:
                found.setdefault(name, int(folder.name))  # a child that is about to become another program still bears its name
    return found


def sample(probe, seconds, scenario):
    probe.spin(6.0)  # the window of the lateness figures
    before, began = cpu_seconds(processes()), time.monotonic()
    probe.heard.clear()
    probe.spin(seconds)
    span, after = time.monotonic() - began, cpu_seconds(processes())
    controller = probe.heard["controller"]
    row = {
        "scenario": scenario,
        "controller": controller[-1],
        "lateness_p50_ms": max(float(d["lateness_p50_ms"]) for d in controller),
        "lateness_p99_ms": max(float(d["lateness_p99_ms"]) for d in controller),
        "lateness_max_ms": max(float(d["lateness_max_ms"]) for d in controller),
        "cpu_percent": {name: round(100 * (after[name] - before[name]) / span, 1) for name in after if name in before},
        "inference": probe.heard.get("inference", [{}])[-1],
        "load": os.getloadavg(),
    }
    row["everything"] = {name: values[-1] for name, values in probe.heard.items()}
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument(
        "--checkpoint", default="", help="checkpoint or demonstrator:clean; empty: the project's own for tape_box"
    )
    parser.add_argument("--out", default="", help="also write <out>.json and <out>.md")
    options = parser.parse_args()
    with running_system(*([f"checkpoint:={options.checkpoint}"] if options.checkpoint else [])) as command:
        probe = Probe()
        rows = [sample(probe, options.seconds, "world, cameras and controller; the arm at rest")]
        probe.order("controller/home")
        probe.spin(5.0)
        probe.order("scene/reset")
        probe.order("controller/go")
        probe.order("scene/start")
        probe.order("inference/run", True)
        rows.append(sample(probe, options.seconds, "everything, the policy moving the arm"))
        probe.order("inference/run", False)
        probe.order("controller/hold")
    report(rows, options, command)


def report(rows, options, command):
    lines = [
        "| scenario | late p50 ms | late p99 ms | late max ms | CAN frames/s | CPU % of one core |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        cpu = ", ".join(f"{name} {value:.0f}" for name, value in row["cpu_percent"].items())
        lines.append(
            f"| {row['scenario']} | {row['lateness_p50_ms']:.2f} | {row['lateness_p99_ms']:.2f} | {row['lateness_max_ms']:.2f} | "
            f"{row['controller']['can_frames_per_s']} | {cpu} |"
        )
    images = rows[-1]["inference"]
    if "front_images_per_s" in images:
        lines += ["", "| camera | images/s at the inference node | age p50 ms | age p99 ms |", "| --- | --- | --- | --- |"]
        lines += [
            f"| {c} | {images[f'{c}_images_per_s']} | {images[f'{c}_age_ms_p50']} | {images[f'{c}_age_ms_p99']} |"
            for c in ("front", "wrist")
        ]
    text = "\n".join(lines)
    print(
        f"\nlateness: the worst of the {options.seconds:.0f} s, each figure over a window of 5 s; {os.cpu_count()} cores, {platform.machine()}\n\n{text}"
    )
    if options.out:
        version = commit()
        out = Path(options.out)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.with_suffix(".json").write_text(
            json.dumps(dict(commit=version, command=command, cores=os.cpu_count(), rows=rows), indent=1)
        )
        out.with_suffix(".md").write_text(
            f"# Control loop\n\nCommit {version}; `python benchmarks/control_loop.py --seconds {options.seconds:g}`; "
            f"{os.cpu_count()} cores, {platform.machine()}, no GPU.\n\n{text}\n"
        )


if __name__ == "__main__":
    main()
