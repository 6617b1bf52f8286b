"""Calibration data of `--calibration`: one table of forms, one module for each kind of data."""
