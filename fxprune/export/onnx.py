"""Write a Program as an ONNX file or as a .pt2 file, and prove that the ONNX file computes the same.

A file is written in a draft folder beside its place, checked there, and only then moved.
"""

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from fxprune.dims.masks import like
from fxprune.errors import ExportError
from fxprune.export.exported_program import (
    for_onnx,
    inference,
    innermost_reason,
    lift,
    quiet,
    to_exported_program,
)
from fxprune.export.onnx_cleanup import drop_traces, spread_rotary_caches
from fxprune.frontend.capture import exporting
from fxprune.ir.example_inputs import Point, call_inputs, dynamic_axis_names, example_point, feeds
from fxprune.ir.program import Program, copy_graph, rebuild
from fxprune.runtimes import onnxruntime as runtime

# Largest relative difference between ONNX Runtime and the Program, by the output's precision.
BARS = {np.dtype(np.float16): 1e-2}
BAR = 1e-4

# A program whose outputs move further where its weights move by a rounding error is held to that, times this: no runtime can do better.
ROUNDINGS = 4.0

# From opset 23 on, attention is one operator, the fastest form on ONNX Runtime's CPU (by a tenth on MiniLM).
# Where its converter or its kernel falls short, the exporter's own opset writes attention out.
ATTENTION_OPSET = 23

aten = torch.ops.aten
_Outputs = list[np.ndarray[Any, Any]]
_Form = Callable[[Program], ExportedProgram]


@dataclass(frozen=True, slots=True)
class Emitted:
    """An ONNX file that was written and checked.

    `relative` is the largest difference to the Program over all outputs and `points`, relative to the largest
    value of each. `seconds` is what exporting and writing took, `check_seconds` what the checks took.
    """

    path: Path
    bytes: int
    relative: float
    points: tuple[Point, ...]
    opset: int
    seconds: float
    check_seconds: float


def export(program: Program, path: str | Path, overwrite: bool = False, opset: int | None = None) -> Emitted:
    """Write the program as an ONNX file and check it: onnx.checker, then ONNX Runtime against the program.

    `opset` is for tools that read no newer one (None: what is fastest). Weights over 2 GB lie beside the file, in `<name>.data`.
    """
    *attempts, (last_form, last_opset) = _attempts(program, opset)
    with draft_file(path, overwrite) as draft:
        for form, version in attempts:
            with contextlib.suppress(ExportError):
                return replace(_emit(program, form, draft, version), path=Path(path))
        return replace(_emit(program, last_form, draft, last_opset), path=Path(path))


def save(program: Program, path: str | Path, overwrite: bool = False) -> Path:
    """Write the program as a .pt2 file, which `torch.export.load` and `fxprune.capture` read."""
    with draft_file(path, overwrite) as draft:
        exported = to_exported_program(program)
        try:
            with quiet():
                torch.export.save(exported, draft)
        except Exception as error:
            raise ExportError(f"torch.export could not save {path}: {innermost_reason(error)}") from error
    return Path(path)


def plain_export(
    model: Any, path: Path, args: tuple[Any, ...], kwargs: Mapping[str, Any], dynamic: Any, opset: int
) -> float:
    """Export an untouched model as its owner would, for comparison, and give the seconds that it took."""
    start = time.perf_counter()
    with quiet(), exporting(model) if isinstance(model, torch.nn.Module) else inference():
        try:
            torch.onnx.export(
                model,
                args,
                path,
                kwargs=dict(kwargs),
                dynamic_shapes=dynamic,
                dynamo=True,
                verbose=False,
                opset_version=opset,
                external_data=False,
            )
        except Exception as error:
            raise ExportError(
                f"torch.onnx could not export the original: {innermost_reason(error)}"
            ) from error
    return time.perf_counter() - start


