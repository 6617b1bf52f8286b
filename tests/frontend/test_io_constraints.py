"""Input and output constraints: inputs that shrink, and cache entries that go with their layer, in a decoder step with a list as cache."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import fxprune
from fxprune.errors import CaptureError, SelectionError
from fxprune.frontend.io_constraints import free_dims
from fxprune.ir import Program
from fxprune.ir.signature import put_inputs, with_inputs

HEADS, SIZE, WIDTH, LAYERS = 4, 3, 8, 3
Cache = list[dict[str, Tensor]]


class Step(nn.Module):
    """One layer: attention over what was and what is new."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, HEADS * SIZE) for _ in range(3))
        self.o = nn.Linear(HEADS * SIZE, WIDTH)

    def forward(self, x: Tensor, past: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        q, k, v = (each(x).unflatten(-1, (HEADS, SIZE)).transpose(1, 2) for each in (self.q, self.k, self.v))
        now = {"keys": torch.cat([past["keys"], k], 2), "values": torch.cat([past["values"], v], 2)}
        mixed = nn.functional.scaled_dot_product_attention(q, now["keys"], now["values"])
        return x + self.o(mixed.transpose(1, 2).flatten(2)), now


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Step() for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor, cache: Cache) -> dict[str, Any]:
        grown: Cache = []
        for layer, past in zip(self.layers, cache, strict=True):
            x, now = layer(x, past)
            grown.append(now)
        return {"logits": self.head(x), "cache": grown}


def cache(length: int) -> Cache:
    return [{name: torch.randn(2, HEADS, length, SIZE) for name in ("keys", "values")} for _ in range(LAYERS)]


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    kwargs = {"x": torch.randn(2, 4, WIDTH), "cache": cache(6)}
    grows = [{"keys": {2: Dim.AUTO}, "values": {2: Dim.AUTO}} for _ in range(LAYERS)]
    return fxprune.capture(
        Decoder().eval(), kwargs=kwargs, dynamic_shapes={"x": {1: Dim.AUTO}, "cache": grows}
    )


def freed(program: Program) -> Program:
    inputs = [name for name in program.input_names() if name.startswith("cache")]
    outputs = [name for name in program.output_names() if name.startswith("cache")]
    return free_dims(program, inputs, outputs, [*inputs, *outputs])


def roles(program: Program) -> list[str]:
    return sorted({axis.role for axis in fxprune.analyze(program).axes})


def test_heads_whose_cache_goes_in_and_out_stay_whole(program: Program) -> None:
    assert roles(program) == []
    whys = {refusal.why for refusal in fxprune.analyze(program).refusals}
    assert "an input of the graph" in whys


def test_a_free_cache_shrinks_with_its_heads(program: Program) -> None:
    whole = freed(program)
    assert roles(whole) == ["heads", "qk", "v"]
    result = fxprune.parse_pipeline("heads(ratio=0.5)").run(whole)
    assert [tuple(value.shape) for value in result.program.flat_inputs()[1:]] == [(2, 2, 6, SIZE)] * 6
    assert result.proof.relative <= 1e-5
    longer = [{name: value[:, :2] for name, value in entry.items()} for entry in cache(9)]
    grown = result.program(x=torch.randn(2, 3, WIDTH), cache=longer)["cache"]
    assert {tuple(value.shape) for entry in grown for value in entry.values()} == {(2, 2, 12, SIZE)}


def test_an_entry_goes_with_its_layer(program: Program) -> None:
    whole = freed(program)
    slim = fxprune.bypass(whole, ["layers.1"])
    assert len(slim.kwargs["cache"]) == 2
    assert len(slim.dynamic_shapes["cache"]) == 2
    assert slim.output_names() == (
        "logits",
        *(f"cache.{i}.{name}" for i in range(2) for name in ("keys", "values")),
    )
    old = whole.kwargs["cache"]
    assert all(
        torch.equal(slim.kwargs["cache"][place]["keys"], old[layer]["keys"])
        for place, layer in ((0, 0), (1, 2))
    )
    assert {*slim.spare, *slim.free_outputs} >= set(slim.output_names()) - {"logits"}


def test_a_layer_whose_size_gives_the_length_can_go(program: Program) -> None:
    slim = fxprune.bypass(freed(program), ["layers.0", "layers.2"])
    assert slim(x=torch.randn(2, 1, WIDTH), cache=cache(5)[:1])["cache"][0]["keys"].shape == (
        2,
        HEADS,
        6,
        SIZE,
    )


def test_layers_and_heads_together_are_proved(program: Program) -> None:
    whole = freed(program)
    result = fxprune.parse_pipeline("layers(count=1), heads(ratio=0.25)").run(whole)
    verdict = result.proof
    assert len(result.selection.removed) == 1
    assert verdict.relative <= 1e-5 < verdict.change


def test_a_forged_example_is_found(program: Program) -> None:
    whole = freed(program)
    result = fxprune.parse_pipeline("heads(ratio=0.5)").run(whole)
    name = result.program.placeholders()[1].name
    forged = with_inputs(result.program, {name: torch.zeros(2, 2, 6, SIZE)})
    with pytest.raises(fxprune.FxpruneError, match="not the part that the selection leaves"):
        fxprune.verify(whole, forged, result.selection)


def test_only_a_layer_whose_cache_is_spare_can_go(program: Program) -> None:
    half = free_dims(program, spare=["cache.1.keys", "cache.1.values"])
    can_go = {
        region.name for region in fxprune.analyze(half).regions if not region.why and region.unit == "layer"
    }
    assert can_go == {"layers.1"}
    with pytest.raises(SelectionError, match=r"layers\.0"):
        fxprune.bypass(half, ["layers.0"])


def test_unknown_names_are_refused(program: Program) -> None:
    with pytest.raises(CaptureError, match="no input 'past' to free; inputs: x, cache_0_keys"):
        free_dims(program, inputs=["past"])


def test_examples_are_put_where_they_belong(program: Program) -> None:
    name = program.input_names()[3]
    new = torch.zeros(2, HEADS, 6, SIZE)
    _, kwargs = put_inputs(program, {name: new})
    assert kwargs["cache"][1]["keys"] is new
    assert kwargs["cache"][1]["values"] is program.kwargs["cache"][1]["values"]


def test_candidates_are_compared_by_outputs_that_stay(program: Program) -> None:
    result = fxprune.parse_pipeline("layers(count=1, score='loss')").run(freed(program))
    assert len(result.selection.removed) == 1
    assert result.program.output_names()[0] == "logits"


def test_a_plan_by_data_wants_inputs_that_stay(program: Program) -> None:
    with pytest.raises(fxprune.FxpruneError, match="input cache_0_keys may shrink"):
        fxprune.parse_pipeline("slim(params=0.5, score='magnitude', repair='none')").run(freed(program))
