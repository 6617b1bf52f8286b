"""Canonicalization: stacked projections are split, shared position tables don't tie layers, and no result changes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from expecttest import assert_expected_inline
from torch import Tensor, nn

from fxprune import analyze, capture, show
from fxprune.frontend.canonicalization.canonicalize import (
    contiguous_pairs,
    drop_aliases,
    drop_assertions,
    explicit_scale,
    explicit_sizes,
    explicit_splits,
    explicit_squeeze,
    functionalize,
    inline_regions,
)
from fxprune.rewrite.shared_tables import drop_whole_choices
from support.models import captured
from support.texts import Net, exported


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


def test_before_and_after_of_inline_regions() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        with torch.autocast("cpu", enabled=False):
            return net.up(x)

    program = exported(Net(forward, up=nn.Linear(8, 4)), torch.randn(3, 8))
    assert_expected_inline(
        show(program),
        """\
x: (!3, !8)
up.weight: (!4, !8)
up.bias: (!4)
linear = higher_order.wrap_with_autocast(cpu, bfloat16, False, False, submod_1, x, up.weight, up.bias) -> (!3, !4)
getitem = linear[0] -> (!3, !4)
return getitem""",
    )
    inline_regions(program.graph_module)
    assert_expected_inline(
        show(program),
        """\
x: (!3, !8)
up.weight: (!4, !8)
up.bias: (!4)
linear_1 = linear(x, up.weight, up.bias) -> (!3, !4)
return linear_1""",
    )


def test_before_and_after_of_drop_assertions() -> None:
    program = exported(Net(lambda net, x: x.to(torch.float64)), torch.randn(3, 8))
    assert_expected_inline(
        show(program),
        """\
x: (!3, !8)
_assert_tensor_metadata_default = _assert_tensor_metadata(x, dtype=float32, device=cpu, layout=strided)
to = to(x, float64) -> (!3, !8)
return to""",
    )
    drop_assertions(program.graph_module)
    assert_expected_inline(
        show(program),
        """\
x: (!3, !8)
to = to(x, float64) -> (!3, !8)
return to""",
    )


def test_before_and_after_of_explicit_sizes() -> None:
    """`view_as` has no rule, and pins; a view to written sizes does not."""
    net = Net(lambda net, x, y: net.down(net.up(x).view_as(y)), up=nn.Linear(8, 4), down=nn.Linear(4, 8))
    program = exported(net, torch.randn(3, 8), torch.randn(3, 4))
    assert_expected_inline(
        show(program),
        """\
x: (!3, !8)
y: (!3, !4)
up.weight: (!4, !8)
up.bias: (!4)
linear = linear(x, up.weight, up.bias) -> (!3, !4)
view_as = view_as(linear, y) -> (!3, !4)
down.weight: (!8, !4)
down.bias: (!8)
linear_1 = linear(view_as, down.weight, down.bias) -> (!3, !8)
return linear_1""",
    )
    explicit_sizes(program.graph_module)
    assert_expected_inline(
        show(program),
        """\
x: (!3, !8)
y: (!3, !4)
up.weight: (ffn:4, !8)
up.bias: (ffn:4)
linear = linear(x, up.weight, up.bias) -> (!3, ffn:4)
view_as = reshape(linear, [3, 4]) -> (!3, ffn:4)
down.weight: (!8, ffn:4)
down.bias: (!8)
linear_1 = linear(view_as, down.weight, down.bias) -> (!3, !8)
return linear_1""",
    )


def test_before_and_after_of_explicit_squeeze() -> None:
    """Neurons pruned to one would be squeezed, too."""
    net = Net(lambda net, x: net.down(net.up(x).squeeze()), up=nn.Linear(8, 4), down=nn.Linear(4, 8))
    program = exported(net, torch.randn(3, 1, 8))
    assert_expected_inline(
        show(program),
        """\
x: (!3, !1, !8)
up.weight: (!4, !8)
up.bias: (!4)
linear = linear(x, up.weight, up.bias) -> (!3, !1, !4)
squeeze = squeeze(linear) -> (!3, !4)
down.weight: (!8, !4)
down.bias: (!8)
linear_1 = linear(squeeze, down.weight, down.bias) -> (!3, !8)
return linear_1""",
    )
    explicit_squeeze(program.graph_module)
    assert_expected_inline(
        show(program),
        """\
x: (!3, !1, !8)
up.weight: (ffn:4, !8)
up.bias: (ffn:4)
linear = linear(x, up.weight, up.bias) -> (!3, !1, ffn:4)
squeeze = squeeze(linear, [1]) -> (!3, ffn:4)
down.weight: (!8, ffn:4)
down.bias: (!8)
linear_1 = linear(squeeze, down.weight, down.bias) -> (!3, !8)
return linear_1""",
    )


def test_before_and_after_of_explicit_splits() -> None:
    """Chunks have equal sizes, parts that are pruned apart need not."""
    net = Net(lambda net, x: torch.cat(net.up(x).chunk(2, -1)[::-1], -1), up=nn.Linear(8, 8))
    program = exported(net, torch.randn(3, 8))
    assert_expected_inline(
        show(program),
        """\
