"""What docs/results is made by. Not in the wheel: run it from a source checkout."""
