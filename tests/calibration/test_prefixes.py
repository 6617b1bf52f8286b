"""Prefixes: a variant that runs from kept values gives what it gives from its inputs, and runs no more than it needs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from fxprune import Program, Selection, analyze, apply, capture
from fxprune.calibration import check_calibration
from fxprune.calibration.data import run_batch, shortened
from fxprune.calibration.prefixes import Prefixes
from fxprune.calibration.repair import repair
from fxprune.ir.edit import with_tensors
from fxprune.ir.interpreter import Recorder

LAYERS, MUCH = 4, 1 << 30


class Stack(nn.Module):
    """Residual blocks, each with a hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6)) for _ in range(LAYERS)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


@pytest.fixture(scope="module")
def program() -> Program:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return capture(Stack(), (torch.randn(5, 6),), dynamic_shapes=({0: torch.export.Dim.AUTO},))


@pytest.fixture(scope="module")
def batches() -> list[dict[str, Tensor]]:
    return [{"x": torch.randn(12, 6, generator=torch.Generator().manual_seed(seed))} for seed in range(3)]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    ran = list[str]()
    honest = Recorder.compute

    def compute(self: Recorder, node: fx.Node) -> Any:
        ran.extend([node.name] if node.op == "call_function" else [])
        return honest(self, node)

    monkeypatch.setattr(Recorder, "compute", compute)
    return ran


@pytest.mark.parametrize("layer", range(LAYERS))
def test_a_cut_runs_from_its_layer_on(
    program: Program, batches: list[dict[str, Tensor]], layer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    slim = apply(program, Selection({f"blocks.{layer}.ffn": (0, 3, 4)}))
    wanted = [run_batch(slim, batch) for batch in batches]
    prefixes = Prefixes(program, batches, MUCH)
    ran = counted(monkeypatch)
    for batch, value in zip(batches, wanted, strict=True):
        assert torch.equal(prefixes.run(slim, batch)[0], value[0])
    assert len(ran) == 3 * 4 * (LAYERS - layer)


def test_without_the_last_region_nothing_runs(
    program: Program, batches: list[dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    last = analyze(program).regions[-1].name
    slim = apply(program, Selection(removed=(last,)))
    wanted, prefixes = run_batch(slim, batches[0]), Prefixes(program, batches, MUCH)
    ran = counted(monkeypatch)
    assert torch.equal(prefixes.run(slim, batches[0])[0], wanted[0])
    assert ran == []


def test_changed_weights_are_no_prefix(program: Program, batches: list[dict[str, Tensor]]) -> None:
    new = program.tensors()["blocks.1.0.weight"] + 1
    other = with_tensors(program, {"blocks.1.0.weight": new})
    prefixes = Prefixes(program, batches, MUCH)
    assert torch.equal(prefixes.run(other, batches[0])[0], run_batch(other, batches[0])[0])
    assert not torch.equal(run_batch(other, batches[0])[0], run_batch(program, batches[0])[0])


def test_what_does_not_fit_is_computed_again(program: Program, batches: list[dict[str, Tensor]]) -> None:
    a_batch = (LAYERS - 1) * 12 * 6 * 4
    kept = Prefixes(program, batches, 2 * a_batch)
    assert [len(kept.start(program, batch)) for batch in batches] == [LAYERS - 1, LAYERS - 1, 0]


@pytest.mark.parametrize("layer", range(LAYERS))
def test_readers_are_re_fitted_alike(program: Program, batches: list[dict[str, Tensor]], layer: int) -> None:
    selection = Selection({f"blocks.{layer}.ffn": (0, 3, 4)})
    data, slim = check_calibration(program, batches), apply(program, selection)
    plain = repair(program, slim, selection, data, "readers")
    quick = repair(program, slim, selection, data, "readers", prefixes=Prefixes(program, data.batches, MUCH))
    assert plain.matrices == quick.matrices
    for name in plain.changed:
        assert torch.equal(plain.program.tensors()[name], quick.program.tensors()[name])


class Framed(nn.Module):
    """A net that takes frames in fours."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down(self.up(x).relu())
        return out.view(-1, 4, 6).mean(1)


def test_a_batch_is_cut_only_where_the_graph_holds_for_what_is_left() -> None:
    program = capture(Framed(), (torch.randn(8, 6),), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    batch = {"x": torch.randn(16, 6)}
    assert [len(shortened(program, batch, rows)["x"]) for rows in (8, 6, 12)] == [8, 16, 12]


def test_a_program_whose_inputs_may_shrink_keeps_nothing(
    program: Program, batches: list[dict[str, Tensor]]
) -> None:
    kept = Prefixes(program.replace(free_inputs=frozenset({"x"})), batches, MUCH)
    assert kept.start(program, batches[0]) == {}
