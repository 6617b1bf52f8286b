"""Settings of all tests: CI draws the same examples every time, so that what fails there fails here."""

import os

from hypothesis import settings

settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
