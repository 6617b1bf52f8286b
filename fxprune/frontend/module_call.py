"""Module calls for a capture: on clones of the inputs, and without a cache."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree


def clone_inputs(inputs: Any) -> Any:
    """Return copies of example inputs, for torch.export leaves marks on tensors."""
    return pytree.tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, inputs)


def uncached_kwargs(model: nn.Module, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return `use_cache=False` for a forward that takes it: a cache is no tensor, and a graph returns tensors only."""
    takes = inspect.signature(model.forward).parameters
    return {"use_cache": False} if "use_cache" in takes and "use_cache" not in kwargs else {}


@contextmanager
def without_cache(model: nn.Module, kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Turn off `config.use_cache` for models that read it there, unless the caller passes `use_cache`; restore it afterwards."""
    configs = {
        id(config): config for config in (getattr(module, "config", None) for module in model.modules())
    }
    caching: list[Any] = [config for config in configs.values() if getattr(config, "use_cache", None) is True]
    try:
        for config in caching if "use_cache" not in kwargs else []:
            config.use_cache = False
        yield
    finally:
        for config in caching:
            config.use_cache = True
