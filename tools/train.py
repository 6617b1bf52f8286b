"""`fxprune train`: a model learns a task from a teacher while it loses units; what is left is lowered, proven, emitted and measured."""

import argparse
import json
import shutil
import tempfile
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from fxprune import cost, emit, runtime
from fxprune.budget import Clock, default_cache
from fxprune.errors import UsageError, VerifyError
from fxprune.loop import Checkpoints, Hooks, Moment
from fxprune.lowering import Lowered, lower
from fxprune.passes import pipeline
from fxprune.pipeline import Pipeline, Result, Training
from fxprune.points import example_point
from fxprune.program import Program
from fxprune.ragged import cheapest
from fxprune.recall import Recall
from fxprune.tasks import fine_tune
from fxprune.teach import Taught, teach
from fxprune.tools import console, folder, lessons, models, report, train_page
from fxprune.tools.bench import settings
from fxprune.tools.console import Stages, Steps
from fxprune.tools.lessons import TASKS, Asked, Lesson
from fxprune.tools.options import recipe_of
from fxprune.tools.run import latencies
from fxprune.verify import BARS, difference, run, verify

FORMAT = "fxprune.train/1"
NO_TEACHER = "labels"

#: What a run in a folder of checkpoints must have in common with the one that goes on there.
SAME = ("model", "task", "data", "pipeline", "teacher", "teacher_epochs", "epochs", "learning_rate", "batch_size", "warmup",
        "weight_decay", "clip", "precision", "seed", "rows", "length", "text", "second", "label", "columns", "metric")  # fmt: skip


@dataclass(frozen=True)
class Parts:
    """A pipeline in three parts: what prunes before training, the pass that trains, and what prunes what is left."""

    before: Pipeline
    method: Any
    after: Pipeline


@dataclass(frozen=True)
class Job:
    """A task that was read, and the program that learns it."""

    loaded: models.Loaded
    program: Program
    lesson: Lesson
    classes: int


def train(options: argparse.Namespace) -> int:
    """Train, prune on the way, and write the results to a folder."""
    target, stages = Path(options.output), Stages()
    folder.check(target, options.force)
    parts, recipe, session = split(options.pipeline), recipe_of(options, seed=options.seed), settings(options)
    job = _job(options, stages)
    kept = _kept(options)
    teacher, taught_by = _teacher(options, job, kept, stages)
    start = parts.before.run(job.program)
    recall = Recall(options.recall * 2**20)
    with Steps(f"{parts.method}") as steps:
        taught = teach(
            start.program, parts.method, job.lesson.train, recipe, teacher, outputs=job.lesson.outputs,
            hooks=Hooks(after=partial(_said, steps)), checkpoints=Checkpoints(kept / "student", options.save), recall=recall,
            judge=job.lesson.judge,
        )  # fmt: skip
    how = _how(options, taught, session, stages)
    with stages.stage("lowering"):
        lowered = lower(taught.gated, taught.module, how)
        done = parts.after.run(lowered.program)
    found = _written(options, job, Outcome(parts, start, taught, lowered, done, how, taught_by), stages)
    if options.json:
        console.print_json(found)
        return 0
    console.show(train_page.grids(found))
    console.output().print(f"{train_page.setting(found)}\nwritten to {target}", markup=False)
    return 0


def split(text: str) -> Parts:
    """The pipeline around its one pass that trains."""
    steps = pipeline(text).passes
    places = [i for i, each in enumerate(steps) if isinstance(each, Training)]
    if len(places) != 1:
        raise UsageError(
            f"-p {text!r} has {len(places)} passes that train; it needs one, as in grain(density=0.1): `fxprune run` runs the others alone"
        )
    (place,) = places
    return Parts(Pipeline(steps[:place]), steps[place], Pipeline(steps[place + 1 :]))


def _job(options: argparse.Namespace, stages: Stages) -> Job:
    row = TASKS[options.task]
    metric = options.metric or row.metrics[0]
    if metric not in row.metrics:
        raise UsageError(f"--metric {metric}: {options.task} has {', '.join(row.metrics)}")
    with stages.stage("reading the data"):
        tables = lessons.read(options)
        classes = row.classes(tables)
    with stages.stage("loading and capturing the model"):
        loaded = models.for_task(options.model, options.task, len(classes), options.seed)
        program = loaded.capture(training=True)
    for note in loaded.notes:
        stages.note(note)
    with stages.stage("encoding the data"):
        tokenizer = models.tokenizer(options.tokenizer or options.model)
        asked = Asked(tables, classes, tokenizer, program, options.length or row.length, metric)
        lesson = row.lesson(asked)
    _check_outputs(program, lesson, len(classes))
    return Job(loaded, program, lesson, len(classes))


def _check_outputs(program: Program, lesson: Lesson, classes: int) -> None:
    outputs = program.named_outputs()
    for name in lesson.outputs:
        if name not in outputs:
            raise UsageError(
                f"the model has no output {name!r}, which the task needs; outputs: {', '.join(outputs)}"
            )
    width = outputs[lesson.outputs[0]].meta["val"].shape[-1]
    if classes and width != classes:
        raise UsageError(f"the data have {classes} classes, and output {lesson.outputs[0]!r} has {width}")


def _kept(options: argparse.Namespace) -> Path:
    """The folder of checkpoints, which must be of the same run; `--restart` empties it."""
    kept = Path(options.run or f"{options.output}.run")
    told = {name: getattr(options, name) for name in SAME}
    path = kept / "run.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() and not options.restart else told
    other = next((name for name in SAME if before.get(name) != told[name]), None)
    if other:
        raise UsageError(
            f"{kept} holds a run with {other}={before.get(other)!r}, this one has {told[other]!r}; "
            "--restart begins anew there, --run names another folder"
        )
    if options.restart:
        for name in ("teacher", "student"):
            shutil.rmtree(kept / name, ignore_errors=True)
    kept.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return kept


