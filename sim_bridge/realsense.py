"""Two emulated Intel RealSense D435i: librealsense software devices that an ordinary ``rs.pipeline`` reads.

The product is configured with ``realsense_context: "sim_bridge.realsense:context"`` and does not know. Arguments come
from the name's query (``...:context?session=demo&size=640x480&fps=30``) or, where absent, from the environment:

    POLICYTRIM_SESSION      the simulation session whose blocks ``camera_front`` and ``camera_wrist`` are shown, or a name
                            that begins with ``pattern`` for a moving test pattern that needs no world (default: pattern)
    POLICYTRIM_CAMERA_SIZE  pixels, as WIDTHxHEIGHT (default: 640x480); the world must write frames of this size
    POLICYTRIM_CAMERA_FPS   rate of the stream profile and of the pattern (default: 30)

A frame of the world is passed on once, with the world's stamp and number; no new frame, nothing passed on: a world that
stops is a camera that stalls. Depth of the world lies on the colour pixels already, so the two sensors coincide there;
the pattern has the 15 mm between them that a D435i has, so that aligning depth has something to do.

Faults, from any process: ``inject(session, "front", "stall")``, ``"unplug"``, ``"clear"``, or
``python -m sim_bridge.realsense SESSION CAMERA FAULT``.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import threading
import time
import weakref

import numpy as np
import pyrealsense2 as rs

from sim_bridge.shared import Block, camera_frame, session_dir

SERIALS = {"front": "emulated-front", "wrist": "emulated-wrist"}
"""Serial number of each emulated camera."""

VERTICAL_FOV_RAD = {"front": math.radians(42.5), "wrist": math.radians(58.0)}
"""Vertical field of view of the colour cameras as the world renders them (a D435i has 69 x 42.5 degrees at 16:9)."""

BASELINE_M = 0.015
"""Distance from the depth sensor to the colour sensor of a D435i along x."""

FAULTS = ("stall", "unplug", "clear")
POLL_S = 0.003
LOOK_AROUND_S = 0.05

_kept = []  # librealsense holds software devices weakly and crashes when one is freed while listed: they live on


def context(session: str | None = None, size: str | None = None, fps: str | None = None) -> rs.context:
    """A librealsense context with both cameras plugged in; they feed themselves until the context is dropped.

    Raises ValueError when an argument makes no sense.
    """
    session = session or os.environ.get("POLICYTRIM_SESSION", "pattern")
    width, height = _size(size or os.environ.get("POLICYTRIM_CAMERA_SIZE", "640x480"))
    rate = int(fps or os.environ.get("POLICYTRIM_CAMERA_FPS", "30"))
    if not 1 <= rate <= 90:
        raise ValueError(f"fps={rate}: allowed range is 1 to 90 Hz")
    session_dir(session)  # refuses a bad name
    made = rs.context()
    lists = []
    made.set_devices_changed_callback(lambda event: lists.append(event.get_new_devices()))  # an unheld list unplugs its devices
    cameras = [EmulatedCamera(session, name, width, height, rate) for name in SERIALS]
    for camera in cameras:
        camera.device.add_to(made)
        camera.start()
    _kept.append((lists, cameras))
    weakref.finalize(made, _stop, cameras)
    return made


def inject(session: str, camera: str, fault: str) -> None:
    """Makes ``camera`` ("front", "wrist") of a running or coming ``session`` fail, or "clear"s its fault.

    "stall": no frames, still listed. "unplug": no frames and not listed. Raises ValueError on an unknown word.
    """
    if camera not in SERIALS:
        raise ValueError(f"no camera '{camera}'; there are {', '.join(SERIALS)}")
    if fault not in FAULTS:
        raise ValueError(f"no fault '{fault}'; there are {', '.join(FAULTS)}")
    path = _fault_path(session, camera)
    if fault == "clear":
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    beside = path.with_suffix(f".{os.getpid()}")
    beside.write_text(fault)
    os.replace(beside, path)


def intrinsics(camera: str, width: int, height: int) -> rs.intrinsics:
    """The pinhole of ``camera`` at this size (pixels), without distortion."""
    made = rs.intrinsics()
    made.width, made.height = width, height
    made.fx = made.fy = height / 2 / math.tan(VERTICAL_FOV_RAD[camera] / 2)
    made.ppx, made.ppy = width / 2, height / 2
    made.model, made.coeffs = rs.distortion.brown_conrady, [0.0] * 5
    return made


class EmulatedCamera(threading.Thread):
    """One D435i: a software device and the thread that feeds it."""

    def __init__(self, session: str, name: str, width: int, height: int, fps: int):
        super().__init__(name=f"emulated-{name}", daemon=True)
        self._session, self._camera, self._size, self._fps = session, name, (width, height), fps
        self._source = Pattern(name, width, height, fps) if session.startswith("pattern") else World(session, name, width, height)
        self._stopping = threading.Event()
        self._fault = ""
        self.device = rs.software_device()
        for key, value in (
            (rs.camera_info.name, "Intel RealSense D435I"),
            (rs.camera_info.serial_number, SERIALS[name]),
            (rs.camera_info.product_line, "D400"),
            (rs.camera_info.firmware_version, "5.16.0.1"),
            (rs.camera_info.usb_type_descriptor, "3.2"),
        ):
            self.device.register_info(key, value)
        self._depth, self._color = self.device.add_sensor("Stereo Module"), self.device.add_sensor("RGB Camera")
        self._depth.add_read_only_option(rs.option.depth_units, 0.001)
        depth, color = self._stream(rs.stream.depth, rs.format.z16, 2, 1), self._stream(rs.stream.color, rs.format.rgb8, 3, 2)
        self._depth_profile = self._depth.add_video_stream(depth).as_video_stream_profile()
        self._color_profile = self._color.add_video_stream(color).as_video_stream_profile()
        to_color = rs.extrinsics()
        to_color.rotation, to_color.translation = [1, 0, 0, 0, 1, 0, 0, 0, 1], [self._source.baseline_m, 0, 0]
        self._depth_profile.register_extrinsics_to(self._color_profile, to_color)
        self.device.create_matcher(rs.matchers.dlr_c)
        self._follow_fault()

    def run(self) -> None:
        looked = time.monotonic()
        while not self._stopping.is_set():
            frame = self._source.next(self._stopping)
            if time.monotonic() - looked > LOOK_AROUND_S:
                looked = time.monotonic()
                self._follow_fault()
            if frame is not None and not self._fault:
                self._show(*frame)

    def stop(self) -> None:
        self._stopping.set()
        if self.is_alive() and threading.current_thread() is not self:  # a collection may run in any thread
            self.join()

    def _show(self, number: int, stamp: float, color: np.ndarray, depth: np.ndarray) -> None:
        milliseconds = 1000.0 * (stamp + time.time() - time.monotonic())  # global time, as a D435i gives by default
        outputs = ((self._depth, self._depth_profile, depth, 2), (self._color, self._color_profile, color, 3))
        for sensor, profile, image, bpp in outputs:
            if sensor.get_active_streams():
                frame = rs.software_video_frame()
                frame.stride, frame.bpp, frame.profile, frame.pixels = image.shape[1] * bpp, bpp, profile, image
                frame.timestamp, frame.domain, frame.frame_number = milliseconds, rs.timestamp_domain.global_time, number
                if bpp == 2:
                    frame.depth_units = 0.001
                sensor.on_video_frame(frame)

    def _follow_fault(self) -> None:
        try:
            fault = _fault_path(self._session, self._camera).read_text()
        except FileNotFoundError:
            fault = ""
        if ("unplug" == fault) != ("unplug" == self._fault):
            # librealsense never delists a software device that a pipeline of its context has seen: without a serial
            # number nobody can find or open it, which is what a missing camera looks like.
            self.device.update_info(rs.camera_info.serial_number, "" if fault == "unplug" else SERIALS[self._camera])
        self._fault = fault

    def _stream(self, kind, form, bpp: int, uid: int) -> rs.video_stream:
        stream = rs.video_stream()
        stream.type, stream.index, stream.uid, stream.fmt, stream.bpp, stream.fps = kind, 0, uid, form, bpp, self._fps
        stream.width, stream.height = self._size
        stream.intrinsics = intrinsics(self._camera, *self._size)
        return stream


class World:
    """Frames that the world process writes into the session's block; follows a world that is started again."""

    baseline_m = 0.0

    def __init__(self, session: str, camera: str, width: int, height: int):
        self._session, self._block_name, self._dtype = session, f"camera_{camera}", camera_frame(width, height)
        self._path = session_dir(session) / self._block_name
        self._block, self._inode, self._seen, self._looked, self._stamp, self._complaint = None, None, 0, 0.0, None, ""

    def next(self, stopping: threading.Event):
        """(number, stamp, color, depth) of a frame not seen before, or None after a short wait without one."""
        if self._block is None or time.monotonic() - self._looked > 0.5:
            self._reopen()
        if self._block is None or self._block.sequence == self._seen:
            stopping.wait(POLL_S if self._block is not None else LOOK_AROUND_S)
            return None
        self._seen = self._block.sequence
        record = self._block.read()
        if record is None or record["stamp"] == self._stamp:  # the write that was seen may be older than what was read
            return None
        self._looked, self._stamp = time.monotonic(), record["stamp"]
        return int(record["number"]), float(record["stamp"]), record["color"], record["depth"]

    def _reopen(self) -> None:
        self._looked = time.monotonic()
        try:
            inode = os.stat(self._path).st_ino
            if inode != self._inode:
                self._block = Block(self._session, self._block_name, self._dtype)
                self._inode, self._seen = inode, 0
        except FileNotFoundError:  # no world yet, or none any more: the camera stalls
            self._block, self._inode = None, None
        except ValueError as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                print(f"emulated {self._block_name}: {error}; is the world's camera size the same?", file=sys.stderr, flush=True)


