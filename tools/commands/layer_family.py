"""Layer families: programs without some layers, chosen by several methods, fine-tuned and scored, sized and timed."""

import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from fxprune.calibration import Calibration
from fxprune.errors import SelectionError
from fxprune.export import export_onnx
from fxprune.ir import Point, Program, feeds, point_with
from fxprune.passes import Layers
from fxprune.pipeline import Context
from fxprune.rewrite.bypass import bypass
from fxprune.runtimes import Settings, measure
from fxprune.search.layer_scores import EvaluationRater
from fxprune.search.layer_search import LayerSearchResult
from fxprune.tools.commands.console import Steps
from fxprune.training import TextClassification
from fxprune.training.fine_tune import Examples, Recipe

_POINT = {"batch": 8, "length": 64}
_SECONDS = 6.0

# name: (search, score, what it does); the score "task" fine-tunes
METHODS: Mapping[str, tuple[str, str, str]] = MappingProxyType(
    {
        "greedy": ("greedy", "task", "fine-tune without each, remove the best, again given what is gone"),
        "oneshot": ("oneshot", "task", "fine-tune without each alone, remove those that are missed least"),
        "influence": ("greedy", "influence", "no training: remove what turns its input the least"),
        "loss": ("greedy", "loss", "no training: remove what moves the outputs the least"),
        "last": ("greedy", "last", "remove the last ones"),
    }
)


@dataclass(frozen=True)
class Setting:
    """Settings of a search: methods, kind and number of layers, training of candidates, and where evaluations are recorded and run."""

    methods: tuple[str, ...]
    unit: str
    count: int
    exhaustive: int
    recipe: Recipe
    journal: str
    executor: Executor | None = None


@dataclass(frozen=True)
class Seeded:
    """The model of one seed, with two evaluators: one for the search, and one whose metric is reported."""

    seed: int
    program: Program
    search: TextClassification
    final: TextClassification


@dataclass(frozen=True)
class SeedResult:
    """Results of one seed: each method's search, the metric of each member of its family, and all sets of a size where asked for."""

    seeded: Seeded
    found: Mapping[str, LayerSearchResult]
    metrics: Mapping[str, Sequence[float]]
    exhaustive: Mapping[str, Any] | None


def search_family(seeded: Seeded, setting: Setting) -> SeedResult:
    """Search by each method, and fine-tune every member of the families found."""
    found = {name: _search(seeded, setting, name) for name in setting.methods}
    orders = {name: [choice.order[:k] for k in range(setting.count + 1)] for name, choice in found.items()}
    final = EvaluationRater(seeded.program, seeded.final, setting.journal, setting.executor)
    wanted = list(dict.fromkeys(frozenset(order) for family in orders.values() for order in family))
    with Steps(f"seed {seeded.seed}: training what was chosen", len(wanted)) as steps:
        final.observe = steps.one
        scores = dict(zip(wanted, final.scores(wanted), strict=True))
    metrics = {name: [scores[frozenset(order)] for order in family] for name, family in orders.items()}
    exhaustive = _exhaustive(seeded, setting, found) if setting.exhaustive else None
    return SeedResult(seeded, found, metrics, exhaustive)


def _search(seeded: Seeded, setting: Setting, method: str) -> LayerSearchResult:
    search, score, _ = METHODS[method]
    return _found(seeded, setting, search, score, setting.count, f"seed {seeded.seed}: {method}")


def _found(
    seeded: Seeded, setting: Setting, search: str, score: str, count: int, title: str
) -> LayerSearchResult:
    trains = score == "task"
    own = "influence" if trains else score
    each = Layers(count=count, unit=setting.unit, search=search, score=own, journal=setting.journal)
    with Steps(title) as steps:
        found = each.find(seeded.program, _context(seeded, setting, trains, steps))
    if found is None:
        raise SelectionError(f"no {setting.unit} of the model can go; `fxprune explain` says why")
    return found


def _context(seeded: Seeded, setting: Setting, trains: bool, steps: Steps) -> Context:
    if trains:
        return Context(evaluate=seeded.search, executor=setting.executor, observe=steps.take)
    rows = _calibration(seeded.search.parts()[0])
    return Context(data=Calibration(rows), executor=setting.executor, observe=steps.take)


def _calibration(examples: Examples) -> tuple[dict[str, torch.Tensor], ...]:
    """Return up to 64 rows for the scores without training, one per batch, because padding would count as well."""
    lengths = examples.lengths
    rows = [examples.rows([i]) for i in range(min(64, len(examples)))]
    if lengths is None or examples.fixed:
        return tuple(dict(row.inputs) for row in rows)
    return tuple(
        {name: value[:, : int(lengths[i])] if value.ndim > 1 else value for name, value in row.inputs.items()}
        for i, row in enumerate(rows)
    )


def _exhaustive(seeded: Seeded, setting: Setting, found: Mapping[str, LayerSearchResult]) -> dict[str, Any]:
    """Rate every set of a size; return the scores, best first, and the ranks of the methods' choices among them."""
    size = setting.exhaustive
    every = _found(seeded, setting, "exhaustive", "task", size, f"seed {seeded.seed}: all sets of {size}")
    ratings = every.ratings[0]
    scores = sorted(ratings.values(), reverse=True)
    by_set = {frozenset(name.split(" + ")): score for name, score in ratings.items()}
    chosen = {name: by_set[frozenset(choice.order[:size])] for name, choice in found.items()}
    ranks = {name: (1 + sum(other > score for other in scores), score) for name, score in chosen.items()}
    return {
        "seed": seeded.seed,
        "size": size,
        "best": " + ".join(every.order),
        "scores": scores,
        "sets": ratings,
        "ranks": ranks,
    }


def measure_family(
    program: Program, order: Sequence[str], settings: Settings
) -> tuple[Point, list[dict[str, Any]]]:
    """Measure parameters, file size and latency of each member of the family, at one point, taking turns."""
    family = [bypass(program, order[:k]) for k in range(len(order) + 1)]
    point = point_with(program, **_POINT)
    with tempfile.TemporaryDirectory() as scratch:
        written = partial(export_onnx, settings=settings)
        emitted = [written(member, Path(scratch) / f"{k}.onnx") for k, member in enumerate(family)]
        files = {str(k): each.path for k, each in enumerate(emitted)}
        given = {str(k): feeds(member, point) for k, member in enumerate(family)}
        timed = measure(files, given, settings, _SECONDS)
    return point, [
        {
            "removed": list(order[:k]),
            "parameters": member.parameter_count(),
            "file_bytes": emitted[k].bytes,
            "ms": asdict(timed[str(k)]),
        }
        for k, member in enumerate(family)
    ]
