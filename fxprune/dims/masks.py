"""Index masks: the positions along a dim that stay when atoms keep some of their indices.

An atom keeps a set of indices (booleans [n]), or `KeptRows`: other indices for each unit of an outer atom (each head its own query/key
dimensions), equally many for each, so that tensors stay rectangular.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fxprune.dims.dim import Dim, find, leaves
from fxprune.ir import like


@dataclass(frozen=True)
class KeptRows:
    """The indices that an atom keeps for each unit of an outer atom: booleans [outer, n] with equally many True in each row."""

    outer: Dim
    table: Tensor

    @property
    def count(self) -> int:
        """The number of indices that each unit keeps."""
        return int(self.table[0].sum())


Kept: TypeAlias = Mapping[Dim, "Tensor | KeptRows"]


def kept_size(kept: Tensor | KeptRows) -> int:
    """The number of indices of an atom that stay."""
    return kept.count if isinstance(kept, KeptRows) else int(kept.sum())


def keep_mask(dim: Dim, kept: Kept) -> Tensor:
    """The positions along a dim that stay, as booleans [size]; atoms that are not in `kept` keep all indices.

    Where an atom with `KeptRows` occurs without its outer atom, only the number of positions that stay is meaningful.
    """
    mask = _flat_mask(dim, kept)
    for leaf in dict.fromkeys(leaves(dim)):
        rows = kept.get(leaf)
        if isinstance(rows, KeptRows):
            mask &= _rows_mask(dim, leaf, rows)
    return mask


def _flat_mask(dim: Dim, kept: Kept) -> Tensor:
    dim = find(dim)
    if dim.kind == "atom":
        mask = kept.get(dim)
        return mask.clone() if isinstance(mask, Tensor) else torch.ones(dim.size, dtype=torch.bool)
    masks = [_flat_mask(part, kept) for part in dim.parts]
    if dim.kind == "sum":
        return torch.cat(masks)
    result = (
        masks[0].flip(0) if dim.kind == "mirror" else masks[0][list(dim.order)] if dim.order else masks[0]
    )
    for mask in masks[1:]:
        result = (result[:, None] & mask[None, :]).flatten()
    return result


def _rows_mask(dim: Dim, leaf: Dim, rows: KeptRows) -> Tensor:
    own, outer = coordinates(dim, leaf), coordinates(dim, rows.outer)
    if not has_outer(dim, leaf, rows):
        return (own < 0) | (own < rows.count)
    return (own < 0) | rows.table[outer.clamp_min(0), own.clamp_min(0)]


def has_outer(dim: Dim, leaf: Dim, rows: KeptRows) -> bool:
    """Whether each position of an atom along a dim belongs to a unit of the outer atom."""
    own, outer = coordinates(dim, leaf), coordinates(dim, rows.outer)
    return not bool(((own >= 0) & (outer < 0)).any())


def coordinates(dim: Dim, leaf: Dim) -> Tensor:
    """The unit of an atom that each position along a dim belongs to, −1 where there is none, int64 [dim.size]."""
    dim, leaf = find(dim), find(leaf)
    if dim.kind == "atom":
        return torch.arange(dim.size) if dim is leaf else torch.full((dim.size,), -1)
    parts = [coordinates(part, leaf) for part in dim.parts]
    if dim.kind == "sum":
        return torch.cat(parts)
    result = (
        parts[0].flip(0) if dim.kind == "mirror" else parts[0][list(dim.order)] if dim.order else parts[0]
    )
    for part in parts[1:]:
        result = torch.maximum(result[:, None], part[None, :]).flatten()
    return result


def changes(dim: Dim, kept: Kept) -> bool:
    """Whether a dim contains an atom of `kept`."""
    return any(leaf in kept for leaf in leaves(dim))


def new_size(dim: Dim, kept: Kept) -> int:
    """The size of a dim after its atoms are reduced to their kept indices."""
    return int(keep_mask(dim, kept).sum()) if changes(dim, kept) else dim.size


def cut(value: Tensor, dims: Sequence[Dim], kept: Kept) -> Tensor:
    """The tensor reduced to the positions that stay; it shares memory with `value` where no dim changes."""
    result = value.detach()
    done: set[int] = set()
    for place, other, rows in across(dims, kept):
        result = _cut_across(result, dims, (place, other), (rows, kept))
        done.add(place)
    for place, dim in enumerate(dims):
        if changes(dim, kept) and place not in done:
            index = keep_mask(dim, kept).nonzero().flatten().to(value.device)
            result = result.index_select(place, index)
    return like(value, result)


def zero(value: Tensor, dims: Sequence[Dim], kept: Kept) -> Tensor:
    """A copy of the tensor with zeros at all removed positions."""
    result = value.detach().clone()
    apart = {place: (other, rows) for place, other, rows in across(dims, kept)}
    for place, dim in enumerate(dims):
        if place in apart:
            other, rows = apart[place]
            grid = _grid(dims, (place, other), (rows, kept)).to(value.device)
            result.movedim((other, place), (0, 1))[~grid] = 0
        else:
            result.index_fill_(place, (~keep_mask(dim, kept)).nonzero().flatten().to(value.device), 0)
    return like(value, result)


def across(dims: Sequence[Dim], kept: Kept) -> list[tuple[int, int, KeptRows]]:
    """(dimension, dimension of the outer atom, rows) of each atom with `KeptRows` whose outer atom lies in another dimension."""
    found: list[tuple[int, int, KeptRows]] = []
    for place, dim in enumerate(dims):
        for leaf in dict.fromkeys(leaves(dim)):
            rows: Any = kept.get(leaf)
            if isinstance(rows, KeptRows) and not has_outer(dim, leaf, rows):
                other = next(i for i, d in enumerate(dims) if bool((coordinates(d, rows.outer) >= 0).all()))
                found.append((place, other, rows))
    return found


def _grid(dims: Sequence[Dim], places: tuple[int, int], what: tuple[KeptRows, Kept]) -> Tensor:
    """Booleans [positions of the outer dimension, positions of the dimension]: the elements that stay."""
    (place, other), (rows, kept) = places, what
    leaf = next(leaf for leaf, value in kept.items() if value is rows)
    units = coordinates(dims[other], rows.outer)
    flat = [keep_mask(dims[place], {**kept, leaf: rows.table[unit]}) for unit in range(rows.table.shape[0])]
    return torch.stack(flat)[units]


def _cut_across(
    value: Tensor, dims: Sequence[Dim], places: tuple[int, int], what: tuple[KeptRows, Kept]
) -> Tensor:
    place, other = places
    grid = _grid(dims, places, what).to(value.device)
    index = torch.stack([row.nonzero().flatten() for row in grid])
    front = value.movedim((other, place), (0, 1))
    index = index.reshape(*index.shape, *(1,) * (front.dim() - 2))
    taken = torch.take_along_dim(front, index.expand(*index.shape[:2], *front.shape[2:]), 1)
    return taken.movedim((0, 1), (other, place))
