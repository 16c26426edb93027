"""Intel RealSense cameras through the ordinary librealsense pipeline.

The pipeline pairs colour and depth; depth is aligned to colour only for those who ask. The librealsense context may be
given from outside: software devices live in the context that they were added to, and so do recorded ones.
"""

from __future__ import annotations

import importlib
import time
from urllib.parse import parse_qsl

import numpy as np

try:
    import pyrealsense2 as rs
except ImportError as error:
    remedy = "pip install pyrealsense2, and apt install libusb-1.0-0"
    raise ImportError(f"pyrealsense2 cannot be loaded ({error}): {remedy}") from error

from policytrim_ros.cameras.camera import CameraError, CameraStalled, DeviceClock, DropCounter, Frame, Intrinsics
from policytrim_ros.core.config import ConfigError

PRESENCE_CHECK_S = 1.0
"""Silence after which the list of devices is looked at: on a real bus that takes some 100 ms, so not at every time-out."""


def make_context(name: str = "") -> "rs.context":
    """The librealsense context called ``name``: "" for the machine's cameras, or ``module:function?key=value&...``.

    The function is called with the keys as text arguments and returns an ``rs.context``. Raises ConfigError.
    """
    if not name:
        return rs.context()
    target, _, query = name.partition("?")
    module, _, function = target.partition(":")
    try:
        make = getattr(importlib.import_module(module), function)
        return make(**dict(parse_qsl(query, strict_parsing=bool(query))))
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"realsense_context '{name}' cannot be made: {error}; expected 'module:function?key=value'") from error


def serials(context: "rs.context") -> list[str]:
    """Serial numbers of the cameras that are plugged in."""
    key = rs.camera_info.serial_number
    found = (device.get_info(key) for device in context.query_devices() if device.supports(key))
    return sorted(serial for serial in found if serial)


