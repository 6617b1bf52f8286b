"""ONNX Runtime check: it must agree with the pruned program wherever the unpruned original exports.

The pruned program is written by `fxprune.export_onnx`, which compares ONNX Runtime with the program at the example and, where sizes are
dynamic, at a second shape. Only where that fails does the original matter: it *exports* if plain `torch.onnx.export(dynamo=True)` of the
nn.Module writes a file that ONNX Runtime runs as the model does.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.errors import ExportError
from fxprune.export import export_onnx
from fxprune.export.agreement import BAR
from fxprune.export.onnx import plain_export
from fxprune.ir import Feeds, Program, feeds
from fxprune.runtimes import open_session
from fxprune.runtimes.onnxruntime import run_session
from fxprune.tools.inputs.loaded import Loaded
from zoo.compare import copied, difference, double, doubled, outputs

AGREES, NO_EXPORT, DIFFERS_TOO, ROUNDS, FAILS = (
    "agrees",
    "the original does not export",
    "ONNX Runtime differs on the original too",
    "float32 rounds more",
    "fails",
)


@dataclass(frozen=True)
class Agreement:
    """Result for a pruned program: one of the five words, the reason, the largest relative difference, the number of shapes compared."""

    said: str
    reason: str = ""
    relative: float = 0.0
    shapes: int = 0


def agreement(model: nn.Module, original: Program, slim: Program) -> Agreement:
    """Write and compare the pruned program; the original is exported only where that fails, to find the cause."""
    with tempfile.TemporaryDirectory() as folder:
        draft, plain = Path(folder) / "slim.onnx", Path(folder) / "original.onnx"
        try:
            made = export_onnx(slim, draft)
        except ExportError as error:
            return _attribute_failure(model, original, slim, plain, error)
    return Agreement(AGREES, relative=made.relative, shapes=len(made.points))


def _attribute_failure(
    model: nn.Module, original: Program, slim: Program, file: Path, failure: ExportError
) -> Agreement:
    """The cause of a failure: torch where the original does not export, ONNX Runtime where it computes that wrongly too, else fxprune.

    A net that amplifies rounding, so that its own float32 is further than the bar from float64, can't be held to the bar.
    """
    if not file.exists() and (reason := _refused(model, original, file)):
        return Agreement(NO_EXPORT, reason)
    try:
        relative = _original_difference(model, original, file)
    except ExportError as error:
        return Agreement(DIFFERS_TOO, str(error))
    if not relative <= BAR:
        why = (
            "it draws random numbers"
            if _is_random(original)
            else f"its float32 is {_rounding(original):.1e} from float64"
        )
        reason = f"by {relative:.1e} ({why}); pruned: {failure}"
        return Agreement(DIFFERS_TOO, reason, relative)
    rounding = _rounding(slim) if str(failure).startswith("output ") else 0.0  # a difference, and no refusal
    if rounding > BAR:
        return Agreement(ROUNDS, f"{failure}; its own float32 is {rounding:.1e} from float64")
    return Agreement(FAILS, f"the original agrees to {relative:.1e}; pruned: {failure}")


def _refused(model: nn.Module, original: Program, file: Path) -> str:
    """Why torch can't export the original; empty where it can."""
    try:
        _plain(model, original, file)
    except ExportError as error:
        return str(error)
    return ""


def _plain(model: nn.Module, original: Program, file: Path) -> None:
    """Export the model as its owner would, with the dynamic sizes of its capture."""
    from torch.onnx._constants import ONNX_DEFAULT_OPSET

    loaded = Loaded("", model, (), copied(original.kwargs), original.dynamic_shapes)
    kwargs, dynamic = loaded.uncached()
    plain_export(model, file, (), kwargs, dynamic, ONNX_DEFAULT_OPSET)


def _original_difference(model: nn.Module, original: Program, file: Path) -> float:
    """The relative difference between ONNX Runtime's outputs of the original's file and the model's."""
    opened = open_session(file)
    found = [torch.as_tensor(value) for value in run_session(opened, _renamed(opened, feeds(original)))]
    wanted = _tensors(model, original.kwargs)
    if len(found) != len(wanted):
        raise ExportError(f"the original's file has {len(found)} outputs, the model {len(wanted)}")
    return difference(found, wanted)


def _is_random(program: Program) -> bool:
    """Whether two calls in a row differ."""
    torch.manual_seed(1)
    one, other = (pytree.tree_leaves(program(**program.kwargs)) for _ in range(2))
    return any(isinstance(a, Tensor) and not torch.equal(a, b) for a, b in zip(one, other, strict=True))


def _rounding(program: Program) -> float:
    """The relative difference between float32 and float64 on the same program; NaN where it does not run in float64."""
    try:
        return difference(outputs(program, program.kwargs), outputs(doubled(program), double(program.kwargs)))
    except RuntimeError:
        return float("nan")


def _renamed(opened: Any, given: Feeds) -> Feeds:
    """Inputs under the names of the original's file: capture renames what shadows a builtin, as `input` does."""
    names = [entry.name for entry in opened.get_inputs()]
    if set(names) <= set(given) or len(names) != len(given):
        return given
    return dict(zip(names, given.values(), strict=True))


def _tensors(model: nn.Module, kwargs: Mapping[str, Any]) -> list[Tensor]:
    plain, _ = Loaded("", model, (), kwargs).uncached()
    torch.manual_seed(1)
    with torch.no_grad():
        return [value for value in pytree.tree_leaves(model(**plain)) if isinstance(value, Tensor)]
