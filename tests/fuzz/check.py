"""Fuzzer check: the claims about one random program, and the text of a failed one."""

from __future__ import annotations

import random

import torch

from fxprune import Program, Selection, shrink, zero_readers
from fxprune.analysis import Analysis
from support.models import distance
from support.strategies import BATCH, INTO, LENGTH
from zoo.shuffled import same_axes

BAR = 1e-10


def example() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(BATCH, LENGTH, INTO, dtype=torch.float64, generator=generator)


def chosen(analysis: Analysis, seed: int, exact: bool) -> Selection:
    """A selection of most of the axes, each at random indices: at least as many as its choices need, and all only if they need all."""
    draw = random.Random(seed)
    axes = [axis for axis in analysis.axes if (axis.exact or not exact) and draw.random() < 0.8]
    kept = {
        a.name: sorted(draw.sample(range(a.size), draw.randint(a.least, max(a.least, a.size - 1))))
        for a in axes
    }
    return Selection(kept)


def fault(program: Program, analysis: Analysis, seed: int) -> str:
    """The first failed claim about a program's analysis, as text; empty where all hold."""
    for turn in range(2):
        selection = chosen(analysis, 2 * seed + turn, exact=True)
        with torch.no_grad():
            gap = distance(shrink(program, selection)(example()), zero_readers(program, selection)(example()))
        if not gap <= BAR:
            return f"off by {gap:.1e} with {selection.to_json()}"
    if not all(axis.exact for axis in analysis.axes):
        with torch.no_grad():
            shrink(program, chosen(analysis, seed, exact=False))(example())
    return "" if same_axes(program, seed) else "other axes when its nodes are visited in another order"
