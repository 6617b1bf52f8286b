"""Train and eval mode: a pruned program trains like its model, and `train()` and `eval()` switch the same operators as in the original."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fxprune import capture, parse_pipeline
from fxprune.ir.train_mode import switch


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.drop = nn.Conv1d(3, 8, 1), nn.BatchNorm1d(8), nn.Dropout(0.5)
        self.down = nn.Conv1d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(self.drop(self.norm(self.up(x)).relu()))
        return y


def example() -> Tensor:
    return torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))


def trained(module: nn.Module, steps: int = 3) -> dict[str, Tensor]:
    """The state after some steps of training with a fixed noise."""
    torch.manual_seed(1)
    module.train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        module(example()).square().mean().backward()
        optimizer.step()
    module.eval()
    return {name: value.detach() for name, value in module.state_dict().items() if value.is_floating_point()}


def test_training_is_that_of_the_original_model() -> None:
    model = Net()
    program = capture(model, (example(),))
    wanted, got = trained(copy.deepcopy(model)), trained(program.module())
    assert wanted.keys() == got.keys()
    assert max(float((wanted[name] - got[name]).abs().max()) for name in wanted) < 1e-6
    assert not torch.equal(got["norm.running_mean"], program.tensors()["norm.running_mean"])


def test_a_pruned_module_trains_and_evaluates_and_the_program_stays() -> None:
    program = parse_pipeline("channels(ratio=0.5)").run(capture(Net(), (example(),))).program
    module = program.module()
    with torch.no_grad():
        assert torch.equal(module(example()), program(example()))
        module.train()
        assert not torch.equal(module(example()), module(example()))
        module.eval()
        assert torch.equal(module(example()), module(example()))
    assert program.tensors()["norm.running_mean"].abs().max() == 0


def test_switching_twice_changes_nothing() -> None:
    module = capture(Net(), (example(),)).graph_module
    assert [switch(module, training=True), switch(module, training=True), switch(module, training=False)] == [
        2,
        0,
        2,
    ]


class Attention(nn.Module):
    """Fused attention that drops out in training only, as transformers' does."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.ModuleList(nn.Linear(5, 8) for _ in range(3))
        self.out = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (linear(x).view(4, 3, 2, 4).transpose(1, 2) for linear in self.qkv)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=0.5 if self.training else 0.0)
        y: Tensor = self.out(mixed.transpose(1, 2).reshape(4, 3, 8))
        return y


def test_fused_attention_drops_out_as_in_the_original() -> None:
    """The same noise, the same weights after training; without asking, attention is whole."""
    model = Attention()
    wanted = trained(copy.deepcopy(model))
    asked, plain = (trained(capture(model, (example(),), training=on).module()) for on in (True, False))
    assert max(float((wanted[name] - asked[name]).abs().max()) for name in wanted) < 1e-6
    assert max(float((wanted[name] - plain[name]).abs().max()) for name in wanted) > 1e-3
    assert model.training


def test_dropout_in_attention_survives_pruning() -> None:
    program = capture(Attention(), (example(),), training=True)
    module = parse_pipeline("heads(ratio=0.5)").run(program).program.module()
    with torch.no_grad():
        assert torch.equal(module(example()), module(example()))
        module.train()
        assert not torch.equal(module(example()), module(example()))


class Recurrent(nn.Module):
    """Layers that are one operator, with a dropout between them."""

    def __init__(self, layer: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.layer = layer(5, 6, num_layers=2, dropout=0.5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)[0]
        return y


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_drop_out_as_in_the_original(layer: Callable[..., nn.Module]) -> None:
    model = Recurrent(layer)
    module = capture(model.eval(), (example(),)).module()
    for training in (True, False):
        model.train(training)
        module.train(training)
        torch.manual_seed(1)
        wanted = model(example())
        torch.manual_seed(1)
        assert torch.allclose(module(example()), wanted, atol=1e-6)
        assert torch.equal(module(example()), wanted) != training


def test_attention_that_is_other_in_training_stays_whole() -> None:
    class Twice(Attention):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + (super().forward(x) if self.training else 0)

    module = capture(Twice(), (example(),), training=True).module().train()
    assert torch.equal(module(example()), module(example()))
