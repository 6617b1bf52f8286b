# mypy: disable-error-code="no-any-return"
# The result of calling a module is Any to the type checker.
"""Slim to a latency: plans are measured and corrected until one keeps to it, by a simulated clock, and once by a real one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fxprune import Program, capture, verify
from fxprune.calibration import check_calibration
from fxprune.cost import BUDGETS, latency
from fxprune.cost.budgets import Budget
from fxprune.errors import RefusedError, UsageError
from fxprune.ir import Feeds
from fxprune.pipeline import Outcome
from fxprune.runtimes import Settings, Timing
from fxprune.search import budget_search as seek
from fxprune.search.budget_search import CLOSE, MOST_TRIES, ROOM
from support.slimmable import AUTO, BATCH, LENGTH, POINT, Subject, kept, layer, share_of, slim, subject


class Machine:
    """Stands for the clock and the runtime: a file takes as long as it has operations (or parameters).

    Of a whole program's share `bend` makes the share of time; small files it doesn't touch, so they promise what may not come.
    """

    def __init__(self, kind: str = "flops", bend: Callable[[float], float] = lambda share: share) -> None:
        self.kind, self.bend = kind, bend
        self.programs: dict[Path, Program] = {}
        self.given: list[tuple[int, ...]] = []
        self.settings: set[Settings] = set()
        self.largest = 0.0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for module, name in ((latency, "write_program"), (seek, "write_program")):
            monkeypatch.setattr(module, name, self.written)
        for module, name in ((latency, "measure"), (seek, "measure")):
            monkeypatch.setattr(module, name, self.measure)

    def written(self, program: Program, path: Path, settings: Settings) -> Path:
        self.programs[path] = program
        path.touch()
        return path

    def measure(
        self, files: Mapping[str, Path], given: Mapping[str, Feeds], settings: Settings, seconds: float
    ) -> dict[str, Timing]:
        self.settings.add(settings)
        times = {name: self._time(name, self.programs[path]) for name, path in files.items()}
        if "original" in files:
            self.given += [value.shape for value in given["original"].values()]
        return {name: Timing(time, time, time, 5) for name, time in times.items()}

    def _time(self, name: str, program: Program) -> float:
        count = BUDGETS[self.kind].count
        assert count is not None
        if name not in {"original", "plan"}:
            return 1e-3 * count(program, None)
        cost = count(program, POINT)
        self.largest = max(cost, self.largest)
        return 1e-3 * self.largest * self.bend(cost / self.largest)


@pytest.fixture(scope="module")
def times(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the machine of operations takes for small files, kept for all tests."""
    return tmp_path_factory.mktemp("costs") / "costs.json"


def measured(outcome: Outcome) -> list[float]:
    return [trial["measured"] for trial in outcome.details["trials"]]


