"""Agreement of a runtime with the program: each output by its shape, its type and its values."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fxprune.errors import ExportError
from fxprune.export.agreement import _outputs, compare
from fxprune.frontend.capture import capture
from fxprune.ir import Program

Change = Callable[[Any], Any]


class Two(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x.argmax(-1)


def two() -> Program:
    return capture(Two(), (torch.tensor([[1.0, 2.0], [4.0, 3.0]]),))


def relative(*changes: Change) -> float:
    program = two()
    found = zip(changes, _outputs(program, {}) or (), strict=False)
    return compare(program, lambda given: [change(value) for change, value in found], [{}])[0]


def test_the_difference_is_that_of_the_worst_output() -> None:
    assert relative(lambda x: x, lambda x: x) == 0.0
    assert relative(lambda x: x + np.float32(0.0001), lambda x: x) == pytest.approx(5e-5, rel=1e-2)


@pytest.mark.parametrize(
    ("first", "second", "sentence"),
    [
        (lambda x: x + 1, lambda x: x, r"output 'output_0' differs by 5.0e-01 .* the bar is 1e-04"),
        (lambda x: x, lambda x: x + 1, r"output 'output_1' differs by 1.0e\+00 "),
        (lambda x: x * np.nan, lambda x: x, r"output 'output_0' differs by inf "),
        (
            lambda x: x,
            lambda x: x[:1],
            r"output 'output_1' is int64\[1\] in ONNX Runtime, int64\[2\] here",
        ),
        (
            lambda x: x.astype(np.float64),
            lambda x: x,
            r"output 'output_0' is float64\[2, 2\] in ONNX Runtime, float32\[2, 2\] here",
        ),
    ],
)
def test_what_differs_is_named(first: Change, second: Change, sentence: str) -> None:
    with pytest.raises(ExportError, match=sentence):
        relative(first, second)


def test_an_output_that_is_missing_is_counted() -> None:
    with pytest.raises(ExportError, match="the ONNX file has 1 outputs, the program 2"):
        relative(lambda x: x)
