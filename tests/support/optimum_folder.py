"""Output folders in optimum-onnx: fxprune's command line writes them here, optimum-onnx loads them in a venv of its own.

    python -m support.optimum_folder WORK            build WORK/venv (pinned), write WORK/CASE, load each, print a line of JSON for each

`tests/integrations/test_optimum.py` does the same under pytest (`-m slow`). The venv needs a package index, 2 GB of disk and two minutes.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fxprune.tools.commands.main import main
from support.tiny import BERT, TRAIN, saved, write

ROOT = Path(__file__).resolve().parents[2]

#: optimum-onnx 0.1 requires transformers before 4.58; torch comes first, since the other packages would install another build
PINS = (
    ("torch==2.13.0",),
    (
        "optimum-onnx==0.1.0",
        "optimum==2.1.0",
        "transformers==4.57.6",
        "tokenizers==0.22.2",
        "huggingface_hub==0.36.2",
        "onnx==1.23.2",
        "onnxruntime==1.32.0",
        "pillow==13.0.0",
    ),
)

SENTENCES = ["the red dog thing", "the cow", "the white horse thing the blue cat", "[MASK] green"]
PIPELINE = "heads(ratio=0.25), ffn(ratio=0.5), fold"
UNEVEN = "layers(count=1, unit='branch'), heads(ratio=0.5), ffn(ratio=0.5), fold"
LLAMA: Mapping[str, Any] = {
    **BERT, "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3
}  # fmt: skip
GPT: Mapping[str, Any] = {
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
VIT: Mapping[str, Any] = {**BERT, "image_size": 16, "patch_size": 8, "num_labels": 5}


@dataclass(frozen=True)
class Case:
    """A model of transformers, the class of optimum that loads the result, the configuration, and the pipeline."""

    model: str
    loader: str
    settings: Mapping[str, Any] = field(default_factory=lambda: BERT)
    pipeline: str = PIPELINE


CASES: dict[str, Case] = {
    "minilm": Case("", "ORTModelForFeatureExtraction"),
    "features": Case("BertModel", "ORTModelForFeatureExtraction", pipeline=UNEVEN),
    "custom": Case("BertModel", "ORTModelForCustomTasks"),
    "classifier": Case("BertForSequenceClassification", "ORTModelForSequenceClassification"),
    "trained": Case(
        "BertModel", "ORTModelForSequenceClassification", pipeline="grain(density=0.3, beta=0.5)"
    ),
    "tagger": Case("BertForTokenClassification", "ORTModelForTokenClassification", pipeline=UNEVEN),
    "answers": Case("BertForQuestionAnswering", "ORTModelForQuestionAnswering"),
    "masked": Case("BertForMaskedLM", "ORTModelForMaskedLM"),
    "images": Case("ViTForImageClassification", "ORTModelForImageClassification", VIT),
    "llama": Case("LlamaForCausalLM", "ORTModelForCausalLM", LLAMA, UNEVEN),
    "gpt2": Case("GPT2LMHeadModel", "ORTModelForCausalLM", GPT),
}


def foreign(venv: Path) -> Path:
    """The Python of a venv with optimum-onnx, which is created where it is missing."""
    python = venv / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        for packages in PINS:
            subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    return python


def made(name: str, work: Path) -> Path:
    """The output folder of a case, written by the command line, with fresh inputs and the program's outputs in expected.npz."""
    case, out = CASES[name], work / name
    model = (
        "minilm" if name == "minilm" else f"hf:{saved(work / f'{name}-model', case.model, **case.settings)}"
    )
    arguments = ["run", model, "-p", case.pipeline]
    if name == "trained":
        arguments = _training(work / "data", model, case.pipeline)
    assert main([*arguments, "-o", str(out), "--force"]) == 0
    given, program = _inputs(out), torch.export.load(out / "model.pt2").module(check_guards=False)
    saves = {f"in.{key}": value for key, value in given.items()}
    saves |= {f"out.{key}": value.detach() for key, value in program(**given).items() if value is not None}
    if case.loader == "ORTModelForCausalLM":
        saves["generated"] = _greedy(program, given["input_ids"][:1, :4])
    arrays: dict[str, Any] = {key: value.numpy() for key, value in saves.items()}
    np.savez(out / "expected.npz", **arrays)
    return out


def _greedy(program: Any, ids: torch.Tensor, count: int = 6) -> torch.Tensor:
    """The tokens of greedy decoding by the program, without a cache."""
    for _ in range(count):
        logits = program(input_ids=ids, attention_mask=torch.ones_like(ids))["logits"]
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
    return ids[0]


def _training(data: Path, model: str, pipeline: str) -> list[str]:
    data.mkdir(exist_ok=True)
    write(data, TRAIN, TRAIN[:8])
    recipe = ["--epochs", "3", "--batch-size", "16", "--learning-rate", "1e-3", "--restart"]
    return ["train", model, "--task", "text-classification", "--data", str(data), *recipe, "-p", pipeline]


def _inputs(out: Path) -> dict[str, torch.Tensor]:
    """Sentences encoded by the tokenizer in the output folder, or images."""
    from transformers import AutoTokenizer

    names = [entry["name"] for entry in json.loads((out / "fxprune.json").read_text())["inputs"]]
    if names == ["pixel_values"]:
        return {"pixel_values": torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))}
    (out / "sentences.json").write_text(json.dumps(SENTENCES))
    encoded = AutoTokenizer.from_pretrained(out)(SENTENCES, padding=True, return_tensors="pt")
    return {name: encoded[name] for name in names}


def loaded(python: Path, name: str, out: Path) -> dict[str, Any]:
    """The result of optimum_load.py for a folder, in the other venv."""
    command: list[str | Path] = [
        python,
        ROOT / "tests" / "support" / "optimum_load.py",
        CASES[name].loader,
        out,
    ]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env={"HF_HUB_OFFLINE": "1"})
    assert ran.returncode == 0, ran.stderr[-3000:]
    told: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return told


def run(work: Path, names: list[str]) -> None:
    work.mkdir(parents=True, exist_ok=True)
    python = foreign(work / "venv")
    for name in names or CASES:
        sys.stdout.write(f"{name} {json.dumps(loaded(python, name, made(name, work)))}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    run(Path(sys.argv[1]).resolve(), sys.argv[2:])
