"""The passes of blocks: the gates of each matrix, the results of fill and empty, and their details."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fxprune import analyze, capture
from fxprune.errors import PipelineError, RefusedError
from fxprune.ir import Program
from fxprune.passes import Blocks, Empty, Fill, GroupLasso, Split, parse_pipeline
from fxprune.passes.blocks import VARIANTS
from fxprune.tools.benchmarks.split_choice import sparse
from fxprune.verification import verify
from support.gated import family
from support.models import distance


def called(program: Program) -> Any:
    with torch.no_grad():
        return program(*program.args, **program.kwargs)


def shapes(method: Any, name: str) -> dict[str, tuple[int, ...]]:
    """Of the gates of the first layer, by the last part of what they are of."""
    on = method.gated(family(name))
    return {
        g.of.rpartition(".0.")[2]: tuple(on.program.tensors()[g.name].shape)
        for g in on.gates
        if ".0." in g.of
    }


def test_variants_cut_matrices_in_their_own_ways() -> None:
    """Heads of 8 dims, 32 hidden, 64 neurons."""
    found = {name: shapes(Blocks(variant=name, rows=4, columns=16, density=0.5), "bert") for name in VARIANTS}
    assert found["block"]["attention.self.query.weight"] == (8, 2)
    assert found["block"]["attention.output.dense.weight"] == (2, 8)
    assert found["block"]["output.dense.weight"] == (2, 16)
    assert found["hybrid"]["ffn"] == (64,)
    assert found["struct"]["attention.self.query.weight"] == (4, 1)
    assert found["struct"]["attention.output.dense.weight"] == (1, 4)
    assert found["unstructured"]["intermediate.dense.weight"] == (64, 32)


def test_a_fused_projection_is_cut_by_heads() -> None:
    found = shapes(Blocks(variant="struct", density=0.5), "gpt2")
    assert found["attn.c_attn.weight"] == (1, 12)
    assert found["attn.c_proj.weight"] == (4, 1)


def test_groups_of_a_lasso() -> None:
    found = {
        groups: shapes(GroupLasso(density=0.5, groups=groups, blocks=2), "bert")
        for groups in ("both", "rows", "axes")
    }
    assert found["both"]["attention.self.query.weight"] == (2, 32)
    assert found["both"]["attention.output.dense.weight"] == (2, 32)
    assert found["rows"]["attention.self.query.weight"] == (32, 2)
    assert found["axes"] == {"attention.heads": (4,), "ffn": (64,)}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("blocks(method='luck')", "method must be one of movement, taylor, random"),
        ("blocks(variant='brick')", "variant must be one of block, hybrid, struct, unstructured"),
        ("blocks(method='taylor')", "only movement has a strength"),
        ("group_lasso(density=0.5, threshold=0.1)", "say density or threshold"),
        ("group_lasso(density=0.5, groups='cells')", "groups must be one of columns, rows, axes, both"),
        ("fill(scale=0)", "scale must be positive"),
        ("split(threads=0)", "threads must be at least 1"),
    ],
)
def test_options_that_make_no_sense(text: str, why: str) -> None:
    with pytest.raises(PipelineError, match=why):
        parse_pipeline(text)


def test_a_model_without_heads_and_neurons_is_refused() -> None:
    program = capture(nn.Linear(4, 4), (torch.randn(2, 4),))
    for method in (Blocks(density=0.5), GroupLasso(density=0.5)):
        with pytest.raises(RefusedError, match="no matrix of heads or neurons"):
            method.gated(program)
    with pytest.raises(RefusedError, match="no exact axis of heads or neurons"):
        GroupLasso(density=0.5, groups="axes").gated(program)


def two_layers() -> Program:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 3))
    return capture(net, (torch.randn(5, 6),))


def test_fill_makes_zeros_small_numbers_and_leaves_the_rest() -> None:
    program = two_layers()
    weight = program.tensors()["0.weight"].detach()
    weight[:4, :3] = 0
    done = Fill(seed=1).run(program)
    value = done.program.tensors()["0.weight"].detach()
    assert done.details["filled"] == {"0.weight": 12}
    assert torch.equal(value[weight != 0], weight[weight != 0])
    drawn = value[weight == 0] - weight[weight != 0].mean()
    assert 0 < float(drawn.abs().max()) < 0.05 * float(weight[weight != 0].std())


def test_empty_removes_what_zeros_have_left() -> None:
    program = two_layers()
    tensors = program.tensors()
    with torch.no_grad():
        tensors["0.weight"][:4] = 0
        tensors["2.weight"][:, 10:] = 0
    done = Empty().run(program)
    assert distance(called(done.program), called(program)) < 1e-6
    assert done.program.tensors()["0.weight"].shape == (6, 6)
    assert [tuple(done.selection[name]) for name in done.selection] == [tuple(range(4, 10))]
    assert verify(program, done.program, done.selection, done.refitted).relative < 1e-5


@pytest.mark.parametrize("bias", [True, False])
def test_what_empty_moved_into_biases_is_proved(bias: bool) -> None:
    """Also into one that the reader did not have."""
    torch.manual_seed(0)
    first = nn.Linear(6, 16)
    with torch.no_grad():
        first.weight[2:5] = 0
    program = capture(nn.Sequential(first, nn.Sigmoid(), nn.Linear(16, 3, bias=bias)), (torch.randn(5, 6),))
    done = Empty().run(program)
    assert distance(called(done.program), called(program)) < 1e-6
    assert "2.bias" in done.refitted
    assert verify(program, done.program, done.selection, done.refitted).relative < 1e-5


def test_empty_leaves_a_dense_model_alone() -> None:
    done = Empty().run(family("bert"))
    assert not len(done.selection)
    assert distance(called(done.program), called(family("bert"))) == 0
    assert [a.size for a in analyze(done.program).axes] == [a.size for a in analyze(family("bert")).axes]


def test_split_tells_what_it_would_have_cost() -> None:
    program = sparse(64, 64, 8, 0.5)
    done = Split(length=16).run(program)
    (told,) = done.details["splits"]
    assert told["products"] == 8
    assert told["density"] == 0.5
    assert min(told["dense"], told["split"]) > 0
    assert distance(called(done.program), called(program)) < 1e-6
