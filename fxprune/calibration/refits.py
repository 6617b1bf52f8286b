"""Re-fits after a cut: linear maps with the values of the original program that they are fitted to, and attention logits."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.analysis import Analysis, analyze
from fxprune.analysis.linear_maps import LinearMap, linear_maps
from fxprune.analysis.logits import Logits, Side, find_logits
from fxprune.dims import Kept, changes, cut
from fxprune.dims.masks import keep_mask
from fxprune.ir import Program, Selection, bind
from fxprune.rewrite.bypass import bypass
from fxprune.rewrite.shrink import kept_masks
from fxprune.rules.traits import is_idle_dropout

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class FitTask:
    """A linear map of the pruned program, the original's value to fit it to, and the other addend where that is a residual sum.

    `cut` removes the pruned units from the original's value.
    """

    map: LinearMap
    target: fx.Node
    other: fx.Node | None
    cut: Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Cut:
    """The original program without the branches that a selection removed, analysed, and the indices that its axes keep."""

    analysis: Analysis
    kept: Kept

    @classmethod
    def of(cls, program: Program, selection: Selection) -> Cut:
        """Return the cut of a selection."""
        analysis = analyze(bypass(program, selection.removed))
        return cls(analysis, kept_masks(analysis, replace(selection, removed=(), model="")))

    def tensors(self, new: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors of the original, by name, without the removed units."""
        nodes = self.analysis.program.graph.find_nodes(op="get_attr")
        dims = {str(node.target): self.analysis.flow.dims[node] for node in nodes if str(node.target) in new}
        return {name: cut(value, dims[name], self.kept) for name, value in new.items()}

    def tasks(
        self,
        program: Program,
        slim: Program,
        everywhere: bool,
        moved: Collection[str],
        further: Collection[str],
    ) -> list[FitTask]:
        """Return the linear maps of `slim` to re-fit, in graph order: `everywhere`, or those that read removed units or are `moved`."""
        wanted = {name: name in further for name in ("kernels", "norms")}
        before = linear_maps(self.analysis.program, self.analysis.flow, **wanted)
        nodes = {node.name: node for node in program.graph.nodes}
        order = {node: i for i, node in enumerate(slim.graph.nodes)}
        lost = {c.node.name for c in self.analysis.flow.contractions if changes(c.dim, self.kept)} | set(
            moved
        )
        tasks = []
        for name, each in linear_maps(slim, analyze(slim).flow, **wanted).items():
            first = each.matrix.node.name if each.matrix else ""
            if name in before and (everywhere or first in lost) and self._is_alike(before[name].node):
                met, other = _residual_sum(each.node, order)
                target, other = (nodes[met.name], other) if met.name in nodes else (nodes[name], None)
                dims = self.analysis.flow.dims[before[name].node]
                tasks.append(FitTask(each, target, other, partial(cut, dims=dims, kept=self.kept)))
        return tasks

    def _is_alike(self, node: fx.Node) -> bool:
        """Return whether the dimensions of a value that lose units have the same size in all batches."""
        pairs = zip(node.meta["val"].shape, self.analysis.flow.dims[node], strict=True)
        return all(isinstance(size, int) for size, dim in pairs if changes(dim, self.kept))

    def logits(self) -> tuple[list[tuple[Logits, Tensor]], dict[str, str]]:
        """Return (the logits that lose channels, with what heads keep of them [heads, d]; why others can't be re-fitted, by node)."""
        flow = self.analysis.flow
        found: list[tuple[Logits, Tensor]] = []
        refused: dict[str, str] = {}
        for contraction, each in find_logits(self.analysis.program, flow):
            if not changes(contraction.dim, self.kept):
                continue
            why = each if isinstance(each, str) else self._unlike(each)
            if why or isinstance(each, str):
                refused[contraction.node.name] = why
            else:
                found.append((each, self._keeps(each.query)))
        return found, refused

    def _keeps(self, side: Side) -> Tensor:
        """Return which channels each head keeps [heads, d]; of a head that goes as a whole, all."""
        dim = self.analysis.flow.dims[side.matrix.node][-side.matrix.outputs]
        keeps = keep_mask(dim, self.kept)[side.channels]
        return keeps | ~keeps.any(1, keepdim=True)

    def _unlike(self, logits: Logits) -> str:
        """Return why queries and keys don't keep the same channels, "" where they do."""
        sides = (self._keeps(logits.query), self._keeps(logits.key))
        for queries, keys in logits.groups:
            rows = torch.cat([sides[0][queries], sides[1][keys]])
            cut_rows = rows[~rows.all(1)]
            if len(cut_rows) and not bool((cut_rows == cut_rows[0]).all()):
                return f"heads of {logits.node.name} that share keys keep different channels"
        return ""


def _residual_sum(node: fx.Node, order: Mapping[fx.Node, int]) -> tuple[fx.Node, fx.Node | None]:
    """Return (the residual sum that alone reads the result of a map, the other addend); (the node itself, None) where there is none."""
    current = node
    while len(current.users) == 1:
        user = next(iter(current.users))
        if is_idle_dropout(user):
            current = user
            continue
        if user.target not in (aten.add.Tensor, aten.add_.Tensor) or bind(user)["alpha"].value != 1:
            break
        others = [arg for arg in user.args if isinstance(arg, fx.Node) and arg is not current]
        known = [other for other in others if other.op != "get_attr" and order[other] < order[node]]
        ready = [other for other in known if _shape(other) == _shape(node)]
        return (user, ready[0]) if ready else (node, None)
    return node, None


def _shape(node: fx.Node) -> tuple[Any, ...]:
    value = node.meta["val"]
    return tuple(value.shape) if isinstance(value, Tensor) else ()
