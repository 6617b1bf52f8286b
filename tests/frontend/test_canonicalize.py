"""Canonicalization: stacked projections are split, shared position tables don't tie layers, and no result changes."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fxprune import analyze, capture
from fxprune.rewrite.shared_tables import drop_whole_choices
from support.models import captured


class Stacked(nn.Module):
    """Fused qkv: `order` says whether the 3 stands before or behind the heads."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.order = order
        self.qkv, self.out, self.read = nn.Linear(32, 96), nn.Linear(32, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        b, n, width = x.shape
        if self.order == "3hd":
            q, k, v = self.qkv(x).reshape(b, n, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            fused = self.qkv(x).view(b, n, 4, 3, 8).transpose(1, 2)
            q, k, v = fused[..., 0, :], fused[..., 1, :], fused[..., 2, :]
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        result: Tensor = self.read(self.out(mixed.transpose(1, 2).reshape(b, n, width)))
        return result


@pytest.mark.parametrize("order", ["3hd", "h3d"])
@pytest.mark.parametrize("dynamic", [None, True])
def test_stacked_projections_come_apart(order: str, dynamic: bool | None) -> None:
    model, x = Stacked(order), torch.randn(3, 13, 32)
    program = capture(model, (x,), dynamic_shapes=dynamic)
    assert torch.equal(program(x), model(x))
    assert [axis.role for axis in analyze(program).axes] == ["heads", "qk", "v", "rank"]


def test_torchs_own_attention_comes_apart() -> None:
    model, x = nn.MultiheadAttention(32, 4, batch_first=True), torch.randn(3, 13, 32)
    program = capture(model, (x, x, x), {"need_weights": False})
    assert [axis.role for axis in analyze(program).axes] == ["heads", "qk", "v"]


def test_a_rotary_table_does_not_tie_layers() -> None:
    program = captured("llama", dynamic=True)
    names = [axis.name for axis in analyze(program).axes if axis.role == "qk"]
    assert names == ["model.layers.0.self_attn.qk", "model.layers.1.self_attn.qk"]


def test_choices_that_take_all_are_gone_when_a_program_is_written() -> None:
    program = captured("llama", dynamic=True)
    joined = drop_whole_choices(program)
    chosen = [node for node in joined.graph.nodes if "index_select" in node.name]
    assert chosen == []
    assert torch.equal(joined(**program.kwargs).logits, program(**program.kwargs).logits)


class WrittenInto(nn.Module):
    def __init__(self, write: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.up, self.down, self.write = nn.Linear(4, 6), nn.Linear(6, 2), write

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(self.write(self.up(x).clone()))
        return y


@pytest.mark.parametrize(
    ("write", "target"),
    [
        (lambda h: torch.ops.aten.ldexp_(h, torch.ones(6)), "aten.ldexp.Tensor"),
        (lambda h: torch.ops.aten.logical_xor_(h, torch.ones(6)).float(), "aten.logical_xor_.default"),
        (lambda h: h.relu_(), "aten.relu.default"),
    ],
)
def test_in_place_operators_become_functional_where_type_and_arguments_agree(
    write: Callable[[Tensor], Tensor], target: str
) -> None:
    program = capture(WrittenInto(write), (torch.randn(3, 4),))
    assert target in [str(node.target) for node in program.graph.nodes]
