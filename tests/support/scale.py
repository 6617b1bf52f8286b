"""Time of capture and analysis at real sizes, on the meta device: `python tests/support/scale.py` (make scale) prints the table.

Each row runs in a process of its own, so that its peak memory (libraries included) is its own. The plan is that of a pass
which reads no weights: half of every exact axis.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from fxprune import Selection, analyze, capture
from fxprune.analysis import Analysis
from fxprune.ir import Program
from fxprune.rewrite.shrink import kept_masks

LAYERS = (12, 24, 48, 96)
"""1, 2, 4 and 8 times a BERT-base."""


def bert(layers: int) -> nn.Module:
    """A BERT of BERT-base's widths."""
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(num_hidden_layers=layers))


def llama(layers: int) -> nn.Module:
    """A Llama of Llama-7B's widths."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers))


MODELS = {"bert": bert, "llama": llama}


def measured(name: str, layers: int) -> dict[str, Any]:
    """Seconds and peak memory of one model, in this process."""
    warnings.simplefilter("ignore")
    with torch.device("meta"):
        model = MODELS[name](layers).eval()
        ids = torch.ones(2, 13, dtype=torch.int64)
    start = time.perf_counter()
    program = capture(model, kwargs={"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    captured = time.perf_counter()
    runs = [_analysed(program) for _ in range(3)]
    analysis, planned = runs[0][1], time.perf_counter()
    kept_masks(analysis, Selection({a.name: range(0, a.size, 2) for a in analysis.axes if a.exact}))
    return {
        "model": name,
        "layers": layers,
        "parameters": program.parameter_count(),
        "nodes": len(program.graph.nodes),
        "axes": len(analysis.axes),
        "capture_s": captured - start,
        "analyze_s": min(seconds for seconds, _ in runs),
        "total_s": captured - start + runs[0][0] + time.perf_counter() - planned,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def _analysed(program: Program) -> tuple[float, Analysis]:
    start = time.perf_counter()
    analysis = analyze(program)
    return time.perf_counter() - start, analysis


def apart(name: str, layers: int) -> dict[str, Any]:
    """As `measured`, in a process of its own."""
    command = [sys.executable, __file__, name, str(layers)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def rows() -> Iterator[dict[str, Any]]:
    """BERT-base with 1, 2, 4 and 8 times its layers, and Llama-7B."""
    yield from (apart("bert", layers) for layers in LAYERS)
    yield apart("llama", 32)


TITLES = (
    "model",
    "layers",
    "parameters",
    "nodes",
    "axes",
    "capture s",
    "analysis s",
    "ms a node",
    "capture to plan s",
    "peak GB",
)


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    each = 1000 * row["analyze_s"] / row["nodes"]
    counts = (row["model"], row["layers"], f"{row['parameters'] / 1e9:.2f} G", row["nodes"], row["axes"])
    times = (f"{row['capture_s']:.1f}", f"{row['analyze_s']:.3f}", f"{each:.3f}", f"{row['total_s']:.1f}")
    return "| " + " | ".join(map(str, (*counts, *times, f"{row['peak_gb']:.2f}"))) + " |"


def main() -> None:
    """Print one row as JSON, or the table as it comes."""
    if len(sys.argv) == 3:
        sys.stdout.write(json.dumps(measured(sys.argv[1], int(sys.argv[2]))) + "\n")
        return
    sys.stdout.write(f"| {' | '.join(TITLES)} |\n|{'---|' * len(TITLES)}\n")
    for row in rows():
        sys.stdout.write(line(row) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
