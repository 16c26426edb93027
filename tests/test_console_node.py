"""The console's cockpit in front of a system of one node: what an operator sees of sessions, and that what was done is answered as done."""

import json
import threading
import time

import pytest
import rclpy
from rclpy.signals import SignalHandlerOptions
from stack import wait_for
from std_msgs.msg import String
from test_sessions import Disk
from test_trials import FakeSystem, row

from policytrim_ros.console.cockpit import Malformed, Refused
from policytrim_ros.console.glance import word
from policytrim_ros.nodes import console as node_of_console
from policytrim_ros.nodes import rig
from policytrim_ros.nodes.console import Console, ConsoleConfig
from policytrim_ros.nodes.messages import EVENTS, TRIAL_EVENT
from policytrim_ros.nodes.rig import RosRig
from policytrim_ros.nodes.scene import HandScene
from policytrim_ros.trials import protocol
from policytrim_ros.trials.session import Arm, Session
from policytrim_ros.trials.store import Store, read, read_sessions

pytestmark = pytest.mark.integration

BLIND = Session(arms=[Arm("A", "models/x"), Arm("B", "models/y")], scenes=1, seed=10)
STATUS = dict(generation=3, checkpoint="models/x", horizon=5)


class Cockpit:
    """A console from `serve` to `close`, whose main thread is a thread of the test."""

    def __init__(self, out, by_hand=False):
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
        self.node = rclpy.create_node("console", enable_rosout=False)
        config = ConsoleConfig(
            out=str(out), simulated=not by_hand, scene_node="scene" if by_hand else "world", cameras=[], watch=[]
        )
        self.rig, self.store, self.scene = RosRig(self.node, config), Store(out), HandScene() if by_hand else None
        if by_hand:
            self.rig.add(self.scene)
        self.console = Console(self.node, config, self.rig, self.store, self.scene)
        self.state, self.ended, self.thread = self.console.state, threading.Event(), None

    def serve(self):
        self.thread = threading.Thread(target=self.console.conduct, args=(self.ended.is_set,))
        self.thread.start()

    def order(self, name, **details):
        return self.console.order(name, details, "Li")

    def until_phase(self, name):
        wait_for(lambda: self.state()["trial"]["phase"] == name, f"never {name}: {self.state()}", 30)

    def close(self):
        self.ended.set()
        if self.thread is not None:
            self.rig.stop_signal = True
            self.thread.join()
        for part in (self.console, self.store, self.rig):
            part.close()
        for made in (self.scene, self.node):
            if made is not None:
                made.destroy_node()
        rclpy.try_shutdown()


@pytest.fixture
def cockpit(tmp_path):
    """A function (by_hand) -> a `Cockpit` of this test's trials; the one before is closed."""
    made = []

    def open_one(**options):
        while made:
            made.pop().close()
        made.append(Cockpit(tmp_path, **options))
        return made[0]

    yield open_one
    while made:
        made.pop().close()


@pytest.fixture
def system():
    """A system in which the operator lays the scene and no trial ends by itself."""
    running = FakeSystem(scene=False)
    yield running
    running.close()


def stored(store, session, spec, number=1, **changes):
    store.begin(session, spec.as_dict(), {})
    return store.append(row(session=session, number=number, began=time.time(), ended=time.time(), **changes))


def test_after_a_restart_the_page_stays_blind_until_the_session_of_the_newest_trial_is_locked(cockpit):
    before = cockpit()
    stored(before.store, "open", Session(blind=False))
    stored(before.store, "blind", BLIND)
    here = cockpit()
    here.rig.inference = STATUS
    assert here.state()["policy"] == {"hidden": True} and here.state()["session"] is None
    assert [(one["id"], one["blind"]) for one in here.state()["sessions"]] == [("blind", True), ("open", False)]
    here.order("lock", session="blind", reason="")
    assert here.state()["policy"]["checkpoint"] == "models/x" and not here.state()["sessions"][0]["blind"]


def test_a_blind_session_that_has_begun_and_has_no_trial_yet_hides_the_policy_too_and_an_older_one_does_not(cockpit):
    before = cockpit()
    before.store.begin("old", BLIND.as_dict(), {})
    stored(before.store, "open", Session(blind=False))
    here = cockpit()
    here.rig.inference = STATUS
    assert here.state()["policy"]["checkpoint"] == "models/x"
    here.store.begin("blind", BLIND.as_dict(), {})
    here = cockpit()
    here.rig.inference = STATUS
    assert here.state()["policy"] == {"hidden": True}


