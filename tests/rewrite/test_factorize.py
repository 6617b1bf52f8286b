"""Factorize: two factors compute the same as the matrix, on every matrix of six families; ties stay, and ranks are axes like others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from expecttest import assert_expected_inline
from torch import Tensor, nn

from fxprune import analyze, capture, export_onnx, show, shrink, verify
from fxprune.errors import RefusedError, SelectionError
from fxprune.gates.insert import gate
from fxprune.gates.lower import lower
from fxprune.ir import Program, Selection
from fxprune.passes import parse_pipeline
from fxprune.rewrite.factorize import factorize, svd
from support.gated import family
from support.models import distance
from support.texts import Net


def outputs(program: Program) -> Any:
    return program(*program.args, **program.kwargs)


def wide(program: Program) -> list[str]:
    return [
        name for name, value in program.tensors().items() if value.ndim == 2 and value.is_floating_point()
    ]


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2", "llama", "t5", "vit"])
def test_factors_of_full_rank_change_nothing(name: str) -> None:
    """All matrices at once: linear, addmm, embeddings, heads that are tied to them; each has one new axis, exact, of role rank."""
    program = family(name)
    weights = [each for each in wide(program) if min(program.tensors()[each].shape) > 1]
    ranks = {each: min(program.tensors()[each].shape) for each in weights}
    made = factorize(program, ranks)
    assert max(made.errors.values()) < 1e-5
    assert distance(outputs(made.program), outputs(program)) < 1e-4
    axes = [axis for axis in analyze(made.program).axes if axis.role == "rank"]
    assert sorted(axis.size for axis in axes) == sorted(ranks.values())
    assert all(axis.exact for axis in axes)


def test_a_tie_stays_a_tie() -> None:
    """GPT-2 predicts tokens with its embedding: both read the same two factors."""
    program = family("gpt2")
    table = next(name for name in wide(program) if program.tensors()[name].shape[0] == 99)
    slim = factorize(program, {table: 4}).program
    (axis,) = (axis for axis in analyze(slim).axes if axis.role == "rank")
    assert [member.name for member in axis.members] == [f"{table}_rows", f"{table}_columns"]
    assert slim.parameter_count() == program.parameter_count() - 99 * 32 + 4 * (99 + 32)
    assert len(slim.reads()[f"{table}_rows"].users) == 2


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_queries_keys_and_values_share_a_thin_product(name: str) -> None:
    """One product of their input, and one axis that all three read."""
    program = family(name)
    known = [each for each in wide(program) if ".0." in each]
    stem = "attention.self" if name == "bert" else "self_attn"
    three = [each for each in known if stem in each][:3]
    stacked = torch.cat([program.tensors()[each].detach() for each in three])
    rows, columns = svd(stacked, 32)
    parts = rows.split([len(program.tensors()[each]) for each in three])
    given = {each: (part, columns) for each, part in zip(three, parts, strict=True)}
    made = factorize(program, dict.fromkeys(three, 32), factors=given)
    assert distance(outputs(made.program), outputs(program)) < 1e-4
    (axis,) = (axis for axis in analyze(made.program).axes if axis.role == "rank")
    assert [member.name for member in axis.members if "columns" in member.name] == [f"{three[0]}_columns"]
    assert len(axis.members) == 4
    assert len({own for names in made.names.values() for own in names}) == 4
    thin = shrink(made.program, Selection({axis.name: range(8)}))
    assert thin.parameter_count() < program.parameter_count()


def test_a_rank_leaves_like_any_other_unit(tmp_path: Any) -> None:
    """Rank 8, then 5 of those: as if the SVD had been cut there; the file agrees."""
    program = family("bert")
    name = "encoder.layer.0.intermediate.dense.weight"
    slim = factorize(program, {name: 8}).program
    (axis,) = (axis for axis in analyze(slim).axes if axis.role == "rank")
    assert axis.name == "encoder.layer.0.intermediate.dense.rank"
    selection = Selection({axis.name: range(5)})
    cut = shrink(slim, selection)
    assert verify(slim, cut, selection).relative < 1e-5
    assert distance(outputs(cut), outputs(factorize(program, {name: 5}).program)) < 1e-5
    assert export_onnx(cut, tmp_path / "cut.onnx").relative < 1e-4


@pytest.mark.parametrize("text", ["heads(ratio=0.5), ffn(ratio=0.5)", "hidden(ratio=0.5)", "layers(count=1)"])
def test_it_composes_with_what_prunes_in_any_order(text: str) -> None:
    """Factors of full rank, then the pass, or the pass, then factors: the same function."""
    program = family("bert")
    names = [
        f"encoder.layer.1.{part}.dense.weight" for part in ("intermediate", "output", "attention.output")
    ]
    steps = parse_pipeline(text)
    first = steps.run(factorize(program, dict.fromkeys(names, 32)).program)
    after = steps.run(program).program
    left = [name for name in names if name in after.tensors()]
    last = factorize(after, {name: min(after.tensors()[name].shape) for name in left}).program
    assert sum("_rows" in name for name in first.program.tensors()) == len(left)
    if "hidden" not in text and "heads" not in text:  # scores of factors differ from those of the matrix
        assert distance(outputs(first.program), outputs(last)) < 1e-4
    assert all(value.isfinite().all() for value in torch.utils._pytree.tree_leaves(outputs(first.program)))


def test_slim_decides_over_ranks() -> None:
    program = factorize(family("bert"), {"encoder.layer.1.output.dense.weight": 24}).program
    steps = parse_pipeline("slim(params=0.6, score='magnitude', repair='none', batch=2, length=13)")
    slim = steps.run(program).program
    assert slim.parameter_count() <= 0.6 * program.parameter_count()
    (axis,) = (axis for axis in analyze(slim).axes if axis.role == "rank")
    assert 1 <= axis.size < 24


def test_gates_close_ranks() -> None:
    program = factorize(family("bert"), {"encoder.layer.0.output.dense.weight": 8}).program
    (axis,) = (axis for axis in analyze(program).axes if axis.role == "rank")
    on = gate(program, [axis.name])
    module = on.module().eval()
    with torch.no_grad():
        dict(module.named_parameters())[on.gates[0].name][3:] = 0
    slim = lower(on, module).program
    assert distance(outputs(slim), module(**program.kwargs)) < 1e-5
    assert slim.tensors()["encoder.layer.0.output.dense.weight_rows"].shape == (32, 3)


class Points(nn.Module):
    """Convolutions of one point, one of them with a stride, one over groups."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(6, 12, 1, stride=2, padding=1), nn.Conv2d(12, 8, 1, bias=False)
        self.groups, self.spread = nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.spread(self.groups(self.two(self.one(x).relu()).relu()))
        return out


