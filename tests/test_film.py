"""A film is made of what was recorded, and nothing is left behind when it cannot be."""

import cv2
import numpy as np
import pytest
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CompressedImage

from policytrim_ros.film import film
from policytrim_ros.nodes.recorder import McapFile


def recording(path, cameras, frames=10):
    file = McapFile(path)
    for number in range(frames):
        for index, camera in enumerate(cameras):
            picture = np.full((48, 64, 3), 20 * number + index, np.uint8)
            message = CompressedImage(format="jpeg", data=cv2.imencode(".jpg", picture)[1].tobytes())
            stamp = number * 100_000_000 + index
            file.write(f"/{camera}/color/image_raw/compressed", CompressedImage, bytes(serialize_message(message)), stamp)
    file.close()
    return path


def test_a_film_shows_the_cameras_side_by_side_at_the_recorded_rate(tmp_path):
    out = tmp_path / "run.mp4"
    assert film(recording(tmp_path / "run.mcap", ["front", "wrist"]), out) == 9  # the first has no wrist beside it yet
    video = cv2.VideoCapture(str(out))
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(10.0)
    assert (video.get(cv2.CAP_PROP_FRAME_WIDTH), video.get(cv2.CAP_PROP_FRAME_HEIGHT)) == (128, 48)
    assert [path.name for path in tmp_path.glob("*.mp4")] == ["run.mp4"]


def test_a_recording_without_a_camera_makes_no_film(tmp_path):
    with pytest.raises(ValueError, match="no images of wrist"):
        film(recording(tmp_path / "run.mcap", ["front"]), tmp_path / "run.mp4")
    assert not list(tmp_path.glob("*.mp4"))
