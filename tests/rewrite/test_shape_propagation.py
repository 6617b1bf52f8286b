"""Shape propagation: every value gets the sizes that its operands give it, and promises are checked."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from expecttest import assert_expected_inline
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim

from fxprune import Program, Selection, analyze, capture, export_onnx, show, shrink
from fxprune.errors import VerifyError
from fxprune.export.onnx import ATTENTION_OPSET
from fxprune.ir import copy_graph, hint, rebuild
from fxprune.ir.interpreter import Recorder
from fxprune.rewrite.shape_propagation import _laid_out, propagate
from support.models import HUGGING_FACE, captured
from support.texts import mlp


def test_before_and_after() -> None:
    """Weights cut by hand: the values still have their old sizes, which the weights contradict, until the new ones are propagated."""
    program = capture(mlp(), (torch.randn(3, 8),))
    sizes = {"up.weight": (4, 8), "up.bias": (4,), "down.weight": (8, 4)}
    tensors = {name: nn.Parameter(torch.randn(size)) for name, size in sizes.items()}
    cut = rebuild(program, copy_graph(program), tensors)
    assert_expected_inline(
        show(cut),
        """\
x: (!3, !8)
up.weight: (!4, !8)
up.bias: (!4)
linear = linear(x, up.weight, up.bias) -> (!3, !32)
relu = relu(linear) -> (!3, !32)
down.weight: (!8, !4)
down.bias: (!8)
linear_1 = linear(relu, down.weight, down.bias) -> (!3, !8)
return linear_1""",
    )
    propagate(cut, {})
    assert_expected_inline(
        show(cut),
        """\
x: (!3, !8)
up.weight: (ffn:4, !8)
up.bias: (ffn:4)
linear = linear(x, up.weight, up.bias) -> (!3, ffn:4)
relu = relu(linear) -> (!3, ffn:4)
down.weight: (!8, ffn:4)
down.bias: (!8)
linear_1 = linear(relu, down.weight, down.bias) -> (!3, !8)
return linear_1""",
    )


def test_a_broken_promise_is_an_error() -> None:
    program = capture(mlp(), (torch.randn(3, 8),))
    (relu,) = program.graph.find_nodes(op="call_function", target=torch.ops.aten.relu.default)
    with pytest.raises(VerifyError, match=r"its dims promise sizes \(3, 4\), it has \(3, 32\)"):
        propagate(program, {relu: (3, 4)})


def halved(program: Program) -> Program:
    """The program with half of the units of each axis that is exact."""
    kept = {axis.name: tuple(range((axis.size + 1) // 2)) for axis in analyze(program).axes if axis.exact}
    return shrink(program, Selection(kept))


@pytest.mark.parametrize("name", [*HUGGING_FACE, "gqa"])
def test_values_are_laid_out_as_a_run_lays_them_out(name: str) -> None:
    """Exporters ask the strides of a value whether a reshape of it is a view."""
    slim = halved(grouped_queries() if name == "gqa" else captured(name, dynamic=True))
    recorder = Recorder(slim)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        flat = [mode.from_tensor(each) if isinstance(each, Tensor) else each for each in slim.flat_inputs()]
        recorder.run_flat(flat)
    for node, value in recorder.values.items():
        if node.op == "call_function" and isinstance(value, Tensor):
            told = [hint(stride) for stride in node.meta["val"].stride()]
            triples = zip(told, value.stride(), value.shape, strict=True)
            assert all(one == other for one, other, size in triples if size > 1), (name, node.name)


@pytest.mark.parametrize("axis", ["kv", "rep", "qk", "v"])
def test_a_cut_of_grouped_queries_is_written_in_the_fastest_form(axis: str, tmp_path: Path) -> None:
    program = grouped_queries()
    (cut,) = [each for each in analyze(program).axes if each.name.endswith(f"self_attn.{axis}")]
    slim = shrink(program, Selection({cut.name: tuple(range(cut.size - 1))}))
    assert export_onnx(slim, tmp_path / "slim.onnx").opset == ATTENTION_OPSET


@cache
def grouped_queries() -> Program:
    """A Llama of one layer with two heads of keys for six of queries."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 50}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2, "use_cache": False}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads)).eval()
    free = {"input_ids": {0: Dim.AUTO, 1: Dim.AUTO}}
    return capture(model, (), {"input_ids": torch.randint(0, 50, (2, 5))}, free)


@given(data=st.data())
def test_a_layout_is_kept(data: st.DataObject) -> None:
    """Permuted, cut and repeated values, as operators that move make them."""
    value = torch.empty(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    for kind in data.draw(st.lists(st.sampled_from(["permute", "narrow", "expand"]), max_size=3)):
        place = data.draw(st.integers(0, value.dim() - 1))
        if kind == "permute":
            value = value.permute(data.draw(st.permutations(range(value.dim()))))
        elif kind == "narrow":
            value = value.narrow(place, 0, data.draw(st.integers(1, value.shape[place])))
        else:
            value = value.unsqueeze(place).expand(*value.shape[:place], 3, *value.shape[place:])
    made = _laid_out(list(value.shape), value)
    assert made.shape == value.shape
    triples = zip(made.stride(), value.stride(), value.shape, strict=True)
    assert all(one == other for one, other, size in triples if size > 1)
