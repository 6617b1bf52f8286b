"""Hand-made samples for the operators that torch's own samples never reach: aliases that export decomposes, casts, recurrent cells."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def r(*sizes: int) -> Tensor:
    """Normal numbers, the same for the same sizes."""
    generator = torch.Generator().manual_seed(math.prod(sizes) + len(sizes))
    return torch.randn(sizes, dtype=torch.float64, generator=generator)


def c(*sizes: int) -> Tensor:
    """Complex numbers."""
    return torch.complex(r(*sizes), r(*sizes).flip(0))


def i(*sizes: int) -> Tensor:
    """Small positive integers."""
    return r(*sizes).abs().mul(3).long() + 1


#: overloads (separated by spaces) and the operands that they are called with
CALLS: list[tuple[str, tuple[Any, ...]]] = [
    (
        "greater.Tensor less.Tensor greater_equal.Tensor less_equal.Tensor not_equal.Tensor multiply.Tensor",
        (r(4, 6), r(6)),
    ),
    (
        "greater_.Tensor less_.Tensor greater_equal_.Tensor less_equal_.Tensor not_equal_.Tensor",
        (r(4, 6), r(6)),
    ),
    ("multiply_.Tensor divide_.Tensor subtract_.Tensor copy_ copy", (r(4, 6), r(6))),
    ("type_as", (r(4, 6), r(3))),
    ("relu_ relu6_ gelu_ hardswish_ hardtanh_ fix_ negative_ negative detach_", (r(4, 6),)),
    ("alias detach_copy lift_fresh lift_fresh_copy _to_copy", (r(4, 6),)),
    ("absolute arccos arccosh arcsin arcsinh arctan arctanh fix absolute_ arccos_ arccosh_", (r(4, 6),)),
    ("arcsin_ arcsinh_ arctan_ arctanh_ rrelu_ lift _neg_view _neg_view_copy", (r(4, 6),)),
    (
        "eq_.Tensor gt_.Tensor ge_.Tensor lt_.Tensor le_.Tensor ne_.Tensor arctan2 arctan2_ heaviside_ copysign_.Tensor",
        (r(4, 6), r(6)),
    ),
    ("_conj_copy", (c(4, 6),)),
    ("linalg_matmul", (r(4, 6), r(6, 8))),
    ("chain_matmul", ([r(4, 6), r(6, 8), r(8, 5)],)),
    ("unsafe_split_with_sizes", (r(4, 6), [2, 4], 1)),
    ("split_copy.Tensor", (r(4, 6), 3, 1)),
    ("_stack", ([r(4, 6), r(4, 6)], 1)),
    ("frobenius_norm.dim", (r(4, 6), [1], True)),
    ("nuclear_norm", (r(4, 6),)),
    ("affine_grid_generator", (r(4, 2, 3), [4, 3, 5, 5], False)),
    ("bartlett_window blackman_window kaiser_window fft_fftfreq fft_rfftfreq", (5,)),
    ("poisson", (r(4, 6).abs(),)),
    ("binomial", (r(4, 6).abs().floor() + 3, r(4, 6).sigmoid())),
    ("chalf zero", (r(4, 6),)),
    ("as_strided", (r(4, 6), [4, 6], [6, 1])),
    ("count_nonzero.dim_IntList", (r(4, 6), [1])),
    ("tensor_split.sections", (r(4, 6), 2, 1)),
    ("conj _conj", (c(4, 6),)),
    ("view_as_real_copy", (c(4, 6),)),
    ("view_as_complex_copy", (r(4, 6, 2),)),
    ("row_stack", ([r(4, 6), r(3, 6)],)),
    ("ger", (r(4), r(6))),
    ("_unsafe_view _reshape_copy", (r(12, 10), [4, 3, 10])),
    ("_reshape_alias", (r(4, 6), [24], [1])),
    ("unflatten.int", (r(4, 6), 1, [2, 3])),
    ("swapaxes swapdims", (r(3, 4, 5), 0, 2)),
    ("moveaxis.intlist", (r(3, 4, 5), [0], [2])),
    ("adjoint", (r(2, 4, 6),)),
    ("concat concatenate", ([r(4, 6), r(4, 5)], 1)),
    ("chunk unsafe_chunk", (r(4, 6), 2, 1)),
    ("split.Tensor unsafe_split.Tensor", (r(4, 6), 3, 1)),
    ("slice_copy.Tensor", (r(4, 8), 1, 2, 5)),
    ("select_copy.int", (r(4, 8), 1, 3)),
    ("convolution", (r(2, 6, 9), r(8, 6, 3), r(8), [1], [0], [1], False, [0], 1)),
    ("_convolution", (r(2, 6, 9), r(8, 6, 3), r(8), [1], [0], [1], False, [0], 1, False, False, True, True)),
    ("reflection_pad1d replication_pad1d", (r(2, 4, 6), [1, 1])),
    ("reflection_pad2d replication_pad2d", (r(2, 4, 6, 6), [1, 1, 1, 1])),
    ("reflection_pad3d replication_pad3d", (r(2, 4, 3, 3, 3), [1] * 6)),
    ("_adaptive_avg_pool2d", (r(2, 4, 6, 6), [2, 2])),
    ("_adaptive_avg_pool3d", (r(2, 4, 4, 4, 4), [2, 2, 2])),
    ("_upsample_bicubic2d_aa", (r(2, 4, 6, 6), [3, 3], False)),
    ("_upsample_nearest_exact2d", (r(2, 4, 6, 6), [8, 8])),
    ("upsample_nearest3d", (r(2, 4, 3, 3, 3), [6, 6, 6])),
    ("randperm eye hann_window hamming_window", (5,)),
    ("tril_indices triu_indices", (4, 5)),
    ("arange.start range.step", (0, 5)),
    ("logspace", (0, 1, 5)),
    ("normal.Tensor_float rand_like bernoulli_.float", (r(4, 6),)),
    ("_unsafe_index.Tensor", (r(4, 6, 5), [None, torch.tensor([0, 2, 2])])),
    ("_unsafe_index_put", (r(4, 6), [torch.tensor([0, 2])], r(2, 6))),
    ("one_hot", (torch.tensor([0, 2, 4]), 5)),
    (
        "_embedding_bag _embedding_bag_forward_only",
        (r(7, 6), torch.tensor([1, 3, 5, 5, 2]), torch.tensor([0, 2])),
    ),
    ("embedding_bag.padding_idx", (r(7, 6), i(5), torch.tensor([0, 2]), False, 2, False, None, False, None)),
    ("col2im", (r(2, 12, 9), [4, 4], [2, 2], [1, 1], [0, 0], [1, 1])),
    ("inverse det slogdet linalg_matrix_exp", (r(3, 4, 4),)),
    ("matrix_power", (r(3, 4, 4), 2)),
    ("_fused_rms_norm", (r(4, 6), [6], r(6), 1e-5)),
    ("_native_batch_norm_legit_no_training", (r(4, 6, 3), r(6), r(6), r(6), r(6).abs() + 1, 0.1, 1e-5)),
    ("_softmax _log_softmax", (r(4, 6), 1, False)),
    ("_weight_norm", (r(8, 6), r(8, 1), 0)),
    ("_weight_norm", (r(8, 6), r(), -1)),
    ("_prelu_kernel", (r(2, 6, 3), r(1, 6, 1))),
    ("norm.ScalarOpt_dim", (r(4, 6), 2, [1], False)),
    ("_fft_c2c", (c(4, 6), [1], 0, True)),
    ("_fft_r2c", (r(4, 6), [1], 0, True)),
    ("_fft_c2r", (c(4, 6), [1], 0, 10)),
    ("nll_loss", (r(4, 6), torch.tensor([0, 2, 5, 1]), None, 0)),
    ("nll_loss2d", (r(2, 6, 3, 3), torch.ones(2, 3, 3, dtype=torch.long), None, 0)),
    ("bucketize.Tensor", (r(4, 6), r(5).sort().values)),
    ("lstm_cell", (r(4, 6), [r(4, 8), r(4, 8)], r(32, 6), r(32, 8), r(32), r(32))),
    ("gru_cell", (r(4, 6), r(4, 8), r(24, 6), r(24, 8), r(24), r(24))),
    ("rnn_tanh_cell rnn_relu_cell", (r(4, 6), r(4, 8), r(8, 6), r(8, 8), r(8), r(8))),
    (
        "lstm.input",
        (
            r(5, 3, 6),
            [r(1, 3, 8), r(1, 3, 8)],
            [r(32, 6), r(32, 8), r(32), r(32)],
            True,
            1,
            0.0,
            False,
            False,
            False,
        ),
    ),
    (
        "gru.input",
        (r(5, 3, 6), r(1, 3, 8), [r(24, 6), r(24, 8), r(24), r(24)], True, 1, 0.0, False, False, False),
    ),
    (
        "rnn_tanh.input rnn_relu.input",
        (r(5, 3, 6), r(1, 3, 8), [r(8, 6), r(8, 8), r(8), r(8)], True, 1, 0.0, False, False, False),
    ),
]

#: the same for integers and booleans, which come from parameters that are cast
CAST: list[tuple[str, tuple[Any, ...]]] = [
    ("__and__.Tensor __or__.Tensor __xor__.Tensor", (i(4, 6), i(6))),
    ("__iand__.Tensor __ior__.Tensor __ixor__.Tensor __irshift__.Tensor __ilshift__.Tensor", (i(4, 6), i(6))),
    ("bitwise_not bitwise_not_", (i(4, 6),)),
    ("gcd_ lcm_", (i(4, 6), i(6))),
]


def overloads(table: list[tuple[str, tuple[Any, ...]]]) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Each overload of a table with its operands."""
    for names, operands in table:
        for name in names.split():
            base, _, overload = name.partition(".")
            yield getattr(getattr(aten, base), overload or "default"), operands


