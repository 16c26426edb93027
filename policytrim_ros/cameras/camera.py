"""What every camera gives, whatever it is: frames with a colour image, aligned depth and an honest time.

Shapes: H, W = height and width of the colour image in pixels.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Protocol

import numpy as np


class CameraError(RuntimeError):
    """A camera cannot do what was asked; the message is one sentence: which camera, what happened, what to do."""


class CameraStalled(CameraError):
    """The camera is there but has sent no frame within the time-out; it may come back by itself."""


@dataclass(frozen=True)
class Intrinsics:
    """Pinhole model of the colour image: focal lengths and principal point in pixels, plumb-bob distortion (5,)."""

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    distortion: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Frame:
    """One picture. ``intrinsics`` is None for a camera that does not know its own.

    color: (H, W, 3) uint8 RGB. depth: (H, W) uint16 in mm on the pixels of ``color`` (0 = unknown), or None.
    stamp: monotonic seconds of this host at which the device took the picture. number: the device's own frame count.
    """

    color: np.ndarray
    depth: np.ndarray | None
    stamp: float
    number: int
    intrinsics: Intrinsics | None


class Camera(Protocol):
    """A source of frames, used by one thread: ``start``, then ``read`` again and again, then ``stop``."""

    name: str

    def start(self) -> None:
        """Opens the device and begins to stream. Raises CameraError."""

    def read(self, timeout_s: float, depth: bool = True) -> Frame:
        """The next frame, waiting at most ``timeout_s``. Without ``depth`` the work of aligning it is not done.

        Raises CameraStalled when no frame came, CameraError when the device has gone.
        """

    def stop(self) -> None:
        """Releases the device; may be called at any time and more than once."""

    @property
    def device(self) -> str:
        """What the device that was opened calls itself: its serial number, or its path; '' before `start`."""

    @property
    def dropped(self) -> int:
        """Frames that the device took but that never arrived, from the gaps in its frame numbers."""


class DropCounter:
    """Counts missing frame numbers. A number that does not grow is a device that began again: nothing was lost."""

    def __init__(self):
        self.dropped, self._last = 0, None

    def see(self, number: int) -> None:
        if self._last is not None and number > self._last + 1:
            self.dropped += number - self._last - 1
        self._last = number

    def restart(self) -> None:
        """The device was opened anew: its next number says nothing about loss."""
        self._last = None


class DeviceClock:
    """Turns the time stamps of a camera into monotonic seconds of this host.

    Stamps in the host's *system clock* (librealsense domains ``global_time``, the default of a D435i, and
    ``system_time``) are moved by the present difference between the two host clocks. Stamps of the camera's own
    *hardware clock* have an unknown origin: the smallest (arrival - stamp) of the last ``window_s`` seconds is taken as
    the origin, so that the delay of a late arrival does not shift the stamp. That leaves the shortest transfer time in
    the stamp (a few ms over USB 3), and follows the drift of the camera's quartz (some 10 ppm). No stamp lies in the
    future of its arrival.
    """

    def __init__(self, window_s: float = 30.0):
        self.window_s = window_s
        self._minima: deque[tuple[float, float]] = deque()  # (arrival, offset), offsets growing: the sliding minimum
        self._last = -np.inf

    @staticmethod
    def from_system_clock(stamp_s: float, arrival_s: float, system_s: float) -> float:
        """``stamp_s`` in the system clock, which shows ``system_s`` when the monotonic clock shows ``arrival_s``."""
        return min(stamp_s - (system_s - arrival_s), arrival_s)

    def from_hardware_clock(self, stamp_s: float, arrival_s: float) -> float:
        """``stamp_s`` in the camera's clock, of a frame that arrived at the monotonic time ``arrival_s``."""
        if stamp_s < self._last:  # the camera began again
            self._minima.clear()
        self._last = stamp_s
        offset = arrival_s - stamp_s
        while self._minima and self._minima[-1][1] >= offset:
            self._minima.pop()
        self._minima.append((arrival_s, offset))
        while self._minima[0][0] < arrival_s - self.window_s:
            self._minima.popleft()
        return stamp_s + self._minima[0][1]
