# mypy: disable-error-code="no-any-return"
# The result of calling a module is Any to the type checker.
"""Regions: layers and branches are found by structure, named by module, and bypassed as if they had been deleted."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fxprune import Selection, analyze, apply, bypass, capture, parse_pipeline, shrink, verify
from fxprune.errors import SelectionError
from fxprune.ir import Program
from support.models import captured
from zoo import hf
from zoo.check import randomise


def program_of(name: str) -> tuple[nn.Module, Program]:
    model, kwargs = hf.ROWS[name].build()
    randomise(model)
    model.eval()
    return model, capture(model, kwargs=kwargs)


def layers(program: Program) -> list[str]:
    return [region.name for region in analyze(program).regions if region.unit == "layer" and not region.why]


def branches(program: Program) -> list[str]:
    return [region.name for region in analyze(program).regions if region.unit == "branch"]


#: architecture: (a layer, the function that deletes it from the model)
DELETED: dict[str, tuple[str, Callable[[Any], object]]] = {
    "BertForMaskedLM": ("bert.encoder.layer.0", lambda m: m.bert.encoder.layer.__delitem__(0)),
    "RobertaForMaskedLM": ("roberta.encoder.layer.1", lambda m: m.roberta.encoder.layer.__delitem__(1)),
    "GPT2LMHeadModel": ("transformer.h.1", lambda m: m.transformer.h.__delitem__(1)),
    "LlamaForCausalLM": ("model.layers.0", lambda m: m.model.layers.__delitem__(0)),
    "ViTForImageClassification": ("vit.layers.0", lambda m: m.vit.layers.__delitem__(0)),
    "T5ForConditionalGeneration": ("decoder.block.1", lambda m: m.decoder.block.__delitem__(1)),
    "SwinForImageClassification": (
        "swin.encoder.layers.0.blocks.1",
        lambda m: m.swin.encoder.layers[0].blocks.__delitem__(1),
    ),
    "ResNetForImageClassification": (
        "resnet.encoder.stages.1.layers.1",
        lambda m: m.resnet.encoder.stages[1].layers.__delitem__(1),
    ),
    "MixtralForCausalLM": ("model.layers.1", lambda m: m.model.layers.__delitem__(1)),
}


@pytest.mark.parametrize("name", DELETED)
def test_bypass_equals_the_model_with_the_layer_deleted(name: str) -> None:
    layer, delete = DELETED[name]
    model, program = program_of(name)
    slim = bypass(program, [layer])
    before = program(**program.kwargs)
    delete(model)
    with torch.no_grad():
        wanted = model(**program.kwargs)
    for key in (key for key in ("logits", "last_hidden_state") if key in wanted):
        assert (slim(**program.kwargs)[key] - wanted[key]).abs().max() <= 1e-6 * wanted[key].abs().max()
        assert (before[key] - wanted[key]).abs().max() > 1e-3
    own = {n: v for n, v in program.tensors().items() if n.startswith(f"{layer}.")}
    gone = sum(value.numel() for value in own.values() if isinstance(value, nn.Parameter))
    assert not own.keys() & slim.tensors().keys()
    assert slim.parameter_count() == program.parameter_count() - gone


def test_layers_and_branches_of_an_encoder() -> None:
    program = captured("bert")
    assert layers(program) == ["encoder.layer.0", "encoder.layer.1"]
    # The norm of the module `attention` stays, so its branch does not bear the module's name.
    assert branches(program) == [
        f"encoder.layer.{i}.{part}" for i in range(2) for part in ("attention.branch", "ffn")
    ]


def test_an_encoder_decoder_has_two_rows_of_layers() -> None:
    assert layers(program_of("T5ForConditionalGeneration")[1]) == [
        *(f"{side}.block.{i}" for side in ("encoder", "decoder") for i in range(2)),
    ]


def test_a_stage_that_changes_the_shape_says_so() -> None:
    _, program = program_of("SwinForImageClassification")
    refused = {region.name: region.why for region in analyze(program).regions if region.why}
    assert refused["swin.encoder.layers.0"] == "it changes the shape: [3, 64, 16] to [3, 16, 32]"
    with pytest.raises(SelectionError, match=r"swin\.encoder\.layers\.0 can't go: it changes the shape"):
        bypass(program, ["swin.encoder.layers.0"])


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.up(x).relu())


class Sharing(nn.Module):
    """Gives what it made beside its result, and takes what another made."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(
        self, x: torch.Tensor, extra: torch.Tensor | float = 0.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        h = self.down(self.up(x).relu())
        return x + h + extra, h


class Leaky(nn.Module):
    """Later layers read what the first one made; or the model returns it."""

    def __init__(self, returns: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Sharing() for _ in range(3))
        self.returns = returns

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x, first = self.blocks[0](x)
        x, _ = self.blocks[1](x, 0.0 if self.returns else first)
        x, _ = self.blocks[2](x)
        return (x, first) if self.returns else (x,)


