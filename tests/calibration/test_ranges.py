"""Value ranges: data unlike the example inputs get a note with both ranges, data like them none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from fxprune import Context, Program, capture, parse_pipeline
from fxprune.calibration import check_calibration


def taking(example: Tensor) -> Program:
    shapes = {"input": {0: Dim.AUTO}}
    return capture(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)), (example,), {}, shapes)


def values(low: float, high: float, rows: int = 8) -> Tensor:
    return torch.linspace(low, high, rows * 6).reshape(rows, 6)


def notes(example: Tensor, *data: Tensor) -> tuple[str, ...]:
    return check_calibration(taking(example), data).notes


def test_bytes_where_normalised_values_belong_are_told_with_both_ranges() -> None:
    assert notes(values(-3, 3), values(0, 100), values(100, 255)) == (
        (
            "calibrated on data unlike the model's example: input_1 lies between 0 and 255, in the example between -3 and 3;"
            " unless that is meant, scale them as the model's own preprocessing does"
        ),
    )
    (small,) = notes(values(0, 255), values(0, 1))
    assert "input_1 lies between 0 and 1, in the example between 0 and 255" in small


@pytest.mark.parametrize(
    ("example", "data"),
    [
        (values(-3, 3), values(0, 1)),
        (values(0, 1), values(-2.2, 2.7)),
        (torch.zeros(4, 6), values(0, 255)),  # a constant example says nothing
        (torch.ones(4, 6), torch.ones(4, 6)),
        (values(-3, 3), torch.cat([values(-3, 3), torch.full((1, 6), 25.0)])),  # an outlier
    ],
)
def test_usual_differences_are_not_told(example: Tensor, data: Tensor) -> None:
    assert notes(example, data) == ()


def test_constant_data_are_told() -> None:
    assert notes(values(-3, 3), torch.zeros(2, 6), torch.zeros(3, 6)) == (
        (
            "calibrated on data in which input_1 is 0 everywhere (in the model's example it lies between -3 and 3):"
            " nothing can be learned from it"
        ),
    )


def test_the_first_pass_that_uses_data_has_the_notes_as_remarks() -> None:
    program = taking(values(-3, 3))
    steps = parse_pipeline("fold, ffn(ratio=0.5, score='activation'), ffn(ratio=0.5, score='activation')")
    result = steps.run(program, Context(data=[values(0, 255)]))
    assert [len(step.remarks) for step in result.steps] == [0, 1, 0]
    assert "between 0 and 255" in str(result)
