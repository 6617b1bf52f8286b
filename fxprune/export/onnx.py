"""Write a Program as an ONNX file, and check that the file computes the same.

A file is written in a draft folder beside its place, checked there, and only then moved.
"""

import contextlib
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from fxprune.errors import ExportError
from fxprune.export.agreement import DifferenceError, compare
from fxprune.export.culprit import failing_operator, first_difference
from fxprune.export.exported_program import for_onnx, lift, to_exported_program
from fxprune.export.file_sizes import fixed_in_file, name_sizes, strict_guards, symbols_kept
from fxprune.export.onnx_cleanup import drop_traces, name_outputs, reset_after_product, spread_rotary_caches
from fxprune.export.onnx_operators import quick_export, translations
from fxprune.export.onnx_rewrites import rewrite_for_onnx
from fxprune.export.random_values import fixed_draws
from fxprune.files import draft_file, file_bytes
from fxprune.ir import Point, Program, example_point, inference, innermost_reason, quiet
from fxprune.ir.example_inputs import other_point
from fxprune.ir.torch_context import exporting
from fxprune.runtimes import Settings, open_session
from fxprune.runtimes.base import DEFAULT
from fxprune.runtimes.onnxruntime import run_session
from fxprune.runtimes.peepholes import apply_peepholes

# From opset 23 on, attention is one operator, the fastest form on ONNX Runtime's CPU (by a tenth on MiniLM).
# Where its converter or its kernel fails, attention is written as several operators, in the exporter's default opset.
ATTENTION_OPSET = 23

aten = torch.ops.aten
_Form = Callable[[Program], ExportedProgram]


@dataclass(frozen=True, slots=True)
class Emitted:
    """ONNX file that was written and checked.

    `relative` is the largest difference to the Program over all outputs and `points`, over the scale of each output
    (`fxprune.ir.compare.scale_of`). `seconds` is the time of exporting and writing, `check_seconds` that of the checks. `fixed` says, by
    axis, which dynamic sizes of the program are numbers in the file, and why. `peepholes` says which patterns were written in another
    form for the runtime, and how often.
    """

    path: Path
    bytes: int
    relative: float
    points: tuple[Point, ...]
    opset: int
    seconds: float
    check_seconds: float
    fixed: Mapping[str, str] = field(default_factory=dict)
    peepholes: Mapping[str, int] = field(default_factory=dict)


def export_onnx(
    program: Program,
    path: str | Path,
    overwrite: bool = False,
    opset: int | None = None,
    settings: Settings = DEFAULT,
) -> Emitted:
    """Write the program as an ONNX file and check it: onnx.checker, then ONNX Runtime against the program.

    `opset` is for tools that read no newer one (None: the fastest). The file is in the forms that the runtime of the `settings` computes
    faster (`fxprune.runtimes.peepholes`; `Settings(peepholes=False)`: as torch writes it). Weights over 2 GB lie beside the file, in
    `<name>.data`.
    """
    *attempts, (last_form, last_opset) = _attempts(program, opset)
    with draft_file(path, overwrite) as draft:
        for form, version in attempts:
            with contextlib.suppress(ExportError):
                return replace(_emit(program, form, draft, version, settings), path=Path(path))
        try:
            return replace(_emit(program, last_form, draft, last_opset, settings), path=Path(path))
        except DifferenceError as error:
            at = first_difference(rewrite_for_onnx(program), last_opset)
            raise ExportError(f"{error}{at and f'; the first value that differs is that of {at}'}") from error


def plain_export(
    model: Any, path: Path, args: tuple[Any, ...], kwargs: Mapping[str, Any], dynamic: Any, opset: int
) -> float:
    """Export an untouched model as its owner would, for comparison, and return the seconds that it took."""
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
    """Export a small network and discard it, so that the next timing does not include loading the exporters.

    The network has symbolic sizes and the common operators, since torch prepares each operator on first use.
    """
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True)
    model = torch.nn.Sequential(torch.nn.Embedding(8, 8), layer, torch.nn.Linear(8, 4))
    ids, free = torch.zeros(3, 5, dtype=torch.long), {0: Dim.AUTO, 1: Dim.AUTO}
    with tempfile.TemporaryDirectory() as folder, quick_export():
        plain_export(model, Path(folder) / "warm.onnx", (ids,), {}, (free,), ATTENTION_OPSET)


def _attempts(program: Program, opset: int | None) -> list[tuple[_Form, int]]:
    """Return the ways to write the file, (form, opset), the fastest first; a file written by any of them is checked."""
    from torch.onnx._constants import ONNX_DEFAULT_OPSET

    if opset is not None:
        return [(lift, opset), (to_exported_program, opset)]

    attention = aten.scaled_dot_product_attention.default
    fused = any(node.target is attention for node in program.graph.nodes)
    opsets = (ATTENTION_OPSET, ONNX_DEFAULT_OPSET) if fused else (ONNX_DEFAULT_OPSET,)
    return [*((lift, opset) for opset in opsets), (to_exported_program, ONNX_DEFAULT_OPSET)]


def _emit(program: Program, form: _Form, draft: Path, opset: int, settings: Settings) -> Emitted:
    for stale in draft.parent.iterdir():
        stale.unlink()
    start = time.perf_counter()
    peepholes = _write(program, form, draft, opset, settings)
    written = time.perf_counter()
    relative, compared, fixed = _check(program, draft)
    seconds = written - start, time.perf_counter() - written
    return Emitted(draft, file_bytes(draft), relative, compared, opset, *seconds, fixed, peepholes)


def _write(program: Program, form: _Form, draft: Path, opset: int, settings: Settings) -> dict[str, int]:
    """Write the file, and return the patterns that were written in another form for the runtime."""
    import onnx

    strict = strict_guards(program)
    try:
        with quiet(), inference(), symbols_kept(program), quick_export():
            made = torch.onnx.export(
                for_onnx(form(rewrite_for_onnx(program))),
                dynamo=True,
                verbose=False,
                opset_version=opset,
                input_names=program.input_names(),
                custom_translation_table=translations(),
            )
            assert made is not None
            name_outputs(made.model, program.output_names())
            name_sizes(program, made, strict)
            drop_traces(made.model)
            spread_rotary_caches(made.model)
            reset_after_product(made.model)
            peepholes = apply_peepholes(made.model, settings)
            made.save(draft, external_data=False)
        onnx.checker.check_model(str(draft))
        return peepholes
    except Exception as error:
        at = failing_operator(error)
        place = f", at {at}" if at else ""
        raise ExportError(
            f"torch.onnx could not export the program: {innermost_reason(error)}{place}"
        ) from error


def _check(program: Program, draft: Path) -> tuple[float, tuple[Point, ...], dict[str, str]]:
    """Return the largest difference, the points compared, and the sizes that are numbers in the file."""
    with fixed_draws(program, draft) as (file, draws):
        opened = open_session(file)
        fixed = fixed_in_file(program, {entry.name: entry.shape for entry in opened.get_inputs()})
        points = _points(program, fixed)
        found = compare(program, lambda given: run_session(opened, given), points, draws=draws)
        return *found, fixed


def _points(program: Program, fixed: Collection[str]) -> list[Point]:
    """Return the point of the examples, then one at which the axes that are dynamic in the file have other sizes, as guards allow."""
    here = example_point(program)
    larger = {axis: size + 2 if axis in {"batch", "length"} else size * 2 for axis, size in here.items()}
    there = other_point(program, larger, fixed)
    return [here] if there == here else [here, there]
