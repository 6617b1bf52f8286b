"""Axes: the results of analysis on models, as text; no hint is given anywhere."""

from __future__ import annotations

import pytest
import torch
from expecttest import assert_expected_inline
from torch import nn

from fxprune import Analysis, Program, analyze, capture
from fxprune.errors import SelectionError
from fxprune.ir import source_line
from support.models import captured, hugging_face, net
from support.texts import Net
from zoo.nets import NETS


def shown(analysis: Analysis, within: str = "") -> str:
    """The axes of a part of a model: name, size, `~` where inexact; then the notation of each of its parameters."""
    axes = [axis for axis in analysis.axes if any(member.name.startswith(within) for member in axis.members)]
    lines = [f"{axis.name} {axis.role}:{axis.size}{'' if axis.exact else ' ~'}" for axis in axes]
    notes = {(m.name, m.dim): m.notation for axis in axes for m in axis.members if m.name.startswith(within)}
    return "\n".join([*lines, *(f"  {name}[{dim}] {note}" for (name, dim), note in sorted(notes.items()))])


def test_bert_layer() -> None:
    assert_expected_inline(
        shown(analyze(captured("bert")), "encoder.layer.0."),
        """\
encoder.layer.0.attention.heads heads:4
encoder.layer.0.attention.self.qk qk:8
encoder.layer.0.attention.v v:8
encoder.layer.0.ffn ffn:64
  encoder.layer.0.attention.output.dense.weight[1] (heads:4 x v:8)
  encoder.layer.0.attention.self.key.bias[0] (heads:4 x qk:8)
  encoder.layer.0.attention.self.key.weight[0] (heads:4 x qk:8)
  encoder.layer.0.attention.self.query.bias[0] (heads:4 x qk:8)
  encoder.layer.0.attention.self.query.weight[0] (heads:4 x qk:8)
  encoder.layer.0.attention.self.value.bias[0] (heads:4 x v:8)
  encoder.layer.0.attention.self.value.weight[0] (heads:4 x v:8)
  encoder.layer.0.intermediate.dense.bias[0] ffn:64
  encoder.layer.0.intermediate.dense.weight[0] ffn:64
  encoder.layer.0.output.dense.weight[1] ffn:64""",
    )


def test_gpt2_has_q_k_and_v_apart() -> None:
    assert_expected_inline(
        shown(analyze(captured("gpt2")), "transformer.h.0."),
        """\
hidden hidden:32 ~
transformer.h.0.attn.heads heads:4
transformer.h.0.attn.c_attn.qk qk:8
transformer.h.0.attn.v v:8
transformer.h.0.mlp.ffn ffn:128
  transformer.h.0.attn.c_attn.bias[0] ((heads:4 x qk:8) + (heads:4 x qk:8) + (heads:4 x v:8))
  transformer.h.0.attn.c_attn.weight[0] hidden:32
  transformer.h.0.attn.c_attn.weight[1] ((heads:4 x qk:8) + (heads:4 x qk:8) + (heads:4 x v:8))
  transformer.h.0.attn.c_proj.bias[0] hidden:32
  transformer.h.0.attn.c_proj.weight[0] (heads:4 x v:8)
  transformer.h.0.attn.c_proj.weight[1] hidden:32
  transformer.h.0.ln_1.bias[0] hidden:32
  transformer.h.0.ln_1.weight[0] hidden:32
  transformer.h.0.ln_2.bias[0] hidden:32
  transformer.h.0.ln_2.weight[0] hidden:32
  transformer.h.0.mlp.c_fc.bias[0] ffn:128
  transformer.h.0.mlp.c_fc.weight[0] hidden:32
  transformer.h.0.mlp.c_fc.weight[1] ffn:128
  transformer.h.0.mlp.c_proj.bias[0] hidden:32
  transformer.h.0.mlp.c_proj.weight[0] ffn:128
  transformer.h.0.mlp.c_proj.weight[1] hidden:32""",
    )


