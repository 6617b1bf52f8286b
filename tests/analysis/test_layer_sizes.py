"""Layer sizes: those before and after are the sizes of the tensors in the smaller program, and in its ONNX file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some

from fxprune import Selection, parse_pipeline
from fxprune.analysis import analyze
from fxprune.analysis.layer_sizes import Layer, LayerSizes, RemainingCount, count_layer_sizes
from fxprune.export import export_onnx
from fxprune.gates import LOWERINGS
from fxprune.gates.insert import gate
from fxprune.gates.lower import lower
from fxprune.rewrite.apply import apply
from fxprune.rewrite.factorize import factorize
from fxprune.rewrite.shrink import shrink
from support.gated import family

WIDTH = 32
GATED, FUSED = {"llama"}, {"gpt2"}


def number(size: RemainingCount) -> int:
    assert isinstance(size, int)
    return size


def matrices(layer: Layer, name: str) -> Iterator[int]:
    """The numbers of weights that the matrices of a layer must have, by its sizes."""
    (attention,) = layer.attentions
    (ffn,) = [number(size.after) for size in layer.sizes if size.role == "ffn"]
    pairs = (attention.heads, attention.shared, attention.qk, attention.v)
    heads, shared, qk, v = (number(after) for _, after in pairs)
    own = [heads * qk, shared * qk, shared * v]
    yield from [WIDTH * sum(own)] if name in FUSED else [WIDTH * size for size in own]
    yield WIDTH * heads * v
    yield from [WIDTH * ffn] * (3 if name in GATED else 2)


@pytest.mark.parametrize(
    "name", ["bert", "llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gpt2", "vit"))]
)
def test_the_sizes_are_those_of_the_matrices_in_the_onnx_file(name: str, tmp_path: Path) -> None:
    program = family(name)
    result = parse_pipeline("layers(count=1), heads(ratio=0.5), ffn(ratio=0.3), fold").run(program)
    found = count_layer_sizes(program, result.program, result.selection.removed)
    file = export_onnx(result.program, tmp_path / "model.onnx").path
    weights = Counter(
        int(torch.Size(w.dims).numel()) for w in onnx.load(file).graph.initializer if len(w.dims) == 2
    )
    assert [layer.removed for layer in found.layers].count(True) == 1
    (kept,) = [layer for layer in found.layers if not layer.removed]
    (gone,) = [layer for layer in found.layers if layer.removed]
    assert Counter(matrices(kept, name)) <= weights
    assert kept.attentions[0].heads[0] == 4
    assert {size.after for size in gone.sizes} == {0}
    assert gone.branches == {"attention": True, "mlp": True}


@settings(max_examples=15, deadline=None)
@given(some.data())
def test_any_selection_is_counted_as_it_was_made(data: some.DataObject) -> None:
    program = family("llama")
    axes = [axis for axis in analyze(program).axes if axis.role != "hidden"]
    sizes = {axis.name: data.draw(some.integers(1, axis.size), label=axis.name) for axis in axes}
    slim = shrink(program, Selection({name: range(size) for name, size in sizes.items()}))
    found = count_layer_sizes(program, slim)
    assert {size.axis: size.after for layer in found.layers for size in layer.sizes} == sizes
    for place, layer in enumerate(found.layers):
        path, (attention,) = f"model.layers.{place}.self_attn", layer.attentions
        rows = {name: len(slim.tensors()[f"{path}.{name}_proj.weight"]) for name in "qkv"}
        pairs = (attention.heads, attention.shared, attention.qk, attention.v)
        heads, shared, qk, v = (number(after) for _, after in pairs)
        assert rows == {"q": heads * qk, "k": shared * qk, "v": shared * v}


@pytest.mark.parametrize("how", LOWERINGS)
def test_heads_of_unequal_sizes_are_counted_one_by_one(how: str) -> None:
    program = family("bert")
    name = "encoder.layer.0.attention"
    on = gate(program, [(f"{name}.self.qk", f"{name}.heads"), (f"{name}.v", f"{name}.heads")])
    values = dict(on.program.tensors())
    for gated, counts in zip(on.gates, ([8, 3, 3, 1], [2, 2, 2, 2]), strict=True):
        table = torch.zeros(4, 8)
        for head, count in enumerate(counts):
            table[head, :count] = 1
        values |= {gated.name: table.reshape(values[gated.name].shape)}
    slim = lower(on, values, how).program
    attention = count_layer_sizes(program, slim).layers[0].attentions[0]
    wide = {"pad": 8, "bucket": [8, 3, 3, 1], "loop": [8, 3, 3, 1]}[how]
    assert attention.heads == (4, 4)
    assert attention.qk == (8, wide)
    assert attention.v == (8, 2)


def test_a_matrix_that_became_two_has_a_rank() -> None:
    program = family("bert")
    weight = "encoder.layer.1.intermediate.dense.weight"
    small = shrink(factorize(program, {weight: 5}).program, Selection())
    found = count_layer_sizes(program, small)
    assert found.layers[1].ranks == {weight: 5}
    assert found.layers[0].ranks == {}
    assert found.layers[1].sizes == count_layer_sizes(program, program).layers[1].sizes


def test_a_branch_that_went_is_told_and_counts_nothing() -> None:
    program = family("gpt2")
    selection = Selection(removed=("transformer.h.1.ffn",))
    found = count_layer_sizes(program, apply(program, selection), selection.removed)
    assert [layer.branches for layer in found.layers] == [
        {"attention": False, "mlp": False},
        {"attention": False, "mlp": True},
    ]
    assert [size.after for layer in found.layers for size in layer.sizes if size.role == "ffn"] == [128, 0]


def test_a_decoder_beside_an_encoder_is_no_layer_of_its_own() -> None:
    program = family("t5")
    names = [layer.name for layer in count_layer_sizes(program, program).layers]
    assert names == [f"{side}.block.{number}" for side in ("encoder", "decoder") for number in (0, 1)]


def test_what_does_not_explain_the_shapes_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    from fxprune.analysis import layer_sizes as module

    program = family("bert")
    monkeypatch.setattr(module._Counter, "_count", lambda self, axis, copy: 1)
    found: LayerSizes = count_layer_sizes(program, program)
    assert {size.after for layer in found.layers for size in layer.sizes} == {None}
    assert found.layers[0].attentions[0].heads == (4, None)
