"""Worker of two processes under torchrun: slims a net on its share of the rows, and writes what became of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from fxprune.errors import FxpruneError
from fxprune.passes import parse_pipeline
from fxprune.pipeline import Context
from support.slimmable import BATCH, LENGTH, subject

PIPELINE = "slim(flops=0.7, repair='all+logits')"
IMPOSSIBLE = "slim(flops=0.000001)"


def slimmed(text: str) -> dict[str, object]:
    """The result of a pipeline on the small BERT, as plain data."""
    program, data = subject("bert")
    given = Context(data=data, point={"batch": BATCH, "length": LENGTH}, cache=False, together=True)
    try:
        result = parse_pipeline(text).run(program, given)
    except FxpruneError as error:
        return {"refused": str(error)}
    return {
        "selection": result.selection.to_json(),
        "refitted": list(result.refitted),
        "weights": [value.double().sum().item() for value in result.program.tensors().values()],
        "trials": len(result.steps[0].details["trials"]),
    }


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    told = {"slim": slimmed(PIPELINE), "impossible": slimmed(IMPOSSIBLE)}
    rank = torch.distributed.get_rank()
    (folder / f"{rank}.json").write_text(json.dumps(told), encoding="utf-8")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
