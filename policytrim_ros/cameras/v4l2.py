"""Any UVC camera through Video4Linux and OpenCV: colour only.

Use a stable name (/dev/v4l/by-id/...): /dev/video0 may be another camera after the next start of the machine.
A UVC camera has no frame counter: drops are estimated from the time between stamps.
"""

from __future__ import annotations

import os
import time
from typing import Callable

import cv2

from policytrim_ros.cameras.camera import CameraError, CameraStalled, Frame

LAST_SECONDS = 5.0
"""A driver's stamp is trusted when it lies within this time before the arrival; else the arrival itself is the stamp."""


def open_v4l2(path: str) -> cv2.VideoCapture:
    return cv2.VideoCapture(path, cv2.CAP_V4L2)


class V4l2Camera:
    """One V4L2 camera (see ``Camera``): YUYV from the device, RGB to the user. ``open_capture`` opens the path.

    OpenCV's driver decides how long a ``read`` waits (10 s for V4L2), not ``timeout_s``.
    """

    def __init__(
        self,
        name: str,
        path: str,
        width: int = 640,
        height: int = 480,
        fps: int = 30,
        open_capture: Callable[[str], cv2.VideoCapture] = open_v4l2,
    ):
        self.name, self.path = name, path
        self.width, self.height, self.fps = width, height, fps
        self._open, self._capture = open_capture, None
        self.dropped = 0

    @property
    def device(self) -> str:
        return self.path

    def start(self) -> None:
        if not os.path.exists(self.path):
            raise CameraError(f"camera {self.name}: no device '{self.path}'; see `ls /dev/v4l/by-id` for the cameras there are")
        capture = self._open(self.path)
        if not capture.isOpened():
            raise CameraError(
                f"camera {self.name}: '{self.path}' cannot be opened as a camera; "
                "is it one, is it free, and may you read it (group video)?"
            )
        capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter_fourcc(*"YUYV"))
        asked = {cv2.CAP_PROP_FRAME_WIDTH: self.width, cv2.CAP_PROP_FRAME_HEIGHT: self.height, cv2.CAP_PROP_FPS: self.fps}
        for key, value in asked.items():
            capture.set(key, value)
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # the newest frame, not the oldest of a queue
        got = [round(capture.get(key)) for key in asked]
        if got != list(asked.values()):
            capture.release()
            raise CameraError(
                f"camera {self.name} ({self.path}) does not offer {self.width}x{self.height} at {self.fps} Hz: it gave "
                f"{got[0]}x{got[1]} at {got[2]} Hz; see `v4l2-ctl --list-formats-ext -d {self.path}`"
            )
        self._capture, self._number, self._last = capture, 0, None

    def read(self, timeout_s: float, depth: bool = True) -> Frame:
        if self._capture is None:
            raise CameraError(f"camera {self.name}: not started, call start() before read()")
        arrived, image = self._capture.read()
        arrival = time.monotonic()
        if not arrived and not os.path.exists(self.path):
            raise CameraError(f"camera {self.name} ({self.path}) is unplugged: plug it in again, it is picked up by itself")
        if not arrived:
            raise CameraStalled(
                f"camera {self.name} ({self.path}) is stalled: the driver gave no frame; check the cable and the USB port"
            )
        stamp = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000.0  # V4L2 stamps its buffers with the monotonic clock
        if not arrival - LAST_SECONDS < stamp <= arrival:
            stamp = arrival
        self._count(stamp)
        color = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        color.flags.writeable = False
        return Frame(color=color, depth=None, stamp=stamp, number=self._number, intrinsics=None)

    def stop(self) -> None:
        capture, self._capture = self._capture, None
        if capture is not None:
            capture.release()

    def _count(self, stamp: float) -> None:
        periods = 1 if self._last is None else max(1, round((stamp - self._last) * self.fps))
        self.dropped += periods - 1
        self._number += periods
        self._last = stamp
