"""Lowering of gates: the smaller program computes the same as the gated one, whichever gates are closed."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from expecttest import assert_expected_inline
from torch import Tensor, nn

from fxprune import analyze, capture, show
from fxprune.cost import Clock
from fxprune.errors import SelectionError
from fxprune.export import export_onnx
from fxprune.gates import LOWERINGS, Gate, Gated, Lowered
from fxprune.gates.insert import gate
from fxprune.gates.lower import lower
from fxprune.ir import Program
from fxprune.runtimes import Settings
from fxprune.search.alternatives import cheapest_lowerings
from support.gated import FAMILIES, drawn, everything, family, gated, masked, named, with_masks
from support.models import captured, distance
from support.texts import mlp
from zoo.nets import NETS

MASKS = 5


def called(program: Program) -> Any:
    with torch.no_grad():
        return program(*program.args, **program.kwargs)


def lowered(on: Gated, masks: dict[Gate, Tensor], how: str = "pad") -> Lowered:
    """The lowered program, which computes what the gated one does."""
    found = lower(on, masked(on, masks), how)
    assert distance(called(found.program), called(with_masks(on, masks))) < 1e-5
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_open_gates_change_nothing(name: str) -> None:
    assert distance(called(gated(name).program), called(family(name))) == 0


@pytest.mark.parametrize("how", LOWERINGS)
@pytest.mark.parametrize("name", FAMILIES)
def test_lowered_is_gated(name: str, how: str) -> None:
    for seed in range(MASKS):
        lowered(gated(name), drawn(gated(name), seed), how)


@pytest.mark.slow
@pytest.mark.parametrize("how", LOWERINGS)
@pytest.mark.parametrize("name", FAMILIES)
def test_lowered_is_gated_for_200_masks(name: str, how: str, tmp_path: Path) -> None:
    for seed in range(1000, 1200):
        found = lowered(gated(name), drawn(gated(name), seed), how)
        export_onnx(found.program, tmp_path / "lowered.onnx", overwrite=True)


@pytest.mark.parametrize("how", LOWERINGS)
@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
def test_onnx_runtime_agrees(name: str, how: str, tmp_path: Path) -> None:
    found = lowered(gated(name), drawn(gated(name), 3), how)
    assert export_onnx(found.program, tmp_path / "lowered.onnx").relative < 1e-4


def closed(on: Gated, *endings: str) -> dict[Gate, Tensor]:
    """All gates open but those of the named axes and regions."""
    masks = {g: torch.ones_like(on.program.tensors()[g.name]) for g in on.gates}
    for ending in endings:
        found = named(on, ending)
        masks[found] = torch.zeros_like(masks[found])
    return masks


def sizes(program: Program, *endings: str) -> list[int | None]:
    """The sizes of the first layer's axes, None for one that is gone."""
    found = {axis.name: axis.size for axis in analyze(program).axes}
    return [next((size for name, size in found.items() if name.endswith(end)), None) for end in endings]


def test_attention_without_heads_leaves_its_output_bias() -> None:
    on = gated("bert")
    found = lowered(on, closed(on, "0.attention.heads"))
    names = found.program.tensors()
    assert "encoder.layer.0.attention.output.dense.bias" in names
    assert not [n for n in names if n.startswith("encoder.layer.0.attention") and n.endswith("dense.weight")]
    assert not [n for n in names if n.startswith("encoder.layer.0.attention.self")]
    assert found.gone == (
        "encoder.layer.0.attention.heads",
        "encoder.layer.0.attention.self.qk",
        "encoder.layer.0.attention.v",
    )


def test_an_empty_ffn_leaves_its_output_bias() -> None:
    on = gated("bert")
    names = lowered(on, closed(on, "0.ffn")).program.tensors()
    assert "encoder.layer.0.output.dense.bias" in names
    assert not {"encoder.layer.0.output.dense.weight", "encoder.layer.0.intermediate.dense.weight"} & set(
        names
    )


def test_heads_without_q_and_k_dims_attend_evenly() -> None:
    on = gated("bert")
    masks = closed(on)
    masks[named(on, "0.attention.self.qk")][1] = 0
    found = lowered(on, masks)
    assert sizes(found.program, "0.attention.heads", "0.attention.self.qk") == [4, 8]
    masks[named(on, "0.attention.self.qk")][:] = 0
    found = lowered(on, masks)
    assert found.program.tensors()["encoder.layer.0.attention.self.query.weight"].shape == (4, 32)


def test_a_head_without_v_dims_goes_whatever_its_q_and_k_dims() -> None:
    on = gated("bert")
    masks = closed(on)
    masks[named(on, "0.attention.v")][2] = 0
    assert sizes(lowered(on, masks).program, "0.attention.heads") == [3]


