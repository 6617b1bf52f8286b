"""Input and output constraints: which inputs and outputs of a captured program may shrink, or go."""

from __future__ import annotations

from collections.abc import Collection

from fxprune.errors import CaptureError
from fxprune.ir import Program
from fxprune.rewrite.shared_tables import decouple_tables


def free_dims(
    program: Program, inputs: Collection[str] = (), outputs: Collection[str] = (), spare: Collection[str] = ()
) -> Program:
    """Return a captured program whose inputs and outputs of these names may shrink, and, if spare, go with the layer that they belong to.

    CaptureError where the program has no input or output of a name.
    """
    _check_known("input", inputs, program.input_names())
    _check_known("output", outputs, program.output_names())
    _check_known("input or output", spare, (*program.input_names(), *program.output_names()))
    if not (inputs or outputs or spare):
        return program
    freed = program.replace(
        free_inputs=program.free_inputs | set(inputs),
        free_outputs=program.free_outputs | set(outputs),
        spare=program.spare | set(spare),
    )
    return decouple_tables(freed) if inputs or outputs else freed


def _check_known(what: str, asked: Collection[str], names: tuple[str, ...]) -> None:
    unknown = set(asked) - set(names)
    if unknown:
        raise CaptureError(f"no {what} {min(unknown)!r} to free; {what}s: {', '.join(names)}")
