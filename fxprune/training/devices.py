"""Device placement: move modules to another device for a while (to train them there), and move them back."""

from __future__ import annotations

import os
from collections.abc import Container, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.errors import UsageError

NOWHERE = "nothing can be computed on device {!r}: {}"


@contextmanager
def placed(modules: Iterable[nn.Module], device: str) -> Iterator[None]:
    """Move the modules to a device within the block, in place ("": leave them where they are); then move each back to its own.

    Parameters and buffers stay the same objects. Tensors that a graph creates itself (`arange(…, device=cpu)`) are created there, too.
    UsageError where there is no such device, for a device index other than 0, where several processes train, and for a module that lies on
    several devices.
    """
    wanted = check_device(device) if device else None
    with ExitStack() as back:
        for module in modules if wanted else ():
            assert wanted is not None
            home = _home(module)
            back.callback(_carry, module, home)
            _carry(module, wanted)
            for graph in (one for one in module.modules() if isinstance(one, fx.GraphModule)):
                back.callback(redirect, graph, wanted, home, redirect(graph, home, wanted))
        yield


def redirect(
    graph: fx.GraphModule, before: torch.device, after: torch.device, only: Container[fx.Node] | None = None
) -> set[fx.Node]:
    """Make a graph create on device `after` the tensors that it created on `before`; return the changed nodes (if `only`, among these)."""
    asked = [node for node in graph.graph.nodes if only is None or node in only]
    found = {node for node in asked if _redirected(node, before, after)}
    if found:
        graph.recompile()
    return found


def _redirected(node: fx.Node, before: torch.device, after: torch.device) -> bool:
    found: list[torch.device] = []

    def own(value: Any) -> Any:
        if not isinstance(value, torch.device) or value.type != before.type:
            return value
        found.append(value)
        return after

    args, kwargs = (fx.node.map_aggregate(value, own) for value in (node.args, node.kwargs))
    if found:
        node.args, node.kwargs = args, kwargs  # type: ignore[assignment]
    return bool(found)


def _carry(module: nn.Module, device: torch.device) -> None:
    """Move the parameters, buffers and gradients of a module; references to its tensors stay valid."""
    for tensor in _tensors(module):
        tensor.data = tensor.data.to(device)
        if tensor.grad is not None:
            tensor.grad = tensor.grad.to(device)


def _home(module: nn.Module) -> torch.device:
    found = sorted({tensor.device for tensor in _tensors(module)}, key=str)
    if len(found) != 1:
        named = ", ".join(map(str, found)) or "none"
        raise UsageError(
            f"a module that is moved must lie on one device, this one's tensors lie on: {named}; train it where it is (device '')"
        )
    return found[0]


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def check_device(device: str) -> torch.device:
    """Return the device; UsageError where this process can't compute on it."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        why = "several processes train, and each has a card of its own; put the model there before it is captured (device '')"
        raise UsageError(NOWHERE.format(device, why))
    try:
        wanted = torch.device(device)
        torch.empty(1, device=wanted).cpu()
    except (RuntimeError, AssertionError, ImportError, NotImplementedError) as error:
        raise UsageError(NOWHERE.format(device, str(error).strip().splitlines()[0])) from error
    if wanted.index:
        why = f"a process trains on its first card; CUDA_VISIBLE_DEVICES={wanted.index} makes that one the first (device 'cuda')"
        raise UsageError(NOWHERE.format(device, why))
    return wanted
