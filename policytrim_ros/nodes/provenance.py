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
from policytrim_ros.nodes.rig import RosRig
from policytrim_ros.training.version import commit
from policytrim_ros.trials.session import Arm, Session


OF_THE_TRIAL = {f"parameters.inference.{name}" for name in ("checkpoint", "horizon")}
OF_THE_TRIAL |= {f"parameters.world.{name}" for name in ("task", "setting", "seed")}
"""What differs from trial to trial and is no change of the session."""
CONTRACT_S = 2.0


def provenance(rig: RosRig, session: Session) -> dict:
    """Everything that a reader needs to carry the session out again; what does not answer is named in ``missing``, never invented."""
    parameters = {name: found for name in rig.described if (found := rig.parameters(name))}
    found = {
        "version": policytrim_ros.__version__,
        "commit": commit(),
        "simulated": rig.simulated,
        "real_time_factor": rig.real_time_factor,
        "operator": getpass.getuser(),
        "commands": [typed] if (typed := os.environ.get("POLICYTRIM_COMMAND")) else [],
        "machine": f"{platform.node()} {platform.platform()} {platform.machine()} Python {platform.python_version()}",
        "arms": {arm.label: of_arm(arm, session.tasks, rig.inference.get("checkpoint", "")) for arm in session.arms},
        "camera_serials": _camera_serials(rig, parameters.get("camera", {})),
        "firmware": _known(rig.measured("controller", "firmware")),
        "parameters": parameters,
    }
    return {**found, "missing": _missing(found, rig.described)}


def since(session: dict, now: dict) -> dict:
    """What has changed when a stored ``session`` (store.read_sessions) goes on with provenance ``now``: {"changed": {path: [before,
    now]}, "missing"}. What either of them does not know is no change."""
    before = _flat(session["provenance"])
    for event in session["events"]:
        if event["kind"] == "resumed":
            before |= {path: value for path, (_, value) in event["detail"].get("changed", {}).items()}
    changed = {
        path: [before[path], value]
        for path, value in _flat(json.loads(json.dumps(now))).items()
        if before.get(path, "") != "" and value not in ("", before[path]) and path not in OF_THE_TRIAL
    }
    return {"changed": changed, "missing": now["missing"]}


def _flat(values: dict, path: str = "") -> dict:
    """The leaves of nested names, as a.b.c; without the commands that were typed, and what was missing."""
    found = {}
    for name, value in values.items():
        if path or name not in ("commands", "missing"):
            found |= _flat(value, f"{path}{name}.") if isinstance(value, dict) else {f"{path}{name}": value}
    return found


def _camera_serials(rig: RosRig, camera: dict) -> dict[str, str]:
    """Of each camera what its device calls itself; where the node does not say, as it was configured."""
    configured = dict(zip(camera.get("cameras", []), camera.get("serials", [])))
    return {name: _known(rig.measured(f"camera: {name}", "device")) or serial for name, serial in configured.items()}


def _known(text: str) -> str:
    return "" if text == "unknown" else text


def _missing(found: dict, described: tuple[str, ...]) -> list[str]:
    """What a reader would look for in vain, in words."""
    missing = [f"parameters of {name}" for name in described if name not in found["parameters"]]
    missing += [f"serial number of camera {name}" for name, serial in found["camera_serials"].items() if not serial]
    missing += ["firmware of the arm"] if not found["firmware"] and not found["simulated"] else []
    missing += ["commit"] if not found["commit"] else []
    for label, arm in found["arms"].items():
        for task, one in arm.get("tasks", {"": arm}).items():
            if "contract_sha256" not in one:
                missing.append(f"contract of {label}{f' ({task})' if task else ''}")
    return missing


def of_arm(arm: Arm, tasks: list[str], loaded: str) -> dict:
    """`describe` of the arm's checkpoint (or of what is ``loaded``); by task where it has several."""
    if not arm.checkpoints:
        return describe(arm.checkpoint or loaded)
    return {"tasks": {task: describe(arm.checkpoint_for(task) or loaded) for task in tasks}}


def describe(checkpoint: str) -> dict:
    """A checkpoint by its directory and digests; of a policy server its name and contract, of a demonstrator the name alone."""
    if is_remote(checkpoint):
        return {"checkpoint": checkpoint, **_of_server(checkpoint)}
    try:
        manifest = json.loads((Path(checkpoint) / "manifest.json").read_text())
        return {"checkpoint": checkpoint, "files": manifest["files"], **_of_contract(manifest["contract"])}
    except (OSError, ValueError, KeyError):
        return {"checkpoint": checkpoint}


def _of_server(address: str) -> dict:
    from policytrim_ros.policies.remote import RemoteError, RemotePolicy

    try:
        policy = RemotePolicy(address, open_s=CONTRACT_S)
        policy.close()
        return _of_contract(policy.metadata["contract"])
    except RemoteError:
        return {}


def _of_contract(contract: dict) -> dict:
    digest = hashlib.sha256(json.dumps(contract, sort_keys=True).encode()).hexdigest()
    return {"contract_sha256": digest, "execution_horizon": contract.get("execution_horizon")}
