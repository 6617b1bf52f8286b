"""Zoo check: every architecture's pruned program equals the zeroed original, and the check is not vacuous."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.analysis import Analysis, Axis, analyze
from fxprune.errors import CaptureError, FxpruneError
from fxprune.ir import Program, Selection
from fxprune.rewrite import zero_readers
from fxprune.rewrite.shrink import shrink
from fxprune.tools.inputs.loaded import Loaded
from zoo.compare import copied, difference, double, doubled, outputs, outputs_in_model
from zoo.offered import Refused, offered_share, refused_shares

BAR, BAR_64 = 1e-5, 1e-10
BATCH, LENGTH = 3, 13
OTHER = {BATCH: 5, LENGTH: 21}

Build = Callable[[], tuple[nn.Module, Mapping[str, Any]]]
Run = Callable[[Program, bool], list[Tensor]]


@dataclass(frozen=True)
class Outcome:
    """Result of one architecture: `ok`, `capture-failed`, `absent`, `wrong` or `crash`, with the reason and the numbers.

    A model that can't be captured whole, for the reason `whole`, is checked in `parts` that have the share `inside` of its parameters.
    `offered` is the share of the parameters that are on an axis, `refused` why the others are not. `order` and `onnx` are the results of
    shuffled constraints and of ONNX Runtime, empty until `zoo.stages` has run them; `made` is the day and the commit.
    """

    name: str
    status: str
    reason: str = ""
    parts: int = 0
    inside: float = 1.0
    whole: str = ""
    exact: int = 0
    inexact: int = 0
    relative: float = 0.0
    change: float = 0.0
    refusals: int = 0
    unknown: tuple[str, ...] = ()
    dynamic: str = "static"
    parameters: int = 0
    slim: int = 0
    offered: float = 0.0
    refused: Sequence[Refused] = ()
    order: str = ""
    onnx: str = ""
    onnx_reason: str = ""
    onnx_relative: float = 0.0
    onnx_shapes: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    made: str = ""


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Give every parameter and running statistic a random value, at scales that keep the outputs finite."""
    torch.manual_seed(seed)
    done: set[int] = set()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.is_floating_point() and id(parameter) not in done:
                done.add(id(parameter))
                _fill(name, parameter)
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
            elif name.endswith("running_mean"):
                buffer.normal_(0, 0.1)


def _fill(name: str, parameter: Tensor) -> None:
    if parameter.dim() < 2:
        parameter.normal_(0, 0.1) if "bias" in name else parameter.uniform_(0.5, 1.5)
        return
    inputs = max(parameter.shape[1:]) if parameter.dim() == 3 else parameter.shape[1:].numel()
    parameter.normal_(0, max(1, inputs) ** -0.5)


def captured(
    model: nn.Module, kwargs: Mapping[str, Any], dynamic: bool = True, within: str | None = None
) -> Program:
    """The program of a randomised model, with batch and length dynamic where torch can, else with fixed sizes, else `within` its parts."""
    randomise(model)
    loaded = Loaded("", model, (), kwargs)
    if not dynamic:
        return loaded.capture(within=within)
    free = {name: _free(value) for name, value in kwargs.items()}
    try:
        return replace(loaded, kwargs=copied(kwargs), dynamic_shapes=free).capture()
    except CaptureError:
        return loaded.capture(within=within)


def _free(value: Any) -> Any:
    auto = torch.export.Dim.AUTO
    if isinstance(value, (list, tuple)):
        return [_free(item) for item in value]
    if not isinstance(value, Tensor):
        return None
    return {i: auto for i, size in enumerate(value.shape[:2]) if size == (BATCH, LENGTH)[i]}


def check(program: Program, name: str = "") -> Outcome:
    """Halve every exact axis, then cut each to one index; compare with the zeroed original each time, here and at a second shape."""
    start = time.perf_counter()
    analysis = analyze(program)
    outcome = _described(analysis, name, time.perf_counter() - start)
    halves = _halves(analysis)
    ones = Selection({axis.name: _fewest(axis) for axis in analysis.axes if axis.exact})
    for label, selection in (("halved", halves), ("cut to one index", ones)):
        outcome = _compared(analysis, selection, label, outcome)
        if outcome.status != "ok":
            return outcome
    return replace(outcome, seconds={**outcome.seconds, "check": round(time.perf_counter() - start, 2)})


