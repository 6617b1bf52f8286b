"""The page of other packages: numbers of every model, the reasons for what is offered on no axis, and what is not installed."""

from dataclasses import asdict

import torch
from torch import nn

from fxprune import capture
from fxprune.analysis import analyze
from fxprune.tools.benchmarks.packages_page import render_packages
from zoo import packages
from zoo.calls import Name, call
from zoo.check import Outcome
from zoo.offered import Refused, offered_share, refused_shares
from zoo.torchvision_operators import suppressed

OUTCOME = Outcome(
    "vit-pytorch/ViT",
    "ok",
    exact=3,
    relative=2e-7,
    change=0.5,
    parameters=200,
    slim=80,
    offered=0.9,
    refused=(
        Refused(0.08, "its rows | are outputs", "output", "net.py:7"),
        Refused(0.02, "too little", "", ""),
    ),
    order="same",
    onnx="agrees",
    onnx_relative=3e-6,
    onnx_shapes=1,
    seconds={"capture": 1.0, "check": 0.5, "onnx": 9.0},
)


def test_a_model_is_told_in_one_row_with_its_reasons() -> None:
    text = render_packages([asdict(OUTCOME)])
    row = (
        "| vit-pytorch/ViT | whole | 200 | 90.0% | 60% | 2.0e-07 | yes | 3.0e-06 | 1.5 "
        "| 8%: its rows \\| are outputs (`output`, net.py:7) |"
    )
    assert row in text.splitlines()
    assert "**1 of 1 captured models are right** (1 models of 1 packages)." in text
    assert (
        "In the median 90.0% of the parameters are offered, and halving all exact axes removes 60%." in text
    )
    assert "without an explanation: 0." in text


def test_wrong_values_and_missing_packages_are_told() -> None:
    wrong = {**asdict(OUTCOME), "name": "a/B", "status": "wrong", "reason": "cut to one index: off by 1"}
    absent = asdict(Outcome("c/D", "absent", "No package metadata was found for c"))
    text = render_packages([wrong, absent])
    assert "| yes | **wrong** |" in text
    assert "- a/B: cut to one index: off by 1" in text
    assert "| c/D | no |  |  |  |  |  |  |  | absent: No package metadata was found for c |" in text
    assert "**0 of 1 captured models are right** (1 models of 1 packages)." in text


def test_the_share_offered_and_the_reasons_for_the_rest_add_up() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 3)
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = self.two(self.one(x).relu()) * self.scale
            return made

    analysis = analyze(capture(Net(), (torch.rand(2, 4),)))
    # 24 + 6 + 18 on the hidden axis; the second bias and the scale are as wide as the output
    assert offered_share(analysis) == 48 / 54
    (refused,) = refused_shares(analysis)
    assert refused.share == 6 / 54
    assert "output" in refused.why


def test_calls_are_made_only_when_asked_for() -> None:
    made = call("torch.nn:Sequential", call("torch.nn:Linear", 3, 4), call("torch.nn:ReLU")).made()
    assert [type(part).__name__ for part in made] == ["Linear", "ReLU"]
    assert call("zoo.calls:call", [Name("torch.nn:Linear")]).made().path == [nn.Linear]
    assert call("no_such_package:Net").path == "no_such_package:Net"


def test_boxes_that_overlap_a_better_one_go() -> None:
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 1.5], [5, 5, 6, 6]])  # the first two share 3 of 4
    scores = torch.tensor([0.5, 0.9, 0.1])
    assert [suppressed(boxes, scores, most).tolist() for most in (0.7, 0.8)] == [[1, 2], [1, 0, 2]]


def test_the_zoo_has_forty_models_of_twenty_packages_or_more() -> None:
    assert len(packages.ROWS) >= 40
    assert len({row.package for row in packages.ROWS.values()}) >= 20