def warm_up() -> None:
    """Export a small network and throw it away, so that what is timed next does not pay for loading the exporters.

    It has symbolic sizes and the common operators, for torch prepares each operator when it meets it first.
    """
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True)
    model = torch.nn.Sequential(torch.nn.Embedding(8, 8), layer, torch.nn.Linear(8, 4))
    ids, free = torch.zeros(3, 5, dtype=torch.long), {0: Dim.AUTO, 1: Dim.AUTO}
    with tempfile.TemporaryDirectory() as folder:
        plain_export(model, Path(folder) / "warm.onnx", (ids,), {}, (free,), ATTENTION_OPSET)


def file_bytes(path: Path) -> int:
    """The size of a model's file with its weights, where they lie beside it."""
    weights = path.with_name(f"{path.name}.data")
    return path.stat().st_size + (weights.stat().st_size if weights.exists() else 0)


@contextlib.contextmanager
def draft_file(path: str | Path, overwrite: bool) -> Iterator[Path]:
    """Give a name to write to, in a folder beside the target; move what lies there into place at the end."""
    target = Path(path)
    if target.exists() and not overwrite:
        raise ExportError(f"{target} exists; give another name, or allow overwriting")
    if not target.parent.is_dir():
        raise ExportError(f"the folder {target.parent} does not exist; make it first")
    with tempfile.TemporaryDirectory(prefix=".fxprune-", dir=target.parent) as folder:
        yield Path(folder) / target.name
        (target.parent / f"{target.name}.data").unlink(missing_ok=True)
        # The model comes last: weights without a model are harmless, a model without its weights is not.
        for file in sorted(Path(folder).iterdir(), key=lambda file: file.name == target.name):
            file.replace(target.parent / file.name)


def _attempts(program: Program, opset: int | None) -> list[tuple[_Form, int]]:
    """Ways to write the file, the fastest first; what is written by any of them is proven."""
    from torch.onnx._constants import ONNX_DEFAULT_OPSET

    if opset is not None:
        return [(lift, opset), (to_exported_program, opset)]

    attention = aten.scaled_dot_product_attention.default
    fused = any(node.target is attention for node in program.graph.graph.nodes)
    opsets = (ATTENTION_OPSET, ONNX_DEFAULT_OPSET) if fused else (ONNX_DEFAULT_OPSET,)
    return [*((lift, opset) for opset in opsets), (to_exported_program, ONNX_DEFAULT_OPSET)]


def _emit(program: Program, form: _Form, draft: Path, opset: int) -> Emitted:
    for stale in draft.parent.iterdir():
        stale.unlink()
    start = time.perf_counter()
    _write(program, form, draft, opset)
    written = time.perf_counter()
    relative, points = _compare(program, draft)
    return Emitted(
        draft, file_bytes(draft), relative, points, opset, written - start, time.perf_counter() - written
    )


def _write(program: Program, form: _Form, draft: Path, opset: int) -> None:
    import onnx

    try:
        with quiet(), inference():
            made = torch.onnx.export(
                for_onnx(form(program)),
                dynamo=True,
                verbose=False,
                opset_version=opset,
                input_names=program.input_names(),
                output_names=program.output_names(),
            )
            assert made is not None
            made.rename_axes(_symbols(program, made.model.graph.inputs))
            drop_traces(made.model)
            spread_rotary_caches(made.model)
            made.save(draft, external_data=False)
        onnx.checker.check_model(str(draft))
    except Exception as error:
        raise ExportError(f"torch.onnx could not export the program: {innermost_reason(error)}") from error


def _symbols(program: Program, graph_inputs: Sequence[Any]) -> dict[Any, str]:
    """Map torch's symbols (s72) to axis names (batch); the first place where a symbol occurs names it."""
    names = dynamic_axis_names(program)
    found: dict[Any, str] = {}
    for value in graph_inputs:
        for dim, axis in names.get(value.name, {}).items():
            symbol = getattr(value.shape[dim], "value", None)
            if isinstance(symbol, str):
                found.setdefault(symbol, axis)
    return found


