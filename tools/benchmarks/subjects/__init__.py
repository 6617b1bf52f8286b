"""Subjects of the speed benchmark: models with real weights, inputs for calibration, and a task metric each.

    minilm        all-MiniLM-L6-v2: Spearman's rank correlation on STS-benchmark
    smollm2       SmolLM2-135M-Instruct: perplexity on WikiText-2
    efficientnet  EfficientNet-Lite0: agreement with the unpruned model on crops of photographs
    photographs   EfficientNet-Lite0: top-1 accuracy on labelled photographs

Task data are read from $FXPRUNE_DATA, else from ../shared/data; nothing is downloaded.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import nn

from fxprune.errors import UsageError
from fxprune.tools.benchmarks.subjects.common import Inputs, RunFunction
from fxprune.tools.benchmarks.subjects.images import crops, efficientnet, top1_agreement
from fxprune.tools.benchmarks.subjects.photographs import photographs, top1_accuracy
from fxprune.tools.benchmarks.subjects.texts import (
    SentenceEncoder,
    captions,
    encyclopaedia,
    minilm,
    sentences,
    similarity,
    smollm2,
    token_chunks,
    wikitext_perplexity,
)
from fxprune.tools.inputs.loaded import Loaded


def _itself(model: nn.Module) -> nn.Module:
    return model


@dataclass(frozen=True)
class Subject:
    """Model to prune and evaluate: `sampler` gives inputs for (rows, seed), `judge` the metric of a function on batches.

    `load` gives a fresh original with example inputs and dynamic shapes (UsageError where a package is missing), and `deployed` makes of
    it the module that is captured and exported. `kinds` are samplers of inputs unlike those of the use, by name.
    """

    name: str
    load: Callable[[], Loaded]
    sampler: Callable[[int, int], list[Inputs]]
    judge: Callable[[RunFunction], float]
    deployed: Callable[[nn.Module], nn.Module] = _itself
    kinds: Mapping[str, Callable[[int, int], list[Inputs]]] = field(default_factory=dict)

    def calibration(self, rows: int, seed: int = 0) -> list[Inputs]:
        """Unlabelled inputs of so many rows in batches without padding, disjoint from the metric's; UsageError if there are fewer."""
        return self.sampler(rows, seed)

    def metric(self, run: RunFunction) -> float:
        """The metric of the model behind `run`, which returns outputs as an object, a mapping, a tuple, a tensor or arrays."""
        with torch.no_grad():
            return self.judge(run)


SUBJECTS: Mapping[str, Subject] = MappingProxyType(
    {
        "minilm": Subject(
            "minilm",
            minilm,
            sentences,
            similarity,
            SentenceEncoder,
            {"narrow": captions, "foreign": encyclopaedia},
        ),
        "smollm2": Subject("smollm2", smollm2, token_chunks, wikitext_perplexity),
        "efficientnet": Subject("efficientnet", efficientnet, crops, top1_agreement),
        "photographs": Subject("photographs", efficientnet, photographs, top1_accuracy),
    }
)


def subject(name: str) -> Subject:
    """The subject of a name; UsageError, with all names, where there is none."""
    if name not in SUBJECTS:
        raise UsageError(f"no subject {name!r}; subjects: {', '.join(SUBJECTS)}")
    return SUBJECTS[name]
