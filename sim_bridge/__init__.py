"""The world behind the hardware interfaces: ManiSkill tasks, a Piper that speaks CAN, cameras that speak librealsense."""
