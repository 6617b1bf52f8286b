"""Input and output specs of other tools, made fit for a capture and a proof."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from fxprune import FxpruneError, Program, capture
from fxprune.export import export_onnx
from fxprune.integrations.olive.io_spec import dynamic_shapes_of, named, varied, vary_sizes
from fxprune.runtimes import open_session

IDS = {0: "batch", 1: "length"}


class Tokens(nn.Module):
    """One attention without positions."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 8)
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.table(ids)
        q, k, v = (part(x).unflatten(-1, (2, 4)).transpose(1, 2) for part in (self.q, self.k, self.v))
        seen = mask[:, None, None, :].bool()
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).flatten(2)


def tokens() -> Program:
    given = {"ids": torch.zeros(2, 5, dtype=torch.long), "mask": torch.ones(2, 5, dtype=torch.long)}
    return capture(Tokens(), (), given, dynamic_shapes_of(given, {"ids": IDS, "mask": IDS}))


def test_every_dynamic_dimension_gets_a_size_of_its_own_above_one() -> None:
    found = vary_sizes(
        {"ids": torch.tensor([[4, 5, 6]]), "x": torch.zeros(1, 3)}, {"ids": IDS, "x": {1: "width"}}
    )
    assert found["ids"].tolist() == [[4, 5, 6, 4, 5]] * 3
    assert found["x"].shape == (1, 7)


def test_sizes_that_are_told_apart_already_stay() -> None:
    found = vary_sizes({"ids": torch.zeros(2, 16), "mask": torch.ones(2, 16)}, {"ids": IDS, "mask": IDS})
    assert {name: tuple(value.shape) for name, value in found.items()} == {"ids": (2, 16), "mask": (2, 16)}


def test_a_dimension_that_is_not_there_is_refused() -> None:
    with pytest.raises(FxpruneError) as caught:
        vary_sizes({"x": torch.zeros(2, 3)}, {"x": {2: "width"}})
    assert str(caught.value) == "dimension 2 of input 'x' is to be dynamic (width), and its shape is (2, 3)"


def test_without_dynamic_dimensions_all_sizes_are_fixed() -> None:
    assert dynamic_shapes_of({"x": torch.zeros(2, 3)}, {"y": {0: "batch"}}) is None


def test_equal_tokens_are_drawn_anew_and_a_mask_stays() -> None:
    found = varied(tokens()).kwargs
    assert len(set(found["ids"].flatten().tolist())) > 3
    assert int(found["ids"].max()) < 7
    assert found["mask"].eq(1).all()


def test_among_equal_tokens_queries_and_keys_would_not_be_proved() -> None:
    program = tokens()
    before = [program(**each.kwargs) for each in (program, varied(program))]
    program.graph_module.get_parameter("q.weight").data.neg_()
    after = [program(**each.kwargs) for each in (program, varied(program))]
    moved = [float((one - other).abs().max()) for one, other in zip(before, after, strict=True)]
    assert moved[0] < 1e-6
    assert moved[1] > 1e-3


def test_equal_numbers_are_drawn_anew_where_they_are_no_indices() -> None:
    program = varied(capture(nn.Linear(4, 3), (), {"input": torch.zeros(2, 4)}))
    assert float(program.kwargs["input"].std()) > 0.1


def test_nameless_outputs_get_the_names_that_are_asked_for(tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x + 1, x * 2

    program = capture(Two(), (), {"x": torch.rand(5, 2)})
    wanted = named(program, ["more"])
    assert wanted.output_names() == ("more", "output_1")
    assert program.output_names() == ("output_0", "output_1")
    emitted = export_onnx(wanted, tmp_path / "model.onnx")
    opened = open_session(emitted.path)
    assert [output.name for output in opened.get_outputs()] == ["more", "output_1"]


def test_names_that_the_model_does_not_have_are_refused() -> None:
    class Named(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"hidden": x + 1}

    program = capture(Named(), (torch.rand(2),))
    assert named(program, ["hidden"]) is program
    with pytest.raises(FxpruneError) as caught:
        named(program, ["hidden", "present.0.key"])
    assert str(caught.value) == "no output present.0.key here; the outputs that the model names are hidden"


def test_more_names_than_outputs_are_refused() -> None:
    with pytest.raises(FxpruneError) as caught:
        named(capture(nn.ReLU(), (torch.rand(2),)), ["a", "b"])
    assert str(caught.value) == "the outputs are to be called a, b, and the model has only 1"
