"""Cameras below ROS: real librealsense pipelines on emulated devices, OpenCV on a recorded file, clocks and counters."""

import gc
import time
import uuid

import cv2
import numpy as np
import pyrealsense2 as rs
import pytest

from policytrim_ros.cameras.camera import CameraError, CameraStalled, DeviceClock, DropCounter
from policytrim_ros.cameras.realsense import RealSenseCamera, make_context, serials
from policytrim_ros.cameras.v4l2 import V4l2Camera
from policytrim_ros.core.config import ConfigError
from sim_bridge import shared
from sim_bridge.realsense import BASELINE_M, SERIALS, Pattern, context, inject, intrinsics

pytestmark = pytest.mark.alone

WIDTH, HEIGHT = 160, 120
DEADLINE_S = 20.0


@pytest.fixture
def session():
    name = f"pattern-{uuid.uuid4().hex[:8]}"
    yield name
    shared.remove_session(name)


@pytest.fixture
def world_session():
    name = f"world-{uuid.uuid4().hex[:8]}"
    yield name
    shared.remove_session(name)


def camera_of(made, name="front", **options) -> RealSenseCamera:
    return RealSenseCamera(name, SERIALS[name], WIDTH, HEIGHT, 30, context=made, **options)


def read_until(camera, wanted):
    """Reads until ``wanted(frame or error)``; returns that frame or error."""
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        try:
            result = camera.read(0.1)
        except CameraError as error:
            result = error
        if wanted(result):
            return result
    raise AssertionError("the camera never did what was expected")


def is_frame(result):
    return not isinstance(result, CameraError)


def test_pattern_frames_of_both_cameras_arrive_bit_exact_through_the_librealsense_pipeline(session):
    made = context(session, f"{WIDTH}x{HEIGHT}")
    cameras = {name: camera_of(made, name) for name in SERIALS}
    for camera in cameras.values():
        camera.start()
    try:
        for name, camera in cameras.items():
            pattern = Pattern(name, WIDTH, HEIGHT, 30)
            for _ in range(5):
                frame = camera.read(5.0)
                np.testing.assert_array_equal(frame.color, pattern.color(frame.number))
                assert frame.color.dtype == np.uint8 and not frame.color.flags.writeable
    finally:
        for camera in cameras.values():
            camera.stop()


