"""Files of islands: each captured part of a model by itself, beside model.onnx, which holds them side by side."""

from pathlib import Path

from fxprune.export import export_onnx, save_pt2
from fxprune.ir import Program
from fxprune.rewrite.islands import island_program
from fxprune.runtimes import Settings

_FOLDER = "islands"


def write_islands(program: Program, draft: Path, settings: Settings) -> None:
    """Write islands/PATH.onnx and .pt2 for each island of a program; nothing where it has none. ExportError as of `export_onnx`."""
    if program.islands is None:
        return
    folder = draft / _FOLDER
    folder.mkdir()
    for path in program.islands.parts:
        part = island_program(program, path)
        export_onnx(part, folder / f"{path}.onnx", settings=settings)
        save_pt2(part, folder / f"{path}.pt2")
