"""Example inputs at a point: names of dynamic sizes, and inputs of other sizes."""

import torch
from torch import Tensor, nn
from torch.export import Dim

from fxprune.frontend.capture import capture
from fxprune.ir import example_point, feeds
from fxprune.ir.example_inputs import call_inputs, dynamic_axis_names, inputs

AUTO = Dim.AUTO


class Embedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        table: Tensor = self.table(ids)
        return table * mask[..., None]


class TwoLengths(nn.Module):
    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return one.float().mean(1) + other.float().mean(1)


class Image(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        convolved: Tensor = self.conv(image)
        return convolved.relu()


def test_batch_and_length_are_named_alike_in_all_inputs() -> None:
    ids, mask = torch.arange(12).reshape(3, 4) % 7, torch.ones(3, 4, dtype=torch.long)
    both = {0: AUTO, 1: AUTO}
    program = capture(Embedding(), (), {"ids": ids, "mask": mask}, {"ids": both, "mask": both})
    names = {0: "batch", 1: "length"}
    assert dynamic_axis_names(program) == {"ids": names, "mask": names}
    assert example_point(program) == {"batch": 3, "length": 4}


def test_lengths_of_different_sizes_get_different_names() -> None:
    one, other = torch.ones(3, 5, dtype=torch.long), torch.ones(3, 7, dtype=torch.long)
    both = {0: AUTO, 1: AUTO}
    program = capture(TwoLengths(), (one, other), dynamic_shapes={"one": both, "other": both})
    assert example_point(program) == {"batch": 3, "length": 5, "other_length": 7}


def test_an_image_has_height_and_width() -> None:
    program = capture(
        Image(), (torch.rand(2, 3, 8, 6),), dynamic_shapes={"image": {0: AUTO, 2: AUTO, 3: AUTO}}
    )
    assert dynamic_axis_names(program) == {"image": {0: "batch", 2: "height", 3: "width"}}


def test_inputs_at_a_point_repeat_or_cut_the_examples() -> None:
    ids, mask = torch.arange(12).reshape(3, 4) % 7, torch.ones(3, 4, dtype=torch.long)
    both = {0: AUTO, 1: AUTO}
    program = capture(Embedding(), (), {"ids": ids, "mask": mask}, {"ids": both, "mask": both})
    grown = inputs(program, {"batch": 5, "length": 2})
    assert torch.equal(grown["ids"], torch.cat([ids, ids[:2]])[:, :2])
    args, kwargs = call_inputs(program, {"batch": 5, "length": 2})
    assert program(*args, **kwargs).shape == (5, 2, 4)
    assert feeds(program)["mask"].shape == (3, 4)


def test_a_program_of_fixed_sizes_has_no_axes() -> None:
    program = capture(Image(), (torch.rand(2, 3, 8, 6),))
    assert example_point(program) == {}
    assert torch.equal(inputs(program, {"batch": 5})["image"], program.args[0])
