"""Benchmark of recovery: `slim` with and without `recover`, at measured speeds, on unlabelled inputs."""