def _compare(program: Program, draft: Path) -> tuple[float, tuple[Point, ...]]:
    """Give the largest relative difference at the examples and, where axes are dynamic, at a second point."""
    opened = runtime.open_session(draft)
    points = _points(program, set(runtime.file_axes(draft)))
    return compare(program, lambda given: runtime.run_session(opened, given), points)


def compare(
    program: Program, run: runtime.Prepared, points: Sequence[Point], title: str = "ONNX Runtime"
) -> tuple[float, tuple[Point, ...]]:
    """The largest relative difference of a runtime's outputs from the program's, and the points at which the program itself can run.

    ExportError where a difference is beyond its bar.
    """
    worst, compared = 0.0, []
    for point in points:
        expected = _outputs(program, point)
        if expected is None:
            continue
        worst = max(worst, _difference(program, expected, run(feeds(program, point)), (point, title)))
        compared.append(point)
    return worst, tuple(compared)


def _points(program: Program, axes: set[str]) -> list[Point]:
    """The examples, then every axis that the file left dynamic larger."""
    here = example_point(program)
    larger = {axis: size + 2 if axis in {"batch", "length"} else size * 2 for axis, size in here.items()}
    there = {axis: larger[axis] if axis in axes else size for axis, size in here.items()}
    return [here] if there == here else [here, there]


def _outputs(program: Program, point: Point) -> _Outputs | None:
    """The program's own outputs; None where its limits forbid the point (a table of positions ends)."""
    args, kwargs = call_inputs(program, point)
    try:
        with inference():
            leaves = pytree.tree_leaves(program(*args, **kwargs))
    except RuntimeError:
        return None
    return [leaf.detach().cpu().numpy() for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _difference(
    program: Program, expected: _Outputs, found: _Outputs, where: tuple[Point, str] = ({}, "ONNX Runtime")
) -> float:
    names, (point, title) = program.output_names(), where
    if len(expected) != len(found):
        raise ExportError(f"the ONNX file has {len(found)} outputs, the program {len(expected)}: {names}")
    worst = 0.0
    for name, ours, theirs in zip(names, expected, found, strict=True):
        if ours.shape != theirs.shape:
            raise ExportError(f"output {name!r} has the shape {theirs.shape} in {title}, {ours.shape} here")
        difference, bar = _relative(ours, theirs), BARS.get(ours.dtype, BAR)
        if difference > bar:
            bar = max(bar, ROUNDINGS * _rounding(program, expected, point))
        if not difference <= bar:
            raise ExportError(
                f"output {name!r} differs by {difference:.1e} between {title} and the program"
                f" at {dict(point)}; the bar is {bar:.0e}"
            )
        worst = max(worst, difference)
    return worst


def _rounding(program: Program, expected: _Outputs, point: Point) -> float:
    """How far the outputs move where every weight moves by a rounding step, up or down by a coin."""
    random = torch.Generator().manual_seed(0)
    moved = {name: _rounded(value, random) for name, value in program.tensors().items()}
    again = _outputs(rebuild(program, copy_graph(program), moved), point) or expected
    return max(map(_relative, expected, again), default=0.0)


def _rounded(value: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    if not value.is_floating_point():
        return value
    coin = torch.randint(0, 2, value.shape, generator=random).to(value.device, value.dtype) * 2 - 1
    return like(value, value.detach() * (1 + coin * torch.finfo(value.dtype).eps))


def _relative(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> float:
    """The largest difference over the largest value; equal infinities and NaN agree."""
    if ours.size == 0:
        return 0.0
    left, right = ours.astype(np.float64), theirs.astype(np.float64)
    same = (left == right) | (np.isnan(left) & np.isnan(right))
    finite = np.abs(left[np.isfinite(left)])
    scale = max(float(finite.max(initial=0.0)), float(np.finfo(np.float32).tiny))
    with np.errstate(invalid="ignore"):
        gaps = np.where(same, 0.0, np.abs(left - right))
    return float(gaps.max()) / scale