def whys(module: nn.Module) -> dict[str, str]:
    regions = analyze(capture(module, (torch.randn(2, 8),))).regions
    return {region.name: region.why for region in regions if region.unit == "layer"}


def test_what_leaves_a_block_keeps_it() -> None:
    found = whys(Leaky(returns=False))
    assert found["blocks.1"] == found["blocks.2"] == ""
    assert found["blocks.0"].startswith("linear_1 = aten.linear.default inside of it is read by add_")
    assert whys(Leaky(returns=True))["blocks.0"] == "its output leaves the model: output_1"


def test_unknown_regions_name_the_nearest() -> None:
    with pytest.raises(SelectionError, match=r"no region 'encoder.layer.7'.*nearest: encoder.layer.1"):
        bypass(captured("bert"), ["encoder.layer.7"])


class Bottleneck(nn.Module):
    """A U-Net whose middle is residual blocks: no path from input to output must pass through it."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 8, 2, 2), nn.ConvTranspose2d(8, 3, 2, 2)
        self.middle = nn.ModuleList(Residual() for _ in range(3))
        self.out = nn.Conv2d(6, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.down(x)
        for block in self.middle:
            h = block(h)
        return self.out(torch.cat([x, self.up(h)], dim=1))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + self.norm(self.conv(x))).relu()


def test_the_middle_of_a_u_net() -> None:
    program = capture(Bottleneck().eval(), (torch.randn(2, 3, 8, 8),))
    assert layers(program) == ["middle.0", "middle.1", "middle.2"]
    slim = bypass(program, ["middle.1", "middle.0"])
    assert sorted(n for n in slim.tensors() if "conv" in n) == ["middle.2.conv.bias", "middle.2.conv.weight"]


class Repeated(nn.Module):
    """Structure alone, without modules: one block called three times."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.out = Block(8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(3):
            x = self.block(x)
        return self.out(x)


def test_one_module_called_three_times_is_three_layers() -> None:
    program = capture(Repeated(), (torch.randn(2, 8),))
    assert layers(program) == ["block", "block.2", "block.3"]
    assert bypass(program, ["block", "block.3"]).parameter_count() == program.parameter_count()


def test_a_selection_removes_regions_and_units_and_is_proved() -> None:
    program = captured("bert")
    selection = Selection({"encoder.layer.1.attention.heads": [0, 2]}, removed=("encoder.layer.0",))
    slim = apply(program, Selection.from_json(selection.to_json()))
    verdict = verify(program, slim, selection)
    assert verdict.relative <= 1e-5 < verdict.change
    assert layers(slim) == []
    with pytest.raises(SelectionError, match=r"use fxprune\.apply"):
        shrink(program, selection)


def test_units_of_layers_that_go_later_are_forgotten() -> None:
    program = captured("bert")
    heads = parse_pipeline("heads(ratio=0.5)").run(program)
    both = heads.selection.compose(Selection(removed=("encoder.layer.0",)))
    assert both.removed == ("encoder.layer.0",)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_a_layer_holds_its_branches_in_whatever_order_they_go(name: str) -> None:
    """A layer and its last branch end at one node: removing the branch besides changes nothing."""
    program = captured(name)
    layer = layers(program)[1]
    inside = [branch for branch in branches(program) if branch.startswith(f"{layer}.")]
    wanted = bypass(program, [layer]).graph_module.code
    assert len(inside) == 2
    for order in ([*inside, layer], [layer, *inside], [inside[1], layer], [inside[0], layer]):
        assert bypass(program, order).graph_module.code == wanted


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_two_layers_and_a_branch_between(name: str) -> None:
    program = captured(name)
    first, second = layers(program)
    last = [branch for branch in branches(program) if branch.startswith(f"{first}.")][-1]
    wanted = bypass(program, [first, second]).graph_module.code
    assert bypass(program, [last, second, first]).graph_module.code == wanted


class Added(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x + self.inner(x).relu()
        return out


class Between(nn.Module):
    """Layers that are modules stand between sums that are not; those of one shape on both sides of a layer are no layer together."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Added() for _ in range(2))
        self.a, self.b, self.c = (nn.Parameter(torch.randn(6, 6)) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + torch.tanh(x @ self.a)
        x = self.layers[0](x)
        x = x + torch.tanh(x @ self.b)
        x = self.layers[1](x)
        return x + torch.tanh(x @ self.c)


def test_a_region_holds_all_that_its_bypass_removes() -> None:
    program = capture(Between(), (torch.randn(2, 6),))
    assert layers(program) == ["layers.0", "layers.1"]
    for region in analyze(program).regions:
        if not region.why:
            gone = set(program.tensors()) - set(bypass(program, [region.name]).tensors())
            assert gone == set(region.parameters), region.name
