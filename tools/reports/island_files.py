"""Files of islands: each captured part of a model by itself, beside model.onnx, which holds them side by side."""

from pathlib import Path

from fxprune.errors import ExportError
from fxprune.export import export_onnx, save_pt2
from fxprune.ir import Program
from fxprune.rewrite.islands import island_program
from fxprune.runtimes import Settings

_FOLDER = "islands"


def write_islands(program: Program, draft: Path, settings: Settings) -> tuple[str, ...]:
    """Write islands/PATH.pt2 and .onnx for each island of a program; return notes on those that have no ONNX file."""
    if program.islands is None:
        return ()
    folder, notes = draft / _FOLDER, list[str]()
    folder.mkdir()
    for path in program.islands.parts:
        part = island_program(program, path)
        save_pt2(part, folder / f"{path}.pt2")
        try:
            export_onnx(part, folder / f"{path}.onnx", settings=settings)
        except ExportError as error:
            notes.append(f"no {_FOLDER}/{path}.onnx: {error}")
    return tuple(notes)
