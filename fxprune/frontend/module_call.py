"""Module calls for a capture: on clones of the inputs, and without a cache."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.errors import CaptureError
from fxprune.ir import trees


def wrapped_module(model: nn.Module) -> nn.Module:
    """Return the module that a wrapper of torch's runs, or the module itself; CaptureError for TorchScript, which has no Python code."""
    if isinstance(model, torch.jit.ScriptModule):
        raise CaptureError(
            "this is a TorchScript module, of which no Python code is left to capture: give the nn.Module that it was made from"
        )
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return wrapped_module(model.module)
    dynamo: Any = sys.modules.get(
        "torch._dynamo.eval_frame"
    )  # there is no compiled module before it is imported
    return wrapped_module(model._orig_mod) if dynamo and isinstance(model, dynamo.OptimizedModule) else model


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


def drop_inputs(graph: fx.GraphModule, names: frozenset[str]) -> None:
    """Remove constant keyword inputs that capture itself added."""
    if not names:
        return
    info = trees(graph)
    kwargs_spec = info.in_spec.child(1)
    kept = [i for i, name in enumerate(kwargs_spec.context) if name not in names]
    keyed = {kwargs_spec.context[i]: kwargs_spec.child(i) for i in kept}
    tree = pytree.tree_unflatten([0] * info.in_spec.num_leaves, info.in_spec)
    spec = pytree.tree_structure((tree[0], {name: tree[1][name] for name in keyed}))
    for node in list(graph.graph.find_nodes(op="placeholder")):
        if node.name in names and not node.users:
            graph.graph.erase_node(node)
    kept_names = [name for name in info.orig_args if name not in names]
    graph.graph._codegen.pytree_info = info._replace(orig_args=kept_names, in_spec=spec)  # type: ignore[attr-defined]
    graph._in_spec = spec
    graph.recompile()


def drop_checks(graph: fx.GraphModule) -> None:
    """Remove the calls of modules from a graph: those of torch.export call its check of the inputs, and nothing else."""
    for node in list(graph.graph.find_nodes(op="call_module")):
        graph.graph.erase_node(node)
