# mypy: disable-error-code="no-any-return"
# The result of calling a module is Any to the type checker.
"""Roles and meanings: experts have a matrix each; other units among which is chosen keep the role of their use, and are never chosen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxprune import Selection, analyze, capture, parse_pipeline, shrink, verify, zero_readers
from fxprune.analysis.sites import find_sites
from fxprune.ir import Program
from support.models import distance
from zoo.nets import build

INTO, UNITS = 6, 16


class Width(nn.Module):
    """A feed-forward width behind a function that chooses among its units, or weighs them."""

    def __init__(self, bend: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down, self.bend = nn.Linear(INTO, UNITS), nn.Linear(UNITS, 5), bend

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.bend(self.up(x)))


class Embeddings(nn.Module):
    """A mixture of vectors, of which each row of the input takes a share."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate, self.vectors = nn.Linear(INTO, UNITS), nn.Parameter(torch.randn(UNITS, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(x).softmax(-1) @ self.vectors


class Memories(nn.Module):
    """For each of three heads a mixture of vectors of its own: the stack (heads, 16, 5) is summed over the 16."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate, self.vectors = nn.Linear(INTO, UNITS), nn.Parameter(torch.randn(3, UNITS, 5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bu,hud->bhd", self.gate(x).softmax(-1), self.vectors).flatten(1)


class DenseMixture(nn.Module):
    """All of 16 experts run, and are weighed by a softmax."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate, self.experts = nn.Linear(INTO, UNITS), nn.Parameter(torch.randn(UNITS, INTO, 5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("be,bi,eio->bo", self.gate(x).softmax(-1), x, self.experts)


