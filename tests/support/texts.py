"""Tiny nets for before/after tests, and their graphs as torch.export gives them."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune import Program
from fxprune.ir import quiet
from fxprune.ir.torch_context import exporting


class Net(nn.Module):
    """A module of named parts (modules or parameters), whose forward is a function of the module and its inputs."""

    def __init__(self, forward: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.forward = MethodType(forward, self)


def mlp() -> nn.Module:
    """Two linears with 32 neurons between."""
    return Net(lambda net, x: net.down(net.up(x).relu()), up=nn.Linear(8, 32), down=nn.Linear(32, 8))


def residual(width: int) -> nn.Module:
    """A residual branch with twice as many neurons as the stream is wide."""
    return Net(
        lambda net, x: x + net.down(net.up(x).relu()),
        up=nn.Linear(width, 2 * width),
        down=nn.Linear(2 * width, width),
    )


def attention(heads: int) -> nn.Module:
    """Self-attention over a stream of width 8, with heads of 2 dims."""
    size = 2 * heads

    def split(value: Tensor) -> Any:
        return value.unflatten(-1, (heads, 2)).transpose(1, 2)

    def forward(net: Any, x: Tensor) -> Any:
        q, k, v = (split(part(x)) for part in (net.q, net.k, net.v))
        return net.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    parts = {name: nn.Linear(8, size, bias=False) for name in "qkv"}
    return Net(forward, **parts, out=nn.Linear(size, 8))


def exported(model: nn.Module, *args: Any, **kwargs: Any) -> Program:
    """The graph as torch.export gives it, before canonicalization."""
    with quiet(), exporting(model):
        module = torch.export.export(model, args, kwargs, strict=False).module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    return Program(fx.GraphModule(module, module.graph), args, kwargs)
