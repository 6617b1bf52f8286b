"""The check that every architecture of the zoo must pass: what is pruned equals the zeroed original, and the check is not vacuous."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.analysis import Analysis, analyze
from fxprune.capture import capture
from fxprune.errors import CaptureError, FxpruneError
from fxprune.program import Program, copy_graph, rebuild
from fxprune.selection import Selection
from fxprune.shrink import shrink, zeroed

BAR, BAR_64 = 1e-5, 1e-10
BATCH, LENGTH = 3, 13
OTHER = {BATCH: 5, LENGTH: 21}


@dataclass(frozen=True)
class Outcome:
    """What became of one architecture: `ok`, `capture-failed`, `wrong` or `crash`, with the reason and the numbers."""

    name: str
    status: str
    reason: str = ""
    exact: int = 0
    inexact: int = 0
    relative: float = 0.0
    change: float = 0.0
    refusals: int = 0
    unknown: tuple[str, ...] = ()
    dynamic: str = "static"
    parameters: int = 0
    slim: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Give every parameter and running statistic a value that matters, at scales that keep the outputs finite."""
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


def captured(model: nn.Module, kwargs: Mapping[str, Any], dynamic: bool = True) -> Program:
    """The program of a randomised model, with batch and length dynamic where torch can, else with fixed sizes."""
    randomise(model)
    if not dynamic:
        return capture(model, kwargs=kwargs)
    free = {name: _free(value) for name, value in kwargs.items()}
    try:
        return capture(model, kwargs=copied(kwargs), dynamic=free)
    except CaptureError:
        return capture(model, kwargs=kwargs)


