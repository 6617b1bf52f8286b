"""Refused operators: the dims of their operands and results are pinned, for the reason in the table."""

from __future__ import annotations

import torch

from fxprune.rules.registry import refuse
from fxprune.rules.traits import packets

#: reason -> names in torch.ops.aten
ATEN = {
    "a gradient: fxprune prunes forward graphs": """
        _adaptive_avg_pool2d_backward avg_pool2d_backward convolution_backward embedding_dense_backward
        max_pool2d_with_indices_backward native_group_norm_backward native_layer_norm_backward _softmax_backward_data
    """,
    "its result's size depends on values": """
        masked_select unique_dim _unique2 unique_consecutive nonzero_static
    """,
    "it turns a tensor into a number": "_local_scalar_dense item equal allclose hash_tensor",
    "it gives a number, not a tensor": "sym_size sym_numel sym_stride sym_storage_offset sym_is_contiguous",
    "it changes sizes in place": """
        resize_ resize_as_ set_ squeeze_ unsqueeze_ transpose_ t_ swapaxes_ swapdims_ as_strided_ resize resize_as
    """,
    "it writes what it sums into its operand, which others may read": """
        addbmm_ addmm_ addmv_ addr_ baddbmm_ cumprod_ cumsum_
    """,
    "it is laid out by strides": "empty_strided new_empty_strided",
    "distances mix rows pairwise, and no rule says how": "_cdist_forward _pdist_forward cdist pdist",
    "a decomposed form: capture keeps the whole operator": """
        _native_batch_norm_legit native_batch_norm native_group_norm native_dropout _batch_norm_with_update _chunk_cat
        _batch_norm_impl_index _batch_norm_no_update log_sigmoid_forward nll_loss_forward nll_loss2d_forward multilabel_margin_loss_forward
        rrelu_with_noise rrelu_with_noise_ _weight_norm_interface _masked_softmax
        _unsafe_masked_index _unsafe_masked_index_put_accumulate
    """,
    "it places or reads positions by number, and no rule says how": """
        as_strided_copy as_strided_scatter diagonal_scatter diagflat block_diag linalg_diagonal trace linalg_vander take put put_
        segment_reduce index_reduce index_reduce_ fill_diagonal_ pad_sequence vander
    """,
    "it scales rows by their norm, and no rule says how": "renorm renorm_ embedding_renorm embedding_renorm_",
    "it counts values": "histogram histogramdd",
    "frames overlap, and no rule says how": "istft",
    "rows are compared in pairs, and no rule says how": "cov corrcoef",
    "a convolution of another layout, and no rule says how": "conv_tbc",
    "neighbours mix, and no rule says how": "cumulative_trapezoid trapezoid trapz gradient",
    "operands are combined in pairs, and no rule says how": "cartesian_prod combinations",
    "linear algebra with several matrices, and no rule says how": """
        cholesky_solve linalg_householder_product linalg_ldl_solve linalg_lu_solve lu_solve lu_unpack ormqr triangular_solve
        linalg_tensorinv linalg_tensorsolve sparse_sampled_addmm
    """,
    "random numbers are drawn by position": """
        cauchy cauchy_ exponential exponential_ geometric geometric_ log_normal log_normal_ uniform random random_
    """,
    "a loss for training, and no rule says how it sums": """
        cosine_embedding_loss multi_margin_loss multilabel_margin_loss triplet_margin_loss ctc_loss _ctc_loss
    """,
    "its sizes are given as numbers that have nowhere to follow from": "sum_to_size",
}

#: reason -> names in torch.ops.higher_order
HIGHER = {
    "control flow: which graph runs, or how often, depends on values": "cond while_loop scan map_impl associative_scan",
    "autocast changes dtypes inside": "wrap_with_autocast",
}

for _library, _table in ((torch.ops.aten, ATEN), (torch.ops.higher_order, HIGHER)):
    for _reason, _names in _table.items():
        refuse(*packets(_names, _library), why=_reason)
