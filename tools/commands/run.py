"""`fxprune run` and `fxprune apply`: capture, prune, prove, emit, measure, report."""

import argparse
import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fxprune.analysis import analyze
from fxprune.calibration.processes import is_first_process, process_count
from fxprune.cost.count import count_cost, count_flops
from fxprune.errors import ExportError, UsageError
from fxprune.export import Emitted, export_onnx, save_pt2
from fxprune.export.agreement import compare
from fxprune.export.culprit import original_fault
from fxprune.export.onnx import plain_export, warm_up
from fxprune.export.random_values import fixed_draws
from fxprune.files import about
from fxprune.ir import Feeds, Point, Program, Selection, example_point, feeds
from fxprune.pipeline import Context, Pipeline, Result
from fxprune.rewrite.apply import apply as remove
from fxprune.runtimes import Settings, measure, open_session
from fxprune.runtimes.base import DEFAULT
from fxprune.runtimes.onnxruntime import run_session
from fxprune.runtimes.registry import describe_settings, prepare
from fxprune.tools.commands import (
    console,
)
from fxprune.tools.commands import (
    tokens_option as tokens,
)
from fxprune.tools.commands.bench import settings
from fxprune.tools.commands.budget_option import (
    budget_points,
    budgeted_pipeline,
    check_data_options,
    check_training_options,
    read_calibration_option,
    run_of,
)
from fxprune.tools.commands.checkpoint_option import check_checkpoint_option, write_checkpoint_folder
from fxprune.tools.commands.console import Stages
from fxprune.tools.commands.options import check_output
from fxprune.tools.commands.quantize_option import check_quantize_option, write_quantized
from fxprune.tools.commands.run_folder import kept_run, remove_checkpoints, run_folder
from fxprune.tools.commands.tokens_option import TOKENS_FILE, keep_tokens_asked, prove_tokens, tokens_request
from fxprune.tools.failures import FAILED_CLAIM
from fxprune.tools.inputs import models
from fxprune.tools.inputs.loaded import Loaded
from fxprune.tools.inputs.metrics import own_figures, own_metric
from fxprune.tools.reports import (
    report,
)
from fxprune.tools.reports.inventory import inventory
from fxprune.tools.reports.island_files import write_islands
from fxprune.tools.reports.manifest import largest_differences, write_manifest
from fxprune.tools.reports.output_folder import draft_folder, scratch_of
from fxprune.tools.reports.report_html import render_report
from fxprune.tools.reports.run_report import report_grids, report_markdown
from fxprune.training.loop import Checkpoints

# Short, long, and batched: on a short input alone, overhead hides all gains.
_POINTS = ({"batch": 1, "length": 16}, {"batch": 1, "length": 128}, {"batch": 8, "length": 64})
_SECONDS_A_POINT = 3.0
_OPSET = 18  # in which torch's own export of a model that we could not write is tried

Decide = Callable[[Program, Loaded, Stages], Result]


@dataclass(frozen=True)
class _Job:
    """A job on a model: the pipeline as text and as a function, points of its budgets, tokens to keep, outputs that may shrink."""

    text: str
    decide: Decide
    points: Callable[[Program], list[Point]]
    settings: Settings
    tokens: tokens.TokensRequest | None
    free_outputs: tuple[str, ...]
    options: argparse.Namespace


