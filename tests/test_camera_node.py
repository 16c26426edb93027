"""The camera node as a real process: pictures over ROS, faults injected from outside, refused starts."""

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import cv2
import numpy as np
import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.executors import SingleThreadedExecutor
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import String

from policytrim_ros.core.types import heartbeats_of
from policytrim_ros.nodes.camera import QOS
from sim_bridge import shared
from sim_bridge.realsense import SERIALS, VERTICAL_FOV_RAD, Pattern, inject, intrinsics

ROOT = Path(__file__).resolve().parents[1]
WIDTH, HEIGHT = 640, 480
DOMAIN = int(os.environ["ROS_DOMAIN_ID"])
DEADLINE_S = 30.0
pytestmark = pytest.mark.integration
OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR


@pytest.fixture
def session():
    name = f"pattern-{uuid.uuid4().hex[:8]}"
    yield name
    shared.remove_session(name)


@pytest.fixture
def listener(monkeypatch):
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=DOMAIN)
    made = Listener(context)
    yield made
    made.node.destroy_node()
    rclpy.try_shutdown(context=context)


class Listener:
    """A ROS node in this process that keeps what it hears."""

    def __init__(self, context):
        self.node = rclpy.create_node("listener", context=context)
        self._heard = []
        self._executor = SingleThreadedExecutor(context=context)
        self._executor.add_node(self.node)

    def hear(self, kind, topic):
        """The list that every message of ``topic`` is appended to."""
        heard = []
        self._heard.append(heard)
        self.node.create_subscription(kind, topic, heard.append, QOS if kind is not DiagnosticArray else 10)
        return heard

    def until(self, condition, process):
        """Spins until ``condition()`` is true and returns its value; fails when the camera process dies."""
        end = time.monotonic() + DEADLINE_S
        while True:
            value = condition()
            if value:
                return value
            assert process.poll() is None, f"the camera node died with {process.returncode}: {process.stderr.read()}"
            assert time.monotonic() < end, f"it did not happen in time; heard {[len(heard) for heard in self._heard]} messages"
            self._executor.spin_once(timeout_sec=0.05)


def emulated(session, size=f"{WIDTH}x{HEIGHT}"):
    return f"sim_bridge.realsense:context?session={session}&size={size}"


