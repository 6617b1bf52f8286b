"""Tiny nets for before/after tests, and their graphs as torch.export gives them."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import fx, nn

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


def exported(model: nn.Module, *args: Any, **kwargs: Any) -> Program:
    """The graph as torch.export gives it, before canonicalization."""
    with quiet(), exporting(model):
        module = torch.export.export(model, args, kwargs, strict=False).module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    return Program(fx.GraphModule(module, module.graph), args, kwargs)