def run_command(options: argparse.Namespace) -> int:
    """Prune a model with a pipeline and write the results to a folder."""
    if not (options.pipeline or options.tokens or options.target or options.recover):
        raise UsageError(
            "nothing to do: give a pipeline (-p TEXT), a budget (--target latency=0.5), or tokens to keep (--tokens FILE)"
        )
    steps = budgeted_pipeline(options)
    steps.check(Context(data=options.calibration))
    check_quantize_option(options)
    if options.calibration and not (steps.uses("data") or options.quantize):
        raise UsageError(f"--calibration {options.calibration}: no pass of {str(steps)!r} uses data")
    check_data_options(options)
    trains = check_training_options(options, steps)

    kept: list[Path] = []

    def decide(program: Program, loaded: Loaded, stages: Stages) -> Result:
        data = read_calibration_option(options, program, loaded)
        context = Context(
            data=data,
            settings=settings(options),
            observe=stages.observe,
            device=options.device,
            metric=own_metric(options.metric) if options.metric else None,
            together=process_count() > 1,
        )
        long = program.is_mapped() and data is not None and process_count() == 1
        if not (trains or long):
            return steps.run(program, context)
        kept.append(run_folder(options))
        return _resumable(options, steps, program, context)

    def points(program: Program) -> list[Point]:
        return budget_points(steps, program, settings(options))

    code = _deliver(options, _job(options, str(steps), decide, points))
    for folder in kept if is_first_process() else ():
        remove_checkpoints(folder, record=True)  # the results are written
    return code


def _resumable(options: argparse.Namespace, steps: Pipeline, program: Program, context: Context) -> Result:
    """Run a pipeline that trains, or is long since the program lies on disk, its checkpoints in the folder of the run."""
    own = kept_run(*run_of(options)) if is_first_process() else contextlib.nullcontext()
    with own:
        return steps.run(
            program, replace(context, checkpoints=Checkpoints(run_folder(options), options.save))
        )


def apply_command(options: argparse.Namespace) -> int:
    """Apply a saved selection to a model and write the results to a folder."""
    selection = Selection.load(options.selection)

    def decide(program: Program, _loaded: Loaded, _stages: Stages) -> Result:
        with about(options.selection):
            return Result(program, remove(program, selection), selection)

    return _deliver(options, _job(options, f"apply {Path(options.selection).name}", decide))


def _job(
    options: argparse.Namespace,
    text: str,
    decide: Decide,
    points: Callable[[Program], list[Point]] = lambda program: [],
) -> _Job:
    return _Job(
        text, decide, points, settings(options), tokens_request(options), tuple(options.free_output), options
    )


def _deliver(options: argparse.Namespace, job: _Job) -> int:
    first = is_first_process()
    target, stages = check_output(options) if first else Path(options.output), Stages(silent=not first)
    with stages.stage("loading the model"):
        loaded = models.load(options.model, options.trust_remote_code)
    if job.options.checkpoint:
        check_checkpoint_option(loaded)
    for note in loaded.notes:
        stages.note(note)
    with stages.stage("starting the exporters"):
        warm_up()
    data = _work(loaded, job, target, stages)
    if not data:
        return 0
    noop = any(step["note"] for step in data["steps"]) and not options.allow_noop
    code = FAILED_CLAIM if noop or "failed" in data["onnx"] else 0
    if options.json:
        console.print_json(data)
        return code
    console.print_tables(report_grids(data))
    console.output().print(
        f"written to {target}: {', '.join(sorted(file.name for file in target.iterdir()))}", markup=False
    )
    return code


