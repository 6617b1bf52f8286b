"""ONNX forms of operators on images."""

from typing import Any

import torch
from expecttest import assert_expected_inline
from torch import Tensor, nn

from fxprune import capture, show
from fxprune.export.onnx_rewrites import rewrite_for_onnx
from support.texts import Net

image = torch.linspace(-3, -1, 96).reshape(2, 3, 4, 4)


def test_before_and_after() -> None:
    """Zeros before a max pool are nearly zeros, and places beside each other become channels by views."""

    def forward(_: Any, x: Tensor) -> Tensor:
        padded = nn.functional.max_pool2d(nn.functional.pad(x, (1, 1, 1, 1)), 2, 2)
        return nn.functional.pixel_unshuffle(nn.functional.adaptive_max_pool2d(padded, (2, 2)), 2)

    program = capture(Net(forward), (image,))
    assert_expected_inline(
        show(program),
        """\
x: (!2, !3, !4, !4)
pad = pad(x, [1, 1, 1, 1]) -> (!2, !3, !1 + !4 + !1, !1 + !4 + !1)
max_pool2d = max_pool2d(pad, [2, 2], [2, 2]) -> (!2, !3, !3, !3)
adaptive_max_pool2d = adaptive_max_pool2d(max_pool2d, [2, 2]) -> (!2, !3, !2, !2), (!2, !3, !2, !2)
getitem = adaptive_max_pool2d[0] -> (!2, !3, !2, !2)
pixel_unshuffle = pixel_unshuffle(getitem, 2) -> (!2, !3 x !4, !1, !1)
return pixel_unshuffle""",
    )
    assert_expected_inline(
        show(rewrite_for_onnx(program)),
        """\
x: (!2, !3, !4, !4)
pad = pad(x, [1, 1, 1, 1]) -> (!2, !3, 1 + !4 + 1, 1 + !4 + 1)
constant_pad_nd_default = constant_pad_nd(x, [1, 1, 1, 1], 1e-30) -> (!2, !3, !1 + !4 + !1, !1 + !4 + !1)
max_pool2d = max_pool2d(constant_pad_nd_default, [2, 2], [2, 2]) -> (!2, !3, !3, !3)
slice_tensor = slice(max_pool2d, -2, 0, 2) -> (!2, !3, !2, !3)
slice_tensor_1 = slice(max_pool2d, -2, 1, 3) -> (!2, !3, !2, !3)
amax_default = amax(slice_tensor, [-2], True) -> (!2, !3, !1, !3)
amax_default_1 = amax(slice_tensor_1, [-2], True) -> (!2, !3, !1, !3)
cat_default = cat([amax_default, amax_default_1], -2) -> (!2, !3, !1 + !1, !3)
slice_tensor_2 = slice(cat_default, -1, 0, 2) -> (!2, !3, !1 + !1, !2)
slice_tensor_3 = slice(cat_default, -1, 1, 3) -> (!2, !3, !1 + !1, !2)
amax_default_2 = amax(slice_tensor_2, [-1], True) -> (!2, !3, !1 + !1, !1)
amax_default_3 = amax(slice_tensor_3, [-1], True) -> (!2, !3, !1 + !1, !1)
cat_default_1 = cat([amax_default_2, amax_default_3], -1) -> (!2, !3, !1 + !1, !1 + !1)
reshape_default = reshape(cat_default_1, [2, 3, 1, 2, 1, 2]) -> (!2, !3, 1, !1 + !1, 1, !1 + !1)
permute_default = permute(reshape_default, [0, 1, 3, 5, 2, 4]) -> (!2, !3, !1 + !1, !1 + !1, 1, 1)
reshape_default_1 = reshape(permute_default, [2, -1, 1, 1]) -> (!2, !3 x (!1 + !1) x (!1 + !1), !1, !1)
return reshape_default_1""",
    )
