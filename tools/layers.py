"""`fxprune layers`: which layers a task can do without, by fine-tuning each candidate; what each further one costs, and what it saves."""

import argparse
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from fxprune import emit, runtime
from fxprune.bypass import bypass
from fxprune.errors import SelectionError, UsageError
from fxprune.passes.layers import Layers
from fxprune.points import example_point, feeds
from fxprune.program import Program
from fxprune.search import Evaluated, Found
from fxprune.selection import Selection
from fxprune.tasks import Examples, Recipe, TextClassification, encoded
from fxprune.tools import console, curve, data, folder, models, report
from fxprune.tools.console import Stages, Steps

FORMAT = "fxprune.layers/1"
POINT = {"batch": 8, "length": 64}
SECONDS = 6.0

# name: (search, score, what it does); "task" fine-tunes
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
    """What is asked: by which methods, how many layers, how candidates are trained, where evaluations are remembered and run."""

    methods: tuple[str, ...]
    unit: str
    count: int
    exhaustive: int
    recipe: Recipe
    journal: str
    executor: Executor | None = None


@dataclass(frozen=True)
class Seeded:
    """One seed's model, with the two evaluators: the one that searches, and the one whose metric is reported."""

    seed: int
    program: Program
    search: TextClassification
    final: TextClassification


def layers(options: argparse.Namespace) -> int:
    """Search, fine-tune the family, measure it, and write curve, journal and selection."""
    target, stages = Path(options.output), Stages()
    folder.check(target, options.force)
    settings = runtime.Settings(options.threads, options.optimization)
    with stages.stage("reading the data"):
        task = data.read(Path(options.data), options.text, options.label, options.rows)
    seeds = _numbers(options.seeds, "--seeds")
    journal = options.journal or f"{target}.journal.jsonl"
    Path(journal).parent.mkdir(parents=True, exist_ok=True)
    stages.note(f"evaluations are remembered in {journal}: the same command goes on where it stood")
    with _workers(options.workers) as executor:
        setting = Setting(
            _methods(options.by),
            options.unit,
            options.count,
            options.exhaustive,
            _recipe(options),
            journal,
            executor,
        )
        runs = [_run(_seeded(options, setting, task, seed, stages), setting) for seed in seeds]
    first: Seeded = runs[0]["seeded"]
    with stages.stage("measuring"):
        point, family = _measured(first.program, runs[0]["found"][setting.methods[0]].order, settings)
    found = {
        "format": FORMAT,
        "model": options.model,
        "data": Path(options.data).name,
        "metric": first.search.metric.__name__,
        "seeds": seeds,
        "rows": _rows(first),
        "recipe": asdict(setting.recipe),
        "methods": {name: [_told(run, name) for run in runs] for name in setting.methods},
        "exhaustive": [run["exhaustive"] for run in runs if run["exhaustive"]],
        "family": family,
        "point": point,
        "session": asdict(settings),
        "machine": report.machine(),
    }
    _write(found, runs[0]["found"][setting.methods[0]].order, target)
    if options.json:
        console.print_json(found)
        return 0
    console.show(curve.grids(found))
    console.output().print(f"{curve.setting(found)}\nwritten to {target}", markup=False)
    return 0


