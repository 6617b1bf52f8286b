# mypy: disable-error-code="no-any-return"
# The result of calling a module is Any to the type checker.
"""Measured latency: nothing is measured twice, and times of another machine, of other settings or from a broken file are not used."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxprune import Program, capture
from fxprune.cost import Clock, default_cache, latency
from fxprune.cost.budgets import Key
from fxprune.cost.latency import SECONDS_A_FILE
from fxprune.ir import Feeds
from fxprune.runtimes import Settings, Timing, registry


class Machine:
    """Takes as long for a program as it has parameters, times how slow the day is."""

    def __init__(self) -> None:
        self.slowness = 1.0
        self.measured: list[list[int]] = []
        self.seconds: list[float] = []
        self._written: dict[Path, int] = {}

    def written(self, program: Program, path: Path, settings: Settings) -> Path:
        self._written[path] = program.parameter_count()
        return path

    def measure(
        self, files: Mapping[str, Path], given: Mapping[str, Feeds], settings: Settings, seconds: float
    ) -> dict[str, Timing]:
        assert files.keys() == given.keys()
        self.measured.append([self._written[path] for path in files.values()])
        self.seconds.append(seconds)
        times = {name: self.slowness * self._written[path] for name, path in files.items()}
        return {name: Timing(time, 0.9 * time, 1.1 * time, 5) for name, time in times.items()}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.setattr(latency, "write_program", made.written)
    monkeypatch.setattr(latency, "measure", made.measure)
    return made


@cache
def linear(inputs: int) -> Program:
    return capture(nn.Linear(inputs, 1, bias=False), (torch.zeros(1, inputs),))


def asked(*parameters: int) -> dict[Key, tuple[str, Callable[[], Program]]]:
    """Programs of so many parameters."""
    return {f"key {n}": (f"signature {n}", partial(linear, n)) for n in parameters}


def test_times_are_kept_and_a_second_clock_measures_only_the_first_program(
    machine: Machine, tmp_path: Path
) -> None:
    cached, seen = tmp_path / "new" / "folder" / "costs.json", list[int]()
    first = Clock(Settings(), cached, seen.append)(asked(4, 2, 3))
    assert first == {"key 4": 4.0, "key 2": 2.0, "key 3": 3.0}
    assert machine.measured == [[4, 2, 3]]
    assert machine.seconds == [pytest.approx(3 * SECONDS_A_FILE)]
    assert seen == [0, 1, 2]
    held = json.loads(cached.read_text())
    assert sorted(held.values()) == [2.0, 3.0, 4.0]
    assert {len(name) for name in held} == {24}
    text = cached.read_text()
    assert Clock(Settings(), cached)(asked(4, 2, 3)) == first
    assert machine.measured[1:] == [[4]]
    assert cached.read_text() == text


def test_one_clock_knows_what_it_has_measured(machine: Machine) -> None:
    clock = Clock(Settings())
    clock(asked(4, 2))
    assert clock(asked(4, 2, 3)) == {"key 4": 4.0, "key 2": 2.0, "key 3": 3.0}
    assert machine.measured == [[4, 2], [4, 3]]


def test_a_busy_moment_is_taken_out_by_the_yardstick(machine: Machine) -> None:
    clock = Clock(Settings())
    assert clock(asked(4, 2)) == {"key 4": 4.0, "key 2": 2.0}
    machine.slowness = 3.0
    assert clock(asked(8, 5, 2)) == {"key 8": 8.0, "key 5": 5.0, "key 2": 2.0}
    assert clock(asked(8, 2)) == {"key 8": 8.0, "key 2": 2.0}
    assert machine.measured == [[4, 2], [4, 8, 5]]


def test_cached_times_that_are_asked_for_later_are_scaled_to_the_same_day(
    machine: Machine, tmp_path: Path
) -> None:
    cached = tmp_path / "costs.json"
    Clock(Settings(), cached)(asked(4, 2))
    machine.slowness = 3.0
    clock = Clock(Settings(), cached)
    assert clock(asked(8)) == {"key 8": 24.0}
    machine.slowness = 6.0  # a busy moment
    assert clock(asked(4)) == {"key 4": 12.0}
    assert clock(asked(4, 2, 5)) == {"key 4": 12.0, "key 2": 6.0, "key 5": 15.0}
    assert machine.measured[1:] == [[8], [8, 4], [8, 5]]


def test_times_of_a_faster_day_are_scaled_by_the_first_program(machine: Machine, tmp_path: Path) -> None:
    cached = tmp_path / "costs.json"
    Clock(Settings(), cached)(asked(4, 2))
    machine.slowness = 3.0
    assert Clock(Settings(), cached)(asked(4, 2, 5)) == {"key 4": 12.0, "key 2": 6.0, "key 5": 15.0}
    assert sorted(json.loads(cached.read_text()).values()) == [2.0, 4.0, 5.0]
    machine.slowness = 0.5
    assert Clock(Settings(), cached)(asked(4, 2, 5)) == {"key 4": 2.0, "key 2": 1.0, "key 5": 2.5}
    assert machine.measured == [[4, 2], [4, 5], [4]]


def test_where_the_first_program_is_new_another_scales(machine: Machine, tmp_path: Path) -> None:
    cached = tmp_path / "costs.json"
    Clock(Settings(), cached)(asked(4, 2))
    machine.slowness = 3.0
    assert Clock(Settings(), cached)(asked(8, 2, 4)) == {"key 8": 24.0, "key 2": 6.0, "key 4": 12.0}
    assert sorted(json.loads(cached.read_text()).values()) == [2.0, 4.0, 8.0]
    assert machine.measured == [[4, 2], [2, 8]]


@pytest.mark.parametrize(
    "other",
    [Settings(threads=2), Settings(optimization="basic"), Settings(runtime="torch")],
    ids=["threads", "optimization", "runtime"],
)
def test_times_of_other_settings_are_not_reused(machine: Machine, tmp_path: Path, other: Settings) -> None:
    cached = tmp_path / "costs.json"
    Clock(Settings(), cached)(asked(4, 2))
    Clock(other, cached)(asked(4, 2))
    assert machine.measured == [[4, 2], [4, 2]]
    assert len(json.loads(cached.read_text())) == 4


def test_times_of_another_machine_are_not_reused(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / "costs.json"
    Clock(Settings(), cached)(asked(4, 2))
    monkeypatch.setattr(registry, "processor", lambda: "a faster one")
    Clock(Settings(), cached)(asked(4, 2))
    assert machine.measured == [[4, 2], [4, 2]]


@pytest.mark.parametrize(
    "content",
    [
        *[b"", b"{", b"[1, 2]", b"7", b"null", b"\xff\xfe{}", b'{"a": "b", "c": {}}'],
        *[b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"],
    ],
    ids=range(9),
)
def test_a_broken_cache_is_as_good_as_none(machine: Machine, tmp_path: Path, content: bytes) -> None:
    cached = tmp_path / "costs.json"
    cached.write_bytes(content)
    assert Clock(Settings(), cached)(asked(4, 2)) == {"key 4": 4.0, "key 2": 2.0}
    assert machine.measured == [[4, 2]]
    assert sorted(json.loads(cached.read_text()).values()) == [2.0, 4.0]


@pytest.mark.parametrize("value", ["0.0", "-1.0", "NaN", "Infinity", "true", '"4"'])
def test_what_is_no_time_is_measured_again(machine: Machine, tmp_path: Path, value: str) -> None:
    cached = tmp_path / "costs.json"
    Clock(Settings(), cached)(asked(4, 2))
    names = json.loads(cached.read_text())
    cached.write_text("{" + ", ".join(f'"{name}": {value}' for name in names) + "}")
    assert Clock(Settings(), cached)(asked(4, 2)) == {"key 4": 4.0, "key 2": 2.0}
    assert machine.measured == [[4, 2], [4, 2]]


def test_a_cache_that_can_t_be_written_is_no_error(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for cached in (tmp_path / "file" / "costs.json", tmp_path):
        assert Clock(Settings(), cached)(asked(4, 2)) == {"key 4": 4.0, "key 2": 2.0}
    assert (tmp_path / "file").read_text() == "mine"
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_what_another_run_has_written_meanwhile_stays(machine: Machine, tmp_path: Path) -> None:
    cached = tmp_path / "costs.json"
    one, other = Clock(Settings(), cached), Clock(Settings(), cached)
    one(asked(4, 2))
    other(asked(4, 3))
    assert sorted(json.loads(cached.read_text()).values()) == [2.0, 3.0, 4.0]


def test_the_cache_lies_where_it_is_told_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FXPRUNE_CACHE", str(tmp_path / "mine.json"))
    assert default_cache() == tmp_path / "mine.json"
    monkeypatch.delenv("FXPRUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "fxprune" / "costs.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache() == tmp_path / "home" / ".cache" / "fxprune" / "costs.json"


class Called(nn.Module):
    """Its input is named as those of parts are."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input_0: Tensor) -> Tensor:
        return self.inner(input_0)


def part_like(inner: nn.Module, example: Tensor) -> Program:
    return capture(Called(inner), (example,))


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
def test_a_real_clock_finds_that_more_takes_longer(runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "SECONDS_A_FILE", 0.02)

    def square(width: int) -> tuple[str, Callable[[], Program]]:
        net = nn.Sequential(nn.Linear(width, width), nn.ReLU())
        return str(width), lambda: part_like(net, torch.zeros(64, width))

    times: dict[Any, float] = Clock(Settings(runtime=runtime))({"large": square(768), "small": square(16)})
    assert times["large"] > 3 * times["small"] > 0
