"""Sample calls for matrices, joins, losses and statistics: more rows for `fuzz.calls`."""
# ruff: noqa: E501
# fmt: off

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fuzz.bench import Bench

Row = tuple[str, Callable[[Any, Bench], Any]]


def _regular(b: Bench, *lead: int) -> Tensor:
    """Square matrices that have an inverse."""
    x = b(*lead, 3, 3)
    return x.tanh() + 4 * torch.eye(3, dtype=torch.float64)


def _positive(b: Bench) -> Tensor:
    """Symmetric matrices with positive eigenvalues."""
    x = b(3, 3)
    return x @ x.mT + torch.eye(3, dtype=torch.float64)


MATRICES: tuple[Row, ...] = (
    ("addmv", lambda f, b: f(b.row(4), b.p(4, 6), b.row(6))),
    ("addr", lambda f, b: f(b.p(4, 4), b.row(4), b.row(4))),
    ("addbmm", lambda f, b: f(b.p(4, 4), b(4, 6), b(6, 4))),
    ("inner", lambda f, b: f(b(4, 6), b.p(4, 6))),
    ("kron", lambda f, b: f(b.p(3, 3), b(3)[:, None])),
    ("tensordot", lambda f, b: f(b(4, 6), b.p(6, 4, 3), [1, 2], [1, 0])),
    ("linalg_multi_dot", lambda f, b: f([b(6), b.p(6, 4), b.p(4, 4)])),
    ("linalg_vecdot", lambda f, b: f(b(4, 6), b(4, 6), dim=b.pick(1, 2))),
    ("cross linalg_cross", lambda f, b: f(b(4, 3), b(4, 3), dim=2)),
    ("matrix_exp linalg_matrix_exp linalg_eigvals", lambda f, b: f(b(3, 3).tanh())),
    ("det linalg_det logdet slogdet linalg_slogdet inverse linalg_inv linalg_inv_ex linalg_lu_factor linalg_lu_factor_ex _lu_with_info linalg_lu", lambda f, b: f(_regular(b, 2))),
    ("linalg_cond linalg_pinv pinverse linalg_svdvals linalg_matrix_norm", lambda f, b: f(_regular(b))),
    ("matrix_power linalg_matrix_power", lambda f, b: f(_regular(b), 2)),
    ("linalg_solve linalg_solve_ex", lambda f, b: f(_regular(b), b(3, 4))),
    ("linalg_solve_triangular", lambda f, b: f(_regular(b), b(3, 4), upper=True)),
    ("cholesky linalg_cholesky linalg_cholesky_ex linalg_eigvalsh", lambda f, b: f(_positive(b))),
    ("cholesky_inverse", lambda f, b: f(_regular(b).tril())),
    ("linalg_norm", lambda f, b: f(b(4, 6), None, [b.pick(1, 2)])),
    ("linalg_matmul", lambda f, b: f(b(4, 6), b(6, 4))), ("chain_matmul", lambda f, b: f([b(6), b.p(6, 4), b.p(4, 4)])),
    ("nuclear_norm frobenius_norm", lambda f, b: f(_regular(b), [1, 2])),
    ("affine_grid_generator", lambda f, b: f(b(2, 3), [b.batch, 3, 2, 2], False)),
    ("mH matrix_H", lambda f, b: f(b.p(4, 4)) @ b.p(4, 4)),
)
JOINS: tuple[Row, ...] = (
    ("hstack vstack row_stack dstack column_stack", lambda f, b: f([b(4), b(4).cos()])),
    ("atleast_1d atleast_2d atleast_3d", lambda f, b: f(b(4))),
    ("hsplit", lambda f, b: f(b(6), 2)), ("vsplit", lambda f, b: f(b(6).t(), 2)), ("dsplit", lambda f, b: f(b(3, 4), 2)),
    ("meshgrid", lambda f, b: f([b.row(4), b.p(3)], indexing=b.pick("ij", "xy"))),
    ("narrow_copy", lambda f, b: f(b(6), 1, 2, 3)),
    ("split_copy", lambda f, b: f(b(6), 3, 1)), ("unsafe_split_with_sizes", lambda f, b: f(b(6), [2, 4], 1)),
    ("_stack", lambda f, b: f([b(4), b(4)], 1)), ("_neg_view _neg_view_copy", lambda f, b: f(b(4))),
    ("arccosh arccosh_", lambda f, b: f(b(4).square() + 1.5)),
    ("bartlett_window blackman_window kaiser_window fft_fftfreq", lambda f, b: f(6, dtype=torch.float64) * b(6)),
    ("fft_rfftfreq", lambda f, b: f(6, dtype=torch.float64) * b(4)),
    ("ravel", lambda f, b: f(b(6))),
    ("index_fill index_fill_", lambda f, b: f(b(6, 4) * 1, 1, torch.tensor([2, 0]), 0.5)),
    ("feature_dropout_ feature_alpha_dropout_", lambda f, b: f(b(6) * 1, 0.5, False)),
    ("bitwise_not_", lambda f, b: f((b(6) > 0) & True)),
    ("bitwise_xor_ __iand__ __ior__", lambda f, b: f((b(6) > 0) & True, b(6) > 0.1)),
    ("fft_hfft2 fft_ihfft2 fft_rfft2", lambda f, b: f(b(3, 4, 4))),
    ("fft_hfftn fft_ihfftn", lambda f, b: f(b(4, 4), None, [b.pick(1, 2)])),
)
STATISTICS: tuple[Row, ...] = (
    ("dist", lambda f, b: f(b(4, 6), b.p(4, 6))),
    ("diff", lambda f, b: f(b(4, 6), 1, b.pick(1, 2))),
    ("cosine_similarity", lambda f, b: f(b(4, 6), b(4, 6), b.pick(1, 2))),
    ("pairwise_distance", lambda f, b: f(b(4, 6), b(4, 6))),
    ("quantile nanquantile", lambda f, b: f(b(4, 6), 0.3, b.pick(1, 2))),
    ("nanmedian", lambda f, b: f(b(4, 6), b.pick(1, 2))[0]),
    ("msort", lambda f, b: f(b(4).t())),
    ("binary_cross_entropy", lambda f, b: f(b.inside(4), b.inside(4), None, b.pick(0, 1, 2))),
    ("binary_cross_entropy_with_logits", lambda f, b: f(b(4), b.inside(4), None, None, b.pick(0, 1, 2))),
    ("kl_div", lambda f, b: f(b(4), b.inside(4), b.pick(0, 1, 2))),
    ("soft_margin_loss", lambda f, b: f(b(4), b(4).detach().sign(), b.pick(0, 1, 2))),
    ("hinge_embedding_loss", lambda f, b: f(b(4), b(4).sign(), 1.0, b.pick(0, 1, 2))),
    ("margin_ranking_loss", lambda f, b: f(b(4), b(4), b(4).sign(), 0.1, b.pick(0, 1, 2))),
    ("poisson_nll_loss", lambda f, b: f(b(4), b(4), True, False, 1e-8, b.pick(0, 1, 2))),
    ("cross_entropy_loss", lambda f, b: f(b(4), b(4), None, b.pick(0, 1, 2))),
    ("cross_entropy_loss nll_loss nll_loss_nd", lambda f, b: f(b(4), torch.tensor([1, 3]), None, b.pick(0, 1, 2))),
    ("nll_loss2d", lambda f, b: f(b(4, 3, 2), torch.tensor([[[1, 3], [0, 2], [1, 1]]] * 2), None, b.pick(0, 1, 2))),
    ("one_hot", lambda f, b: f(torch.tensor([1, 3]), 6) * b(6)),
    ("bucketize", lambda f, b: f(b(4), torch.tensor([-0.5, 0.5], dtype=torch.float64))),
    ("searchsorted", lambda f, b: f(torch.tensor([-0.5, 0.5], dtype=torch.float64), b(4))),
    ("isin", lambda f, b: f(b(4), torch.tensor([-0.5, 0.5], dtype=torch.float64))),
    ("stft", lambda f, b: f(b(16), 4, None, None, None, False, True, True)),
)
MORE = (*MATRICES, *JOINS, *STATISTICS)
