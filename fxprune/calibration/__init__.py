"""Unlabelled data: check it, run it, and re-fit weights on it."""

from fxprune.calibration.data import Calibration, check_calibration
from fxprune.calibration.objective import Objective

__all__ = ["Calibration", "Objective", "check_calibration"]