class Pattern:
    """A near square gliding over a far wall, at a steady rate; its pictures follow from the frame number alone."""

    baseline_m = BASELINE_M
    FAR_MM, NEAR_MM = 1000, 500

    def __init__(self, camera: str, width: int, height: int, fps: int):
        self._camera, self._width, self._height, self._period = camera, width, height, 1.0 / fps
        self._focal = intrinsics(camera, width, height).fx
        self._number, self._due = 0, None
        self._wall = self._make_wall()

    def next(self, stopping: threading.Event):
        now = time.monotonic()
        self._due = now if self._due is None or now - self._due > 1.0 else self._due + self._period
        if stopping.wait(max(0.0, self._due - now)):
            return None
        self._number += 1
        return self._number, time.monotonic(), self.color(self._number), self.depth(self._number)

    def color(self, number: int) -> np.ndarray:
        """(H, W, 3) uint8; the first four bytes hold ``number``, little-endian, so that a viewer can tell what it missed."""
        image = self._wall.copy()
        left, right, top, bottom = self.square(number)
        image[top:bottom, left:right] = (250, 220, 40)
        image.reshape(-1)[:4] = np.frombuffer(np.uint32(number).tobytes(), np.uint8)
        return image

    def depth(self, number: int) -> np.ndarray:
        """(H, W) uint16 mm as the depth sensor sees it: the near square stands further left than in the colour image."""
        image = np.full((self._height, self._width), self.FAR_MM, np.uint16)
        left, right, top, bottom = self.square(number)
        shift = round(self._focal * BASELINE_M / (self.NEAR_MM / 1000))
        image[top:bottom, max(0, left - shift) : max(0, right - shift)] = self.NEAR_MM
        return image

    def square(self, number: int) -> tuple[int, int, int, int]:
        """(left, right, top, bottom) of the near square in the colour image, in pixels."""
        side = self._height // 4
        left = (4 * number) % (self._width - side)
        return left, left + side, self._height // 3, self._height // 3 + side

    def _make_wall(self) -> np.ndarray:
        y, x = np.mgrid[: self._height, : self._width]
        squares = 64 + (x // 16 + y // 16) % 2 * 64
        wall = np.stack([x * 255 // self._width, y * 255 // self._height, squares], axis=2).astype(np.uint8)
        return wall if self._camera == "front" else np.ascontiguousarray(wall[..., ::-1])


def _fault_path(session: str, camera: str):
    return session_dir(session) / f"camera_{camera}.fault"


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit() and 16 <= int(width) <= 1920 and 16 <= int(height) <= 1080):
        raise ValueError(f"size '{text}': expected WIDTHxHEIGHT, from 16x16 to 1920x1080")
    return int(width), int(height)


def _stop(cameras) -> None:
    for camera in cameras:
        camera.stop()


def main() -> None:
    description = "Make an emulated camera fail, or heal it."
    parser = argparse.ArgumentParser(prog="python -m sim_bridge.realsense", description=description)
    parser.add_argument("session")
    parser.add_argument("camera", choices=SERIALS)
    parser.add_argument("fault", choices=FAULTS)
    arguments = parser.parse_args()
    inject(arguments.session, arguments.camera, arguments.fault)


if __name__ == "__main__":
    main()
