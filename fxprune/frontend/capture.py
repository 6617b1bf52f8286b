"""Capture: an nn.Module, an ExportedProgram or a .pt2 file becomes a Program.

torch.export's training IR is kept as it is (`linear`, `layer_norm`, `scaled_dot_product_attention` as single nodes); the graph is then
normalised, so that rules stay short: see `fxprune.frontend.canonicalize`.
"""

from __future__ import annotations

import copy
import inspect
import io
import logging
import os
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from fxprune.errors import CaptureError
from fxprune.frontend.canonicalize import normalize
from fxprune.frontend.dynamic_shapes import (
    auto_symbolic,
    dynamic_of,
    dynamic_shapes,
    settle_shapes,
    symbolic,
    with_constants,
)
from fxprune.frontend.io_constraints import free
from fxprune.frontend.pt2_archive import missing
from fxprune.ir.program import Program, source_line, trees
from fxprune.ir.signature import shape_tree
from fxprune.ir.train_mode import remember_dropout

_SHAPES_LOG = logging.getLogger("torch.fx.experimental.symbolic_shapes")


_SAME = 1e-2
"""How far torch.export's program may be from the model: more than rounding of any dtype, less than another function."""


def capture(
    model: nn.Module | ExportedProgram | str | os.PathLike[str],
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    dynamic: Any = None,
    free_outputs: Collection[str] = (),
    training: bool = False,
) -> Program:
    """Capture a model as a Program; the model is left as it was, and its weights are shared, not copied.

    `model` is an nn.Module (with example `args` and `kwargs`), an ExportedProgram, or the path of a .pt2 file (read by
    `torch.export.load`: it holds a graph and may hold pickled constants, so load only files that you trust). `dynamic` is None (all sizes
    fixed), True (torch decides for every dimension) or what torch.export calls dynamic_shapes.
    `free_outputs` are outputs that may shrink. With `training`, an nn.Module is captured in training mode, too, so that its fused
    attention drops out in training as it did there. CaptureError gives torch's reason.
    """
    program = _captured(model, args, dict(kwargs or {}), dynamic)
    if training and isinstance(model, nn.Module):
        _remember_dropout(program, model, args, dict(kwargs or {}), dynamic)
    return free(program, outputs=free_outputs)


def _captured(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: Any) -> Program:
    if isinstance(model, (str, os.PathLike)):
        model = _load(Path(model))
    if isinstance(model, ExportedProgram):
        given_args, given_kwargs = model.example_inputs or ((), {})
        return _program(model, tuple(args or given_args), dict(kwargs or given_kwargs), dynamic_of(model))
    if not isinstance(model, nn.Module):
        raise CaptureError(
            f"can't capture a {type(model).__name__}: give an nn.Module, an ExportedProgram or a .pt2 path"
        )
    shapes = dynamic_shapes(model, args, kwargs, dynamic)
    extra = _quiet_cache(model, kwargs)
    with _without_cache(model, kwargs):
        own_args, own_kwargs = _clones((tuple(args), {**kwargs, **extra}))
        exported = _export(model, own_args, own_kwargs, with_constants(shapes, extra))
        program = _program(exported, tuple(args), kwargs, settle_shapes(exported, shapes), frozenset(extra))
    check_same(model, program)
    return program


def _remember_dropout(
    program: Program, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: Any
) -> None:
    """What torch can't trace in training mode keeps attention without dropout."""
    extra = _quiet_cache(model, kwargs)
    own_args, own_kwargs = _clones((tuple(args), {**kwargs, **extra}))
    shapes = with_constants(dynamic_shapes(model, args, kwargs, dynamic), extra)
    with _without_cache(model, kwargs), suppress(CaptureError):
        exported = _export(model, own_args, own_kwargs, shapes, training=True)
        remember_dropout(program.graph, exported.graph)


def _clones(inputs: Any) -> Any:
    """Copies of example inputs, for torch.export leaves marks on tensors."""
    return pytree.tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, inputs)


