"""Transfer: a selection of one program, applied to another that reads the same weights."""

import pytest
import torch
from expecttest import assert_expected_inline
from torch import Tensor, nn

import fxprune
from fxprune import show
from fxprune.errors import SelectionError
from fxprune.ir import Program
from fxprune.rewrite.transfer import replay_pruning, same_weights, transfer
from support.texts import Net, mlp


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 24), nn.Linear(24, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.down(torch.relu(self.up(x))))


class Whole(nn.Module):
    """The same layers under other names, with a head behind them."""

    def __init__(self, layers: nn.ModuleList) -> None:
        super().__init__()
        self.body, self.head = layers, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.body:
            x = layer(x)
        return torch.relu(self.head(x))


class Peek(nn.Module):
    """A part of it that gives away what is inside."""

    def __init__(self, first: Body) -> None:
        super().__init__()
        self.first = first

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        inside = torch.relu(self.first.up(x))
        return inside, self.first.down(inside)


def captured(model: nn.Module) -> Program:
    return fxprune.capture(model.eval(), (torch.randn(4, 8),))


@pytest.fixture(scope="module")
def layers() -> nn.ModuleList:
    torch.manual_seed(0)
    return nn.ModuleList(Body() for _ in range(3))


def test_weights_are_the_same_where_their_memory_is(layers: nn.ModuleList) -> None:
    one, other = captured(nn.Sequential(*layers)), captured(Whole(layers))
    assert same_weights(one, other)["1.up.weight"] == "body.1.up.weight"
    assert same_weights(one, captured(Body())) == {}


def test_axes_and_layers_get_the_names_of_the_target(layers: nn.ModuleList) -> None:
    one, other = captured(nn.Sequential(*layers)), captured(Whole(layers))
    result = fxprune.parse_pipeline("layers(count=1), ffn(ratio=0.5)").run(one)
    found = transfer(one, result.selection, other)
    assert found.removed == tuple(f"body.{name}" for name in result.selection.removed)
    assert {name.removeprefix("body.") for name in found} == set(result.selection)
    assert found.axes == {f"body.{name}": kept for name, kept in result.selection.axes.items()}


def test_the_target_is_pruned_alike(layers: nn.ModuleList) -> None:
    one, other = captured(nn.Sequential(*layers)), captured(Whole(layers))
    result = fxprune.parse_pipeline("ffn(ratio=0.5)").run(one)
    made = replay_pruning(one, result.program, result.selection, other)
    assert fxprune.verify(other, made.program, made.selection).relative <= 1e-5
    assert made.program.parameter_count() - 27 == result.program.parameter_count()


def test_weights_that_were_refitted_come_along(layers: nn.ModuleList) -> None:
    one, other = captured(nn.Sequential(*layers)), captured(Whole(layers))
    result = fxprune.parse_pipeline("ffn(ratio=0.5)").run(one)
    result.program.graph_module.get_parameter("0.down.weight").data += 1
    made = replay_pruning(one, result.program, result.selection, other, ["0.down.weight"])
    assert torch.equal(
        made.program.tensors()["body.0.down.weight"], result.program.tensors()["0.down.weight"]
    )
    assert made.refitted == ("body.0.down.weight",)
    assert fxprune.verify(other, made.program, made.selection, made.refitted).relative <= 1e-5


def test_what_must_stay_whole_in_the_target_is_refused_with_the_reason(layers: nn.ModuleList) -> None:
    one, first = captured(nn.Sequential(*layers)), layers[0]
    assert isinstance(first, Body)
    result = fxprune.parse_pipeline("ffn(ratio=0.5)").run(one)
    with pytest.raises(SelectionError, match=r"0\.ffn lost units .* in another: an output of the graph"):
        transfer(one, result.selection, captured(Peek(first)))


def test_a_refusal_knows_every_tensor_that_stays_whole_with_it(layers: nn.ModuleList) -> None:
    first = layers[0]
    assert isinstance(first, Body)
    places = {
        place: each.why for each in fxprune.analyze(captured(Peek(first))).refusals for place in each.places
    }
    assert places["first.up.weight", 0] == places["first.up.bias", 0] == places["first.down.weight", 1]


def test_a_layer_that_is_none_in_the_target_is_refused(layers: nn.ModuleList) -> None:
    one, first = captured(nn.Sequential(*layers)), layers[0]
    assert isinstance(first, Body)
    with pytest.raises(SelectionError, match="0 went from one part of the model"):
        transfer(one, fxprune.Selection(removed=("0",)), captured(Peek(first)))


def test_before_and_after() -> None:
    """A model and its encoder alone: what the encoder lost, the model loses, under its own names."""
    encoder = mlp()
    model = Net(lambda net, x: net.head(net.encoder(x)), encoder=encoder, head=nn.Linear(8, 3))
    source, target = (fxprune.capture(each, (torch.randn(3, 8),)) for each in (encoder, model))
    selection = fxprune.Selection({"ffn": [0, 1, 2]})
    slim = fxprune.shrink(source, selection)
    assert_expected_inline(
        show(target),
        """\
x: (!3, !8)
encoder.up.weight: (encoder.ffn:32, !8)
encoder.up.bias: (encoder.ffn:32)
linear = linear(x, encoder.up.weight, encoder.up.bias) -> (!3, encoder.ffn:32)
relu = relu(linear) -> (!3, encoder.ffn:32)
encoder.down.weight: (rank:8, encoder.ffn:32)
encoder.down.bias: (rank:8)
linear_1 = linear(relu, encoder.down.weight, encoder.down.bias) -> (!3, rank:8)
head.weight: (!3, rank:8)
head.bias: (!3)
linear_2 = linear(linear_1, head.weight, head.bias) -> (!3, !3)
return linear_2""",
    )
    assert_expected_inline(
        show(replay_pruning(source, slim, selection, target).program),
        """\
x: (!3, !8)
encoder.up.weight: (encoder.ffn:3, !8)
encoder.up.bias: (encoder.ffn:3)
linear = linear(x, encoder.up.weight, encoder.up.bias) -> (!3, encoder.ffn:3)
relu = relu(linear) -> (!3, encoder.ffn:3)
encoder.down.weight: (rank:8, encoder.ffn:3)
encoder.down.bias: (rank:8)
linear_1 = linear(relu, encoder.down.weight, encoder.down.bias) -> (!3, rank:8)
head.weight: (!3, rank:8)
head.bias: (!3)
linear_2 = linear(linear_1, head.weight, head.bias) -> (!3, !3)
return linear_2""",
    )
