"""The mug of FlipMug and HangMug: axis z, origin at half height, opening at +z, handle at +x.

The handle sits low so that the fingers can grip the body between handle and rim.
"""

from __future__ import annotations

import numpy as np

from sim_bridge.coordinates import hypot, offset, z_axis
from sim_bridge.tasks.scene import Material, about_z, add_box, new_builder

RADIUS, WALL, HEIGHT, BOTTOM = 0.028, 0.004, 0.080, 0.005
HOLE = (0.043, 0.0, -0.006)
"""Middle of the hole in the handle (m)."""

SEGMENTS = 12
DENSITY = 400.0


def build_mug(scene):
    """Builds the mug as an actor named "mug"."""
    builder, red, dark = new_builder(scene, 1.0), Material(0.80, 0.12, 0.10), Material(0.55, 0.05, 0.25)
    length = 2 * RADIUS * np.tan(np.pi / SEGMENTS)
    middle = RADIUS - WALL / 2
    for angle in np.arange(SEGMENTS) * 2 * np.pi / SEGMENTS:
        place = (middle * np.cos(angle), middle * np.sin(angle), 0.0)
        add_box(builder, [WALL / 2, length / 2, HEIGHT / 2], place, about_z(angle), red, DENSITY)
    for angle in (0.0, np.pi / 4):  # two squares make the round bottom
        side = 0.7 * RADIUS
        add_box(builder, [side, side, BOTTOM / 2], (0, 0, (BOTTOM - HEIGHT) / 2), about_z(angle), dark, DENSITY / 2)
    for z in (-0.027, 0.015):
        add_box(builder, [0.017, 0.005, 0.004], (RADIUS + 0.017, 0, z), color=dark, density=DENSITY)
    add_box(builder, [0.004, 0.005, 0.025], (0.062, 0, -0.006), color=dark, density=DENSITY)
    return builder.build_dynamic("mug")


def distance_to_body(mug, point):
    """Distance from ``point`` (x, y, z) to the axis, between bottom and rim, of the mug at pose ``mug``."""
    axis, way = z_axis(mug), offset(mug, point)
    along = axis[0] * way[0] + axis[1] * way[1] + axis[2] * way[2]
    x, y, z = (w - along * a for w, a in zip(way, axis))
    beyond = abs(along) - HEIGHT / 2
    return hypot(hypot(hypot(x, y), z), beyond * (beyond > 0))
