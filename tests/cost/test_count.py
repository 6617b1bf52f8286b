"""Parameters, bytes and operations, against counts by hand and against the file."""

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F  # noqa: N812 - its usual name

from fxprune.cost.count import count_cost, count_flops
from fxprune.export import export_onnx
from fxprune.frontend.capture import capture
from fxprune.ir import Program, feeds
from fxprune.runtimes.onnxruntime import file_flops


class Attention(nn.Module):
    def __init__(self, heads: int, shared: int, value: int, masked: bool) -> None:
        super().__init__()
        self.heads, self.shared, self.value, self.masked = heads, shared, value, masked

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool) if self.masked else None
        grouped = query.shape[1] != key.shape[1]
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=grouped)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.up = nn.Linear(6, 8)
        self.down = nn.Linear(8, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("shift", torch.zeros(6))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids) + self.shift
        y: Tensor = self.head(self.down(self.up(x).relu()))
        return y


def tied() -> Program:
    ids = torch.arange(15).reshape(3, 5) % 11
    return capture(Tied(), (ids,), dynamic_shapes={"ids": {0: Dim.AUTO, 1: Dim.AUTO}})


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("shared", "value"), [(4, 8), (2, 8), (4, 6)])
def test_attention_counts_scores_and_sums_for_every_query_head(shared: int, value: int, masked: bool) -> None:
    given = (torch.rand(2, 4, 5, 8), torch.rand(2, shared, 7, 8), torch.rand(2, shared, 7, value))
    program = capture(Attention(4, shared, value, masked), given)
    assert count_flops(program) == 2 * (2 * 4) * 5 * 7 * (8 + value)


def test_convolutions_count_their_groups() -> None:
    program = capture(nn.Conv2d(6, 8, 3, groups=2), (torch.rand(2, 6, 7, 7),))
    assert count_flops(program) == 2 * (2 * 8 * 5 * 5) * (3 * 3 * 3)


def test_convolutions_of_volumes_count_their_points() -> None:
    program = capture(nn.Conv3d(6, 8, (1, 2, 3), stride=2), (torch.rand(2, 6, 5, 6, 7),))
    assert count_flops(program) == 2 * (2 * 8 * 3 * 3 * 3) * (6 * 1 * 2 * 3)


def test_a_recurrent_layer_counts() -> None:
    program = capture(nn.LSTM(6, 4), (torch.rand(5, 2, 6),))
    assert count_flops(program) == 2 * (5 * 2) * (16 * 6 + 16 * 4)


def test_tied_weights_count_once_and_operations_follow_the_point() -> None:
    program = tied()
    parameters = 11 * 6 + (8 * 6 + 8) + (6 * 8 + 6)
    a_token = 2 * (6 * 8 + 8 * 6 + 6 * 11)
    assert count_cost(program).parameters == parameters
    assert count_cost(program).bytes == 4 * (parameters + 6)
    assert count_cost(program).flops == 15 * a_token
    assert count_cost(program, {"batch": 2, "length": 64}).flops == 128 * a_token


def test_what_is_reported_is_what_the_file_holds(tmp_path: Path) -> None:
    program = tied()
    file = export_onnx(program, tmp_path / "tied.onnx").path
    weights = [
        tensor for tensor in onnx.load(file).graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT
    ]
    counted = sum(onnx.numpy_helper.to_array(tensor).size for tensor in weights)
    assert counted >= count_cost(program).parameters
    for point in ({"batch": 1, "length": 7}, {"batch": 4, "length": 3}):
        assert file_flops(file, feeds(program, point)) == count_flops(program, point)
