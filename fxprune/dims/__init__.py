"""The algebra of dimensions: atoms, products, sums, and their unification."""

from fxprune.dims.blocks import BlockSizes
from fxprune.dims.dim import Dim, atom, find, is_pinned, leaves, product
from fxprune.dims.masks import Kept, changes, coordinates, cut, zero

__all__ = [
    "BlockSizes",
    "Dim",
    "Kept",
    "atom",
    "changes",
    "coordinates",
    "cut",
    "find",
    "is_pinned",
    "leaves",
    "product",
    "zero",
]
