"""The comparison with peers: what was removed is read off the weights, and judged against the original with zeros there."""

import copy

import pytest
import torch
from torch import nn

from fxprune import capture
from fxprune.analysis import Analysis, analyze
from fxprune.tools.benchmarks import peers


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 3))


INPUTS = {"input": torch.rand(2, 4)}


def analysis_of(model: nn.Module) -> Analysis:
    return analyze(capture(copy.deepcopy(model), (), INPUTS))


def without(model: nn.Module, rows: list[int], columns: list[int]) -> nn.Module:
    slim = copy.deepcopy(model)
    first, last = slim[0], slim[2]  # type: ignore[index]
    first.weight, first.bias = nn.Parameter(first.weight[rows]), nn.Parameter(first.bias[rows])
    last.weight = nn.Parameter(last.weight[:, columns])
    return slim


def test_a_hidden_width_that_is_cut_alike_is_right_and_otherwise_wrong() -> None:
    model = net()
    analysis = analysis_of(model)
    right = without(model, [0, 2, 5], [0, 2, 5])
    assert peers._judged(model, right, INPUTS, analysis) == (
        "right",
        f"{1 - (15 + 9 + 3) / 51:.0%} of the parameters removed",
    )
    wrong = without(model, [0, 2, 5], [0, 2, 4])
    assert peers._judged(model, wrong, INPUTS, analysis)[0] == "wrong"
    assert peers._judged(model, copy.deepcopy(model), INPUTS, analysis) == ("nothing removed", "")


@pytest.mark.parametrize("name", ["mlp-sigmoid", "weight-norm"])
def test_fxprune_is_right_on_a_net(name: str) -> None:
    """The weights of `weight-norm` are computed from others, which the slim module does not have."""
    assert peers._tried("fxprune", name)[0] == "right"


def test_an_error_is_one_line_of_the_table() -> None:
    assert peers._cell("error", "ValueError: a | b\nc") == "error: ValueError: a \\| b c"
