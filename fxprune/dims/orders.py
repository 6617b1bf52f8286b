"""Orders of indices: permutations as tuples, of which `order[i]` is the index at position i."""

from __future__ import annotations

import math


def inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    """The order that leads back."""
    return tuple(sorted(range(len(order)), key=order.__getitem__))


def transposition(order: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The (factor sizes, order of the factors) by which an order is a transposition, None where it is none.

    (0, 3, 1, 4, 2, 5) reads 2 x 3 as 3 x 2: ((2, 3), (1, 0)).
    """
    steps, block = list[tuple[int, int]](), 1
    while block < len(order):
        if len(order) % block:
            return None
        most, stride = len(order) // block, order[block]
        count = next((i for i in range(1, most) if order[i * block] != i * stride), most)
        steps.insert(0, (stride, count))
        block *= count
    outermost_first = sorted(steps, reverse=True)
    sizes = tuple(count for _, count in outermost_first)
    places = tuple(outermost_first.index(step) for step in steps)
    return (sizes, places) if order == read_across(sizes, places) else None


def read_across(sizes: tuple[int, ...], places: tuple[int, ...]) -> tuple[int, ...]:
    """The order in which indices of factors of these sizes are read when the factors stand in another order."""
    order = [0]
    for place in places:
        stride = math.prod(sizes[place + 1 :])
        order = [start + i * stride for start in order for i in range(sizes[place])]
    return tuple(order)
