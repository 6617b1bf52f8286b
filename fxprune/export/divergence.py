"""Divergence: run a module beside a program that came from it, and find the line of the module's own code where they diverge."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fxprune.frontend.agreement import module_outputs
from fxprune.ir import Program, describe_error, difference, source_line
from fxprune.ir.compare import every_value

_FOREIGN = (f"{Path(torch.__file__).parent}/", f"{Path(__file__).parents[1]}/", "<")

_FEW = 4
"""Number of shapes that a message names."""

_CLOSE = 1e-3
"""Relative difference beyond which values are others: more than the accumulated rounding."""


ByLine: TypeAlias = Mapping[str, Sequence[Tensor]]
"""The values of a program at each line of the code that it came from."""


def describe_divergence(model: nn.Module, program: Program) -> str:
    """Describe where a module diverges from a program: the innermost line that is not torch's, with both shapes; "" where unknown."""
    by_line: dict[str, list[Tensor]] = {}
    nodes = {node.name: node for node in program.graph.nodes}
    for name, value in every_value(program, program):
        if isinstance(value, Tensor):
            by_line.setdefault(source_line(nodes[name]).partition(" in ")[0], []).append(value)
    watch = _LineComparison(by_line)
    try:
        with watch:
            module_outputs(model, program)
    except Exception as error:  # noqa: BLE001 - any failure is the divergence to describe
        return _failed(error, by_line)
    return watch.shape or watch.value


def _failed(error: Exception, by_line: ByLine) -> str:
    frames = [(f, line) for f, line in _frames(error.__traceback__) if not _is_foreign(f)]
    if not frames:
        return describe_error(error)
    there = _values_at([_line(*frame) for frame in reversed(frames)], by_line)
    shapes = list(dict.fromkeys(map(_shape, there)))
    found = f"{', '.join(shapes[:_FEW])}{', …' * (len(shapes) > _FEW)}"
    program = f"; the program has {found} there" if shapes else ""
    return f"{_describe_line(*frames[-1])} fails with {describe_error(error)}{program}"


def _values_at(lines: Sequence[str], by_line: ByLine) -> Sequence[Tensor]:
    """Return the program's values at the innermost line that has any: torch records lines of `forward`, not of functions that it calls."""
    return next((by_line[line] for line in lines if line in by_line), ())


def _is_foreign(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_FOREIGN)


def _line(frame: FrameType, line: int) -> str:
    return f"{frame.f_code.co_filename}:{line}"


def _frames(trace: TracebackType | None) -> list[tuple[FrameType, int]]:
    found = []
    while trace:
        found.append((trace.tb_frame, trace.tb_lineno))
        trace = trace.tb_next
    return found


def _describe_line(frame: FrameType, line: int) -> str:
    code = linecache.getline(frame.f_code.co_filename, line).strip()
    return f"{_line(frame, line)} in {frame.f_code.co_name}: {code}"


def _shape(value: Tensor) -> str:
    return "×".join(map(str, value.shape)) or "a number"


class _LineComparison(TorchFunctionMode):
    """Comparison of each line's results with the program's; records the first line of another shape, and of other values.

    Only results with as many dims and elements as one of the program's are compared: a canonical graph lacks the others.
    """

    def __init__(self, by_line: ByLine) -> None:
        super().__init__()
        self.by_line, self.shape, self.value = by_line, "", ""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.shape and isinstance(result, Tensor):
            self._compare(result)
        return result

    def _compare(self, result: Tensor) -> None:
        frames = [frame for frame in _outwards(sys._getframe()) if not _is_foreign(frame)]
        there = _values_at([_line(frame, frame.f_lineno) for frame in frames], self.by_line)
        like = [each for each in there if each.dim() == result.dim() and each.numel() == result.numel()]
        if not like or any(difference([result], [each]) <= _CLOSE for each in like):
            return
        where = f"{_describe_line(frames[0], frames[0].f_lineno)} makes"
        if all(each.shape != result.shape for each in like):
            self.shape = f"{where} {_shape(result)}, where the program has {_shape(like[0])}"
        self.value = self.value or f"{where} other values of {_shape(result)} than the program"


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back
