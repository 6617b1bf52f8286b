"""`python -m fxprune.tools.benchmarks.split_choice`: compare the choice of dense or split products with measured times, in 24 cases.

Each case is a matrix of row-blocks that keep different columns. The cost model (`fxprune.search.alternatives.cheaper_splits` with a
`Clock`) chooses; then both files are timed in turns, for longer, and the faster one is the right choice.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxprune.cost import Clock, default_cache
from fxprune.export import export_onnx
from fxprune.frontend.capture import capture
from fxprune.ir import Program, feeds
from fxprune.rewrite.split import split, splits
from fxprune.runtimes import Settings, measure
from fxprune.search.alternatives import cheaper_splits
from fxprune.tools.commands import console
from fxprune.tools.reports import report
from fxprune.tools.reports.report import Grid

_SHAPES = ((768, 768), (768, 3072), (3072, 768))
_BLOCKS = (2, 4, 8, 16)
DENSITIES = (0.5, 0.25)
_ROWS = 128  # of the input
_SECONDS = 4.0


def sparse(
    columns: int, outputs: int, blocks: int, density: float, bias: bool = True, rows: int = 3
) -> Program:
    """The program of a linear layer whose row-blocks each keep a share of the columns, chosen at random for each block."""
    random = torch.Generator().manual_seed(0)
    net = nn.Linear(columns, outputs, bias=bias)
    with torch.no_grad():
        net.weight.copy_(torch.randn(outputs, columns, generator=random))
        for block in net.weight.tensor_split(blocks):
            kept = torch.randperm(columns, generator=random)[: round(density * columns)]
            block.mul_(torch.zeros(columns).index_fill(0, kept, 1.0))
    return capture(net, (torch.randn(rows, columns, generator=random),))


def case(shape: tuple[int, int], blocks: int, density: float, settings: Settings) -> dict[str, Any]:
    """The predicted and the measured speedup of the split over the dense product, and whether the choice was right."""
    program = sparse(*shape, blocks, density, rows=_ROWS)
    _, (verdict,) = cheaper_splits(program, Clock(settings, default_cache()))
    with tempfile.TemporaryDirectory() as scratch:
        programs = {"dense": program, "split": split(program, splits(program))}
        folder = Path(scratch)
        files = {name: export_onnx(each, folder / f"{name}.onnx").path for name, each in programs.items()}
        found = measure(files, dict.fromkeys(files, feeds(program)), settings, _SECONDS)
    speedup = found["dense"].median / found["split"].median
    return {
        "shape": shape,
        "blocks": blocks,
        "density": density,
        "predicted": verdict.dense / verdict.split,
        "measured": speedup,
        "right": verdict.pays == (speedup > 1),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the cases, and print the table."""
    program = "python -m fxprune.tools.benchmarks.split_choice"
    parser = argparse.ArgumentParser(prog=program, description=__doc__)
    parser.add_argument("--threads", type=int, default=1, help="of the runtime (1)")
    options = parser.parse_args(arguments)
    settings = Settings(options.threads)
    found = [case(shape, k, d, settings) for shape in _SHAPES for d in DENSITIES for k in _BLOCKS]
    rows = [
        (
            f"{each['shape'][0]} → {each['shape'][1]}",
            f"{each['density']:.0%}",
            str(each["blocks"]),
            f"{each['predicted']:.2f}×",
            f"{each['measured']:.2f}×",
            "split" if each["predicted"] > 1 else "dense",
            "yes" if each["right"] else "no",
        )
        for each in found
    ]
    columns = ("matrix", "left", "blocks", "split, by the cost table", "split, measured", "chosen", "right")
    right = sum(each["right"] for each in found)
    grid = Grid(f"Split or dense: right in {right} of {len(found)}", columns, tuple(rows), 4)
    where = report.where({"machine": report.machine()})
    console.output().print(f"{grid.title}\n\n{report.markdown_table(grid)}\n\n{where}", markup=False)


if __name__ == "__main__":
    main()
