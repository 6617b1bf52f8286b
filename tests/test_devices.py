"""Training on another device than the one where a module lies."""

from dataclasses import replace

import pytest
import torch
from torch import fx, nn

from fxprune import capture
from fxprune.devices import move, placed
from fxprune.errors import UsageError
from fxprune.examples import Examples
from fxprune.loop import Recipe
from fxprune.passes.grain import Grain
from fxprune.program import Program
from fxprune.tasks import fine_tune
from fxprune.teach import teach

RECIPE = Recipe(epochs=2, learning_rate=1e-2, batch_size=8)


class Net(nn.Module):
    """Adds what it makes itself, on the device that its graph names."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        places = torch.arange(x.shape[0], device=x.device).to(x.dtype)[:, None]
        return {"logits": self.down(self.up(x + places).relu())}


def program() -> Program:
    torch.manual_seed(0)
    return capture(Net(), (torch.randn(4, 6),), dynamic={"x": {0: torch.export.Dim.AUTO}})


def rows() -> Examples:
    torch.manual_seed(1)
    return Examples({"x": torch.randn(64, 6)}, torch.randint(0, 3, (64,)))


def named_devices(module: nn.Module) -> set[str]:
    assert isinstance(module, fx.GraphModule)
    found = [value for node in module.graph.nodes for value in node.kwargs.values()]
    return {value.type for value in found if isinstance(value, torch.device)}


def test_a_module_is_moved_with_what_its_graph_makes() -> None:
    module = program().module()
    assert named_devices(module) == {"cpu"}
    move(module, "meta")
    assert named_devices(module) == {"meta"}
    assert module(torch.empty(5, 6, device="meta"))["logits"].shape == (5, 3)


def test_what_was_placed_is_back_afterwards() -> None:
    module, x = program().module(), torch.randn(4, 6)
    before = module(x)["logits"]
    with placed([module], "cpu"):
        inside = module(x)["logits"]
    assert torch.equal(before, inside)
    assert torch.equal(before, module(x)["logits"])


def test_a_device_that_is_not_there_is_a_sentence() -> None:
    with pytest.raises(UsageError, match="nothing can be put on device 'abacus'"):
        fine_tune(program(), rows(), replace(RECIPE, device="abacus"))


def test_a_module_on_two_devices_stays_where_it_is() -> None:
    module = program().module()
    module.extra = nn.Parameter(torch.empty(1, device="meta"))
    with pytest.raises(UsageError, match="lie on: cpu, meta; train it where it is"), placed([module], "cpu"):
        pass


def test_a_recipe_is_the_same_on_another_device() -> None:
    assert repr(RECIPE) == repr(replace(RECIPE, device="cuda"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no graphics card on this machine")
def test_a_student_trains_on_a_graphics_card_and_comes_back() -> None:
    net, data = program(), rows()
    teacher = fine_tune(net, data, replace(RECIPE, device="cuda"))
    taught = teach(net, Grain(density=0.5, hidden=0.0), data, replace(RECIPE, device="cuda"), teacher)
    assert {tensor.device.type for tensor in (*teacher.parameters(), *taught.module.parameters())} == {"cpu"}
    assert named_devices(taught.module) == {"cpu"}
    assert 0.45 < taught.pruner.density <= 0.5
