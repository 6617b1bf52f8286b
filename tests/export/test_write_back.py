"""Write back: the module computes the same as the program, with smaller weights, or stays as it was, and the refusal gives the line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

import fxprune
from fxprune import Program, Selection, analyze, apply, capture, write_back
from fxprune.errors import RefusedError
from fxprune.rewrite.factorize import factorize
from support.models import distance, hugging_face, net

HERE = Path(__file__)


def state(model: nn.Module) -> dict[str, tuple[int, Tensor]]:
    return {
        name: (id(value), value.detach().clone()) for name, value in model.state_dict(keep_vars=True).items()
    }


def attributes(model: nn.Module) -> dict[str, dict[str, Any]]:
    plain = (int, float, bool, str, tuple)
    return {
        path: {name: value for name, value in vars(module).items() if isinstance(value, plain)}
        for path, module in model.named_modules()
    }


def halved(program: Program, role: str = "") -> Program:
    """Half of every axis (of a role)."""
    axes = [axis for axis in analyze(program).axes if role in ("", axis.role)]
    assert axes
    return apply(
        program, Selection({axis.name: range(max(axis.least, (axis.size + 1) // 2)) for axis in axes})
    )


def refused(model: nn.Module, slim: Program) -> str:
    """The refusal's text; the module must be exactly as it was."""
    before, told, modules = state(model), attributes(model), list(model.modules())
    with pytest.raises(RefusedError) as caught:
        write_back(model, slim)
    after = state(model)
    assert {name: key for name, (key, _) in before.items()} == {name: key for name, (key, _) in after.items()}
    assert all(torch.equal(value, after[name][1]) for name, (_, value) in before.items())
    assert attributes(model) == told
    assert all(one is other for one, other in zip(model.modules(), modules, strict=True))
    return str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        *("mlp", "gated-ffn", "residual-mlp-norm", "bilinear", "tied-lm", "shared-layer", "weight-norm", "bags", "lstm", "gru"),
        *("conv-net", "resnet", "densenet", "unet", "grouped", "depthwise", "group-norm", "convnext", "conv3d", "top-experts"),
    ],
)  # fmt: skip
def test_nets_without_literal_sizes_hold_the_slim_weights(name: str) -> None:
    model, inputs = net(name)
    slim = halved(capture(model, kwargs=inputs))
    before = sum(parameter.numel() for parameter in model.parameters())
    assert write_back(model, slim) <= 1e-5
    assert distance(model(**inputs), slim(**inputs)) <= 1e-5
    assert sum(parameter.numel() for parameter in model.parameters()) < before
    assert model(**inputs).requires_grad


def test_modules_of_torch_declare_their_new_sizes() -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ConvTranspose2d(8, 6, 2), nn.GroupNorm(1, 6),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10), nn.LayerNorm(10), nn.Linear(10, 4),
    ).eval()  # fmt: skip
    slim = halved(capture(model, (torch.randn(2, 3, 9, 9),)))
    assert write_back(model, slim) <= 1e-5
    assert (model[0].out_channels, model[1].num_features) == (4, 4)
    assert (model[3].in_channels, model[3].out_channels, model[3].groups) == (4, 4, 4)
    assert (model[4].in_channels, model[4].out_channels, model[5].num_channels) == (4, 3, 3)
    assert (model[8].in_features, model[8].out_features, model[9].normalized_shape) == (3, 5, (5,))
    assert (model[10].in_features, model[10].out_features) == (5, 4)


def test_ties_stay_ties() -> None:
    model, inputs = net("tied-lm")
    names = [[name for name, _ in model.named_parameters(remove_duplicate=each)] for each in (True, False)]
    write_back(model, halved(capture(model, kwargs=inputs)))
    assert [[n for n, _ in model.named_parameters(remove_duplicate=each)] for each in (True, False)] == names
    assert len(names[0]) < len(names[1])


def test_what_did_not_change_is_the_same_object() -> None:
    model, program = attention("both")
    before = dict(model.named_parameters())
    write_back(model, halved(program, "ffn"))
    changed = [name for name, value in model.named_parameters() if value is not before[name]]
    assert changed == ["up.weight", "up.bias", "down.weight"]


