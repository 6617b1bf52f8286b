"""Core operators that are known and refused, with the reason: everything that they touch stays whole.

An operator that is in neither table is refused too (`no rule for …`); a line here says that somebody has thought about it.
"""

from __future__ import annotations

import torch

from fxprune.rules.registry import refuse

aten = torch.ops.aten

refuse(
    aten.convolution_backward,
    aten.max_pool2d_with_indices_backward,
    aten.avg_pool2d_backward,
    aten._adaptive_avg_pool2d_backward,
    aten.embedding_dense_backward,
    aten.native_layer_norm_backward,
    aten.native_group_norm_backward,
    why="a gradient inside a captured model: fxprune prunes what runs forward",
)
refuse(
    aten.sym_size,
    aten.sym_numel,
    aten.sym_stride,
    aten.sym_storage_offset,
    aten.sym_is_contiguous,
    aten._local_scalar_dense,
    why="it gives a number, and numbers have no dims",
)
refuse(aten.nonzero, why="how many positions there are depends on values")
refuse(aten.resize_, aten.empty_strided, why="it speaks of memory, not of dims")
refuse(
    aten._cdist_forward,
    aten._pdist_forward,
    why="a distance of whole rows: no zeros of weights take a unit out of it",
)
refuse(aten._embedding_bag, why="bags of rows are cut by values")
refuse(
    aten.native_dropout,
    aten.native_group_norm,
    aten._native_batch_norm_legit,
    why="the decomposed form of an operator that has a rule: capture before decomposing",
)
