"""Islands: models that can't be captured whole are captured in parts, which are found, pruned, proven and put back in place."""

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import CaptureError, GuardError, UsageError
from fxprune.pipeline import Context
from fxprune.rewrite.islands import IslandModule, in_model, island_program
from support.in_parts import Detector, OpenedUp
from support.models import distance

CUT = "channels(ratio=0.5), ffn(ratio=0.5)"


@pytest.fixture(scope="module")
def detector() -> Detector:
    torch.manual_seed(0)
    return Detector().eval()


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def program(detector: Detector, image: Tensor) -> fxprune.Program:
    return fxprune.capture(detector, (image,), within="auto")


def parts(program: fxprune.Program) -> list[str]:
    assert program.islands is not None
    return list(program.islands.parts)


def test_a_whole_model_is_refused_and_its_parts_are_found(
    detector: Detector, image: Tensor, program: fxprune.Program
) -> None:
    with pytest.raises(CaptureError, match="could not capture Detector"):
        fxprune.capture(detector, (image,))
    assert parts(program) == ["backbone", "head", "blocks.0", "blocks.1", "blocks.2", "last"]
    assert program.parameters().keys() == dict(detector.named_parameters()).keys()
    assert program.free_dims() == {"head_x": (2, 3)}  # called at two sizes


def test_what_can_be_captured_whole_has_no_islands() -> None:
    program = fxprune.capture(
        nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), (torch.randn(3, 4),), within="auto"
    )
    assert program.islands is None


def test_notes_say_what_is_inside_and_outside(program: fxprune.Program) -> None:
    first, *rest = program.notes
    assert first.startswith(
        "captured 6 parts of Detector, with 100.0% of its parameters, since: torch.export could not"
    )
    assert rest == [
        "inside: backbone (1,640 parameters): 1 call",
        "inside: head (173 parameters): 2 calls",
        "inside: blocks.0 … blocks.2 (675 parameters): 1 call",
        "inside: last (12 parameters): 1 call",
    ]


def test_pruned_parts_in_place_are_the_model_with_zeroed_units(detector: Detector, image: Tensor) -> None:
    """The oracle is the user's own module, with columns of its weights zeroed by hand."""
    result = fxprune.prune(detector, CUT, (image,), within="auto")
    zeroed = copy.deepcopy(detector)
    readers = {"backbone.channels": "backbone.two", "head.channels": "head.two"}
    readers |= {f"blocks.{i}.ffn": f"blocks.{i}.2" for i in range(3)}
    assert set(result.selection) == set(readers)
    for axis, reader in readers.items():
        gone = [i for i in range(result.selection.sizes[axis]) if i not in result.selection[axis]]
        zeroed.get_parameter(f"{reader}.weight").data[:, gone] = 0
    assert distance(result.module(image), zeroed(image)) < 1e-5
    assert distance(result.module(image), detector(image)) > 1e-2
    assert result.proof.status == "equal"
    assert result.proof.in_model is not None
    assert result.proof.in_model < 1e-5
    assert (
        sum(each.numel() for each in result.module.parameters()) == result.program.parameter_count() == 1270
    )


def test_the_model_in_parts_has_its_names_attributes_and_methods(
    program: fxprune.Program, detector: Detector, image: Tensor
) -> None:
    made = in_model(program)
    names = [name for name in detector.state_dict() if "num_batches" not in name]
    assert list(made.state_dict()) == names
    backbone = made.get_submodule("backbone")
    assert isinstance(backbone, IslandModule)
    assert backbone.width == 8
    scaled: Any = backbone.scaled
    assert scaled(torch.tensor(8.0)) == 1.0
    with pytest.raises(AttributeError, match="nothing"):
        _ = backbone.nothing
    assert made.load_state_dict(detector.state_dict(), strict=False).missing_keys == []


