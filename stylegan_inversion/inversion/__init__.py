"""Inversion by optimisation, one image at a time: functions with a callback that never change their inputs."""