def test_a_whole_layer_and_all_layers() -> None:
    on = gated("bert")
    found = lowered(on, closed(on, "encoder.layer.0"))
    assert found.regions == ("encoder.layer.0",)
    assert not [name for name in found.program.tensors() if name.startswith("encoder.layer.0")]
    found = lowered(on, closed(on, "encoder.layer.0", "encoder.layer.1"))
    assert not [name for name in found.program.tensors() if name.startswith("encoder.layer")]


@pytest.mark.parametrize("how", LOWERINGS)
def test_unequal_heads_have_three_lowerings(how: str) -> None:
    """Heads of 8, 8, 4, 2 value dims: padded to 8 each, in three buckets, or one by one."""
    on = gated("bert")
    masks = closed(on)
    v = masks[named(on, "0.attention.v")]
    v[2, 4:] = 0
    v[3, 2:] = 0
    found = lowered(on, masks, how)
    rows = sum(
        len(value)
        for name, value in found.program.tensors().items()
        if name.startswith("encoder.layer.0.attention.self.value") and name.endswith("weight")
    )
    assert rows == {"pad": 32, "bucket": 22, "loop": 22}[how]
    attentions = [n for n in found.program.graph.nodes if "scaled_dot" in str(n.target)]
    assert len(attentions) == {"pad": 2, "bucket": 4, "loop": 5}[how]


def uneven(on: Gated) -> dict[Gate, Tensor]:
    """The first layer's heads have 8, 8, 2, 1 value dims, the second layer's all 8."""
    masks = closed(on)
    v = masks[named(on, "0.attention.v")]
    v[2, 2:] = 0
    v[3, 1:] = 0
    return masks


def test_the_cheapest_lowering_is_metered() -> None:
    on = gated("bert")
    seen: dict[str, int] = {}

    def meter(wanted: Any) -> dict[str, float]:
        for how, (_, make) in wanted.items():
            program = make()
            seen[how] = program.parameter_count()
            assert len([n for n in program.graph.nodes if "scaled_dot" in str(n.target)]) == calls[how]
        return {how: abs(seen[how] - wish[how]) for how in wanted}

    calls, wish = {"pad": 1, "bucket": 3, "loop": 4}, dict.fromkeys(LOWERINGS, 0)
    chosen = cheapest_lowerings(on, masked(on, uneven(on)), meter)
    assert chosen == {"encoder.layer.0.attention.heads": "bucket"}
    assert seen["pad"] > seen["bucket"] == seen["loop"]
    wish = {"pad": seen["pad"], "bucket": 0, "loop": 0}
    assert cheapest_lowerings(on, masked(on, uneven(on)), meter) == {"encoder.layer.0.attention.heads": "pad"}


def test_the_cheapest_lowering_on_the_runtime(tmp_path: Path) -> None:
    on = gated("bert")
    chosen = cheapest_lowerings(
        on, masked(on, uneven(on)), Clock(Settings(1), tmp_path / "costs.json"), {"batch": 2, "length": 9}
    )
    assert set(chosen.values()) <= set(LOWERINGS)
    found = lower(on, masked(on, uneven(on)), chosen)
    assert distance(called(found.program), called(with_masks(on, uneven(on)))) < 1e-5


def test_no_lowering_of_another_name() -> None:
    on = gated("bert")
    with pytest.raises(SelectionError, match="no lowering 'heap'; lowerings: pad, bucket, loop"):
        lower(on, masked(on, drawn(on, 0)), "heap")


def test_a_gate_half_open_is_refused() -> None:
    on = gated("bert")
    masks = closed(on)
    masks[named(on, "0.ffn")][3] = 0.5
    with pytest.raises(SelectionError, match=r"gates.encoder_layer_0_ffn has the value 0\.5; only 0 "):
        lower(on, masked(on, masks))


def test_an_inexact_axis_has_no_gates() -> None:
    with pytest.raises(SelectionError, match="no closed gate equals removal"):
        gate(family("llama"), [next(a.name for a in analyze(family("llama")).axes if a.role == "hidden")])


def test_units_within_need_an_axis_around_them() -> None:
    with pytest.raises(
        SelectionError, match=r"encoder.layer.0.ffn has no units of its own within .*; it has within: none"
    ):
        gate(family("bert"), [("encoder.layer.0.ffn", "encoder.layer.0.attention.heads")])