#: (name, function, operands, number of axes that the rule must find exact)
COMPOSED: list[tuple[str, Callable[..., Any], tuple[Any, ...], int]] = [
    ("einsum, ellipsis", lambda a, b: torch.einsum("...ij,...jk->...ik", a, b), (r(2, 4, 6), r(2, 6, 8)), 4),
    (
        "einsum, ellipsis that broadcasts",
        lambda a, b: torch.einsum("...d,hd->...h", a, b),
        (r(2, 3, 6), r(8, 6)),
        4,
    ),
    (
        "einsum, ellipses of two ranks",
        lambda a, b: torch.einsum("...d,...d->...", a, b),
        (r(5, 3, 6), r(3, 6)),
        3,
    ),
    ("einsum, ellipsis in the middle", lambda a: torch.einsum("a...b->b...a", a), (r(2, 3, 4, 5),), 4),
    ("einsum without an arrow", lambda a, b: torch.einsum("ba,cb", a, b), (r(4, 6), r(5, 4)), 3),
    (
        "einsum without an arrow, ellipsis",
        lambda a, b: torch.einsum("b...,b...a", a, b),
        (r(4, 6), r(4, 6, 5)),
        3,
    ),
    ("einsum, ellipsis that is summed over", lambda a: torch.einsum("...a->a", a), (r(4, 6, 5),), 3),
    ("in place, or", lambda x, y: (x > 0).__ior__(y > 0), (r(4, 6), r(6)), 2),
    ("diff", lambda x: x.diff(dim=1), (r(4, 6),), 1),
    ("diff with more", lambda x, y: x.diff(dim=1, prepend=y), (r(4, 6), r(4, 2)), 1),
    ("bucketize", torch.bucketize, (r(4, 6), r(5).sort().values), 2),
    ("searchsorted, one table", torch.searchsorted, (r(5).sort().values, r(4, 6)), 2),
    (
        "searchsorted, a table a row",
        torch.searchsorted,
        (r(4, 5).sort().values, r(4, 6)),
        2,
    ),
    ("quantile", lambda x: x.quantile(torch.tensor([0.2, 0.5], dtype=x.dtype), dim=1), (r(4, 6),), 1),
    ("hstack", lambda x, y: torch.hstack([x, y]), (r(4, 6), r(4, 5)), 3),
    ("column_stack", lambda x, y: torch.column_stack([x, y]), (r(4), r(4, 6)), 2),
    ("dstack", lambda x, y: torch.dstack([x, y]), (r(4, 6), r(4, 6)), 2),
    ("meshgrid", lambda x, y: torch.meshgrid(x, y, indexing="xy"), (r(4), r(6)), 2),
    ("kron", torch.kron, (r(4, 6), r(3, 5)), 4),
    ("tensordot", lambda x, y: torch.tensordot(x, y, dims=([1], [0])), (r(4, 6), r(6, 5)), 3),
    ("inner", torch.inner, (r(4, 6), r(5, 6)), 3),
    ("cosine_similarity", lambda x, y: torch.cosine_similarity(x, y, dim=1), (r(4, 6), r(4, 6)), 2),
    ("cross", torch.linalg.cross, (r(5, 3), r(5, 3)), 1),
    ("cross without a dim", aten.cross, (r(5, 3), r(5, 3)), 0),
    ("solve", torch.linalg.solve, (r(5, 4, 4), r(5, 4, 6)), 2),
    ("take_along_dim", lambda x: x.take_along_dim(torch.tensor([[0, 1], [2, 0], [1, 1]]), 1), (r(3, 5),), 1),
    ("isin", torch.isin, (r(4, 6), r(5)), 2),
    ("stft", lambda x: torch.stft(x, 8, return_complex=True, center=False), (r(4, 32),), 1),
]
