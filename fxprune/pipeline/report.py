"""Report of a pipeline's result as plain data, and the folder that a result is saved to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fxprune.cost.count import count_cost
from fxprune.errors import UsageError
from fxprune.export import export_onnx, save_pt2
from fxprune.files import write_text
from fxprune.ir import Program, Selection
from fxprune.verification import Proof

FILES = ("model.onnx", "model.pt2", "selection.json", "report.json")
"""Names of the files that a result is saved as."""


def describe_costs(original: Program, program: Program, proof: Proof) -> dict[str, Any]:
    """Return parameters, bytes and operations before and after, and the proof (`change` is None where the outputs shrank)."""
    return {
        "before": asdict(count_cost(original)),
        "after": asdict(count_cost(program)),
        "proof": proof.as_data(),
    }


def save_folder(
    program: Program, selection: Selection, report: Mapping[str, Any], folder: Path, overwrite: bool
) -> Path:
    """Write FILES to a folder, and return it; UsageError where one of them exists, unless `overwrite`."""
    there = [name for name in FILES if (folder / name).exists()]
    if there and not overwrite:
        raise UsageError(f"{folder} holds {', '.join(there)} already: give another folder, or overwrite=True")
    folder.mkdir(parents=True, exist_ok=True)
    export_onnx(program, folder / "model.onnx", overwrite=overwrite)
    save_pt2(program, folder / "model.pt2", overwrite=overwrite)
    selection.save(folder / "selection.json", overwrite=overwrite)
    text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
    write_text(folder / "report.json", text, overwrite=overwrite)
    return folder
