"""Pictures from the camera node to another process: rate, loss, latency, CPU, with and without the 16 MB segment.

    python -m benchmarks.camera_transport [--seconds 20] [--save FILE.json]

Two emulated cameras (test pattern, 640x480 at 30 Hz) pass through librealsense and the real camera node; this process
subscribes. A frame number drawn into each picture tells what was missed; latency is from the device's stamp to the
arrival in the subscriber's callback. Run it on a quiet machine: the load is printed with the table.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
PROFILE = ROOT / "config" / "fastdds_shm.xml"
CAMERAS = ("front", "wrist")


def subscribe(seconds: float, depth: bool) -> dict:
    """Receives for ``seconds`` after the first picture of each camera; figures of each camera and of this process."""
    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from sensor_msgs.msg import Image

    from policytrim_ros.nodes.camera import QOS

    rclpy.init()
    node = rclpy.create_node("camera_benchmark")
    seen = {name: [] for name in CAMERAS}  # (number, latency s, whole)
    depths = dict.fromkeys(CAMERAS, 0)

    def receive(name, message):
        latency = time.time() - message.header.stamp.sec - message.header.stamp.nanosec * 1e-9
        number = int(np.frombuffer(message.data, np.uint32, 1)[0])
        seen[name].append((number, latency, len(message.data) == message.height * message.step))

    def receive_depth(name, _message):
        depths[name] += 1

    for name in CAMERAS:
        node.create_subscription(Image, f"{name}/color/image_raw", lambda m, n=name: receive(n, m), QOS)
        if depth:
            topic = f"{name}/aligned_depth_to_color/image_raw"
            node.create_subscription(Image, topic, lambda m, n=name: receive_depth(n, m), QOS)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    deadline = time.monotonic() + 30
    while not all(seen.values()):
        executor.spin_once(timeout_sec=0.1)
        if time.monotonic() > deadline:
            raise TimeoutError("no pictures within 30 s")
    for pictures in seen.values():
        pictures.clear()
    depths.update(dict.fromkeys(CAMERAS, 0))
    print("receiving", flush=True)
    begin, cpu = time.monotonic(), time.process_time()
    while time.monotonic() - begin < seconds:
        executor.spin_once(timeout_sec=0.1)
    elapsed, cpu = time.monotonic() - begin, time.process_time() - cpu
    result = {"cpu_percent": 100 * cpu / elapsed}
    for name, pictures in seen.items():
        numbers = [number for number, _, _ in pictures]
        latency_ms = np.percentile([1000 * latency for _, latency, _ in pictures], (50, 99)) if pictures else (np.nan, np.nan)
        sent = numbers[-1] - numbers[0] + 1 if numbers else 0
        result[name] = dict(
            hz=len(pictures) / elapsed,
            lost=sent - len(set(numbers)),
            sent=sent,
            broken=sum(not whole for _, _, whole in pictures),
            p50_ms=float(latency_ms[0]),
            p99_ms=float(latency_ms[1]),
            depth_hz=depths[name] / elapsed,
        )
    node.destroy_node()
    rclpy.shutdown()
    return result


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(name: str, profile: Path | None, depth: bool, seconds: float) -> dict:
    """One row: a fresh camera node and a fresh subscriber, both with (or without) ``profile``."""
    environment = {key: value for key, value in os.environ.items() if key != "FASTRTPS_DEFAULT_PROFILES_FILE"}
    if profile is not None:
        environment["FASTRTPS_DEFAULT_PROFILES_FILE"] = str(profile)
    context = f"sim_bridge.realsense:context?session=pattern-benchmark-{os.getpid()}"
    node = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "policytrim_ros.nodes.camera",
            "--ros-args",
            "-p",
            "serials:=[emulated-front,emulated-wrist]",
            "-p",
            f"realsense_context:={context}",
            "-p",
            f"publish_depth:={str(depth).lower()}",
            "--log-level",
            "warn",
        ],
        cwd=ROOT,
        env=environment,
    )
    try:
        command = [sys.executable, "-m", "benchmarks.camera_transport", "--subscribe", "--seconds", str(seconds)]
        command += ["--depth"] * depth
        with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as reader:
            if reader.stdout.readline().strip() != "receiving":
                raise RuntimeError("the subscriber received nothing")
            begin, cpu = time.monotonic(), cpu_seconds(node.pid)
            output = reader.stdout.read()
            result = json.loads(output)
            result["camera_cpu_percent"] = 100 * (cpu_seconds(node.pid) - cpu) / (time.monotonic() - begin)
    finally:
        node.send_signal(signal.SIGINT)
        node.wait(20)
    return {"setting": name, **result}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--subscribe", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--depth", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.subscribe:
        print(json.dumps(subscribe(arguments.seconds, arguments.depth)))
        return
    settings = (("default transport", None, False), ("16 MB segment", PROFILE, False), ("16 MB segment + depth", PROFILE, True))
    load = os.getloadavg()[0]
    rows = [measure(*setting, arguments.seconds) for setting in settings]
    print(f"2 x 640x480 at 30 Hz for {arguments.seconds:.0f} s, {os.cpu_count()} cores, load before {load:.2f}")
    print("| setting | camera | Hz | lost/sent | p50 ms | p99 ms | depth Hz | CPU node | CPU reader |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        for name in CAMERAS:
            r = row[name]
            print(
                f"| {row['setting']} | {name} | {r['hz']:.1f} | {r['lost']}/{r['sent']} | {r['p50_ms']:.1f} | "
                f"{r['p99_ms']:.1f} | {r['depth_hz']:.1f} | {row['camera_cpu_percent']:.0f} % | {row['cpu_percent']:.0f} % |"
            )
    if arguments.save:
        arguments.save.write_text(json.dumps({"load": load, "seconds": arguments.seconds, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
