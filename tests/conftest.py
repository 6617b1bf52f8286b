"""Settings of all tests: CI draws the same examples every time, so that a failure there can be repeated."""

import os

# Before anything imports torch: threads that spin while they wait make training 20 times slower on a machine with other work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from hypothesis import settings

settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
