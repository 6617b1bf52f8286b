# mypy: disable-error-code="no-any-return"
"""Exactness against masked models: the eager module in float64 with a removed unit's activation set to zero by hooks where it is read.

Masks leave weights as they are: an axis is exact only where no statistic of weights (a norm, a zero point) is computed over it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from fxprune import Program, Selection, analyze, capture, shrink
from fxprune.analysis import Axis

BAR = 1e-10
Reads = Mapping[tuple[str, int], tuple[str, ...]]
"""Where the units along a dim of a parameter are read: the modules whose input is masked."""


def masked(place: int, kept: Sequence[int]) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> Any:
        (x,) = args
        mask = torch.zeros(x.shape[place], dtype=x.dtype).index_fill(0, torch.tensor(kept), 1)
        return (x * mask.view(-1, *(1,) * (x.dim() - 1 - place % x.dim())),)

    return hook


@contextmanager
def hooked(model: nn.Module, names: Sequence[str], kept: Sequence[int], place: int) -> Iterator[None]:
    with ExitStack() as stack:
        for name in names:
            handle = model.get_submodule(name).register_forward_pre_hook(masked(place, kept))
            stack.callback(handle.remove)
        yield


def gap(model: nn.Module, program: Program, axis: Axis, names: Sequence[str], x: Tensor) -> float:
    """The largest difference between slim and masked outputs, whichever half of the units stays."""
    worst = 0.0
    for kept in (range(0, axis.size, 2), range(1, axis.size, 2)):
        slim = shrink(program, Selection({axis.name: kept}))(x)
        with hooked(model, names, kept, 1 if x.dim() == 4 else -1):
            worst = max(worst, float((slim - model(x)).abs().max() / model(x).abs().max()))
    return worst


def judged(
    model: nn.Module, reads: Reads, *sizes: int, training: bool = True
) -> dict[str, tuple[bool, float]]:
    """Whether an axis is called exact, and how far its slim program is from the masked model, by the first parameter in `reads`.

    Captured for training, the program computes its weights as the model does; else they are folded.
    """
    torch.manual_seed(0)
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(
                torch.randn_like(parameter) if parameter.dim() > 1 else parameter.uniform_(0.5, 1.5)
            )
        x = torch.randn(4, *sizes, dtype=torch.float64)
        program = capture(model, (x,), training=training)
        found = {}
        for (name, dim), names in reads.items():
            axis = next(
                a for a in analyze(program).axes if (name, dim) in {(m.name, m.dim) for m in a.members}
            )
            found[f"{name}[{dim}]"] = (axis.exact, gap(model, program, axis, names, x))
    return found


# --- a layer whose weight is computed from a parameter ------------------------------------------------------


class Of(nn.Module):
    """Layer that computes its result from parameters by a function."""

    def __init__(self, function: Callable[[Of, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.weight, self.bias = nn.Parameter(torch.empty(6, 8)), nn.Parameter(torch.empty(6))
        self.a, self.b = nn.Parameter(torch.empty(4, 8)), nn.Parameter(torch.empty(6, 4))
        self.u, self.v = nn.Parameter(torch.empty(6)), nn.Parameter(torch.empty(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class Between(nn.Module):
    """A layer between two: its inputs are the axis `up.weight[0]`, its outputs `down.weight[1]`."""

    def __init__(self, middle: nn.Module, conv: bool = False) -> None:
        super().__init__()
        self.up = nn.Conv2d(5, 8, 3) if conv else nn.Linear(5, 8)
        self.middle = middle
        self.down = nn.Conv2d(6, 3, 1) if conv else nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.middle(torch.relu(self.up(x)))))


BOTH: Reads = {("up.weight", 0): ("middle",), ("down.weight", 1): ("down",)}


def made(weight: Callable[[Of], Tensor]) -> Callable[[], nn.Module]:
    return lambda: Of(lambda s, x: F.linear(x, weight(s), s.bias))


def done(function: Callable[[Of, Tensor], Tensor]) -> Callable[[], nn.Module]:
    return lambda: Of(function)


def whole(s: Of) -> Tensor:
    return s.weight + s.b @ s.a


def squares(w: Tensor) -> Tensor:
    return torch.einsum("oi,oi->o", w, w)[:, None]


NEITHER, INPUTS, OUTPUTS, ALL = "", "inputs", "outputs", "inputs outputs"

#: a layer, and which of its dims a statistic of its weights runs over
LAYERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "plain": (made(lambda s: s.weight), NEITHER),
    "scaled by constants": (made(lambda s: s.weight * s.v / s.u[:, None] * s.a.sum()), NEITHER),
    "merged factors": (made(whole), NEITHER),
    "einsum, rows": (made(lambda s: s.weight / squares(s.weight).sqrt()), INPUTS),
    "einsum, columns": (made(lambda s: s.weight / torch.einsum("oi,oi->i", s.weight, s.weight)), OUTPUTS),
    "einsum, all": (made(lambda s: s.weight / torch.einsum("oi,oi->", s.weight, s.weight)), ALL),
    "product with a vector": (made(lambda s: s.weight / (s.weight @ s.v).norm()), ALL),
    "sigma": (made(lambda s: s.weight / (s.u @ s.weight @ s.v)), ALL),
    "linear of a vector": (made(lambda s: s.weight / F.linear(s.v, s.weight)[:, None]), INPUTS),
    "conv1d": (made(lambda s: s.weight / F.conv1d(s.v[None, :, None], s.weight[..., None])[0]), INPUTS),
    "bmm": (made(lambda s: s.weight / torch.bmm(s.weight[:, None], s.weight[..., None])[:, 0]), INPUTS),
    "vecdot": (made(lambda s: s.weight / torch.linalg.vecdot(s.weight, s.weight)[:, None]), INPUTS),
    "normalize": (made(lambda s: F.normalize(s.weight, dim=1)), INPUTS),
    "normalize columns": (made(lambda s: F.normalize(s.weight, dim=0)), OUTPUTS),
    "centred": (made(lambda s: s.weight - s.weight.mean(1, keepdim=True)), INPUTS),
    "standardised": (made(lambda s: s.weight / s.weight.var(1, keepdim=True)), INPUTS),
    "layer norm": (made(lambda s: F.layer_norm(s.weight, (8,))), INPUTS),
    "sum of magnitudes": (made(lambda s: s.weight / s.weight.abs().sum(1, keepdim=True)), INPUTS),
    "amax": (made(lambda s: s.weight / s.weight.abs().amax(1, keepdim=True)), INPUTS),
    "max": (made(lambda s: s.weight / s.weight.abs().max(1, keepdim=True).values), INPUTS),
    "largest": (made(lambda s: s.weight / s.weight.abs().max()), ALL),
    "logsumexp": (made(lambda s: s.weight - s.weight.logsumexp(1, keepdim=True)), INPUTS),
    "cumsum": (made(lambda s: s.weight.cumsum(1)), INPUTS),
    "product": (made(lambda s: s.weight * s.weight.prod(1, keepdim=True)), INPUTS),
    "matrix norm": (made(lambda s: s.weight / torch.linalg.matrix_norm(s.weight)), ALL),
    "spectral norm of itself": (made(lambda s: s.weight / torch.linalg.matrix_norm(s.weight, 2)), ALL),
    "DoRA": (made(lambda s: s.u[:, None] * whole(s) / whole(s).norm(dim=1, keepdim=True)), INPUTS),
    "DoRA by einsum": (made(lambda s: s.u[:, None] * whole(s) / squares(whole(s)).sqrt()), INPUTS),
    "BitNet": (made(lambda s: (s.weight / s.weight.abs().mean()).round() * s.weight.abs().mean()), ALL),
    "a bias scales": (done(lambda s, x: F.linear(x, s.weight) + s.bias / s.bias.square().sum()), OUTPUTS),
    "zero point": (done(lambda s, x: F.linear(x, s.weight) + s.bias - s.weight.sum(1)), INPUTS),
    "ones like x": (done(lambda s, x: F.linear(x, s.weight) - F.linear(torch.ones_like(x), s.weight)), INPUTS),
    "as many as x": (done(lambda s, x: F.linear(x, s.weight) - s.weight.expand(len(x), 6, 8).sum(2)), INPUTS),
    "within a sum": (done(lambda s, x: torch.addmv(s.bias, s.weight, s.v) + F.linear(x, s.weight)), INPUTS),
    "of the input": (done(lambda s, x: torch.addmm(F.linear(x, s.weight), s.v[None].expand(4, 8), s.weight.T)), INPUTS),
    "scaled by the input": (done(lambda s, x: F.linear(x, s.weight) - (s.weight * x.sum(1)[:, None, None]).sum(2)), INPUTS),
    "spectral_norm": (lambda: parametrizations.spectral_norm(nn.Linear(8, 6)), ALL),
    "spectral_norm, dim 1": (lambda: parametrizations.spectral_norm(nn.Linear(8, 6), dim=1), ALL),
    "old spectral_norm": (lambda: nn.utils.spectral_norm(nn.Linear(8, 6)), ALL),
    "weight_norm": (lambda: parametrizations.weight_norm(nn.Linear(8, 6)), INPUTS),
    "weight_norm, dim 1": (lambda: parametrizations.weight_norm(nn.Linear(8, 6), dim=1), OUTPUTS),
    "weight_norm, all": (lambda: parametrizations.weight_norm(nn.Linear(8, 6), dim=-1), ALL),
    "old weight_norm": (lambda: nn.utils.weight_norm(nn.Linear(8, 6)), INPUTS),
    "old weight_norm, all": (lambda: nn.utils.weight_norm(nn.Linear(8, 6), dim=-1), ALL),
}  # fmt: skip

CONVOLUTIONS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "plain": (lambda: nn.Conv2d(8, 6, 3), NEITHER),
    "spectral_norm": (lambda: parametrizations.spectral_norm(nn.Conv2d(8, 6, 3)), ALL),
    "weight_norm": (lambda: parametrizations.weight_norm(nn.Conv2d(8, 6, 3)), INPUTS),
    "transposed, weight_norm": (lambda: parametrizations.weight_norm(nn.ConvTranspose2d(8, 6, 3)), OUTPUTS),
    "standardised": (lambda: Standardised(8, 6, 3), INPUTS),
}


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True).reshape(self.weight.shape)
        return F.conv2d(x, weight, self.bias)


def agrees(found: dict[str, tuple[bool, float]], over: str) -> None:
    """Judge the axes of `Between`: one over which a statistic runs is inexact and differs, any other is exact and equal."""
    (exact_in, gap_in), (exact_out, gap_out) = found.values()
    assert [exact_in, exact_out] == [INPUTS not in over, OUTPUTS not in over]
    assert [gap_in <= BAR, gap_out <= BAR] == [exact_in, exact_out], (gap_in, gap_out)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning", "ignore:.*weight_norm:UserWarning")
@pytest.mark.parametrize("name", LAYERS)
def test_axes_are_exact_where_removal_equals_masked_activations(name: str) -> None:
    build, over = LAYERS[name]
    agrees(judged(Between(build()), BOTH, 5), over)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_channels_are_exact_where_removal_equals_masked_activations(name: str) -> None:
    build, over = CONVOLUTIONS[name]
    agrees(judged(Between(build(), conv=True), BOTH, 5, 6, 6), over)


#: layers whose statistic stays: it is one of the input, the layer of a constant, or beside a weight that stays
_STAY = {"linear of a vector", "conv1d", "zero point", "ones like x", "as many as x", "of the input", "scaled by the input"}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning", "ignore:.*weight_norm:UserWarning")
@pytest.mark.parametrize("name", LAYERS)
def test_axes_of_folded_weights_are_exact(name: str) -> None:
    build, over = LAYERS[name]
    agrees(judged(Between(build()), BOTH, 5, training=False), over if name in _STAY else NEITHER)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_channels_of_folded_weights_are_exact(name: str) -> None:
    agrees(judged(Between(CONVOLUTIONS[name][0](), conv=True), BOTH, 5, 6, 6, training=False), NEITHER)


# --- widths that no input reaches, recurrences, and values that are written -----------------------------------


class Biased(nn.Module):
    """A bias computed from constant positions by a small network (as in Swin v2), added to activations."""

    def __init__(self, first: nn.Module, second: nn.Module, calls: int = 1) -> None:
        super().__init__()
        self.up, self.first, self.second, self.down = nn.Linear(5, 6), first, second, nn.Linear(6, 3)
        self.places = nn.Buffer(torch.arange(12.0).view(6, 2).sin())
        self.signs = [1, -1][:calls]

    def forward(self, x: Tensor) -> Tensor:
        bias = [self.second(torch.relu(self.first(sign * self.places)))[:, 0] for sign in self.signs]
        return self.down(torch.relu(self.up(x)) + sum(bias))


class Centred(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias) - self.weight.sum(1)


class Unrolled(nn.Module):
    """A recurrence in Python, from zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.again, self.down = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), 8, dtype=x.dtype)
        for step in range(3):
            h = torch.tanh(self.up(x) * step + self.again(h))
        return self.down(h)


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.cell, self.down = nn.Linear(5, 8), nn.LSTM(8, 6, 2, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.cell(torch.stack([self.up(x), self.up(-x)], 1))[0][:, 1])


