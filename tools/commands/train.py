"""`fxprune train`: train a model for a task with a teacher while units are removed; then lower, prove, export and measure it."""

import argparse
import contextlib
import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from fxprune.calibration.processes import is_first_process
from fxprune.cost.count import count_cost
from fxprune.errors import UsageError
from fxprune.export import export_onnx, save_pt2
from fxprune.ir import Program, Selection, example_point
from fxprune.passes import parse_pipeline
from fxprune.pipeline import Context, Pipeline, Result
from fxprune.tools.commands import console
from fxprune.tools.commands.bench import settings
from fxprune.tools.commands.console import Stages, Steps
from fxprune.tools.commands.options import check_output, recipe_of
from fxprune.tools.commands.run import measure_latencies
from fxprune.tools.commands.run_folder import check_run_folder, kept_run, run_folder
from fxprune.tools.inputs import models
from fxprune.tools.inputs.huggingface import check_tokenizer, load_tokenizer
from fxprune.tools.inputs.loaded import Loaded
from fxprune.tools.inputs.tasks import TASKS, PreparedTask, TaskRequest, read_classes, read_columns
from fxprune.tools.reports import (
    report,
    train_report,
)
from fxprune.tools.reports.inventory import inventory
from fxprune.tools.reports.manifest import write_manifest
from fxprune.tools.reports.output_folder import draft_folder, scratch_of
from fxprune.tools.reports.train_report import describe_training, draw_training, train_grids, train_markdown
from fxprune.training.checkpoint_files import check_snapshots
from fxprune.training.fine_tune import fine_tune
from fxprune.training.loop import Checkpoints, Hooks, RunState
from fxprune.training.teacher_cache import TeacherCache

_FORMAT = "fxprune.train/1"
NO_TEACHER = "labels"

#: Options that a run must have in common with the one whose folder of checkpoints it resumes.
_SAME = ("model", "task", "data", "pipeline", "teacher", "teacher_epochs", "epochs", "learning_rate", "batch_size", "warmup",
        "weight_decay", "clip", "precision", "seed", "rows", "length", "text", "second", "label", "columns", "metric",
        "trust_remote_code")  # fmt: skip


@dataclass(frozen=True)
class _Job:
    """A task that was read, and the program to train for it."""

    loaded: Loaded
    program: Program
    lesson: PreparedTask
    classes: tuple[str, ...]


def train_command(options: argparse.Namespace) -> int:
    """Train, prune on the way, and write the results to a folder."""
    first = is_first_process()
    target, stages = check_output(options) if first else Path(options.output), Stages(silent=not first)
    steps = _checked(options)
    job = _job(options, stages)
    kept = _run_of(options)[0]
    with kept_run(*_run_of(options)) if first else contextlib.nullcontext():
        teacher, taught_by = _teacher(options, job, kept, stages)
        with stages.stage("training"):
            result = steps.run(job.program, _context(options, job, teacher, kept, stages))
    if not first:
        return 0
    with stages.stage("proving"):
        result.proof.require()
    found = _written(options, job, result, {"teacher": taught_by}, stages)
    if options.json:
        console.print_json(found)
        return 0
    console.print_tables(train_grids(found))
    console.output().print(f"{describe_training(found)}\nwritten to {target}", markup=False)
    return 0


def _checked(options: argparse.Namespace) -> Pipeline:
    """Return the pipeline; UsageError for whatever can be known to be wrong before any work."""
    steps = _pipeline(options.pipeline)
    recipe_of(options, options.teacher_epochs, options.seed)
    settings(options)
    kept, _, restart = _run_of(options)
    if is_first_process():
        check_run_folder(*_run_of(options))
        if not restart:
            check_snapshots(kept)
    models.check_model(options.model)
    if options.teacher not in {"", NO_TEACHER}:
        models.check_model(options.teacher)
    check_tokenizer(options.tokenizer or options.model)
    return steps


def _pipeline(text: str) -> Pipeline:
    """Parse the pipeline; UsageError where no pass trains."""
    steps = parse_pipeline(text)
    if not steps.uses("task"):
        raise UsageError(
            f"-p {text!r} has no pass that trains; it needs one, as in grain(density=0.1): `fxprune run` runs the others alone"
        )
    return steps


def _context(
    options: argparse.Namespace, job: _Job, teacher: nn.Module | None, kept: Path, stages: Stages
) -> Context:
    return Context(
        task=job.lesson,
        recipe=recipe_of(options, seed=options.seed),
        teacher=teacher,
        settings=settings(options),
        point=train_report.POINT,
        seed=options.seed,
        observe=stages.observe,
        checkpoints=Checkpoints(kept, options.save),
        lowering=options.lowering,
        teacher_outputs=TeacherCache(options.recall * 2**20),
    )