def check_same(model: nn.Module | ExportedProgram, program: Program) -> None:
    """CaptureError where torch.export's program computes something else than the model on the example inputs."""
    if not isinstance(model, nn.Module):
        return
    tensors = pytree.tree_leaves((program.args, dict(program.kwargs), list(model.parameters())))
    if any(isinstance(value, Tensor) and value.device.type == "meta" for value in tensors):
        return
    wanted = answers(model, program)
    with exporting(model):
        try:
            got = _seeded(program.graph, (program.args, program.kwargs), 0)
        except Exception as error:
            name = type(model).__name__
            raise CaptureError(
                f"what torch.export made of {name} does not run: {describe_error(error)}"
            ) from error
        gap = max((_gap(one, other) for one, other in zip(got, wanted, strict=False)), default=0.0)
        if gap <= _SAME or _is_random(wanted, answers(model, program, 1)):
            return
    raise CaptureError(
        f"torch.export's program of {type(model).__name__} differs from the model by {gap:.2g} on the example inputs "
        f"(allowed {_SAME:g}), before anything is pruned; export it yourself and pass an ExportedProgram that agrees"
    )


def answers(model: nn.Module, program: Program, seed: int = 0) -> list[Tensor]:
    """What a module makes of a program's example inputs, as it would be captured: the tensors among its outputs."""
    inputs = program.args, {**program.kwargs, **_quiet_cache(model, program.kwargs)}
    with exporting(model), _without_cache(model, program.kwargs):
        return _seeded(model, inputs, seed)


def _is_random(one: list[Tensor], other: list[Tensor]) -> bool:
    """Whether two seeds gave different outputs: then a difference to the export says nothing."""
    return len(one) != len(other) or any(not torch.equal(a, b) for a, b in zip(one, other, strict=True))