class Tokens(nn.Module):
    """Numbers that scale learned vectors, as in transformers for tables."""

    def __init__(self) -> None:
        super().__init__()
        self.vectors, self.down = nn.Parameter(torch.empty(5, 8)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(x[..., None] * self.vectors)).sum(1)


class Normed(nn.Module):
    """Activations divided by their norm."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.read, self.down = nn.Linear(5, 8), nn.Identity(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.read(torch.relu(self.up(x)))
        return self.down(h / squares(h))


class Written(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(5, 8), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 10)
        h[:, :8] = self.up(x)
        return self.down(h)


def spectral(i: int, o: int) -> nn.Module:
    return parametrizations.spectral_norm(nn.Linear(i, o))


WIDTH: Reads = {("first.bias", 0): ("second",)}

#: a net, where its units are read, and whether they are exact
NETS: dict[str, tuple[Callable[[], nn.Module], Reads, bool]] = {
    "a bias from constants": (lambda: Biased(nn.Linear(2, 10), nn.Linear(10, 4)), WIDTH, True),
    "called twice": (lambda: Biased(nn.Linear(2, 10), nn.Linear(10, 4), calls=2), WIDTH, True),
    "spectral norm over inputs": (lambda: Biased(nn.Linear(2, 10), spectral(10, 4)), WIDTH, False),
    "spectral norm over outputs": (lambda: Biased(spectral(2, 10), nn.Linear(10, 4)), WIDTH, False),
    "a zero point in constants": (lambda: Biased(nn.Linear(2, 10), Centred(10, 4)), WIDTH, False),
    "a recurrence from zeros": (Unrolled, {("up.weight", 0): ("again", "down")}, True),
    "an LSTM": (Lstm, {("up.weight", 0): ("cell",)}, True),
    "tokens": (Tokens, {("vectors", 1): ("down",)}, True),
    "a norm of activations": (Normed, {("up.weight", 0): ("read",)}, True),
}


@pytest.mark.parametrize("name", NETS)
def test_activations_of_constants_and_of_recurrences_are_exact_and_statistics_are_not(name: str) -> None:
    build, reads, exact = NETS[name]
    ((said, found),) = judged(build(), reads, 5).values()
    assert said is exact
    assert (found <= BAR) is exact


def test_a_value_that_is_written_is_an_activation() -> None:
    axes = analyze(capture(Written(), (torch.randn(4, 5),))).axes
    assert {axis.size: axis.exact for axis in axes} == {8: True, 2: True}


def test_the_rank_of_merged_factors_equals_columns_set_to_zero_by_hand() -> None:
    torch.manual_seed(0)
    middle, x = LAYERS["DoRA by einsum"][0](), torch.randn(4, 5, dtype=torch.float64)
    model = Between(middle).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
        program = capture(model, (x,), training=True)
        (rank,) = (axis for axis in analyze(program).axes if axis.size == 4)
        slim = shrink(program, Selection({rank.name: [0, 3]}))(x)
        middle.get_parameter("b")[:, 1:3] = 0
        assert rank.exact
        assert torch.allclose(slim, model(x), rtol=0, atol=BAR)


def test_the_reason_names_the_sum() -> None:
    program = capture(Between(LAYERS["sigma"][0]()), (torch.randn(4, 5),), training=True)
    whys = {axis.why_inexact for axis in analyze(program).axes}
    assert whys == {
        "aten.matmul.default over it at matmul is a statistic of weights, which changes",
        "aten.matmul.default over it at matmul_1 is a statistic of weights, which changes",
    }
