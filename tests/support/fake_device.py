"""A second device without hardware: its tensors are wrappers of others on the CPU, which no operator mixes with plain ones.

Registered for the whole process (`torch.library` knows no end of it): import it in a process of its own.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils import backend_registration

NAME = "fake"

_COPIES = {"aten::_to_copy", "aten::copy_"}
"""Operators that take tensors of two devices."""

_INDEXES = {"aten::index.Tensor", "aten::index_put_", "aten::index_put"}
"""Operators that take indices on the CPU beside a tensor of any device, as CUDA's do."""

_WIDE: Counter[str] = Counter()
"""How often each operator got float64 on the device."""

_RAN: Counter[str] = Counter()
"""How often each operator ran on the device."""

backend_registration._setup_privateuseone_for_python_backend(NAME)


class FakeTensor(Tensor):
    """Tensor on the fake device."""

    held: Tensor

    def untyped_storage(self) -> torch.UntypedStorage:
        """Return the memory of what is wrapped."""
        return self.held.untyped_storage()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Save what is wrapped, for torch.load to wrap again."""
        return wrapped, (self.held,)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, op: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operator on what is wrapped."""
        return run(op, *args, **(kwargs or {}))


def wide_operators() -> int:
    """Return how many of them got float64."""
    return _WIDE.total()


def wrapped(held: Tensor) -> Tensor:
    """Return a tensor on the fake device for one on the CPU."""
    made: FakeTensor = Tensor._make_wrapper_subclass(
        FakeTensor,
        held.shape,
        strides=held.stride(),
        storage_offset=held.storage_offset(),
        dtype=held.dtype,
        device=torch.device(NAME, 0),
        requires_grad=held.requires_grad,
    )
    made.held = held
    return made


def operators() -> int:
    """Return how many operators ran on the device so far."""
    return _RAN.total()


def run(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Run an operator on what is wrapped; RuntimeError where it mixes devices."""

    def bare(value: Any) -> Any:
        if isinstance(value, FakeTensor):
            return value.held
        if isinstance(value, Tensor) and value.dim() and op.name() not in _COPIES | _INDEXES:
            raise RuntimeError(f"{op} got tensors on cpu and {NAME}, of sizes {tuple(value.shape)}")
        return torch.device("cpu") if isinstance(value, torch.device) else value

    _RAN[op.name()] += 1
    if any(
        isinstance(each, FakeTensor) and each.dtype == torch.float64
        for each in pytree.tree_leaves((args, kwargs))
    ):
        _WIDE[op.name()] += 1
    own_args, own_kwargs = pytree.tree_map(bare, (args, kwargs))
    found = op(*own_args, **own_kwargs)
    asked = kwargs.get("device")
    if asked is not None and torch.device(asked).type == "cpu":
        return found
    written = [
        (place, argument.name)
        for place, argument in enumerate(op._schema.arguments)
        if argument.alias_info and argument.alias_info.is_write
    ]
    if written and len(op._schema.returns) == 1:
        place, name = written[0]
        return args[place] if place < len(args) else kwargs[name]
    return pytree.tree_map(lambda value: wrapped(value) if isinstance(value, Tensor) else value, found)


_LIBRARY = torch.library.Library("_", "IMPL")
_LIBRARY.fallback(run, "PrivateUse1")
torch.serialization.add_safe_globals([wrapped])
