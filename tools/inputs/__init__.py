"""Inputs of the commands: models, example inputs, calibration data, tasks."""