def _methods(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise UsageError(f"--by must name some of {', '.join(METHODS)}, got {unknown[0]!r}")
    return names


def _numbers(text: str, option: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} must be numbers separated by commas, got {text!r}") from None


def _recipe(options: argparse.Namespace) -> Recipe:
    if options.epochs < 1 or options.batch_size < 1:
        raise UsageError("--epochs and --batch-size must be at least 1")
    return Recipe(
        options.epochs, options.learning_rate, options.batch_size, options.warmup, precision=options.precision
    )


@contextmanager
def _workers(count: int) -> Iterator[Executor | None]:
    """Processes that share the threads of this one; none where one candidate is trained at a time."""
    if count < 1:
        raise UsageError(f"--workers must be at least 1, got {count}")
    if count == 1:
        yield None
        return
    threads = max(1, torch.get_num_threads() // count)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads starve the neighbours
    with ProcessPoolExecutor(
        count, get_context("spawn"), initializer=torch.set_num_threads, initargs=(threads,)
    ) as pool:
        yield pool


def _seeded(
    options: argparse.Namespace, setting: Setting, task: data.Task, seed: int, stages: Stages
) -> Seeded:
    with stages.stage(f"seed {seed}: loading and capturing"):
        loaded = models.classifier(options.model, len(task.classes), seed)
        tokenizer = models.tokenizer(options.tokenizer or options.model)
        program = loaded.capture()
    for note in loaded.notes:
        stages.note(note)
    _check_classes(program, options.output_name, len(task.classes))
    train, dev = (encoded(tokenizer, rows.texts, rows.labels, program) for rows in (task.train, task.dev))
    recipe = Recipe(**{**asdict(setting.recipe), "seed": seed})
    search = TextClassification(train, recipe, output=options.output_name)
    final = TextClassification(train, recipe, output=options.output_name, test=dev)
    return Seeded(seed, program, search, final)


def _check_classes(program: Program, name: str, classes: int) -> None:
    outputs = program.named_outputs()
    if name not in outputs:
        raise UsageError(f"the model has no output {name!r} (--output-name); outputs: {', '.join(outputs)}")
    width = outputs[name].meta["val"].shape[-1]
    if width != classes:
        raise UsageError(f"the data have {classes} classes, and output {name!r} has {width}")


def _run(seeded: Seeded, setting: Setting) -> dict[str, Any]:
    """One seed: each method's order, the metric of each member of its family, and all sets of a size where asked."""
    found = {name: _search(seeded, setting, name) for name in setting.methods}
    orders = {name: [choice.order[:k] for k in range(setting.count + 1)] for name, choice in found.items()}
    final = Evaluated(seeded.program, seeded.final, setting.journal, setting.executor)
    wanted = list(dict.fromkeys(frozenset(order) for family in orders.values() for order in family))
    with Steps(f"seed {seeded.seed}: training what was chosen", len(wanted)) as steps:
        final.observe = steps.one
        scores = dict(zip(wanted, final.scores(wanted), strict=True))
    metrics = {name: [scores[frozenset(order)] for order in family] for name, family in orders.items()}
    return {
        "seeded": seeded,
        "found": found,
        "metrics": metrics,
        "exhaustive": _exhaustive(seeded, setting, found) if setting.exhaustive else None,
    }


def _search(seeded: Seeded, setting: Setting, method: str) -> Found:
    search, score, _ = METHODS[method]
    return _found(seeded, setting, search, score, setting.count, f"seed {seeded.seed}: {method}")


def _found(seeded: Seeded, setting: Setting, search: str, score: str, count: int, title: str) -> Found:
    trains = score == "task"
    with Steps(title) as steps:
        found = Layers(
            count=count,
            unit=setting.unit,
            search=search,
            score="influence" if trains else score,
            journal=setting.journal,
            evaluate=seeded.search if trains else None,
            data=() if trains else _calibration(seeded.search.parts()[0]),
            executor=setting.executor,
            progress=steps.at,
        ).find(seeded.program)
    if found is None:
        raise SelectionError(f"no {setting.unit} of the model can go; `fxprune explain` says why")
    return found


def _calibration(examples: Examples) -> tuple[dict[str, torch.Tensor], ...]:
    """Rows for the scores without training: 64, one by one, for padding would count as well."""
    lengths = examples.lengths
    rows = [examples.rows([i]) for i in range(min(64, len(examples)))]
    if lengths is None:
        return tuple(dict(row.inputs) for row in rows)
    return tuple(
        {name: value[:, : int(lengths[i])] if value.ndim > 1 else value for name, value in row.inputs.items()}
        for i, row in enumerate(rows)
    )


def _exhaustive(seeded: Seeded, setting: Setting, found: Mapping[str, Found]) -> dict[str, Any]:
    """Every set of a size, the best first, and where the methods' choices stand among them."""
    size = setting.exhaustive
    every = _found(seeded, setting, "exhaustive", "task", size, f"seed {seeded.seed}: all sets of {size}")
    ratings = every.ratings[0]
    scores = sorted(ratings.values(), reverse=True)
    by_set = {frozenset(name.split(" + ")): score for name, score in ratings.items()}
    chosen = {name: by_set[frozenset(choice.order[:size])] for name, choice in found.items()}
    return {
        "seed": seeded.seed,
        "size": size,
        "best": " + ".join(every.order),
        "scores": scores,
        "sets": ratings,
        "ranks": {
            name: (1 + sum(other > score for other in scores), score) for name, score in chosen.items()
        },
    }


def _measured(
    program: Program, order: Sequence[str], settings: runtime.Settings
) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Parameters, file size and latency of each member of the family, in one measurement, taking turns."""
    family = [bypass(program, order[:k]) for k in range(len(order) + 1)]
    here = example_point(program)
    point = {axis: POINT.get(axis, size) for axis, size in here.items()}
    with tempfile.TemporaryDirectory() as scratch:
        files = {str(k): Path(scratch) / f"{k}.onnx" for k in range(len(family))}
        emitted = [emit.export(member, files[str(k)]) for k, member in enumerate(family)]
        given = {str(k): feeds(member, point) for k, member in enumerate(family)}
        timed = runtime.measure(files, given, settings, SECONDS)
    return point, [
        {
            "removed": list(order[:k]),
            "parameters": member.parameter_count(),
            "file_bytes": emitted[k].bytes,
            "ms": asdict(timed[str(k)]),
        }
        for k, member in enumerate(family)
    ]


def _rows(seeded: Seeded) -> dict[str, int]:
    searched, held_back = seeded.search.parts()
    return {"searched": len(searched), "held_back": len(held_back), "dev": len(seeded.final.parts()[1])}


def _told(run: Mapping[str, Any], method: str) -> dict[str, Any]:
    found: Found = run["found"][method]
    return {
        "seed": run["seeded"].seed,
        "order": list(found.order),
        "scores": list(found.scores),
        "evaluations": found.evaluations if METHODS[method][1] == "task" else 0,
        "metrics": run["metrics"][method],
    }


def _write(found: Mapping[str, Any], order: Sequence[str], target: Path) -> None:
    with folder.filled(target) as draft:
        text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
        (draft / "layers.json").write_text(text, encoding="utf-8")
        (draft / "layers.md").write_text(curve.markdown(found), encoding="utf-8")
        curve.draw(found, draft)
        for k in range(1, len(order) + 1):
            Selection(removed=tuple(order[:k])).save(draft / f"selection-{k}.json")
