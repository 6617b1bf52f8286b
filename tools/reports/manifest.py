"""Manifest: the files that other tools need to load OUT: config.json, tokenizer, and fxprune.json, a description of the model."""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fxprune.analysis.layer_sizes import count_layer_sizes
from fxprune.integrations.huggingface.config import record_sizes
from fxprune.ir import Program
from fxprune.ir.program import container_modules
from fxprune.rewrite import TokenIds
from fxprune.runtimes.onnxruntime import signature
from fxprune.tools.inputs.huggingface import PREPROCESSING, save_preprocessing
from fxprune.tools.inputs.loaded import MANIFEST, Loaded

_FORMAT = "fxprune.manifest/1"

#: rows of PREPROCESSING that depend on token ids
OF_TOKENS = ("AutoTokenizer", "GenerationConfig")

NO_TOKENIZER = (
    "there is no tokenizer here: that of the original gives the ids of all tokens, and this model has some only, under new ids;"
    " token_ids.json translates them (fxprune.TokenIds.load(…).translate(ids))"
)

#: entries of a report that a manifest repeats
REPEATED = ("model", "pipeline", "before", "after", "machine")


def write_manifest(
    draft: Path,
    loaded: Loaded,
    programs: tuple[Program, Program],
    report: Mapping[str, Any],
    proof: Mapping[str, float],
    removed: Sequence[str] = (),
    vocabulary: TokenIds | None = None,
    classes: Sequence[str] = (),
    tokenizer: str = "",
) -> None:
    """Write the files for other tools beside model.onnx: config and tokenizer of a Hugging Face model, and the manifest of any model.

    `programs` are those before and after, `proof` the largest differences by claim, `classes` the names of a head's classes, `tokenizer`
    the MODEL whose tokenizer is used, if it is another's.
    """
    found = count_layer_sizes(*programs, removed)
    notes: list[str] = []
    if loaded.config is not None:
        config = _renamed(_labelled(loaded.config, classes), vocabulary)
        made = record_sizes(config, found, MANIFEST)
        made.use_cache = False  # the program was captured without one
        made.save_pretrained(draft)
        notes += made.fxprune["untold"]
        notes += _preprocessing(draft, tokenizer or loaded.name, vocabulary, loaded.trusted)
    manifest = {
        "format": _FORMAT,
        "task": loaded.task,
        **{name: report[name] for name in REPEATED},
        **(signature(draft / "model.onnx") if (draft / "model.onnx").exists() else {}),
        "containers": list(container_modules(programs[1])),
        "layers": [asdict(layer) for layer in found.layers],
        "rest": [asdict(size) for size in found.rest],
        "proof": dict(proof),
        "notes": notes,
    }
    manifest["files"] = sorted([MANIFEST, *(file.name for file in draft.iterdir())])
    (draft / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def largest_differences(report: Mapping[str, Any]) -> dict[str, float]:
    """Return the largest differences in a report of `fxprune run`, by claim."""
    told, other = report["tokens"], report["onnx"].get("runtime")
    claims = {
        "pruned against zeroed original": report["verdict"]["relative"],
        "kept tokens against all tokens": told["relative"] if told else None,
        "ONNX Runtime against program": report["onnx"].get("relative"),
        **({f"{other['title']} against program": other["relative"]} if other else {}),
    }
    return {claim: value for claim, value in claims.items() if value is not None}


def _labelled(config: Any, classes: Sequence[str]) -> Any:
    """Return a copy of the config that names the classes."""
    made = copy.deepcopy(config)
    if classes:
        made.id2label = dict(enumerate(classes))
        made.label2id = {name: number for number, name in made.id2label.items()}
    return made


def _renamed(config: Any, vocabulary: TokenIds | None) -> Any:
    """Set the new size of the vocabulary and the new ids of special tokens in the config; a removed token has none."""
    if vocabulary is None:
        return config
    new = {old: number for number, old in enumerate(vocabulary.ids)}
    if getattr(config, "vocab_size", None) == vocabulary.size:
        config.vocab_size = len(vocabulary.ids)
    for name, value in config.to_dict().items():
        if name.endswith("_token_id") and isinstance(value, int):
            setattr(config, name, new.get(value))
        elif name.endswith("_token_id") and isinstance(value, list):
            setattr(config, name, [new[old] for old in value if old in new])
    return config


def _preprocessing(draft: Path, source: str, vocabulary: TokenIds | None, trust: bool) -> list[str]:
    """Write the tokenizer and other preprocessing of a folder, without rows that depend on token ids if these changed; return notes."""
    kinds = [kind for kind in PREPROCESSING if vocabulary is None or kind not in OF_TOKENS]
    notes = list(save_preprocessing(source, draft, kinds, trust))
    return notes if vocabulary is None else [*notes, NO_TOKENIZER]