def test_llama_has_kv_times_rep_and_rotary_pairs() -> None:
    assert_expected_inline(
        shown(analyze(captured("llama")), "model.layers.0."),
        """\
hidden hidden:32 ~
model.layers.0.self_attn.kv heads:2
model.layers.0.self_attn.rep heads:2
model.layers.0.self_attn.qk qk:4
model.layers.0.self_attn.v v:8
model.layers.0.mlp.ffn ffn:64
  model.layers.0.input_layernorm.weight[0] hidden:32
  model.layers.0.mlp.down_proj.weight[0] hidden:32
  model.layers.0.mlp.down_proj.weight[1] ffn:64
  model.layers.0.mlp.gate_proj.weight[0] ffn:64
  model.layers.0.mlp.gate_proj.weight[1] hidden:32
  model.layers.0.mlp.up_proj.weight[0] ffn:64
  model.layers.0.mlp.up_proj.weight[1] hidden:32
  model.layers.0.post_attention_layernorm.weight[0] hidden:32
  model.layers.0.self_attn.k_proj.weight[0] (kv:2 x (qk:4 + qk:4))
  model.layers.0.self_attn.k_proj.weight[1] hidden:32
  model.layers.0.self_attn.o_proj.weight[0] hidden:32
  model.layers.0.self_attn.o_proj.weight[1] (kv:2 x rep:2 x v:8)
  model.layers.0.self_attn.q_proj.weight[0] ((kv:2 x rep:2) x (qk:4 + qk:4))
  model.layers.0.self_attn.q_proj.weight[1] hidden:32
  model.layers.0.self_attn.v_proj.weight[0] (kv:2 x v:8)
  model.layers.0.self_attn.v_proj.weight[1] hidden:32""",
    )


def test_resnet_ties_channels_over_residuals() -> None:
    assert_expected_inline(
        shown(analyze(captured("resnet")), "resnet.encoder.stages.1."),
        """\
resnet.encoder.stages.channels channels:16
channels channels:32
resnet.encoder.stages.1.layers.0.layer.channels channels:32
resnet.encoder.stages.1.layers.1.layer.channels channels:32
  resnet.encoder.stages.1.layers.0.layer.0.convolution.weight[0] channels:32
  resnet.encoder.stages.1.layers.0.layer.0.convolution.weight[1] channels:16
  resnet.encoder.stages.1.layers.0.layer.0.normalization.bias[0] channels:32
  resnet.encoder.stages.1.layers.0.layer.0.normalization.running_mean[0] channels:32
  resnet.encoder.stages.1.layers.0.layer.0.normalization.running_var[0] channels:32
  resnet.encoder.stages.1.layers.0.layer.0.normalization.weight[0] channels:32
  resnet.encoder.stages.1.layers.0.layer.1.convolution.weight[0] channels:32
  resnet.encoder.stages.1.layers.0.layer.1.convolution.weight[1] channels:32
  resnet.encoder.stages.1.layers.0.layer.1.normalization.bias[0] channels:32
  resnet.encoder.stages.1.layers.0.layer.1.normalization.running_mean[0] channels:32
  resnet.encoder.stages.1.layers.0.layer.1.normalization.running_var[0] channels:32
  resnet.encoder.stages.1.layers.0.layer.1.normalization.weight[0] channels:32
  resnet.encoder.stages.1.layers.0.shortcut.convolution.weight[0] channels:32
  resnet.encoder.stages.1.layers.0.shortcut.convolution.weight[1] channels:16
  resnet.encoder.stages.1.layers.0.shortcut.normalization.bias[0] channels:32
  resnet.encoder.stages.1.layers.0.shortcut.normalization.running_mean[0] channels:32
  resnet.encoder.stages.1.layers.0.shortcut.normalization.running_var[0] channels:32
  resnet.encoder.stages.1.layers.0.shortcut.normalization.weight[0] channels:32
  resnet.encoder.stages.1.layers.1.layer.0.convolution.weight[0] channels:32
  resnet.encoder.stages.1.layers.1.layer.0.convolution.weight[1] channels:32
  resnet.encoder.stages.1.layers.1.layer.0.normalization.bias[0] channels:32
  resnet.encoder.stages.1.layers.1.layer.0.normalization.running_mean[0] channels:32
  resnet.encoder.stages.1.layers.1.layer.0.normalization.running_var[0] channels:32
  resnet.encoder.stages.1.layers.1.layer.0.normalization.weight[0] channels:32
  resnet.encoder.stages.1.layers.1.layer.1.convolution.weight[0] channels:32
  resnet.encoder.stages.1.layers.1.layer.1.convolution.weight[1] channels:32
  resnet.encoder.stages.1.layers.1.layer.1.normalization.bias[0] channels:32
  resnet.encoder.stages.1.layers.1.layer.1.normalization.running_mean[0] channels:32
  resnet.encoder.stages.1.layers.1.layer.1.normalization.running_var[0] channels:32
  resnet.encoder.stages.1.layers.1.layer.1.normalization.weight[0] channels:32""",
    )


