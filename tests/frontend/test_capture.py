# mypy: disable-error-code="no-any-return"
# The result of calling a module is Any to the type checker.
"""Capture: any source gives the same program, the caller's model stays as it was, and a failure is a sentence."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from fxprune import Selection, analyze, capture, export_onnx, shrink
from fxprune.errors import CaptureError
from support.models import captured, distance, hugging_face, net
from zoo.nets import NETS

SOME = (
    "residual-mlp-norm",
    "stacked-qkv",
    "tied-lm",
    "in-place",
    "in-place-views",
    "slice-write",
    "resnet-option-a",
    "gru-cell",
)


@pytest.mark.parametrize("name", SOME)
def test_the_program_computes_what_the_module_computes(name: str) -> None:
    model, inputs = net(name)
    assert distance(captured(name)(**inputs), model(**inputs)) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(NETS) - set(SOME)))
def test_every_program_computes_what_its_module_computes(name: str) -> None:
    model, inputs = net(name)
    program = capture(model, kwargs=inputs)  # "resnet" is a net too, and captured() means the other one
    assert distance(program(**inputs), model(**inputs)) < 1e-5


def test_an_exported_program_and_a_file_give_the_same_axes(tmp_path: Path) -> None:
    model, inputs = net("gated-ffn")
    exported = torch.export.export(model, (), inputs)
    torch.export.save(exported, tmp_path / "model.pt2")
    expected = [axis.name for axis in analyze(capture(model, kwargs=inputs)).axes]
    for source in (exported, tmp_path / "model.pt2", str(tmp_path / "model.pt2")):
        program = capture(source)
        assert [axis.name for axis in analyze(program).axes] == expected
        assert distance(program(**inputs), model(**inputs)) < 1e-6


def test_an_exported_program_keeps_its_dynamic_sizes() -> None:
    model, inputs = net("gated-ffn")
    batch = {"x": {0: torch.export.Dim.AUTO}}
    program = capture(torch.export.export(model, (), inputs, dynamic_shapes=batch))
    assert program.free_dims() == {"x": (0,)}
    assert program(x=torch.randn(7, 6)).shape == (7, 6)


def test_positional_inputs_work_like_keywords() -> None:
    model, inputs = net("mlp")
    program = capture(model, (inputs["x"],))
    assert distance(program(inputs["x"]), model(inputs["x"])) < 1e-6


class Counting(nn.Module):
    """Writes into a buffer and has a submodule in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.dropout = nn.Linear(4, 4), nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.get_buffer("calls").add_(1)
        return self.dropout(self.layer(x)) + self.get_buffer("calls")


def test_the_callers_model_is_left_as_it_was() -> None:
    model = Counting()
    model.train()
    model.layer.eval()
    state = copy.deepcopy(model.state_dict())
    pointers = {name: value.data_ptr() for name, value in model.state_dict().items()}
    program = capture(model, (torch.randn(2, 4),))
    program(torch.randn(2, 4))
    program(torch.randn(2, 4))
    assert (model.training, model.layer.training, model.dropout.training) == (True, False, True)
    assert {name: value.data_ptr() for name, value in model.state_dict().items()} == pointers
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert torch.backends.mha.get_fastpath_enabled()


def test_weights_are_shared_and_not_copied() -> None:
    model, inputs = net("mlp")
    program = capture(model, kwargs=inputs)
    mine = {p.data_ptr() for p in model.parameters()}
    assert {p.data_ptr() for p in program.parameters().values()} == mine


def test_shrinking_writes_nothing_of_the_callers_model() -> None:
    model, inputs = net("tied-lm")
    before = copy.deepcopy(model.state_dict())
    program = capture(model, kwargs=inputs)
    slim = shrink(program, Selection({axis.name: [0, 1] for axis in analyze(program).axes}))
    with torch.no_grad():
        for parameter in slim.module().parameters():
            parameter.zero_()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(
    ("name", "output"), [("bert", "last_hidden_state"), ("gpt2", "logits"), ("llama", "logits")]
)
def test_hugging_face_outputs_keep_type_and_names(name: str, output: str) -> None:
    model, inputs = hugging_face(name)
    wanted = model(**inputs)
    program = captured(name)
    found = program(**inputs)
    assert type(found) is type(wanted)
    assert output in found
    assert output in program.output_names()
    assert distance(found[output], wanted[output]) < 1e-5