def halved(program: Program) -> Program:
    """The program with every exact axis halved, as `check` does first."""
    return shrink(program, _halves(analyze(program)))


def _halves(analysis: Analysis) -> Selection:
    return Selection({axis.name: _half(axis) for axis in analysis.axes if axis.exact})


def _half(axis: Axis) -> Sequence[int]:
    """Every second index, and as many more as must stay (a router chooses its best k of them)."""
    half = list(range(0, axis.size, 2))
    return sorted([*half, *(i for i in range(1, axis.size, 2))][: max(len(half), axis.least)])


def _fewest(axis: Axis) -> Sequence[int]:
    """One index from the middle, or as many as must stay."""
    first = min(axis.size // 2, axis.size - axis.least)
    return range(first, first + axis.least)


def _described(analysis: Analysis, name: str, seconds: float) -> Outcome:
    exact = sum(axis.exact for axis in analysis.axes)
    unknown = tuple(sorted({str(node.target) for node in analysis.flow.unknown}))
    return Outcome(
        name,
        "ok",
        exact=exact,
        inexact=len(analysis.axes) - exact,
        refusals=len(analysis.refusals),
        unknown=unknown,
        parameters=analysis.program.parameter_count(),
        offered=offered_share(analysis),
        refused=refused_shares(analysis),
        seconds={"analyze": round(seconds, 3)},
    )


def _compared(analysis: Analysis, selection: Selection, label: str, outcome: Outcome) -> Outcome:
    program = analysis.program
    try:
        slim, oracle = shrink(program, selection), zero_readers(program, selection)
        wanted = outputs(oracle, program.kwargs)
    except FxpruneError as error:
        return replace(outcome, status="crash", reason=f"{label}: {error}")
    change = difference(outputs(program, program.kwargs), wanted)
    better = replace(outcome, change=max(outcome.change, change), slim=outcome.slim or slim.parameter_count())
    better = _judged((slim, oracle), _runs(program.kwargs), label, better)
    if better.status == "ok" and program.islands:
        better = _judged((slim, oracle), outputs_in_model, f"{label}, in the whole model", better)
    if better.status != "ok":
        return better
    moved = _other_axes(analysis, slim, selection)
    if moved:
        return replace(better, status="wrong", reason=f"{label}: a second analysis finds {moved}")
    return _at_second_shape((program, slim, oracle), label, better)


def _runs(kwargs: Mapping[str, Any]) -> Run:
    """What runs programs on these inputs, in float32 or in float64."""

    def run(program: Program, in_double: bool = False) -> list[Tensor]:
        return outputs(doubled(program), double(kwargs)) if in_double else outputs(program, kwargs)

    return run


def _judged(pair: tuple[Program, Program], run: Run, label: str, outcome: Outcome) -> Outcome:
    """The outcome after comparing the pruned with the zeroed program; beyond the bar, float64 decides whether it is rounding."""
    relative = difference(*(run(each, False) for each in pair))
    better = replace(outcome, relative=max(outcome.relative, relative))
    if relative <= BAR:
        return better
    exactly = difference(*(run(each, True) for each in pair))
    status = "ok" if exactly <= BAR_64 else "wrong"
    return replace(
        better, status=status, reason=f"{label}: off by {relative:.1e}, in float64 by {exactly:.1e}"
    )


def _other_axes(analysis: Analysis, slim: Program, selection: Selection) -> str:
    """The differences between the axes of the pruned program and those of the original, less what was cut; empty if there are none.

    Axes within an expert that left are expected to have left with it.
    """
    there = slim.tensors().keys()
    left = [axis for axis in analysis.axes if any(member.name in there for member in axis.members)]
    sizes = {axis.name: axis.size for axis in left}
    kept = {name: len(selection[name]) for name in selection}
    wanted = {name: kept.get(name, size) for name, size in sizes.items() if kept.get(name, size) > 1}
    found = {axis.name: axis.size for axis in analyze(slim).axes}
    lost = [f"not {name}:{size}" for name, size in wanted.items() if found.get(name) != size]
    new = [f"{name}:{size}" for name, size in found.items() if wanted.get(name) != size]
    return ", ".join([*lost, *new][:4])


def _at_second_shape(programs: tuple[Program, Program, Program], label: str, outcome: Outcome) -> Outcome:
    original, slim, oracle = programs
    free = original.free_dims()
    if not free:
        return outcome
    other = {name: _resized(value, free.get(name, ())) for name, value in original.kwargs.items()}
    said = ", ".join(f"{name}{list(dims)}" for name, dims in free.items())
    try:
        outputs(oracle, other)
    except (RuntimeError, AssertionError, IndexError, ValueError):
        return replace(outcome, dynamic=f"{said}, but the original's graph refuses a second shape")
    return _judged(
        (slim, oracle), _runs(other), f"{label}, at a second shape", replace(outcome, dynamic=said)
    )


def _resized(value: Any, dims: tuple[int, ...]) -> Any:
    """A larger input: its own values, repeated along the dynamic dimensions."""
    for dim in dims:
        size = value.shape[dim]
        value = value.index_select(dim, torch.arange(OTHER.get(size, size)) % size)
    return value


def run(name: str, build: Build, dynamic: bool = True) -> Outcome:
    """Build, capture and check one architecture; a failed capture and a crash of the check are outcomes."""
    return check_with_model(name, build, dynamic)[0]


def check_with_model(
    name: str, build: Build, dynamic: bool = True
) -> tuple[Outcome, tuple[nn.Module, Program] | None]:
    """The outcome of one architecture, and the model with its program where there is one."""
    try:
        model, kwargs = build()
    except ImportError as error:
        return Outcome(name, "absent", str(error)), None
    try:
        start = time.perf_counter()
        program = captured(model, kwargs, dynamic, within="auto")
        seconds = time.perf_counter() - start
    except CaptureError as error:
        return Outcome(name, "capture-failed", str(error)), None
    try:
        outcome = _capture_mismatch(model, program, name) or check(program, name)
    except Exception as error:  # noqa: BLE001 (a crash of ours is an outcome too)
        outcome = Outcome(name, "crash", describe_error(error))
    outcome = replace(outcome, seconds={"capture": round(seconds, 2), **outcome.seconds})
    return _of_whole(outcome, program), (model, program)


def _of_whole(outcome: Outcome, program: Program) -> Outcome:
    """The outcome with the sizes of the whole model, where only parts of it were captured."""
    islands = program.islands
    if islands is None:
        return outcome
    inside, outside = (sum(sizes.values()) for sizes in islands.sizes())
    share = inside / max(1, inside + outside)
    left = [
        Refused(count / (inside + outside), f"outside of the parts: {islands.outside[path]}", "", path)
        for path, count in islands.sizes()[1].items()
        if count
    ]
    return replace(
        outcome,
        parts=len(islands.parts),
        inside=share,
        whole=islands.outside[""],
        parameters=outcome.parameters + outside,
        slim=outcome.slim and outcome.slim + outside,
        offered=outcome.offered * share,
        refused=(*(each._replace(share=each.share * share) for each in outcome.refused), *left),
    )


def describe_error(error: Exception) -> str:
    """The type and the message of an error, cut to 400 characters."""
    return f"{type(error).__name__}: {error}"[:400]


def _capture_mismatch(model: nn.Module, program: Program, name: str) -> Outcome | None:
    """An outcome where the captured program is not the model, before anything is pruned; None where it is."""
    kwargs = program.islands.kwargs if program.islands else program.kwargs
    torch.manual_seed(1)
    model.eval()
    with torch.no_grad():
        wanted = [value for value in pytree.tree_leaves(model(**kwargs)) if isinstance(value, Tensor)]
    try:
        got = outputs_in_model(program) if program.islands else outputs(program, kwargs)
        relative = difference(got, wanted)
    except RuntimeError as error:
        return Outcome(
            name, "capture-failed", f"the exported graph does not run: {str(error).splitlines()[0]}"
        )
    if relative <= BAR:
        return None
    reason = f"the captured program differs from the model by {relative:.1e}"
    if not program.islands and difference(_exported(model, kwargs), got) <= BAR:
        reason = f"{reason}, and so does torch.export's own"
        return Outcome(name, "capture-failed", reason, relative=relative)
    return Outcome(name, "wrong", reason, relative=relative)


def _exported(model: nn.Module, kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The outputs of torch.export's own program of a model, without fxprune."""
    torch.manual_seed(1)
    with torch.no_grad():
        plain = torch.export.export(model, (), copied(kwargs), strict=False).module(check_guards=False)
        return [value for value in pytree.tree_leaves(plain(**kwargs)) if isinstance(value, Tensor)]
