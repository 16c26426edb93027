"""The decisions: numpy only, no ROS, no torch, no files, no clock of its own (time is always an argument)."""
