"""Settings of all tests: CI draws the same examples every time, so that a failure there can be repeated."""

import gc
import os
from collections.abc import Iterator

# Before anything imports torch: threads that spin while they wait make training 20 times slower on a machine with other work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch
from hypothesis import settings

settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture(scope="module", autouse=True)
def _scanned_once() -> Iterator[None]:
    """Objects in caches are frozen after each module: a scan for cycles among thousands of graphs takes seconds."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """The nets are so small that threads wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
