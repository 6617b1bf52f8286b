"""Recurrent layers: each layer has a hidden size of its own, and the values are those of the whole stack."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from expecttest import assert_expected_inline
from torch import Tensor, nn

from fxprune import Selection, analyze, capture, export_onnx, show, shrink
from fxprune.errors import SelectionError
from fxprune.frontend.canonicalization.recurrent_layers import split_recurrent
from fxprune.rewrite import remove_dead
from support.models import distance
from support.texts import Net, exported

KEPT = (0, 3, 4)
AUTO = torch.export.Dim.AUTO


def x() -> Tensor:
    return torch.randn(3, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def stack(cell: Callable[..., nn.Module] = nn.LSTM, read: Any = lambda found: found[0], **more: Any) -> Any:
    """A net of three recurrent layers of width 8, of whose results `read` takes what leaves the net."""
    torch.manual_seed(0)
    cells = cell(6, 8, num_layers=3, batch_first=True, **more)
    return Net(lambda net, x: read(net.cells(x)), cells=cells).double().eval()


def test_before_and_after() -> None:
    """Two layers with dropout between them become two nodes; the output's width leaves the first layer free."""
    cells = nn.GRU(3, 4, 2, dropout=0.5, bias=False)

    def forward(net: Any, x: Tensor) -> Any:
        output, last = net.cells(x)
        return output, last[-1]

    program = exported(Net(forward, cells=cells).eval(), torch.randn(5, 2, 3))
    assert_expected_inline(
        show(program),
        """\
x: (!5, !2, !3)
zeros = zeros([2, 2, 4], dtype=float32, device=cpu, pin_memory=False) -> (!2, !2, !4)
cells.weight_ih_l0: (!3 x !4, !3)
cells.weight_hh_l0: (!3 x !4, !4)
cells.weight_ih_l1: (!3 x !4, !4)
cells.weight_hh_l1: (!3 x !4, !4)
gru = gru(x, zeros, [cells.weight_ih_l0, cells.weight_hh_l0, cells.weight_ih_l1, cells.weight_hh_l1], False, 2, 0.5, False, False, False) -> (!5, !2, !4), (!2, !2, !4)
getitem = gru[0] -> (!5, !2, !4)
getitem_1 = gru[1] -> (!2, !2, !4)
select = select(getitem_1, 0, -1) -> (!2, !4)
return getitem, select""",  # noqa: E501
    )
    split_recurrent(program.graph_module)
    remove_dead(program.graph_module)
    assert_expected_inline(
        show(program),
        """\
x: (!5, !2, !3)
zeros_default = zeros([1, 2, 4], dtype=float32, device=cpu, pin_memory=False) -> (!1, !2, cells.ffn:4)
cells.weight_ih_l0: (!3 x cells.ffn:4, !3)
cells.weight_hh_l0: (!3 x cells.ffn:4, cells.ffn:4)
gru_input = gru(x, zeros_default, [cells.weight_ih_l0, cells.weight_hh_l0], False, 1, 0, False, False, False) -> (!5, !2, cells.ffn:4), (!1, !2, cells.ffn:4)
getitem_2 = gru_input[0] -> (!5, !2, cells.ffn:4)
dropout_default = dropout(getitem_2, 0.5, False) -> (!5, !2, cells.ffn:4)
zeros_default_1 = zeros([1, 2, 4], dtype=float32, device=cpu, pin_memory=False) -> (!1, !2, !4)
cells.weight_ih_l1: (!3 x !4, cells.ffn:4)
cells.weight_hh_l1: (!3 x !4, !4)
gru_input_1 = gru(dropout_default, zeros_default_1, [cells.weight_ih_l1, cells.weight_hh_l1], False, 1, 0, False, False, False) -> (!5, !2, !4), (!1, !2, !4)
getitem_4 = gru_input_1[0] -> (!5, !2, !4)
getitem_5 = gru_input_1[1] -> (!1, !2, !4)
select_int_1 = select(getitem_5, 0, 0) -> (!2, !4)
return getitem_4, select_int_1""",  # noqa: E501
    )


KINDS = {
    "lstm": lambda: stack(nn.LSTM),
    "gru": lambda: stack(nn.GRU),
    "rnn": lambda: stack(nn.RNN, nonlinearity="relu"),
    "without biases": lambda: stack(nn.LSTM, bias=False, dropout=0.5),
    "the last state": lambda: stack(nn.GRU, lambda found: found[1][-1]),
    "the last state, moved": lambda: stack(nn.LSTM, lambda found: found[1][0].transpose(0, 1)[:, -1]),
    "a slice of states": lambda: stack(nn.LSTM, lambda found: found[1][1][-1:].squeeze(0)),
}


