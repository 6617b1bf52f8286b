"""What a command is given: models, example inputs, calibration data, tasks."""
