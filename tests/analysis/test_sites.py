# mypy: disable-error-code="no-any-return"
# The result of calling a module is Any to the type checker.
"""Sites: axes that are decided together, and the part of the graph whose cost they change, which computes the same as in its place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from fxprune import Program, Selection, analyze, capture, shrink
from fxprune.analysis.sites import Site, find_sites
from fxprune.cost.subgraph import Part, part, values_at
from fxprune.errors import UsageError
from fxprune.ir import Point
from fxprune.ir.example_inputs import call_inputs
from fxprune.ir.program import flatten_inputs
from support.models import captured, distance

Row = tuple[str, str, int, dict[str, int], str]


def rows(program: Program, hidden: bool = False) -> list[Row]:
    """Of each site: main axis, role, size, sizes of the inner axes, branch."""
    found = find_sites(analyze(program), hidden)
    return [
        (s.main.name, s.main.role, s.main.size, {a.name: a.size for a in s.inner}, s.branch) for s in found
    ]


def bert_layer(i: int) -> list[Row]:
    at = f"encoder.layer.{i}"
    inner = {f"{at}.attention.self.qk": 8, f"{at}.attention.v": 8}
    return [
        (f"{at}.attention.heads", "heads", 4, inner, f"{at}.attention.branch"),
        (f"{at}.ffn", "ffn", 64, {}, f"{at}.ffn"),
    ]


def gpt2_layer(i: int) -> list[Row]:
    at = f"transformer.h.{i}"
    inner = {f"{at}.attn.c_attn.qk": 8, f"{at}.attn.v": 8}
    return [
        (f"{at}.attn.heads", "heads", 4, inner, f"{at}.attention"),
        (f"{at}.mlp.ffn", "ffn", 128, {}, f"{at}.ffn"),
    ]


def llama_layer(i: int) -> list[Row]:
    """Rotary tables tie qk over the heads: it is a site of its own, and then the branch holds two."""
    at = f"model.layers.{i}"
    return [
        (f"{at}.self_attn.kv", "heads", 2, {f"{at}.self_attn.v": 8}, ""),
        (f"{at}.self_attn.qk", "qk", 4, {}, ""),
        (f"{at}.mlp.ffn", "ffn", 64, {}, f"{at}.ffn"),
    ]


LAYERS = {"bert": bert_layer, "gpt2": gpt2_layer, "llama": llama_layer}


@pytest.mark.parametrize("name", LAYERS)
def test_heads_hold_what_each_may_choose_and_branches_hold_one_site(name: str) -> None:
    assert rows(captured(name, dynamic=True)) == [*LAYERS[name](0), *LAYERS[name](1)]


def test_channels_tied_over_residuals_are_one_site() -> None:
    found = rows(captured("resnet"))
    assert [(name, size) for name, _, size, _, _ in found] == [
        ("resnet.channels", 8),
        ("resnet.encoder.stages.channels", 16),
        *((f"resnet.encoder.stages.0.layers.{i}.layer.channels", 16) for i in range(2)),
        ("channels", 32),
        *((f"resnet.encoder.stages.1.layers.{i}.layer.channels", 32) for i in range(2)),
    ]
    assert {(role, branch, len(inner)) for _, role, _, inner, branch in found} == {("channels", "", 0)}


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_stream_is_a_site_only_where_it_is_asked_for(name: str) -> None:
    """It takes no branch from anybody."""
    stream: Row = ("hidden", "hidden", 32, {}, "")
    assert rows(captured(name, dynamic=True), hidden=True) == [stream, *LAYERS[name](0), *LAYERS[name](1)]


def test_what_is_inexact_is_not_decided() -> None:
    """A norm over the neurons: its statistics change with them."""
    nets = [nn.Sequential(nn.Linear(4, 10), norm, nn.Linear(10, 3)) for norm in (nn.LayerNorm(10), nn.ReLU())]
    assert [len(rows(capture(net, (torch.randn(2, 4),)))) for net in nets] == [0, 1]


class Mixed(nn.Module):
    """Integers are looked up and a mask of booleans is read inside of the site; of three pieces one leaves it."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.up = nn.Embedding(7, 10), nn.Linear(10, 24)
        self.down, self.out = nn.Linear(8, 5), nn.Linear(10, 5)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        h = self.table(ids).masked_fill(~mask[..., None], 0.5)
        a, b, c = self.up(h.tanh()).chunk(3, dim=-1)
        return self.down((a * b).relu()) + self.out(h), c.softmax(-1).sum(-1)


