"""Operators that torch's exporter lacks or writes wrongly: each row of the table, in a file that ONNX Runtime runs as torch does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from expecttest import assert_expected_inline
from torch import Tensor, nn

from fxprune import Selection, analyze, capture, export_onnx, show, shrink, verify
from fxprune.export.onnx_rewrites import REWRITES, rewrite_for_onnx
from fxprune.export.real_pairs import PAIRED
from support import onnx_cases
from support.texts import Net

aten = torch.ops.aten
ids = torch.tensor([[1, 0, 1, 1], [0, 0, 1, 0]])
floats = torch.linspace(-2, 2, 24).reshape(2, 4, 3)
grid = torch.arange(24.0).reshape(8, 3)
image = torch.linspace(-3, -1, 96).reshape(2, 3, 4, 4)


class Of(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, 3))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
        given = (x,) if mask is None else (x, mask)
        return self.function(*given, self.weight)


def _written(x: Tensor, mask: Tensor, w: Tensor) -> Tensor:
    x = x * w
    x[mask.bool()] = torch.ones(4, 3) * w
    return x


def _polar(x: Tensor, w: Tensor) -> Tensor:
    angles = torch.outer(torch.arange(x.shape[1]).float(), w[:2])
    turned = torch.view_as_complex(torch.stack([x, x + w[0]], -1).transpose(1, 2)[:, :2].contiguous())
    turns = torch.polar(torch.ones_like(angles), angles).transpose(0, 1).unsqueeze(0) * 0.5
    return torch.view_as_real(turned * turns + turned.conj() - turns).flatten(-2)


CASES: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...], set[Any]]] = {
    "an integer less a fraction": (lambda m, w: (1.0 - m) * w[0] + (m - 0.5), (ids,), {aten.rsub, aten.sub}),
    "an integer and the least float": (lambda m, w: m * -3.4e38 + w[0], (ids,), {aten.mul}),
    "integers added and divided": (lambda m, w: (m + 0.5) / 3 + m / 2 + w[0], (ids,), {aten.add, aten.div}),
    "a fill of integers in a choice": (
        lambda m, w: torch.where(m > 0, m * 2, torch.full((m.shape[0], 4), 0)) * w[0],
        (ids,),
        {aten.full},
    ),
    "rows put where a mask is": (
        lambda x, m, w: (x * w).masked_scatter(m.bool().unsqueeze(-1), torch.arange(12.0).reshape(4, 3) + w),
        (floats, ids),
        {aten.masked_scatter},
    ),
    "elements put where a mask is": (
        lambda x, w: (x * w).masked_scatter(x > 0, torch.arange(12.0) + w[0]),
        (floats,),
        {aten.masked_scatter},
    ),
    "rows written by a mask": (_written, (floats, ids), {aten.index_put}),
    "a standardized weight": (
        lambda x, w: nn.functional.batch_norm(x, None, None, w, w, training=True),
        (image,),
        {aten.batch_norm},
    ),
    "zeros around what is below zero": (
        lambda x, w: (
            nn.functional.max_pool2d(nn.functional.pad(x, (1, 1, 1, 1)), 2, 1) * w.reshape(1, 3, 1, 1)
        ),
        (image,),
        {aten.max_pool2d},
    ),
    "chunks of a dynamic size": (
        lambda x, w: sum(part * w for part in torch.cat([x, x, x], 1).chunk(3, 1)),
        (floats,),
        {aten.chunk},
    ),
    "a split at a dynamic size": (
        lambda x, w: torch.cat([x, x * w], 1).split([x.shape[1], x.shape[1]], 1)[1],
        (floats,),
        {aten.split_with_sizes},
    ),
    "scalars near 0": (
        lambda x, w: (
            (x.relu() * w + 1e-15).log(),
            w / ((w - w[0]).relu() + 1e-9),
            1 / (w.sum() - w.sum() + 1e-12),
            x.relu() - 1e-12,
        ),
        (floats,),
        {aten.add, aten.sub, aten.div},
    ),
    "scalars near 1": (
        lambda x, w: (x * 1.000001 - x, (w / 0.999999 - w) * x),
        (floats,),
        {aten.mul, aten.div, aten.sub},
    ),
    "squeezed dims of other sizes": (
        lambda x, w: ((x * w).squeeze(1), (x * w).unsqueeze(1).squeeze((0, 1, 2))),
        (floats,),
        {aten.squeeze},
    ),
    "overlapping windows": (
        lambda x, w: (
            (grid * w * x.mean()).as_strided((1, 2, 4, 3), (12, 6, 3, 1), 3) * w,
            (grid * w * x.mean()).T.as_strided((2, 5), (4, 2)) + w[0],
        ),
        (floats,),
        {aten.as_strided},
    ),
    "complex numbers": (
        _polar,
        (floats,),
        {aten.polar, aten.view_as_complex, aten.view_as_real, aten.mul, aten.transpose, aten.unsqueeze}
        | {aten.add, aten.sub, aten._conj},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_file_computes_what_torch_does(name: str, tmp_path: Path) -> None:
    function, inputs, rows = CASES[name]
    program = capture(Of(function), inputs, dynamic_shapes=True)
    targets = {getattr(node.target, "overloadpacket", None) for node in program.graph.nodes}
    assert rows - targets <= {aten.chunk, aten.split_with_sizes, aten._conj}, (
        "the case has not the operator that it is for"
    )
    assert export_onnx(program, tmp_path / "model.onnx").relative <= 1e-5


def test_every_row_has_a_case() -> None:
    covered = set().union(*(rows for *_, rows in (*CASES.values(), *onnx_cases.CASES.values())))
    assert set(REWRITES) - covered == {aten.max_pool1d, aten.max_pool3d, aten._cdist_forward, aten.lstm}
    assert set(PAIRED) - covered == {
        *(
            aten.real,
            aten.imag,
            aten.to,
            aten.flatten,
            aten.slice,
            aten.select,
            aten.index_select,
            aten.contiguous,
            aten.clone,
        ),
        *(aten.view, aten.reshape, aten.expand),
    }


def test_an_output_that_is_no_tensor_has_no_place_in_the_file(tmp_path: Path) -> None:
    program = capture(Of(lambda x, w: (x * w, x.shape[-1], None, x.shape[1])), (floats,), dynamic_shapes=True)
    made = export_onnx(program, tmp_path / "model.onnx")
    assert (made.relative <= 1e-6, program.output_names()) == (True, ("output_0",))


def test_sizes_beside_the_outputs_do_not_stop_a_proof() -> None:
    linear = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))

    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = linear

        def forward(self, x: Tensor) -> tuple[Tensor, int, int]:
            y = self.net(x)
            return y, y.shape[-1], y.shape[1]

    program = capture(Sized(), (floats,), dynamic_shapes=True)
    (axis,) = [axis.name for axis in analyze(program).axes if axis.size == 8]
    selection = Selection({axis: range(3)})
    slim = shrink(program, selection)
    assert verify(program, slim, selection).status == "equal"
    assert slim(floats)[1:] == (2, 4)


def test_before_and_after() -> None:
    """Rows go where a mask is: the n-th marked place takes the n-th row."""

    def forward(_: Any, x: Tensor, mask: Tensor) -> Tensor:
        return x.masked_scatter(mask, torch.ones(4, 3)) - 1

    program = capture(Net(forward), (floats, ids.bool().unsqueeze(-1)))
    assert_expected_inline(
        show(program),
        """\
