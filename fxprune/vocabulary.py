"""Vocabulary: keep only the rows of given token ids, in the embedding and in the head that predicts them.

Rows are looked up by value, so no axis of the analysis covers them: the inputs change their meaning (new ids), and the logits their size.
It is exact for inputs made of kept tokens: slim(new ids) == original(ids)[..., kept].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxprune.analysis import analyze
from fxprune.dims import Dim, find, leaves
from fxprune.errors import RefusedError
from fxprune.program import Program, source_line
from fxprune.rules.op import Flow, bind
from fxprune.shrink import shrink_atoms

aten = torch.ops.aten

_PASSED_ON = (
    aten.view.default,
    aten.reshape.default,
    aten.unsqueeze.default,
    aten.slice.Tensor,
    aten.clone.default,
)
_NEUTRAL = (aten.sym_size.int,)


@dataclass(frozen=True)
class Vocabulary:
    """A program that speaks fewer tokens; `ids` are the old ids in the order of the new ones."""

    program: Program
    ids: tuple[int, ...]

    def translate(self, old: Tensor) -> Tensor:
        """New ids for old ones; ValueError where one was not kept."""
        table = {one: new for new, one in enumerate(self.ids)}
        missing = sorted({int(i) for i in old.flatten()} - table.keys())
        if missing:
            raise ValueError(f"token {missing[0]} was not kept")
        return torch.tensor([table[int(i)] for i in old.flatten()], dtype=old.dtype).reshape(old.shape)


def keep_tokens(
    program: Program, ids: Sequence[int], table: str | None = None, outputs: Sequence[str] = ()
) -> Vocabulary:
    """Keep only these token ids; `table` names the embedding's weight where several read inputs.

    A head that is tied to the table shrinks with it; for one that is not, `outputs` names the outputs whose last dimension counts tokens.
    RefusedError where the ids that the table reads are used for anything else (compared with a padding id, say), or where rows of
    the table mean something to another operator.
    """
    analysis = analyze(program)
    kept = sorted(set(ids))
    found = {
        name: lookups for name, lookups in _tables(analysis.flow, program).items() if table in (None, name)
    }
    if len(found) != 1:
        known = ", ".join(found) or "none"
        raise RefusedError(
            f"which table holds the tokens? Embeddings that read an input: {known}; pass table=…"
        )
    name, lookups = next(iter(found.items()))
    leaf = _row_atom(analysis.flow, lookups[0])
    if not kept or kept[0] < 0 or kept[-1] >= leaf.size:
        raise RefusedError(f"token ids must lie in 0…{leaf.size - 1} ({name}), got {kept[:1]}…{kept[-1:]}")
    _check_uses(analysis.flow, leaf, lookups)
    mask = torch.zeros(leaf.size, dtype=torch.bool)
    mask[kept] = True
    heads = [_head_atom(analysis.flow, program, output, leaf) for output in outputs]
    slim = shrink_atoms(analysis, dict.fromkeys([leaf, *heads], mask))
    _move_padding(slim.graph, [node.name for node in lookups], kept)
    inputs = {_source(node).name for node in lookups}
    return Vocabulary(_with_new_ids(slim, inputs, kept), tuple(kept))


def _tables(flow: Flow, program: Program) -> dict[str, list[fx.Node]]:
    """The lookups whose ids come straight from an input, by the table's name; tables that tie share one."""
    found: dict[Dim, list[fx.Node]] = {}
    for node in program.graph.graph.find_nodes(op="call_function", target=aten.embedding.default):
        if _source(node).op == "placeholder" and _weight(node).op == "get_attr":
            found.setdefault(_row_atom(flow, node), []).append(node)
    return {str(_weight(nodes[0]).target): nodes for nodes in found.values()}


def _weight(lookup: fx.Node) -> fx.Node:
    weight: Any = lookup.args[0]
    return weight  # type: ignore[no-any-return]


def _head_atom(flow: Flow, program: Program, output: str, table: Dim) -> Dim:
    """The atom of an output's last dimension, if it counts tokens and nothing else reads it by position."""
    nodes = program.named_outputs()
    if output not in nodes:
        raise RefusedError(f"no output {output!r}; outputs: {', '.join(nodes)}")
    head = find(flow.dims[nodes[output]][-1])
    if head.kind != "atom" or head.size != table.size:
        raise RefusedError(
            f"the last dimension of {output} has {head.size} positions, the table {table.size} rows"
        )
    if head is not table:
        _check_uses(flow, head, [])
    return head


def _row_atom(flow: Flow, lookup: fx.Node) -> Dim:
    return find(flow.dims[_weight(lookup)][0])


def _source(lookup: fx.Node) -> fx.Node:
    """Where the ids come from, behind movements."""
    node: Any = lookup.args[1]
    while node.target in _PASSED_ON:
        node = node.args[0]
    return node  # type: ignore[no-any-return]


def _check_uses(flow: Flow, leaf: Dim, lookups: list[fx.Node]) -> None:
    for dim, node in flow.pins:
        if any(one is leaf for one in leaves(dim)) and node not in lookups and node.op != "output":
            raise RefusedError(
                f"the vocabulary stays whole: {node.name} = {node.target} reads it by position [{source_line(node)}]"
            )
    for lookup in lookups:
        _check_ids(_source(lookup), lookups)


def _check_ids(node: fx.Node, lookups: list[fx.Node]) -> None:
    for user in node.users:
        if user in lookups or user.target in _NEUTRAL:
            continue
        if user.target not in _PASSED_ON:
            raise RefusedError(
                f"the vocabulary stays whole: {user.name} = {user.target} reads the ids themselves [{source_line(user)}]"
            )
        _check_ids(user, lookups)


def _move_padding(graph: fx.GraphModule, lookups: list[str], kept: list[int]) -> None:
    """padding_idx concerns gradients only, and names an old id."""
    for node in graph.graph.find_nodes(op="call_function", target=aten.embedding.default):
        padding = bind(node)["padding_idx"].value
        if node.name in lookups and isinstance(padding, int) and padding >= 0:
            moved = kept.index(padding) if padding in kept else -1
            node.args = (*node.args[:2], moved, *node.args[3:])
    graph.recompile()


def _with_new_ids(slim: Program, names: set[str], kept: list[int]) -> Program:
    """Example inputs in new ids; what was not kept becomes token 0."""
    table = {old: new for new, old in enumerate(kept)}

    def translate(name: str, value: Any) -> Any:
        if name not in names or not isinstance(value, Tensor):
            return value
        return torch.tensor([table.get(int(i), 0) for i in value.flatten()], dtype=value.dtype).reshape(
            value.shape
        )

    order = [node.name for node in slim.placeholders()]
    flat = [translate(name, value) for name, value in zip(order, slim.flat_inputs(), strict=True)]
    _, tree = pytree.tree_flatten((tuple(slim.args), dict(slim.kwargs)), is_leaf=lambda x: x is None)
    args, kwargs = pytree.tree_unflatten(_in_given_order(slim, flat), tree)
    return slim.replace(args=args, kwargs=kwargs)


def _in_given_order(slim: Program, flat: Sequence[Any]) -> list[Any]:
    """Flat inputs in the order of `args` and `kwargs` (placeholders may stand in another)."""
    by_id: Mapping[int, Any] = {id(old): new for old, new in zip(slim.flat_inputs(), flat, strict=True)}
    given = pytree.tree_leaves((tuple(slim.args), dict(slim.kwargs)), is_leaf=lambda x: x is None)
    return [by_id.get(id(value), value) for value in given]