class SeenTwice(nn.Module):
    """The logits of a softmax are summed elsewhere, too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(INTO, UNITS), nn.Linear(UNITS, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.up(x)
        return self.down(logits.softmax(-1)) + logits.tanh().sum(-1, keepdim=True)


def largest(h: Tensor) -> Tensor:
    values, numbers = h.topk(3, dim=-1)
    return torch.zeros_like(h).scatter(-1, numbers, values)


def hard(h: Tensor) -> Tensor:
    return nn.functional.one_hot(h.argmax(-1), UNITS).to(h.dtype)


MADE: dict[str, Callable[[], nn.Module]] = {
    "softmax": lambda: Width(lambda h: h.softmax(-1)),
    "topk": lambda: Width(largest),
    "argmax": lambda: Width(hard),
    "relu": lambda: Width(torch.relu),
    "embeddings": Embeddings,
    "memories": Memories,
    "dense mixture": DenseMixture,
    "seen twice": SeenTwice,
}

#: (net, the role of the axis of 16, what its removal equals, the parameters that are zeroed)
CHOSEN = [
    ("softmax", "ffn", "never chosen", ()),
    ("topk", "ffn", "never chosen", ()),
    ("argmax", "ffn", "never chosen", ()),
    ("relu", "ffn", "zeroed", ("down.weight",)),
    ("embeddings", "ffn", "never chosen", ()),
    ("memories", "ffn", "never chosen", ()),
    ("dense mixture", "experts", "never chosen", ()),
    ("seen twice", "ffn", "never chosen and zeroed", ("up.bias", "up.weight")),
]


def program_of(name: str) -> Program:
    return capture(MADE[name]().eval(), (example(),))


def example() -> Tensor:
    return torch.randn(7, INTO, generator=torch.Generator().manual_seed(1))


def wide(program: Program) -> Any:
    return next(axis for axis in analyze(program).axes if axis.size == UNITS)


@pytest.mark.parametrize(("name", "role", "meaning", "readers"), CHOSEN, ids=[row[0] for row in CHOSEN])
def test_roles_and_meanings(name: str, role: str, meaning: str, readers: tuple[str, ...]) -> None:
    program = program_of(name)
    axis = wide(program)
    assert (axis.role, axis.exact, axis.meaning, axis.readers) == (role, True, meaning, readers)
    selection = Selection({axis.name: range(1, UNITS, 3)})
    slim, x = shrink(program, selection), example()
    assert distance(slim(x), zero_readers(program, selection)(x)) < 1e-5
    proof = verify(program, slim, selection)
    assert proof.chosen == ((axis.name,) if "never chosen" in meaning else ())
    assert (
        proof.against
        == {
            "zeroed": "zeroed original",
            "never chosen": "original with units never chosen",
            "never chosen and zeroed": "original with units never chosen",
        }[meaning]
    )


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("experts-top-two", [("experts", "experts", "never chosen")]),
        (
            "experts-limited-groups",
            [("experts", "experts", "never chosen"), ("experts.2", "experts", "never chosen")],
        ),
        ("experts-switch", [("experts", "experts", "never chosen")]),
        ("experts-scattered-logits", [("experts", "experts", "never chosen and zeroed")]),
        ("experts-twice-the-best", [("experts", "experts", "never chosen")]),
        ("experts-sorted-rows", [("experts", "experts", "never chosen and zeroed")]),
        ("codebook", [("codes.other", "other", "never chosen")]),
        ("winners-take-all", [("ffn", "ffn", "never chosen")]),
    ],
)
def test_routed_nets(name: str, found: list[tuple[str, str, str]]) -> None:
    module, inputs = build(name)
    axes = analyze(capture(module, kwargs=inputs)).axes
    assert [(axis.name, axis.role, axis.meaning) for axis in axes if axis.choices] == found


#: net: the layer whose outputs are the logits, for those of which nothing is zeroed
LOGITS = {
    name: "gate" if isinstance(make(), (Embeddings, Memories, DenseMixture)) else "up"
    for name, make in MADE.items()
}


@pytest.mark.parametrize("name", [row[0] for row in CHOSEN if row[2] == "never chosen"])
def test_never_chosen_is_what_a_module_whose_logits_are_masked_computes(name: str) -> None:
    """No part of the analysis: the eager module in float64, its logits set to -inf by a hook."""
    x, kept = example().double(), list(range(1, UNITS, 3))
    program = capture(MADE[name]().double().eval(), (x,))
    slim, masked = shrink(program, Selection({wide(program).name: kept})), MADE[name]().double().eval()
    gone = torch.tensor([unit not in kept for unit in range(UNITS)])
    masked.get_submodule(LOGITS[name]).register_forward_hook(
        lambda _, __, logits: logits.masked_fill(gone, float("-inf"))
    )
    with torch.no_grad():
        assert distance(slim(x), masked(x)) < 1e-12
        assert distance(masked(x), MADE[name]().double()(x)) > 1e-2


def test_an_inexact_axis_has_no_meaning() -> None:
    net = nn.Sequential(nn.Linear(INTO, UNITS), nn.LayerNorm(UNITS), nn.Linear(UNITS, 5))
    assert wide(capture(net, (example(),))).meaning == ""


# --- passes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["softmax", "topk", "argmax", "embeddings", "seen twice"])
def test_no_pass_takes_units_among_which_is_chosen_unless_asked(name: str) -> None:
    program = program_of(name)
    for text in ("ffn(ratio=0.5)", "experts(ratio=0.5)"):
        assert parse_pipeline(text).run(program).selection.axes == {}
    assert find_sites(analyze(program)) == ()
    result = parse_pipeline("experts(ratio=0.5, every_choice=True)").run(program)
    assert wide(program).name in result.selection
    assert verify(program, result.program, result.selection).chosen == (wide(program).name,)


def test_experts_are_taken_and_plain_widths_are_left_to_ffn() -> None:
    mixture, plain = program_of("dense mixture"), program_of("relu")
    assert len(parse_pipeline("experts(ratio=0.5)").run(mixture).selection["experts"]) == UNITS // 2
    assert parse_pipeline("experts(ratio=0.5, every_choice=True)").run(plain).selection.axes == {}
    assert len(parse_pipeline("ffn(ratio=0.5)").run(plain).selection["ffn"]) == UNITS // 2