x: (!2, !4, !3)
mask: (!2, !4, !1)
ones = ones([4, 3], device=cpu, pin_memory=False) -> (!4, !3)
masked_scatter = masked_scatter(x, mask, ones) -> (!2, !4, !3)
sub = sub(masked_scatter, 1) -> (!2, !4, !3)
return sub""",
    )
    assert_expected_inline(
        show(rewrite_for_onnx(program)),
        """\
x: (!2, !4, !3)
mask: (!2, !4, !1)
ones = ones([4, 3], device=cpu, pin_memory=False) -> (!4, !3)
expand_default = expand(mask, [2, 4, 1]) -> (!2, !4, !1)
to_dtype = to(expand_default, int64) -> (!2, !4, 1)
reshape_default = reshape(to_dtype, [-1]) -> (!2 x !4)
cumsum_default = cumsum(reshape_default, 0) -> (!2 x !4)
sub_tensor = sub(cumsum_default, 1) -> (!2 x !4)
clamp_default = clamp(sub_tensor, 0) -> (!2 x !4)
reshape_default_1 = reshape(ones, [-1, 3]) -> (!4, !3)
index_select_default = index_select(reshape_default_1, 0, clamp_default) -> (!2 x !4, !3)
view_as_default = view_as(index_select_default, x) -> (!2, !4, !3)
where_self = where(expand_default, view_as_default, x) -> (!2, !4, !3)
sub = sub(where_self, 1) -> (!2, !4, !3)
return sub""",
    )
