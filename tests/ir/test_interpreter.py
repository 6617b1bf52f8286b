"""The recording interpreter: which values are recorded, and as of when."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxprune import Program, capture
from fxprune.errors import VerifyError
from fxprune.ir.compare import every_value
from fxprune.ir.interpreter import Recorder


class Counting(nn.Module):
    """Counts its runs in a buffer."""

    runs: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("runs", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.runs.add_(1)
        return x * 6 + self.runs


@pytest.fixture
def program() -> Program:
    return capture(Counting(), (torch.ones(2),))


def recorded(recorder: Recorder) -> dict[str, list[float]]:
    return {node.name: value.tolist() for node, value in recorder.values.items() if isinstance(value, Tensor)}


def test_all_values_are_recorded_or_some(program: Program) -> None:
    every, some = Recorder(program), Recorder(program, ("x", "add"))
    every.run_flat([torch.ones(2)])
    some.run_flat([torch.ones(2)])
    assert set(recorded(every)) == {node.name for node in program.graph.nodes if node.op != "output"}
    assert recorded(some) == {
        "x": [1.0, 1.0],
        "add": [7.0, 7.0],
    }  # each run starts from the program's own buffers


@pytest.mark.parametrize(("copies", "runs"), [(False, 1.0), (True, 0.0)])
def test_copies_are_values_before_they_are_overwritten(program: Program, copies: bool, runs: float) -> None:
    recorder = Recorder(program, ("runs",), copies=copies)
    recorder.run_flat([torch.ones(2)])
    assert recorded(recorder) == {"runs": [runs]}


def test_given_tensors_take_the_place_of_the_programs(program: Program) -> None:
    recorder = Recorder(program, (), {"runs": torch.tensor([10.0])})
    (result,) = recorder.run_flat([torch.ones(2)])
    assert (result.tolist(), recorder.values) == ([17.0, 17.0], {})
    assert program.tensors()["runs"].tolist() == [0.0]


def test_values_up_to_the_node_that_fails(program: Program) -> None:
    broken = program.replace(args=(torch.ones(2),))
    total = next(iter(broken.graph.find_nodes(op="call_function", target=torch.ops.aten.add.Tensor)))
    total.args = (total.args[0], "no tensor")
    names = [name for name, _ in every_value(broken, broken)]
    assert names[-1] == total.prev.name
    with pytest.raises(VerifyError, match="the program does not run"):
        list(every_value(broken, broken.replace(args=())))
