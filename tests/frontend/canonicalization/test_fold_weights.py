"""Fold weights: weights computed from weights alone become parameters at capture, where that is not larger; all else stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from expecttest import assert_expected_inline
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name
from torch.nn.utils import parametrizations

from fxprune import Program, Selection, analyze, apply, capture
from fxprune.frontend.canonicalization.fold_weights import fold_weights, folded_sources
from support.models import distance
from zoo.check import halved, randomise

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning", "ignore:.*_norm.*:UserWarning")


class BitLinear(nn.Linear):
    """Weights of −1, 0 and 1, times their mean magnitude."""

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight.abs().mean()
        return F.linear(x, (self.weight / scale).round().clamp(-1, 1) * scale, self.bias)


class Normalized(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, F.normalize(self.weight, dim=1), self.bias)


class Adapted(nn.Linear):
    """Low-rank factors added to a weight, as an adapter that is not merged."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__(into, out)
        self.a, self.b = nn.Parameter(torch.randn(2, into)), nn.Parameter(torch.randn(out, 2))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight + self.b @ self.a, self.bias)


class Dora(nn.Linear):
    """DoRA as PEFT computes it: layers of an identity give the product of the factors, whose norm scales the result."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__(into, out)
        self.a, self.b = nn.Linear(into, 2, bias=False), nn.Linear(2, out, bias=False)
        self.m = nn.Parameter(torch.rand(out))

    def forward(self, x: Tensor) -> Tensor:
        whole = self.weight + self.b(self.a(torch.eye(self.in_features))).T
        scale = self.m / torch.linalg.norm(whole, dim=1)
        made: Tensor = scale * (F.linear(x, self.weight) + self.b(self.a(x))) + self.bias
        return made


def between(middle: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 32), nn.ReLU(), middle, nn.ReLU(), nn.Linear(32, 3)).eval()


def share(program: Program) -> tuple[float, float]:
    """The share of the parameters on exact axes, and of those that a half of these removes."""
    names = {member.name for axis in analyze(program).axes if axis.exact for member in axis.members}
    sizes = {name: value.numel() for name, value in program.parameters().items()}
    total = program.parameter_count()
    return (
        round(sum(size for name, size in sizes.items() if name in names) / total, 2),
        round(1 - halved(program).parameter_count() / total, 2),
    )


PAR = parametrizations

#: a layer of 32 × 32 between two, with the name of its folded weight and `share` without and with folding
LAYERS: dict[str, tuple[Callable[[], nn.Module], str, tuple[float, float], tuple[float, float]]] = {
    "weight_norm": (lambda: PAR.weight_norm(nn.Linear(32, 32)), "2.weight", (0.86, 0.43), (1, 0.69)),
    "old weight_norm": (lambda: nn.utils.weight_norm(nn.Linear(32, 32)), "2.weight", (0.86, 0.43), (1, 0.69)),
    "spectral_norm": (lambda: PAR.spectral_norm(nn.Linear(32, 32)), "2.weight", (0, 0), (1, 0.69)),
    "old spectral_norm": (lambda: nn.utils.spectral_norm(nn.Linear(32, 32)), "2.weight", (0, 0), (1, 0.69)),
    "orthogonal": (lambda: PAR.orthogonal(nn.Linear(32, 32)), "2.weight", (0.1, 0.05), (1, 0.69)),
    "orthogonal, cayley": (lambda: PAR.orthogonal(nn.Linear(32, 32), orthogonal_map="cayley"), "2.weight", (0.1, 0.05), (1, 0.69)),
    "householder": (lambda: PAR.orthogonal(nn.Linear(32, 32), orthogonal_map="householder"), "2.weight", (0.1, 0.05), (1, 0.69)),
    "BitNet": (lambda: BitLinear(32, 32), "2.folded_weight", (0, 0), (1, 0.69)),
    "normalize": (lambda: Normalized(32, 32), "2.folded_weight", (0.86, 0.43), (1, 0.69)),
    "adapter": (lambda: Adapted(32, 32), "2.folded_weight", (1, 0.69), (1, 0.69)),
    "DoRA": (lambda: Dora(32, 32), "2.weight_folded", (0.83, 0.41), (1, 0.69)),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_folding_offers_what_statistics_hindered(name: str) -> None:
    build, folded, before, after = LAYERS[name]
    model, x = between(build()), torch.randn(4, 5)
    program, kept = capture(model, (x,)), capture(model, (x,), training=True)
    assert distance(program(x), model(x)) <= 1e-6
    assert list(folded_sources(program)) == [folded]
    assert folded_sources(kept) == {}
    assert program.parameter_bytes() <= kept.parameter_bytes()
    assert (share(kept), share(program)) == (before, after)


def text(program: Program) -> str:
    return "\n".join(str(node.format_node()) for node in program.graph.nodes)


def test_before_and_after() -> None:
    program = capture(between(BitLinear(32, 32)), (torch.randn(4, 5),), training=True)
    assert_expected_inline(
        text(program),
        """\
