"""Devices: modules are moved to another one for a while (to be trained there), and come back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn

from fxprune.errors import UsageError


@contextmanager
def placed(modules: Iterable[nn.Module], device: str) -> Iterator[None]:
    """Within the block the modules lie on a device ("": where they are), in place; then each is back on its own.

    What a graph makes itself (`arange(…, device=cpu)`) is made there, too. UsageError where there is no such device, or for a module that
    lies on several.
    """
    homes = {module: _home(module) for module in modules} if device else {}
    if homes:
        _check(device)
    try:
        for module in homes:
            move(module, device)
        yield
    finally:
        for module, home in homes.items():
            move(module, home)


def move(module: nn.Module, device: torch.device | str) -> None:
    """Move a module, in place, and what its graphs make."""
    before = {tensor.device for tensor in _tensors(module)}
    module.to(device)
    for graph in (one for one in module.modules() if isinstance(one, fx.GraphModule)):
        changed = [_redirect(node, before, torch.device(device)) for node in graph.graph.nodes]
        if any(changed):
            graph.recompile()


def _redirect(node: fx.Node, before: set[torch.device], device: torch.device) -> bool:
    """Whether a node named a device that the module lay on; it names the new one then."""
    found: list[torch.device] = []

    def own(value: Any) -> Any:
        if not isinstance(value, torch.device) or value.type not in {one.type for one in before}:
            return value
        found.append(value)
        return device

    args, kwargs = (fx.node.map_aggregate(value, own) for value in (node.args, node.kwargs))
    if found:
        node.args, node.kwargs = args, kwargs  # type: ignore[assignment]
    return bool(found)


def _home(module: nn.Module) -> torch.device:
    found = sorted({tensor.device for tensor in _tensors(module)}, key=str)
    if len(found) != 1:
        named = ", ".join(map(str, found)) or "none"
        raise UsageError(
            f"a module that is moved must lie on one device, this one's tensors lie on: {named}; train it where it is (device '')"
        )
    return found[0]


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


def _check(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).strip().splitlines()[0]
        raise UsageError(f"nothing can be put on device {device!r}: {first}") from error
