"""Uniform sizes: the axes that are tied across layers, the number of units that all of them keep, and plans for a budget."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxprune import Program, Selection, analyze, apply, capture, parse_pipeline
from fxprune.analysis.uniform import group_uniform
from fxprune.calibration import check_calibration
from fxprune.passes import Slim
from fxprune.passes.fraction import common_count
from fxprune.pipeline import Context
from fxprune.rewrite.shared_tables import merge_equal_choices
from support.models import captured, distance


class Block(nn.Module):
    def __init__(self, neurons: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, neurons), nn.Linear(neurons, 8)

    def forward(self, x: Tensor) -> Tensor:
        done: Tensor = x + self.down(self.up(self.norm(x)).relu())
        return done


def stack(*neurons: int) -> Program:
    """Residual blocks of these sizes."""
    torch.manual_seed(0)
    blocks = nn.Sequential(*(Block(count) for count in neurons))
    return capture(blocks, (torch.randn(4, 8),))


def names(program: Program, role: str) -> list[list[str]]:
    analysis = analyze(program)
    return [
        [a.name for a in tied]
        for tied in group_uniform(analysis, [a for a in analysis.axes if a.role == role])
    ]


def test_axes_in_the_same_place_of_layers_are_tied_whatever_their_sizes() -> None:
    assert names(stack(16, 16, 24), "ffn") == [["0.ffn", "1.ffn", "2.ffn"]]


def test_axes_of_one_role_and_size_are_tied_wherever_they_are() -> None:
    tied = names(captured("resnet"), "channels")
    sizes = [{analyze(captured("resnet")).axis(name).size for name in group} for group in tied]
    assert all(len(each) == 1 for each in sizes)
    assert len({max(each) for each in sizes}) == len(sizes)
    assert names(captured("bert"), "heads") == [[f"encoder.layer.{i}.attention.heads" for i in range(2)]]


@pytest.mark.parametrize(
    ("sizes", "ratio", "multiple", "count"),
    [((64, 64), 0.5, 1, 32), ((64, 32), 0.5, 1, 24), ((64, 32), 0.0, 1, 32), ((10, 10), 0.45, 4, 8), ((3, 9), 0.5, 4, 3)],
)  # fmt: skip
def test_one_number_takes_the_fraction_from_all(
    sizes: tuple[int, ...], ratio: float, multiple: int, count: int
) -> None:
    assert common_count([(size, ratio) for size in sizes], multiple) == count


def test_layers_that_were_pruned_apart_become_equal() -> None:
    uneven, even = (
        parse_pipeline(f"ffn(ratio=0.25{more})").run(stack(16, 8, 24)) for more in ("", ", uniform=True")
    )
    assert [len(kept) for kept in uneven.selection.axes.values()] == [12, 6, 18]
    assert [len(kept) for kept in even.selection.axes.values()] == [8, 8]
    assert sorted(even.selection) == ["0.ffn", "2.ffn"]
    assert even.proof.relative <= 1e-5


def test_where_all_sizes_are_equal_nothing_changes() -> None:
    texts = ("ffn(ratio=0.5)", "ffn(ratio=0.5, uniform=True)")
    plain, uniform = (parse_pipeline(text).run(captured("bert")).selection.axes for text in texts)
    assert plain == uniform
    assert str(parse_pipeline(texts[1])) == texts[1]


def test_slim_keeps_equally_many_whole_heads_and_neurons() -> None:
    program = captured("bert")
    data = check_calibration(program, [dict(program.kwargs)] * 2)
    done = Slim(params=0.8, uniform=True, repair="none").run(program, Context(data=data))
    kept = {name: len(indices) for name, indices in done.selection.axes.items()}
    for role in ("heads", "ffn"):
        sizes = {kept.get(a.name, a.size) for a in analyze(program).axes if a.role == role}
        assert len(sizes) == 1
    assert not any(name.endswith(("qk", ".v")) for name in kept)
    assert done.selection.removed == ()
    assert 0.5 < done.details["share"] <= 0.8


def test_slim_ties_layers_that_were_pruned_apart() -> None:
    program = stack(32, 32, 32)
    apart = apply(program, Selection({"1.ffn": range(24)}))
    done = Slim(params=0.5, uniform=True, score="magnitude", repair="none").run(apart)
    counts = {len(kept) for kept in done.selection.axes.values()}
    assert len(done.selection) == 3
    assert len(counts) == 1


def test_heads_of_one_position_bias_are_the_same_in_all_layers_and_the_bias_is_cut_once() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 99, "d_model": 16, "num_layers": 3, "num_heads": 4, "d_kv": 4, "d_ff": 24}
    torch.manual_seed(0)
    model = transformers.T5EncoderModel(transformers.T5Config(**sizes)).eval()
    program = capture(model, kwargs={"input_ids": torch.arange(3, 30).reshape(3, 9)})
    apart, done = (parse_pipeline(f"heads(ratio=0.5{more})").run(program) for more in ("", ", uniform=True"))
    assert len(set(apart.selection.axes.values())) > 1
    assert len(set(done.selection.axes.values())) == 1
    assert done.proof.relative <= 1e-5
    table = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    assert done.program.tensors()[table].shape == (32, 4)
    cut = merge_equal_choices(done.program)
    assert cut.tensors()[table].shape == (32, 2)
    assert (
        distance(cut(*program.args, **program.kwargs), done.program(*program.args, **program.kwargs)) <= 1e-5
    )
    assert merge_equal_choices(apart.program) is apart.program
