"""Benchmarks: the measurements behind docs/results. Not in the wheel: run them from a source checkout."""
