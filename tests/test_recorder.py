"""What the recorder writes can be read back by independent readers; what it cannot write is told, and the next trial is tried again."""

import json
import os
import re
import resource
import signal

import pytest
import rclpy
from mcap.reader import make_reader
from mcap_ros2.decoder import DecoderFactory
from rcl_interfaces.msg import ParameterEvent
from rclpy.serialization import deserialize_message, serialize_message
from rosbags.highlevel import AnyReader
from sensor_msgs.msg import CompressedImage, JointState
from stack import Operator, wait_for
from std_msgs.msg import String

from policytrim_ros.nodes.messages import LATCHED, joint_state, seconds_to_time
from policytrim_ros.nodes.recorder import FAILED, IDLE, STREAMS, Scribe
from policytrim_ros.nodes.recording import IMAGES, McapFile, Recording, RecordingError, definition, free_path
from policytrim_ros.share import share

MESSAGE = joint_state(seconds_to_time(3.5), range(7), range(7))
BYTES = bytes(serialize_message(MESSAGE))


def decoded_messages(path, topics=None):
    """As a reader without ROS sees them: (schema, channel, message, decoded)."""
    with open(path, "rb") as stream:
        return list(make_reader(stream, decoder_factories=[DecoderFactory()]).iter_decoded_messages(topics=topics))


# ---- the file -------------------------------------------------------------------------------------------------------


def written(path, messages=5):
    file = McapFile(path)
    for stamp in range(messages):
        file.write("/joint_states", JointState, BYTES, stamp + 1, stamp)
    file.note("trial", {"json": '{"trial": 7}'})
    file.note("parameters/inference", {"seed": "3", "cameras": '["front"]'})
    file.close()
    return path


def test_what_was_written_is_read_back_with_its_definition(tmp_path):
    with open(written(tmp_path / "run.mcap"), "rb") as stream:
        read = list(make_reader(stream).iter_messages())
    assert len(read) == 5 and read[0][0].name == "sensor_msgs/msg/JointState" and read[0][0].encoding == "ros2msg"
    assert deserialize_message(read[0][2].data, JointState) == MESSAGE
    assert (read[0][2].log_time, read[0][2].publish_time) == (1, 0)
    decoded = [message for _, _, _, message in decoded_messages(tmp_path / "run.mcap")]
    assert [list(message.position) for message in decoded] == [list(MESSAGE.position)] * 5


def test_a_recording_tells_its_trial_its_parameters_and_its_messages(tmp_path):
    recording = Recording(written(tmp_path / "run.mcap"))
    assert recording.trial == {"trial": 7} and recording.cameras == []
    assert recording.parameters("inference") == {"seed": 3, "cameras": ["front"]} and recording.parameters("controller") == {}
    assert [heard.message for heard in recording.messages({"joint_states": JointState})] == [MESSAGE] * 5
    assert recording.messages({"chunk": JointState}) == []


@pytest.mark.parametrize("kind", [JointState, CompressedImage, ParameterEvent])
def test_an_unfinished_file_does_not_carry_the_final_name(tmp_path, kind):
    file = McapFile(tmp_path / "run.mcap")
    file.write("/x", kind, bytes(serialize_message(kind())), 1)
    assert [path.name for path in tmp_path.iterdir()] == ["run.mcap.partial"]
    file.close()
    assert [path.name for path in tmp_path.iterdir()] == ["run.mcap"]


def test_a_damaged_unfinished_or_missing_recording_is_refused_by_name(tmp_path):
    whole = written(tmp_path / "run.mcap", 500).read_bytes()
    for name, data in (("cut.mcap", whole[:-400]), ("text.mcap", b"no recording"), ("run.mcap.partial", whole)):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(RecordingError, match=name):
            Recording(tmp_path / name)
    flipped = bytearray(whole)
    flipped[len(whole) // 8] ^= 0xFF
    (tmp_path / "flipped.mcap").write_bytes(flipped)
    with pytest.raises(RecordingError, match="flipped.mcap.*damaged"):
        Recording(tmp_path / "flipped.mcap").messages({"joint_states": JointState})
    with pytest.raises(RecordingError, match="nothing.mcap"):
        Recording(tmp_path / "nothing.mcap")


def test_a_definition_holds_everything_that_the_message_is_made_of():
    text = definition("trajectory_msgs/msg/JointTrajectory")
    for inner in (
        "MSG: std_msgs/Header",
        "MSG: builtin_interfaces/Time",
        "MSG: trajectory_msgs/JointTrajectoryPoint",
        "MSG: builtin_interfaces/Duration",
    ):
        assert inner in text


def test_a_disk_that_takes_no_more_is_an_error(tmp_path):
    file = McapFile(tmp_path / "run.mcap")
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            for stamp in range(1000):
                file.write("/joint_states", JointState, os.urandom(4096), stamp)
            file.close()
        file.abandon()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "run.mcap").exists()