def test_inputs_keep_their_names() -> None:
    assert captured("bert").input_names() == ("input_ids", "attention_mask")


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


def test_a_failed_capture_says_why_and_where_and_prints_no_graph(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CaptureError) as caught:
        capture(Branches(), (torch.randn(3),))
    message = str(caught.value)
    assert message.startswith("torch.export could not capture Branches: ")
    assert "test_capture.py" in message
    assert "if x.sum() > 0" in message
    assert len(message) < 800
    assert "graph()" not in message
    out, err = capfd.readouterr()
    assert out + err == ""


class OnlyTraced(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_exporting():
            raise ValueError("no kernel for this size")
        return x + 1


def test_a_model_that_can_be_traced_but_not_run_is_refused() -> None:
    why = "OnlyTraced itself does not run on the example inputs: ValueError: no kernel for this size"
    with pytest.raises(CaptureError, match=why):
        capture(OnlyTraced(), (torch.randn(3),))


def test_what_is_no_module_is_refused() -> None:
    wrong: Any = 3
    with pytest.raises(CaptureError, match="can't capture a int"):
        capture(wrong)


def test_a_missing_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match=r"nothing\.pt2 is no file"):
        capture(tmp_path / "nothing.pt2")
    (tmp_path / "text.pt2").write_text("no archive")
    with pytest.raises(CaptureError, match="torch can't load"):
        capture(tmp_path / "text.pt2")


def test_constants_are_folded_and_weights_are_not() -> None:
    targets = {str(node.target) for node in captured("alibi").graph.nodes if node.op == "call_function"}
    assert "aten.arange.start_step" not in targets
    assert "aten.arange.default" not in targets
    assert set(captured("alibi").parameters()) == {"qkv.weight", "qkv.bias", "o.weight", "o.bias"}


class Sdpa(nn.Module):
    def forward(self, q: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, q, q)


def test_the_scale_of_attention_is_written_out() -> None:
    program = capture(Sdpa(), (torch.randn(1, 2, 5, 16),))
    attention = next(n for n in program.graph.nodes if "scaled_dot_product" in str(n.target))
    assert attention.kwargs["scale"] == pytest.approx(0.25)


def test_dynamic_true_lets_torch_decide() -> None:
    model, inputs = hugging_face("bert")
    program = capture(model, kwargs=inputs, dynamic_shapes=True)
    assert program.free_dims() == {"input_ids": (0, 1), "attention_mask": (0, 1)}


class EachImageAlone(nn.Module):
    """Images one after the other: torch.export unrolls the loop, so that the batch comes out fixed although it was left to torch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(torch.cat([self.conv(image[None]).relu().flatten(2).mean(-1) for image in images]))


def test_a_size_on_which_the_code_depends_comes_out_fixed(tmp_path: Path) -> None:
    auto = {"images": {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO}}
    program = capture(EachImageAlone(), kwargs={"images": torch.randn(3, 3, 8, 9)}, dynamic_shapes=auto)
    assert (program.dynamic_shapes, program.free_dims()) == (
        {"images": {2: torch.export.Dim.AUTO}},
        {"images": (2,)},
    )
    assert [dict(point) for point in export_onnx(program, tmp_path / "m.onnx").points] == [
        {"height": 8},
        {"height": 16},
    ]


class Flagged(nn.Module):
    """A flag between the tensors of its signature."""

    def forward(self, x: Tensor, twice: bool = False) -> Tensor:
        return x * 2 if twice else x


def test_an_exported_program_with_a_flag_among_its_inputs_keeps_its_dynamic_sizes() -> None:
    free = {"x": {0: torch.export.Dim.AUTO}, "twice": None}
    exported = torch.export.export(Flagged(), (torch.ones(3, 4),), {"twice": True}, dynamic_shapes=free)
    assert capture(exported).dynamic_shapes == {"x": {0: torch.export.Dim.AUTO}, "twice": None}