x: (!3, !8)
up.weight: (!8, !8)
up.bias: (!8)
linear = linear(x, up.weight, up.bias) -> (!3, !8)
chunk = chunk(linear, 2, -1) -> (!3, !4), (!3, !4)
getitem = chunk[0] -> (!3, !4)
getitem_1 = chunk[1] -> (!3, !4)
cat = cat([getitem_1, getitem], -1) -> (!3, !4 + !4)
return cat""",
    )
    explicit_splits(program.graph_module)
    assert_expected_inline(
        show(program),
        """\
x: (!3, !8)
up.weight: (!4 + !4, !8)
up.bias: (!4 + !4)
linear = linear(x, up.weight, up.bias) -> (!3, !4 + !4)
chunk = split_with_sizes(linear, [4, 4], -1) -> (!3, !4), (!3, !4)
getitem = chunk[0] -> (!3, !4)
getitem_1 = chunk[1] -> (!3, !4)
cat = cat([getitem_1, getitem], -1) -> (!3, !4 + !4)
return cat""",
    )


def test_before_and_after_of_explicit_scale() -> None:
    program = exported(
        Net(lambda net, q: nn.functional.scaled_dot_product_attention(q, q, q)), torch.randn(3, 5, 4)
    )
    assert_expected_inline(
        show(program),
        """\
q: (!3, !5, !4)
scaled_dot_product_attention = scaled_dot_product_attention(q, q, q) -> (!3, !5, !4)
return scaled_dot_product_attention""",
    )
    explicit_scale(program.graph_module)
    assert_expected_inline(
        show(program),
        """\
q: (!3, !5, !4)
scaled_dot_product_attention = scaled_dot_product_attention(q, q, q, scale=0.5) -> (!3, !5, !4)
return scaled_dot_product_attention""",
    )


def test_before_and_after_of_contiguous_pairs() -> None:
    program = exported(Net(lambda net, x: torch.view_as_complex(x).abs()), torch.randn(3, 4, 2))
    assert_expected_inline(
        show(program),
        """\
x: (!3, !4, !2)
view_as_complex = view_as_complex(x) -> (!3, !4)
abs_1 = abs(view_as_complex) -> (!3, !4)
return abs_1""",
    )
    contiguous_pairs(program.graph_module)
    assert_expected_inline(
        show(program),
        """\
x: (!3, !4, !2)
contiguous_default = contiguous(x) -> (!3, !4, !2)
view_as_complex = view_as_complex(contiguous_default) -> (!3, !4)
abs_1 = abs(view_as_complex) -> (!3, !4)
return abs_1""",
    )


def test_before_and_after_of_functionalize() -> None:
    """A write into a value that nothing else reads becomes a new value."""

    def forward(net: Any, x: Tensor) -> Any:
        y = net.up(x)
        y.relu_()
        return y + 1

    program = exported(Net(forward, up=nn.Linear(8, 4)), torch.randn(3, 8))
    assert_expected_inline(
        show(program),
        """\
x: (!3, !8)
up.weight: (!4, !8)
up.bias: (!4)
linear = linear(x, up.weight, up.bias) -> (!3, !4)
relu_ = relu_(linear) -> (!3, !4)
add = add(relu_, 1) -> (!3, !4)
return add""",
    )
    functionalize(program.graph_module)
    assert_expected_inline(
        show(program),
        """\
x: (!3, !8)
up.weight: (!4, !8)
up.bias: (!4)
linear = linear(x, up.weight, up.bias) -> (!3, !4)
relu_ = relu(linear) -> (!3, !4)
add = add(relu_, 1) -> (!3, !4)
return add""",
    )


def test_before_and_after_of_drop_aliases() -> None:
    program = exported(Net(lambda net, x: x.detach().to(torch.float32).relu()), torch.randn(3, 8))
    assert_expected_inline(
        show(program),
        """\
x: (!3, !8)
detach = detach(x) -> (!3, !8)
_assert_tensor_metadata_default = _assert_tensor_metadata(detach, dtype=float32, device=cpu, layout=strided)
to = to(detach, float32) -> (!3, !8)
relu = relu(to) -> (!3, !8)
return relu""",
    )
    drop_aliases(program.graph_module)
    assert_expected_inline(
        show(program),
        """\
x: (!3, !8)
_assert_tensor_metadata_default = _assert_tensor_metadata(x, dtype=float32, device=cpu, layout=strided)
relu = relu(x) -> (!3, !8)
return relu""",
    )