class RealSenseCamera:
    """One RealSense camera (see ``Camera``): rgb8 colour, and z16 depth when ``depth`` is wanted.

    ``serial`` "" takes the only camera there is. Colour and depth run at the same size and rate (pixels, Hz).
    """

    def __init__(
        self, name: str, serial: str = "", width: int = 640, height: int = 480, fps: int = 30, depth: bool = True, context=None
    ):
        self.name, self.serial = name, serial
        self.width, self.height, self.fps, self.depth = width, height, fps, depth
        self._context = context if context is not None else rs.context()
        self._drops = DropCounter()
        self._pipeline, self._device_serial, self._delivered = None, "", None

    @property
    def device(self) -> str:
        return self._device_serial

    @property
    def dropped(self) -> int:
        return self._drops.dropped

    def start(self) -> None:
        serial = self._present_serial()
        config = rs.config()
        config.enable_device(serial)
        config.enable_stream(rs.stream.color, self.width, self.height, rs.format.rgb8, self.fps)
        if self.depth:
            config.enable_stream(rs.stream.depth, self.width, self.height, rs.format.z16, self.fps)
        pipeline = rs.pipeline(self._context)
        try:
            profile = pipeline.start(config)
        except RuntimeError as error:
            raise CameraError(self._why_not_started(serial, error)) from error
        color = profile.get_stream(rs.stream.color).as_video_stream_profile()
        needs_align = self.depth and not _coincide(profile.get_stream(rs.stream.depth), color)
        self._align = rs.align(rs.stream.color) if needs_align else None
        self._to_mm = self._configure(profile.get_device())
        self._intrinsics = _intrinsics(color.get_intrinsics())
        self._clock = DeviceClock()
        self._drops.restart()
        self._delivered = None
        self._heard = time.monotonic()
        self._pipeline, self._device_serial = pipeline, serial

    def read(self, timeout_s: float, depth: bool = True) -> Frame:
        if self._pipeline is None:
            raise CameraError(f"camera {self.name}: not started, call start() before read()")
        end = time.monotonic() + timeout_s
        while True:
            color, frames = self._wait(end)
            arrival, system = time.monotonic(), time.time()
            if color and color.get_frame_number() != self._delivered:  # a late stream's old frame comes again in the next set
                break
        self._heard, self._delivered = arrival, color.get_frame_number()
        self._drops.see(self._delivered)
        return Frame(
            color=_copy(color),
            depth=self._aligned(frames) if depth and self.depth else None,
            stamp=self._stamp(color, arrival, system),
            number=self._delivered,
            intrinsics=self._intrinsics,
        )

    def stop(self) -> None:
        pipeline, self._pipeline = self._pipeline, None
        if pipeline is not None:
            try:
                pipeline.stop()
            except RuntimeError as error:
                if self._device_serial in serials(self._context):  # stopping a camera that has gone always fails
                    raise CameraError(f"{self._who} could not be stopped: {error}; unplug it and plug it in again") from error

    def _wait(self, end: float):
        """(colour frame or None, frame set); raises when nothing came until the monotonic time ``end``."""
        try:
            arrived, frames = self._pipeline.try_wait_for_frames(max(1, round(1000 * (end - time.monotonic()))))
        except RuntimeError as error:
            raise CameraError(f"{self._who} stopped: {error}; check its cable") from error
        if arrived:
            return frames.get_color_frame(), frames
        silent = time.monotonic() - self._heard
        if silent > PRESENCE_CHECK_S and self._device_serial not in serials(self._context):
            raise CameraError(f"{self._who} is unplugged: plug it in again, it is picked up by itself")
        raise CameraStalled(
            f"{self._who} is stalled: no frame for {silent:.1f} s; check the cable and that it sits in a USB 3 port of its own"
        )

    @property
    def _who(self) -> str:
        return f"camera {self.name} (serial {self._device_serial})"

    def _stamp(self, frame, arrival: float, system: float) -> float:
        stamp = frame.get_timestamp() / 1000.0
        if frame.get_frame_timestamp_domain() == rs.timestamp_domain.hardware_clock:
            return self._clock.from_hardware_clock(stamp, arrival)
        return self._clock.from_system_clock(stamp, arrival, system)

    def _aligned(self, frames):
        depth = (self._align.process(frames) if self._align is not None else frames).get_depth_frame()
        if not depth:
            return None
        if self._to_mm == 1.0:
            return _copy(depth)
        millimetres = np.asanyarray(depth.get_data()) * self._to_mm
        return _frozen(np.minimum(np.rint(millimetres), 65535).astype(np.uint16))

    def _present_serial(self) -> str:
        found = serials(self._context)
        listed = ", ".join(found)
        if not found:
            raise CameraError(f"camera {self.name}: no RealSense camera is connected; plug it into a USB 3 port")
        if self.serial and self.serial not in found:
            raise CameraError(
                f"camera {self.name}: no camera with serial '{self.serial}'; found: {listed}; correct the parameter 'serials'"
            )
        if not self.serial and len(found) > 1:
            raise CameraError(
                f"camera {self.name}: several cameras are connected ({listed}); name one in the parameter 'serials'"
            )
        return self.serial or found[0]

    def _why_not_started(self, serial: str, error: RuntimeError) -> str:
        who = f"camera {self.name} (serial {serial})"
        if "resolve" not in str(error):
            return f"{who} could not be started: {error}; is another process using it?"
        color = ", ".join(self._offered(serial, rs.stream.color, rs.format.rgb8))
        depth = ", ".join(self._offered(serial, rs.stream.depth, rs.format.z16))
        asked = f"{self.width}x{self.height} at {self.fps} Hz"
        return f"{who} does not offer {asked}; it offers colour {color}; depth {depth}"

    def _offered(self, serial: str, stream, form) -> list[str]:
        """Profiles of the camera with ``serial`` for one kind of stream, as WIDTHxHEIGHT@HZ."""
        profiles = set()
        for device in self._context.query_devices():
            if device.get_info(rs.camera_info.serial_number) == serial:
                for profile in (profile for sensor in device.query_sensors() for profile in sensor.get_stream_profiles()):
                    if profile.stream_type() == stream and profile.format() == form:
                        video = profile.as_video_stream_profile()
                        profiles.add((video.width(), video.height(), video.fps()))
        return ["%dx%d@%d" % profile for profile in sorted(profiles)]

    @staticmethod
    def _configure(device) -> float:
        """Sets what the project relies on; returns millimetres per unit of raw depth."""
        to_mm = 1.0
        for sensor in device.query_sensors():
            for option, value in ((rs.option.global_time_enabled, 1.0), (rs.option.auto_exposure_priority, 0.0)):
                # global time: stamps in the host's clock; exposure priority would halve the rate in a dark room
                if sensor.supports(option) and not sensor.is_option_read_only(option):
                    sensor.set_option(option, value)
            if sensor.supports(rs.option.depth_units):
                to_mm = 1000.0 * sensor.get_option(rs.option.depth_units)
        return 1.0 if abs(to_mm - 1.0) < 1e-6 else to_mm


def _coincide(depth, color) -> bool:
    """Whether depth lies on the colour pixels as it comes (a D405, where rs.align would only punch holes by rounding)."""
    a, b, between = depth.as_video_stream_profile().get_intrinsics(), color.get_intrinsics(), depth.get_extrinsics_to(color)
    same = all(getattr(a, key) == getattr(b, key) for key in ("width", "height", "fx", "fy", "ppx", "ppy", "coeffs"))
    return same and np.allclose(between.translation, 0, atol=1e-6) and np.allclose(between.rotation, np.eye(3).ravel(), atol=1e-6)


def _intrinsics(i) -> Intrinsics:
    return Intrinsics(i.width, i.height, i.fx, i.fy, i.ppx, i.ppy, tuple(i.coeffs))


def _copy(frame) -> np.ndarray:
    # A copy, because librealsense has few frame buffers and stalls when a user keeps them.
    return _frozen(np.array(np.asanyarray(frame.get_data())))


def _frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array