def _seeded(module: nn.Module, inputs: tuple[Any, Any], seed: int) -> list[Tensor]:
    """The tensors among a module's outputs; what it writes, it writes into copies of its buffers."""
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    args, kwargs = _clones(inputs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        outputs = torch.func.functional_call(module, buffers, args, dict(kwargs))
    return [value for value in pytree.tree_leaves(outputs) if isinstance(value, Tensor)]


def _gap(one: Tensor, other: Tensor) -> float:
    """The largest difference over the largest magnitude; infinite where shapes differ, 0 for what is no floating tensor."""
    if one.shape != other.shape:
        return float("inf")
    if not one.numel() or not one.is_floating_point() or torch.equal(one, other):
        return 0.0
    return float(
        (one - other).abs().nan_to_num().max() / other.abs().nan_to_num(posinf=0.0).max().clamp_min(1e-12)
    )


def _load(path: Path) -> ExportedProgram:
    if not path.is_file():
        raise CaptureError(f"{path} is no file: give the path of a .pt2 that torch.export.save wrote")
    try:
        return torch.export.load(path)
    except Exception as error:
        raise CaptureError(f"torch can't load {path}: {missing(path) or describe_error(error)}") from error


def _quiet_cache(model: nn.Module, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """`use_cache=False` for a forward that takes it: a cache is no tensor, and a graph returns tensors only."""
    takes = inspect.signature(model.forward).parameters
    return {"use_cache": False} if "use_cache" in takes and "use_cache" not in kwargs else {}


@contextmanager
def _without_cache(model: nn.Module, kwargs: Mapping[str, Any]) -> Iterator[None]:
    """`config.use_cache` off for models that read it there, unless the caller asks for the cache; put back afterwards."""
    configs = {
        id(config): config for config in (getattr(module, "config", None) for module in model.modules())
    }
    caching: list[Any] = [config for config in configs.values() if getattr(config, "use_cache", None) is True]
    try:
        for config in caching if "use_cache" not in kwargs else []:
            config.use_cache = False
        yield
    finally:
        for config in caching:
            config.use_cache = True


@contextmanager
def exporting(model: nn.Module, training: bool = False) -> Iterator[None]:
    """Eval mode (or training mode), no gradients, no attention fast path, no chatter; everything is put back afterwards."""
    modes = {module: module.training for module in model.modules()}
    fastpath, level = torch.backends.mha.get_fastpath_enabled(), _SHAPES_LOG.level
    _SHAPES_LOG.setLevel(
        logging.CRITICAL
    )  # a failed export prints the graph; its reason is in the exception too
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        model.train(training)
        with torch.no_grad(), warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        _SHAPES_LOG.setLevel(level)
        torch.backends.mha.set_fastpath_enabled(fastpath)
        for module, mode in modes.items():
            module.training = mode


def _export(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any, training: bool = False
) -> ExportedProgram:
    with exporting(model, training):
        try:
            return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
        except Exception as error:
            raise CaptureError(capture_reason(type(model).__name__, error)) from error


def capture_reason(name: str, error: BaseException) -> str:
    """Torch's reason in a sentence or two, and the user's line where torch says it; never the printed graph."""
    text = str(error)
    user = [line.strip() for line in text.splitlines() if line.strip().startswith("File ")]
    frame = _last_user_frame(error) or (user[-1] if user else "")
    return f"torch.export could not capture {name}: {describe_error(error)}" + (
        f" [{frame}]" if frame else ""
    )


def describe_error(error: BaseException) -> str:
    """The first line of an error's text that says something, cut at 300 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {(lines or ['no reason given'])[0][:300]}"


def _last_user_frame(error: BaseException) -> str:
    """The innermost line of the traceback that is neither torch's nor ours."""
    frames = inspect.getinnerframes(error.__traceback__) if error.__traceback__ else []
    inner = [
        f
        for f in frames
        if f"{os.sep}torch{os.sep}" not in f.filename and f"{os.sep}fxprune{os.sep}" not in f.filename
    ]
    inner = [f for f in inner if not f.filename.startswith("<")]
    if not inner:
        return ""
    frame = inner[-1]
    return f"{frame.filename}:{frame.lineno} in {frame.function}: {(frame.code_context or [''])[0].strip()}"


def _program(
    exported: ExportedProgram,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dynamic: Any,
    drop: frozenset[str] = frozenset(),
) -> Program:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = exported.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    return _of_module(module, args, kwargs, dynamic, drop)


def _of_module(
    module: fx.GraphModule,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dynamic: Any,
    drop: frozenset[str] = frozenset(),
) -> Program:
    graph = fx.GraphModule(module, module.graph)  # a plain one: torch.export's own refuses train() and eval()
    _check_operators(graph)
    drop_inputs(graph, drop)
    own_buffers(graph)
    return normalize(Program(graph, args, kwargs, dynamic))


def from_exported_module(module: fx.GraphModule, kwargs: Mapping[str, Any]) -> Program:
    """A Program of what `ExportedProgram.module()` gave, called with keywords; the module is left as it was."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own trees warn of torch's own classes
        copied = fx.GraphModule(module, copy.deepcopy(module.graph))
    for node in list(copied.graph.find_nodes(op="call_module")):
        copied.graph.erase_node(node)  # its guards: they forbid other sizes
    info = trees(copied)
    values = [node.meta.get("val") for node in copied.graph.find_nodes(op="placeholder")]
    shapes = shape_tree(info.in_spec, [auto_symbolic(value) for value in values])
    dynamic = dict(zip(info.orig_args, (*shapes[0], *shapes[1].values()), strict=True))
    return _of_module(copied, (), dict(kwargs), dynamic if any(map(symbolic, values)) else None)


def _check_operators(graph: fx.GraphModule) -> None:
    """CaptureError where the exported graph calls torch's internals (pieces of a vmap), which fail when it runs."""
    for node in graph.graph.nodes:
        module = getattr(node.target, "__module__", None) or ""
        if node.op == "call_function" and module.startswith("torch._C."):
            raise CaptureError(
                f"torch.export left {module}.{node.target.__name__} in the graph, which can't run outside of its transform "
                f"[{source_line(node)}]; rewrite that line, or export the model yourself and pass the ExportedProgram"
            )


def own_buffers(graph: fx.GraphModule) -> None:
    """Copies of buffers, for a graph may write into them (a cache, running statistics), and the caller's must not change."""
    copies: dict[int, Tensor] = {}
    for module in graph.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = copies.setdefault(id(buffer), buffer.detach().clone())


def drop_inputs(graph: fx.GraphModule, names: frozenset[str]) -> None:
    """Remove constant keyword inputs that capture itself had added."""
    if not names:
        return
    info = trees(graph)
    kwargs_spec = info.in_spec.child(1)
    kept = [i for i, name in enumerate(kwargs_spec.context) if name not in names]
    keyed = {kwargs_spec.context[i]: kwargs_spec.child(i) for i in kept}
    tree = pytree.tree_unflatten([0] * info.in_spec.num_leaves, info.in_spec)
    spec = pytree.tree_structure((tree[0], {name: tree[1][name] for name in keyed}))
    for node in list(graph.graph.find_nodes(op="placeholder")):
        if node.name in names and not node.users:
            graph.graph.erase_node(node)
    kept_names = [name for name in info.orig_args if name not in names]
    graph.graph._codegen.pytree_info = info._replace(orig_args=kept_names, in_spec=spec)  # type: ignore[attr-defined]
    graph._in_spec = spec
    graph.recompile()
