"""The laws of the design, as properties over random nets and over four families of models."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fxprune import Program, Selection, analyze, capture, export_onnx, shrink, zero_readers
from fxprune.cost.count import count_cost
from support.gates import gated
from support.models import HUGGING_FACE, captured, distance, hugging_face
from support.onnx_flops import counted_flops
from support.strategies import RandomNet, example, nets

lawful = settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
many = settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))


def program_of(net: RandomNet) -> Program:
    return capture(net, (example(),))


def drawn(program: Program, data: st.DataObject, exact: bool = True) -> Selection:
    """For some of the axes a random choice of indices."""
    kept: dict[str, list[int]] = {}
    for axis in analyze(program).axes:
        if (axis.exact or not exact) and data.draw(st.booleans(), label=axis.name):
            places = st.sets(st.integers(0, axis.size - 1), min_size=1)
            kept[axis.name] = sorted(data.draw(places, label=f"kept of {axis.name}"))
    return Selection(kept)


def halves(program: Program, phase: int = 0) -> Selection:
    axes = [axis for axis in analyze(program).axes if axis.exact]
    return Selection({axis.name: range(phase, axis.size, 2) for axis in axes})


def at_random(program: Program, seed: int) -> Selection:
    """Every exact axis at a random mask that keeps at least one unit."""
    generator = torch.Generator().manual_seed(seed)
    kept: dict[str, list[int]] = {}
    for axis in (axis for axis in analyze(program).axes if axis.exact):
        count = int(torch.randint(1, axis.size + 1, (), generator=generator))
        kept[axis.name] = sorted(torch.randperm(axis.size, generator=generator)[:count].tolist())
    return Selection(kept)


def call(program: Program) -> Any:
    torch.manual_seed(0)
    return program(*program.args, **program.kwargs)


# --- 1: keep-all is the identity --------------------------------------------------------------------------


def keep_all_is_the_identity(program: Program) -> None:
    everything = Selection({axis.name: range(axis.size) for axis in analyze(program).axes})
    same = shrink(program, everything)
    assert same.graph_module.code == program.graph_module.code
    assert distance(call(same), call(program)) == 0


@lawful
@given(net=nets())
def test_law_1_keep_all_is_the_identity(net: RandomNet) -> None:
    keep_all_is_the_identity(program_of(net))


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_law_1_on_models(name: str) -> None:
    keep_all_is_the_identity(captured(name))


# --- 2: zero, then remove ---------------------------------------------------------------------------------


def zero_then_remove(net: RandomNet, data: st.DataObject) -> None:
    program = program_of(net)
    assert distance(call(program), net(example())) < 1e-10
    selection = drawn(program, data)
    assert distance(call(shrink(program, selection)), call(zero_readers(program, selection))) < 1e-10


@lawful
@given(net=nets(), data=st.data())
def test_law_2_zero_then_remove(net: RandomNet, data: st.DataObject) -> None:
    zero_then_remove(net, data)


@pytest.mark.slow
@many
@given(net=nets(longest=8), data=st.data())
def test_law_2_on_many_nets(net: RandomNet, data: st.DataObject) -> None:
    zero_then_remove(net, data)


@pytest.mark.parametrize("name", HUGGING_FACE)
@pytest.mark.parametrize("phase", [0, 1])
def test_law_2_on_models(name: str, phase: int) -> None:
    program = captured(name)
    selection = halves(program, phase)
    slim, oracle = call(shrink(program, selection)), call(zero_readers(program, selection))
    assert distance(slim, oracle) < 1e-5
    assert distance(oracle, call(program)) > 1e-2


def test_law_2_in_double_precision() -> None:
    model, inputs = hugging_face("llama")
    program = capture(model.double(), kwargs=inputs)
    selection = halves(program)
    assert distance(call(shrink(program, selection)), call(zero_readers(program, selection))) < 1e-10


# --- 3: different axes in any order -----------------------------------------------------------------------


def order_does_not_matter(program: Program, selection: Selection) -> None:
    names = list(selection)
    first = Selection({name: selection[name] for name in names[::2]})
    second = Selection({name: selection[name] for name in names[1::2]})
    both = call(shrink(program, selection))
    assert distance(call(shrink(shrink(program, first), second)), both) < 1e-12
    assert distance(call(shrink(shrink(program, second), first)), both) < 1e-12


@lawful
@given(net=nets(), data=st.data())
def test_law_3_different_axes_in_any_order(net: RandomNet, data: st.DataObject) -> None:
    program = program_of(net)
    order_does_not_matter(program, drawn(program, data, exact=False))


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_law_3_on_models(name: str) -> None:
    program = captured(name)
    names = [axis.name for axis in analyze(program).axes]
    one, other = names[0], names[-1]
    sizes = {axis.name: axis.size for axis in analyze(program).axes}
    a, b = Selection({one: range(sizes[one] // 2)}), Selection({other: range(1, sizes[other], 2)})
    ways = [shrink(shrink(program, a), b), shrink(shrink(program, b), a), shrink(program, a.compose(b))]
    for way in ways[1:]:
        assert distance(call(way), call(ways[0])) < 1e-6


# --- 4: exporting what is pruned --------------------------------------------------------------------------


def exported_agrees(program: Program, path: Path) -> None:
    emitted = export_onnx(program, path)
    assert emitted.relative < 1e-4
    assert path.stat().st_size == emitted.bytes


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["llama", "resnet"])
def test_law_4_onnx_runtime_computes_what_the_program_computes(name: str, tmp_path: Path) -> None:
    program = captured(name)
    exported_agrees(shrink(program, halves(program)), tmp_path / "model.onnx")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(net=nets(), data=st.data())
def test_law_4_on_random_nets(
    net: RandomNet, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    program = capture(net.float(), (example().float(),))
    slim = shrink(program, drawn(program, data, exact=False))
    exported_agrees(slim, tmp_path_factory.mktemp("onnx") / "model.onnx")


# --- 5: gated with any mask is what is lowered ------------------------------------------------------------


def gated_is_lowered(program: Program, selection: Selection, bar: float) -> None:
    assert distance(call(gated(program, selection)), call(shrink(program, selection))) < bar


@lawful
@given(net=nets(), data=st.data())
def test_law_5_gated_with_any_mask_is_what_is_lowered(net: RandomNet, data: st.DataObject) -> None:
    program = program_of(net)
    gated_is_lowered(program, drawn(program, data), 1e-10)


@pytest.mark.slow
@many
@given(net=nets(longest=8), data=st.data())
def test_law_5_on_many_nets(net: RandomNet, data: st.DataObject) -> None:
    program = program_of(net)
    gated_is_lowered(program, drawn(program, data), 1e-10)


@pytest.mark.parametrize("name", HUGGING_FACE)
@pytest.mark.parametrize("seed", range(3))
def test_law_5_on_models(name: str, seed: int) -> None:
    program = captured(name)
    selection = at_random(program, seed)
    gated_is_lowered(program, selection, 1e-5)
    assert distance(call(gated(program, selection)), call(program)) > 1e-2


# --- 6: what is refused never crashes ---------------------------------------------------------------------


@lawful
@given(net=nets(), data=st.data())
def test_law_6_what_has_no_rule_changes_nothing(net: RandomNet, data: st.DataObject) -> None:
    """With the rules of some operators taken away, the rest still shrinks, and is still right."""
    from unittest import mock

    from fxprune.analysis import dim_inference as flow
    from fxprune.rules import find_rule

    program = program_of(net).replace()  # one that was not analysed yet, with all rules
    targets = sorted({str(n.target) for n in program.graph.nodes if n.op == "call_function"})
    lost = data.draw(st.sets(st.sampled_from(targets), max_size=2), label="operators without a rule")
    with mock.patch.object(
        flow, "find_rule", lambda target: None if str(target) in lost else find_rule(target)
    ):
        selection = drawn(program, data)
        assert distance(call(shrink(program, selection)), call(zero_readers(program, selection))) < 1e-10
        shrink(program, drawn(program, data, exact=False))


# --- 7: what is counted is what is reported ---------------------------------------------------------------


@lawful
@given(net=nets(), data=st.data())
def test_law_7_parameters_counted_from_the_state_are_those_reported(
    net: RandomNet, data: st.DataObject
) -> None:
    program = program_of(net)
    slim = shrink(program, drawn(program, data, exact=False))
    state = slim.module().state_dict()
    learned = dict(slim.module().named_parameters())
    assert sum(value.numel() for value in learned.values()) == slim.parameter_count()
    assert sum(value.numel() * value.element_size() for value in state.values()) == slim.parameter_bytes()
    assert set(state) == set(slim.tensors())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["gpt2", "llama", "resnet"])
def test_law_7_operations_counted_from_the_file_are_those_reported(name: str, tmp_path: Path) -> None:
    """A multiply-add counts 2, and only contractions count."""
    program = captured(name)
    slim = shrink(program, halves(program))
    file = export_onnx(slim, tmp_path / "model.onnx").path
    names = zip(slim.input_names(), slim.flat_inputs(), strict=True)
    counted = counted_flops(file, {name: value.shape for name, value in names})
    assert counted == count_cost(slim).flops
    assert counted < count_cost(program).flops


# --- 8: a selection is portable ---------------------------------------------------------------------------


def state_bytes(program: Program) -> dict[str, bytes]:
    return {name: raw(value) for name, value in program.graph_module.state_dict().items()}


def raw(value: Tensor) -> bytes:
    return bytes(value.detach().contiguous().view(torch.uint8).flatten().tolist()) if value.numel() else b""


@lawful
@given(net=nets(), data=st.data())
def test_law_8_a_saved_selection_gives_the_same_bytes_on_a_fresh_capture(
    net: RandomNet, data: st.DataObject
) -> None:
    program = program_of(net)
    selection = drawn(program, data, exact=False)
    again = Selection.from_json(selection.to_json())
    one, other = shrink(program, selection), shrink(program_of(net), again)
    assert one.graph_module.code == other.graph_module.code
    assert state_bytes(one) == state_bytes(other)


def test_law_8_on_a_model(tmp_path: Path) -> None:
    model, inputs = hugging_face("bert")
    program = capture(model, kwargs=inputs)
    selection = halves(program)
    selection.save(tmp_path / "selection.json")
    other = capture(model, kwargs=inputs)
    slim, again = shrink(program, selection), shrink(other, Selection.load(tmp_path / "selection.json"))
    assert state_bytes(slim) == state_bytes(again)


# --- 9: no weights are needed -----------------------------------------------------------------------------


def llama_on_meta(**sizes: Any) -> Program:
    import transformers

    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
        inputs = {"input_ids": torch.ones(3, 13, dtype=torch.long)}
    return capture(model.eval(), kwargs=inputs)


def test_law_9_analysis_needs_no_weights() -> None:
    small = {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    }
    program = llama_on_meta(**small, num_hidden_layers=2)
    assert all(value.device.type == "meta" for value in program.parameters().values())
    roles = [axis.role for axis in analyze(program).axes]
    assert roles.count("ffn") == 2
    slim = shrink(
        program, Selection({a.name: range(a.size // 2) for a in analyze(program).axes if a.role == "ffn"})
    )
    assert slim.parameter_count() < program.parameter_count()
    assert all(value.device.type == "meta" for value in slim.parameters().values())


@pytest.mark.slow
def test_law_9_seven_billion_parameters_in_seconds() -> None:
    start = time.perf_counter()
    program = llama_on_meta(
        hidden_size=4096,
        intermediate_size=11008,
        num_attention_heads=32,
        num_key_value_heads=32,
        num_hidden_layers=32,
    )
    axes = analyze(program).axes
    seconds = time.perf_counter() - start
    assert program.parameter_count() > 6_500_000_000
    assert sum(axis.role == "ffn" for axis in axes) == 32
    assert seconds < 60
