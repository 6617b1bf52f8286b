"""Block-gated weights: the lowered program computes the same as the gated one, and only what is empty is removed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxprune import analyze, capture
from fxprune.dims import atom, product
from fxprune.dims.blocks import aligned, even_blocks
from fxprune.dims.dim import total
from fxprune.export import export_onnx
from fxprune.gates import Gate, Gated, Lowered
from fxprune.gates.absorb_constants import absorb_constants
from fxprune.gates.insert import gate
from fxprune.gates.lower import close_dead_units, lower, lower_silenced
from fxprune.ir import Program
from support.blocked import FAMILIES, blocked, counted, drawn
from support.gated import masked, with_masks
from support.models import distance


def called(program: Program) -> Any:
    with torch.no_grad():
        return program(*program.args, **program.kwargs)


def lowered(on: Gated, masks: dict[Gate, Tensor], how: str = "loop") -> Lowered:
    """The lowered program, which computes what the gated one does."""
    found = lower(on, masked(on, masks), how)
    assert distance(called(found.program), called(with_masks(on, masks))) < 1e-5
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_open_blocks_change_nothing(name: str) -> None:
    assert distance(called(blocked(name).program), called(blocked(name).base)) == 0


@pytest.mark.parametrize("name", FAMILIES)
def test_lowered_is_gated_and_as_small_as_what_is_not_empty(name: str) -> None:
    on = blocked(name)
    for seed in range(5):
        masks = drawn(on, seed)
        assert lowered(on, masks).program.parameter_count() == counted(on, masks)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_500_masks(name: str, tmp_path: Path) -> None:
    on = blocked(name)
    for seed in range(1000, 1500):
        masks = drawn(on, seed)
        found = lowered(on, masks)
        assert found.program.parameter_count() == counted(on, masks), seed
        if seed % 5 == 0:
            export_onnx(found.program, tmp_path / "lowered.onnx", overwrite=True)


@pytest.mark.parametrize("name", FAMILIES)
def test_onnx_runtime_agrees(name: str, tmp_path: Path) -> None:
    found = lowered(blocked(name), drawn(blocked(name), 3))
    assert export_onnx(found.program, tmp_path / "lowered.onnx").relative < 1e-4


def all_open(on: Gated) -> dict[Gate, Tensor]:
    return {g: torch.ones_like(on.program.tensors()[g.name], dtype=torch.bool) for g in on.gates}


def of(on: Gated, ending: str) -> Gate:
    return next(g for g in on.gates if g.of.endswith(ending))


def heads(program: Program) -> int:
    """Of the first layer."""
    return next(axis.size for axis in analyze(program).axes if axis.role == "heads")


@pytest.mark.parametrize("part", ["query", "key"])
def test_a_head_without_queries_or_keys_stays(part: str) -> None:
    """It attends evenly: the authors' own tool removes it, and changes what the model says."""
    on = blocked("bert")
    masks = all_open(on)
    masks[of(on, f"0.attention.self.{part}.weight")][2:4] = False
    assert heads(lowered(on, masks, "pad").program) == 4


@pytest.mark.parametrize(("part", "turned"), [("self.value", False), ("output.dense", True)])
def test_a_head_without_values_or_columns_goes(part: str, turned: bool) -> None:
    on = blocked("bert")
    masks = all_open(on)
    table = masks[of(on, f"0.attention.{part}.weight")]
    (table.t() if turned else table)[2:4] = False
    assert heads(lowered(on, masks).program) == 3


def test_a_head_that_keeps_half_of_its_values_shrinks_by_half() -> None:
    on = blocked("bert")
    masks = all_open(on)
    masks[of(on, "0.attention.self.value.weight")][::2] = False
    small = lowered(on, masks).program.tensors()
    assert small["encoder.layer.0.attention.self.value.weight"].shape == (16, 32)
    assert small["encoder.layer.0.attention.output.dense.weight"].shape == (32, 16)


def chain() -> Program:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 3))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.uniform_(0.2, 1.0)
    return capture(net, (torch.randn(5, 6),))


