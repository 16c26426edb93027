"""Cameras: one protocol (camera.py), RealSense through librealsense, others through V4L2."""
