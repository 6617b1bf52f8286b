"""Value ranges: how calibration data differ from a program's example inputs, such as bytes of images where normalised values belong."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fxprune.ir import Program

_TIMES = 10.0  # magnitudes apart by less are usual: example inputs are often drawn, or ones of a narrow kind


@dataclass(frozen=True)
class _Range:
    """Least and largest value, and the root of the mean square."""

    least: float
    most: float
    size: float

    @property
    def is_constant(self) -> bool:
        return self.least == self.most

    def __str__(self) -> str:
        return f"between {self.least:.3g} and {self.most:.3g}"


def compare_ranges(program: Program, batches: Sequence[Mapping[str, Tensor]]) -> tuple[str, ...]:
    """Return a note for each floating input whose data are constant, or at least ten times as large or small as the example's.

    Examples that are constant themselves (zeros, ones) say nothing about ranges.
    """
    pairs = zip(program.placeholders(), program.flat_inputs(), strict=True)
    examples = {node.name: value for node, value in pairs if _is_float(value) and node.users}
    return tuple(
        note
        for name, example in examples.items()
        if (values := [batch[name] for batch in batches if name in batch])
        and (note := _note(name, _range([example]), _range(values)))
    )


def _is_float(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 1


def _range(values: Sequence[Tensor]) -> _Range:
    whole = [value.detach().to(torch.float64) for value in values]
    count = sum(value.numel() for value in whole)
    squares = sum(float(value.square().sum()) for value in whole)
    least, most = (min(float(value.min()) for value in whole), max(float(value.max()) for value in whole))
    return _Range(least, most, math.sqrt(squares / count))


def _note(name: str, example: _Range, found: _Range) -> str:
    if example.is_constant:
        return ""
    if found.is_constant:
        return (
            f"calibrated on data in which {name} is {found.least:.3g} everywhere (in the model's example it lies {example}):"
            " nothing can be learned from it"
        )
    if example.size < _TIMES * found.size and found.size < _TIMES * example.size:
        return ""
    return (
        f"calibrated on data unlike the model's example: {name} lies {found}, in the example {example};"
        " unless that is meant, scale them as the model's own preprocessing does"
    )
