"""Delivery, as one step of another tool's workflow: prune a Program, and write a proven ONNX file with the figures of the proof."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fxprune.calibration import Calibration
from fxprune.cost.count import count_cost
from fxprune.errors import UsageError
from fxprune.export import Emitted, export_onnx
from fxprune.ir import Program
from fxprune.pipeline import Context, Pipeline, Result


@dataclass(frozen=True)
class Delivery:
    """The ONNX file, the file of its selection, and figures as plain data (see `deliver`)."""

    model: Path
    selection: Path
    figures: Mapping[str, Any]


def deliver(
    program: Program, steps: Pipeline, folder: Path, data: Calibration | None = None, opset: int | None = None
) -> Delivery:
    """Prune, prove, and write `model.onnx` and `selection.json` into a folder that exists; files of these names are replaced.

    Figures are parameters, bytes and operations (at the example inputs) before and after, and what was proved: the largest relative
    difference to the silenced original and its bar, how far pruning moved the outputs (None: they shrank), and the largest relative
    difference of ONNX Runtime to the program. Every refusal is an FxpruneError.
    """
    if data is not None and not steps.uses("data"):
        raise UsageError(f"no pass of {str(steps)!r} uses calibration data; leave the data out")
    result = steps.run(program, Context(data=data))
    emitted = export_onnx(result.program, folder / "model.onnx", overwrite=True, opset=opset)
    selection = folder / "selection.json"
    result.selection.save(selection, overwrite=True)
    return Delivery(emitted.path, selection, _figures(program, steps, result, emitted))


def summary(figures: Mapping[str, Any]) -> str:
    """Return the figures of a delivery as a sentence."""
    before, after = figures["before"], figures["after"]
    idle = "".join(f"; {note}" for note in figures["notes"])
    return (
        f"{before['parameters']:,} parameters became {after['parameters']:,}, and"
        f" {before['flops'] / 1e6:.2f} MFLOP {after['flops'] / 1e6:.2f}; pruned against {figures['against']}"
        f" {figures['relative']:.1e} over {figures['exact']} exact axes, ONNX Runtime against program"
        f" {figures['onnx']['relative']:.1e}{idle}"
    )


def _figures(program: Program, steps: Pipeline, result: Result, emitted: Emitted) -> dict[str, Any]:
    proof = result.proof.require().as_data()
    return {
        "pipeline": str(steps),
        "before": _cost(program),
        "after": _cost(result.program),
        **proof,
        **{name: len(proof[name]) for name in ("exact", "inexact", "refitted", "chosen")},
        "onnx": {
            "relative": emitted.relative,
            "points": [dict(point) for point in emitted.points],
            "opset": emitted.opset,
        },
        "notes": [
            f"{step.text} {remark}"
            for step in result.steps
            for remark in (step.note, *step.remarks)
            if remark
        ],
    }


def _cost(program: Program) -> dict[str, int]:
    found = count_cost(program)
    return {"parameters": found.parameters, "bytes": found.bytes, "flops": found.flops}
