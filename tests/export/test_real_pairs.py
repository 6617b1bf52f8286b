"""Complex values as pairs of real ones."""

from typing import Any

import pytest
import torch
from expecttest import assert_expected_inline
from torch import Tensor

from fxprune import capture, show
from fxprune.export.onnx_rewrites import rewrite_for_onnx
from support.texts import Net

pairs = torch.linspace(-1, 1, 24).reshape(2, 3, 2, 2)


def test_before_and_after() -> None:
    def forward(_: Any, x: Tensor, angle: Tensor) -> Tensor:
        turned = torch.view_as_complex(x) * torch.polar(torch.ones_like(angle), angle)
        return torch.view_as_real(turned)

    program = capture(Net(forward), (pairs, pairs[0, :, :, 0]))
    assert_expected_inline(
        show(program),
        """\
x: (!2, !3, !2, !2)
angle: (!3, !2)
contiguous_default = contiguous(x) -> (!2, !3, !2, !2)
view_as_complex = view_as_complex(contiguous_default) -> (!2, !3, !2)
ones_like = ones_like(angle, pin_memory=False) -> (!3, !2)
polar = polar(ones_like, angle) -> (!3, !2)
mul = mul(view_as_complex, polar) -> (!2, !3, !2)
view_as_real = view_as_real(mul) -> (!2, !3, !2, !2)
return view_as_real""",
    )
    assert_expected_inline(
        show(rewrite_for_onnx(program)),
        """\
x: (!2, !3, !2, !2)
angle: (!3, !2)
contiguous_default = contiguous(x) -> (!2, !3, !2, !2)
ones_like = ones_like(angle, pin_memory=False) -> (!3, !2)
cos_default = cos(angle) -> (!3, !2)
sin_default = sin(angle) -> (!3, !2)
mul_tensor = mul(ones_like, cos_default) -> (!3, !2)
mul_tensor_1 = mul(ones_like, sin_default) -> (!3, !2)
stack_default = stack([mul_tensor, mul_tensor_1], -1) -> (!3, !2, !2)
select_int = select(contiguous_default, -1, 0) -> (!2, !3, !2)
select_int_1 = select(contiguous_default, -1, 1) -> (!2, !3, !2)
select_int_2 = select(stack_default, -1, 0) -> (!3, !2)
select_int_3 = select(stack_default, -1, 1) -> (!3, !2)
mul_tensor_2 = mul(select_int, select_int_2) -> (!2, !3, !2)
mul_tensor_3 = mul(select_int_1, select_int_3) -> (!2, !3, !2)
sub_tensor = sub(mul_tensor_2, mul_tensor_3) -> (!2, !3, !2)
mul_tensor_4 = mul(select_int, select_int_3) -> (!2, !3, !2)
mul_tensor_5 = mul(select_int_1, select_int_2) -> (!2, !3, !2)
add_tensor = add(mul_tensor_4, mul_tensor_5) -> (!2, !3, !2)
stack_default_1 = stack([sub_tensor, add_tensor], -1) -> (!2, !3, !2, !2)
return stack_default_1""",
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda z: z.unsqueeze(-1).select(-1, 0),
        lambda z: z[:, 1:].transpose(-1, 0).contiguous().reshape(2, -1),
        lambda z: (z * 2.0 + z.conj()) * z - z,
        lambda z: z.expand(4, 2, 3, 2).index_select(-2, torch.tensor([2, 0])).view(4, 2, -1).clone(),
        lambda z: z * z.real - z * z.imag,
        lambda z: z.flatten(-2) - z.flatten(1, 2),
    ],
)
def test_movements_and_products_are_those_of_complex_numbers(change: Any) -> None:
    def forward(_: Any, x: Tensor) -> Tensor:
        return torch.view_as_real(change(torch.view_as_complex(x)))

    program = capture(Net(forward), (pairs,))
    rewritten = rewrite_for_onnx(program)
    values = [node.meta.get("val") for node in rewritten.graph.nodes]
    assert [value for value in values if isinstance(value, Tensor) and value.is_complex()] == []
    assert torch.allclose(rewritten(pairs), program(pairs), atol=1e-6)


def test_a_complex_buffer_becomes_a_pair() -> None:
    net = Net(lambda n, x: torch.view_as_real(torch.view_as_complex(x) * n.turn))
    net.register_buffer("turn", torch.polar(torch.tensor([1.0, 2.0]), torch.tensor([0.5, -1.0])))
    program = capture(net, (pairs,))
    rewritten = rewrite_for_onnx(program)
    assert [value.dtype for value in rewritten.tensors().values()] == [torch.float32]
    assert torch.allclose(rewritten(pairs), program(pairs), atol=1e-6)


def test_a_graph_with_an_operator_without_a_real_form_stays_as_it_is() -> None:
    def forward(_: Any, x: Tensor) -> Tensor:
        return torch.view_as_real(torch.view_as_complex(x).sinh() * 2)

    program = capture(Net(forward), (pairs,))
    assert show(rewrite_for_onnx(program)) == show(program)
