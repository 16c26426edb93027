"""Pictures as the robot delivers them and as policies eat them. Without torch: a recorder needs it, too."""

from __future__ import annotations

import cv2
import numpy as np


def resize_image(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """(h, w, 3) uint8 -> (height, width, 3) uint8 by area averaging; an image of that size already is returned as it is."""
    if image.shape[:2] == (height, width):
        return image
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