def test_no_recording_is_written_over_another(tmp_path):
    assert free_path(tmp_path / "trial-1.mcap").name == "trial-1.mcap"
    (tmp_path / "trial-1.mcap").touch()
    (tmp_path / "trial-1-2.mcap.partial").touch()
    assert free_path(tmp_path / "trial-1.mcap").name == "trial-1-3.mcap"


# ---- the thread that writes -------------------------------------------------------------------------------------------


def test_messages_that_find_the_queue_full_are_counted_and_the_others_are_written(tmp_path):
    scribe = Scribe(queue_size=10)
    scribe.begin(tmp_path / "a.mcap", "a")
    for number in range(30):  # nobody takes them yet
        scribe.offer("/joint_states", JointState, BYTES, number, number, number)
    scribe.end()
    scribe.start()
    scribe.close()
    assert (scribe.state, scribe.messages, scribe.dropped) == (IDLE, 9, 21)  # the beginning waits in the queue, too
    assert len(Recording(tmp_path / "a.mcap").messages({"joint_states": JointState})) == 9


def test_a_recording_that_nobody_ended_stays_partial(tmp_path):
    scribe = Scribe(queue_size=10)
    scribe.begin(tmp_path / "a.mcap", "a")
    scribe.start()
    scribe.close()
    assert scribe.state == FAILED and [path.name for path in tmp_path.iterdir()] == ["a.mcap.partial"]


# ---- the node -----------------------------------------------------------------------------------------------------------


class Conductor(Operator):
    """Says what a conductor of trials and a controller say, and listens to the recorder."""

    def __init__(self, stack):
        super().__init__(stack)
        self.status = {}
        self._trial = self.node.create_publisher(String, "trial/state", LATCHED)
        self._state = self.node.create_publisher(String, "controller/state", LATCHED)
        self._scene = self.node.create_publisher(String, "scene/state", LATCHED)
        self._joints = self.node.create_publisher(JointState, "joint_states", 10)
        self.pictures = self.node.create_publisher(CompressedImage, "front" + IMAGES, 10)
        self.events = self.node.create_publisher(String, "trial/event", 10)
        self.node.create_subscription(String, "recorder/status", self._on_status, LATCHED)

    def _on_status(self, message):
        self.status = json.loads(message.data)

    def is_camera(self, **parameters):
        """Answers in the name of a camera node, too."""
        self.camera = rclpy.create_node("camera", context=self._context)
        for name, value in parameters.items():
            self.camera.declare_parameter(name, value)
        self._executor.add_node(self.camera)

    def says(self, state):
        self._state.publish(String(data=state))
        self._scene.publish(String(data='{"phase": "ready"}'))

    def trial(self, name, phase, number=1):
        self._trial.publish(String(data=json.dumps({"session": "s", "trial": number, "phase": phase, "recording": name})))

    def joints(self, times=40, pause_s=0.005):
        self.until(lambda: self._joints.get_subscription_count() > 0, "nobody listens to joint_states")
        for _ in range(times):
            self._joints.publish(MESSAGE)
            if pause_s:
                self.spin(pause_s)

    def wait_status(self, what, condition):
        self.until(lambda: self.status and condition(self.status), f"{what}; the recorder says {self.status}")
        return self.status

    def record(self, name, times=40):
        """One trial from ready to done; returns what the recorder says of it."""
        self.trial(name, "ready")
        self.wait_status(f"{name} does not begin", lambda s: s["recording"] == name)
        self.trial(name, "running")
        self.joints(times)
        self.trial(name, "done")
        return self.wait_status(f"{name} does not end", lambda s: s["recording"] == name and s["state"] != "recording")


@pytest.fixture
def conductor(stack):
    made = Conductor(stack)
    yield made
    made.close()


def start(stack, out, **parameters):
    parameters = {"out": out, "split": "trial", "cameras": "[front]", "free_space_mb": 0, **parameters}
    return stack.start("recorder", "policytrim_ros.nodes.recorder", **parameters)


