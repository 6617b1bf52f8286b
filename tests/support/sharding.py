"""Stand-in for Accelerate's FSDP2, which it offers on cards alone: torch's own `fully_shard` on processes of the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard


def shard_by(patch: pytest.MonkeyPatch) -> None:
    """Let Accelerate shard what it prepares, as it does with FSDP2: modules in place, and the optimizer's parameters with them."""

    def prepare(self: Accelerator, module: nn.Module, optimizer: torch.optim.Optimizer, *loaders: Any) -> Any:
        names = {parameter: name for name, parameter in module.named_parameters()}
        if not isinstance(module, FSDPModule):
            fully_shard(module, reshard_after_forward=True)
        new = dict(module.named_parameters())
        for group in optimizer.param_groups:
            group["params"] = [new[names[each]] for each in group["params"]]
        return module, optimizer, *map(self.prepare_data_loader, loaders)

    patch.setattr(Accelerator, "prepare", prepare)
    patch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    patch.setattr(Accelerator, "is_fsdp2", True)
