"""Operators that are known and refused: everything they touch stays whole, for the reason beside them."""

from __future__ import annotations

import torch

from fxprune.rules.registry import refuse

#: reason -> names in torch.ops.aten
ATEN = {
    "a gradient: fxprune prunes forward graphs": """
        _adaptive_avg_pool2d_backward avg_pool2d_backward convolution_backward embedding_dense_backward
        max_pool2d_with_indices_backward native_group_norm_backward native_layer_norm_backward
    """,
    "its result's size depends on values": "nonzero masked_select unique_dim _unique2 unique_consecutive",
    "it turns a tensor into a number": "_local_scalar_dense item equal",
    "it gives a number, not a tensor": "sym_size sym_numel sym_stride sym_storage_offset sym_is_contiguous",
    "it changes sizes in place": "resize_ resize_as_ set_",
    "it is laid out by strides": "empty_strided new_empty_strided",
    "distances mix rows pairwise, and no rule says how": "_cdist_forward _pdist_forward cdist",
    "bags of rows are looked up and pooled by value": "_embedding_bag embedding_bag",
    "a decomposed form: capture keeps the whole operator": """
        _native_batch_norm_legit native_batch_norm native_group_norm native_dropout
    """,
}

#: reason -> names in torch.ops.higher_order
HIGHER = {
    "control flow: which graph runs, or how often, depends on values": "cond while_loop scan map_impl associative_scan",
    "autocast changes dtypes inside": "wrap_with_autocast",
}

for _reason, _names in ATEN.items():
    refuse(
        *(getattr(torch.ops.aten, name) for name in _names.split() if hasattr(torch.ops.aten, name)),
        why=_reason,
    )
for _reason, _names in HIGHER.items():
    refuse(
        *(
            getattr(torch.ops.higher_order, name)
            for name in _names.split()
            if hasattr(torch.ops.higher_order, name)
        ),
        why=_reason,
    )