def begun(cockpit, monkeypatch):
    """A cockpit whose session, open to all, waits for the scene of its first trial."""
    monkeypatch.setattr(rig, "DESCRIBED_S", 0.1)  # nobody here tells parameters
    here = cockpit(by_hand=True)
    here.serve()
    arms = [{"name": "A", "checkpoint": "models/x"}]
    plan = dict(arms=arms, scenes=2, seed=1, settings=["dynamic"], disturb_s=0.3, blind=False)
    here.order("start", plan=plan, attended=True)
    wait_for(lambda: accepted(here, "confirm"), "no scene to lay", 30)
    here.until_phase("ready")
    return here


def accepted(here, order, **details):
    try:
        return here.order(order, **details)
    except Refused:
        return ""


def test_a_session_that_is_open_to_all_stays_blind_while_the_newest_trial_is_a_blind_ones(system, cockpit, monkeypatch):
    stored(cockpit(by_hand=True).store, "blind", BLIND)
    here = begun(cockpit, monkeypatch)
    assert here.state()["policy"] == {"hidden": True} and "arm" not in here.state()["trial"]["card"]
    here.order("go")
    wait_for(lambda: accepted(here, "label", outcome="success", reason=""), "no label")
    wait_for(lambda: here.state()["trial"]["card"]["number"] == 2, "no second trial")
    assert here.state()["policy"]["checkpoint"] == "models/x" and here.state()["trial"]["card"]["arm"] == "A"


def test_the_operator_is_asked_to_move_the_target_while_that_is_due_and_the_moment_is_kept(
    system, cockpit, tmp_path, monkeypatch
):
    monkeypatch.setattr(node_of_console, "DISTURB_S", 1.0)
    here, words = begun(cockpit, monkeypatch), []
    here.order("go")
    here.until_phase("running")
    wait_for(lambda: words.append(word(here.state())["name"]) or (words[-1] == "running" and "disturb" in words), words)
    assert [name for i, name in enumerate(words) if words[i - 1 : i] != [name]] == ["running", "disturb", "running"]
    (event,) = [event for event in read_sessions(tmp_path)[0]["events"] if event["kind"] == "disturb"]
    assert (event["kind"], event["detail"]["trial"]) == ("disturb", 1) and event["detail"]["after_s"] >= 0.3


def test_what_was_done_on_a_full_disk_is_answered_as_done_and_what_the_record_lacks_is_an_alarm(
    system, cockpit, tmp_path, monkeypatch
):
    monkeypatch.setattr(protocol, "AGAIN_S", 0.2)
    here, disk = begun(cockpit, monkeypatch), Disk(tmp_path)
    alarms = lambda: here.state()["trial"]["alarms"]  # noqa: E731
    here.order("go")
    here.until_phase("running")
    disk.fill()
    try:
        assert here.order("label", outcome="success", reason="") == "success"
        wait_for(lambda: any(alarm.startswith("trial 1 is not stored yet") for alarm in alarms()), "no alarm")
        assert here.order("hold") == "held" and system.state == "holding: operator hold"
        assert any(alarm.startswith("'hold' was done and is missing in the record") for alarm in alarms())
    finally:
        disk.free()
    wait_for(lambda: [row.outcome for row in read(tmp_path)] == ["success"], "no row")


def test_a_session_that_is_resumed_asks_for_the_outcome_that_is_missing_also_when_it_is_not_the_last(
    system, cockpit, tmp_path, monkeypatch
):
    monkeypatch.setattr(rig, "DESCRIBED_S", 0.1)
    before = cockpit(by_hand=True)
    stored(before.store, "blind", BLIND, outcome="unlabelled")
    before.store.append(row(session="blind", number=2))
    here = cockpit(by_hand=True)
    here.serve()
    here.order("resume", session="blind", attended=True)
    here.until_phase("complete")
    assert here.state()["trial"]["unlabelled"] == 1
    here.order("label", outcome="failure", reason="")
    here.order("lock", session="blind", reason="")
    assert read_sessions(tmp_path)[0]["locked"]


