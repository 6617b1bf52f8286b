"""Device placement: training on another device than the module's own."""

import gc
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import fx, nn

from fxprune import capture
from fxprune.errors import UsageError
from fxprune.ir import Program
from fxprune.passes import Grain
from fxprune.training import Examples, Recipe
from fxprune.training.devices import placed, redirect
from fxprune.training.fine_tune import fine_tune
from fxprune.training.loop import Loop
from fxprune.training.teacher_cache import TeacherCache
from fxprune.training.train import train

accelerate_state = pytest.importorskip("accelerate.state")
AcceleratorState, PartialState = accelerate_state.AcceleratorState, accelerate_state.PartialState

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
    return capture(Net(), (torch.randn(4, 6),), dynamic_shapes={"x": {0: torch.export.Dim.AUTO}})


def rows() -> Examples:
    torch.manual_seed(1)
    return Examples({"x": torch.randn(64, 6)}, torch.randint(0, 3, (64,)))


def named_devices(module: nn.Module) -> set[str]:
    assert isinstance(module, fx.GraphModule)
    found = [value for node in module.graph.nodes for value in node.kwargs.values()]
    return {value.type for value in found if isinstance(value, torch.device)}


def test_what_a_graph_makes_itself_is_made_elsewhere_and_comes_back() -> None:
    module: Any = program().module()
    cpu, meta = torch.device("cpu"), torch.device("meta")
    assert named_devices(module) == {"cpu"}
    changed = redirect(module, cpu, meta)
    assert named_devices(module) == {"meta"}
    assert module.to("meta")(torch.empty(5, 6, device="meta"))["logits"].shape == (5, 3)
    redirect(module, meta, cpu, changed)
    assert named_devices(module) == {"cpu"}


def test_what_was_placed_is_back_afterwards() -> None:
    module, x = program().module(), torch.randn(4, 6)
    before, held = module(x)["logits"], {id(value) for value in module.parameters()}
    with placed([module], "cpu"):
        inside = module(x)["logits"]
    assert torch.equal(before, inside)
    assert torch.equal(before, module(x)["logits"])
    assert {id(value) for value in module.parameters()} == held


@pytest.mark.parametrize("device", ["abacus", "meta", "hpu", "privateuseone"])
def test_a_device_where_nothing_can_be_trained_is_a_sentence(device: str) -> None:
    with pytest.raises(UsageError, match=f"nothing can be computed on device '{device}'"):
        fine_tune(program(), rows(), replace(RECIPE, device=device))


def test_several_processes_have_cards_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="each has a card of its own"), placed([program().module()], "cpu"):
        pass


def test_a_module_on_two_devices_stays_where_it_is() -> None:
    module = program().module()
    module.extra = nn.Parameter(torch.empty(1, device="meta"))
    with pytest.raises(UsageError, match="lie on: cpu, meta; train it where it is"), placed([module], "cpu"):
        pass


def test_a_recipe_is_the_same_on_another_device() -> None:
    assert repr(RECIPE) == repr(replace(RECIPE, device="cuda"))


def test_a_run_forgets_the_device_of_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accelerate remembers the first device of a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "meta")
    assert PartialState().device.type == "meta"
    monkeypatch.delenv("ACCELERATE_TORCH_DEVICE")
    trained = fine_tune(program(), rows(), RECIPE)
    assert {tensor.device.type for tensor in trained.parameters()} == {"cpu"}


def test_nothing_of_a_run_that_is_over_stays_on_its_device() -> None:
    """No ring of references holds the optimizer, whose state is twice the weights."""
    gc.disable()
    try:
        loop = Loop(program().module(), rows(), RECIPE)
        held = weakref.ref(loop)
        del loop
        assert held() is None
    finally:
        gc.enable()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no graphics card on this machine")
def test_a_student_trains_on_a_graphics_card_and_comes_back() -> None:
    net, data, recall, on_card = program(), rows(), TeacherCache(), replace(RECIPE, device="cuda")
    teacher = fine_tune(net, data, on_card)
    method = Grain(density=0.5, hidden=0.0)
    taught = train(net, method, data, on_card, teacher, recall=recall)
    assert {tensor.device.type for tensor in (*teacher.parameters(), *taught.module.parameters())} == {"cpu"}
    assert {score.device.type for score in taught.pruner.scores.values()} == {"cpu"}
    assert named_devices(taught.module) == {"cpu"}
    assert 0.45 < taught.pruner.density <= 0.5
    train(net, method, data, RECIPE, teacher, recall=recall)
