"""Adapter of PyTorch: run .pt2 files."""

import builtins
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind
from torch.utils import _pytree as pytree

from fxprune.errors import ExportError
from fxprune.frontend.pt2_archive import missing_modules
from fxprune.ir import Feeds, innermost_reason, quiet
from fxprune.runtimes.base import Outputs, Prepared, Settings


def pytorch_version() -> str:
    """Return the version of PyTorch."""
    return str(torch.__version__)


def prepare_pytorch(path: Path, settings: Settings) -> Prepared:
    """Load a .pt2 file once, and return a function that runs it on inputs by name; ExportError, with the reason, where it can't."""
    exported = _load(path)
    module, spec, inputs = exported.module(), exported.call_spec.in_spec, _inputs(exported)

    def call(given: Feeds) -> Outputs:
        leaves = [_leaf(path, argument, given) for argument in inputs]
        args, kwargs = pytree.tree_unflatten(leaves, spec)
        try:
            with _threads(settings.threads), torch.no_grad():
                results = module(*args, **kwargs)
        except Exception as error:
            raise ExportError(f"torch can't run {path}: {innermost_reason(error)}") from error
        return [leaf.numpy() for leaf in pytree.tree_leaves(results) if isinstance(leaf, torch.Tensor)]

    return call


def _load(path: Path) -> ExportedProgram:
    try:
        with quiet():
            return torch.export.load(path)
    except Exception as error:
        raise ExportError(
            f"torch can't load {path}: {missing_modules(path) or innermost_reason(error)}"
        ) from error


def _inputs(exported: ExportedProgram) -> list[Any]:
    """Return the user's inputs in the order of the input tree: tensors by name, and constants among them (a flag, None)."""
    specs = exported.graph_signature.input_specs
    return [spec.arg for spec in specs if spec.kind is InputKind.USER_INPUT]


def _leaf(path: Path, argument: Any, given: Feeds) -> Any:
    if isinstance(argument, ConstantArgument):
        return argument.value
    name = argument.name
    if name not in given and hasattr(builtins, name):
        name = f"{name}_1"  # as FX, and so a Program, names what would shadow a builtin: `input`
    if name not in given:
        raise ExportError(f"{path} has an input {argument.name!r}, and given are only: {', '.join(given)}")
    value = given[name]
    # A tensor over memory that must not be written would be undefined behaviour, and torch warns of it.
    return torch.from_numpy(value if value.flags.writeable else value.copy())


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Set the number of torch's threads within the context; it applies to the whole process, so it is restored."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