def _work(loaded: Loaded, job: _Job, target: Path, stages: Stages) -> dict[str, Any]:
    """Do the job, and return the report; in other processes than the first only what these train together, and nothing is returned."""
    with stages.stage("capturing"):
        program = loaded.capture(job.free_outputs, within=job.options.within or "auto")
    for note in program.notes:
        stages.note(note)
    figures = own_figures(vars(job.options).get("metric"), program)  # now, for it may fail
    with stages.stage("pruning"):
        result = job.decide(program, loaded, stages)
        if not is_first_process():
            return {}
        slim, vocabulary = keep_tokens_asked(result.program, job.tokens)
    selection = result.selection
    for step in result.steps:
        for remark in filter(None, (step.note, *step.remarks)):
            stages.note(f"{step.text} {remark}")
    with stages.stage("proving"):
        proof = result.proof.require()
        proven_tokens = prove_tokens(result.program, vocabulary)
    with draft_folder(target) as draft:
        selection.save(draft / "selection.json")
        if vocabulary:
            vocabulary.save(draft / TOKENS_FILE)
        try:
            told = _onnx_files(job, loaded, (program, slim), draft, stages)
        except ExportError as error:
            told = _no_file(program, error, draft, stages)
        with stages.stage("writing model.pt2"):
            save_pt2(slim, draft / "model.pt2")
            for note in write_islands(slim, draft, job.settings):
                stages.note(note)
        stock = _write_checkpoint(job, loaded, slim, draft, vocabulary is None, stages)
        data = {
            "format": report.FORMAT,
            "model": loaded.name,
            "pipeline": job.text,
            "tokens": proven_tokens,
            "free_outputs": report.freed(program, slim),
            "steps": [asdict(step) for step in result.steps],
            "example": example_point(program),
            "before": {**asdict(count_cost(program)), "file_bytes": told.before},
            "after": {**asdict(count_cost(slim)), "file_bytes": told.after},
            "session": asdict(job.settings),
            "latency": told.latency,
            "metric": figures(result.program),
            "quantized": told.quantized,
            "verdict": proof.as_data(),
            "onnx": told.onnx,
            "checkpoint": stock,
            "seconds": told.seconds,
            "refused": report.refusals(analyze(program).refusals),
            **inventory(program, slim, selection),
            "notes": [*loaded.notes, *program.notes],
            "machine": report.machine(),
        }
        _write_reports(draft, data)
        programs, proven = (program, slim), largest_differences(data)
        write_manifest(draft, loaded, programs, data, proven, selection.removed, vocabulary)
    return data


def _write_reports(draft: Path, data: Mapping[str, Any]) -> None:
    text = json.dumps(data, indent=1, ensure_ascii=False) + "\n"
    (draft / "report.json").write_text(text, encoding="utf-8")
    (draft / "report.md").write_text(report_markdown(data), encoding="utf-8")
    (draft / "report.html").write_text(render_report(data), encoding="utf-8")


@dataclass(frozen=True)
class _Files:
    """What a report says of the ONNX files: their bytes, what was measured with them, and the times; nothing where there are none."""

    onnx: dict[str, Any]
    seconds: dict[str, float | None]
    before: int | None = None
    after: int | None = None
    latency: tuple[dict[str, Any], ...] = ()
    quantized: dict[str, Any] | None = None


def _onnx_files(
    job: _Job, loaded: Loaded, programs: tuple[Program, Program], draft: Path, stages: Stages
) -> _Files:
    """Write model.onnx, and the original's file beside it for comparison; measure and compare the two."""
    program, slim = programs
    with stages.stage("writing and checking model.onnx"):
        emitted = export_onnx(slim, draft / "model.onnx", settings=job.settings)
    for note in emitted.fixed.values():
        stages.note(note)
    agreed = runtime_agreement(slim, emitted, draft / "model.onnx", job.settings, stages)
    before = scratch_of(draft) / "before.onnx"
    plain = _export_original(loaded, program, before, emitted, job.settings, stages)
    files = {"before": before, "after": draft / "model.onnx"}
    latency = measure_latencies(program, slim, files, job.points(program), job.settings, stages)
    quantized = write_quantized(job.options, slim, loaded, latency, stages, draft)
    told = {
        "relative": emitted.relative,
        "points": [dict(point) for point in emitted.points],
        "fixed": dict(emitted.fixed),
        "opset": emitted.opset,
        "peepholes": dict(emitted.peepholes),
        **agreed,
    }
    seconds = _seconds(stages.seconds, emitted, plain)
    return _Files(told, seconds, before.stat().st_size, emitted.bytes, tuple(latency), quantized)


def _no_file(program: Program, error: ExportError, draft: Path, stages: Stages) -> _Files:
    """Say why there is no model.onnx, and whether torch's export of the original fails, too; its remains are removed."""
    for stale in draft.glob("model.onnx*"):
        stale.unlink()
    with stages.stage("exporting the original, to know whose fault it is"):
        original = original_fault(program, _OPSET)
    why = f"no model.onnx: {error}. {original}"
    stages.note(why)
    names = ("capture", "prune", "prove", "export", "check", "capture_to_onnx", "plain_export", "ratio")
    known = {"capture": "capturing", "prune": "pruning", "prove": "proving"}
    return _Files({"failed": why}, {name: stages.seconds.get(known.get(name, "")) for name in names})


