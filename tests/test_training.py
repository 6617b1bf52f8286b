"""A pruned program trains as the model would: `train()` and `eval()` switch what they switch in the original."""

import copy

import torch
from torch import Tensor, nn

from fxprune import capture, parse_pipeline
from fxprune.training import switch


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
    module = capture(Net(), (example(),)).graph
    assert [switch(module, training=True), switch(module, training=True), switch(module, training=False)] == [
        2,
        0,
        2,
    ]
