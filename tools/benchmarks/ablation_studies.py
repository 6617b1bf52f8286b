"""Studies of `fxprune.tools.benchmarks.ablation`: their variants as methods, and the programs that some variants start from."""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import nn

from fxprune import analyze
from fxprune.ir import Program, copy_graph, rebuild
from fxprune.passes import Blocks, Distill, Fill, Flop, Grain, GroupLasso
from fxprune.passes.flop import balanced, starts
from fxprune.rewrite.factorize import factorize

Make: TypeAlias = Callable[[float, int, float], Any]
"""Function from (density, seed, beta) to a method."""


def _grain(**changes: Any) -> Make:
    return lambda density, seed, beta: Grain(density=density, beta=beta, seed=seed, **changes)


def _blocks(variant: str, **changes: Any) -> Make:
    return lambda density, seed, beta: Blocks(variant=variant, density=density, seed=seed, **changes)


# The paper starts after 5 % of its runs, thousands of steps; here that is 62 steps, in which the score of a single weight is noise.
LATE = {"start": 0.3, "end": 0.8}
_TAYLOR: dict[str, Any] = {"method": "taylor", **LATE}


def _flop() -> Make:
    return lambda density, seed, beta: Flop(sparsity=1 - density, seed=seed)


def _distill(**options: Any) -> Make:
    return lambda density, seed, beta: Distill(**options)


def _lasso(strength: float, until: float) -> Make:
    return lambda density, seed, beta: GroupLasso(density=density, strength=strength, until=until)


#: study: variant: (its method, its description)
STUDIES: dict[str, dict[str, tuple[Make, str]]] = {
    "grain": {
        "grain": (_grain(), "GRAIN"),
        "random": (_grain(score="random"), "random scores"),
        "heads": (_grain(units="heads"), "whole heads and neurons"),
        "heads-per-cost": (
            _grain(units="heads", per_cost=True),
            "whole heads and neurons, by score for each parameter",
        ),
        "no-structure": (_grain(alpha=0.0), "without structure regularisation"),
        "no-separation": (_grain(separate=False), "without gradient separation"),
        "no-hidden": (_grain(hidden=0.0), "without the hidden loss"),
        "grain-long": (_grain(), "GRAIN, 20 epochs"),
        "random-long": (_grain(score="random"), "random scores, 20 epochs"),
        "heads-long": (_grain(units="heads"), "whole heads and neurons, 20 epochs"),
    },
    "blocks": {
        "struct": (_blocks("struct"), "movement, whole heads of each matrix and neurons (struct)"),
        "hybrid": (_blocks("hybrid"), "movement, 32 × 32 in attention, neurons (hybrid)"),
        "filled": (_distill(epochs=2), "the same, filled and trained 2 epochs more (hybrid-filled)"),
        "block": (_blocks("block"), "movement, 32 × 32 (block)"),
        "unstructured": (_blocks("unstructured"), "movement, single weights"),
        "struct-late": (_blocks("struct", **LATE), "struct, begun at 30 %"),
        "hybrid-late": (_blocks("hybrid", **LATE), "hybrid, begun at 30 %"),
        "filled-late": (_distill(epochs=2), "hybrid-filled, from hybrid begun at 30 %"),
        "block-late": (_blocks("block", **LATE), "block, begun at 30 %"),
        "struct-taylor": (_blocks("struct", **_TAYLOR), "struct by Taylor scores, begun at 30 %"),
        "hybrid-taylor": (_blocks("hybrid", **_TAYLOR), "hybrid by Taylor scores, begun at 30 %"),
        "block-taylor": (_blocks("block", **_TAYLOR), "block by Taylor scores, begun at 30 %"),
        "unstructured-late": (_blocks("unstructured", **LATE), "single weights, begun at 30 %"),
        "unstructured-taylor": (
            _blocks("unstructured", **_TAYLOR),
            "single weights by Taylor scores, begun at 30 %",
        ),
        "lasso": (_lasso(1e-4, 0.3), "reweighted group lasso, 4 blocks of rows, two levels, cut at 30 %"),
        "lasso-weak": (_lasso(1e-5, 0.6), "the same, a tenth as strong, cut at 60 %"),
        "lasso-late": (_lasso(1e-4, 0.6), "the same, cut at 60 %"),
        "lasso-strong": (_lasso(1e-3, 0.6), "the same, ten times as strong, cut at 60 %"),
    },
    "ranks": {
        "flop": (_flop(), "FLOP: ranks leave while it is trained"),
        "flop-taught": (_flop(), "FLOP, begun with the trained teacher"),
        "svd": (_distill(), "SVD of every matrix first, then trained as long"),
        "svd-taught": (_distill(), "SVD of the trained teacher, then trained as long"),
        "svd-after": (_distill(), "SVD of the trained teacher, and no training"),
        "scratch": (_distill(), "what FLOP left, trained from scratch"),
    },
}
STUDY_VARIANTS = {name: row for study in STUDIES.values() for name, row in study.items()}


def _filled(hybrid: str) -> Callable[[Any, float, int], Program]:
    """Start from the result of a hybrid variant, its zeros filled."""
    return lambda bench, density, seed: Fill(seed=seed).run(bench.left_by(hybrid, density, seed)).program


def factorize_all(program: Program, density: float) -> Program:
    """The program with its matrices as two factors each, of this share of the matrix's parameters."""
    return factorize(program, starts(analyze(program), density), balanced).program


def _from_scratch(bench: Any, density: float, seed: int) -> Program:
    """The result of FLOP, its weights initialised anew."""
    return reinitialize(bench.left_by("flop", density, seed), seed)


def reinitialize(program: Program, seed: int) -> Program:
    """The program with weights initialised anew as transformers does: matrices normal (deviation 0.02), scales of norms 1, biases 0."""
    random = torch.Generator().manual_seed(seed)
    made = {name: nn.Parameter(_drawn(name, value, random)) for name, value in program.parameters().items()}
    return rebuild(program, copy_graph(program), made)


def _drawn(name: str, value: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    if value.dim() > 1:
        return torch.randn(value.shape, generator=random) * 0.02
    return torch.ones_like(value) if name.endswith("weight") else torch.zeros_like(value)


def _teacher(bench: Any, *_: Any) -> Program:
    """The program with the weights of the trained teacher."""
    program = bench.program
    taught = {name: bench.teacher.get_parameter(name) for name in program.parameters()}
    return rebuild(program, copy_graph(program), taught)


#: variant: the program that it starts from, where that is not the whole one
STARTS: dict[str, Callable[[Any, float, int], Program]] = {
    "filled": _filled("hybrid"),
    "filled-late": _filled("hybrid-late"),
    "svd": lambda bench, density, seed: factorize_all(bench.program, density),
    "flop-taught": _teacher,
    "svd-taught": lambda bench, density, seed: factorize_all(_teacher(bench), density),
    "svd-after": lambda bench, density, seed: factorize_all(_teacher(bench), density),
    "scratch": _from_scratch,
}


EPOCHS = {"grain-long": 20, "random-long": 20, "heads-long": 20}
"""Epochs of variants that are trained longer than the others (the paper's 20), and only where they are named."""

UNTRAINED = frozenset({"svd-after"})
"""Variants that are evaluated as they start, without training."""
