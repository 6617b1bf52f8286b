"""Fill: zeros that stay inside of dense matrices cost as much as any number, and become small random numbers that training can use."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from fxprune.analysis.axes import analyze
from fxprune.gates.blocked_weights import find_blocked_weights
from fxprune.ir.program import Program, copy_graph, rebuild


def fill_zeros(
    program: Program, roles: Collection[str], scale: float, seed: int
) -> tuple[Program, dict[str, int]]:
    """(the program, how many zeros were filled in each matrix that runs over an axis of these roles).

    What comes in is N(mean, (scale · standard deviation)²) of what is there (hybrid-filled, arXiv 2109.04838).
    """
    random = torch.Generator().manual_seed(seed)
    tensors, counts = program.tensors(), {}
    for site in find_blocked_weights(analyze(program), roles):
        weight = tensors[site.matrix.weight]
        value = weight.detach().clone()
        empty = value == 0
        if not bool(empty.any()) or bool(empty.all()):
            continue
        mean, spread = value[~empty].mean(), value[~empty].std(correction=0) * scale
        drawn = torch.randn(int(empty.sum()), generator=random).to(value)
        value[empty] = mean + spread * drawn
        tensors[site.matrix.weight] = nn.Parameter(value, weight.requires_grad)
        counts[site.matrix.weight] = len(drawn)
    return rebuild(program, copy_graph(program), tensors), counts
