"""Distillation: train a student on a teacher's softened logits and on its hidden states, module by module.

The teacher is any module; the student is the module of a Program, whose graph records the module path of each value (`nn_module_stack`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F  # noqa: N812 - its usual name
from torch.utils import _pytree as pytree

from fxprune.analysis import analyze
from fxprune.errors import UsageError
from fxprune.gates.gate import unwrapped
from fxprune.ir import Program


@dataclass(frozen=True)
class Losses:
    """The losses of one batch: from the logits, and from the hidden states (0 where none are matched)."""

    logits: Tensor
    hidden: Tensor


class Distillation(nn.Module):
    """Distillation losses; the parameters are trainable maps from the student's hidden sizes to the teacher's, initially identities.

    `pairs` matches module paths of the student with those of the teacher; their floating-point outputs, (…, hidden), are compared where
    `mask` (batch, length) is 1. `example` is a batch to run the teacher on, for the sizes of its outputs. `temperature` divides the logits
    of both; the loss is not multiplied by its square (GRAIN, arXiv 2212.07634). The teacher may be a Program's module, too.
    UsageError for a path that one of the two does not have, or where the student is no Program's module.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        example: Mapping[str, Any],
        pairs: Mapping[str, str] | None = None,
        temperature: float = 8.0,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.pairs = dict(pairs or {})
        teacher.eval()
        self._listened: tuple[str, ...] = ()
        if isinstance(teacher, fx.GraphModule):
            teacher = _twin(teacher)
        else:
            self._listened = tuple(self.pairs.values())
        self._teacher = [teacher]  # in a list: its weights are not among the parameters here
        self._taught: dict[str, Tensor] = {}
        self.shown: dict[str, Tensor] = {}
        graph = unwrapped(student)
        if not isinstance(graph, fx.GraphModule):
            raise UsageError(f"the student must be a Program's module, got {type(graph).__name__}")
        sizes = {path: tap(graph, path, self._taught, "student") for path in self.pairs}
        for path in self.pairs.values():
            if isinstance(teacher, fx.GraphModule):
                tap(teacher, path, self.shown, "teacher")
            elif path not in paths(teacher):
                raise UsageError(f"the teacher has no module {path!r}")
        self.show(**example)
        made = {path: _identity(sizes[path], self.shown[other]) for path, other in self.pairs.items()}
        self.maps = nn.ModuleDict({_key(path): linear for path, linear in made.items()})

    def show(self, **batch: Any) -> Any:
        """Return the teacher's outputs for a batch; store its hidden states in `shown`, by the teacher's paths, for `losses`."""
        with torch.no_grad(), _listening(self._teacher[0], self._listened, self.shown):
            return self._teacher[0](**batch)

    def losses(
        self, taught: Tensor, shown: Tensor, mask: Tensor | None = None, counted: Tensor | None = None
    ) -> Losses:
        """Return the losses from the logits of student and teacher, (rows, …, classes), and from the hidden states of their last runs.

        The loss of the logits is the mean over the positions where `counted` (rows, …) is true (None: all).
        """
        counted = torch.ones_like(taught[..., 0], dtype=torch.bool) if counted is None else counted
        soft = F.log_softmax(taught[counted] / self.temperature, dim=-1)
        wanted = F.softmax(shown[counted] / self.temperature, dim=-1)
        logits = F.cross_entropy(soft, wanted, reduction="sum") / max(1, len(soft))
        hidden = logits.new_zeros(())
        for path, other in self.pairs.items():
            ours = self.maps[_key(path)](self._taught[path])
            hidden = hidden + _distance(ours, self.shown[other], mask)
        return Losses(logits, hidden)


def paths(module: nn.Module) -> set[str]:
    """Return the paths of the modules in a teacher or a student."""
    if isinstance(module, fx.GraphModule):
        return {path for node in module.graph.nodes for path in _modules(node)}
    return {path for path, _ in module.named_modules()}


