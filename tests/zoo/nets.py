"""The hand-written set of the zoo: NETS maps a name to a function that builds (module, example keyword inputs)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from zoo.nets_attention import ATTENTION
from zoo.nets_conv import CONVOLUTION
from zoo.nets_dense import DENSE
from zoo.nets_experts import EXPERT_MODULES
from zoo.nets_read_dims import READ_DIMS
from zoo.nets_routed import ROUTED
from zoo.nets_tricky import TRICKY

Built = tuple[nn.Module, dict[str, Any]]

NETS: dict[str, Callable[[], Built]] = {
    **DENSE,
    **TRICKY,
    **ATTENTION,
    **CONVOLUTION,
    **ROUTED,
    **READ_DIMS,
    **EXPERT_MODULES,
}


def build(name: str) -> Built:
    """A net of the set in evaluation mode, with the same weights and inputs each time."""
    torch.manual_seed(0)
    made, inputs = NETS[name]()
    made.train(mode=False)
    return made, inputs