def mixed() -> Program:
    torch.manual_seed(0)
    ids, free = torch.arange(15).reshape(3, 5) % 7, {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    return capture(Mixed(), (ids, ids > 2), dynamic_shapes={"ids": free, "mask": free})


def program_of(name: str) -> Program:
    return mixed() if name == "mixed" else captured(name, dynamic=True)


class Recorder(fx.Interpreter):
    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.values: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.values[n.name] = super().run_node(n)
        return self.values[n.name]


def recorded(program: Program, point: Point | None) -> dict[str, Any]:
    """Every value of the whole graph, by node."""
    recorder = Recorder(program.graph_module)
    with torch.no_grad():
        recorder.run(*flatten_inputs(program, *call_inputs(program, point)), enable_io_processing=False)
    return recorder.values


def fed(program: Program, made: Part, values: dict[str, Any]) -> list[Tensor]:
    """What the whole graph feeds the nodes that read the part's inputs."""
    nodes = {node.name: node for node in program.graph.nodes}
    found = []
    for placeholder in made.graph.graph.find_nodes(op="placeholder"):
        reader = next(iter(placeholder.users))
        sources = [n for n in nodes[reader.name].all_input_nodes if not isinstance(values[n.name], int)]
        found.append(values[sources[reader.all_input_nodes.index(placeholder)].name])
    return found


def read_elsewhere(program: Program, made: Part, values: dict[str, Any]) -> list[Tensor]:
    """What the part's nodes give to nodes outside of it."""
    own = {node.name for node in made.graph.graph.nodes if node.op == "call_function"}
    nodes = [node for node in program.graph.nodes if node.name in own]
    return [values[node.name] for node in nodes if not own.issuperset(user.name for user in node.users)]


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "resnet", "mixed"])
@pytest.mark.parametrize("point", [None, {"batch": 2, "length": 7}], ids=["example", "elsewhere"])
def test_a_part_computes_what_its_nodes_compute_in_the_whole(name: str, point: Point | None) -> None:
    program = program_of(name)
    known, values = recorded(program, point), values_at(program, point)
    found = find_sites(analyze(program), hidden=True)
    assert found
    for site in found:
        made = part(program, site.nodes, values)
        inputs, wanted = fed(program, made, known), read_elsewhere(program, made, known)
        assert [(v.shape, v.dtype) for v in inputs] == [(v.shape, v.dtype) for v in made.inputs]
        with torch.no_grad():
            got = made.graph(*inputs)
        assert len(got) == len(wanted) > 0
        assert distance(got, wanted) <= 1e-6
        assert site.nodes <= {node.name for node in made.graph.graph.nodes}


def parts_of(program: Program, found: tuple[Site, ...], point: Point | None = None) -> list[Part]:
    values = values_at(program, point)
    return [part(program, site.nodes, values) for site in found]


def test_a_part_is_a_program_of_its_own_that_holds_its_weights_only() -> None:
    program = captured("gpt2", dynamic=True)
    attention, ffn, *_ = parts_of(program, find_sites(analyze(program)))
    for made, width in ((attention, 3 * 32), (ffn, 4 * 32)):
        own = made.program()
        into, out = 32 * width + width, (32 if made is attention else width) * 32 + 32
        assert own.parameter_count() == into + out
        assert distance(own(*made.inputs), made.graph(*made.inputs)) <= 1e-6
    assert {name.split(".")[2] for name in attention.program().tensors()} == {"0"}


def test_made_up_inputs_are_normal_floats_and_ones() -> None:
    program = mixed()
    (site,) = [site for site in find_sites(analyze(program)) if site.main.size == 10]
    (made,) = parts_of(program, (site,))
    assert [str(value.dtype) for value in made.inputs[:2]] == ["torch.int64", "torch.bool"]
    assert all(bool((value == 1).all()) for value in made.inputs[:2])
    again = parts_of(program, (site,))[0].inputs
    assert all(torch.equal(one, other) for one, other in zip(made.inputs, again, strict=True))
    (noise,) = parts_of(captured("resnet"), find_sites(analyze(captured("resnet")))[:1])[0].inputs[:1]
    assert abs(float(noise.mean())) < 0.1
    assert float(noise.std()) == pytest.approx(1.0, abs=0.1)


def test_equal_layers_have_equal_signatures() -> None:
    program = captured("bert", dynamic=True)
    found = find_sites(analyze(program))
    heads, ffn, heads_too, ffn_too = (made.signature for made in parts_of(program, found))
    assert heads == heads_too
    assert ffn == ffn_too
    elsewhere = [made.signature for made in parts_of(program, found, {"batch": 2, "length": 7})]
    assert len({heads, ffn, *elsewhere}) == 4


def test_another_size_or_literal_is_another_signature() -> None:
    program = captured("bert", dynamic=True)
    found = find_sites(analyze(program))
    slim = shrink(program, Selection({"encoder.layer.0.ffn": list(range(63))}))
    signatures = [made.signature for made in parts_of(slim, found)]
    assert signatures[0] == signatures[2]
    assert signatures[1] != signatures[3]
    slopes = []
    for slope in (0.1, 0.2):
        net = nn.Sequential(nn.Linear(4, 6), nn.LeakyReLU(slope), nn.Linear(6, 3))
        leaky = capture(net, (torch.randn(2, 4),))
        slopes += [made.signature for made in parts_of(leaky, find_sites(analyze(leaky)))]
    assert len(set(slopes)) == len(slopes) == 2


def test_a_point_that_the_program_can_t_run_at_is_a_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    program = captured("bert", dynamic=True)
    with pytest.raises(UsageError, match=r"the program can't run at batch=8, length=128: .*expanded size"):
        values_at(program, {"batch": 8, "length": 128})
    assert capfd.readouterr().err == ""