class Attention(nn.Module):
    """Heads of a transformer; `how` says how its code knows their number or their size."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.heads, self.size = how, 4, 8
        self.q, self.k, self.v, self.o = (nn.Linear(32, 32) for _ in range(4))
        self.up, self.down = nn.Linear(32, 48), nn.Linear(48, 32)

    def split(self, x: Tensor) -> Tensor:
        if self.how == "size":
            return x.view(x.shape[0], x.shape[1], -1, self.size).transpose(1, 2)
        if self.how == "number":
            return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)  # a literal
        return x.view(x.shape[0], x.shape[1], 4, 8).transpose(1, 2)  # two literals

    def forward(self, x: Tensor) -> Tensor:
        mixed = F.scaled_dot_product_attention(
            self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        )
        x = x + self.o(mixed.transpose(1, 2).flatten(2))
        done: Tensor = x + self.down(self.up(x).relu())
        return done


def line(text: str) -> int:
    """Where a comment stands in this file."""
    return next(i for i, each in enumerate(HERE.read_text().splitlines(), 1) if each.endswith(f"# {text}"))


def attention(how: str) -> tuple[nn.Module, Program]:
    torch.manual_seed(0)
    model = Attention(how).eval()
    return model, capture(model, (torch.randn(3, 13, 32),))


def test_heads_go_where_their_number_is_inferred() -> None:
    model, program = attention("size")
    assert write_back(model, halved(program, "heads")) <= 1e-5
    assert model.state_dict()["q.weight"].shape == (16, 32)


def test_a_literal_number_of_heads_runs_but_is_found_out() -> None:
    model, program = attention("number")
    told = refused(model, halved(program, "heads"))
    assert (
        f"{HERE}:{line('a literal')} in split: return x.view(x.shape[0], x.shape[1], self.heads, -1)" in told
    )
    assert (
        "makes 3×13×4×4, where the program has 3×13×2×8. Nothing was changed; let that line read sizes"
        in told
    )
    assert write_back(model, halved(program, "ffn")) <= 1e-5


def test_literal_sizes_are_refused_with_their_line_and_both_shapes() -> None:
    model, program = attention("both")
    told = refused(model, halved(program, "heads"))
    assert told.startswith(
        f"Attention can't hold the slim weights: {HERE}:{line('two literals')} in split: return x.view("
    )
    assert "shape '[3, 13, 4, 8]' is invalid for input of size 624; the program has 3×13×16, 3×13×2×8" in told
    assert told.endswith("or use slim.module(), which needs none of its code")


def test_layers_that_are_gone_become_identities_where_that_is_right() -> None:
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3)]

    class Stack(nn.Module):
        def __init__(self, extra: bool) -> None:
            super().__init__()
            self.blocks, self.extra = nn.ModuleList([Residual(block) for block in blocks]), extra

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = block(x, 1.0) if self.extra else block(x)
            return x

    plain, extra = Stack(False).eval(), Stack(True).eval()
    slim = fxprune.bypass(capture(plain, (torch.randn(4, 8),)), ["blocks.1"])
    assert write_back(plain, slim) <= 1e-5
    assert isinstance(plain.blocks[1], nn.Identity)
    slim = fxprune.bypass(capture(extra, (torch.randn(4, 8),)), ["blocks.1"])
    told = refused(extra, slim)
    assert told.startswith("nothing is left of blocks.1, and Stack calls it: with nn.Identity in its place")


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        done: Tensor = x + scale * self.inner(x)
        return done


def test_factors_have_no_place() -> None:
    model, inputs = net("mlp")
    program = capture(model, kwargs=inputs)
    weight = next(name for name, value in program.parameters().items() if value.dim() == 2)
    told = refused(model, factorize(program, {weight: 2}).program)
    assert "a matrix that became two factors, or a weight that was added, has no place in its code" in told


def test_torch_encoders_lose_neurons_but_not_heads() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval()
    x = torch.randn(3, 7, 16)
    program = capture(model, (x,))
    assert "in test_" not in refused(model, halved(program, "heads"))
    slim = halved(program, "ffn")
    assert write_back(model, slim) <= 1e-5
    assert (model.linear1.out_features, model.linear2.in_features) == (16, 16)
    with torch.no_grad():  # with torch's own fast path
        assert distance(model(x), slim(x)) <= 1e-5


@pytest.mark.parametrize(
    ("name", "role"), [("bert", "ffn"), ("bert", "heads"), ("llama", "heads"), ("llama", "hidden")]
)
def test_models_of_transformers_that_infer_sizes(name: str, role: str) -> None:
    pytest.importorskip("transformers")
    model, inputs = hugging_face(name)
    slim = halved(capture(model, kwargs=inputs), role)
    assert write_back(model, slim) <= 1e-5


def test_gpt2_says_its_sizes_in_its_products() -> None:
    pytest.importorskip("transformers")
    model, inputs = hugging_face("gpt2")
    told = refused(model, halved(capture(model, kwargs=inputs), "ffn"))
    assert "pytorch_utils.py:" in told
    assert (
        "in forward: x = x.view(size_out) fails with RuntimeError: shape '[3, 13, 128]' is invalid for input of size 2496"
        in told
    )
