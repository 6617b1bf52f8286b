"""Sharded tensors: parameters that FSDP2 splits over processes (PyTorch FSDP, arXiv 2304.11277), as whole tensors and back.

Every process must call these functions for the same tensors in the same order: shards are exchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.errors import UsageError

SHARDING = frozenset({"FSDP", "DEEPSPEED", "MEGATRON_LM"})
"""Accelerate's names of the strategies in which no process has all parameters."""

_UNFIT = ("auto_wrap_policy", "activation_checkpointing", "cpu_ram_efficient_loading")
"""Settings of FSDP2 that work on the modules inside of a model: a graph reads parameters without calling these."""


def gathered(value: Tensor) -> Tensor:
    """Return all shards of a tensor together; a tensor that is not sharded is returned as it is."""
    return value.full_tensor() if is_sharded((value,)) else value  # type: ignore[attr-defined]


def all_gathered(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return named tensors with all shards of each together."""
    return {name: gathered(value) for name, value in weights.items()}


def is_sharded(tensors: Iterable[Tensor]) -> bool:
    """Return whether a tensor among these is sharded."""
    if not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return any(isinstance(value, DTensor) for value in tensors)


def put(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy weights into a module; of whole ones, each process copies its own shards."""
    own = module.state_dict()
    with torch.no_grad():
        for name, value in weights.items():
            own[name].copy_(_shards_like(value, own[name]))


def _shards_like(value: Tensor, own: Any) -> Tensor:
    if not is_sharded((own,)) or is_sharded((value,)):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements)


def is_sharding(accelerator: Any) -> bool:
    """Return whether Accelerate's strategy shards parameters."""
    return accelerator.distributed_type.value in SHARDING


def check_sharding(accelerator: Any, keeps: bool) -> None:
    """Raise UsageError where Accelerate shards parameters in a way that can't be undone, or in a run that `keeps` checkpoints."""
    if not is_sharding(accelerator):
        return
    strategy = accelerator.distributed_type.value
    if strategy != "FSDP" or not getattr(accelerator, "is_fsdp2", False):
        raise UsageError(
            f"parameters that {strategy} shards can't be read back whole; train by FSDP2 (--fsdp_version 2) or DistributedDataParallel"
        )
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    unfit = [name for name in _UNFIT if getattr(plugin, name, None)]
    if unfit:
        raise UsageError(
            f"FSDP2's {unfit[0]} works on modules, and a graph has none that are called; set --fsdp_auto_wrap_policy NO_WRAP,"
            " --fsdp_activation_checkpointing false and --fsdp_cpu_ram_efficient_loading false"
        )
    if keeps:
        raise UsageError(
            "checkpoints hold whole modules, and FSDP shards them; train without, or by DistributedDataParallel"
        )


def check_unsharded(tensors: Iterable[Tensor], what: str) -> None:
    """Raise UsageError where some of the tensors are sharded, for a training that needs them whole, as `what` says."""
    if is_sharded(tensors):
        raise UsageError(f"{what}, and FSDP shards them; train by DistributedDataParallel")
