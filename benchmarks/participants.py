"""What other processes that start and die do to the setpoints of a controller that holds the arm.

    python -m benchmarks.participants [--starts 20] [--out docs/results/participants]

Starts the simulated robot (`policytrim up`) and beside it, one after another, small ROS nodes that hear the controller; each is killed with
SIGKILL three seconds later. Once with the transport that the controller chooses (UDP alone), once with shared memory, which a user's own
profile may ask for. `late`: how long after its deadline the setpoint thread woke up, by its own diagnostics.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from std_msgs.msg import String

from benchmarks.control_loop import ROOT, Probe, running_system
from benchmarks.results import circumstances, in_words, leave, markdown
from policytrim_ros.nodes.messages import LATCHED
from policytrim_ros.nodes.process import PROFILES

ALIVE_S, SLOW_MS = 3.0, 20.0
LISTENER = """
import rclpy
from sensor_msgs.msg import JointState
from std_msgs.msg import String
rclpy.init()
node = rclpy.create_node("listener")
for name in ("joint_states", "controller/setpoint"):
    node.create_subscription(JointState, name, lambda message: None, 10)
for name in ("controller/state", "heartbeat"):
    node.create_subscription(String, name, lambda message: None, 10)
rclpy.spin(node)
"""
HEAD = ("transport of the controller", "processes started", f"times later than {SLOW_MS:g} ms", "latest, ms", "faults")


def row(transport: str, starts: int, folder: Path) -> dict:
    """One run of the system; ``transport``: UDP or shared memory."""
    if transport == "shared memory":  # a profile that is not the project's own is left alone
        os.environ[PROFILES] = str(shutil.copy(ROOT / "config" / "fastdds_shm.xml", folder / "profile.xml"))
    try:
        with running_system("checkpoint:=demonstrator:clean"):
            probe, states = Probe(), []
            probe.node.create_subscription(String, "controller/state", lambda message: states.append(message.data), LATCHED)
            probe.order("controller/home")
            probe.spin(8.0)  # the window of the lateness figures
            probe.heard.clear()
            slow, latest = 0, 0.0
            for _ in range(starts):
                listener = subprocess.Popen([sys.executable, "-c", LISTENER], stderr=subprocess.DEVNULL)
                probe.spin(ALIVE_S)
                listener.kill()
                listener.wait()
                probe.spin(ALIVE_S)  # together the window: every start counts once
                late = max(float(said["lateness_max_ms"]) for said in probe.heard.pop("controller"))
                slow, latest = slow + (late > SLOW_MS), max(latest, late)
                if states[-1].startswith("fault"):
                    probe.order("controller/clear_fault")
            faults = [state for state in states if state.startswith("fault")]
            probe.close()
    finally:
        os.environ.pop(PROFILES, None)
    return {"transport": transport, "starts": starts, "slow": slow, "latest_ms": latest, "faults": faults}


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=20, help="of a process beside the system, with each transport (20)")
    parser.add_argument("--out", type=Path, default=Path("docs/results/participants"))
    options = parser.parse_args(arguments)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        rows = [row(transport, options.starts, Path(folder)) for transport in ("UDP", "shared memory")]
    head = circumstances("participants", load)
    cells = [(r["transport"], r["starts"], r["slow"], f"{r['latest_ms']:.1f}", len(r["faults"])) for r in rows]
    about = f"{__doc__.strip().split(chr(10) * 2)[2]}\n\n{in_words(head)}."
    leave(options.out, "Processes that start and die beside the controller", about, markdown(HEAD, cells), {**head, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
