"""Time of a run: the operations of scores, re-fits and proof, counted segment by segment, and the seconds that this machine takes for them.

Counted is what grows with the model: products of activations and weights, second moments (in float32 but for held-back rows), and the
equations of matrices in float64. Left out are the search for a plan and the reading of files.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, fx

from fxprune.analysis import Matrix, analyze, matrices
from fxprune.calibration import Calibration
from fxprune.calibration.least_squares import RIDGES, SAMPLE
from fxprune.calibration.memory import read_by_plan
from fxprune.calibration.repair import HELD_BACK
from fxprune.calibration.segments import Segment, segment_bytes, segments_of
from fxprune.ir import Program, shape_of

_FORWARDS = 6
"""Forward runs: one, one more for each segment's gradients, the cost of two for the gradients, and both programs while re-fitting."""

_FITS = 5
"""Products with the moments of a matrix: to solve for its best fit, and for the errors of that and of the weights as they are."""

SYMMETRIC = 10 / 16
"""Share of the products of a value with itself that is computed."""

_TRIAL = 1024
"""Size of the matrices whose product is timed."""


@dataclass(frozen=True)
class Work:
    """Operations: in the precision of the model, and in float64."""

    single: float = 0.0
    double: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.single + other.single, self.double + other.double)

    def seconds(self) -> float:
        """Return the seconds that this machine takes for it, by how long a product takes."""
        return self.single / _rate(torch.float32) + self.double / _rate(torch.float64)


@dataclass(frozen=True, eq=False)
class SegmentWork:
    """Work of one segment: the name of its first node, the bytes of its weights, and its operations."""

    first: str
    weights: int
    work: Work


def run_work(
    program: Program, data: Calibration | None, segment: int | None = None, rows: float = 0.0
) -> list[SegmentWork]:
    """Return the work of scores by data and of re-fits of all matrices, by segment; the program may be on the meta device.

    `rows` are those of the calibration, as many times those of the example inputs (0: of the data). `segment` is the limit of `segments_of`
    (None: the program's own).
    """
    analysis = analyze(program)
    found = {each.node: each for each in matrices(program, analysis.flow).values()}
    read = read_by_plan(analysis)
    scale = rows or _scale(program, data)
    tensors = program.tensors()
    limit = segment_bytes(program) if segment is None else segment
    return [_segment_work(each, found, read, (scale, tensors)) for each in segments_of(program, limit)]


def _segment_work(
    segment: Segment,
    found: Mapping[fx.Node, Matrix],
    read: set[str],
    sizes: tuple[float, Mapping[str, Tensor]],
) -> SegmentWork:
    scale, tensors = sizes
    own = [found[node] for node in segment.nodes if node in found]
    summed: set[fx.Node] = set()  # inputs whose moments another matrix has summed
    total = Work()
    for matrix in own:
        total += _matrix_work(matrix, scale, matrix.node.name in read, matrix.source in summed)
        summed.add(matrix.source)
    weights = sum(tensors[name].nbytes for name in segment.parameters if name in tensors)
    return SegmentWork(segment.nodes[0].name if segment.nodes else "", weights, total)


def _matrix_work(matrix: Matrix, scale: float, read: bool, known: bool) -> Work:
    """Return the work of one matrix; where its inputs are `known`, their moments and factors are there already."""
    outputs, columns = matrix.sizes
    rows = scale * math.prod(shape_of(matrix.node.meta["val"]) or ()) / outputs
    own = 0.0 if known else SYMMETRIC * columns
    moments = 2 * rows * columns * (outputs + own)
    factors = 0.0 if known else len(RIDGES) * columns**3 / 3
    sampled = min(SAMPLE, outputs) * 2 * len(RIDGES)
    fits = 2 * columns**2 * (_FITS * outputs + sampled)
    scored = _scored(matrix, rows) if read else Work()
    single = _FORWARDS * 2 * rows * outputs * columns + (1 - HELD_BACK) * moments
    return Work(single, HELD_BACK * moments + factors + fits) + scored


def _scored(matrix: Matrix, rows: float) -> Work:
    """Return the work of removing, step by step, all units that a matrix reads (optimal brain surgeon)."""
    outputs, columns = matrix.sizes
    moments = 2 * rows * SYMMETRIC * (columns**2 + outputs**2)
    curved = 2 * outputs**2 * columns
    inverse = 7 / 3 * columns**3
    return Work(moments, curved + inverse + columns**2 * (2 / 3 * columns + 2 * outputs))


def total_work(parts: Sequence[SegmentWork]) -> Work:
    """Return the work of all segments."""
    return sum((each.work for each in parts), Work())


def _scale(program: Program, data: Calibration | None) -> float:
    """Return how many times as many elements as the example inputs the calibration data have."""
    example = sum(value.numel() for value in program.flat_inputs() if isinstance(value, Tensor))
    given = sum(value.numel() for batch in data.batches for value in batch.values()) if data else example
    return given / max(1, example)


@cache
def _rate(dtype: torch.dtype) -> float:
    """Return the operations that this machine does in a second, by the fastest of three products of matrices."""
    one = torch.ones(_TRIAL, _TRIAL, dtype=dtype)
    spent = []
    for _ in range(3):
        start = time.perf_counter()
        one @ one
        spent.append(time.perf_counter() - start)
    return 2 * _TRIAL**3 / max(min(spent), 1e-9)


def duration_text(seconds: float) -> str:
    """Return seconds as text: `1 h 05 min`, `12 min`, `20 s`."""
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes} min" if minutes else f"{round(seconds)} s"
