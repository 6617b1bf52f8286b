"""Tables that were computed once and stored: reports say which of the user's own tensors they stand for."""

import torch
from torch import Tensor, nn

from fxprune import Program, analyze, capture
from fxprune.ir.edit import describe_tensor

x = torch.ones(2, 4)


class Coded(nn.Module):
    """A sum over neurons is weighted by a table: codes times scales, both buffers."""

    codes: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 6)
        self.register_buffer("codes", torch.arange(1.0, 7.0))
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        weighted: Tensor = self.up(x).sigmoid() @ (self.codes * self.scale).unsqueeze(-1)
        return weighted + torch.arange(2.0).exp()[:, None]


class Shown(nn.Module):
    """The same product without a table: a weight of the user's."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        down: Tensor = self.down(self.up(x).sigmoid())
        return down


def _told(program: Program) -> list[str]:
    return [describe_tensor(node) for node in program.reads().values()]


def test_a_folded_table_names_the_buffers_that_it_was_computed_from() -> None:
    program = capture(Coded(), (x,))
    (axis,) = analyze(program).axes
    assert axis.readers == ("_folded_unsqueeze",)
    assert analyze(program).told_readers(axis) == ("_folded_unsqueeze (from codes, scale)",)
    told = {member.name: member.told for member in axis.members}
    assert told == {
        "up.weight": "up.weight",
        "up.bias": "up.bias",
        "_folded_unsqueeze": "_folded_unsqueeze (from codes, scale)",
    }


def test_a_table_of_constants_names_its_line() -> None:
    (constant,) = [text for text in _told(capture(Coded(), (x,))) if "constant" in text]
    name, _, line = constant.partition(" (a constant of ")
    assert name.startswith("_folded_")
    assert "torch.arange(2.0).exp()" in line


def test_weights_of_the_user_stand_for_themselves() -> None:
    program = capture(Shown(), (x,))
    assert _told(program) == ["up.weight", "up.bias", "down.weight", "down.bias"]
    (axis,) = analyze(program).axes
    assert analyze(program).told_readers(axis) == ("down.weight",)