def test_the_model_in_parts_is_copied_pickled_cast_and_trained(
    program: fxprune.Program, image: Tensor
) -> None:
    made = in_model(program)
    wanted = made(image)
    buffer = io.BytesIO()
    torch.save(made, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)  # our own bytes
    for other in (copy.deepcopy(made), loaded):
        assert distance(other(image), wanted) == 0
        assert other.double()(image.double()).dtype == torch.float64
    other = copy.deepcopy(made).train()
    other(torch.randn(1, 3, 8, 8)).sum().backward()
    assert all(each.grad is not None for each in other.parameters())
    means = [each.get_buffer("backbone.norm.running_mean") for each in (other, made)]
    assert not torch.equal(*means)
    assert distance(made(image), wanted) == 0  # a copy is independent


def test_calls_of_another_kind_are_refused(program: fxprune.Program) -> None:
    made = in_model(program)
    with pytest.raises(GuardError, match=r"head was captured with 0.1 where it is now given 0.2"):
        made.get_submodule("head")(torch.randn(1, 8, 4, 4), 0.2)
    with pytest.raises(GuardError, match=r"backbone_x.shape\[2\] == 8"):
        made(torch.randn(1, 3, 16, 16))


def test_dynamic_shapes_let_the_parts_vary(detector: Detector, image: Tensor) -> None:
    result = fxprune.prune(detector, CUT, (image,), within="auto", dynamic_shapes=True)
    larger = torch.randn(2, 3, 16, 12)
    assert result.module(larger).shape == detector(larger).shape


def test_each_part_is_a_program_of_its_own(
    program: fxprune.Program, detector: Detector, image: Tensor
) -> None:
    part = island_program(program, "backbone")
    assert part.islands is None
    assert set(part.parameters()) == {name for name, _ in detector.backbone.named_parameters()}
    assert distance(part(image / 8)["features"], detector.backbone(image / 8)["features"]) < 1e-6


def test_data_of_the_whole_model_calibrate_the_parts(detector: Detector, image: Tensor) -> None:
    data = [(torch.randn(1, 3, 8, 8),) for _ in range(3)]
    result = fxprune.prune(
        detector, "slim(flops=0.7)", (image,), within=["head", "blocks"], context=Context(data=data)
    )
    assert parts(result.original) == ["head", "blocks.0", "blocks.1", "blocks.2"]
    assert result.refitted
    assert result.proof.status == "equal"
    labelled = [(*batch, torch.ones(1)) for batch in data]
    steps = fxprune.parse_pipeline("slim(flops=0.7)").run(result.original, Context(data=labelled)).steps
    assert steps[0].remarks[0].endswith("as labels are: float32 1")
    with pytest.raises(UsageError, match="dimension 2 is fixed"):
        fxprune.prune(
            detector,
            "slim(flops=0.7)",
            (image,),
            within="backbone",
            context=Context(data=[(torch.randn(1, 3, 9, 9),)]),
        )


def test_parts_whose_inside_the_model_uses_stay_outside() -> None:
    torch.manual_seed(0)
    model, x = OpenedUp().eval(), torch.randn(2, 4)
    program = fxprune.capture(model, (x,), within="auto")
    assert parts(program) == ["inner.0", "inner.2", "read", "free"]
    assert program.islands is not None
    assert program.islands.outside["inner"] == "inner.0, which lies in it, is called from outside"
    assert distance(in_model(program)(x), model(x)) < 1e-6


@pytest.mark.parametrize(
    ("within", "kind", "text"),
    [
        ("bakbone", UsageError, "within='bakbone': Detector has no such module; near: backbone"),
        ("blocks.1.1", CaptureError, "blocks.1.1: there are no parameters in it"),
    ],
)
def test_parts_that_are_not_there_are_refused(
    detector: Detector, image: Tensor, within: str, kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind, match=text):
        fxprune.capture(detector, (image,), within=within)


def test_what_needs_the_whole_graph_is_refused(
    detector: Detector, image: Tensor, program: fxprune.Program
) -> None:
    with pytest.raises(CaptureError, match="read by the rest of the model"):
        fxprune.capture(detector, (image,), within="auto", free_outputs=("backbone.features",))
    with pytest.raises(CaptureError, match="expected input"):
        fxprune.capture(detector, (torch.randn(1, 4, 8, 8),), within="auto")
