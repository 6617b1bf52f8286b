"""Parametrizations: a slim weight goes into what a module computes it from, or replaces the computation; all or nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name
from torch.nn.utils import parametrizations, parametrize

from fxprune import Program, Selection, analyze, apply, capture, write_back
from fxprune.errors import RefusedError
from support.models import distance

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning", "ignore:.*_norm.*:UserWarning")


class Normalized(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, F.normalize(self.weight, dim=1), self.bias)


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def between(middle: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), middle, nn.ReLU(), nn.Linear(6, 3)).eval()


def twofold() -> nn.Module:
    """A layer with a computed weight and a computed bias."""
    layer = parametrizations.spectral_norm(nn.Linear(8, 6))
    return parametrize.register_parametrization(layer, "bias", Doubled(), unsafe=True)


def halved(model: nn.Module) -> tuple[Program, Tensor]:
    x = torch.randn(4, 5)
    program = capture(model, (x,))
    return apply(program, Selection({axis.name: range(axis.size // 2) for axis in analyze(program).axes})), x


NORM, SPECTRAL = nn.utils.weight_norm, nn.utils.spectral_norm

#: a layer, and its parameters after weights of half the size were written back
LAYERS: dict[str, tuple[Callable[[], nn.Module], dict[str, tuple[int, ...]]]] = {
    "weight_norm": (
        lambda: parametrizations.weight_norm(nn.Linear(8, 6)),
        {"bias": (3,), "parametrizations.weight.original0": (3, 1), "parametrizations.weight.original1": (3, 4)},
    ),
    "old weight_norm": (lambda: NORM(nn.Linear(8, 6)), {"bias": (3,), "weight_g": (3, 1), "weight_v": (3, 4)}),
    "spectral_norm": (
        lambda: parametrizations.spectral_norm(nn.Linear(8, 6)),
        {"bias": (3,), "weight": (3, 4)},
    ),
    "old spectral_norm": (lambda: SPECTRAL(nn.Linear(8, 6)), {"bias": (3,), "weight": (3, 4)}),
    "orthogonal": (lambda: parametrizations.orthogonal(nn.Linear(8, 6)), {"bias": (3,), "weight": (3, 4)}),
    "a computed bias, too": (twofold, {"parametrizations.bias.original": (3,), "weight": (3, 4)}),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_a_module_takes_slim_weights_for_what_it_computes(name: str) -> None:
    build, wanted = LAYERS[name]
    model: Any = between(build())
    slim, x = halved(model)
    assert write_back(model, slim) <= 1e-5
    assert distance(model(x), slim(x)) <= 1e-5
    assert {each: tuple(value.shape) for each, value in model[2].named_parameters()} == wanted
    assert (model[2].in_features, model[2].out_features) == (4, 3)


@pytest.mark.parametrize("name", LAYERS)
def test_weights_that_did_not_change_stay_as_they_are(name: str) -> None:
    model = between(LAYERS[name][0]())
    x = torch.randn(4, 5)
    before = {each: id(value) for each, value in model.named_parameters()}
    write_back(model, capture(model, (x,)))
    assert {each: id(value) for each, value in model.named_parameters()} == before


@pytest.mark.parametrize("name", LAYERS)
def test_a_refusal_leaves_what_is_computed_as_it_was(name: str) -> None:
    model: Any = between(LAYERS[name][0]())
    x = torch.randn(4, 5)
    broken = nn.Sequential(model, fixed := Fixed())
    y, names, kind = model(x), [each for each, _ in model.named_parameters()], type(model[2])
    program = capture(broken, (x,))
    cut = apply(program, Selection({axis.name: range(axis.size // 2) for axis in analyze(program).axes}))
    fixed.scale = 2.0  # the module is no longer what was captured
    with pytest.raises(RefusedError, match="Sequential can't hold the slim weights"):
        write_back(broken, cut)
    assert [each for each, _ in model.named_parameters()] == names
    assert type(model[2]) is kind
    assert torch.equal(model(x), y)


class Fixed(nn.Module):
    scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def test_what_code_of_its_own_computes_is_refused_in_a_sentence() -> None:
    model = between(Normalized(8, 6))
    slim, _ = halved(model)
    with pytest.raises(RefusedError) as caught:
        write_back(model, slim)
    assert str(caught.value) == (
        "Sequential has no 2.folded_weight, which the program has: its code computes it from 2.weight, and capture folded that "
        "(with training=True it does not); use slim.module(), which needs none of its code"
    )
