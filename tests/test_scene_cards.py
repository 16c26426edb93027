"""Pictures of the scenes of a session, made by the simulator."""

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
from stack import ROOT


@pytest.mark.integration
def test_each_scene_gets_a_picture_of_each_camera_and_those_that_are_there_stay(tmp_path):
    scenes = [
        dict(
            task="tape_box",
            setting="standard",
            seed=seed,
            files={camera: f"{seed}-{camera}.jpg" for camera in ("front", "wrist")},
        )
        for seed in (3, 4)
    ]
    (tmp_path / "plan.json").write_text(json.dumps(scenes))
    (tmp_path / "3-front.jpg").write_bytes(b"old")
    (tmp_path / "3-wrist.jpg").write_bytes(b"old")
    line = [sys.executable, "-m", "policytrim_ros.training.scene_cards", str(tmp_path / "plan.json"), str(tmp_path)]
    subprocess.run(line, cwd=ROOT, check=True, timeout=200)
    assert (tmp_path / "3-front.jpg").read_bytes() == b"old"
    pictures = [cv2.imread(str(tmp_path / f"4-{camera}.jpg")) for camera in ("front", "wrist")]
    assert all(picture.shape == (240, 424, 3) for picture in pictures)
    blue = np.logical_and(pictures[0][..., 0] > 120, pictures[0][..., 2] < 110)
    assert blue.sum() > 200, "the box is not in the picture"