def test_what_is_constant_moves_into_its_readers_bias() -> None:
    """Through GELU and a sigmoid: a neuron without weights is its bias behind the activation, and goes."""
    program = chain()
    with torch.no_grad():
        program.tensors()["0.weight"][1:3] = 0
        program.tensors()["2.weight"][5:] = 0
    before = called(program)
    found = lower_silenced(close_dead_units(program))
    assert distance(called(found.program), before) < 1e-6
    assert [tuple(p.shape) for n, p in found.program.tensors().items() if n.endswith("weight")] == [
        (6, 6),
        (5, 6),
        (3, 5),
    ]


def test_emptiness_spreads_to_a_fixed_point() -> None:
    """A neuron that only an empty neuron read goes, too."""
    program = chain()
    with torch.no_grad():
        program.tensors()["4.weight"][:, :6] = 0
        program.tensors()["2.weight"][6:, :5] = 0
    before = called(program)
    found = lower_silenced(close_dead_units(program))
    assert distance(called(found.program), before) < 1e-6
    assert found.program.tensors()["2.weight"].shape == (2, 3)


def test_a_product_without_a_bias_gets_one() -> None:
    torch.manual_seed(0)
    first = nn.Linear(4, 6)
    with torch.no_grad():
        first.weight[2] = 0
    net = nn.Sequential(first, nn.Tanh(), nn.Linear(6, 3, bias=False))
    program = capture(net, (torch.randn(5, 4),))
    moved = absorb_constants(program)
    assert distance(called(moved), called(program)) < 1e-6
    assert bool((moved.tensors()["2.weight"][:, 2] == 0).all())
    assert moved.tensors()["2.bias"].shape == (3,)


def test_a_padded_convolution_keeps_its_constants() -> None:
    """At the border a kernel reads fewer of them."""
    torch.manual_seed(0)
    first = nn.Conv2d(2, 4, 1)
    assert first.bias is not None
    with torch.no_grad():
        first.weight[1] = 0
        first.bias[1] = 2.0
    net = nn.Sequential(first, nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1))
    program = capture(net, (torch.randn(2, 2, 5, 5),))
    found = lower_silenced(close_dead_units(program))
    assert found.program.tensors()["0.weight"].shape[0] == 4
    assert distance(called(found.program), called(program)) < 1e-6


def test_what_depends_on_the_length_is_no_constant() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x) * x.shape[1])  # type: ignore[no-any-return]

    torch.manual_seed(0)
    net = Scaled()
    with torch.no_grad():
        net.first.weight[2] = 0
    program = capture(net, (torch.randn(2, 5, 4),), dynamic_shapes=({1: torch.export.Dim.AUTO},))
    found = lower_silenced(close_dead_units(program)).program
    assert distance(found(torch.ones(2, 9, 4)), net(torch.ones(2, 9, 4))) < 1e-6


def test_blocks_begin_where_heads_and_segments_do() -> None:
    heads = product([atom(3), atom(8)])
    assert aligned(atom(10), 4) == (4, 4, 2)
    assert aligned(heads, 16) == (16, 8)
    assert aligned(heads, 4) == (4,) * 6
    assert aligned(heads, 6) == (6, 2) * 3
    assert aligned(total([heads, atom(6)]), 5) == (5, 3, 5, 3, 5, 3, 5, 1)
    assert aligned(atom(1), 4) == even_blocks(atom(1), 4) == (1,)


def test_a_bias_goes_with_its_row() -> None:
    torch.manual_seed(0)
    program = capture(nn.Sequential(nn.Linear(8, 6), nn.Sigmoid(), nn.Linear(6, 3)), (torch.randn(4, 8),))
    on = gate(program, blocks={"0.weight": (2, 4)}, biases=True)
    masks = {on.gates[0]: torch.tensor([[True, False], [False, False], [False, True]])}
    found = lowered(on, masks).program.tensors()
    assert found["0.bias"].shape == (4,)
