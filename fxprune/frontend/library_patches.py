"""Library patches: what a library of models changes in its own code while torch traces one of them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from fxprune.errors import CaptureError
from fxprune.ir import describe_error, quiet

_Traced = TypeVar("_Traced")


@dataclass(frozen=True)
class Library:
    """Library of models: which models hold a module of it, and the context in which torch can trace them."""

    name: str
    is_in: Callable[[nn.Module], bool]
    patches: Callable[[nn.Module], AbstractContextManager[None]]


def with_library_patches(
    model: nn.Module, trace: Callable[[], _Traced], accept: Callable[[_Traced], None]
) -> _Traced:
    """Trace a model as it is; where that raises CaptureError, trace it once more with the patches of its library.

    `accept` raises CaptureError where the traced program isn't the model; it is called on the unpatched model. The error raised when
    both attempts fail begins with the reason of the first.
    """
    try:
        return _accepted(trace(), accept)
    except CaptureError as error:
        library = next((library for library in LIBRARIES if library.is_in(model)), None)
        if library is None:
            raise
        first = error
    try:
        return _accepted(_traced_with(library, model, trace), accept)
    except CaptureError as error:
        second = str(error)
    if second == str(first):
        raise first
    raise CaptureError(f"{first}; with the patches of {library.name}: {second}") from first


def _traced_with(library: Library, model: nn.Module, trace: Callable[[], _Traced]) -> _Traced:
    with quiet(), ExitStack() as stack:
        try:
            stack.enter_context(library.patches(model))
        except Exception as error:
            raise CaptureError(f"they can't be applied: {describe_error(error)}") from error
        return trace()


def _accepted(traced: _Traced, accept: Callable[[_Traced], None]) -> _Traced:
    accept(traced)
    return traced


def _holds_transformers(model: nn.Module) -> bool:
    """Return whether a model holds one of transformers, in a version that has exporters; nothing is imported for other models."""
    modeling: Any = sys.modules.get("transformers.modeling_utils")
    if modeling is None or not any(isinstance(part, modeling.PreTrainedModel) for part in model.modules()):
        return False
    return importlib.util.find_spec("transformers.exporters") is not None


@contextmanager
def transformers_patches(model: nn.Module) -> Iterator[None]:
    """Apply all patches by which transformers itself makes its models traceable; experts in a loop run as one grouped product."""
    from transformers.exporters import exporter_dynamo, utils

    assert exporter_dynamo  # importing it registers the patches of "dynamo"
    with utils.apply_patches("dynamo"), modeling_patches(), _grouped_experts(model):
        yield


@contextmanager
def modeling_patches() -> Iterator[None]:
    """Apply the ONNX patches that replace code of transformers (masks built with vmap, which no exported graph can run).

    Those that replace torch's operators are left out, since they would spoil the graph.
    """
    from transformers.exporters import utils

    registered: Any = utils._PATCHES
    own = [
        (utils.import_dotted_path(place), attribute, made)
        for place, attribute, made in registered["onnx"]
        if place.startswith("transformers.")
    ]
    with utils.patch_attributes(own):
        yield


@contextmanager
def _grouped_experts(model: nn.Module) -> Iterator[None]:
    """Run experts as one grouped product where a model loops over those that were chosen, which no graph can hold."""
    parts: list[Any] = [m for m in model.modules() if getattr(m, "_can_set_experts_implementation", bool)()]
    looping = [part.config for part in parts if part.config._experts_implementation == "eager"]
    try:
        for config in looping:
            config._experts_implementation_internal = "grouped_mm"
        yield
    finally:
        for config in looping:
            config._experts_implementation_internal = "eager"


#: libraries whose models capture traces with patches where torch can't without; another library is one more row
LIBRARIES = (Library("transformers", _holds_transformers, transformers_patches),)
