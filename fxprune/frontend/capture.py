"""Capture: from an nn.Module, an ExportedProgram or a .pt2 file to a Program.

torch.export's training IR is kept as it is (`linear`, `layer_norm`, `scaled_dot_product_attention` as single nodes); the graph is then
canonicalized, so that rules stay short: see `fxprune.frontend.canonicalization.canonicalize`.
"""

from __future__ import annotations

import copy
import inspect
import os
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from fxprune.errors import CaptureError, GuardError
from fxprune.frontend.agreement import SAME, check_same, difference_from, outputs_on, same_outputs
from fxprune.frontend.canonicalization.canonicalize import canonicalize
from fxprune.frontend.canonicalization.fold_weights import fold_weights, folded_notes
from fxprune.frontend.dynamic_shapes import graph_shapes, named_shapes, with_constants
from fxprune.frontend.fixed_sizes import doubled_batch, fixed_notes
from fxprune.frontend.io_constraints import free_dims
from fxprune.frontend.islands import capture_islands
from fxprune.frontend.library_patches import with_library_patches
from fxprune.frontend.module_call import (
    clone_inputs,
    drop_checks,
    drop_inputs,
    uncached_kwargs,
    without_cache,
    wrapped_module,
)
from fxprune.frontend.module_state import fresh_at_each_call, own_buffers, unchanged
from fxprune.frontend.other_sizes import differing_sizes, with_loose_guards
from fxprune.frontend.pt2_archive import missing_modules
from fxprune.frontend.specialization import exported_guards, module_guards
from fxprune.ir import Program, describe_error, source_line
from fxprune.ir.edit import on_disk
from fxprune.ir.random_values import random_notes
from fxprune.ir.torch_context import exporting
from fxprune.ir.train_mode import copy_dropout, has_attention
from fxprune.rewrite.shared_tables import decouple_tables
from fxprune.storage import adopt, letting_go
from fxprune.storage.limits import needs_disk


def capture(
    model: nn.Module | ExportedProgram | str | os.PathLike[str],
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    free_outputs: Collection[str] = (),
    training: bool = False,
    within: str | Sequence[str] | None = None,
) -> Program:
    """Capture a model as a Program; the model is left as it was, and its weights are shared, not copied (but computed ones).

    `model` is an nn.Module (with example `args` and `kwargs`), an ExportedProgram, or the path of a .pt2 file (read by
    `torch.export.load`: it holds a graph and may hold pickled constants, so load only files that you trust). `dynamic_shapes` is None
    (all sizes fixed), True (torch decides for every dimension) or what torch.export takes under this name.
    Of what runs another module (DataParallel, torch.compile's), the other is captured.
    What torch can't trace is traced once more with the patches by which its library (transformers) makes its models traceable.
    `free_outputs` are outputs that may shrink. Weights that are computed from weights alone (weight norm, spectral norm) are constants in
    evaluation and become parameters (see `fxprune.frontend.canonicalization.fold_weights`); with `training`, their computation stays, and
    an nn.Module is captured in training mode, too, so that its fused attention has the dropout in training that it has there. `within`
    names submodules that are captured in place of the whole, side by side in one Program (see `fxprune.ir.islands`); with "auto" the
    largest that can be are found where the whole can't be captured. Weights of which memory has no room for several copies become views
    of files (see `fxprune.storage`). CaptureError gives torch's reason.
    """
    given = dict(kwargs or {})
    model = wrapped_module(model) if isinstance(model, nn.Module) else model
    with unchanged(model) if isinstance(model, nn.Module) else nullcontext(), _from_files(model):
        program = _whole_or_islands(model, tuple(args), given, dynamic_shapes, within)
        traced = training and not program.islands and has_attention(program.graph)
        if traced and isinstance(model, nn.Module):
            _remember_dropout(program, model, args, given, dynamic_shapes)
    program = program if training else _folded(program)
    program = program.replace(notes=(*program.notes, *folded_notes(program), *random_notes(program)))
    if program.islands and free_outputs:
        raise CaptureError(
            "outputs of captured parts are read by the rest of the model: none of them may shrink"
        )
    program = free_dims(program, outputs=free_outputs)
    return on_disk(program) if needs_disk(program.parameter_bytes()) else program