def test_depth_is_moved_from_the_depth_sensor_onto_the_pixels_of_the_colour_image(session):
    camera = camera_of(context(session, f"{WIDTH}x{HEIGHT}"))
    camera.start()
    try:
        # the square must be wholly inside the view of the depth sensor, and depth be there (the first set may lack it)
        pattern = Pattern("front", WIDTH, HEIGHT, 30)
        frame = read_until(camera, lambda f: is_frame(f) and f.depth is not None and pattern.square(f.number)[0] > 30)
    finally:
        camera.stop()
    left, right, top, bottom = pattern.square(frame.number)
    assert frame.depth.dtype == np.uint16 and frame.depth.shape == frame.color.shape[:2]
    near = np.flatnonzero(frame.depth[(top + bottom) // 2] == Pattern.NEAR_MM)
    assert abs(near[0] - left) <= 2 and abs(near[-1] - (right - 1)) <= 2
    raw = np.flatnonzero(pattern.depth(frame.number)[(top + bottom) // 2] == Pattern.NEAR_MM)
    assert left - raw[0] == round(intrinsics("front", WIDTH, HEIGHT).fx * BASELINE_M / 0.5)  # it had to be moved by this much


def test_frames_carry_the_intrinsics_of_the_device_and_stamps_that_grow_and_lie_in_the_past(session):
    camera = camera_of(context(session, f"{WIDTH}x{HEIGHT}"))
    camera.start()
    try:
        before = time.monotonic()
        frames = [camera.read(5.0) for _ in range(4)]
        after = time.monotonic()
    finally:
        camera.stop()
    expected = intrinsics("front", WIDTH, HEIGHT)
    got = frames[0].intrinsics
    assert (got.width, got.height, got.cx, got.cy) == (WIDTH, HEIGHT, WIDTH / 2, HEIGHT / 2)
    assert got.fx == pytest.approx(expected.fx) and got.fy == pytest.approx(expected.fy)
    stamps = [frame.stamp for frame in frames]
    assert stamps == sorted(stamps) and before - 1.0 < stamps[0] and stamps[-1] <= after


def test_depth_is_not_aligned_for_nobody_and_a_colour_only_camera_streams(session):
    made = context(session, f"{WIDTH}x{HEIGHT}")
    camera = camera_of(made)
    camera.start()
    assert camera.read(5.0, depth=False).depth is None
    camera.stop()
    camera = camera_of(made, depth=False)
    camera.start()
    assert camera.read(5.0).depth is None
    camera.stop()


def test_a_stalled_camera_says_so_and_its_frames_resume_by_themselves(session):
    camera = camera_of(context(session, f"{WIDTH}x{HEIGHT}"))
    camera.start()
    try:
        number = camera.read(5.0).number
        inject(session, "front", "stall")
        error = read_until(camera, lambda r: not is_frame(r))
        assert isinstance(error, CameraStalled) and "camera front" in str(error) and "stalled" in str(error)
        inject(session, "front", "clear")
        frame = read_until(camera, is_frame)
        assert frame.number > number + 1
        assert camera.dropped > 0  # what the camera took during the stall was lost
    finally:
        camera.stop()


def test_an_unplugged_camera_is_named_cannot_be_opened_and_streams_again_when_it_is_back_while_the_other_never_stops(session):
    made = context(session, f"{WIDTH}x{HEIGHT}")
    camera, other = camera_of(made), camera_of(made, "wrist")
    camera.start(), other.start()
    try:
        camera.read(5.0)
        inject(session, "front", "unplug")
        error = read_until(camera, lambda r: not is_frame(r) and not isinstance(r, CameraStalled))
        assert "unplugged" in str(error) and SERIALS["front"] in str(error)
        assert serials(made) == [SERIALS["wrist"]]
        camera.stop()
        with pytest.raises(CameraError, match="no camera with serial 'emulated-front'; found: emulated-wrist"):
            camera.start()
        other.read(5.0)
        inject(session, "front", "clear")
        end = time.monotonic() + DEADLINE_S
        while SERIALS["front"] not in serials(made):
            assert time.monotonic() < end
        camera.start()
        camera.read(5.0)
        other.read(5.0)
    finally:
        camera.stop(), other.stop()


def test_a_wrong_serial_lists_the_serials_that_were_found(session):
    camera = RealSenseCamera("front", "123", context=context(session))
    with pytest.raises(CameraError, match="no camera with serial '123'; found: emulated-front, emulated-wrist"):
        camera.start()


def test_a_machine_without_a_camera_is_told_to_plug_one_in():
    with pytest.raises(CameraError, match="no RealSense camera is connected"):
        RealSenseCamera("front", context=context_without_devices()).start()


def context_without_devices():
    made = rs.context()
    return type("NoDevices", (), {"query_devices": lambda self: []})() if len(made.query_devices()) else made


def test_no_serial_means_the_only_camera_and_is_refused_when_there_are_two(session):
    made = context(session, f"{WIDTH}x{HEIGHT}")
    camera = RealSenseCamera("front", "", WIDTH, HEIGHT, context=made)
    with pytest.raises(CameraError, match="several cameras are connected"):
        camera.start()
    inject(session, "wrist", "unplug")
    end = time.monotonic() + DEADLINE_S
    while len(serials(made)) > 1:
        assert time.monotonic() < end
    camera.start()
    camera.read(5.0)
    camera.stop()


def test_an_unsupported_profile_names_what_the_camera_offers(session):
    camera = RealSenseCamera("front", SERIALS["front"], 1280, 720, context=context(session, f"{WIDTH}x{HEIGHT}"))
    with pytest.raises(CameraError, match="does not offer 1280x720 at 30 Hz; it offers colour 160x120@30; depth 160x120@30"):
        camera.start()


def test_reading_before_start_and_stopping_twice_are_harmless(session):
    camera = camera_of(context(session, f"{WIDTH}x{HEIGHT}"))
    with pytest.raises(CameraError, match="call start"):
        camera.read(0.1)
    camera.start()
    camera.stop()
    camera.stop()


def test_frames_of_the_world_pass_once_with_its_stamp_and_number_and_depth_on_the_colour_pixels(world_session):
    rng = np.random.default_rng(1)
    camera = camera_of(context(world_session, f"{WIDTH}x{HEIGHT}"))
    camera.start()
    try:
        with pytest.raises(CameraStalled):  # no world yet
            camera.read(0.1)
        block = shared.Block(world_session, "camera_front", shared.camera_frame(WIDTH, HEIGHT), create=True)
        for number in (7, 8, 11):
            color = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
            stamp = time.monotonic()
            block.write(stamp=stamp, number=number, color=color, depth=np.full((HEIGHT, WIDTH), 100 * number, np.uint16))
            frame = read_until(camera, is_frame)
            np.testing.assert_array_equal(frame.color, color)
            assert frame.number == number and frame.stamp == pytest.approx(stamp, abs=1e-3)
            np.testing.assert_array_equal(frame.depth, np.full((HEIGHT, WIDTH), 100 * number))  # nothing to align: bit-exact
        assert camera.dropped == 2
        with pytest.raises(CameraStalled):  # the world stopped: the last picture is not shown again
            camera.read(0.1)
        block = shared.Block(world_session, "camera_front", shared.camera_frame(WIDTH, HEIGHT), create=True)  # a new world
        block.write(stamp=time.monotonic(), number=1, color=color, depth=np.full((HEIGHT, WIDTH), 300, np.uint16))
        assert read_until(camera, is_frame).number == 1
    finally:
        camera.stop()


def test_a_dropped_context_ends_its_feeding_threads(session):
    import threading

    made = context(session, f"{WIDTH}x{HEIGHT}")
    mine = [thread for thread in threading.enumerate() if getattr(thread, "_session", None) == session]
    assert len(mine) == 2
    del made
    gc.collect()
    assert not any(thread.is_alive() for thread in mine)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("pattern", "640"), "WIDTHxHEIGHT"),
        (("pattern", "640x480", "0"), "1 to 90"),
        (("../x", "640x480"), "session name"),
    ],
)
def test_a_context_with_bad_arguments_says_what_is_allowed(arguments, message):
    with pytest.raises(ValueError, match=message):
        context(*arguments)


@pytest.mark.parametrize(
    "name, message",
    [
        ("nowhere:context", "No module named"),
        ("sim_bridge.realsense:nothing", "no attribute"),
        ("sim_bridge.realsense:context?colour=red", "unexpected keyword"),
        ("sim_bridge.realsense:context?size=big", "WIDTHxHEIGHT"),
        ("sim_bridge.realsense", "module:function"),
    ],
)
def test_a_context_that_cannot_be_made_is_a_configuration_error(name, message):
    with pytest.raises(ConfigError, match=message):
        make_context(name)


@pytest.mark.parametrize("camera, fault", [("side", "stall"), ("front", "explode")])
def test_an_unknown_camera_or_fault_is_refused(session, camera, fault):
    with pytest.raises(ValueError, match="there are"):
        inject(session, camera, fault)


def test_a_stamp_in_the_system_clock_moves_by_the_difference_of_the_clocks_and_never_into_the_future():
    assert DeviceClock.from_system_clock(1000.0, arrival_s=50.0, system_s=1000.2) == pytest.approx(49.8)
    assert DeviceClock.from_system_clock(1001.0, arrival_s=50.0, system_s=1000.2) == 50.0


def test_a_stamp_in_the_hardware_clock_does_not_move_with_a_late_arrival():
    clock = DeviceClock()
    delays = (0.010, 0.004, 0.050, 0.005)
    stamps = [clock.from_hardware_clock(100.0 + i / 30, 5.0 + i / 30 + delay) for i, delay in enumerate(delays)]
    assert stamps[2] == pytest.approx(5.0 + 2 / 30 + 0.004) and stamps[3] == pytest.approx(5.0 + 3 / 30 + 0.004)


def test_the_hardware_clock_follows_drift_and_a_device_that_began_again():
    clock = DeviceClock(window_s=10.0)
    for i in range(6000):  # 200 s at 30 Hz, 100 ppm slow: 20 ms in all
        arrival = i / 30
        stamp = clock.from_hardware_clock(arrival * (1 - 1e-4), arrival)
        assert arrival - 0.0011 < stamp <= arrival + 1e-9
    assert clock.from_hardware_clock(0.0, 300.0) == 300.0


def test_the_sliding_minimum_of_the_hardware_clock_equals_the_minimum_over_its_window():
    rng = np.random.default_rng(3)
    clock, history = DeviceClock(window_s=2.0), []
    for i in range(500):
        device, arrival = i / 30, 9.0 + i / 30 + rng.uniform(0, 0.03)
        history.append((arrival, arrival - device))
        expected = device + min(offset for at, offset in history if at >= arrival - 2.0)
        assert clock.from_hardware_clock(device, arrival) == pytest.approx(expected)


def test_gaps_in_frame_numbers_are_drops_and_a_restart_is_none():
    drops = DropCounter()
    for number in (5, 6, 9, 2, 3):
        drops.see(number)
    drops.restart()
    drops.see(100)
    assert drops.dropped == 2


@pytest.fixture
def film(tmp_path):
    """A file that OpenCV plays like a camera: 160x120 at 30 Hz, red on the left, blue on the right."""
    path = str(tmp_path / "film.avi")
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"MJPG"), 30, (WIDTH, HEIGHT))
    assert writer.isOpened()
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[:, : WIDTH // 2, 2], image[:, WIDTH // 2 :, 0] = 255, 255  # BGR
    for _ in range(3):
        writer.write(image)
    writer.release()
    return path


def test_a_v4l2_camera_gives_rgb_without_depth_and_says_when_no_frame_comes(film):
    camera = V4l2Camera("side", film, WIDTH, HEIGHT, 30, open_capture=cv2.VideoCapture)
    camera.start()
    frames = [camera.read(1.0) for _ in range(3)]
    assert frames[0].depth is None and frames[0].intrinsics is None and frames[0].color.shape == (HEIGHT, WIDTH, 3)
    red, blue = frames[0].color[60, 20], frames[0].color[60, 140]
    assert red[0] > 200 > 60 > red[2] and blue[2] > 200 > 60 > blue[0]
    assert [frame.number for frame in frames] == sorted(frame.number for frame in frames)
    with pytest.raises(CameraStalled, match="camera side .* is stalled"):
        camera.read(1.0)
    camera.stop()
    camera.stop()


def test_a_v4l2_camera_that_gives_another_size_is_refused(film):
    with pytest.raises(CameraError, match="does not offer 640x480 at 30 Hz: it gave 160x120 at 30 Hz"):
        V4l2Camera("side", film, open_capture=cv2.VideoCapture).start()


def test_a_missing_v4l2_path_and_a_path_that_is_no_camera_each_give_one_sentence(tmp_path):
    with pytest.raises(CameraError, match="no device '/dev/video-none'"):
        V4l2Camera("side", "/dev/video-none").start()
    other = tmp_path / "not_a_camera"
    other.write_text("")
    with pytest.raises(CameraError, match="cannot be opened as a camera"):
        V4l2Camera("side", str(other)).start()