def test_every_order_is_in_the_record_with_who_gave_it_and_also_when_it_was_refused_and_is_told_on_a_topic(
    system, cockpit, tmp_path, monkeypatch
):
    here, heard = begun(cockpit, monkeypatch), []
    here.store.noted = heard.append
    with pytest.raises(Refused, match="no trial is running"):
        here.order("label", outcome="success", reason="")
    here.order("go")
    here.until_phase("running")
    here.console.note("in control", {"who": "Li", "before": "Wu"})
    here.order("hold")
    events = read_sessions(tmp_path)[0]["events"]
    kept = [(e["kind"], e["detail"].get("order"), e["detail"]["who"]) for e in events if e["kind"] != "disturb"]
    kept = [one for one in kept if one[1] != "confirm"]  # was asked for until there was a scene
    assert kept == [
        ("start", None, "Li"),
        ("confirm", None, "Li"),
        ("refused", "label", "Li"),
        ("go", None, "Li"),
        ("in control", None, "Li"),
        ("hold", None, "Li"),
    ]
    (refused,) = [e for e in events if e["detail"].get("order") == "label"]
    assert refused["detail"]["why"].startswith("no trial is running") and refused["detail"]["outcome"] == "success"
    assert [e["kind"] for e in heard if e["kind"] != "disturb"] == ["refused", "go", "in control", "hold"]


def test_what_is_noted_is_published_as_json(cockpit):
    here, heard = cockpit(), []
    here.node.create_subscription(String, TRIAL_EVENT, heard.append, EVENTS)
    here.serve()
    here.store.noted = here.rig.tell_event
    wait_for(lambda: here.store.note("s", "hold", who="Li") or heard, "nothing on trial/event")
    event = json.loads(heard[0].data)
    assert (event["session"], event["kind"], event["detail"]) == ("s", "hold", {"who": "Li"})


def test_a_plan_that_makes_no_sense_is_malformed_and_begins_nothing(cockpit, tmp_path):
    with pytest.raises(Malformed, match="expected a list"):
        cockpit().order("start", plan={"arms": 5}, attended=True)
    assert read_sessions(tmp_path) == []


def test_a_session_that_goes_on_notes_what_has_changed_since(system, cockpit, tmp_path, monkeypatch):
    monkeypatch.setattr(rig, "DESCRIBED_S", 0.1)
    before = cockpit(by_hand=True)
    before.store.begin("s", BLIND.as_dict(), {"commit": "of before", "simulated": False})
    before.store.append(row(session="s", number=1))
    before.store.append(row(session="s", number=2))
    here = cockpit(by_hand=True)
    here.serve()
    here.order("resume", session="s", attended=True)
    here.until_phase("complete")
    (event,) = [e for e in read_sessions(tmp_path)[0]["events"] if e["kind"] == "resumed"]
    assert event["detail"]["changed"]["commit"][0] == "of before" and "parameters of controller" in event["detail"]["missing"]


def test_the_orders_that_concern_policy_and_arm_reach_their_nodes_and_not_while_a_session_decides(cockpit, monkeypatch):
    here, asked = cockpit(), []
    monkeypatch.setattr(here.console, "_ask", lambda service, *_: asked.append(service) or f"{service} did it")
    answer = type("Answer", (), {"results": [type("Result", (), {"successful": True, "reason": ""})]})
    monkeypatch.setattr(here.console, "_answer", lambda service, request: asked.append((service, request)) or answer)
    assert "is being tried" in here.order("swap", checkpoint="models/new")
    (service, request), = asked
    assert service == "inference/set_parameters"
    assert [(p.name, p.value.string_value) for p in request.parameters] == [("checkpoint", "models/new")]
    answer.results[0].successful, answer.results[0].reason = False, "models/old is being loaded; ask again in a moment"
    with pytest.raises(Refused, match="models/old is being loaded"):
        here.order("swap", checkpoint="models/new")
    asked.clear()
    for order in ("roll_back", "clear_fault", "home"):
        here.order(order)
    assert asked == ["inference/roll_back", "controller/clear_fault", "controller/home"]
    here.console._conducting, here.console._spec = True, BLIND
    for order, details in (("swap", {"checkpoint": "models/new"}), ("roll_back", {}), ("home", {})):
        with pytest.raises(Refused, match="pause it first"):
            here.order(order, **details)
    assert len(asked) == 3
    here.console._conducting = False