@pytest.mark.parametrize("dynamic", [None, ({0: AUTO},)], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", KINDS)
def test_inner_layers_can_be_cut_though_the_last_one_leaves_the_model(name: str, dynamic: Any) -> None:
    """The oracle is the user's module, the columns that read the removed units zeroed by hand in the layer itself and in the next."""
    model = KINDS[name]()
    program = capture(model, (x(),), dynamic_shapes=dynamic)
    axes = [axis for axis in analyze(program).axes if axis.size == 8 and axis.exact]
    slim = shrink(program, Selection({axis.name: KEPT for axis in axes}))
    zeroed = copy.deepcopy(model)
    with torch.no_grad():
        for layer in range(2):
            for weight in (f"weight_hh_l{layer}", f"weight_ih_l{layer + 1}"):
                getattr(zeroed.cells, weight)[:, [1, 2, 5, 6, 7]] = 0
    other = torch.cat([x(), x().flip(0)])[:4] if dynamic else -x()
    assert distance(slim(other), zeroed(other)) < 1e-12
    assert distance(zeroed(other), model(other)) > 1e-3
    assert [axis.size for axis in axes] == [8, 8]
    assert slim.parameters().keys() == dict(model.named_parameters()).keys()
    shapes = {name: tuple(value.shape) for name, value in slim.parameters().items()}
    gates = model.cells.weight_ih_l0.shape[0] // 8
    assert shapes["cells.weight_ih_l1"] == (3 * gates, 3)
    assert shapes["cells.weight_hh_l2"] == (8 * gates, 8)


def test_both_directions_of_a_layer_share_a_width_and_layers_do_not() -> None:
    last: Any = lambda found: found[1].view(3, 2, -1, 8)[-1].flatten(1)
    read: Any = [lambda found: found[0], lambda found: torch.cat([found[1][-2], found[1][-1]], 1), last]
    for each in read:
        program = capture(stack(nn.GRU, each, bidirectional=True), (x(),))
        axes = [axis for axis in analyze(program).axes if axis.exact]
        assert [axis.size for axis in axes] == [8, 8]
        slim = shrink(program, Selection({axis.name: KEPT for axis in axes}))
        assert slim.parameters()["cells.weight_ih_l1_reverse"].shape == (9, 6)


def test_a_projecting_layer_stays_wider_than_its_projection() -> None:
    """torch tells a projection by its width: as wide as the cell, it counts as none."""
    program = capture(stack(nn.LSTM, proj_size=4), (x(),))
    axes = analyze(program).axes
    assert [(axis.size, axis.least) for axis in axes] == [(8, 5), (4, 1), (8, 5), (4, 1), (8, 5)]
    slim = shrink(program, Selection({axis.name: range(axis.least) for axis in axes}))
    assert slim.parameters()["cells.weight_ih_l1"].shape == (20, 1)
    said = r"needs at least 5, and 4 would be left"
    with pytest.raises(SelectionError, match=said):
        shrink(program, Selection({axes[0].name: range(4)}))


def test_states_that_go_from_stack_to_stack_go_layer_by_layer() -> None:
    """An encoder and a decoder whose layers share their widths in pairs."""
    parts = {"first": nn.LSTM(6, 8, 2), "second": nn.LSTM(4, 8, 2)}
    net = Net(lambda net, x, y: net.second(y, net.first(x)[1])[0], **parts).eval()
    program = capture(net, (torch.randn(5, 3, 6), torch.randn(7, 3, 4)))
    (axis,) = analyze(program).axes
    assert {member.name for member in axis.members if member.learned} >= {
        "first.weight_hh_l0",
        "second.weight_hh_l0",
    }
    assert "first.weight_hh_l1" not in {member.name for member in axis.members}


def test_a_file_has_the_cut_weights(tmp_path: Path) -> None:
    program = capture(stack(nn.LSTM).float(), (x().float(),))
    slim = shrink(program, Selection({axis.name: KEPT for axis in analyze(program).axes}))
    export_onnx(slim, tmp_path / "slim.onnx")
    held = onnx.load(tmp_path / "slim.onnx").graph.initializer
    weights = sum(
        each.dims[0] * each.dims[1] * each.dims[2]
        for each in held
        if len(each.dims) == 3 and each.dims[1] > 3
    )
    assert weights == sum(value.numel() for value in slim.parameters().values() if value.dim() == 2)
