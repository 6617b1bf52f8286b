"""`python -m fxprune.tools.benchmarks.char_lm`: compare ranks by FLOP, by SVD and from scratch, on a small character language model.

The model is trained on WikiText-2's valid, character by character, and evaluated on the first part of its test. Every figure goes into a
JSON Lines file (`--out`); `--table` prints the table.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.frontend.capture import capture
from fxprune.gates.lower import lower
from fxprune.ir import Program, copy_graph, rebuild
from fxprune.passes import Distill, Flop
from fxprune.rewrite.merge_factors import merge_factors
from fxprune.tools.benchmarks.ablation_studies import factorize_all, reinitialize
from fxprune.tools.benchmarks.subjects.common import task_data
from fxprune.tools.reports import report
from fxprune.tools.reports.report import Grid
from fxprune.training import Examples, Recipe
from fxprune.training.fine_tune import fine_tune, perplexity
from fxprune.training.train import train

CHARACTERS, _LENGTH = 96, 96
TRAIN_ROWS, TEST_ROWS = 6000, 400  # about half of valid; a run with two densities takes 4,000 steps
_RECIPE = Recipe(epochs=3, learning_rate=1e-3, batch_size=32, warmup=0.05, weight_decay=0.01, clip=1.0)


class _Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """(rows, length, width) to the same."""
        rows, length, width = x.shape
        parts = (self.query(x), self.key(x), self.value(x))
        q, k, v = (each.view(rows, length, self.heads, -1).transpose(1, 2) for each in parts)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        found: Tensor = self.out(mixed.transpose(1, 2).reshape(rows, length, width))
        return found


class Block(nn.Module):
    """Attention and a feed-forward block, each with a norm before it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = _Attention(width, heads)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(rows, length, width) to the same."""
        x = x + self.attention(self.first(x))
        found: Tensor = x + self.narrow(nn.functional.gelu(self.wide(self.second(x))))
        return found


class Characters(nn.Module):
    """A decoder of a few blocks over characters."""

    def __init__(self, width: int = 128, heads: int = 4, layers: int = 3) -> None:
        super().__init__()
        self.characters, self.places = nn.Embedding(CHARACTERS, width), nn.Embedding(_LENGTH, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CHARACTERS)

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        """Numbers of characters (rows, length) to logits (rows, length, characters)."""
        x = self.characters(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        return {"logits": self.head(self.norm(x))}


def rows(part: str, most: int) -> Examples:
    """The text of a part of WikiText-2, cut into rows; all characters outside of codes 32 to 125 share one number."""
    text = task_data(f"WikiText-2/{part}.txt").read_text(encoding="utf-8")
    codes = torch.tensor([ord(c) - 31 if 32 <= ord(c) < 126 else 0 for c in text])
    cut = codes[: (len(codes) - 1) // _LENGTH * _LENGTH + 1]
    inputs, labels = cut[:-1].reshape(-1, _LENGTH), cut[1:].reshape(-1, _LENGTH)
    return Examples({"ids": inputs[:most]}, labels[:most], by_token=True)


class _Bench:
    """Bench of one seed: the model, its text, and the variants of the model."""

    def __init__(self, out: Path, seed: int) -> None:
        self.out, self.seed = out, seed
        torch.manual_seed(seed)
        self.model = Characters().eval()
        ids, auto = torch.zeros(3, 13, dtype=torch.long), torch.export.Dim.AUTO
        self.program = capture(self.model, kwargs={"ids": ids}, dynamic_shapes={"ids": {0: auto, 1: auto}})
        self.train, self.test = rows("valid", TRAIN_ROWS), rows("test", TEST_ROWS)
        self.recipe = replace(_RECIPE, seed=seed)

    def run(self, densities: Sequence[float]) -> None:
        """Train the whole model, then the variants at each density; record all of them."""
        start = time.perf_counter()
        whole = self._with(self.program, fine_tune(self.program, self.train, self.recipe))
        self.note("whole", 1.0, whole, time.perf_counter() - start)
        for density in densities:
            for variant, slim, seconds in self._variants(whole, density):
                self.note(variant, density, slim, seconds)

    def _variants(self, whole: Program, density: float) -> Iterator[tuple[str, Program, float]]:
        cut = factorize_all(whole, density)
        yield "SVD", cut, 0.0
        yield self._taught("SVD, trained on", cut, Distill(hard=1.0))
        _, slim, seconds = self._taught("", whole, Flop(sparsity=1 - density, hard=1.0, seed=self.seed))
        yield "FLOP", slim, seconds
        start = time.perf_counter()
        longer = replace(self.recipe, epochs=2 * self.recipe.epochs)
        anew = reinitialize(slim, self.seed)
        trained = self._with(anew, fine_tune(anew, self.train, longer))
        yield "same size from scratch, twice as long", trained, time.perf_counter() - start

    def _taught(self, name: str, program: Program, method: Any) -> tuple[str, Program, float]:
        start = time.perf_counter()
        taught = train(program, method, self.train, self.recipe)
        return name, merge_factors(lower(taught.gated, taught.module).program), time.perf_counter() - start

    def _with(self, program: Program, module: nn.Module) -> Program:
        found = {name: module.get_parameter(name) for name in program.parameters()}
        return rebuild(program, copy_graph(program), found)

    def note(self, variant: str, density: float, program: Program, seconds: float) -> None:
        """Append one line of results to the file."""
        bits = math.log2(perplexity(program, program.graph_module, self.test))
        entry = {"variant": variant, "density": density, "seed": self.seed, "bits": bits, "seconds": seconds,
                 "parameters": program.parameter_count(), "recipe": asdict(self.recipe), "machine": report.machine()}  # fmt: skip
        with self.out.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(entry) + "\n")


def table(entries: Sequence[dict[str, Any]]) -> str:
    """The figures as a Markdown table, means over seeds."""
    found: dict[tuple[float, str], list[dict[str, Any]]] = {}
    for entry in entries:
        found.setdefault((entry["density"], entry["variant"]), []).append(entry)
    made = [
        (
            f"{density:.0%}",
            variant,
            str(len(each)),
            f"{mean(e['bits'] for e in each):.3f}",
            f"{mean(e['parameters'] for e in each) / 1e3:.0f} k",
        )
        for (density, variant), each in sorted(found.items(), key=lambda item: -item[0][0])
    ]
    columns = ("density", "variant", "seeds", "bits a character", "parameters")
    return report.markdown_table(Grid("", columns, tuple(made), 3))


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and evaluate, or print the table."""
    parser = argparse.ArgumentParser(prog="python -m fxprune.tools.benchmarks.char_lm", description=__doc__)
    add = parser.add_argument
    add("--out", type=Path, default=Path("out/characters.jsonl"), help="where figures are kept")
    add("--densities", nargs="+", type=float, default=[0.5, 0.25], help="(0.5 0.25)")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], help="(0 1 2)")
    add("--threads", type=int, default=1, help="of torch (1)")
    add("--table", action="store_true", help="print the table, and train nothing")
    options = parser.parse_args(arguments)
    if options.table:
        lines = options.out.read_text(encoding="utf-8").splitlines()
        print(table([json.loads(line) for line in lines]))
        return
    options.out.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    for seed in options.seeds:
        _Bench(options.out, seed).run(options.densities)


if __name__ == "__main__":
    main()
