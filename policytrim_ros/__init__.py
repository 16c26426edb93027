"""Trimmed vision-language-action policies on an AgileX Piper: camera, inference, controller and trainer nodes for ROS 2."""

__version__ = "0.1.0"
