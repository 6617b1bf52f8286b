"""Rewrites that are exact by hand are found: the user's module in float64, its weights silenced by hand, against the result of `shrink`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from fxprune import Selection, analyze, capture, export_onnx, shrink
from fxprune.ir import Program
from support.models import distance
from zoo.nets_tricky import CrossedGroups, Repeats, ScoredTokens

AUTO = torch.export.Dim.AUTO


def features(batch: int = 3) -> Tensor:
    return torch.randn(batch, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(batch))


def ids(batch: int = 3) -> Tensor:
    return torch.randint(0, 19, (batch, 7), generator=torch.Generator().manual_seed(batch))


def no_second_half(net: Any) -> None:
    """Silence channels 12 … 23, which are groups 2 and 3 of the four and 3 to 5 of the six."""
    net.down.weight[:, 12:] = 0


def no_odd_channel(net: Any) -> None:
    """Silence every second channel between the two grouped convolutions: one half of every block of two."""
    net.six.weight[:, 1::2] = 0


def no_odd_feature(net: Any) -> None:
    net.down.weight[:, 1::2] = 0


def no_odd_width(net: Any) -> None:
    """Silence every second number of the stream: no row has it, and no layer writes it."""
    net.items.weight[:, 1::2] = 0
    for layer in net.layers:
        layer["o"].weight[1::2], layer["o"].bias[1::2] = 0, 0


@dataclass(frozen=True)
class Row:
    """A net, its example, the (parameter, dimension) that names an axis, what stays of it, how it is silenced, and the parameters left."""

    build: Callable[[], nn.Module]
    example: Callable[..., Tensor]
    place: tuple[str, int]
    size: int
    kept: Sequence[int]
    silence: Callable[[Any], None]
    left: int


ROWS = {
    "blocks of both groups": Row(CrossedGroups, features, ("down.weight", 1), 2, [0], no_second_half, 533),
    "blocks within both groups": Row(CrossedGroups, features, ("six.weight", 1), 2, [0], no_odd_channel, 689),
    "rows that are repeated": Row(
        Repeats, features, ("up.weight", 0), 16, range(0, 16, 2), no_odd_feature, 101
    ),
    "tokens that score": Row(ScoredTokens, ids, ("items.weight", 1), 8, range(0, 8, 2), no_odd_width, 388),
}


def net_of(row: Row) -> Any:
    torch.manual_seed(0)
    return row.build().double().eval()


def cut(row: Row, net: nn.Module, dynamic: bool = False) -> Program:
    """The program without the units of the row's axis that go."""
    shapes: Any = ({0: AUTO},) if dynamic and row.build is not Repeats else None
    example, dtype = row.example(), next(net.parameters()).dtype
    example = example.to(dtype) if example.is_floating_point() else example
    program = capture(net, (example,), dynamic_shapes=shapes)
    axes = [
        (axis, member)
        for axis in analyze(program).axes
        for member in axis.members
        if (member.name, member.dim) == row.place and axis.size == row.size
    ]
    ((axis, _),) = axes
    assert axis.exact
    return shrink(program, Selection({axis.name: row.kept}))


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", ROWS)
def test_what_is_exact_by_hand_is_found_and_equal(name: str, dynamic: bool) -> None:
    row = ROWS[name]
    net = net_of(row)
    slim = cut(row, net, dynamic)
    silenced = copy.deepcopy(net)
    with torch.no_grad():
        row.silence(silenced)
    other = row.example(4 if dynamic and row.build is not Repeats else 3)
    assert distance(slim(other), silenced(other)) < 1e-12
    assert distance(silenced(other), net(other)) > 1e-2
    assert slim.parameter_count() == row.left
    assert slim.parameters().keys() == dict(net.named_parameters()).keys()


@pytest.mark.parametrize("name", ROWS)
def test_its_file_has_the_size_of_what_is_left(name: str, tmp_path: Path) -> None:
    """ONNX files hold the weights that are left, and besides only constants of a few numbers."""
    row = ROWS[name]
    slim = cut(row, net_of(row).float())
    export_onnx(slim, tmp_path / "slim.onnx")
    held = onnx.load(tmp_path / "slim.onnx").graph.initializer
    weights = [each for each in held if each.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)]
    numbers = sum(torch.Size(each.dims).numel() for each in weights)
    assert row.left <= numbers <= row.left + 64
