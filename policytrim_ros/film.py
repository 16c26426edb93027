"""A film (mp4) of what a camera saw, from a recording."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from mcap.reader import make_reader
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CompressedImage


def film(recording, out, cameras=("front", "wrist")) -> int:
    """Writes the cameras' compressed images side by side into ``out`` (mp4) and returns the number of pictures.

    A picture is written at every image of the first camera, beside the newest of the others. Raises ValueError when the
    recording holds no images of a camera.
    """
    newest: dict[str, np.ndarray] = {}
    frames, stamps = [], []
    topics = {f"/{camera}/color/image_raw/compressed": camera for camera in cameras}
    with open(recording, "rb") as stream:
        for _, channel, message in make_reader(stream).iter_messages():
            camera = next((name for topic, name in topics.items() if channel.topic.endswith(topic)), None)
            if camera is None:
                continue
            data = deserialize_message(message.data, CompressedImage).data
            newest[camera] = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
            if camera == cameras[0] and len(newest) == len(cameras):
                frames.append(np.hstack([newest[name] for name in cameras]))
                stamps.append(message.log_time)
    if len(frames) < 2:
        missing = [camera for camera in cameras if camera not in newest] or list(cameras)
        raise ValueError(f"{recording} holds no images of {', '.join(missing)}")
    rate = (len(stamps) - 1) * 1e9 / (stamps[-1] - stamps[0])
    height, width = frames[0].shape[:2]
    beside = Path(out).with_suffix(".partial.mp4")
    writer = cv2.VideoWriter(str(beside), cv2.VideoWriter_fourcc(*"mp4v"), rate, (width, height))
    for frame in frames:
        writer.write(frame)
    writer.release()
    if not beside.is_file() or beside.stat().st_size == 0:
        raise ValueError(f"no film could be written to {out}: is the folder writable and the disk free?")
    beside.replace(out)
    return len(frames)