@pytest.mark.integration
def test_every_trial_is_a_file_that_holds_states_newest_picture_and_parameters_from_its_beginning(stack, conductor, tmp_path):
    out = tmp_path / "out"
    stack.start_emulator()
    stack.start_controller()  # what it says once, before any trial, is in every file
    start(stack, out)
    conductor.until(lambda: conductor.state, "no controller")
    conductor._scene.publish(String(data='{"phase": "ready", "scene_id": 5}'))
    conductor.wait_status("the recorder does not speak", lambda s: s["state"] == "idle" and not s["recording"])
    conductor.until(lambda: conductor.pictures.get_subscription_count() > 0, "nobody listens to pictures")
    conductor.pictures.publish(CompressedImage(format="jpeg", data=b"a picture"))
    for name in ("s/trial-0001", "s/trial-0002"):
        status = conductor.record(name)
        assert status["state"] == "idle" and status["reason"] == "" and status["dropped"] == 0, status
        assert status["messages"] > 40 and status["bytes"] == (out / f"{name}.mcap").stat().st_size
    assert sorted(path.name for path in (out / "s").iterdir()) == ["trial-0001.mcap", "trial-0002.mcap"]
    for number in (1, 2):
        recording = Recording(out / "s" / f"trial-000{number}.mcap")
        assert recording.trial["recording"] == f"s/trial-000{number}" and recording.trial["phase"] == "ready"
        heard = recording.messages({"scene/state": String, "controller/state": String, "trial/state": String})
        assert [h.message.data for h in heard if h.topic == "scene/state"] == ['{"phase": "ready", "scene_id": 5}']
        phases = [json.loads(h.message.data)["phase"] for h in heard if h.topic == "trial/state"]
        assert phases == ["ready", "running", "done"]  # what came within the margin is in the file
        assert recording.parameters("controller")["can_interface"] == "piper_hub" and recording.parameters("inference") == {}
        _, _, stamps, first = decoded_messages(recording.path, ["/controller/state"])[0]
        assert first.data.startswith("unconfigured") and stamps.publish_time < stamps.log_time
        assert recording.cameras == ["front"]
        assert [bytes(h.message.data) for h in recording.messages({"front" + IMAGES: CompressedImage})] == [b"a picture"]
        joints = [m for m in recording.messages({"joint_states": JointState}) if m.message == MESSAGE]
        assert len(joints) == 40


@pytest.mark.integration
def test_events_of_a_session_and_the_parameters_of_the_cameras_are_in_the_file(stack, conductor, tmp_path):
    conductor.is_camera(serials=["0123", "0456"])
    start(stack, tmp_path / "out")
    conductor.wait_status("the recorder does not speak", lambda s: s["state"] == "idle")
    conductor.trial("one", "running")
    conductor.wait_status("it does not begin", lambda s: s["recording"] == "one")
    conductor.until(lambda: conductor.events.get_subscription_count() > 0, "nobody listens to events")
    conductor.events.publish(String(data='{"kind": "undo", "trial": 1}'))
    conductor.joints(300)  # longer than the recorder waits before it asks again
    conductor.trial("one", "done")
    recording = Recording(conductor.wait_status("it does not end", lambda s: s["state"] == "idle")["file"])
    assert [h.message.data for h in recording.messages({"trial/event": String})] == ['{"kind": "undo", "trial": 1}']
    assert recording.parameters("camera")["serials"] == ["0123", "0456"]
    with AnyReader([recording.path]) as bag:  # a reader of ros2 bag files that is not ours
        heard = [(c.topic, bag.deserialize(raw, c.msgtype)) for c, _, raw in bag.messages()]
    assert [message.data for topic, message in heard if topic == "/trial/event"] == ['{"kind": "undo", "trial": 1}']
    assert [list(message.position) for topic, message in heard if topic == "/joint_states"] == [list(MESSAGE.position)] * 300


@pytest.mark.integration
@pytest.mark.parametrize("name", ["../escaped", "/escaped", "s/../../escaped", "link/escaped", ".hidden", "a b", "s//x"])
def test_a_name_that_leaves_the_directory_is_refused_and_told(stack, conductor, tmp_path, name):
    out = tmp_path / "out"
    out.mkdir()
    (out / "link").symlink_to(tmp_path)
    start(stack, out)
    conductor.wait_status("the recorder does not speak", lambda s: s["state"] == "idle")
    conductor.trial(name, "running")
    status = conductor.wait_status("the name is not refused", lambda s: s["state"] == "failed")
    assert status["recording"] == name and "names no file in" in status["reason"]
    assert not list(tmp_path.rglob("*escaped*")) and [path.name for path in out.iterdir()] == ["link"]
    assert conductor.record("good")["state"] == "idle" and (out / "good.mcap").exists()


