"""Place of the tests of bad inputs: a folder with one right file of each kind, and the module that `py:bad_net:…` names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from fxprune.export import export_onnx, save_pt2
from fxprune.tools.commands import main as command_line
from fxprune.tools.inputs import models
from support.bad_files import KEPT, RIGHT
from support.bad_inputs import NET
from support.tiny import BERT, TRAIN, saved, write

MODULE = """
import sys, torch
from torch import nn
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), (torch.randn(3, 8),), {}
class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(10, 8), nn.Linear(8, 10)
    def forward(self, input_ids):
        return self.head(self.table(input_ids))
def words():
    torch.manual_seed(0)
    return Words(), (), {"input_ids": torch.ones(2, 3, dtype=torch.long)}
def ends():
    sys.exit(0)
def fails():
    raise ValueError("no\\n" * 100)
def recurses():
    return recurses()
def five():
    return 5
def many():
    return nn.Linear(1, 1), (), {}, {}, 5
def misfits():
    return nn.Linear(3, 4), (torch.ones(2, 7),), {}
number = 5
"""

#: name: source of a module
MODULES = {
    "bad_net": MODULE,
    "bad_syntax": "def net(:\n",
    "bad_exit": "import sys\nsys.exit(3)\n",
    "bad_text": "text = '\0'\n",
    "bad_import": "import absent_module\n",
}


def furnish(place: Path) -> None:
    """Fill the working folder, which is `place`, with right files: models, data, and the checkpoints of a run."""
    _models(place)
    for name, content in RIGHT.items():
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(json.dumps(content) + "\n")
    shutil.copy(place / "questions/train.json", place / "questions/dev.json")
    (place / "ids.txt").write_text("1\n2\n")
    (place / "texts.txt").write_text("the red thing\nthe cow thing\n")
    rows = np.ones((3, 8), np.float32)
    np.savez(place / "rows.npz", input_1=rows)
    np.save(place / "rows.npy", rows)
    save_file({"input_1": torch.from_numpy(rows)}, place / "rows.safetensors")
    _tasks(place)
    (place / "folder").mkdir()
    (place / "photos").mkdir()
    Image.new("RGB", (8, 8)).save(place / "photos/a.png")
    (place / "loop").symlink_to("loop")
    with mock.patch("fxprune.tools.commands.train._written", side_effect=KeyboardInterrupt):
        assert command_line.main(KEPT) == 130


def _models(place: Path) -> None:
    saved(place / "model", **BERT)
    shutil.copytree(place / "model", place / "broken")
    program = models.load(NET).capture()
    export_onnx(program, place / "model.onnx")
    save_pt2(program, place / "net.pt2")


def _tasks(place: Path) -> None:
    import datasets

    for folder in ("task", "csv", "jsonl", "parquet"):
        (place / folder).mkdir()
    write(place / "task", TRAIN, TRAIN[:8])
    for name, rows in (("train", TRAIN), ("dev", TRAIN[:8])):
        lines = [f"{text},{label}" for text, label in (("sentence", "label"), *rows)]
        (place / f"csv/{name}.csv").write_text("\n".join(lines) + "\n")
        entries = [{"sentence": text, "label": label} for text, label in rows]
        (place / f"jsonl/{name}.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        datasets.Dataset.from_list(entries).to_parquet(str(place / f"parquet/{name}.parquet"))