def _job(options: argparse.Namespace, stages: Stages) -> _Job:
    row = TASKS[options.task]
    metric = options.metric or row.metrics[0]
    if metric not in row.metrics:
        raise UsageError(f"--metric {metric}: {options.task} has {', '.join(row.metrics)}")
    with stages.stage("reading the data"):
        tables = read_columns(options)
        classes, counts = read_classes(options.task, tables)
    if counts:
        stages.note(f"{len(classes)} classes; {counts}")
    with stages.stage("loading and capturing the model"):
        loaded = models.for_task(
            options.model, options.task, len(classes), options.seed, options.trust_remote_code
        )
        program = loaded.capture(training=True)
    for note in (*loaded.notes, *program.notes):
        stages.note(note)
    with stages.stage("encoding the data"):
        tokenizer = load_tokenizer(options.tokenizer or options.model, options.trust_remote_code)
        asked = TaskRequest(tables, classes, tokenizer, program, options.length or row.length, metric)
        lesson = row.lesson(asked)
    _check_outputs(program, lesson, len(classes))
    return _Job(loaded, program, lesson, classes)


def _check_outputs(program: Program, lesson: PreparedTask, classes: int) -> None:
    outputs = program.named_outputs()
    for name in lesson.outputs:
        if name not in outputs:
            raise UsageError(
                f"the model has no output {name!r}, which the task needs; outputs: {', '.join(outputs)}"
            )
    width = outputs[lesson.outputs[0]].meta["val"].shape[-1]
    if classes and width != classes:
        raise UsageError(f"the data have {classes} classes, and output {lesson.outputs[0]!r} has {width}")


def _run_of(options: argparse.Namespace) -> tuple[Path, dict[str, Any], bool]:
    """Return the folder of checkpoints, the options that a run must share with the one that wrote them, and whether it begins anew."""
    return run_folder(options), {name: getattr(options, name) for name in _SAME}, options.restart


def _teacher(
    options: argparse.Namespace, job: _Job, kept: Path, stages: Stages
) -> tuple[nn.Module | None, dict[str, Any]]:
    """Return the teacher and its metrics: a model of the user, or the model itself, fine-tuned first; None for labels alone."""
    if options.teacher == NO_TEACHER:
        return None, {"model": NO_TEACHER}
    if options.teacher:
        with stages.stage("loading the teacher"):
            loaded = models.for_task(
                options.teacher, options.task, len(job.classes), trust=options.trust_remote_code
            )
            module: nn.Module = loaded.capture().module().eval()
    else:
        recipe = recipe_of(options, options.teacher_epochs, options.seed)
        with Steps("teacher", silent=stages.silent) as steps:
            module = fine_tune(job.program, job.lesson.examples, recipe, job.lesson.outputs, Hooks(after=partial(_show, steps)),
                               Checkpoints(kept / "teacher", options.save))  # fmt: skip
    with stages.stage("judging the teacher"):
        judged = job.lesson.scores(module)
    return module, {
        "model": options.teacher or options.model,
        "epochs": 0 if options.teacher else options.teacher_epochs,
        **judged,
    }


def _show(steps: Steps, moment: RunState) -> None:
    """Show the state of fine-tuning in its progress bar."""
    steps.reached(moment.step, moment.steps, f"loss {moment.loss:.3f}, ")


def _written(
    options: argparse.Namespace, job: _Job, result: Result, found: dict[str, Any], stages: Stages
) -> dict[str, Any]:
    """Evaluate, export and measure; write the results, and return them in the form of train.json."""
    slim, session = result.program, settings(options)
    with stages.stage("judging what is left"):
        judged = job.lesson.scores(slim.module())
    with draft_folder(Path(options.output)) as draft:
        with stages.stage("writing and checking model.onnx"):
            emitted = export_onnx(slim, draft / "model.onnx", settings=session)
            save_pt2(slim, draft / "model.pt2")
        before = export_onnx(job.program, scratch_of(draft) / "before.onnx", settings=session)
        files = {"before": before.path, "after": draft / "model.onnx"}
        found = {
            "format": _FORMAT,
            "model": options.model,
            "task": options.task,
            "data": Path(options.data).name,
            "pipeline": options.pipeline,
            "rows": list(job.lesson.rows),
            "recipe": asdict(recipe_of(options, seed=options.seed)),
            **found,
            "student": judged,
            "lower_is_better": TASKS[options.task].lower_is_better,
            **train_report.describe_run(result),
            **inventory(job.program, slim, Selection()),
            "example": example_point(job.program),
            "before": {**asdict(count_cost(job.program)), "file_bytes": before.bytes},
            "after": {**asdict(count_cost(slim)), "file_bytes": emitted.bytes},
            "latency": measure_latencies(job.program, slim, files, (), session, stages),
            "session": asdict(session),
            "notes": [*job.loaded.notes, *job.program.notes],
            "machine": report.machine(),
        }
        found["proved"] |= {"onnx": emitted.relative}
        text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
        (draft / "train.json").write_text(text, encoding="utf-8")
        (draft / "train.md").write_text(train_markdown(found), encoding="utf-8")
        (draft / "report.html").write_text(train_report.render_training(found), encoding="utf-8")
        draw_training(found, draft)
        programs, tokenizer = (job.program, slim), options.tokenizer or options.model
        write_manifest(
            draft, job.loaded, programs, found, found["proved"], classes=job.classes, tokenizer=tokenizer
        )
    return found