def start(*parameters, **mapping):
    mapping = {"serials": "[emulated-front,emulated-wrist]", **mapping}
    arguments = [word for key, value in mapping.items() for word in ("-p", f"{key}:={value}")]
    environment = dict(
        os.environ,
        ROS_DOMAIN_ID=str(DOMAIN),
        ROS_AUTOMATIC_DISCOVERY_RANGE="LOCALHOST",
        FASTRTPS_DEFAULT_PROFILES_FILE=str(ROOT / "config" / "fastdds_shm.xml"),
    )
    return subprocess.Popen(
        [sys.executable, "-m", "policytrim_ros.nodes.camera", "--ros-args", *parameters, *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process):
    """Ends a node as its starter would; a killed one may leave locks in shared memory that delay its successor."""
    process.terminate()
    process.communicate(timeout=DEADLINE_S)


@pytest.fixture
def camera_node(session):
    process = start(realsense_context=emulated(session))
    yield process
    end(process)


def picture(message) -> np.ndarray:
    dtype, channels = {"rgb8": (np.uint8, (3,)), "16UC1": (np.uint16, ())}[message.encoding]
    return np.frombuffer(message.data, dtype).reshape(message.height, message.width, *channels)


def number_in(message) -> int:
    return int(np.frombuffer(message.data, np.uint32, 1)[0])


def newest(heard, camera):
    """Status of ``camera`` in the newest diagnostics, or None."""
    return next((status for message in heard[-1:] for status in message.status if status.name == f"camera: {camera}"), None)


def levels(heard, camera):
    """(level, text) of ``camera`` in the newest diagnostics, or (None, "")."""
    status = newest(heard, camera)
    return (status.level, status.message) if status else (None, "")


def figures(heard, camera):
    """The key-value pairs of ``camera`` in the newest diagnostics."""
    status = newest(heard, camera)
    return {pair.key: pair.value for pair in status.values} if status else {}


def alive(heartbeats):
    """All who were named."""
    return {name for message in heartbeats for name, _ in heartbeats_of(message.data)}


def test_pictures_of_both_cameras_arrive_whole_and_bit_exact_in_another_process(listener, camera_node):
    colors = {name: listener.hear(Image, f"{name}/color/image_raw") for name in SERIALS}
    infos = listener.hear(CameraInfo, "wrist/color/camera_info")
    heartbeats = listener.hear(String, "heartbeat")
    listener.until(lambda: all(len(heard) >= 20 for heard in colors.values()) and infos and heartbeats, camera_node)
    for name, heard in colors.items():
        pattern = Pattern(name, WIDTH, HEIGHT, 30)
        numbers = [number_in(message) for message in heard]
        assert numbers == sorted(set(numbers))  # no picture twice, none out of order
        stamps = [message.header.stamp.sec + message.header.stamp.nanosec * 1e-9 for message in heard]
        assert stamps == sorted(stamps) and stamps[-1] <= time.time()
        for message in heard:
            assert (message.encoding, message.width, message.height, message.step) == ("rgb8", WIDTH, HEIGHT, 3 * WIDTH)
            assert message.header.frame_id == f"{name}_color_optical_frame"
            np.testing.assert_array_equal(picture(message), pattern.color(number_in(message)))
    expected = intrinsics("wrist", WIDTH, HEIGHT)
    assert infos[0].k[0] == pytest.approx(expected.fx) and infos[0].k[2] == WIDTH / 2 and infos[0].width == WIDTH
    assert infos[0].header.frame_id == "wrist_color_optical_frame"
    assert {"camera", "camera/front", "camera/wrist"} >= alive(heartbeats)


def test_depth_arrives_in_millimetres_on_the_pixels_of_the_picture_with_the_same_stamp(listener, camera_node):
    colors = listener.hear(Image, "front/color/image_raw")
    depths = listener.hear(Image, "front/aligned_depth_to_color/image_raw")

    pattern = Pattern("front", WIDTH, HEIGHT, 30)

    def pair():
        for depth in depths[-3:]:
            for color in colors[-3:]:
                if color.header.stamp == depth.header.stamp and pattern.square(number_in(color))[0] > 40:
                    return color, depth

    color, depth = listener.until(pair, camera_node)
    assert (depth.encoding, depth.step, depth.header.frame_id) == ("16UC1", 2 * WIDTH, "front_color_optical_frame")
    left, right, top, bottom = pattern.square(number_in(color))
    near = np.flatnonzero(picture(depth)[(top + bottom) // 2] == Pattern.NEAR_MM)
    assert abs(near[0] - left) <= 2 and abs(near[-1] - (right - 1)) <= 2


def test_compressed_pictures_are_jpeg_at_a_limited_rate(listener, session):
    process = start(realsense_context=emulated(session), jpeg_rate_hz=4.0)
    try:
        heard = listener.hear(CompressedImage, "front/color/image_raw/compressed")
        listener.until(lambda: len(heard) >= 4, process)
    finally:
        end(process)
    stamps = [m.header.stamp.sec + m.header.stamp.nanosec * 1e-9 for m in heard]
    assert min(np.diff(stamps)) > 1 / 10  # 4 Hz asked, 30 Hz offered
    assert "jpeg" in heard[0].format
    image = cv2.cvtColor(cv2.imdecode(np.frombuffer(heard[0].data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    wall = Pattern("front", WIDTH, HEIGHT, 30).color(0)  # the top rows show the wall in every picture
    assert np.abs(image[8:100].astype(int) - wall[8:100]).mean() < 6


def test_a_stalled_camera_is_reported_while_the_other_goes_on_and_is_well_when_frames_resume(listener, session, camera_node):
    diagnostics, heartbeats = listener.hear(DiagnosticArray, "diagnostics"), listener.hear(String, "heartbeat")
    front, wrist = (listener.hear(Image, f"{name}/color/image_raw") for name in SERIALS)
    listener.until(lambda: front and wrist and levels(diagnostics, "front")[0] in (OK, WARN), camera_node)
    inject(session, "front", "stall")
    listener.until(lambda: levels(diagnostics, "front")[0] == ERROR, camera_node)
    assert "camera front (serial emulated-front) is stalled" in levels(diagnostics, "front")[1]
    front.clear(), wrist.clear(), heartbeats.clear()
    listener.until(lambda: len(wrist) > 5 and len(heartbeats) > 5, camera_node)
    assert not front and alive(heartbeats) == {"camera", "camera/wrist"}
    assert levels(diagnostics, "wrist")[0] != ERROR
    inject(session, "front", "clear")
    listener.until(lambda: front and levels(diagnostics, "front")[0] == OK, camera_node)
    assert "Hz" in levels(diagnostics, "front")[1]
    heartbeats.clear()
    listener.until(lambda: "camera/front" in alive(heartbeats), camera_node)


def test_an_unplugged_camera_is_reported_and_picked_up_again_without_a_restart_of_the_node(listener, session, camera_node):
    diagnostics = listener.hear(DiagnosticArray, "diagnostics")
    wrist = listener.hear(Image, "wrist/color/image_raw")
    listener.until(lambda: wrist, camera_node)
    inject(session, "wrist", "unplug")
    gone = ("is unplugged", "no camera with serial")  # said by the reader, then by each try to open it
    listener.until(lambda: any(words in levels(diagnostics, "wrist")[1] for words in gone), camera_node)
    assert levels(diagnostics, "wrist")[0] == ERROR
    inject(session, "wrist", "clear")
    wrist.clear()
    listener.until(lambda: wrist and levels(diagnostics, "wrist")[0] == OK, camera_node)
    values = figures(diagnostics, "wrist")
    assert int(values["restarts"]) >= 1 and float(values["age_s"]) >= 0 and set(values) >= {"rate_hz", "received", "dropped"}


def test_a_silent_camera_is_opened_anew_after_the_configured_time(listener, session):
    process = start(realsense_context=emulated(session), restart_after_s=1.0)
    try:
        diagnostics = listener.hear(DiagnosticArray, "diagnostics")
        front = listener.hear(Image, "front/color/image_raw")
        listener.until(lambda: front, process)
        inject(session, "front", "stall")
        listener.until(lambda: int(figures(diagnostics, "front").get("restarts", 0)) >= 1, process)
        inject(session, "front", "clear")
        front.clear()
        listener.until(lambda: front and levels(diagnostics, "front")[0] == OK, process)
    finally:
        end(process)


def test_a_world_that_dies_is_a_stalled_camera_and_a_new_world_heals_it(listener):
    name = f"world-{uuid.uuid4().hex[:8]}"
    color = np.full((120, 160, 3), 9, np.uint8)

    def new_world():
        return shared.Block(name, "camera_front", shared.camera_frame(160, 120), create=True)

    block = new_world()
    process = start(
        realsense_context=emulated(name, "160x120"),
        cameras="[front]",
        serials="[emulated-front]",
        width=160,
        height=120,
    )
    try:
        diagnostics = listener.hear(DiagnosticArray, "diagnostics")
        heard = listener.hear(Image, "front/color/image_raw")
        number = 0

        def shown():
            nonlocal number
            number += 1
            block.write(stamp=time.monotonic(), number=number, color=color, depth=np.ones((120, 160), np.uint16))
            return heard

        listener.until(shown, process)
        np.testing.assert_array_equal(picture(heard[0]), color)
        listener.until(lambda: levels(diagnostics, "front")[0] == ERROR, process)  # nobody writes any more
        assert "stalled" in levels(diagnostics, "front")[1]
        block, number = new_world(), 0
        heard.clear()
        listener.until(shown, process)
    finally:
        end(process)
        shared.remove_session(name)


@pytest.mark.parametrize(
    "mapping, sentence",
    [
        (dict(serials="[emulated-front,'42']"), "no camera with serial '42'; found: emulated-front, emulated-wrist; correct the"),
        (dict(serials="['','']"), "several cameras are connected (emulated-front, emulated-wrist); name one in the parameter"),
        (dict(serials="[emulated-front,emulated-front]"), "expected one for each of front, wrist, all different"),
        (dict(serials="[emulated-front]"), "expected one for each of front, wrist"),
        (dict(fps=300), "CameraConfig.fps = 300: allowed range is 1 to 90 Hz"),
        (dict(fps=15), "does not offer 640x480 at 15 Hz; it offers colour 640x480@30"),
        (dict(source="webcam"), "CameraConfig.source = 'webcam': allowed values are 'realsense', 'v4l2'"),
        (dict(sharpness=3), "unknown parameter 'sharpness'; known: cameras, "),
        (dict(cameras="[front,'a b']"), "'a b' is no name"),
        (dict(source="v4l2", paths="[/dev/video-none,/dev/video-other]"), "camera front: no device '/dev/video-none'"),
        (dict(realsense_context="nowhere:context"), "realsense_context 'nowhere:context' cannot be made"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_a_start_that_cannot_work_is_refused_with_one_sentence_and_exit_code_1(session, mapping, sentence):
    process = start(**{"realsense_context": emulated(session), **mapping})
    _, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1
    lines = errors.strip().splitlines()
    assert len(lines) == 1 and sentence in lines[0]


def test_a_start_without_any_camera_is_refused_with_one_sentence_and_exit_code_1(session):
    for name in SERIALS:
        inject(session, name, "unplug")
    process = start(realsense_context=emulated(session))
    _, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1 and "camera front: no RealSense camera is connected; plug it into a USB 3 port" in errors


def test_the_emulated_cameras_declare_the_field_of_view_that_the_world_renders():
    from sim_bridge.tasks.scene import FOV_Y  # here, because it loads the simulator

    assert VERTICAL_FOV_RAD == pytest.approx(FOV_Y)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_node_ends_cleanly_on_a_signal(listener, camera_node, number):
    front = listener.hear(Image, "front/color/image_raw")
    listener.until(lambda: front, camera_node)
    camera_node.send_signal(number)
    _, errors = camera_node.communicate(timeout=DEADLINE_S)
    assert camera_node.returncode == 0 and "Traceback" not in errors
