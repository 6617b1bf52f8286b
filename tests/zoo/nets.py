"""The hand-written set of the zoo: NETS maps a name to a function that builds (module, example keyword inputs)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from zoo.nets_attention import ATTENTION
from zoo.nets_conv import CONVOLUTION
from zoo.nets_dense import DENSE

Built = tuple[nn.Module, dict[str, Any]]

NETS: dict[str, Callable[[], Built]] = {**DENSE, **ATTENTION, **CONVOLUTION}


def build(name: str) -> Built:
    """A net of the set, with the same weights and inputs each time."""
    torch.manual_seed(0)
    return NETS[name]()
