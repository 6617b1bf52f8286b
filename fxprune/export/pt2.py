"""Write a Program as a .pt2 file."""

from pathlib import Path

import torch

from fxprune.errors import ExportError
from fxprune.export.exported_program import to_exported_program
from fxprune.files import draft_file
from fxprune.ir import Program, innermost_reason, quiet


def save_pt2(program: Program, path: str | Path, overwrite: bool = False, classes: bool = False) -> Path:
    """Write the program as a .pt2 file, which `torch.export.load` and `fxprune.capture` read.

    Outputs are built-in containers with the same names (`Program.plain`), which torch alone can load; with `classes` they are of the
    model's own classes, whose module must be imported before the file is read.
    """
    with draft_file(path, overwrite) as draft:
        exported = to_exported_program(program if classes else program.plain())
        try:
            with quiet():
                torch.export.save(exported, draft)
        except Exception as error:
            raise ExportError(f"torch.export could not save {path}: {innermost_reason(error)}") from error
    return Path(path)
