"""What may go wrong with pictures: pure functions on (B, h, w, 3) uint8, applied at the size in which the camera delivers.

    blurred     Gaussian blur; OpenCV derives the standard deviation from the kernel (13 px: 2.3 px)
    occluded    black square patches on random cells of a grid until the wanted share of the area is covered. The paper says
                "50 % random occlusion of the images" and no more; this is our reading: half of every picture, drawn anew
                at every look
    displaced   the whole picture moves, its edge is repeated: a camera that was knocked
    blank       grey

What is random is drawn from one seed for each row, so that it does not depend on who else is in the batch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Sequence

import cv2
import numpy as np

from policytrim_ros.core.config import ConfigError
from policytrim_ros.training.recipe import Evaluation
from policytrim_ros.training.rollout import LOOKS_PER_EPISODE, Look

GREY = 128
PATCHES = 8
"""Patches along the shorter side of a picture."""


def perturbed(look: Look, row: Evaluation) -> Look:
    """``look`` that is shown what ``row`` asks for: blank, shift, blur, occlusion (in this order) and another instruction.

    Raises ConfigError for an even blur kernel.
    """
    if row.blur_px and row.blur_px % 2 == 0:
        raise ConfigError(f"Evaluation.blur_px = {row.blur_px}: a kernel has an odd number of pixels")
    if not (row.blank or row.shift_px or row.blur_px or row.occlusion or row.instruction):
        return look

    def looking(observation, seeds):
        images = {name: _shown(name, pictures, seeds, row) for name, pictures in observation.images.items()}
        instruction = [row.instruction or sentence for sentence in observation.instruction]
        return look(replace(observation, images=images, instruction=instruction), seeds)

    return looking


def _shown(camera: str, pictures, seeds, row: Evaluation):
    which = sum(camera.encode())  # cameras are covered in different places
    if camera in row.blank:
        return blank(pictures)
    if row.shift_px:
        pictures = displaced(pictures, row.shift_px, [(which, seed // LOOKS_PER_EPISODE) for seed in seeds])
    if row.blur_px:
        pictures = blurred(pictures, row.blur_px)
    if row.occlusion:
        pictures = occluded(pictures, row.occlusion, [(which, seed) for seed in seeds])
    return pictures


def blank(pictures: np.ndarray) -> np.ndarray:
    """Grey pictures of the same shape."""
    return np.full_like(pictures, GREY)


def blurred(pictures: np.ndarray, kernel_px: int) -> np.ndarray:
    """Every picture under a Gaussian of ``kernel_px`` (odd) pixels."""
    return np.stack([cv2.GaussianBlur(picture, (kernel_px, kernel_px), 0) for picture in pictures])


def occluded(pictures: np.ndarray, share: float, seeds: Sequence) -> np.ndarray:
    """Black patches over ``share`` of the cells of a square grid, at random; ``seeds[i]`` seeds picture i."""
    height, width = pictures.shape[1:3]
    side = max(1, round(min(height, width) / PATCHES))
    rows, columns = -(-height // side), -(-width // side)
    covered = pictures.copy()
    for picture, seed in zip(covered, seeds):
        cells = np.zeros(rows * columns, bool)
        cells[np.random.default_rng(seed).permutation(rows * columns)[: round(share * rows * columns)]] = True
        mask = np.kron(cells.reshape(rows, columns), np.ones((side, side), bool))
        picture[mask[:height, :width]] = 0
    return covered


def displaced(pictures: np.ndarray, distance_px: int, seeds: Sequence) -> np.ndarray:
    """Every picture moved by ``distance_px`` in a direction drawn from ``seeds[i]``; the edge is repeated."""
    moved = []
    for picture, seed in zip(pictures, seeds):
        angle = np.random.default_rng(seed).uniform(-np.pi, np.pi)
        shift = np.float32([[1, 0, distance_px * np.cos(angle)], [0, 1, distance_px * np.sin(angle)]])
        moved.append(cv2.warpAffine(picture, shift, picture.shape[1::-1], borderMode=cv2.BORDER_REPLICATE))
    return np.stack(moved)