def _teacher(
    options: argparse.Namespace, job: Job, kept: Path, stages: Stages
) -> tuple[nn.Module | None, dict[str, Any]]:
    """Who teaches, and how good it is: a model of the user's, or the model itself once it was fine-tuned."""
    if options.teacher == NO_TEACHER:
        return None, {"model": NO_TEACHER}
    if options.teacher:
        with stages.stage("loading the teacher"):
            loaded = models.for_task(options.teacher, options.task, job.classes)
            module: nn.Module = loaded.capture().module().eval()
    else:
        recipe = recipe_of(options, options.teacher_epochs, options.seed)
        with Steps("teacher") as steps:
            module = fine_tune(job.program, job.lesson.train, recipe, job.lesson.outputs, Hooks(after=partial(_said, steps)),
                               Checkpoints(kept / "teacher", options.save))  # fmt: skip
    with stages.stage("judging the teacher"):
        judged = job.lesson.judge(module)
    return module, {
        "model": options.teacher or options.model,
        "epochs": 0 if options.teacher else options.teacher_epochs,
        **judged,
    }


def _said(steps: Steps, moment: Moment) -> None:
    """Where a run stands, in the words of the bar."""
    figures: dict[str, float] = {}
    for entry in moment.history:
        figures |= {name: value for name, value in entry.items() if name not in ("step", "loss")}
    figures = {"loss": moment.loss, **figures}
    told = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
    steps.reached(moment.step, moment.steps, f"{told}, ")


def _how(
    options: argparse.Namespace, taught: Taught, session: runtime.Settings, stages: Stages
) -> dict[str, str] | str:
    """How units of unequal sizes are lowered: as asked, or as measured."""
    if options.lowering != "measured":
        return str(options.lowering)
    with stages.stage("measuring how uneven heads run fastest"):
        point = {
            axis: train_page.POINT.get(axis, size) for axis, size in example_point(taught.gated.base).items()
        }
        return cheapest(taught.gated, taught.module, Clock(session, default_cache()), point)


@dataclass(frozen=True, eq=False)
class Outcome:
    """All that happened between the model and the program that is written."""

    parts: Parts
    start: Result
    taught: Taught
    lowered: Lowered
    done: Result
    how: dict[str, str] | str
    teacher: dict[str, Any]


def _proved(job: Job, outcome: Outcome) -> dict[str, float]:
    """The largest relative difference of each step that claims equality; VerifyError where one is too large."""
    lowered, taught = outcome.lowered.program, outcome.taught
    expected = run(taught.gated.program.replace(graph=taught.module))
    relative = difference(run(lowered, taught.gated.program), expected)
    bar = max(BARS.get(value.dtype, 0.0) for value in expected)
    if not relative <= bar:
        raise VerifyError(
            f"what was lowered differs from the gated model by {relative:.1e}; the bar is {bar:.0e}"
        )
    start, done = outcome.start, outcome.done
    before = verify(job.program, start.program, start.selection, start.refitted)
    after = verify(lowered, done.program, done.selection, done.refitted)
    return {"before training": before.relative, "lowered": relative, "after": after.relative}


def _written(options: argparse.Namespace, job: Job, outcome: Outcome, stages: Stages) -> dict[str, Any]:
    """Emit, judge and measure; everything that was found, as train.json holds it."""
    slim, session = outcome.done.program, settings(options)
    with stages.stage("proving"):
        proved = _proved(job, outcome)
    with stages.stage("judging what is left"):
        judged = job.lesson.judge(slim.graph)
    with folder.filled(Path(options.output)) as draft, tempfile.TemporaryDirectory() as scratch:
        with stages.stage("writing and checking model.onnx"):
            emitted = emit.export(slim, draft / "model.onnx")
            emit.save(slim, draft / "model.pt2")
        before = emit.export(job.program, Path(scratch) / "before.onnx")
        files = {"before": before.path, "after": draft / "model.onnx"}
        found = {
            "format": FORMAT,
            "model": options.model,
            "task": options.task,
            "data": Path(options.data).name,
            "pipeline": options.pipeline,
            "rows": list(job.lesson.rows),
            "recipe": asdict(recipe_of(options, seed=options.seed)),
            "teacher": outcome.teacher,
            "student": judged,
            "lower_is_better": TASKS[options.task].lower_is_better,
            "density": outcome.taught.pruner.density,
            "history": outcome.taught.moment.history,
            "steps": outcome.taught.moment.steps,
            "left": train_page.left(outcome.taught.pruner),
            "lowering": outcome.how,
            "padded": dict(outcome.lowered.padded),
            "example": example_point(job.program),
            "before": {**asdict(cost.cost(job.program)), "file_bytes": before.bytes},
            "after": {**asdict(cost.cost(slim)), "file_bytes": emitted.bytes},
            "latency": latencies(job.program, slim, files, (), session, stages),
            "proved": {**proved, "onnx": emitted.relative},
            "session": asdict(session),
            "notes": list(job.loaded.notes),
            "machine": report.machine(),
        }
        text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
        (draft / "train.json").write_text(text, encoding="utf-8")
        (draft / "train.md").write_text(train_page.markdown(found), encoding="utf-8")
        train_page.draw(found, draft)
    return found