def matched(program: Program, teacher: nn.Module, most: int = 6) -> dict[str, str]:
    """Return pairs for a teacher with the same module paths: the input of the first layer and the outputs of at most `most` layers.

    With more layers, every second one, or third, and so on is matched (GRAIN: 0, 2, …, 12 of 12).
    """
    analysis = analyze(program)
    known = paths(teacher)
    layers = [region for region in analysis.regions if region.unit == "layer" and not region.why]
    step = max(1, -(-len(layers) // most))
    wanted = [layer.name for layer in layers[step - 1 :: step]]
    entry = layers[0].entries[0] if layers else ""
    node = next((n for n in program.graph.nodes if n.name == entry), None)
    behind = _modules(node) if node else ()
    first = [path for path in behind if path and _result(program.graph_module, path, "") is node]
    return {path: path for path in (*first[:1], *wanted) if path in known}


def tap(graph: fx.GraphModule, path: str, seen: dict[str, Tensor], who: str) -> int:
    """Store the output of the module of this path in `seen` whenever the graph runs; return the size of its last dimension."""
    node = _result(graph, path, who)
    name = f"_tap_{path.replace('.', '_')}"
    graph.add_submodule(name, nn.Identity())
    with graph.graph.inserting_after(node):
        passed = graph.graph.call_module(name, (node,))
    passed.meta = dict(node.meta)
    node.replace_all_uses_with(passed, delete_user_cb=lambda user: user is not passed)
    graph.recompile()
    graph.get_submodule(name).register_forward_hook(lambda module, args, out: seen.__setitem__(path, out))
    return int(node.meta["val"].shape[-1])


def _result(graph: fx.GraphModule, path: str, who: str) -> fx.Node:
    """Return the last floating-point value that a module computes and that is read outside of it; UsageError where there is none."""
    inside: list[fx.Node] = [node for node in graph.graph.nodes if path in _modules(node)]
    for node in reversed(inside):
        value = node.meta.get("val")
        leaves = any(path not in _modules(user) for user in node.users)
        if isinstance(value, Tensor) and value.is_floating_point() and leaves:
            return node
    known = dict.fromkeys(found for node in graph.graph.nodes for found in _modules(node) if found)
    raise UsageError(f"the {who} has no module {path!r} whose output is read; modules: {', '.join(known)}")


def _modules(node: fx.Node) -> tuple[str, ...]:
    return tuple(path for path, _ in (node.meta.get("nn_module_stack") or {}).values())


def _twin(teacher: fx.GraphModule) -> fx.GraphModule:
    """Return a copy of the graph with the same weights, so that taps leave the teacher unchanged."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(teacher.graph, {}))
    graph.set_codegen(copy.copy(teacher.graph._codegen))
    return fx.GraphModule(teacher, graph)


@contextmanager
def _listening(teacher: nn.Module, paths_: Iterable[str], shown: dict[str, Tensor]) -> Iterator[None]:
    """Store the outputs of the modules of these paths in `shown` while the teacher runs."""
    handles = [
        teacher.get_submodule(path).register_forward_hook(
            lambda _, __, out, path=path: shown.__setitem__(path, _first(out))
        )
        for path in paths_
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _first(out: Any) -> Tensor:
    """Return the first floating-point tensor among a module's outputs."""
    tensors = (leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor))
    return next(leaf for leaf in tensors if leaf.is_floating_point())


def _key(path: str) -> str:
    """Return a path as a module name, which can't have dots."""
    return path.replace(".", "_")


def _identity(ours: int, shown: Tensor) -> nn.Linear:
    made = nn.Linear(ours, int(shown.shape[-1]), device=shown.device, dtype=shown.dtype)
    nn.init.eye_(made.weight)
    nn.init.zeros_(made.bias)
    return made


def _distance(ours: Tensor, theirs: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean squared difference, over the positions where the mask is 1."""
    squares = (ours - theirs).square().mean(-1)
    if mask is None:
        return squares.mean()
    weight = mask.to(squares.dtype)
    return (squares * weight).sum() / weight.sum()