def test_latent_attention_shares_a_part_of_the_key() -> None:
    assert_expected_inline(
        shown(analyze(captured("latent"))),
        """\
heads heads:4
q.qk qk:4
q.qk.2 qk:2
ffn ffn:8
v v:5
  down.bias[0] (ffn:8 + 2:2)
  down.weight[0] (ffn:8 + 2:2)
  o.weight[1] (heads:4 x v:5)
  q.bias[0] (heads:4 x (qk:4 + 2:2))
  q.weight[0] (heads:4 x (qk:4 + 2:2))
  up.bias[0] (heads:4 x (qk:4 + v:5))
  up.weight[0] (heads:4 x (qk:4 + v:5))
  up.weight[1] ffn:8""",
    )


def test_an_option_a_shortcut_ties_through_the_padding() -> None:
    assert_expected_inline(
        shown(analyze(captured("resnet-option-a"))),
        """\
channels channels:8
a.0.channels channels:16
b.0.channels channels:4
b.0.channels.2 channels:4
  a.0.weight[0] channels:16
  a.0.weight[1] channels:8
  a.1.bias[0] channels:16
  a.1.running_mean[0] channels:16
  a.1.running_var[0] channels:16
  a.1.weight[0] channels:16
  b.0.weight[0] (channels:4 + channels:8 + 2:4)
  b.0.weight[1] channels:16
  b.1.bias[0] (channels:4 + channels:8 + 2:4)
  b.1.running_mean[0] (channels:4 + channels:8 + 2:4)
  b.1.running_var[0] (channels:4 + channels:8 + 2:4)
  b.1.weight[0] (channels:4 + channels:8 + 2:4)
  head.weight[1] (channels:4 + channels:8 + 2:4)
  stem.0.weight[0] channels:8
  stem.1.bias[0] channels:8
  stem.1.running_mean[0] channels:8
  stem.1.running_var[0] channels:8
  stem.1.weight[0] channels:8""",
    )


def test_stacked_qkv_keeps_queries_and_values_apart() -> None:
    axes = analyze(captured("stacked-qkv")).axes
    assert sorted((axis.role, axis.size) for axis in axes) == [("heads", 4), ("qk", 4), ("v", 4)]


def test_layers_are_not_tied_by_a_shared_bias_table_in_sizes_of_their_values() -> None:
    axes = analyze(captured("relative-bias")).axes
    assert sum(axis.role == "v" for axis in axes) == 2
    assert sum(axis.role == "qk" for axis in axes) == 2


INEXACT = {
    "residual-mlp-norm": "normalisation",
    "input-convex": "no zeros of weights",
    "pairwise-sum": "no zeros of weights",
    "broadcast": "no zeros of weights",
    "linear-attention": "no zeros of weights",
    "maxout": "amax",
    "qk-norm": "normalisation",
}


@pytest.mark.parametrize(("name", "why"), INEXACT.items())
def test_an_inexact_axis_says_why(name: str, why: str) -> None:
    inexact = [axis for axis in analyze(captured(name)).axes if not axis.exact]
    assert inexact
    assert all(why in axis.why_inexact for axis in inexact)


def test_exact_axes_name_their_readers() -> None:
    axis = analyze(captured("mlp")).axis("ffn")
    assert axis.readers == ("down.weight",)
    assert {(m.name, m.dim) for m in axis.members} == {("up.weight", 0), ("up.bias", 0), ("down.weight", 1)}


def test_members_say_which_positions_a_unit_takes() -> None:
    heads = next(axis for axis in analyze(captured("self-attention")).axes if axis.role == "heads")
    member = next(member for member in heads.members if member.name == "q.weight")
    assert member.indices(1) == [4, 5, 6, 7]
    qk = next(axis for axis in analyze(captured("self-attention")).axes if axis.role == "qk")
    assert next(m for m in qk.members if m.name == "q.weight").indices(1) == [1, 5, 9, 13]