def test_convolutions_of_one_point() -> None:
    program = capture(Points().eval(), (torch.randn(2, 6, 9, 9),))
    made = factorize(program, {"one.weight": 6, "two.weight": 8}).program
    assert distance(outputs(made), outputs(program)) < 1e-5
    assert made.tensors()["one.weight_rows"].shape == (12, 6, 1, 1)
    with pytest.raises(RefusedError, match="has 2 groups; its weight stays whole"):
        factorize(program, {"groups.weight": 2})
    with pytest.raises(RefusedError, match=r"spread\.weight is no matrix"):
        factorize(program, {"spread.weight": 2})


POINTS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "conv1d": (nn.Conv1d(6, 8, 1, stride=2, padding=1), (2, 6, 9)),
    "conv3d": (nn.Conv3d(6, 8, 1, stride=(1, 2, 2), padding=(1, 0, 2)), (2, 6, 4, 5, 6)),
    "conv_transpose1d": (nn.ConvTranspose1d(6, 8, 1, stride=3, output_padding=1), (2, 6, 5)),
    "conv_transpose2d": (nn.ConvTranspose2d(6, 8, 1, stride=2, padding=1, output_padding=1), (2, 6, 5, 4)),
    "conv_transpose3d": (nn.ConvTranspose3d(6, 8, 1, bias=False), (2, 6, 3, 4, 5)),
}


