"""Node ``camera``: pictures of all cameras, with the time at which the device took them.

One thread a camera reads and publishes; the executor only runs the heartbeat and the diagnostics. Nothing is aligned,
compressed or converted for nobody: the work is done only while a topic has subscribers. A camera that fails while the
node runs is reported in ``diagnostics``, is no longer named on ``heartbeat`` and is opened again until it is back; at the start
it is a reason not to start.

Images are reliable with a short queue: a reader with depth 1 gets the newest picture, one with depth 5 gets every picture
though it be late for a moment, and a best-effort reader matches too. A picture
(0.9 MB) is larger than the default shared-memory segment of Fast DDS: start node and readers with
FASTRTPS_DEFAULT_PROFILES_FILE=config/fastdds_shm.xml, else some are lost under load.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from array import array
from dataclasses import dataclass

import cv2
import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from policytrim_ros.cameras.camera import Camera, CameraError, CameraStalled, Frame, Intrinsics
from policytrim_ros.core.config import Config, ConfigError, setting
from policytrim_ros.nodes import parameters, process

QOS = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)
READ_S = 0.2
RETRY_S = 1.0
DIAGNOSTICS_S = 1.0


@dataclass(frozen=True)
class CameraConfig(Config):
    cameras: tuple = setting(("front", "wrist"), "names of the cameras: the first part of their topics and frame ids")
    source: str = setting("realsense", "what the cameras are", choices=("realsense", "v4l2"))
    serials: tuple = setting(("", ""), "RealSense serial number of each camera, in their order; empty: the only one there is")
    paths: tuple = setting(("", ""), "device of each camera for source v4l2, for example /dev/v4l/by-id/...")
    width: int = setting(640, "width of the pictures", low=16, high=1920, unit="pixels")
    height: int = setting(480, "height of the pictures", low=16, high=1080, unit="pixels")
    fps: int = setting(30, "pictures each second, as the camera offers them", low=1, high=90, unit="Hz")
    realsense_context: str = setting("", "librealsense context, as module:function?key=value; empty: the cameras on the USB")
    publish_depth: bool = setting(True, "stream depth and offer it aligned to colour")
    jpeg_quality: int = setting(85, "quality of the compressed pictures", low=1, high=100, read_only=False)
    jpeg_rate_hz: float = setting(10.0, "most compressed pictures each second", low=0.1, high=90.0, unit="Hz", read_only=False)
    stale_after_s: float = setting(
        0.5, "silence after which a camera counts as stalled", low=0.05, high=10.0, unit="s", read_only=False
    )
    restart_after_s: float = setting(
        5.0, "silence after which a stalled camera is closed and opened again", low=1.0, high=60.0, unit="s", read_only=False
    )

    def __post_init__(self):
        super().__post_init__()
        if not self.cameras or len(set(self.cameras)) != len(self.cameras):
            raise ConfigError(f"CameraConfig.cameras = {list(self.cameras)}: name each camera once, and at least one")
        for name in self.cameras:
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", str(name)):
                raise ConfigError(f"CameraConfig.cameras: '{name}' is no name: use letters, digits and '_', a letter first")
        key = "serials" if self.source == "realsense" else "paths"
        given = getattr(self, key)
        named = [value for value in given if value]
        if len(given) != len(self.cameras) or len(set(named)) != len(named):
            cameras = ", ".join(self.cameras)
            raise ConfigError(f"CameraConfig.{key} = {list(given)}: expected one for each of {cameras}, all different")


def make_cameras(config: CameraConfig) -> list[Camera]:
    """The cameras of the configuration, not yet started. Imports only the driver that is used."""
    if config.source == "v4l2":
        from policytrim_ros.cameras.v4l2 import V4l2Camera

        size = (config.width, config.height, config.fps)
        return [V4l2Camera(name, path, *size) for name, path in zip(config.cameras, config.paths)]
    from policytrim_ros.cameras.realsense import RealSenseCamera, make_context

    context = make_context(config.realsense_context)
    return [
        RealSenseCamera(name, serial, config.width, config.height, config.fps, config.publish_depth, context)
        for name, serial in zip(config.cameras, config.serials)
    ]


class CameraNode(Node):
    """Reads every camera in a thread of its own; ``close`` ends them."""

    def __init__(self):
        super().__init__("camera")
        self.config = parameters.declare(self, CameraConfig)
        self._diagnostics = self.create_publisher(DiagnosticArray, "diagnostics", 10)
        identities = self.config.serials if self.config.source == "realsense" else self.config.paths
        self._streams = [Stream(self, camera, identity) for camera, identity in zip(make_cameras(self.config), identities)]
        self._started: list[Stream] = []
        try:
            for stream in self._streams:
                stream.camera.start()
                self._started.append(stream)
        except CameraError:
            self.close()
            raise
        for stream in self._streams:
            stream.thread.start()
        self.create_timer(DIAGNOSTICS_S, self._diagnose, clock=process.STEADY)
        size = f"{self.config.width}x{self.config.height}"
        self.get_logger().info(f"event=started cameras={','.join(self.config.cameras)} size={size} fps={self.config.fps}")

    def parts(self) -> list[str]:
        """The cameras that send pictures, as they are called on ``heartbeat``."""
        return [f"camera/{stream.camera.name}" for stream in self._streams if stream.fresh]

    def close(self) -> None:
        """Ends the reading threads and releases the cameras."""
        for stream in self._started:
            stream.stopping.set()
        for stream in self._started:
            stream.close()
        self._started = []

    def _diagnose(self) -> None:
        message = DiagnosticArray(status=[stream.status() for stream in self._streams])
        message.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(message)


class Stream:
    """One camera and its topics. Only its own thread touches the camera once it runs."""

    def __init__(self, node: CameraNode, camera: Camera, identity: str):
        self.node, self.camera, self.identity = node, camera, identity
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._run, name=f"camera-{camera.name}", daemon=True)
        name = camera.name
        self._color = Picture(node, f"{name}/color/image_raw", "rgb8", 3)
        self._info = node.create_publisher(CameraInfo, f"{name}/color/camera_info", QOS)
        self._jpeg = node.create_publisher(CompressedImage, f"{name}/color/image_raw/compressed", QOS)
        self._depth = Picture(node, f"{name}/aligned_depth_to_color/image_raw", "16UC1", 2) if node.config.publish_depth else None
        self._frame_id = f"{name}_color_optical_frame"
        self._jpeg_due = 0.0
        self._error = ""
        self._received, self._restarts = 0, 0
        self._arrived = time.monotonic()
        self._stamp: float | None = None
        self._reported = (self._arrived, 0, 0)  # monotonic s, received, dropped at the last report

    @property
    def fresh(self) -> bool:
        """Whether a picture came within stale_after_s."""
        return time.monotonic() - self._arrived < self._setting("stale_after_s")

    def close(self) -> None:
        """Waits for the thread and releases the camera."""
        self.stopping.set()
        if self.thread.is_alive():
            self.thread.join()
        try:
            self.camera.stop()
        except CameraError as error:
            print(f"camera: {error}", file=sys.stderr, flush=True)

    def status(self) -> DiagnosticStatus:
        """Level, one sentence and figures of the time since the last call."""
        now, received, dropped = time.monotonic(), self._received, self.camera.dropped
        then, received_then, dropped_then = self._reported
        self._reported = (now, received, dropped)
        rate = (received - received_then) / max(now - then, 1e-6)
        level, text = DiagnosticStatus.OK, f"{rate:.1f} Hz"
        if self._error:
            level, text = DiagnosticStatus.ERROR, self._error
        elif dropped > dropped_then:
            level = DiagnosticStatus.WARN
            text = f"{dropped - dropped_then} frames lost before they reached the node: check the USB port and the load"
        elif rate < 0.8 * self.node.config.fps:
            level, text = DiagnosticStatus.WARN, f"{rate:.1f} Hz instead of {self.node.config.fps} Hz"
        age = "never" if self._stamp is None else f"{now - self._stamp:.3f}"
        figures = dict(rate_hz=f"{rate:.2f}", age_s=age, received=received, dropped=dropped, restarts=self._restarts, device=self.camera.device)
        values = [KeyValue(key=key, value=str(value)) for key, value in figures.items()]
        name = f"camera: {self.camera.name}"
        return DiagnosticStatus(level=level, name=name, message=text, hardware_id=self.identity, values=values)

    def _run(self) -> None:
        is_open = True
        while not self.stopping.is_set():
            try:
                if not is_open:
                    self.camera.start()
                    is_open = True
                    self._restarts += 1
                    self._arrived = time.monotonic()
                frame = self.camera.read(READ_S, depth=self._depth is not None and self._depth.wanted)
                self._arrived = time.monotonic()
                self._publish(frame)
                self._received, self._stamp = self._received + 1, frame.stamp
                self._report("")
            except CameraStalled as error:
                silent = time.monotonic() - self._arrived
                if silent > self._setting("stale_after_s"):
                    self._report(str(error))
                if silent > self._setting("restart_after_s"):
                    is_open = self._shut()
            except CameraError as error:
                self._report(str(error))
                is_open = self._shut()
                self.stopping.wait(RETRY_S)
            except Exception as error:  # the boundary of the thread: end the process and say why
                if not self.stopping.is_set():
                    self.node.fatal = f"camera {self.camera.name}: {type(error).__name__}: {error}"
                return

    def _shut(self) -> bool:
        """Closes the camera before it is opened again; returns that it is not open."""
        try:
            self.camera.stop()
        except CameraError as error:
            self._report(str(error))
        return False

    def _report(self, error: str) -> None:
        if bool(error) != bool(self._error):
            logger = self.node.get_logger()
            if error:
                logger.error(f"event=camera_lost camera={self.camera.name} reason={error}")
            else:
                logger.info(f"event=camera_back camera={self.camera.name}")
        self._error = error

    def _publish(self, frame: Frame) -> None:
        stamp = self._ros_time(frame.stamp)
        self._color.publish(frame.color, stamp, self._frame_id)
        if self._info.get_subscription_count() and frame.intrinsics is not None:
            self._info.publish(camera_info(frame.intrinsics, stamp, self._frame_id))
        if self._depth is not None and frame.depth is not None:
            self._depth.publish(frame.depth, stamp, self._frame_id)
        now = time.monotonic()
        if now >= self._jpeg_due and self._jpeg.get_subscription_count():
            self._jpeg_due = now + 1.0 / self._setting("jpeg_rate_hz")
            self._publish_jpeg(frame.color, stamp)

    def _publish_jpeg(self, color: np.ndarray, stamp) -> None:
        bgr = cv2.cvtColor(color, cv2.COLOR_RGB2BGR)
        _, jpeg = cv2.imencode(".jpg", bgr, (cv2.IMWRITE_JPEG_QUALITY, self._setting("jpeg_quality")))
        message = CompressedImage(format="rgb8; jpeg compressed bgr8")
        message.header.stamp, message.header.frame_id = stamp, self._frame_id
        message.data = array("B", jpeg.tobytes())
        self._jpeg.publish(message)

    def _ros_time(self, monotonic_s: float):
        age_ns = round((time.monotonic() - monotonic_s) * 1e9)
        now = self.node.get_clock().now()
        return Time(nanoseconds=max(0, now.nanoseconds - age_ns), clock_type=now.clock_type).to_msg()

    def _setting(self, name: str):
        return self.node.get_parameter(name).value


class Picture:
    """A publisher of uncompressed images that fills one message again and again."""

    def __init__(self, node: Node, topic: str, encoding: str, bytes_per_pixel: int):
        self._publisher = node.create_publisher(Image, topic, QOS)
        self._message = Image(encoding=encoding, is_bigendian=0)
        self._bytes_per_pixel = bytes_per_pixel

    @property
    def wanted(self) -> bool:
        return self._publisher.get_subscription_count() > 0

    def publish(self, image: np.ndarray, stamp, frame_id: str) -> None:
        """Publishes a C-contiguous ``image`` (H, W[, channels]); does nothing when nobody listens."""
        if not self.wanted:
            return
        message = self._message
        if len(message.data) != image.nbytes:
            message.height, message.width = image.shape[:2]
            message.step = message.width * self._bytes_per_pixel
            message.data = array("B", bytes(image.nbytes))
        # Into the array that the message owns (the setter copies): assigning an ndarray costs 45 ms a picture, bytes 0.4 ms.
        memoryview(message.data)[:] = memoryview(image).cast("B")
        message.header.stamp, message.header.frame_id = stamp, frame_id
        self._publisher.publish(message)


def camera_info(i: Intrinsics, stamp, frame_id: str) -> CameraInfo:
    message = CameraInfo(width=i.width, height=i.height, distortion_model="plumb_bob", d=list(i.distortion))
    message.header.stamp, message.header.frame_id = stamp, frame_id
    message.k = [i.fx, 0.0, i.cx, 0.0, i.fy, i.cy, 0.0, 0.0, 1.0]
    message.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    message.p = [i.fx, 0.0, i.cx, 0.0, 0.0, i.fy, i.cy, 0.0, 0.0, 0.0, 1.0, 0.0]
    return message


def main(args=None) -> int:
    return process.run(CameraNode, args)


if __name__ == "__main__":
    sys.exit(main())