class Wide(nn.Module):
    """Two nets side by side, of 128 and 100 neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = (
            nn.Sequential(nn.Linear(4, neurons), nn.ReLU(), nn.Linear(neurons, 3)) for neurons in (128, 100)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) + self.two(x)


@cache
def wide() -> Subject:
    torch.manual_seed(0)
    program = capture(Wide(), (torch.randn(2, 4),))
    return program, check_calibration(program, [torch.randn(2, 4) for _ in range(40)])


def bent(
    slope: float, latency: float, monkeypatch: pytest.MonkeyPatch, times: Path
) -> tuple[Outcome, list[float]]:
    """Return the outcome of slim where, below a half, measured savings are a multiple of those in the table; and the measured shares."""
    Machine(bend=lambda share: share if share > 0.5 else max(0.01, 0.5 - slope * (0.5 - share))).install(
        monkeypatch
    )
    outcome = slim(wide(), latency=latency, cache=times)
    return outcome, measured(outcome)


@pytest.mark.parametrize("kind", ["flops", "params"])
def test_a_latency_is_kept_to_with_room(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(kind)
    machine.install(monkeypatch)
    program, data = layer()
    outcome = slim((program, data), latency=0.5, threads=3, optimization="basic")
    shares = measured(outcome)
    assert len(shares) <= MOST_TRIES
    assert outcome.details["share"] in shares
    assert outcome.details["share"] <= 0.5 * ROOM
    assert outcome.details["share"] == pytest.approx(share_of(program, outcome.program, kind))
    assert machine.settings == {Settings(3, "basic", "onnxruntime")}
    assert set(machine.given) == {(BATCH, LENGTH)}
    assert verify(program, outcome.program, outcome.selection, outcome.refitted).relative <= 1e-5


def test_plans_are_tightened_until_one_measures_well(monkeypatch: pytest.MonkeyPatch, times: Path) -> None:
    outcome, shares = bent(0.8, 0.4, monkeypatch, times)
    assert shares[0] > 0.4
    assert shares == sorted(shares, reverse=True)
    assert 2 <= len(shares) <= MOST_TRIES
    assert 0.4 * CLOSE <= shares[-1] == outcome.details["share"] <= 0.4 * ROOM


def test_where_the_clock_falls_steeply_plans_close_in_from_both_sides(
    monkeypatch: pytest.MonkeyPatch, times: Path
) -> None:
    """Stepping on by what a plan missed would swing further each time."""
    outcome, shares = bent(3, 0.35, monkeypatch, times)
    assert shares[0] < 0.35 / 2
    assert len(shares) <= MOST_TRIES
    assert 0.35 * CLOSE <= outcome.details["share"] <= 0.35 * ROOM


def test_plans_are_loosened_where_the_first_gives_away_too_much(
    monkeypatch: pytest.MonkeyPatch, times: Path
) -> None:
    outcome, shares = bent(1.3, 0.4, monkeypatch, times)
    assert shares[0] < 0.4 * CLOSE
    assert shares[0] < shares[-1]
    assert 0.4 * CLOSE <= shares[-1] == outcome.details["share"] <= 0.4 * ROOM


def test_what_never_measures_well_is_refused_with_what_was_seen(
    monkeypatch: pytest.MonkeyPatch, times: Path
) -> None:
    Machine(bend=lambda share: max(share, 0.45)).install(monkeypatch)
    with pytest.raises(RefusedError, match=r"everything that may go, 0\.450 of the latency is left;"):
        slim(layer(), latency=0.4, cache=times)


@pytest.mark.parametrize("kind", ["latency", "flops", "params"])
def test_what_is_impossible_is_a_sentence(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Machine().install(monkeypatch)
    sentence = (
        rf"^{kind}=0\.01 can't be reached: with the smallest of everything that may go, 0\.0[2-9]\d of the {kind}"
        r" is left; ask for more, or allow hidden=True$"
    )
    with pytest.raises(RefusedError, match=sentence):
        slim(subject("convs"), **{kind: 0.01, "layers": False})


def test_the_smallest_plan_is_tried_although_the_table_promises_less(
    monkeypatch: pytest.MonkeyPatch, times: Path
) -> None:
    Machine(bend=lambda share: max(0.001, 1 - 1.04 * (1 - share))).install(monkeypatch)
    outcome = slim(layer(), latency=0.03, cache=times)
    first, second = outcome.details["trials"]
    assert first["predicted"] == pytest.approx(3 / 71)
    assert outcome.details["share"] == first["measured"] == pytest.approx(1 - 1.04 * 68 / 71)
    assert second["predicted"] == pytest.approx(second["measured"])  # the first told how much more is saved


def test_widths_that_the_runtime_likes_are_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here a layer whose width is no multiple of 16 takes half as long again."""
    plain = BUDGETS["flops"].count
    assert plain is not None

    def count(program: Program, point: object) -> float:
        odd = len(program.tensors().get("one.0.weight", ())) % 16
        return plain(program, None) * (1.5 if odd else 1.0)

    monkeypatch.setitem(BUDGETS, "flops", Budget("", "", count))
    Machine().install(monkeypatch)
    found = kept(slim(wide(), latency=0.6))
    assert 0 < found["one.ffn"] < 128
    assert found["one.ffn"] % 16 == 0


def test_a_runtime_that_is_none_is_refused_before_anything_is_measured() -> None:
    said: list[str] = []
    with pytest.raises(UsageError, match="no runtime 'tensorrt'; runtimes: onnxruntime, openvino, torch"):
        slim(layer(), latency=0.5, runtime="tensorrt", observe=lambda progress: said.append(progress.text))
    assert said == []


class Encoder(nn.Module):
    """Two layers of a BERT, of a width that is measurable."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(101, 128)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(128, 4, 512, 0.0, "gelu", batch_first=True) for _ in range(2)
        )

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for each in self.layers:
            x = each(x)
        return x


@pytest.mark.slow
def test_a_real_encoder_becomes_as_fast_as_it_was_asked_to(tmp_path: Path) -> None:
    torch.manual_seed(0)
    ids = [torch.randint(0, 101, (4, 64)) for _ in range(6)]
    program = capture(Encoder().eval(), (ids[0],), dynamic_shapes=({0: AUTO, 1: AUTO},))
    made = program, check_calibration(program, ids)
    outcome = slim(made, latency=0.7, batch=4, length=64, threads=1, cache=tmp_path / "costs.json")
    assert 0.3 <= outcome.details["share"] <= 0.7
    assert outcome.details["share"] in measured(outcome)
    assert verify(program, outcome.program, outcome.selection, outcome.refitted).relative <= 1e-5
    assert len(json.loads((tmp_path / "costs.json").read_text())) > 20
