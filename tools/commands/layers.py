"""`fxprune layers`: find the layers that a task needs least, by fine-tuning candidates, with the cost and savings of each removal."""

import argparse
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from fxprune.errors import UsageError
from fxprune.ir import Program, Selection
from fxprune.runtimes import Settings
from fxprune.search import Journal
from fxprune.tools.commands import console, layer_family
from fxprune.tools.commands.bench import settings
from fxprune.tools.commands.console import Stages
from fxprune.tools.commands.layer_family import METHODS, Seeded, SeedResult, Setting
from fxprune.tools.commands.options import RANGES, check_output, recipe_of
from fxprune.tools.inputs import models
from fxprune.tools.inputs.huggingface import check_tokenizer, load_tokenizer
from fxprune.tools.inputs.tables import Columns, LabelledTables, describe_classes, read_task
from fxprune.tools.reports import layers_report, report
from fxprune.tools.reports.layers_report import curve_grids, curve_markdown, describe_search, draw_curve
from fxprune.tools.reports.output_folder import check_path, draft_folder
from fxprune.training import TextClassification
from fxprune.training.fine_tune import encoded

_FORMAT = "fxprune.layers/1"


def layers_command(options: argparse.Namespace) -> int:
    """Search, fine-tune the family, measure it, and write curve, journal and selections."""
    target, stages = check_output(options), Stages()
    seeds, session = _numbers(options.seeds, "--seeds"), settings(options)
    setting = _setting(options)
    models.check_model(options.model)
    check_tokenizer(options.tokenizer or options.model)
    with stages.stage("reading the data"):
        task = read_task(Path(options.data), Columns(options.text, options.label), options.rows)
    stages.note(f"{len(task.classes)} classes; {_class_counts(task)}")
    with _workers(options.workers) as executor:
        setting = replace(setting, executor=executor)
        runs: list[SeedResult] = []
        for seed in seeds:
            seeded = _seeded(options, setting, task, seed, stages)
            if not runs:
                _open_journal(setting.journal, stages)
            runs.append(layer_family.search_family(seeded, setting))
    with stages.stage("measuring"):
        found = _report(options, setting, runs, session)
    _write(found, target)
    if options.json:
        console.print_json(found)
        return 0
    console.print_tables(curve_grids(found))
    console.output().print(f"{describe_search(found)}\nwritten to {target}", markup=False)
    return 0


def _class_counts(task: LabelledTables) -> str:
    parts = {"train": task.train, "dev": task.dev}
    return describe_classes({name: [task.classes[i] for i in part.labels] for name, part in parts.items()})


def _setting(options: argparse.Namespace) -> Setting:
    methods, recipe = _methods(options.by), recipe_of(options)
    journal = options.journal or f"{options.output}.journal.jsonl"
    check_path(Path(journal).parent)
    if Path(journal).parent.is_dir():
        Journal(journal, "", "")  # refuse a file that is none, before any work
    return Setting(methods, options.unit, options.count, options.exhaustive, recipe, journal)


def _open_journal(journal: str, stages: Stages) -> None:
    Path(journal).parent.mkdir(parents=True, exist_ok=True)
    stages.note(f"evaluations are remembered in {journal}: the same command goes on where it stood")


def _methods(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise UsageError(f"--by must name some of {', '.join(METHODS)}, got {unknown[0]!r}")
    return names


def _numbers(text: str, option: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} must be numbers separated by commas, got {text[:80]!r}") from None
    low, high = RANGES["seed"]
    if not low <= min(found) <= max(found) <= high:
        raise UsageError(f"{option} must be numbers from {low} to {high}, got {text[:80]!r}")
    return found


@contextmanager
def _workers(count: int) -> Iterator[Executor | None]:
    """Yield a pool of processes that share the threads of this one; None where one candidate is trained at a time."""
    if count < 1:
        raise UsageError(f"--workers must be at least 1, got {count}")
    if count == 1:
        yield None
        return
    threads = max(1, torch.get_num_threads() // count)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads slow down other processes
    with ProcessPoolExecutor(count, get_context("spawn"), torch.set_num_threads, (threads,)) as pool:
        yield pool


def _seeded(
    options: argparse.Namespace, setting: Setting, task: LabelledTables, seed: int, stages: Stages
) -> Seeded:
    with stages.stage(f"seed {seed}: loading and capturing"):
        loaded = models.classifier(options.model, len(task.classes), seed, options.trust_remote_code)
        tokenizer = load_tokenizer(options.tokenizer or options.model, options.trust_remote_code)
        program = loaded.capture(training=True)
    for note in (*loaded.notes, *program.notes):
        stages.note(note)
    _check_classes(program, options.output_name, len(task.classes))
    train, dev = (encoded(tokenizer, rows.texts, rows.labels, program) for rows in (task.train, task.dev))
    recipe = replace(setting.recipe, seed=seed)
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


def _report(
    options: argparse.Namespace, setting: Setting, runs: Sequence[SeedResult], session: Settings
) -> dict[str, Any]:
    """Return all results in the form of layers.json; the first method's family of the first seed is measured."""
    first = runs[0]
    point, measured = layer_family.measure_family(
        first.seeded.program, first.found[setting.methods[0]].order, session
    )
    return {
        "format": _FORMAT,
        "model": options.model,
        "data": Path(options.data).name,
        "metric": first.seeded.search.metric.__name__,
        "seeds": [run.seeded.seed for run in runs],
        "rows": _rows(first.seeded),
        "recipe": asdict(setting.recipe),
        "methods": {name: [_told(run, name) for run in runs] for name in setting.methods},
        "exhaustive": [run.exhaustive for run in runs if run.exhaustive],
        "family": measured,
        "point": dict(point),
        "session": asdict(session),
        "machine": report.machine(),
    }


def _rows(seeded: Seeded) -> dict[str, int]:
    searched, held_back = seeded.search.parts()
    return {"searched": len(searched), "held_back": len(held_back), "dev": len(seeded.final.parts()[1])}


def _told(run: SeedResult, method: str) -> dict[str, Any]:
    found = run.found[method]
    return {
        "seed": run.seeded.seed,
        "order": list(found.order),
        "scores": list(found.scores),
        "evaluations": found.evaluations if METHODS[method][1] == "task" else 0,
        "metrics": list(run.metrics[method]),
    }


def _write(found: Mapping[str, Any], target: Path) -> None:
    with draft_folder(target) as draft:
        text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
        (draft / "layers.json").write_text(text, encoding="utf-8")
        (draft / "layers.md").write_text(curve_markdown(found), encoding="utf-8")
        (draft / "report.html").write_text(layers_report.render_layers(found), encoding="utf-8")
        draw_curve(found, draft)
        for k, member in enumerate(found["family"][1:], 1):
            Selection(removed=tuple(member["removed"])).save(draft / f"selection-{k}.json")