@contextmanager
def _from_files(model: Any) -> Iterator[None]:
    """Let go of weights that are views of files after each call in the block, where a model is too large for memory."""
    tensors = [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []
    if not needs_disk(
        sum(each.numel() * each.element_size() for each in tensors if each.device.type == "cpu")
    ):
        yield
        return
    adopt(tensors)
    with letting_go():
        yield


def _whole_or_islands(
    model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any, within: Any
) -> Program:
    reason = "a part of it was asked for"
    if within is None or within == "auto" or not isinstance(model, nn.Module):
        try:
            return _captured(model, args, kwargs, dynamic_shapes)
        except CaptureError as error:
            if within is None or not isinstance(model, nn.Module):
                raise
            reason = str(error)
    dynamic = dynamic_shapes is not None and dynamic_shapes is not False
    return capture_islands(model, (args, kwargs), within, dynamic, _captured, reason)


def _captured(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any) -> Program:
    if isinstance(model, (str, os.PathLike)):
        model = _load(Path(model))
    if isinstance(model, ExportedProgram):
        given_args, given_kwargs = model.example_inputs or ((), {})
        program = _program(model, tuple(args or given_args), dict(kwargs or given_kwargs))
        return with_loose_guards(None, program)
    if not isinstance(model, nn.Module):
        raise CaptureError(
            f"can't capture a {type(model).__name__}: give an nn.Module, an ExportedProgram or a .pt2 path"
        )
    with unchanged(model):
        first = _call_once(model, tuple(args), kwargs)
        program = _of_module_calls(model, tuple(args), kwargs, dynamic_shapes)
    with unchanged(model):
        if first is None or not difference_from(first, model, program):
            return program
    # The first call left something behind by which later ones compute otherwise.
    with unchanged(model), fresh_at_each_call(model):
        program = _of_module_calls(model, tuple(args), kwargs, dynamic_shapes)
        gap = difference_from(first, model, program)
    if gap:
        raise CaptureError(
            f"torch.export's program of {type(model).__name__} differs by {gap:.2g} from the model's first call (allowed {SAME:g}): "
            "calls of the model leave something behind that later ones read"
        )
    return program


def _of_module_calls(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any
) -> Program:
    shapes = named_shapes(model, args, kwargs, dynamic_shapes)
    program = _agreeing(model, args, kwargs, shapes)
    return _same_elsewhere(model, program, shapes, dynamic_shapes is not True)


def _folded(program: Program) -> Program:
    """Return the program with computed weights folded, if it still computes the same."""
    folded = fold_weights(program)
    same = folded is program or same_outputs(folded, program)
    return decouple_tables(folded) if same and folded is not program else program


def _agreeing(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any) -> Program:
    program = _of_two(model, args, kwargs, shapes)
    return program or _accepted(model, args, kwargs, shapes, partial(check_same, model))


def _accepted(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    shapes: Any,
    accept: Callable[[Program], None],
) -> Program:
    trace = partial(_traced, model, args, kwargs, shapes)
    program: Program = with_library_patches(model, trace, accept)
    return program


def _of_two(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any) -> Program | None:
    """Capture a batch of one, which torch.export would fix, as one of two; None where there is none, or the program isn't the model."""
    doubled = doubled_batch(model, (args, kwargs), shapes)
    if doubled is None:
        return None

    def accept(program: Program) -> None:
        check_same(model, program)
        single = program.replace(args=args, kwargs=kwargs)
        single.check_inputs(args, kwargs)
        check_same(model, single)

    with suppress(CaptureError, GuardError):
        return _accepted(model, *doubled, shapes, accept).replace(args=args, kwargs=kwargs)
    return None


def _same_elsewhere(model: nn.Module, program: Program, shapes: Any, explicit: bool) -> Program:
    """Return the program with those sizes fixed at other values of which it isn't the model, and notes of all that is fixed."""
    why: dict[tuple[str, int], str] = {}
    while new := differing_sizes(model, program):
        why |= new
        left = graph_shapes(program.graph_module, why)
        known = inspect.signature(model.forward).parameters
        left = left if left is None or left.keys() <= known.keys() else None
        program = _agreeing(model, tuple(program.args), dict(program.kwargs), left)
    notes = fixed_notes(model, program, shapes, why, explicit)
    return with_loose_guards(model, program).replace(notes=notes)


def _call_once(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor] | None:
    """Call the model, so that what it computes once and caches is there before torch.export runs it on fake tensors; return its outputs.

    Where it fails (None), capture fails too, with torch's reason, which names the line.
    """
    with suppress(Exception):
        return outputs_on(model, (args, kwargs))
    return None


def _traced(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any) -> Program:
    extra = uncached_kwargs(model, kwargs)
    with without_cache(model, kwargs):
        own_args, own_kwargs = clone_inputs((args, {**kwargs, **extra}))
        exported = _export(model, own_args, own_kwargs, with_constants(shapes, extra))
        return _program(exported, args, kwargs, frozenset(extra))


def _remember_dropout(
    program: Program, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any
) -> None:
    """Record attention's dropout in training mode; a model that torch can't trace in that mode keeps attention without dropout."""
    extra = uncached_kwargs(model, kwargs)
    own_args, own_kwargs = clone_inputs((tuple(args), {**kwargs, **extra}))
    shapes = with_constants(named_shapes(model, args, kwargs, dynamic_shapes), extra)
    trace = partial(_export, model, own_args, own_kwargs, shapes, training=True)
    with without_cache(model, kwargs), suppress(CaptureError):
        exported = with_library_patches(model, trace, lambda _: None)
        copy_dropout(program.graph_module, exported.graph)


def _load(path: Path) -> ExportedProgram:
    if not path.is_file():
        raise CaptureError(f"{path} is no file: give the path of a .pt2 that torch.export.save wrote")
    try:
        return torch.export.load(path)
    except Exception as error:
        raise CaptureError(
            f"torch can't load {path}: {missing_modules(path) or describe_error(error)}"
        ) from error


def _export(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any, training: bool = False
) -> ExportedProgram:
    with exporting(model, training):
        try:
            return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
        except Exception as error:
            raise CaptureError(capture_reason(type(model).__name__, error)) from error


def capture_reason(name: str, error: BaseException) -> str:
    """Return torch's reason in a sentence or two, and the user's line where torch gives it; never the printed graph."""
    text = str(error)
    user = [line.strip() for line in text.splitlines() if line.strip().startswith("File ")]
    frame = _last_user_frame(error) or (user[-1] if user else "")
    reason = f"torch.export could not capture {name}: {describe_error(error)}"
    return f"{reason} [{frame}]" if frame else reason


def _last_user_frame(error: BaseException) -> str:
    """Return the innermost line of the traceback that is neither torch's nor fxprune's."""
    frames = inspect.getinnerframes(error.__traceback__) if error.__traceback__ else []
    foreign = tuple(f"{os.sep}{name}{os.sep}" for name in ("torch", "fxprune"))
    inner = [
        f for f in frames if not f.filename.startswith("<") and not any(at in f.filename for at in foreign)
    ]
    if not inner:
        return ""
    frame = inner[-1]
    return f"{frame.filename}:{frame.lineno} in {frame.function}: {(frame.code_context or [''])[0].strip()}"


def _program(
    exported: ExportedProgram,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    drop: frozenset[str] = frozenset(),
) -> Program:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = exported.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    guards = exported_guards(exported, module, exported.example_inputs or (args, kwargs))
    return _of_module(module, Program(module, args, kwargs, guards=guards), drop)


def _of_module(module: fx.GraphModule, described: Program, drop: frozenset[str]) -> Program:
    graph = fx.GraphModule(module, module.graph)  # a plain one: torch.export's own refuses train() and eval()
    _check_operators(graph)
    drop_inputs(graph, drop)
    own_buffers(graph)
    return canonicalize(described.replace(graph_module=graph, dynamic_shapes=graph_shapes(graph)))


def from_exported_module(module: fx.GraphModule, kwargs: Mapping[str, Any]) -> Program:
    """Return a Program of the result of `ExportedProgram.module()`, called with keywords; the module is left as it was."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own trees warn of torch's own classes
        copied = fx.GraphModule(module, copy.deepcopy(module.graph))
    guards = module_guards(copied, ((), kwargs))
    drop_checks(copied)  # the Program has its guards
    program = _of_module(copied, Program(copied, (), dict(kwargs), guards=guards), frozenset())
    return with_loose_guards(None, program)


def _check_operators(graph: fx.GraphModule) -> None:
    """Raise CaptureError where the exported graph calls torch's internals (pieces of a vmap), which fail when it runs."""
    for node in graph.graph.nodes:
        module = getattr(node.target, "__module__", None) or ""
        if node.op == "call_function" and module.startswith("torch._C."):
            raise CaptureError(
                f"torch.export left {module}.{node.target.__name__} in the graph, which can't run outside of its transform "
                f"[{source_line(node)}]; rewrite that line, or export the model yourself and pass the ExportedProgram"
            )