@pytest.mark.integration
def test_a_disk_that_is_full_fails_the_trial_and_not_the_recorder_which_tries_the_next(stack, conductor, tmp_path):
    process = start(stack, tmp_path / "out")
    conductor.wait_status("the recorder does not speak", lambda s: s["state"] == "idle")
    _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (2000, hard))
    status = conductor.record("one")
    assert status["state"] == "failed" and "one.mcap failed: File too large" in status["reason"], status
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (hard, hard))
    status = conductor.record("two")
    assert status["state"] == "idle" and status["reason"] == ""
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["one.mcap.partial", "two.mcap"]
    assert Recording(tmp_path / "out" / "two.mcap").messages({"joint_states": JointState})


@pytest.mark.integration
def test_too_little_space_and_an_unusable_directory_are_failures_that_are_told(stack, conductor, tmp_path):
    (tmp_path / "file").touch()
    start(stack, tmp_path / "file" / "out", free_space_mb=0)
    status = conductor.record("one")
    assert status["state"] == "failed" and "one.mcap failed: Not a directory" in status["reason"], status
    stack.kill("recorder")
    conductor.status = {}
    start(stack, tmp_path / "out", free_space_mb=1_000_000)
    status = conductor.record("two")
    assert status["state"] == "failed" and "1000000 MB must stay free" in status["reason"] and status["free_mb"] > 0


@pytest.mark.integration
def test_messages_that_the_middleware_lost_are_counted(stack, conductor, tmp_path):
    process = start(stack, tmp_path / "out")
    conductor.trial("one", "running")
    conductor.wait_status("it does not begin", lambda s: s["recording"] == "one")
    conductor.joints(10)
    conductor.wait_status("nothing is written", lambda s: s["messages"] >= 10)
    process.send_signal(signal.SIGSTOP)
    conductor.joints(2000, pause_s=0.0)
    process.send_signal(signal.SIGCONT)
    conductor.joints(10)
    conductor.trial("one", "done")
    status = conductor.wait_status("it does not end", lambda s: s["state"] == "idle")
    kept = len(Recording(status["file"]).messages({"joint_states": JointState}))
    assert kept + status["dropped"] == 2020 and status["dropped"] > 0


@pytest.mark.integration
def test_ctrl_c_in_the_middle_of_a_trial_finishes_the_file(stack, conductor, tmp_path):
    process = start(stack, tmp_path / "out")
    conductor.trial("one", "running")
    conductor.wait_status("it does not begin", lambda s: s["state"] == "recording")
    conductor.joints()
    conductor.wait_status("not all has arrived", lambda s: s["messages"] > 40)  # with the state of the trial, at least
    process.send_signal(signal.SIGINT)
    assert stack.exit_code("recorder") == 0, stack.log("recorder")
    assert len(Recording(tmp_path / "out" / "one.mcap").messages({"joint_states": JointState})) == 40


@pytest.mark.integration
def test_a_recording_of_the_run_ends_with_an_error_when_the_disk_is_full(stack, conductor, tmp_path):
    out = tmp_path / "out"
    process = start(stack, out, split="run")
    wait_for(lambda: list(out.glob("*.mcap.partial")), "no file")
    _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (5000, hard))
    conductor.joints()
    process.send_signal(signal.SIGINT)  # 1 MB waits for its compression: the end is the first write
    stack.exit_code("recorder")
    assert "File too large" in stack.log("recorder") and not list(out.glob("*.mcap"))


@pytest.mark.integration
def test_a_recording_of_the_run_is_one_file_whatever_trials_there_are(stack, conductor, tmp_path):
    process = start(stack, tmp_path / "out", split="run")
    conductor.wait_status("it does not begin", lambda s: s["state"] == "recording")
    conductor.trial("one", "running")
    conductor.joints()
    conductor.trial("one", "done")
    process.send_signal(signal.SIGINT)
    assert stack.exit_code("recorder") == 0, stack.log("recorder")
    (path,) = (tmp_path / "out").iterdir()
    phases = [json.loads(h.message.data)["phase"] for h in Recording(path).messages({"trial/state": String})]
    assert phases[0] == "running" and path.suffix == ".mcap"


# ---- the Foxglove layout ------------------------------------------------------------------------------------------------


def test_the_foxglove_layout_shows_only_topics_that_are_recorded_and_every_panel_has_a_place():
    layout = json.loads(share("config", "foxglove_layout.json").read_text())

    def panels(node):
        return [node] if isinstance(node, str) else panels(node["first"]) + panels(node["second"])

    assert sorted(panels(layout["layout"])) == sorted(layout["configById"])
    recorded = {f"/{name.lstrip('/')}" for name, *_ in STREAMS} | {f"/{camera}{IMAGES}" for camera in ("front", "wrist")}
    shown = re.findall(r'"(?:value|topicPath|imageTopic)": "([^"]+)"', json.dumps(layout))
    assert len(shown) > 15 and {path.split(".")[0] for path in shown} <= recorded
