"""Calibration: what a device's operators and a node's link take, measured through an ordinary session."""

from genie.calibration.measure import FULL, QUICK, Effort, Measured, calibrate, reach

__all__ = ["FULL", "QUICK", "Effort", "Measured", "calibrate", "reach"]
