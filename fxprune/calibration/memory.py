"""Memory of a run: how much may be kept at a time, and what a run will take, predicted from the graph."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psutil
from torch import Tensor

from fxprune.analysis import Analysis, Matrix, analyze, matrices
from fxprune.analysis.sites import find_sites
from fxprune.calibration.data import Calibration
from fxprune.calibration.second_moments import moment_bytes
from fxprune.calibration.segments import KEPT_BYTES, segment_bytes, segments_of, value_bytes
from fxprune.dims import leaves
from fxprune.errors import UsageError
from fxprune.ir import Program
from fxprune.storage.devices import device_limit
from fxprune.storage.limits import VARIABLE, allowed_memory, free_memory, used_memory

LIVE = 0.5
"""Memory for values that are kept, as a share of the size of the weights; further values lie on disk, or are computed again."""

_LEAST = 1 << 25
"""Bytes that are always allowed."""

_DISK_COPIES = 7
"""How many times its weights a program takes in scratch files: slim, re-fitted, zeroed for the proof, and twice in float64."""


def moments_limit(program: Program) -> int:
    """Return the bytes that moments may take in one pass over the data.

    Of a program in memory that is half of what the weights take, or an eighth of the memory that is free; of one on disk, an eighth of
    what may be used.
    """
    if program.is_mapped():
        return device_limit(max(allowed_memory() // 8, _LEAST))
    return device_limit(max(program.parameter_bytes() // 2, free_memory() // 8, _LEAST))


def live_limit(program: Program, on_disk: bool = False) -> int:
    """Return the bytes of values that may be kept: LIVE of what the weights take, on disk at most a 16th of what may be used."""
    share = device_limit(int(LIVE * program.parameter_bytes()))
    limited = on_disk or program.is_mapped()
    return max(min(share, allowed_memory() // 16), _LEAST) if limited else share


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes that pruning a program on calibration data takes: of memory, and of scratch files where the program lies on disk."""

    memory: int
    disk: int

    def check(self) -> None:
        """Raise UsageError where that is more than this process may use, or than the folder for temporary files has."""
        allowed, folder = allowed_memory(), tempfile.gettempdir()
        left = shutil.disk_usage(folder).free
        memory = self.memory + (self.disk if _is_in_memory(folder) else 0)
        if memory > allowed:
            raise UsageError(
                f"pruning needs about {bytes_text(memory)} of memory, and {bytes_text(allowed)} may be used: give smaller"
                f" calibration batches, or allow more (--memory, {VARIABLE})"
            )
        if self.disk > left:
            raise UsageError(
                f"pruning needs about {bytes_text(self.disk)} for temporary files, and {folder} has {bytes_text(left)}:"
                " set TMPDIR to a larger disk"
            )

    def __str__(self) -> str:
        beside = f" and {bytes_text(self.disk)} of temporary files" if self.disk else ""
        return f"about {bytes_text(self.memory)} of memory{beside}"


def memory_need(program: Program, data: Calibration | None, segment: int | None = None) -> MemoryNeed:
    """Return what scores and re-fits of a program on disk take, by the graph's sizes at the largest batch.

    `segment` is the limit of `segments_of` (None: the program's own, where it lies now).

    A segment takes its moments and its values for one batch; beside it are the equations of the largest matrix, and values that wait.
    """
    weights, scale = program.parameter_bytes(), _batch_scale(program, data)
    analysis = analyze(program)
    found = matrices(program, analysis.flow)
    read = read_by_plan(analysis)
    moments = {
        matrix.node: moment_bytes(matrix, narrow=True) for name, matrix in found.items() if name in read
    }
    segments = segments_of(program, segment_bytes(program) if segment is None else segment)
    limit = moments_limit(program) if len(segments) == 1 else sum(moments.values())
    largest = max(
        int(scale * sum(map(value_bytes, each.nodes)))
        + min(limit, sum(moments.get(node, 0) for node in each.nodes))
        for each in segments
    )
    equations = max((_equation_bytes(matrix, name in read) for name, matrix in found.items()), default=0)
    crossing = {node: value_bytes(node) for each in segments for node in each.leaves}
    rows = data.rows / max(1, Calibration(data.batches[:1]).rows) if data else 1.0
    waiting = min(live_limit(program, len(segments) > 1), int(rows * scale * sum(crossing.values())))
    disk = _DISK_COPIES * weights + int(rows * scale * sum(crossing.values()))
    return MemoryNeed(used_memory() + largest + equations + waiting + KEPT_BYTES, disk)


def _is_in_memory(folder: str) -> bool:
    """Return whether a folder's files take memory, as /tmp does where it is no disk."""
    inside = [
        each for each in psutil.disk_partitions(all=True) if Path(folder).is_relative_to(each.mountpoint)
    ]
    return bool(inside) and max(inside, key=lambda each: len(each.mountpoint)).fstype in ("tmpfs", "ramfs")


def bytes_text(count: int) -> str:
    """Return a number of bytes in words, as in 5.9 GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{max(1, round(count / 1e6))} MB"


def read_by_plan(analysis: Analysis) -> set[str]:
    """Return the nodes that sum over units which a plan decides about."""
    units = {axis.leaf for site in find_sites(analysis) for axis in site.axes}
    return {c.node.name for c in analysis.flow.contractions if not units.isdisjoint(leaves(c.dim))}


def _equation_bytes(matrix: Matrix, read: bool) -> int:
    """Return the bytes of the matrices that a re-fit holds at a time, or removing the units that it reads: in float64, and in parts."""
    outputs, columns = matrix.sizes
    curvature = 3 * outputs**2 if read else 0
    in_float32 = columns**2 + outputs * columns
    return int(8 * (8 * columns**2 + 6 * outputs * columns + curvature) + 4 * in_float32)


def _batch_scale(program: Program, data: Calibration | None) -> float:
    """Return how many times as large as the example inputs the largest batch is."""
    if data is None:
        return 1.0
    names = [node.name for node in program.placeholders()]
    example = dict(zip(names, program.flat_inputs(), strict=True))
    scales = [
        value.numel() / max(1, example[name].numel())
        for batch in data.batches
        for name, value in batch.items()
        if isinstance(example.get(name), Tensor)
    ]
    return max(scales, default=1.0)
