# mypy: disable-error-code="no-any-return"
"""Layers: bypassing what bears a module's name equals the user's module with that child deleted, at fixed and at dynamic sizes."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxprune import Program, analyze, bypass, capture
from fxprune.gates.insert import gate
from support.residual_nets import NETS, ORDERS


class Layer(nn.Module):
    """Attention with views by the sizes of the stream, and a feed-forward block."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))
        self.before, self.after = nn.LayerNorm(16), nn.LayerNorm(16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        h = self.before(x)
        q, k, v = (each(h).view(batch, length, 4, 4).transpose(1, 2) for each in (self.q, self.k, self.v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.o(mixed.transpose(1, 2).reshape(batch, length, 16))
        return x + self.down(torch.relu(self.up(self.after(x))))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers, self.head = nn.ModuleList(Layer() for _ in range(3)), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


@pytest.mark.parametrize("shapes", [None, True], ids=["fixed", "dynamic"])
def test_a_layer_that_goes_is_the_child_deleted(shapes: Any) -> None:
    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(3, 7, 16)
    program = capture(model, (x,), dynamic_shapes=shapes)
    layers = [region.name for region in analyze(program).regions if region.unit == "layer" and not region.why]
    assert layers == ["layers.0", "layers.1", "layers.2"]
    for place, name in enumerate(layers):
        slim, shorter = bypass(program, [name]), copy.deepcopy(model)
        del shorter.layers[place]
        torch.testing.assert_close(slim(x), shorter(x).detach())
        assert [own for own in slim.tensors() if own.startswith(f"{name}.")] == []


@pytest.mark.parametrize("shapes", [None, True], ids=["fixed", "dynamic"])
def test_a_part_of_a_module_does_not_bear_its_name(shapes: Any) -> None:
    program = capture(Net().eval(), (torch.randn(3, 7, 16),), dynamic_shapes=shapes)
    branches = [region.name for region in analyze(program).regions if region.unit == "branch"]
    assert branches == [f"layers.{i}.{kind}" for i in range(3) for kind in ("attention", "ffn")]


class Same(nn.Module):
    """The identity of however many streams."""

    def forward(self, *streams: Tensor) -> Any:
        return streams if len(streams) > 1 else streams[0]


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def without(model: nn.Module, paths: dict[str, nn.Module]) -> nn.Module:
    changed = copy.deepcopy(model)
    for path, other in paths.items():
        changed.set_submodule(path, other)
    return changed


@pytest.mark.parametrize("shapes", [None, True], ids=["fixed", "dynamic"])
@pytest.mark.parametrize("name", NETS)
def test_a_module_that_goes_is_its_identity(name: str, shapes: Any) -> None:
    torch.manual_seed(0)
    module, inputs = NETS[name]()
    model, paths = module.eval(), dict(module.named_modules())
    program = capture(model, inputs, dynamic_shapes=shapes)
    regions = [region for region in analyze(program).regions if not region.why]
    for region in regions:
        slim = bypass(program, [region.name])
        assert program.parameters().keys() - slim.parameters().keys() == set(region.parameters)
        if region.name in paths:
            with torch.no_grad():
                torch.testing.assert_close(slim(*inputs), without(model, {region.name: Same()})(*inputs))
    called = {region.name for region in regions} & paths.keys()
    assert len(called) == (0 if name in ("listed", "outside") else 4 if name == "u-net" else 3)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("gated", [False, True], ids=["bypassed", "gates closed"])
def test_summands_go_in_any_company(order: str, gated: bool) -> None:
    torch.manual_seed(0)
    module, inputs = NETS[f"{order}, one norm"]()
    model = module.eval()
    program = capture(model, inputs)
    branches = {
        r.name: ".".join(r.parameters[0].split(".")[:3])
        for r in analyze(program).regions
        if r.unit == "branch"
    }
    for seed in range(6):
        some = random.Random(seed).sample(sorted(branches), 1 + seed)
        ours = closed(program, some) if gated else bypass(program, some)
        wanted = without(model, {branches[name]: Nothing() for name in some})
        with torch.no_grad():
            torch.testing.assert_close(ours(*inputs), wanted(*inputs))


def closed(program: Program, names: list[str]) -> Program:
    """Return the program with gates at regions, all of them closed."""
    gated = gate(program, regions=names).program
    for name, value in gated.parameters().items():
        if name.startswith("gates."):
            value.data.zero_()
    return gated