%_0_weight : [num_users=1] = get_attr[target=0.weight]
%_0_bias : [num_users=1] = get_attr[target=0.bias]
%_2_weight : [num_users=2] = get_attr[target=2.weight]
%_2_bias : [num_users=1] = get_attr[target=2.bias]
%_4_weight : [num_users=1] = get_attr[target=4.weight]
%_4_bias : [num_users=1] = get_attr[target=4.bias]
%input_1 : [num_users=1] = placeholder[target=input]
%linear : [num_users=1] = call_function[target=torch.ops.aten.linear.default](args = (%input_1, %_0_weight, %_0_bias), kwargs = {})
%relu : [num_users=1] = call_function[target=torch.ops.aten.relu.default](args = (%linear,), kwargs = {})
%abs_1 : [num_users=1] = call_function[target=torch.ops.aten.abs.default](args = (%_2_weight,), kwargs = {})
%mean : [num_users=2] = call_function[target=torch.ops.aten.mean.default](args = (%abs_1,), kwargs = {})
%div : [num_users=1] = call_function[target=torch.ops.aten.div.Tensor](args = (%_2_weight, %mean), kwargs = {})
%round_1 : [num_users=1] = call_function[target=torch.ops.aten.round.default](args = (%div,), kwargs = {})
%clamp : [num_users=1] = call_function[target=torch.ops.aten.clamp.default](args = (%round_1, -1, 1), kwargs = {})
%mul : [num_users=1] = call_function[target=torch.ops.aten.mul.Tensor](args = (%clamp, %mean), kwargs = {})
%linear_1 : [num_users=1] = call_function[target=torch.ops.aten.linear.default](args = (%relu, %mul, %_2_bias), kwargs = {})
%relu_1 : [num_users=1] = call_function[target=torch.ops.aten.relu.default](args = (%linear_1,), kwargs = {})
%linear_2 : [num_users=1] = call_function[target=torch.ops.aten.linear.default](args = (%relu_1, %_4_weight, %_4_bias), kwargs = {})
return (linear_2,)""",
    )
    assert_expected_inline(
        text(fold_weights(program)),
        """\
%_0_weight : [num_users=1] = get_attr[target=0.weight]
%_0_bias : [num_users=1] = get_attr[target=0.bias]
%_2_bias : [num_users=1] = get_attr[target=2.bias]
%_4_weight : [num_users=1] = get_attr[target=4.weight]
%_4_bias : [num_users=1] = get_attr[target=4.bias]
%input_1 : [num_users=1] = placeholder[target=input]
%linear : [num_users=1] = call_function[target=torch.ops.aten.linear.default](args = (%input_1, %_0_weight, %_0_bias), kwargs = {})
%relu : [num_users=1] = call_function[target=torch.ops.aten.relu.default](args = (%linear,), kwargs = {})
%_2_folded_weight : [num_users=1] = get_attr[target=2.folded_weight]
%linear_1 : [num_users=1] = call_function[target=torch.ops.aten.linear.default](args = (%relu, %_2_folded_weight, %_2_bias), kwargs = {})
%relu_1 : [num_users=1] = call_function[target=torch.ops.aten.relu.default](args = (%linear_1,), kwargs = {})
%linear_2 : [num_users=1] = call_function[target=torch.ops.aten.linear.default](args = (%relu_1, %_4_weight, %_4_bias), kwargs = {})
return (linear_2,)""",
    )


def test_the_note_names_the_parameters() -> None:
    program = capture(between(BitLinear(32, 32)), (torch.randn(4, 5),))
    assert program.notes == (
        "2.folded_weight is computed from 2.weight alone: folded into parameters; capture(…, training=True) keeps the computation",
    )


# --- ties, and what stays -----------------------------------------------------------------------------------


class Twice(nn.Module):
    """One layer that is called twice computes one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = parametrizations.weight_norm(nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.relu(self.layer(x)))  # type: ignore[no-any-return]


class Stacked(nn.Module):
    """Experts of which each reads its part of one normalised weight, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.Parameter(torch.randn(3, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        weights = F.normalize(self.experts, dim=-1)
        return sum(x @ weights[i].T for i in range(3))  # type: ignore[return-value]


@pytest.mark.parametrize(("build", "name"), [(Twice, "layer.weight"), (Stacked, "experts_folded")])
def test_what_several_read_is_one_parameter(build: Callable[[], nn.Module], name: str) -> None:
    model, x = build().eval(), torch.randn(4, 8)
    program = capture(model, (x,))
    assert list(folded_sources(program)) == [name]
    assert program.parameter_count() <= sum(parameter.numel() for parameter in model.parameters())
    assert distance(program(x), model(x)) <= 1e-6


class Tied(nn.Module):
    """A codebook that is read as it is, too: its normalised twin would be larger."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.codes = nn.Linear(5, 8), nn.Parameter(torch.randn(7, 8))

    def forward(self, x: Tensor) -> Tensor:
        nearest = (self.up(x) @ F.normalize(self.codes, dim=1).T).argmax(-1)
        return F.embedding(nearest, self.codes)


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, 1 + self.weight.T.reshape(5, 5), self.bias)


