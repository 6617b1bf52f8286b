"""Recurrent networks in ONNX: GRUs as torch's, LSTMs with projections as LSTMs without."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fxprune import capture, export_onnx
from fxprune.export.onnx_rewrites import rewrite_for_onnx
from support.texts import Net

steps = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))


def _seeded(kind: Any, *args: Any, **kwargs: Any) -> nn.Module:
    torch.manual_seed(0)
    made: nn.Module = kind(*args, **kwargs)
    return made


NETS = {
    "gru": _seeded(nn.GRU, 6, 5, batch_first=True),
    "two layers, both ways": _seeded(nn.GRU, 6, 5, 2, bidirectional=True),
    "gru without biases": _seeded(nn.GRU, 6, 5, bias=False),
    "a cell": Net(lambda net, x: net.cell(x[:, 0]), cell=_seeded(nn.GRUCell, 6, 5)),
    "projected": _seeded(nn.LSTM, 6, 5, proj_size=3, batch_first=True),
    "projected, two layers, both ways": _seeded(nn.LSTM, 6, 5, 2, proj_size=3, bidirectional=True),
    "projected without biases": _seeded(nn.LSTM, 6, 5, proj_size=3, bias=False),
}


@pytest.mark.parametrize("name", NETS)
def test_the_file_computes_what_torch_does(name: str, tmp_path: Path) -> None:
    program = capture(NETS[name], (steps,), dynamic_shapes=True)
    assert export_onnx(program, tmp_path / "model.onnx").relative <= 1e-5


def test_a_projected_state_that_is_given(tmp_path: Path) -> None:
    given = steps, torch.ones(1, 2, 3), torch.full((1, 2, 5), 0.5)
    net = Net(lambda net, x, h, c: net.lstm(x, (h, c)), lstm=NETS["projected"])
    assert export_onnx(capture(net, given), tmp_path / "model.onnx").relative <= 1e-5


def test_before_and_after() -> None:
    """W_hh reads the projection of the state: (W_hh P) reads the state, and what leaves is projected."""
    program = rewrite_for_onnx(capture(Net(lambda net, x: net.lstm(x)[0], lstm=NETS["projected"]), (steps,)))
    (lstm,) = program.graph.find_nodes(op="call_function", target=torch.ops.aten.lstm.input)
    assert [tuple(weight.meta["val"].shape) for weight in lstm.args[2]] == [(20, 6), (20, 5), (20,), (20,)]
    (product,) = program.graph.find_nodes(op="call_function", target=torch.ops.aten.mm.default)
    assert [value.target for value in product.args] == ["lstm.weight_hh_l0", "lstm.weight_hr_l0"]
    assert [str(node.target) for node in program.outputs()] == ["aten.linear.default"]
