"""State of a module during capture: whatever the capture changes in it is put back."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, fx, nn

_CONTAINERS = (dict, list, set)


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Put back the attributes of a model and its submodules afterwards, and the contents of containers among them.

    A model may cache in attributes what it computed (masks, tables, anchors); while torch.export runs it, these are fake tensors.
    """
    restore = remember(model)
    try:
        yield
    finally:
        restore()


def remember(model: nn.Module, but: Container[str] = ()) -> Callable[..., None]:
    """Return a function that puts back the attributes of a model and its submodules, and the contents of containers among them.

    Attributes of the names in `but` are left alone.
    """
    before = [
        (module, {name: _snapshot(value) for name, value in vars(module).items() if name not in but})
        for module in model.modules()
    ]

    def restore(*_: Any) -> None:
        for module, saved in before:
            for name in [name for name in vars(module) if name not in but and name not in saved]:
                del module.__dict__[name]
            module.__dict__.update({name: _restore(each[0], each) for name, each in saved.items()})

    return restore


@contextmanager
def fresh_at_each_call(model: nn.Module) -> Iterator[None]:
    """Let each call of a model find the plain attributes of it and its submodules as they are now: nothing of what a call caches is left.

    What belongs to nn.Module (parameters, buffers, hooks) is left alone, since torch.export replaces it during a call.
    """
    hook = model.register_forward_pre_hook(remember(model, vars(nn.Module()).keys()))
    try:
        yield
    finally:
        hook.remove()


def _snapshot(value: Any) -> Any:
    """Return the value with copies of what it contains, as (the value, its contents) for containers."""
    if isinstance(value, dict):
        return value, {key: _snapshot(each) for key, each in value.items()}
    if isinstance(value, list):
        return value, [_snapshot(each) for each in value]
    return (value, set(value)) if isinstance(value, set) else (value, None)


def _restore(value: Any, saved: tuple[Any, Any]) -> Any:
    """Give a container its contents back, in place, and return the value that was saved."""
    before, contents = saved
    if contents is None:
        return before
    found = {k: _restore(each[0], each) for k, each in contents.items()} if isinstance(before, dict) else None
    if found is not None:
        if list(before) != list(found) or any(before[k] is not each for k, each in found.items()):
            before.clear()
            before.update(found)
    elif isinstance(before, list):
        before[:] = [_restore(each[0], each) for each in contents]
    else:
        before.clear()
        before.update(contents)
    return before


def own_buffers(graph: fx.GraphModule) -> None:
    """Replace buffers by copies, for a graph may write into them (a cache, running statistics), and the caller's must not change."""
    copies: dict[int, Tensor] = {}
    for module in graph.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = copies.setdefault(id(buffer), buffer.detach().clone())
