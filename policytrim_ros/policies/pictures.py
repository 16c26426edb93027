"""Pictures as the robot delivers them and as policies eat them. Without torch: a recorder needs it, too."""

from __future__ import annotations

from typing import Mapping, Sequence

import cv2
import numpy as np


def resize_image(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """(h, w, 3) uint8 -> (height, width, 3) uint8 by area averaging; an image of that size already is returned as it is."""
    if image.shape[:2] == (height, width):
        return image
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def resize_images(images: Mapping[str, np.ndarray], cameras: Sequence) -> dict[str, np.ndarray]:
    """Named pictures (B, h, w, 3) -> those of ``cameras`` (name, width, height), in their order, at their sizes. ValueError names a
    missing one."""
    found = {}
    for camera in cameras:
        if camera.name not in images:
            raise ValueError(f"no picture of camera '{camera.name}'; the observation has {', '.join(sorted(images)) or 'none'}")
        found[camera.name] = np.stack([resize_image(picture, camera.width, camera.height) for picture in images[camera.name]])
    return found