class Queries(nn.Module):
    """Learned queries through their norm and projection are activations that no input reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.norm, self.project = (
            nn.Parameter(torch.randn(4, 5)),
            nn.LayerNorm(5),
            nn.Linear(5, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        return (self.project(self.norm(self.queries)) @ x.T).T + self.queries.sum()  # type: ignore[no-any-return]


class Positions(nn.Module):
    """A bias that a small network makes of constant positions."""

    def __init__(self) -> None:
        super().__init__()
        self.places, self.first, self.second = (
            nn.Buffer(torch.arange(10.0).view(5, 2)),
            nn.Linear(2, 8),
            nn.Linear(8, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.relu(self.first(self.places)))[:, 0]  # type: ignore[no-any-return]


class Resized(nn.Module):
    """A table of positions at other places."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, 5, 6))

    def forward(self, x: Tensor) -> Tensor:
        return x + F.interpolate(self.table, 4, mode="linear")[0, :, :1].T


class Drawn(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, F.normalize(self.weight + torch.randn(5, 5), dim=1))


class Written(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.clone()
        weight[0] = x.sum()
        return F.linear(x, F.normalize(weight, dim=1))


STAYS: dict[str, Callable[[], nn.Module]] = {
    "a codebook that is read twice": Tied,
    "scaled and moved": lambda: Scaled(5, 5),
    "learned queries": Queries,
    "a network of positions": Positions,
    "a table at other places": Resized,
    "drawn": lambda: Drawn(5, 5),
    "written": lambda: Written(5, 5),
}


@pytest.mark.parametrize("name", STAYS)
def test_what_is_no_computed_weight_stays(name: str) -> None:
    program = capture(STAYS[name]().eval(), (torch.randn(3, 5),))
    assert folded_sources(program) == {}
    assert fold_weights(program) is program


# --- other sources ------------------------------------------------------------------------------------------


def test_an_exported_program_and_a_model_on_meta_are_folded_too() -> None:
    model, x = between(parametrizations.weight_norm(nn.Linear(32, 32))), torch.randn(4, 5)
    exported = capture(torch.export.export(model, (x,)))
    meta = capture(between(BitLinear(32, 32)).to("meta"), (x.to("meta"),))
    assert exported.tensors()["2.weight"].shape == (32, 32)
    assert distance(exported(x), model(x)) <= 1e-6
    assert meta.tensors()["2.folded_weight"].device.type == "meta"
    assert {axis.exact for axis in analyze(meta).axes} == {True}


def test_a_frozen_weight_stays_frozen() -> None:
    model = between(BitLinear(32, 32).requires_grad_(requires_grad=False))
    parameters = capture(model, (torch.randn(4, 5),)).parameters()
    assert {name: value.requires_grad for name, value in parameters.items() if name.startswith("2.")} == {
        "2.folded_weight": False,
        "2.bias": False,
    }


def test_the_user_would_expect_it_too() -> None:
    """The eager module without its weight norm, rows and columns set to zero by hand, in float64."""
    model = between(parametrizations.weight_norm(nn.Linear(32, 32))).double()
    x = torch.randn(4, 5, dtype=torch.float64)
    program = capture(model, (x,))
    ones = Selection({axis.name: range(3, 9) for axis in analyze(program).axes})
    plain: Any = model
    nn.utils.parametrize.remove_parametrizations(plain[2], "weight")
    gone = [i for i in range(32) if i not in range(3, 9)]
    with torch.no_grad():
        plain[2].weight[:, gone] = 0
        plain[4].weight[:, gone] = 0
    assert distance(apply(program, ones)(x), plain(x)) <= 1e-12


# --- models of transformers ---------------------------------------------------------------------------------

#: a class of the zoo, and `share` without and with folding
MODELS: dict[str, tuple[tuple[float, float], tuple[float, float]]] = {
    "VitsModel": ((0.58, 0.37), (0.93, 0.63)),
    "SpeechT5HifiGan": ((0.2, 0.1), (0.99, 0.71)),
    "UnivNetModel": ((0.91, 0.45), (1, 0.85)),
    "Wav2Vec2ForCTC": ((0.7, 0.45), (0.71, 0.45)),
    "DacModel": ((0.14, 0.07), (0.97, 0.68)),
    "BitForImageClassification": ((0.16, 0.08), (1, 0.69)),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_offer_more(name: str) -> None:
    pytest.importorskip("transformers")
    from zoo.hf import ROWS

    model, inputs = ROWS[name].build()
    normed = getattr(model, "apply_weight_norm", None)
    if normed is not None:
        normed()
    randomise(model.eval())
    before, after = (share(capture(model, kwargs=inputs, training=kept)) for kept in (True, False))
    assert (before, after) == MODELS[name]
