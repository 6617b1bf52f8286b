"""Files of programs that draw: compared with the same random values on both sides, or refused."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fxprune import capture, export_onnx
from fxprune.errors import ExportError
from fxprune.export.agreement import compare
from fxprune.export.random_values import fixed_draws
from fxprune.ir import Program, copy_graph, rebuild
from fxprune.ir.random_values import random_nodes
from fxprune.runtimes import open_session
from fxprune.runtimes.onnxruntime import run_session


class Noisy(nn.Module):
    """Noise, a random scale, random bits, and dropout that is never switched off."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up(x)
        hidden = (hidden + torch.randn_like(hidden)) * torch.rand(hidden.shape[0], 1)
        hidden = hidden * torch.bernoulli(torch.full_like(hidden, 0.5))
        hidden = nn.functional.dropout(torch.relu(hidden), 0.25, training=True)
        out: Tensor = self.down(hidden) + torch.randint(0, 5, (4,))
        return out


class Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(x, x, x, dropout_p=0.3)


class Chosen(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, torch.multinomial(torch.softmax(x[0], -1), 2)]


def noisy(dynamic: bool = True) -> Program:
    torch.manual_seed(0)
    return capture(Noisy().eval(), (torch.randn(3, 6),), dynamic_shapes=dynamic or None)


def times(program: Program, name: str, factor: float) -> Program:
    return rebuild(program, copy_graph(program), {name: program.tensors()[name].detach() * factor})


def differences(program: Program, file: Path) -> float:
    with fixed_draws(program, file) as (twin, draws):
        session = open_session(twin)
        return compare(program, lambda given: run_session(session, given), [{}], draws=draws)[0]


def test_every_operator_that_draws_is_found() -> None:
    assert list(random_nodes(noisy())) == ["randn_like", "rand", "bernoulli", "dropout", "randint"]


def test_the_program_says_that_it_draws() -> None:
    (note,) = noisy().notes
    assert note.startswith("the model draws random numbers (aten.randn_like.default at ")
    assert note.endswith("), and 4 more such operators in evaluation: it is compared at the same values")
    assert capture(nn.Linear(3, 2), (torch.randn(2, 3),)).notes == ()


def test_a_file_that_draws_is_compared_at_the_same_random_values(tmp_path: Path) -> None:
    made = export_onnx(noisy(), tmp_path / "model.onnx")
    assert made.relative <= 1e-6
    assert [dict(point) for point in made.points] == [{"batch": 3}, {"batch": 5}]
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("name", ["up.weight", "down.weight", "down.bias"])
def test_the_file_of_another_model_is_refused(name: str, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    export_onnx(noisy(), file)
    assert differences(noisy(), file) <= 1e-6
    with pytest.raises(ExportError, match=r"output '(dropout|relu\w*|output_0)' differs by"):
        differences(times(noisy(), name, 1.1), file)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (
            Attention(),
            r"draws random numbers \(aten.scaled_dot_product_attention.default at .*the file has no",
        ),
        (
            Chosen(),
            r"draws random numbers \(aten.multinomial.default at .*which a check would not see; switch",
        ),
    ],
)
def test_what_can_not_be_compared_is_refused(model: nn.Module, sentence: str, tmp_path: Path) -> None:
    program = capture(
        model, (torch.randn(2, 1, 5, 8) if isinstance(model, Attention) else torch.randn(3, 8),)
    )
    with pytest.raises(ExportError, match=f"^nothing proven about the file: the program {sentence}"):
        export_onnx(program, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
