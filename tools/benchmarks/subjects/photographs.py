"""Labelled photographs: 1,000 images of ImageNet, one a class (repository EliSchwartz/imagenet-sample-images), fetched by the reader.

Sorted names are the order of the classes. Every fifth is judged on, by its label; the rest are inputs without labels.
"""

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from fxprune.errors import UsageError
from fxprune.tools.benchmarks.subjects.common import (
    Inputs,
    RunFunction,
    pick_output,
    sample_indices,
    task_data,
)
from fxprune.tools.benchmarks.subjects.images import A_BATCH, middle

SAMPLE_IMAGES = "imagenet-sample-images"
CLASSES = 1000
EVERY = 5
MIDDLE = 0.875  # of the shorter side, as in the models' own evaluation


def photographs(rows: int, seed: int) -> list[Inputs]:
    """Photographs that are not judged on, in batches of 16: inputs (at most 16, 3, 224, 224)."""
    files = [file for place, file in enumerate(_files()) if not _is_judged(place)]
    chosen = sample_indices(len(files), rows, seed, "photographs that are not judged on")
    images = torch.stack([_read(files[i]) for i in chosen])
    return [{"inputs": part.contiguous()} for part in images.split(A_BATCH)]


def top1_accuracy(run: RunFunction) -> float:
    """The share of the judged photographs whose class the model predicts."""
    images, labels = _judged()
    answers = [pick_output(run({"inputs": part}), "output_0").argmax(-1) for part in images.split(A_BATCH)]
    return float((torch.cat(answers) == labels).float().mean())


@cache
def _judged() -> tuple[Tensor, Tensor]:
    labels = [place for place in range(CLASSES) if _is_judged(place)]
    return torch.stack([_read(_files()[place]) for place in labels]), torch.tensor(labels)


def _is_judged(place: int) -> bool:
    return place % EVERY == EVERY - 1


@cache
def _files() -> tuple[Path, ...]:
    folder = task_data(f"{SAMPLE_IMAGES}/n01440764_tench.JPEG").parent
    files = tuple(sorted(folder.glob("*.JPEG")))
    if len(files) != CLASSES:
        raise UsageError(f"{folder} must hold {CLASSES} photographs, one a class, and holds {len(files)}")
    return files


@cache
def _read(file: Path) -> Tensor:
    return middle(file, MIDDLE)
