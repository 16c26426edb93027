"""With what a session was carried out: what is missing is named, and what changed before it went on is told."""

import json

import pytest
from session_samples import about, plan, rows_of

from policytrim_ros.nodes import provenance as subject
from policytrim_ros.nodes.provenance import provenance, since
from policytrim_ros.trials.claims import claims
from policytrim_ros.trials.session import Arm, Session

CAMERA = {"cameras": ["front"], "serials": [""], "fps": 30}


class Rig:
    """A rig whose nodes tell ``parameters`` and ``diagnostics``."""

    real_time_factor = 1.0

    def __init__(self, simulated=False, diagnostics=None, **parameters):
        self.simulated, self._parameters, self._diagnostics = simulated, parameters, diagnostics or {}
        self.inference = {"checkpoint": "models/x"}
        self.described = ("controller", "inference", "camera", *(["world"] if simulated else []))

    def parameters(self, node):
        return self._parameters.get(node, {})

    def measured(self, part, key):
        return self._diagnostics.get(part, {}).get(key, "")


@pytest.fixture(autouse=True)
def committed(monkeypatch):
    monkeypatch.setattr(subject, "commit", lambda: "abc")


def checkpoint(folder):
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"files": {}, "contract": {"execution_horizon": 5}}))
    return Session(arms=[Arm("A", str(folder))])


def whole(**changes):
    """A rig that tells everything."""
    told = {"controller": {"firmware": "S-V1.6-3"}, "camera: front": {"device": "0123"}}
    nodes = {"controller": {"speed_scale": 1.0}, "inference": {"mode": "async"}, "camera": CAMERA}
    return Rig(diagnostics=told, **{**nodes, **changes})


def test_a_provenance_that_is_whole_misses_nothing_and_has_the_serial_that_the_device_tells(tmp_path):
    found = provenance(whole(), checkpoint(tmp_path / "a"))
    assert found["missing"] == [] and found["camera_serials"] == {"front": "0123"} and found["firmware"] == "S-V1.6-3"
    assert len(found["arms"]["A"]["contract_sha256"]) == 64


def test_what_no_node_told_is_named_as_missing():
    unheard = Rig(camera=CAMERA, diagnostics={"controller": {"firmware": "unknown"}})
    assert provenance(unheard, Session(arms=[Arm("A", "nowhere")]))["missing"] == [
        "parameters of controller",
        "parameters of inference",
        "serial number of camera front",
        "firmware of the arm",
        "contract of A",
    ]


def test_the_parameters_of_a_simulated_world_belong_to_it(tmp_path):
    found = provenance(Rig(simulated=True, world={"seed": 3}), checkpoint(tmp_path / "a"))
    assert found["parameters"] == {"world": {"seed": 3}} and "parameters of world" not in found["missing"]


def test_an_arm_behind_a_policy_server_has_the_contract_that_the_server_tells(monkeypatch):
    from policytrim_ros.policies import remote

    class Served:
        metadata = {"contract": {"execution_horizon": 7}}

        def __init__(self, address, open_s):
            if "gone" in address:
                raise remote.RemoteError("nobody answers")

        def close(self): ...

    monkeypatch.setattr(remote, "RemotePolicy", Served)
    arms = [Arm("A", "ws://here:1"), Arm("B", "ws://gone:1")]
    found = provenance(whole(), Session(arms=arms))
    assert found["arms"]["A"]["execution_horizon"] == 7 and found["missing"] == ["contract of B"]


def test_what_changed_before_a_session_went_on_is_told_once_and_what_differs_in_every_trial_is_not(tmp_path):
    spec = checkpoint(tmp_path / "a")
    stored = {"provenance": provenance(whole(inference={"mode": "async", "horizon": 5}), spec), "events": []}
    faster = provenance(whole(controller={"speed_scale": 0.5}, inference={"mode": "async", "horizon": 15}), spec)
    told = since(stored, faster)
    assert told == {"changed": {"parameters.controller.speed_scale": [1.0, 0.5]}, "missing": []}
    stored["events"].append({"kind": "resumed", "detail": told})
    assert since(stored, faster)["changed"] == {}


def test_what_was_missing_before_or_is_missing_now_is_no_change(tmp_path):
    spec = checkpoint(tmp_path / "a")
    known, unknown = provenance(whole(), spec), provenance(Rig(), spec)
    assert since({"provenance": known, "events": []}, unknown)["changed"] == {}
    assert since({"provenance": unknown, "events": []}, known)["changed"] == {}


def test_a_report_warns_of_what_is_missing_and_of_what_changed():
    session = about(missing=["firmware of the arm"])
    session["events"] = [{"kind": "resumed", "detail": {"changed": {"commit": ["abc", "def"]}, "missing": []}}]
    spec = plan(scenes=2)
    warned = claims(spec, rows_of(spec), [session], []).warnings
    assert "It is not known with what session s1 was carried out: firmware of the arm." in warned
    assert "Session s1 was resumed with something changed: commit (abc -> def). Its trials are not all alike." in warned
    assert not [one for one in claims(spec, rows_of(spec), [about()], []).warnings if "resumed" in one or "not known" in one]