def _write_checkpoint(
    job: _Job, loaded: Loaded, slim: Program, draft: Path, tokenizer: bool, stages: Stages
) -> dict[str, Any] | None:
    if not job.options.checkpoint:
        return None
    with stages.stage("looking for a configuration of the checkpoint"):
        told = write_checkpoint_folder(loaded, slim, draft, tokenizer)
    if told["why"]:
        stages.note(f"no checkpoint: {told['why']}")
    return told


def _export_original(
    loaded: Loaded, program: Program, path: Path, emitted: Emitted, session: Settings, stages: Stages
) -> float | None:
    """Write the unpruned program as the slim one was written, so that a comparison of the two shows what pruning gained.

    Return the seconds of a plain torch.onnx.export of the user's model beside; None where torch can't.
    """
    kwargs, dynamic = loaded.uncached()
    with stages.stage("exporting the original, for comparison"):
        export_onnx(program, path, opset=emitted.opset, settings=session)
        with contextlib.suppress(ExportError):
            plain = path.with_name("plain.onnx")
            return plain_export(loaded.model, plain, loaded.args, kwargs, dynamic, emitted.opset)
    return None


def _seconds(stages: Mapping[str, float], emitted: Emitted, plain: float | None) -> dict[str, float | None]:
    ours = stages["capturing"] + stages["pruning"] + emitted.seconds
    return {
        "capture": stages["capturing"],
        "prune": stages["pruning"],
        "prove": stages["proving"],
        "export": emitted.seconds,
        "check": emitted.check_seconds,
        "capture_to_onnx": ours,
        "plain_export": plain,
        "ratio": None if plain is None else ours / plain,
    }


def measure_latencies(
    program: Program,
    slim: Program,
    files: Mapping[str, Path],
    points: Sequence[Point],
    chosen: Settings,
    stages: Stages,
) -> list[dict[str, Any]]:
    """Measure both files in turns, one entry per point, with the ratio of operations; `points` come after the default ones."""
    entries = []
    for point in _points(program, points):
        with stages.stage(f"measuring at {report.describe_point(point)}"):
            fitted, given = _fit_length(program, files["before"], point)
            both = {
                "before": given,
                "after": feeds(slim, fitted),
            }  # the slim program may have other token ids
            timed = measure(files, both, chosen, _SECONDS_A_POINT)
            flops = (count_flops(program, fitted), count_flops(slim, fitted))
            entries.append(report.latency(fitted, timed["before"], timed["after"], flops))
    return entries


def _points(program: Program, more: Sequence[Point]) -> list[Point]:
    here = example_point(program)
    wanted = [{axis: point.get(axis, size) for axis, size in here.items()} for point in (*_POINTS, *more)]
    return [dict(point) for point in dict.fromkeys(tuple(point.items()) for point in wanted)]


def _fit_length(program: Program, file: Path, point: Point) -> tuple[Point, Feeds]:
    """Halve the length until the original runs, since its table of positions may be shorter; return the point and its inputs."""
    opened = open_session(file)
    while True:
        given = feeds(program, point)
        try:
            run_session(opened, given)
            return point, given
        except ExportError:
            if point.get("length", 1) < 2:
                raise
            point = {**point, "length": point["length"] // 2}


def runtime_agreement(
    program: Program, emitted: Emitted, file: Path, settings: Settings, stages: Stages
) -> dict[str, Any]:
    """Compare the runtime that is asked for with the program; nothing for the default, in which every file is checked anyway.

    ExportError where the difference exceeds the tolerance.
    """
    if settings.runtime == DEFAULT.runtime:
        return {}
    title = describe_settings(settings).partition(",")[0]
    with stages.stage(f"comparing {title}"), fixed_draws(program, file) as (checked, draws):
        relative, _ = compare(program, prepare(checked, settings), emitted.points, title, draws)
    return {"runtime": {"title": title, "relative": relative}}
