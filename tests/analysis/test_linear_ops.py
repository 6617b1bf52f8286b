"""Linear ops: every operator of the table is inputs @ matrixᵀ + bias, and weights that are no matrix of their own are left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from fxprune import Program, analyze, capture
from fxprune.analysis import Matrix, matrices
from fxprune.ir import attribute
from fxprune.rules import packet_of
from fxprune.rules.traits import TRAITS
from support.models import captured

aten = torch.ops.aten


class Applied(nn.Module):
    """A function of an input and of parameters `w`, `v` and `b` of these sizes."""

    def __init__(self, function: Callable[[Any, Tensor], Any], **sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        for name, size in sizes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(size)))

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def found(program: Program) -> dict[str, Matrix]:
    return matrices(program, analyze(program).flow)


def values(program: Program) -> dict[fx.Node, Any]:
    """What every node gives on the example inputs."""
    run = fx.Interpreter(program.graph_module, garbage_collect_values=False)
    with torch.no_grad():
        run.run(*program.flat_inputs(), enable_io_processing=False)
    return run.env


def gap(program: Program, matrix: Matrix, seen: dict[fx.Node, Any]) -> float:
    """How far rows(input) @ read(weight)ᵀ + bias is from results(output), relative."""
    weight = attribute(program.graph_module, matrix.weight).detach()
    assert torch.equal(matrix.write(matrix.read(weight), weight), weight)
    bias = attribute(program.graph_module, matrix.bias).detach() if matrix.bias else 0.0
    ours = matrix.rows(seen[matrix.source]) @ matrix.read(weight).T + bias
    theirs = matrix.results(seen[matrix.node])
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


X, PIXELS = (3, 5, 6), (2, 6, 9, 8)

#: function, the sizes of the input, the sizes of the parameters
PLAIN: dict[str, tuple[Callable[[Any, Tensor], Any], tuple[int, ...], dict[str, tuple[int, ...]]]] = {
    "linear": (lambda s, x: F.linear(x, s.w), X, {"w": (7, 6)}),
    "linear, bias": (lambda s, x: F.linear(x, s.w, s.b), X, {"w": (7, 6), "b": (7,)}),
    "linear, turned": (lambda s, x: F.linear(x, s.w.t()), X, {"w": (6, 7)}),
    "addmm": (lambda s, x: torch.addmm(s.b, x, s.w), (5, 6), {"w": (6, 7), "b": (7,)}),
    "mm": (lambda s, x: torch.mm(x, s.w), (5, 6), {"w": (6, 7)}),
    "mm, turned": (lambda s, x: torch.mm(x, s.w.t()), (5, 6), {"w": (7, 6)}),
    "matmul": (lambda s, x: x @ s.w, X, {"w": (6, 7)}),
    "matmul, t()": (lambda s, x: x @ s.w.t(), X, {"w": (7, 6)}),
    "matmul, T": (lambda s, x: x @ s.w.T, X, {"w": (7, 6)}),
    "matmul, mT": (lambda s, x: x @ s.w.mT, X, {"w": (7, 6)}),
    "matmul, transpose": (lambda s, x: x @ s.w.transpose(0, 1), X, {"w": (7, 6)}),
    "matmul, permute": (lambda s, x: x @ s.w.permute(1, 0), X, {"w": (7, 6)}),
    "matmul, permute from the end": (lambda s, x: x @ s.w.permute(-2, -1), X, {"w": (6, 7)}),
    "matmul, movedim": (lambda s, x: x @ s.w.movedim(0, 1), X, {"w": (7, 6)}),
    "matmul, one row": (lambda s, x: x @ s.w, (6,), {"w": (6, 7)}),
    "square, turned": (lambda s, x: x @ s.w.t(), X, {"w": (6, 6)}),
}

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "conv1d": (nn.Conv1d(6, 7, 3, stride=2, padding=1, dilation=3), (2, 6, 11)),
    "conv1d, no bias": (nn.Conv1d(6, 7, 2, bias=False), (2, 6, 11)),
    "conv2d": (nn.Conv2d(6, 7, 3), PIXELS),
    "conv2d, stride": (nn.Conv2d(6, 7, (3, 2), stride=(1, 3), padding=(2, 0), dilation=(2, 1)), PIXELS),
    "conv2d, point": (nn.Conv2d(6, 7, 1, bias=False), PIXELS),
    "conv2d, one image": (nn.Conv2d(6, 7, 3, padding=1), (6, 9, 8)),
    "conv3d": (nn.Conv3d(6, 7, (3, 2, 1)), (2, 6, 7, 6, 5)),
    "conv3d, stride": (
        nn.Conv3d(6, 7, (3, 2, 2), stride=(1, 3, 2), padding=(2, 0, 1), dilation=(2, 1, 3)),
        (2, 6, 7, 6, 5),
    ),
    "conv3d, one volume": (nn.Conv3d(6, 7, 2, bias=False), (6, 4, 5, 3)),
}


@pytest.mark.parametrize("name", PLAIN)
def test_products_are_inputs_times_a_matrix(name: str) -> None:
    function, size, parameters = PLAIN[name]
    torch.manual_seed(0)
    program = capture(Applied(function, **parameters), (torch.randn(size),))
    matrix = next(iter(found(program).values()))
    assert (matrix.weight, matrix.bias) == ("w", "b" if "b" in parameters else "")
    assert gap(program, matrix, values(program)) <= 1e-5


@pytest.mark.parametrize("name", LAYERS)
def test_convolutions_are_patches_times_a_matrix(name: str) -> None:
    layer, size = LAYERS[name]
    torch.manual_seed(0)
    program = capture(layer, (torch.randn(size),))
    matrix = next(iter(found(program).values()))
    assert gap(program, matrix, values(program)) <= 1e-5


def test_every_row_of_the_table_is_tested() -> None:
    cases = [(Applied(function, **sizes), size) for function, size, sizes in PLAIN.values()]
    programs = [capture(module, (torch.randn(size),)) for module, size in (*cases, *LAYERS.values())]
    met = {packet_of(matrix.node.target) for program in programs for matrix in found(program).values()}
    rows = {packet: row for packet, row in TRAITS.items() if row.linear and row.linear.matrix}
    assert met == {packet for packet, row in rows.items() if row.linear and not row.linear.transposed}


NONE: dict[str, tuple[Callable[[Any, Tensor], Any], dict[str, tuple[int, ...]]]] = {
    "a weight that two nodes read": (lambda s, x: F.linear(F.linear(x, s.w), s.w), {"w": (6, 6)}),
    "a weight read in two ways": (lambda s, x: x @ s.w @ s.w.t(), {"w": (6, 7)}),
    "a weight that is an addend, too": (lambda s, x: F.linear(x, s.w) + s.w[0], {"w": (6, 6)}),
    "a bias that two nodes read": (
        lambda s, x: F.linear(x, s.w, s.b) + F.linear(x, s.v, s.b),
        {"w": (7, 6), "v": (7, 6), "b": (7,)},
    ),
    "one matrix for each row of a batch": (lambda s, x: x @ s.w, {"w": (3, 6, 7)}),
    "a vector": (lambda s, x: x @ s.w, {"w": (6,)}),
    "a vector, linear": (lambda s, x: F.linear(x, s.w), {"w": (6,)}),
    "activations by activations": (lambda s, x: x @ x.transpose(1, 2), {}),
    "a weight that is computed": (lambda s, x: x @ (s.w * 2), {"w": (6, 7)}),
    "a weight without an input": (lambda s, x: (s.w @ s.v) + x.sum(), {"w": (5, 6), "v": (6, 7)}),
    "an addend that is a matrix": (lambda s, x: torch.addmm(s.b, x[0], s.w), {"w": (6, 7), "b": (5, 7)}),
    "an addend that is a number": (lambda s, x: torch.addmm(s.b, x[0], s.w), {"w": (6, 7), "b": (1,)}),
    "an addend that is scaled": (lambda s, x: torch.addmm(s.b, x[0], s.w, beta=2), {"w": (6, 7), "b": (7,)}),
    "a product that is scaled": (lambda s, x: torch.addmm(s.b, x[0], s.w, alpha=2), {"w": (6, 7), "b": (7,)}),
    "groups": (lambda s, x: F.conv1d(x, s.w, groups=5), {"w": (5, 1, 2)}),
    "padding in words": (lambda s, x: F.conv1d(x, s.w, padding="same"), {"w": (7, 5, 3)}),
}


@pytest.mark.parametrize("name", NONE)
def test_what_is_no_matrix_of_its_own_is_left_alone(name: str) -> None:
    function, parameters = NONE[name]
    assert found(capture(Applied(function, **parameters), (torch.randn(X),))) == {}


@pytest.mark.parametrize(
    ("name", "owned"),
    [("shared-layer", ["stem.weight", "head.weight"]), ("tied-lm", ["up.weight", "down.weight"])],
)
def test_shared_layers_and_tied_embeddings_are_nobodys(name: str, owned: list[str]) -> None:
    assert [matrix.weight for matrix in found(captured(name)).values()] == owned


@pytest.mark.parametrize(
    ("name", "count", "tied"),
    [("bert", 13, ""), ("gpt2", 8, "lm_head.weight"), ("llama", 15, ""), ("resnet", 12, "")],
)
def test_families(name: str, count: int, tied: str) -> None:
    program = captured(name)
    seen, known = values(program), found(program)
    assert max(gap(program, matrix, seen) for matrix in known.values()) <= 1e-5
    assert len(known) == count
    assert not tied or (tied in program.tensors() and tied not in {m.weight for m in known.values()})


def test_the_layers_of_gpt2_are_addmm() -> None:
    assert {packet_of(matrix.node.target) for matrix in found(captured("gpt2")).values()} == {aten.addmm}


def test_a_channel_has_all_columns_of_its_kernel() -> None:
    conv = found(capture(nn.Conv2d(3, 7, (2, 3)), (torch.randn(1, 3, 5, 5),)))["conv2d"]
    assert conv.columns(torch.tensor([4, -1, 6])).tolist() == [4] * 6 + [-1] * 6 + [6] * 6
    plain = found(capture(nn.Linear(3, 7), (torch.randn(2, 3),)))["linear"]
    assert plain.columns(torch.tensor([4, -1, 6])).tolist() == [4, -1, 6]


def test_zeros_in_its_columns_are_zeros_in_a_channel() -> None:
    torch.manual_seed(0)
    program = capture(nn.Conv2d(3, 7, (2, 3), stride=2, bias=False), (torch.randn(2, 3, 6, 7),))
    matrix = found(program)["conv2d"]
    x, weight = program.flat_inputs()[0], attribute(program.graph_module, "weight").detach()
    gone = matrix.columns(torch.arange(3)) == 1
    silent = matrix.write(matrix.read(weight).masked_fill(gone, 0.0), weight)
    assert torch.equal(silent, weight * torch.tensor([1.0, 0.0, 1.0])[:, None, None])
    without = x * torch.tensor([1.0, 0.0, 1.0])[:, None, None]
    assert torch.allclose(F.conv2d(without, weight, stride=2), F.conv2d(x, silent, stride=2), atol=1e-6)


def test_written_parameters_keep_type_and_training() -> None:
    linear = nn.Linear(3, 7, bias=False, dtype=torch.float16).requires_grad_(False)
    matrix = found(capture(linear, (torch.randn(2, 3, dtype=torch.float16),)))["linear"]
    made = matrix.write(torch.ones(7, 3, dtype=torch.float64), linear.weight)
    assert (made.dtype, made.requires_grad, type(made)) == (torch.float16, False, nn.Parameter)
    turned = found(capture(Applied(lambda s, x: x @ s.w, w=(3, 7)), (torch.randn(2, 3),)))["matmul"]
    assert turned.write(torch.ones(7, 3), torch.empty(3, 7)).is_contiguous()
