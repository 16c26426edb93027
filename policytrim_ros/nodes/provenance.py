"""With what a session of trials was carried out: checkpoints, contracts, commit, parameters, cameras, firmware, machine."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import platform
from pathlib import Path

import policytrim_ros
from policytrim_ros.core.contract import is_remote
from policytrim_ros.nodes.rig import DESCRIBED, RosRig
from policytrim_ros.training.version import commit
from policytrim_ros.trials.session import Arm, Session


def provenance(rig: RosRig, session: Session) -> dict:
    """Everything that a reader needs to carry the session out again; what does not answer is missing, never invented."""
    parameters = {name: found for name in DESCRIBED if (found := rig.parameters(name))}
    camera = parameters.get("camera", {})
    return {
        "version": policytrim_ros.__version__,
        "commit": commit(),
        "simulated": rig.simulated,
        "operator": getpass.getuser(),
        "commands": [typed] if (typed := os.environ.get("POLICYTRIM_COMMAND")) else [],
        "machine": f"{platform.node()} {platform.platform()} {platform.machine()} Python {platform.python_version()}",
        "arms": {arm.label: of_arm(arm, session.tasks, rig.inference.get("checkpoint", "")) for arm in session.arms},
        "camera_serials": dict(zip(camera.get("cameras", []), camera.get("serials", []))),
        "firmware": rig.diagnostics.get("controller", {}).get("firmware", ""),
        "parameters": parameters,
    }


def of_arm(arm: Arm, tasks: list[str], loaded: str) -> dict:
    """`describe` of the arm's checkpoint (or of what is ``loaded``); by task where it has several."""
    if not arm.checkpoints:
        return describe(arm.checkpoint or loaded)
    return {"tasks": {task: describe(arm.checkpoint_for(task) or loaded) for task in tasks}}


def describe(checkpoint: str) -> dict:
    """A checkpoint by its directory and digests; of a policy server or a demonstrator only the name."""
    if not checkpoint or is_remote(checkpoint):
        return {"checkpoint": checkpoint}
    try:
        manifest = json.loads((Path(checkpoint) / "manifest.json").read_text())
        contract = json.dumps(manifest["contract"], sort_keys=True).encode()
        return {
            "checkpoint": checkpoint,
            "files": manifest["files"],
            "contract_sha256": hashlib.sha256(contract).hexdigest(),
            "execution_horizon": manifest["contract"].get("execution_horizon"),
        }
    except (OSError, ValueError, KeyError):
        return {"checkpoint": checkpoint}