def test_blocks_of_weights() -> None:
    """A block is silent exactly where its rows and columns meet, edges included."""
    torch.manual_seed(0)
    program = capture(nn.Sequential(nn.Linear(7, 10), nn.ReLU(), nn.Linear(10, 3)), (torch.randn(4, 7),))
    on = gate(program, blocks={"0.weight": (4, 3)})
    assert on.program.tensors()["gates.0_weight"].shape == (3, 3)
    mask = torch.ones(3, 3)
    mask[2, 0] = mask[0, 2] = 0
    found = lowered(on, {on.gates[0]: mask}).program.tensors()["0.weight"]
    assert bool((found[8:, :3] == 0).all())
    assert bool((found[:4, 6:] == 0).all())
    assert int((found == 0).sum()) == 2 * 3 + 4 * 1


def test_the_gradient_of_a_gate_is_the_sum_over_its_unit() -> None:
    """Of weight · gradient, over the columns that read the unit: the group Taylor score comes from the gate's gradient."""
    on = gated("bert")
    module = on.module()
    sum(out.square().sum() for out in module(**on.program.kwargs).values()).backward()
    tensors = dict(module.named_parameters())
    weight = tensors["encoder.layer.0.output.dense.weight"]
    found = tensors[named(on, "0.ffn").name].grad
    assert weight.grad is not None
    assert found is not None
    expected = (weight * weight.grad).sum(0)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.detach().abs().max()))


def test_a_trained_module_is_lowered_with_its_weights() -> None:
    """Whatever torch put before the names."""
    on = gated("bert")
    module = on.module()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.5 if parameter.dim() > 1 and parameter.shape[0] > 8 else 1.0)
    compiled: Any = torch.compile(module, backend="eager")
    found = lower(on, compiled)
    assert distance(called(found.program), module(**on.program.kwargs)) < 1e-5


@pytest.mark.parametrize("name", NETS)
def test_gates_of_hand_written_nets(name: str) -> None:
    """Of every net of the zoo: all exact axes at once, padded and one by one."""
    program = captured(name)
    on = gate(program, everything(program))
    for seed, how in enumerate(("pad", "bucket") if on.gates else ()):
        lowered(on, drawn(on, seed), how)


def test_a_part_called_module_is_no_wrapper() -> None:
    """Neither in a module nor among the names of a state dict, which may be that of a wrapper."""
    torch.manual_seed(0)
    inner = nn.Sequential(OrderedDict(module=nn.Linear(4, 8), act=nn.ReLU(), _orig_mod=nn.Linear(8, 2)))
    on = gate(capture(inner, (torch.randn(3, 4),)), ["ffn"])
    module = on.module()
    with torch.no_grad():
        dict(module.named_parameters())[on.gates[0].name][3:] = 0
    states = (
        module,
        module.state_dict(),
        {f"module._orig_mod.{n}": v for n, v in module.state_dict().items()},
    )
    assert [lower(on, state).program.tensors()["module.weight"].shape for state in states] == [(3, 4)] * 3


def test_before_and_after() -> None:
    """Three of 32 gates are open: three neurons stay, and no gate."""
    on = gate(capture(mlp(), (torch.randn(3, 8),)), ["ffn"])
    assert_expected_inline(
        show(on.program),
        """\
x: (!3, !8)
up.weight: (ffn:32, !8)
up.bias: (ffn:32)
linear = linear(x, up.weight, up.bias) -> (!3, ffn:32)
relu = relu(linear) -> (!3, ffn:32)
gates.ffn: (ffn:32)
view_default = view(gates.ffn, [1, 32]) -> (1, ffn:32)
down.weight: (!8, ffn:32)
mul_tensor = mul(down.weight, view_default) -> (!8, ffn:32)
down.bias: (!8)
linear_1 = linear(relu, mul_tensor, down.bias) -> (!3, !8)
return linear_1""",
    )
    with torch.no_grad():
        on.program.tensors()[on.gates[0].name][3:] = 0
    assert_expected_inline(
        show(lower(on).program),
        """\
x: (!3, !8)
up.weight: (ffn:3, !8)
up.bias: (ffn:3)
linear = linear(x, up.weight, up.bias) -> (!3, ffn:3)
relu = relu(linear) -> (!3, ffn:3)
down.weight: (!8, ffn:3)
down.bias: (!8)
linear_1 = linear(relu, down.weight, down.bias) -> (!3, !8)
return linear_1""",
    )


def test_before_and_after_of_an_empty_layer() -> None:
    """No gate is open: the bias of the second linear is all that is left."""
    on = gate(capture(mlp(), (torch.randn(3, 8),)), ["ffn"])
    with torch.no_grad():
        on.program.tensors()[on.gates[0].name][:] = 0
    assert_expected_inline(
        show(lower(on).program),
        """\
x: (!3, !8)
down.bias: (!8)
expand_default = expand(down.bias, [3, 8]) -> (!3, !8)
return expand_default""",
    )
