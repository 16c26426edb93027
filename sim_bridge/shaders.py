"""The cameras' shaders: the simulator's `minimal` pack without the environment map.

No scene here has an environment map: what the pack looks up in it is black, and pictures without it are equal bit by bit.
The tables behind the look-ups, however, keep a software renderer busy for 7 to 10 s before the first picture of each process,
and the look-ups themselves take more than half of the time of every picture.
"""

from __future__ import annotations

import functools
import re
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import sapien
from mani_skill.render import PREBUILT_SHADER_CONFIGS, SAPIEN_RENDER_SYSTEM, ShaderConfig

REPLACEMENTS = (
    (r".*uniform samplerCube samplerEnvironment;", ""),
    (r".*uniform sampler2D samplerBRDFLUT;", ""),
    (r"textureLod\(samplerEnvironment, [^;]*\.rgb;", "vec3(0);"),
    (r"texture\(samplerBRDFLUT, [^;]*\.xy;", "vec2(0);"),
)


def plain_shader() -> ShaderConfig:
    """Shader configuration for ManiSkill's cameras; the unchanged `minimal` where the simulator renders by another system."""
    minimal = PREBUILT_SHADER_CONFIGS["minimal"]
    if SAPIEN_RENDER_SYSTEM != "3.0":
        return minimal
    for name, form in (("Color", "r8g8b8a8unorm"), ("ColorRaw", "r8g8b8a8unorm"), ("PositionSegmentation", "r16g16b16a16sint")):
        sapien.render.set_picture_format(name, form)  # what ManiSkill sets for the pack called "minimal" only
    return replace(minimal, shader_pack=str(Path(_pack().name) / "plain"))


@functools.cache
def _pack() -> tempfile.TemporaryDirectory:
    """Shader sources, written once a process and removed at its end; RuntimeError when the simulator's are not as expected."""
    source, directory = Path(sapien.__file__).parent / "vulkan_shader", tempfile.TemporaryDirectory(prefix="policytrim-shaders-")
    shutil.copytree(source / "common", Path(directory.name) / "common")
    target = Path(shutil.copytree(source / "minimal", Path(directory.name) / "plain"))
    for path in target.glob("*.frag"):
        text = path.read_text()
        for pattern, replacement in REPLACEMENTS:
            text = re.sub(pattern, replacement, text)
        if "samplerEnvironment" in text or "samplerBRDFLUT" in text:
            raise RuntimeError(
                f"{source / 'minimal' / path.name} is not the shader of sapien 3.0; install the version that setup.py names"
            )
        path.write_text(text)
    return directory
