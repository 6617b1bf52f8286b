"""Unstack: parts that one view stacks become slices."""

from __future__ import annotations

from typing import Any

import torch
from expecttest import assert_expected_inline
from torch import Tensor, nn

from fxprune import show
from fxprune.frontend.canonicalization.unstack import unstack
from fxprune.rewrite import remove_dead
from support.texts import Net, exported


def test_before_and_after() -> None:
    """A view to (…, 2, 4), of which each half is selected, becomes two slices: the halves come apart."""

    def forward(net: Any, x: Tensor) -> Any:
        left, right = net.both(x).view(3, 2, 4).unbind(1)
        return net.down(left.relu()) + net.down_2(right)

    both, down, down_2 = nn.Linear(8, 8), nn.Linear(4, 8), nn.Linear(4, 8)
    program = exported(Net(forward, both=both, down=down, down_2=down_2), torch.randn(3, 8))
    assert_expected_inline(
        show(program),
        """\
x: (!3, !8)
both.weight: (!2 x ffn:4, !8)
both.bias: (!2 x ffn:4)
linear = linear(x, both.weight, both.bias) -> (!3, !2 x ffn:4)
view = view(linear, [3, 2, 4]) -> (!3, !2, ffn:4)
unbind = unbind(view, 1) -> (!3, ffn:4), (!3, ffn:4)
getitem = unbind[0] -> (!3, ffn:4)
getitem_1 = unbind[1] -> (!3, ffn:4)
relu = relu(getitem) -> (!3, ffn:4)
down.weight: (!8, ffn:4)
down.bias: (!8)
linear_1 = linear(relu, down.weight, down.bias) -> (!3, !8)
down_2.weight: (!8, ffn:4)
down_2.bias: (!8)
linear_2 = linear(getitem_1, down_2.weight, down_2.bias) -> (!3, !8)
add = add(linear_1, linear_2) -> (!3, !8)
return add""",
    )
    unstack(program.graph_module)
    remove_dead(program.graph_module)
    assert_expected_inline(
        show(program),
        """\
x: (!3, !8)
both.weight: (both.ffn:4 + both.ffn.2:4, !8)
both.bias: (both.ffn:4 + both.ffn.2:4)
linear = linear(x, both.weight, both.bias) -> (!3, both.ffn:4 + both.ffn.2:4)
reshape_default = reshape(linear, [3, 8]) -> (!3, both.ffn:4 + both.ffn.2:4)
slice_tensor = slice(reshape_default, 1, 0, 4) -> (!3, both.ffn:4)
reshape_default_1 = reshape(slice_tensor, [3, 4]) -> (!3, both.ffn:4)
reshape_default_2 = reshape(linear, [3, 8]) -> (!3, both.ffn:4 + both.ffn.2:4)
slice_tensor_1 = slice(reshape_default_2, 1, 4, 8) -> (!3, both.ffn.2:4)
reshape_default_3 = reshape(slice_tensor_1, [3, 4]) -> (!3, both.ffn.2:4)
relu = relu(reshape_default_1) -> (!3, both.ffn:4)
down.weight: (!8, both.ffn:4)
down.bias: (!8)
linear_1 = linear(relu, down.weight, down.bias) -> (!3, !8)
down_2.weight: (!8, both.ffn.2:4)
down_2.bias: (!8)
linear_2 = linear(reshape_default_3, down_2.weight, down_2.bias) -> (!3, !8)
add = add(linear_1, linear_2) -> (!3, !8)
return add""",
    )