def test_refusals_say_what_why_and_where() -> None:
    """What an output keeps whole bears the line of the output that carries it, all else that of the node that requires it."""
    net = Net(
        lambda net, x: (x.sum(), net.down(net.up(x).cumprod(-1))), up=nn.Linear(6, 8), down=nn.Linear(8, 5)
    )
    program = capture(net, (torch.randn(3, 6),))
    nodes = {str(node.target): node for node in program.graph.nodes}
    lines = {name: source_line(nodes[f"aten.{name}"]) for name in ("cumprod.default", "linear.default")}
    found = {refusal.places: refusal for refusal in analyze(program).refusals}
    given, chosen, out = (
        found[frozenset(places)]
        for places in (
            {("up.weight", 1)},
            {("up.weight", 0), ("up.bias", 0), ("down.weight", 1)},
            {("down.weight", 0), ("down.bias", 0)},
        )
    )
    assert (given.what, given.size, given.why, given.node, given.operator, given.source) == (
        *("dim 1 of up.weight", 6, "an input of the graph", "x", "x", ""),
    )
    assert (chosen.what, chosen.size, chosen.operator) == (
        "dim 0 of up.weight and 2 more",
        8,
        "aten.cumprod.default",
    )
    assert (out.size, out.why, out.node, out.operator) == (5, "an output of the graph", "output", "output")
    assert (chosen.source, out.source) == (lines["cumprod.default"], lines["linear.default"])
    assert "in forward: return F.linear" in out.source


def test_an_unknown_axis_names_the_nearest() -> None:
    with pytest.raises(SelectionError, match="no axis 'fnn' in this program; nearest: ffn"):
        analyze(captured("mlp")).axis("fnn")


def test_tied_weights_have_one_set_of_axes() -> None:
    hidden = next(axis for axis in analyze(captured("tied-lm")).axes if axis.size == 8)
    assert {member.dim for member in hidden.members if member.name.startswith(("embed", "head"))} == {1}


def test_buffers_shrink_with_the_weights() -> None:
    rotary = analyze(captured("rotary")).axes
    assert any(not member.learned for axis in rotary for member in axis.members)
    assert all(any(member.learned for member in axis.members) for axis in rotary)


@pytest.mark.parametrize("name", ["rotary", "latent", "unet", "tied-lm", "state-space"])
def test_names_are_unique_and_sizes_fit(name: str) -> None:
    analysis = analyze(captured(name))
    names = [axis.name for axis in analysis.axes]
    assert len(names) == len(set(names))
    for axis in analysis.axes:
        for member in axis.members:
            size = dict(captured(name).tensors())[member.name].shape[member.dim]
            places = [i for unit in range(axis.size) for i in member.indices(unit)]
            assert max(places) < size


def on_meta(name: str) -> tuple[Program, Program]:
    """The same model captured with weights and without."""
    model, inputs = hugging_face(name) if name in ("bert", "llama", "gpt2") else net(name)
    with torch.device("meta"):
        empty = {key: torch.empty_like(value, device="meta") for key, value in inputs.items()}
    return captured(name), capture(model.to("meta"), kwargs=empty)


@pytest.mark.parametrize("name", ["bert", "llama", "resnet-option-a", "stacked-qkv"])
def test_the_meta_device_gives_the_same_axes(name: str) -> None:
    real, meta = (analyze(program) for program in on_meta(name))
    assert [(a.name, a.role, a.size, a.exact) for a in meta.axes] == [
        (a.name, a.role, a.size, a.exact) for a in real.axes
    ]


def test_untied_layers_do_not_tie_on_meta() -> None:
    """Meta tensors have no storage to compare: two weights of one shape are still two."""
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5)).to("meta")
    axes = analyze(capture(model, (torch.empty(3, 6, device="meta"),))).axes
    assert [axis.size for axis in axes] == [8, 8]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(NETS))
def test_every_exact_axis_has_readers_or_no_sum(name: str) -> None:
    analysis = analyze(captured(name))
    for axis in analysis.axes:
        assert bool(axis.why_inexact) == (not axis.exact)
        assert set(axis.readers) <= set(captured(name).tensors())
