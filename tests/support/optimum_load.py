"""Loader of an output folder in a venv with optimum-onnx and without fxprune: loads it three ways, and compares with expected outputs.

    python optimum_load.py CLASS OUT

OUT/expected.npz has the inputs (`in.NAME`) and the outputs of the program (`out.NAME`), OUT/sentences.json the sentences of the inputs.
Prints a line of JSON, with the largest relative differences of the ORTModel, of a plain InferenceSession and of model.pt2.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from optimum import onnxruntime as ort
from transformers import AutoConfig, AutoTokenizer


def relative(ours: Any, theirs: Any) -> float:
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def tokenized(out: Path) -> dict[str, Any]:
    """The sentences, encoded by the folder's own tokenizer."""
    sentences = json.loads((out / "sentences.json").read_text())
    made = AutoTokenizer.from_pretrained(out)(sentences, padding=True, return_tensors="np")
    return {name: np.asarray(value) for name, value in made.items()}


def main(kind: str, out: Path) -> dict[str, Any]:
    saved = np.load(out / "expected.npz")
    given = {name[3:]: saved[name] for name in saved if name.startswith("in.")}
    wanted = {name[4:]: saved[name] for name in saved if name.startswith("out.")}
    if (out / "sentences.json").is_file():
        made = tokenized(out)
        assert all(np.array_equal(made[name], value) for name, value in given.items()), "other token ids"
    options = {"use_cache": False, "use_io_binding": False} if kind == "ORTModelForCausalLM" else {}
    model = getattr(ort, kind).from_pretrained(out, **options)
    found = model(**{name: torch.from_numpy(value) for name, value in given.items()})
    session = onnxruntime.InferenceSession(str(out / "model.onnx"), providers=["CPUExecutionProvider"])
    plain = dict(zip([o.name for o in session.get_outputs()], session.run(None, given), strict=True))
    told = {
        "class": type(model).__name__,
        "outputs": list(found),
        "ORTModel": max(relative(value.detach(), wanted[name]) for name, value in found.items()),
        "InferenceSession": max(relative(value, wanted[name]) for name, value in plain.items()),
        "model.pt2": program(out, given, wanted),
        "config": AutoConfig.from_pretrained(out).to_dict().get("per_layer_config"),
    }
    if kind == "ORTModelForCausalLM":
        model.generation_config.eos_token_id = None
        ids = model.generate(torch.from_numpy(given["input_ids"][:1, :4]), max_new_tokens=6, do_sample=False)
        told["generated"] = ids[0].tolist()
        assert told["generated"] == saved["generated"].tolist(), "other tokens than the program's"
    return told


def program(out: Path, given: dict[str, Any], wanted: dict[str, Any]) -> float:
    """The largest difference of the program itself, read without fxprune; the classes of its outputs must be imported first."""
    for module in json.loads((out / "fxprune.json").read_text())["containers"]:
        importlib.import_module(module)
    loaded = torch.export.load(out / "model.pt2").module(check_guards=False)
    found = loaded(**{name: torch.from_numpy(value) for name, value in given.items()})
    return max(relative(value.detach(), wanted[name]) for name, value in found.items() if name in wanted)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1], Path(sys.argv[2]))) + "\n")
