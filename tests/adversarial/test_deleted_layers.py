# mypy: disable-error-code="no-any-return"
"""Layers: bypassing what bears a module's name equals the user's module with that child deleted, at fixed and at dynamic sizes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxprune import analyze, bypass, capture


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
        slim, without = bypass(program, [name]), copy.deepcopy(model)
        del without.layers[place]
        torch.testing.assert_close(slim(x), without(x).detach())
        assert [own for own in slim.tensors() if own.startswith(f"{name}.")] == []


@pytest.mark.parametrize("shapes", [None, True], ids=["fixed", "dynamic"])
def test_a_part_of_a_module_does_not_bear_its_name(shapes: Any) -> None:
    program = capture(Net().eval(), (torch.randn(3, 7, 16),), dynamic_shapes=shapes)
    branches = [region.name for region in analyze(program).regions if region.unit == "branch"]
    assert branches == [f"layers.{i}.{kind}" for i in range(3) for kind in ("attention", "ffn")]