def copied(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Fresh tensors: torch.export marks those that it is given as dynamic, and a later export heeds the marks."""
    fresh: dict[str, Any] = pytree.tree_map_only(Tensor, torch.clone, dict(kwargs))
    return fresh


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
    halves = Selection({axis.name: range(0, axis.size, 2) for axis in analysis.axes if axis.exact})
    ones = Selection({axis.name: [axis.size // 2] for axis in analysis.axes if axis.exact})
    for label, selection in (("halved", halves), ("cut to one index", ones)):
        outcome = _compared(analysis, selection, label, outcome)
        if outcome.status != "ok":
            return outcome
    return replace(outcome, seconds={**outcome.seconds, "check": round(time.perf_counter() - start, 2)})


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
        seconds={"analyze": round(seconds, 3)},
    )


def _compared(analysis: Analysis, selection: Selection, label: str, outcome: Outcome) -> Outcome:
    program = analysis.program
    try:
        slim, oracle = shrink(program, selection), zeroed(program, selection)
        wanted = outputs(oracle, program.kwargs)
    except FxpruneError as error:
        return replace(outcome, status="crash", reason=f"{label}: {error}")
    change = difference(outputs(program, program.kwargs), wanted)
    better = replace(outcome, change=max(outcome.change, change), slim=outcome.slim or slim.parameter_count())
    better = _judged((slim, oracle), program.kwargs, label, better)
    if better.status != "ok":
        return better
    moved = _other_axes(analysis, slim, selection)
    if moved:
        return replace(better, status="wrong", reason=f"{label}: a second analysis finds {moved}")
    return _at_second_shape((program, slim, oracle), label, better)


def _judged(
    pair: tuple[Program, Program], kwargs: Mapping[str, Any], label: str, outcome: Outcome
) -> Outcome:
    """The outcome after comparing the pruned with the zeroed program; beyond the bar, float64 tells rounding from a wrong answer."""
    relative = difference(*(outputs(each, kwargs) for each in pair))
    better = replace(outcome, relative=max(outcome.relative, relative))
    if relative <= BAR:
        return better
    exactly = difference(*(outputs(doubled(each), _double(kwargs)) for each in pair))
    status = "ok" if exactly <= BAR_64 else "wrong"
    return replace(
        better, status=status, reason=f"{label}: off by {relative:.1e}, in float64 by {exactly:.1e}"
    )


def outputs(program: Program, kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors that a program returns; random numbers are the same for each call."""
    torch.manual_seed(1)
    return [value for value in pytree.tree_leaves(program(**kwargs)) if isinstance(value, Tensor)]


def difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest difference relative to the largest value of the same output; infinite where values are no numbers or shapes differ."""
    pairs = list(zip(ours, theirs, strict=True))
    if any(one.shape != other.shape for one, other in pairs):
        return float("inf")
    return max((_relative(one.double(), other.double()) for one, other in pairs if one.numel()), default=0.0)


def _relative(one: Tensor, other: Tensor) -> float:
    infinite = ~other.isfinite()
    if not torch.equal(infinite, ~one.isfinite()) or bool(infinite.all()):
        return float("inf")
    one, other = one[~infinite], other[~infinite]
    return float((one - other).abs().max() / other.abs().max().clamp_min(1e-12))


def doubled(program: Program) -> Program:
    """The program in float64, its casts to float32 included, to tell rounding from a wrong answer."""
    graph = copy_graph(program)
    for node in graph.nodes:
        node.args, node.kwargs = pytree.tree_map(
            _double, (node.args, node.kwargs), is_leaf=lambda x: isinstance(x, fx.Node)
        )
    return rebuild(program, graph, {name: _double(value) for name, value in program.tensors().items()})


def _double(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return torch.float64 if value == torch.float32 else value
    if isinstance(value, Mapping):
        return {name: _double(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_double(item) for item in value)
    if not isinstance(value, Tensor) or value.dtype != torch.float32:
        return value
    return nn.Parameter(value.detach().double()) if isinstance(value, nn.Parameter) else value.double()


def _other_axes(analysis: Analysis, slim: Program, selection: Selection) -> str:
    """How the axes of the pruned program differ from those of the original, less what was cut; empty where they don't."""
    sizes = {axis.name: axis.size for axis in analysis.axes}
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
    return _judged((slim, oracle), other, f"{label}, at a second shape", replace(outcome, dynamic=said))


def _resized(value: Any, dims: tuple[int, ...]) -> Any:
    """A larger input: its own values, repeated along the dynamic dimensions."""
    for dim in dims:
        size = value.shape[dim]
        value = value.index_select(dim, torch.arange(OTHER.get(size, size)) % size)
    return value


def run(name: str, build: Callable[[], tuple[nn.Module, Mapping[str, Any]]], dynamic: bool = True) -> Outcome:
    """Build, capture and check one architecture; nothing escapes."""
    try:
        model, kwargs = build()
        start = time.perf_counter()
        program = captured(model, kwargs, dynamic)
        seconds = time.perf_counter() - start
    except CaptureError as error:
        return Outcome(name, "capture-failed", str(error))
    try:
        outcome = _unlike(model, program, name) or check(program, name)
    except Exception as error:  # noqa: BLE001 (a crash of ours is an outcome too)
        return Outcome(name, "crash", f"{type(error).__name__}: {error}"[:400])
    return replace(outcome, seconds={"capture": round(seconds, 2), **outcome.seconds})


def _unlike(model: nn.Module, program: Program, name: str) -> Outcome | None:
    """An outcome where the captured program is not the model, before anything is pruned; None where it is."""
    torch.manual_seed(1)
    model.eval()
    with torch.no_grad():
        wanted = [value for value in pytree.tree_leaves(model(**program.kwargs)) if isinstance(value, Tensor)]
    try:
        relative = difference(outputs(program, program.kwargs), wanted)
    except RuntimeError as error:
        return Outcome(
            name, "capture-failed", f"the exported graph does not run: {str(error).splitlines()[0]}"
        )
    if relative <= BAR:
        return None
    reason = f"the captured program differs from the model by {relative:.1e}"
    if difference(_exported(model, program.kwargs), outputs(program, program.kwargs)) <= BAR:
        reason = f"{reason}, and so does torch.export's own"
        return Outcome(name, "capture-failed", reason, relative=relative)
    return Outcome(name, "wrong", reason, relative=relative)


def _exported(model: nn.Module, kwargs: Mapping[str, Any]) -> list[Tensor]:
    """What torch.export makes of a model, without any of ours, returns."""
    torch.manual_seed(1)
    with torch.no_grad():
        plain = torch.export.export(model, (), copied(kwargs), strict=False).module(check_guards=False)
        return [value for value in pytree.tree_leaves(plain(**kwargs)) if isinstance(value, Tensor)]
