"""Batching of rows: as many in a batch as the program takes, rows of equal sizes together."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxprune.calibration.data import Batch
from fxprune.errors import UsageError
from fxprune.ir import Program

_MOST = 32  # rows per batch: enough to keep a processor busy, few enough for any memory


@dataclass(frozen=True)
class Batching:
    """Batching of rows: at most `step` in a batch (exactly so many where that is `fixed`), along dimension 0 of these inputs."""

    step: int
    fixed: bool
    inputs: tuple[str, ...]

    def limit(self, rows: int) -> int:
        """Return the most rows that whole batches hold of so many (0: all), at least one batch."""
        return max(rows - rows % self.step, self.step) if self.fixed and rows else rows


def batching_of(program: Program) -> Batching:
    """Return the batching along all inputs whose dimension 0 is dynamic, or else along those with as many rows as the first input."""
    free = tuple(name for name, dims in program.free_dims().items() if 0 in dims)
    if free:
        return Batching(_MOST, fixed=False, inputs=free)
    heights = {name: shape[0] for name, shape in input_shapes(program).items() if shape}
    step = next(iter(heights.values()), 1)
    return Batching(max(step, 1), fixed=True, inputs=tuple(n for n, size in heights.items() if size == step))


def input_shapes(program: Program) -> dict[str, tuple[Any, ...]]:
    """Return the sizes of every tensor input, numbers or symbols."""
    nodes = {node.name: node for node in program.placeholders()}
    return {name: tuple(nodes[name].meta["val"].shape) for name in program.input_names()}


def spread_order(count: int) -> list[int]:
    """Return the numbers below `count` in an order whose every beginning is spread evenly over them (bits reversed).

    Files and tables are often sorted by class: the first rows of this order have a part of all.
    """
    width = max(count - 1, 0).bit_length()
    backwards = (int(f"{i:0{width}b}"[::-1], 2) if width else 0 for i in range(1 << width))
    return [i for i in backwards if i < count]


def batched(
    rows: Iterable[Mapping[str, Tensor]], batching: Batching, first: int, source: str
) -> Iterator[Batch]:
    """Yield rows in batches as they fill; one ends after the `first` rows (0: none does), so that no more than these need be read.

    Where the size of a batch is fixed, rows that do not fill one are dropped; UsageError where none is filled.
    """
    waiting: dict[Any, list[Mapping[str, Tensor]]] = {}
    count = made = 0
    for count, row in enumerate(rows, 1):
        sizes = tuple((name, value.shape) for name, value in row.items())
        waiting.setdefault(sizes, []).append(row)
        full = [sizes] if len(waiting[sizes]) == batching.step else []
        ends = count == first and not batching.fixed
        for batch in map(waiting.pop, list(waiting) if ends else full):
            made += 1
            yield _stacked(batch)
    if not batching.fixed:
        yield from map(_stacked, waiting.values())
    elif not made:
        raise UsageError(
            f"the model takes exactly {batching.step} rows of equal sizes at once, and {source} has {count} in all;"
            " give more, or capture the model with a dynamic batch"
        )


def _stacked(rows: list[Mapping[str, Tensor]]) -> Batch:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
