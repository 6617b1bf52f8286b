"""Agreement of a captured program with its module: values of floating outputs, shapes and types of all, and their number."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxprune import capture
from fxprune.errors import CaptureError
from fxprune.frontend.agreement import check_same

NAN = float("nan")


class Returns(nn.Module):
    """Returns what a function makes of the input."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def agree(captured: Callable[[Tensor], Any], model: Callable[[Tensor], Any]) -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    check_same(Returns(model), capture(Returns(captured), (x,)))


@pytest.mark.parametrize(
    ("captured", "model"),
    [
        (lambda x: x, lambda x: x * 1.009),
        (lambda x: (x, x * NAN), lambda x: (x, x * NAN)),
        (lambda x: (x, x.argmax(-1)), lambda x: (x, x.argmin(-1))),  # a tie may fall either way
        (lambda x: x, torch.rand_like),  # random: no evidence
    ],
)
def test_they_agree(captured: Callable[[Tensor], Any], model: Callable[[Tensor], Any]) -> None:
    agree(captured, model)


@pytest.mark.parametrize(
    ("captured", "model", "gap"),
    [
        (lambda x: x, lambda x: x * 1.02, "0.02"),
        (lambda x: (x, x), lambda x: (x, x * 1.02), "0.02"),
        (lambda x: x, lambda x: x * NAN, "inf"),
        (lambda x: (x, x * NAN), lambda x: (x, x), "inf"),
        (lambda x: (x, x), lambda x: (x,), "inf"),
        (lambda x: x, lambda x: x.double(), "inf"),
        (lambda x: (x, x.argmax(-1)), lambda x: (x, x.argmax(0, keepdim=True)), "inf"),
    ],
)
def test_they_differ(captured: Callable[[Tensor], Any], model: Callable[[Tensor], Any], gap: str) -> None:
    with pytest.raises(CaptureError, match=f"differs from the model by {gap} on the example inputs"):
        agree(captured, model)
