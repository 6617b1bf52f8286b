"""Sample calls for the operators of the rule table: how the fuzzer draws each of them on a `Bench`.

A row is (names in torch.ops.aten, a call of one of them). Equal sizes let a wrong order of dims pass the check of sizes, so that
only values show it.
"""
# ruff: noqa: E501
# fmt: off

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fuzz.bench import Bench
from fuzz.matrix_calls import MORE, Row


def _ids(*values: int) -> Tensor:
    return torch.tensor(values)


def _as(index: Tensor, like: Tensor) -> Tensor:
    """An index of two dims for the first two of a value, repeated along the others."""
    return index.reshape(*index.shape, *(1,) * (like.dim() - index.dim())).expand(*index.shape, *like.shape[index.dim():])


def _cell(gates: int, lead: int = 1) -> Callable[[Any, Bench], Any]:
    """One step of a recurrent cell with `gates` gates; an LSTM has two states."""
    def call(f: Any, b: Bench) -> Any:
        states = [b(4) for _ in range(lead)]
        return f(b(3), states if lead > 1 else states[0], b.p(gates * 4, 3), b.p(gates * 4, 4), b.p(gates * 4), b.p(gates * 4))
    return call


def _cells(gates: int, lead: int = 1) -> Callable[[Any, Bench], Any]:
    """A recurrent network of one or two layers and directions, batch first."""
    def call(f: Any, b: Bench) -> Any:
        layers, both = b.pick(1, 2), b.pick(False, True)
        weights: list[Tensor] = []
        for layer in range(layers):
            for _ in range(1 + both):
                width = 3 if layer == 0 else 4 * (1 + both)
                weights += [b.p(gates * 4, width), b.p(gates * 4, 4), b.p(gates * 4), b.p(gates * 4)]
        states = [b.p(layers * (1 + both), 1, 4).expand(-1, b.batch, -1).contiguous() for _ in range(lead)]
        return f(b(5, 3), states if lead > 1 else states[0], weights, True, layers, 0.0, False, both, True)
    return call


