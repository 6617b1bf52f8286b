# mypy: disable-error-code="no-any-return"
# The result of calling a module is Any to the type checker.
"""Regions in any graph: residuals of every kind are found, at fixed and at dynamic sizes, and every reason is true."""

from functools import cache
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from fxprune import analyze, capture
from fxprune.ir import Program
from support.residual_nets import NETS, ORDERS, Mlp


@cache
def program_of(name: str, dynamic: bool = False) -> Program:
    torch.manual_seed(0)
    module, inputs = NETS[name]()
    return capture(module.eval(), inputs, dynamic_shapes=True if dynamic else None)


def found(name: str, unit: str, dynamic: bool = False) -> list[str]:
    regions = analyze(program_of(name, dynamic)).regions
    assert [region.why for region in regions if region.why] == []
    return [region.name for region in regions if region.unit == unit]


def three(stem: str) -> list[str]:
    return [stem.format(i) for i in range(3)]


LAYERS = {
    "concatenated": three("blocks.{}"),
    "aggregated": three("blocks.{}"),
    "u-net": ["outer.0", "outer.1", "inner.0", "inner.1"],
    "reversible": three("blocks.{}"),
    "reversible, together": three("blocks.{}"),
    "two streams": three("blocks.{}"),
    # No module is called for a layer: the parts between two of a period, which bear no module's name.
    "listed": ["layers.layer", "layers.layer.2"],
    "outside": three("blocks.{}.layer"),
}


@pytest.mark.parametrize("name", NETS)
def test_layers_of_every_kind(name: str) -> None:
    assert found(name, "layer") == LAYERS.get(name, three("layers.{}"))


@pytest.mark.parametrize("name", NETS)
def test_fixed_and_dynamic_sizes_have_the_same_regions(name: str) -> None:
    fixed, dynamic = (analyze(program_of(name, each)).regions for each in (False, True))
    assert [(r.unit, r.name, r.parameters, r.why) for r in fixed] == [
        (r.unit, r.name, r.parameters, r.why) for r in dynamic
    ]


BRANCHES = {
    "gated": three("layers.{}.ffn"),
    "highway": three("layers.{}.branch"),
    "highway, step": three("layers.{}.branch"),
    "recurrent": three("layers.{}.ffn"),
    "outside": three("blocks.{}.ffn"),
    "concatenated": three("blocks.{}.conv"),
    "reversible": [f"blocks.{i}.{part}.ffn" for i in range(3) for part in "fg"],
    "two streams": [
        f"blocks.{i}.{part}"
        for i in range(3)
        for part in ("text_out.branch", "image_out.branch", "ffn", "ffn.2")
    ],
}


@pytest.mark.parametrize("name", BRANCHES)
def test_branches_of_every_kind(name: str) -> None:
    assert found(name, "branch") == BRANCHES[name]


@pytest.mark.parametrize(("order", "norms"), list(product(ORDERS, ("one norm", "two norms"))))
def test_summands_in_any_order(order: str, norms: str) -> None:
    names = found(f"{order}, {norms}", "branch")
    own = "mlp.ffn" if norms == "one norm" else "ffn"
    assert sorted(names) == [f"layers.{i}.{kind}" for i in range(3) for kind in ("attention.branch", own)]


class Kept(nn.Module):
    """Gives its result, and what it made on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = Mlp(8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.mlp(x)
        return x + h, h


class Plain(nn.Module):
    """No residual: what leads from the input to the output are products alone."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.mlp, self.out = Mlp(8), nn.Linear(8, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.mlp(x))


class Cast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = Mlp(8)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.mlp(x)).double()


class Around(nn.Module):
    """Two blocks, and what reads their values: what reads their input as well, the output, or nothing."""

    def __init__(self, make: type[nn.Module], reads: str) -> None:
        super().__init__()
        self.blocks, self.reads = nn.ModuleList(make() for _ in range(2)), reads
        self.last = nn.Parameter(torch.randn(3, 8))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        first, second = (self._called(block, x) for block in self.blocks)
        if self.reads == "around":
            return torch.stack([nn.functional.linear(each, self.last) for each in (x, first[0], second[0])])
        if self.reads == "output":
            return first[0] + second[0], first[1]
        return first[0] + second[0] + (first[1] if self.reads == "inner" else 0)

    def _called(self, block: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
        result = block(x)
        return result if isinstance(result, tuple) else (result,)


def why(make: type[nn.Module], reads: str = "") -> str:
    regions = analyze(capture(Around(make, reads), (torch.randn(2, 8),))).regions
    return next((r.why for r in regions if r.name == "blocks.0" and r.unit == "layer"), "no such layer")


#: a text: (where it is true, where it is not)
REASONS: dict[str, tuple[tuple[type[nn.Module], str], tuple[type[nn.Module], str]]] = {
    "linear_1 = aten.linear.default inside of it is read by": ((Kept, "inner"), (Kept, "")),
    "its output leaves the model: output_1": ((Kept, "output"), (Kept, "inner")),
    "its output has other dims than its input": ((Plain, ""), (Plain, "around")),
    "it adds nothing to its input": ((Plain, "around"), (Kept, "")),
    "it changes the dtype: torch.float32 to torch.float64": ((Cast, ""), (Kept, "")),
}


@pytest.mark.parametrize("text", REASONS)
def test_a_reason_is_given_where_it_is_true_and_only_there(text: str) -> None:
    true, false = REASONS[text]
    assert text in why(*true)
    assert text not in why(*false)
