"""Nested axes: which axes may keep different indices for each unit of another axis (each head its own dims).

An atom `d` may depend on `h` where every value and every weight that carries `d` carries `h` as well, for each of its positions: then
`(h, d)` move together everywhere, and each `h` may keep its own `d` as long as all keep equally many. A table of `d` alone, which all
heads share (rotary), forbids it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fxprune.analysis.dim_inference import flat_dims
from fxprune.dims import Dim, find, is_pinned, leaves
from fxprune.rules import Flow


def outer_atoms(flow: Flow, leaf: Dim) -> tuple[set[Dim], str]:
    """Return (the free atoms that accompany an atom everywhere, the value that has the atom without any or "")."""
    found: set[Dim] | None = None
    for node, shape in flow.dims.items():
        for dims in _shapes(shape):
            here = _companions(dims, find(leaf))
            if here is None:
                continue
            found = here if found is None else found & here
            if not _free(found, leaf):
                return set(), node.name
    return _free(found or set(), leaf), ""


def _free(found: set[Dim], leaf: Dim) -> set[Dim]:
    return {other for other in found if other is not find(leaf) and other.size > 1 and not is_pinned(other)}


def _shapes(shape: Any) -> list[list[Dim]]:
    """Return the dims of a value; of each, where it is several values."""
    if shape and not isinstance(shape[0], Dim):
        return [flat_dims(item) for item in shape]
    return [flat_dims(shape)]


def _companions(dims: Sequence[Dim], leaf: Dim) -> set[Dim] | None:
    """Return the atoms that are present at every position that has the leaf; None where no position has it."""
    carriers = [dim for dim in dims if any(one is leaf for one in leaves(dim))]
    if not carriers:
        return None
    others = [_always(dim) for dim in dims if dim not in carriers]
    return set().union(*others, *[enclosing_atoms(dim, leaf) for dim in carriers])


def _always(dim: Dim) -> set[Dim]:
    """Return the atoms that every position of a dim belongs to."""
    dim = find(dim)
    if dim.kind == "atom":
        return {dim}
    parts = [_always(part) for part in dim.parts]
    return set.intersection(*parts) if dim.kind == "sum" else set().union(*parts)


def enclosing_atoms(dim: Dim, leaf: Dim) -> set[Dim]:
    """Return the atoms that every position with the leaf belongs to, within a dim that carries it."""
    dim = find(dim)
    if dim.kind == "atom":
        return {dim}
    carriers = [part for part in dim.parts if any(one is leaf for one in leaves(part))]
    inside = [enclosing_atoms(part, leaf) for part in carriers]
    if dim.kind == "sum":
        return set.intersection(*inside)
    return set().union(*inside, *[_always(part) for part in dim.parts if part not in carriers])
