"""Devices: scores, re-fits and factors that are computed elsewhere are those of the CPU, and programs stay where they are."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from fxprune.storage.devices import (
    OnDevice,
    compute_device,
    computing_on,
    device_limit,
    in_float64,
    on_device,
    to_device,
)
from support.two_processes import TESTS

META = torch.device("meta")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("elsewhere")
    path = f"{TESTS}:{os.environ.get('PYTHONPATH', '')}"
    command = [sys.executable, "support/computed_elsewhere.py", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(
        command, cwd=TESTS, env=environment, check=False, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads((folder / "told.json").read_text())
    return found


@pytest.mark.parametrize("key", ["re-fits", "convolutions", "factors", "gradients", "a loss", "norms"])
def test_what_is_computed_elsewhere_is_what_the_cpu_computes(key: str, told: dict[str, Any]) -> None:
    here, there = told[key]["here"], told[key]["there"]
    assert there["selection"] == here["selection"]
    assert there["refitted"] == here["refitted"]
    assert there["weights"] == pytest.approx(here["weights"], rel=1e-5)
    assert (there["devices"], there["proven"]) == (["cpu"], True)


@pytest.mark.parametrize("key", ["re-fits", "convolutions", "factors", "gradients", "a loss", "norms"])
def test_a_device_without_float64_gets_none(key: str, told: dict[str, Any]) -> None:
    assert told[key]["narrow"]["selection"] == told[key]["here"]["selection"]
    assert told[key]["narrow"]["weights"] == pytest.approx(told[key]["here"]["weights"], rel=1e-5)
    assert told[key]["wide"] == 0


@pytest.mark.parametrize("key", ["re-fits", "convolutions", "factors", "gradients", "a loss", "norms"])
def test_operators_ran_on_the_second_device(key: str, told: dict[str, Any]) -> None:
    assert told[key]["operators"] > 500


def test_a_copy_is_kept_until_its_tensor_is_written_into() -> None:
    weight = torch.ones(4)
    with computing_on(META):
        first = on_device(weight)
        assert (first.device, on_device(weight) is first) == (META, True)
        weight.add_(1)
        assert on_device(weight) is not first
        assert OnDevice({"w": weight})["w"] is on_device(weight)
        assert to_device(weight) is not on_device(weight)
    assert on_device(weight) is weight


def test_a_copy_goes_with_its_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxprune.storage.devices.UNKNOWN_MEMORY", 64)
    with computing_on(META):
        kept = torch.ones(4)
        first = on_device(kept)
        for _ in range(3):
            on_device(torch.ones(4))
        assert on_device(kept) is first


def test_limits_are_those_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxprune.storage.devices.UNKNOWN_MEMORY", 800)
    assert device_limit(10**6) == 10**6
    with computing_on(META):
        assert (device_limit(10**6), device_limit(7)) == (100, 7)


def test_copies_that_were_used_least_recently_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxprune.storage.devices.UNKNOWN_MEMORY", 64)
    one, two, three, large = torch.ones(4), torch.ones(4), torch.ones(4), torch.ones(40)
    with computing_on(META):
        first, second = on_device(one), on_device(two)
        assert on_device(one) is first
        on_device(three)
        assert on_device(one) is first
        assert on_device(two) is not second
        assert on_device(large) is not on_device(large)


@pytest.mark.parametrize("device", [None, torch.device("cpu")])
def test_without_another_device_tensors_stay_as_they_are(device: torch.device | None) -> None:
    value = torch.ones(2)
    with computing_on(device):
        assert compute_device() is None
        assert (on_device(value) is value, to_device(value) is value) == (True, True)


def test_float64_is_computed_on_the_cpu_where_a_device_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert in_float64(torch.ones(2)).dtype == torch.float64
    monkeypatch.setattr("fxprune.storage.devices.WITHOUT_FLOAT64", {"cpu"})
    assert in_float64(torch.ones(2)).device.type == "cpu"