@pytest.mark.parametrize("name", POINTS)
def test_factors_of_every_convolution_of_one_point(name: str) -> None:
    torch.manual_seed(0)
    layer, size = POINTS[name]
    program = capture(layer.eval(), (torch.randn(size),))
    made = factorize(program, {"weight": 6}).program
    assert [str(n.target) for n in made.graph.nodes if n.op == "call_function"] == [
        str(n.target) for n in program.graph.nodes if n.op == "call_function"
    ] * 2
    assert distance(outputs(made), outputs(program)) < 1e-5
    (axis,) = analyze(made).axes
    assert (axis.role, axis.size, axis.exact) == ("rank", 6, True)


def test_what_has_no_factors_is_a_sentence() -> None:
    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight + self.weight.sum()

    program = capture(Sums().eval(), (torch.randn(3, 4),))
    with pytest.raises(RefusedError, match=r"weight is read by sum_1 = aten.sum.default .*: it stays whole"):
        factorize(program, {"weight": 2})
    with pytest.raises(SelectionError, match="its rank may be 1 to 4, not 5"):
        factorize(program, {"weight": 5})
    with pytest.raises(SelectionError, match="no weight 'w' in this program; weights: weight"):
        factorize(program, {"w": 2})


def test_the_error_is_that_of_the_singular_values_left_out() -> None:
    torch.manual_seed(0)
    program = capture(nn.Linear(12, 9).eval(), (torch.randn(2, 12),))
    weight = program.tensors()["weight"].detach()
    left = torch.linalg.svdvals(weight.double())
    made = factorize(program, {"weight": 4})
    assert made.errors["weight"] == pytest.approx(float(left[4:].norm() / left.norm()), rel=1e-5)
    rows, columns = svd(weight, 9)
    assert torch.allclose(rows @ columns, weight, atol=1e-6)


def test_two_layers_with_nothing_between_are_a_bottleneck() -> None:
    """So are those of a model that was written so; an activation between makes neurons."""
    linear, bent = (
        capture(nn.Sequential(nn.Linear(6, 4), *between, nn.Linear(4, 6)).eval(), (torch.randn(2, 6),))
        for between in ((), (nn.ReLU(),))
    )
    assert [axis.role for axis in analyze(linear).axes] == ["rank"]
    assert [axis.role for axis in analyze(bent).axes] == ["ffn"]


def test_before_and_after() -> None:
    program = capture(nn.Linear(8, 16), (torch.randn(3, 8),))
    assert_expected_inline(
        show(program),
        """\
input_1: (!3, !8)
weight: (!16, !8)
bias: (!16)
linear = linear(input_1, weight, bias) -> (!3, !16)
return linear""",
    )
    assert_expected_inline(
        show(factorize(program, {"weight": 2}).program),
        """\
input_1: (!3, !8)
weight_columns: (rank:2, !8)
linear_default = linear(input_1, weight_columns, None) -> (!3, rank:2)
weight_rows: (!16, rank:2)
bias: (!16)
linear = linear(linear_default, weight_rows, bias) -> (!3, !16)
return linear""",
    )


def test_before_and_after_of_a_tied_table() -> None:
    """The embedding and the head that share a table share its factors."""
    table = nn.Embedding(20, 8)
    net = Net(lambda net, ids: nn.functional.linear(net.table(ids), net.table.weight), table=table)
    program = capture(net, (torch.zeros(3, 5, dtype=torch.long),))
    assert_expected_inline(
        show(program),
        """\
ids: (!3, !5)
table.weight: (!20, table.rank:8)
embedding = embedding(table.weight, ids) -> (!3, !5, table.rank:8)
linear = linear(embedding, table.weight) -> (!3, !5, !20)
return linear""",
    )
    assert_expected_inline(
        show(factorize(program, {"table.weight": 2}).program),
        """\
ids: (!3, !5)
table.weight_rows: (!20, table.rank:2)
embedding_default = embedding(table.weight_rows, ids, -1) -> (!3, !5, table.rank:2)
table.weight_columns: (table.rank:2, table.rank.2:8)
embedding = matmul(embedding_default, table.weight_columns) -> (!3, !5, table.rank.2:8)
linear_default = linear(embedding, table.weight_columns, None) -> (!3, !5, table.rank:2)
linear = linear(linear_default, table.weight_rows, None) -> (!3, !5, !20)
return linear""",
    )