def _conv(rank: int) -> Callable[[Any, Bench], Any]:
    def call(f: Any, b: Bench) -> Any:
        groups = b.pick(1, 2, 6)
        return f(b(6, *(3,) * rank), b.p(6, 6 // groups, *(2,) * rank), b.p(6) if b.pick(True, False) else None, [1] * rank, [1] * rank, [1] * rank, groups)
    return call


def _up(rank: int) -> Callable[[Any, Bench], Any]:
    def call(f: Any, b: Bench) -> Any:
        groups = b.pick(1, 2)
        return f(b(4, *(2,) * rank), b.p(4, 4 // groups, *(2,) * rank), b.p(4), [1] * rank, [0] * rank, [0] * rank, groups)
    return call


def _convolution(f: Any, b: Bench, *flags: bool) -> Any:
    groups, turned = b.pick(1, 2), b.pick(False, True)
    return f(b(4, 5), b.p(4, 4 // groups, 2), b.p(4), [1], [0], [1], turned, [0], groups, *flags)


def _attention(f: Any, b: Bench) -> Any:
    q, k, v = b(4, 3, 4), b(2, 5, 4), b(2, 5, 4)
    if b.pick(True, False):
        return f(q, k, v, enable_gqa=True)
    k, v = (x.repeat_interleave(2, dim=1) for x in (k, v))
    return f(q, k, v, b.pick(None, b.p(4, 3, 5))) if b.pick(True, False) else f(q, q.tanh(), v[..., :3, :], None, 0.0, True)


def _batch_norm(f: Any, b: Bench, *tail: Any) -> Any:
    return f(b(6, 4), b.p(6), b.p(6), b.still(6), b.still(6).square() + 0.5, *tail)


def _conv_norm(f: Any, b: Bench) -> Any:
    return f(b.p(6, 4), b.p(6, 1) if b.pick(True, False) else b.p(6, 1).exp(), 0)


CONTRACTIONS: tuple[Row, ...] = (
    ("linear", lambda f, b: f(b(4, 6), b.p(8, 6), b.pick(b.p(8), None))),
    ("linear", lambda f, b: f(b(4, 6), b.p(8, 6).pow(2), b.p(8).cos())),
    ("mm", lambda f, b: f(b(6), b.p(6, 8))),
    ("mv", lambda f, b: f(b(6), b.p(6))),
    ("dot vdot", lambda f, b: f(b.row(6), b.row(6))),
    ("outer ger", lambda f, b: f(b.row(4), b.row(4))),
    ("addmm", lambda f, b: f(b.pick(b.p(4), b(4)), b(6), b.p(6, 4))),
    ("matmul bmm", lambda f, b: f(b(4, 6), b(6, 4))),
    ("matmul", lambda f, b: f(b(3, 4, 6), b.p(6, 5))),
    ("baddbmm", lambda f, b: f(b.pick(b.p(1, 1, 5), b(4, 5)), b(4, 6), b(6, 5))),
    ("bilinear", lambda f, b: f(b(4), b(4), b.p(6, 4, 4), b.pick(b.p(6), None))),
    ("einsum", lambda f, b: f("bij,bkj->bik", [b(3, 4), b(3, 4)])),
    ("einsum", lambda f, b: f("bij,ij->b", [b(4, 4), b.p(4, 4)])),
    ("einsum", lambda f, b: f("bhld,bhmd,bhme->bhle", [b(2, 3, 4), b(2, 3, 4), b(2, 3, 4)])),
    ("scaled_dot_product_attention", _attention), ("scaled_dot_product_attention", _attention),
    ("conv1d", _conv(1)), ("conv2d", _conv(2)), ("conv3d", _conv(3)),
    ("conv_transpose1d", _up(1)), ("conv_transpose2d", _up(2)), ("conv_transpose3d", _up(3)),
    ("conv2d conv_transpose2d", lambda f, b: f(b(4, 3, 4), b.p(4, 4, 2, 1), b.pick(b.p(4), None))),
    ("convolution", _convolution),
    ("_convolution", lambda f, b: _convolution(f, b, False, False, False, False)),
    ("lstm", _cells(4, 2)), ("gru", _cells(3)), ("rnn_tanh rnn_relu", _cells(1)),
    ("lstm_cell", _cell(4, 2)), ("gru_cell", _cell(3)), ("rnn_tanh_cell rnn_relu_cell", _cell(1)),
)
MOVEMENTS: tuple[Row, ...] = (
    ("view reshape _unsafe_view view_copy _reshape_copy", lambda f, b: f(b(4, 6), [b.batch, 2, 2, 6])),
    ("view reshape", lambda f, b: f(b(4, 3, 4).transpose(1, 2).contiguous(), [b.batch, -1])),
    ("_reshape_alias", lambda f, b: f(b(12), [b.batch, 3, 4], [12, 4, 1])),
    ("flatten", lambda f, b: f(b(3, 4), 1)),
    ("unflatten", lambda f, b: f(b(12), 1, [3, 4])),
    ("permute", lambda f, b: f(b(4, 4, 4), [0, 2, 3, 1])),
    ("permute permute_copy", lambda f, b: f(b(4, 4, 3), [0, 2, 1, 3])),
    ("transpose swapaxes swapdims transpose_copy", lambda f, b: f(b(4, 4), 1, 2)),
    ("t t_copy numpy_T", lambda f, b: f(b.p(4, 4)) * b.p(4, 4)),
    ("mT adjoint", lambda f, b: f(b(4, 4))),
    ("movedim moveaxis", lambda f, b: f(b(3, 3, 3), [1], [3])),
    ("unsqueeze unsqueeze_copy", lambda f, b: f(b(6), 1) * b.p(4, 1)),
    ("squeeze squeeze_copy", lambda f, b: f(b(1, 6), 1)),
    ("expand expand_copy broadcast_to", lambda f, b: f(b(1, 6), [b.batch, 4, 6]) * b.p(4, 6)),
    ("expand", lambda f, b: f(b.p(1), [b.batch, 6]) * b(6)),
    ("expand", lambda f, b: f(b.p(1), [6]) + b(6).relu()),
    ("broadcast_tensors", lambda f, b: f([b(4, 6), b(1, 6)])),
    ("repeat tile", lambda f, b: f(b(2, 4), [1, 2, 2])),
    ("repeat_interleave", lambda f, b: f(b(3, 3), 3, 1)),
    ("cat concat concatenate", lambda f, b: f([b(4), b(4).tanh()], 1)),
    ("cat", lambda f, b: f([b(4, 3), torch.ones(b.batch, 4, 1, dtype=torch.float64), b(4, 1)], 2)),
    ("stack", lambda f, b: f([b(4), b(4), b.p(4).expand(b.batch, 4)], 1)),
    ("split_with_sizes split_with_sizes_copy", lambda f, b: f(b(6), [3, 3], 1)[::-1]),
    ("chunk unsafe_chunk tensor_split", lambda f, b: f(b(6), 2, 1)),
    ("split unsafe_split", lambda f, b: f(b(6), 3, 1)[1]),
    ("unbind unbind_copy", lambda f, b: f(b(3, 4), 1)[2]),
    ("slice slice_copy", lambda f, b: f(b(8), 1, b.pick(0, 2, -6), b.pick(5, -2))),
    ("slice", lambda f, b: f(b(8), 1, b.pick(0, 1), 8, 2)),
    ("select select_copy", lambda f, b: f(b(6, 3), 1, b.pick(2, -1))),
    ("constant_pad_nd", lambda f, b: f(b(4, 5), b.pick([1, 2], [0, 0, 1, 2]), b.pick(0, 0.5))),
    ("constant_pad_nd", lambda f, b: f(b(4), [1, 2], 0.5) * b(7)),
    ("pad", lambda f, b: f(b(4, 6), b.pick([1, 2], [1, 1, 0, 0]), "constant", b.pick(None, 0.5))),
    ("pad", lambda f, b: f(b(4, 6), [1, 2], b.pick("reflect", "replicate", "circular"))),
    ("flip", lambda f, b: f(b(6), [1])),
    ("flip", lambda f, b: f(b(4, 6), [b.pick(1, 2), -3])),
    ("roll", lambda f, b: f(b(6), [1], [1])),
    ("roll", lambda f, b: f(b(4, 6), [b.pick(2, -2, 3, 6)], [b.pick(1, 2)])),
    ("rot90", lambda f, b: f(b(4, 4), 1, [1, 2])),
    ("fliplr flipud", lambda f, b: f(b(4, 4)[0])),
    ("pixel_shuffle", lambda f, b: f(b(8, 2, 2), 2)),
    ("pixel_unshuffle", lambda f, b: f(b(2, 4, 4), 2)),
    ("channel_shuffle", lambda f, b: f(b(9, 2, 2), 3)), ("channel_shuffle", lambda f, b: f(b(9, 2), 3) * b.p(9, 1)),
    ("view_as_complex", lambda f, b: f(b(4, 2))),
    ("view_as_real view_as_real_copy", lambda f, b: f(torch.complex(b(4), b(4)))),
)
POOLS: tuple[Row, ...] = (
    ("avg_pool1d max_pool1d max_pool1d_with_indices", lambda f, b: f(b(4, 6), 2)),
    ("avg_pool2d max_pool2d", lambda f, b: f(b(4, 4, 4), [2, 1], [2, 1])),
    ("adaptive_avg_pool2d _adaptive_avg_pool2d", lambda f, b: f(b(4, 3, 4), [b.pick(1, 2), 4])),
    ("adaptive_avg_pool1d adaptive_max_pool1d", lambda f, b: f(b(4, 6), 3)),
    ("avg_pool2d max_pool2d max_pool2d_with_indices", lambda f, b: f(b(4, 4, 4), [2, 2])),
    ("adaptive_avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d", lambda f, b: f(b(4, 4, 4), [2, 2])),
    ("avg_pool3d max_pool3d max_pool3d_with_indices", lambda f, b: f(b(4, 2, 2, 2), [2, 2, 2], [1, 1, 1])),
    ("adaptive_avg_pool3d _adaptive_avg_pool3d adaptive_max_pool3d", lambda f, b: f(b(4, 2, 2, 2), [1, 2, 2])),
    ("upsample_nearest1d _upsample_nearest_exact1d", lambda f, b: f(b(4, 3), [6])),
    ("upsample_linear1d", lambda f, b: f(b(4, 3), [6], False)),
    ("upsample_nearest2d _upsample_nearest_exact2d", lambda f, b: f(b(4, 3, 3), [6, 6])),
    ("upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa", lambda f, b: f(b(4, 3, 3), [5, 5], False)),
    ("upsample_nearest3d", lambda f, b: f(b(3, 2, 2, 2), [4, 4, 4])),
    ("upsample_trilinear3d", lambda f, b: f(b(3, 2, 2, 2), [3, 3, 3], False)),
    ("reflection_pad1d replication_pad1d", lambda f, b: f(b(4, 6), [1, 2])),
    ("reflection_pad2d replication_pad2d", lambda f, b: f(b(4, 3, 3), [0, 0, 1, 2])),
    ("reflection_pad2d replication_pad2d", lambda f, b: f(b(4, 3, 3), [1, 2, 1, 0])),
    ("reflection_pad3d replication_pad3d", lambda f, b: f(b(3, 3, 3, 3), [1, 0, 0, 1, 1, 0])),
    ("fractional_max_pool2d", lambda f, b: f(b(3, 5, 5), [2, 2], [3, 3], torch.full((b.batch, 3, 2), 0.4, dtype=torch.float64))),
    ("fractional_max_pool3d", lambda f, b: f(b(3, 4, 4, 4), [2, 2, 2], [2, 2, 2], torch.full((b.batch, 3, 3), 0.4, dtype=torch.float64))),
    ("grid_sampler", lambda f, b: f(b(3, 3, 3), b(2, 2, 2).tanh(), 0, 0, False)),
    ("grid_sampler_2d", lambda f, b: f(b(3, 3, 3), b(2, 2, 2).tanh(), 0, 0, True)),
    ("grid_sampler_3d", lambda f, b: f(b(3, 2, 2, 2), b(2, 2, 1, 3).tanh(), 0, 0, False)),
)
NORMS: tuple[Row, ...] = (
    ("layer_norm", lambda f, b: f(b(3, 6), [6], b.pick(b.p(6), None), b.p(6))),
    ("layer_norm", lambda f, b: f(b(3, 4), [3, 4], b.p(3, 4))),
    ("native_layer_norm", lambda f, b: f(b(3, 6), [6], b.p(6), b.p(6), 1e-5)),
    ("rms_norm", lambda f, b: f(b(3, 6), [6], b.p(6), 1e-5)),
    ("_fused_rms_norm", lambda f, b: f(b(3, 6), [6], b.p(6), 1e-5)),
    ("group_norm", lambda f, b: f(b(6, 4), b.pick(2, 3, 6), b.p(6), b.p(6))),
    ("batch_norm", lambda f, b: _batch_norm(f, b, False, 0.1, 1e-5, False)),
    ("_native_batch_norm_legit_no_training", lambda f, b: _batch_norm(f, b, 0.1, 1e-5)),
    ("instance_norm", lambda f, b: f(b(6, 4), b.p(6), b.p(6), None, None, True, 0.1, 1e-5, False)),
    ("log_softmax", lambda f, b: f(b(4, 6), b.pick(1, 2))),
    ("softmax _safe_softmax", lambda f, b: f(b(4, 6), b.pick(1, 2))),
    ("_softmax _log_softmax", lambda f, b: f(b(4, 6), b.pick(1, 2), False)),
    ("_weight_norm", _conv_norm),
    ("glu", lambda f, b: f(b(3, 8), 2)),
)
REDUCTIONS: tuple[Row, ...] = (
    ("sum nansum", lambda f, b: f(b(4, 6), dim=b.pick([1], [2]))),
    ("mean nanmean", lambda f, b: f(b(4, 6), dim=b.pick([1], [2]))),
    ("logsumexp linalg_vector_norm", lambda f, b: f(b(4, 6), dim=b.pick([1], [2]))),
    ("amax amin", lambda f, b: f(b(4, 6), dim=b.pick([1], [2]))),
    ("var std var_mean std_mean", lambda f, b: f(b(4, 6), dim=b.pick([1], [2]))),
    ("any all count_nonzero", lambda f, b: f(b(4, 6) > 0, dim=b.pick([1], [2]))),
    ("prod", lambda f, b: f(b(4, 6), b.pick(1, 2))),
    ("norm", lambda f, b: f(b(4, 6), 2, [b.pick(1, 2)])),
    ("max min median mode", lambda f, b: f(b(4, 6), b.pick(1, 2))[0]),
    ("aminmax", lambda f, b: f(b(4, 6), dim=b.pick(1, 2))),
    ("max min", lambda f, b: f(b(4, 6), b.p(4, 6))),
    ("argmax argmin argsort", lambda f, b: f(b(4, 6), 2)),
    ("cumprod", lambda f, b: f(b(4, 6), b.pick(1, 2))),
    ("cumsum logcumsumexp", lambda f, b: f(b(4, 6), b.pick(1, 2))),
    ("sort cummax cummin", lambda f, b: f(b(4, 6), 2)[0]),
    ("topk kthvalue", lambda f, b: f(b(4, 6), 3, 2)[0]),
    ("mse_loss l1_loss smooth_l1_loss huber_loss", lambda f, b: f(b(4, 6), b.p(6), b.pick(0, 1, 2))),
)
INDEXING: tuple[Row, ...] = (
    ("embedding", lambda f, b: f(b.p(7, 6), _ids(1, 4, 1))),
    ("embedding_bag _embedding_bag", lambda f, b: f(b.p(7, 6), _ids(1, 4, 1, 5, 0), _ids(0, 2, 3))[0]),
    ("index _unsafe_index", lambda f, b: f(b(6, 4), [None, _ids(3, 0, 3, 1, 2, 5)])),
    ("index_select", lambda f, b: f(b(6, 4), 1, _ids(3, 0, 3, 1, 2, 5))),
    ("index_put index_put_ _unsafe_index_put", lambda f, b: f(b(6, 4) * 1, [None, _ids(4, 1)], b(2, 4))),
    ("gather", lambda f, b: f(x := b(6, 4), 1, _as(_ids(5, 2, 2, 0, 1, 3).expand(b.batch, 6), x))),
    ("take_along_dim", lambda f, b: f(x := b(6, 4), _as(_ids(5, 2, 2, 0, 1, 3).expand(b.batch, 6), x), 1)),
    ("scatter scatter_add scatter_ scatter_add_", lambda f, b: f(x := b(6, 4) * 1, 1, _as(_ids(5, 2).expand(b.batch, 2), x), b(2, 4))),
    ("scatter_reduce scatter_reduce_", lambda f, b: f(x := b(6, 4) * 1, 1, _as(_ids(5, 2).expand(b.batch, 2), x), b(2, 4), "sum")),
    ("index_add index_copy index_add_ index_copy_", lambda f, b: f(b(6, 4) * 1, 1, _ids(5, 2), b(2, 4))),
    ("index_put index_put_ _unsafe_index_put", lambda f, b: f(b(6, 4) * 1, [None, _ids(1, 0, 0, 1, 0, 1) > 0], b(2, 4)[:, :1])),
    ("slice_scatter", lambda f, b: f(b(6, 4), b(2, 4), 1, 1, 3)),
    ("slice_scatter", lambda f, b: f(b(6), b(2), 1, 1, 3)),
    ("select_scatter", lambda f, b: f(b(6, 4), b(4), 1, 2)),
    ("masked_scatter masked_scatter_", lambda f, b: f(b(6, 4) * 1, (_ids(1, 0, 0, 1, 0, 1) > 0)[:, None].expand(6, 4), b(6, 4))),
    ("masked_scatter masked_scatter_", lambda f, b: f(b(6) * 1, _ids(1, 0, 0, 1, 0, 1) > 0, b(6))),
    ("tril", lambda f, b: f(b(5, 5))),
    ("triu tril_ triu_", lambda f, b: f(b(5, 5) * 1)),
    ("diagonal diagonal_copy", lambda f, b: f(b(5, 3, 5), 1, 1, 3)),
    ("diagonal diagonal_copy", lambda f, b: f(b(5, 5), 0, 1, 2)),
    ("diag_embed", lambda f, b: f(b(4))),
    ("diag", lambda f, b: f(b.row(4))),
    ("unfold unfold_copy", lambda f, b: f(b(6, 4), b.pick(1, 2), 3, 1)),
    ("unfold unfold_copy", lambda f, b: f(b(6), 1, 2, 2)),
    ("as_strided", lambda f, b: f(b(6), [b.batch, 3], [6, 2])),
    ("im2col", lambda f, b: f(b(3, 4, 4), [1, 1], [1, 1], [0, 0], [1, 1])),
    ("im2col", lambda f, b: f(b(3, 4, 4), [2, 1], [1, 1], [1, 0], [2, 1])),
    ("im2col", lambda f, b: f(b(3, 4, 4), [2, 2], [1, 1], [0, 0], [1, 1])),
    ("col2im", lambda f, b: f(b(12, 4), [3, 3], [2, 2], [1, 1], [0, 0], [1, 1])),
)
CREATION: tuple[Row, ...] = (
    ("zeros ones empty", lambda f, b: f([4, 6], dtype=torch.float64) * 0 + b(4, 6)),
    ("ones", lambda f, b: f([b.batch, 4, 6], dtype=torch.float64) - b(4, 6)),
    ("full", lambda f, b: f([4, 6], 0.5, dtype=torch.float64) + b(4, 6)),
    ("new_zeros new_ones new_empty", lambda f, b: f(x := b(4, 6), [4, 6]) * 0 + x),
    ("new_full", lambda f, b: f(x := b(4, 6), [4, 6], 0.5) * x.relu() + 1),
    ("arange", lambda f, b: f(6, dtype=torch.float64) * b(6)),
    ("range", lambda f, b: f(1, 6, dtype=torch.float64) * b(6)),
    ("linspace logspace", lambda f, b: f(0, 1, 6, dtype=torch.float64) * b(6)),
    ("eye", lambda f, b: f(5, dtype=torch.float64) * b(5, 5)),
    ("hann_window hamming_window", lambda f, b: f(6, dtype=torch.float64) * b(6)),
    ("tril_indices triu_indices", lambda f, b: f(3, 3) * b(2, 6)),
    ("scalar_tensor", lambda f, b: f(0.5, dtype=torch.float64) * b(6)),
)
FOURIER: tuple[Row, ...] = (
    ("fft_fft fft_ifft fft_rfft fft_ihfft fft_irfft fft_hfft", lambda f, b: f(b(4, 6), None, b.pick(1, 2))),
    ("fft_fft2 fft_ifft2 fft_irfft2", lambda f, b: f(b(3, 4, 4))),
    ("fft_fftn fft_ifftn fft_rfftn fft_irfftn", lambda f, b: f(b(4, 4), None, [b.pick(1, 2)])),
    ("fft_fftshift fft_ifftshift", lambda f, b: f(b(4, 6), [b.pick(1, 2)])),
    ("_fft_r2c", lambda f, b: f(b(4, 6), [b.pick(1, 2)], 0, True)),
    ("_fft_c2c", lambda f, b: f(torch.complex(b(4, 6), b(4, 6)), [b.pick(1, 2)], 0, True)),
    ("_fft_c2r", lambda f, b: f(torch.complex(b(4, 6), b(4, 6)), [2], 0, 6)),
)
POINTWISE: tuple[Row, ...] = (
    ("where", lambda f, b: f(b(6) > 0, b(6), b.pick(b(6), b.p(6)))),
    ("where", lambda f, b: f(b(6) > 0, b(6), b.pick(0.0, 0.5))),
    ("masked_fill masked_fill_", lambda f, b: f(b(6) * 1, b(6) > 0, b.pick(0.0, 0.5))),
    ("fill fill_", lambda f, b: f(x := b(6) * 1, 0.5) * x),
    ("full_like", lambda f, b: f(x := b(6), 0.5) * x + 1),
    ("empty_like", lambda f, b: f(x := b(6)) * 0 + x),
    ("threshold threshold_", lambda f, b: f(b(6) * 1, b.pick(0.1, -0.1), b.pick(0, 0.5))),
    ("prelu _prelu_kernel", lambda f, b: f(b(6, 3), b.p(6) if f is torch.ops.aten.prelu else b.p(1, 6, 1))),
    ("complex", lambda f, b: f(b(6), b(6))),
    ("polar", lambda f, b: f(b(6).square(), b(6))),
    ("imag _conj", lambda f, b: f(torch.complex(b(6), b(6)))),
    ("isfinite isinf isposinf isneginf isnan logical_not", lambda f, b: f(x := b(6)) * x + x),
    ("not_equal greater less greater_equal less_equal isclose", lambda f, b: f(x := b(6), b(6)) * x),
    ("bitwise_and bitwise_or bitwise_xor __and__ __or__ __xor__ bitwise_and_ bitwise_or_", lambda f, b: f(b(6) > 0, b(6) > 0.1)),
    ("bitwise_not", lambda f, b: f(b(6) > 0)),
    ("floor_divide", lambda f, b: f(b(6) * 5, b.inside(6))),
    ("_to_copy", lambda f, b: f(b(6))),
    ("pow", lambda f, b: f(b(6), b.pick(0, 1, 2, 3))),
    ("add sub", lambda f, b: f(b(6), b.pick(0, 1))),
    ("clamp hardtanh", lambda f, b: f(b(6), b.pick(-0.5, 0.1), b.pick(0.5, 1))),
    ("clamp_min", lambda f, b: f(b(6), b.pick(-0.5, 0.1))),
    ("clamp_max", lambda f, b: f(b(6), b.pick(0.5, -0.1))),
    ("dropout alpha_dropout feature_dropout feature_alpha_dropout dropout_ alpha_dropout_", lambda f, b: f(b(6) * 1, 0.5, False)),
    ("rrelu", lambda f, b: f(b(6), 0.1, 0.3, False)),
)
#: common operators are dealt three times as often as rare ones
COMMON = (*CONTRACTIONS, *MOVEMENTS, *NORMS, *REDUCTIONS, *INDEXING, *POINTWISE)
RARE = (*POOLS, *CREATION, *FOURIER, *MORE)
ROWS = (*COMMON, *COMMON, *COMMON, *RARE)

#: why the fuzzer can't draw an operator that has a rule: names in torch.ops.aten (or qualified ones)
CANNOT = {
    "random: with fewer positions other numbers are drawn": """
        rand randn randint normal rand_like randn_like randint_like bernoulli multinomial randperm poisson binomial normal_ uniform_ bernoulli_
    """,
    "it has no derivative, so torch.export can't trace it with parameters": "view_as_complex_copy _conj_copy _embedding_bag_forward_only",
    "its factors are unique only up to signs, order or pivots": """
        qr linalg_qr geqrf svd linalg_svd linalg_eig linalg_eigh linalg_ldl_factor linalg_ldl_factor_ex
    """,
    "it takes integers or places that another operator gave": "max_unpool2d max_unpool3d __irshift__ gcd_ lcm_",
    "it gives integers or a mantissa that jumps": "frexp linalg_matrix_rank special_polygamma",
    "it takes bfloat16 only, on some machines": "_grouped_mm",
    "it is the library's own, and not loaded here": "transformers::grouped_mm_fallback",
    "it counts values, and torch.export knows no size of what it gives": "histc bincount",
    "it lists places, as many as there are": "argwhere nonzero nonzero_numpy",
}

CALLS: tuple[tuple[Any, Callable[[Any, Bench], Any]], ...] = tuple(
    (getattr(torch.ops.aten, name), call) for names, call in (*COMMON, *RARE) for name in names.split()
)
