"""Vocabulary pruning: keep only the rows of given token ids, in the embedding and in the head that predicts them.

Rows are looked up by value, so no axis of the analysis covers them: the inputs change their meaning (new ids), and the logits their size.
It is exact for inputs made of kept tokens: slim(new ids) == original(ids)[..., kept].
"""

from __future__ import annotations

import bisect
import json
import os
import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.analysis import analyze
from fxprune.dims import Dim, cut, find, leaves
from fxprune.errors import RefusedError, SelectionError, VerifyError
from fxprune.files import about, parse_json, read_text, write_text
from fxprune.ir import Program, attribute, bind, difference, run_example, source_line, tolerance
from fxprune.ir.edit import add_buffer
from fxprune.ir.signature import with_inputs
from fxprune.rewrite.dead_code import remove_dead
from fxprune.rewrite.shrink import shrink_atoms
from fxprune.rules import Flow, is_written, packet_of, traits_of

aten = torch.ops.aten

_FORMAT = "fxprune.tokens/1"

#: comparison: the same with its operands swapped
_COMPARISONS: dict[Any, Any] = {
    aten.eq: aten.eq,
    aten.ne: aten.ne,
    aten.lt: aten.gt,
    aten.le: aten.ge,
    aten.gt: aten.lt,
    aten.ge: aten.le,
}
_ORDERED = frozenset({aten.argmax, aten.argmin})
"""Operators that give the place of an extreme: new ids are in the order of the old ones."""


@dataclass(frozen=True)
class TokenIds:
    """Token ids of a slim model: `ids` are the old ids in the order of the new ones, ascending.

    `table` is the embedding's weight and `size` the number of rows it had; `inputs` take new ids, and `outputs` count tokens: their
    position i was position `ids[i]`.
    """

    ids: tuple[int, ...]
    table: str
    size: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def translate(self, old: Tensor) -> Tensor:
        """Return new ids for old ones; ValueError where one was not kept."""
        table = {one: new for new, one in enumerate(self.ids)}
        missing = sorted({int(i) for i in old.flatten()} - table.keys())
        if missing:
            raise ValueError(f"token {missing[0]} was not kept")
        return torch.tensor([table[int(i)] for i in old.flatten()], dtype=old.dtype).reshape(old.shape)

    def restore(self, new: Tensor) -> Tensor:
        """Return old ids for new ones, those that a slim model generates; IndexError where there is no such token."""
        return torch.tensor(self.ids, dtype=new.dtype)[new]

    def to_json(self) -> str:
        """Return the ids as JSON; the same tokens always give the same text."""
        data = {"format": _FORMAT, "table": self.table, "size": self.size}
        return json.dumps({**data, "inputs": self.inputs, "outputs": self.outputs, "ids": self.ids}) + "\n"

    @staticmethod
    def from_json(text: str) -> TokenIds:
        """Return token ids from their JSON text; SelectionError where it holds none."""
        data = parse_json(text, (_FORMAT, "ids", list), "list of token ids", SelectionError)
        ids, table, size = token_list(data["ids"]), data.get("table", ""), data.get("size")
        names = tuple(data.get(end, ()) for end in ("inputs", "outputs"))
        if not isinstance(table, str) or not all(map(_are_names, names)):
            raise SelectionError('"table" must be a name, "inputs" and "outputs" lists of names')
        if type(size) is not int or list(ids) != sorted(set(ids)) or not 0 <= ids[0] <= ids[-1] < size:
            raise SelectionError(f"token ids must be ascending, distinct and below the size {size}")
        return TokenIds(ids, table, size, *map(tuple, names))

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write the JSON; a file that exists stays unless `overwrite`."""
        write_text(path, self.to_json(), overwrite)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> TokenIds:
        """Read token ids from their JSON file."""
        with about(path):
            return TokenIds.from_json(read_text(path, "token ids", SelectionError))


@dataclass(frozen=True)
class Vocabulary(TokenIds):
    """Program with fewer tokens, and the map of their ids.

    `save` writes the map (not the program), and `load` reads it, for `translate` and `restore` beside a model file.
    """

    program: Program


def keep_tokens(
    program: Program, ids: Sequence[int], table: str | None = None, outputs: Sequence[str] = ()
) -> Vocabulary:
    """Keep only these token ids; `table` names the embedding's weight where several read inputs.

    A head that is tied to the table shrinks with it; for one that is not, `outputs` names the outputs whose last dimension counts tokens.
    An id that the ids are compared with (padding, end of text) is renumbered, too. RefusedError where the ids that the table reads are used
    for anything else (added to a position, say), or where another operator reads the rows of the table by position. `verify_tokens` proves
    the result.
    """
    analysis = analyze(program)
    kept = sorted(set(ids))
    tables = _tables(analysis.flow, program)
    found = {name: lookups for name, lookups in tables.items() if table in (None, name)}
    if len(found) != 1:
        asked = f"there is no table {table!r}" if table else "it is not clear which table holds the tokens"
        raise RefusedError(
            f"{asked}. Embeddings that read an input: {', '.join(tables) or 'none'}; pass one of them as "
            "table=… or --token-table (tied weights go by one of their names)"
        )
    name, lookups = next(iter(found.items()))
    leaf = _row_atom(analysis.flow, lookups[0])
    if not kept or kept[0] < 0 or kept[-1] >= leaf.size:
        raise RefusedError(f"token ids must lie in 0…{leaf.size - 1} ({name}), got {kept[:1]}…{kept[-1:]}")
    compared = _check_uses(analysis.flow, leaf, lookups)
    mask = torch.zeros(leaf.size, dtype=torch.bool)
    mask[kept] = True
    heads = [_head_atom(analysis.flow, program, output, leaf) for output in outputs]
    slim = shrink_atoms(analysis, dict.fromkeys([leaf, *heads], mask))
    _move_padding(slim.graph_module, [node.name for node in lookups], kept)
    _renumber(slim.graph_module, {node.name: place for node, place in compared.items()}, kept)
    inputs = tuple(dict.fromkeys(_source(node).name for node in lookups))
    counting = tuple(_counting(analysis.flow, program, {leaf, *heads}))
    return Vocabulary(tuple(kept), name, leaf.size, inputs, counting, _with_new_ids(slim, set(inputs), kept))


def verify_tokens(program: Program, vocabulary: Vocabulary) -> float:
    """Prove slim(new ids) == original(old ids)[..., kept] on ids drawn from the kept ones, all other inputs being the examples.

    Returns the largest relative difference; VerifyError where it is more than rounding explains.
    """
    analysis = analyze(program)
    old = {name: _drawn(value, vocabulary.ids) for name, value in _given(program, vocabulary.inputs).items()}
    new = {name: vocabulary.translate(value) for name, value in old.items()}
    got = run_example(with_inputs(vocabulary.program, new))
    wanted = _kept_positions(analysis.flow, program, vocabulary, run_example(with_inputs(program, old)))
    bar = tolerance(wanted)
    relative = difference(got, wanted)
    if not relative <= bar:
        raise VerifyError(
            f"with {len(vocabulary.ids)} of {vocabulary.size} tokens the outputs differ by {relative:.3g} (allowed {bar:.0e})"
        )
    return relative


def _drawn(value: Tensor, ids: tuple[int, ...]) -> Tensor:
    places = torch.randint(0, len(ids), value.shape, generator=torch.Generator().manual_seed(0))
    return torch.tensor(ids, dtype=value.dtype)[places]


def _kept_positions(
    flow: Flow, program: Program, tokens: TokenIds, outputs: Sequence[Tensor]
) -> list[Tensor]:
    """Return the outputs, those that count tokens cut to the kept ones."""
    nodes = program.named_outputs()
    atoms = {find(flow.dims[nodes[name]][-1]) for name in tokens.outputs}
    atoms.add(_table_atom(flow, tokens.table))
    mask = torch.zeros(tokens.size, dtype=torch.bool)
    mask[list(tokens.ids)] = True
    kept = {atom: mask for atom in atoms if atom.size == tokens.size}
    return [cut(value, flow.dims[node], kept) for node, value in zip(nodes.values(), outputs, strict=True)]


def _table_atom(flow: Flow, table: str) -> Dim:
    return next(find(dims[0]) for node, dims in flow.dims.items() if node.target == table)


def _counting(flow: Flow, program: Program, atoms: set[Dim]) -> Iterator[str]:
    """Yield the outputs along which one of these atoms runs."""
    for name, node in program.named_outputs().items():
        if any(leaf in atoms for dim in flow.dims.get(node, ()) for leaf in leaves(dim)):
            yield name


def _tables(flow: Flow, program: Program) -> dict[str, list[fx.Node]]:
    """Return the lookups whose ids come straight from an input, by the table's name; tied tables share one."""
    found: dict[Dim, list[fx.Node]] = {}
    for node in program.graph.find_nodes(op="call_function", target=aten.embedding.default):
        if _source(node).op == "placeholder" and _weight(node).op == "get_attr":
            found.setdefault(_row_atom(flow, node), []).append(node)
    return {str(_weight(nodes[0]).target): nodes for nodes in found.values()}


def _weight(lookup: fx.Node) -> fx.Node:
    weight: Any = lookup.args[0]
    return weight  # type: ignore[no-any-return]


def _head_atom(flow: Flow, program: Program, output: str, table: Dim) -> Dim:
    """Return the atom of an output's last dimension; RefusedError unless it counts tokens and nothing else reads it by position."""
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
    """Return the node that the ids come from, behind movements."""
    return _origin(lookup.args[1])


def _origin(node: Any) -> fx.Node:
    while _moves_ids(node):
        node = node.args[0]
    return node  # type: ignore[no-any-return]


def _moves_ids(node: fx.Node) -> bool:
    """Return whether a node passes ids on as they are, elsewhere, in part, or as wide integers."""
    row = traits_of(node.target)
    if row.passes == "cast":
        return node.meta["val"].dtype in (torch.int32, torch.int64)
    return row.moves not in ("", "join", "pick") or row.passes in ("alias", "copy")


def _check_uses(flow: Flow, leaf: Dim, lookups: list[fx.Node]) -> dict[fx.Node, int]:
    """Return the comparisons of the ids with constants, and which operand is the constant; RefusedError for any other use."""
    uses = [(dim, node, "reads it by position") for dim, node in flow.pins]
    uses += [(dim, node, "computes a statistic over it") for dim, _, node in flow.inexact]
    for dim, node, what in uses:
        if any(one is leaf for one in leaves(dim)) and node not in lookups and node.op != "output":
            raise RefusedError(
                f"the vocabulary stays whole: {node.name} = {node.target} {what} [{source_line(node)}]"
            )
    sources = {_source(lookup) for lookup in lookups}
    return {node: place for source in sources for node, place in _check_ids(source, lookups, sources).items()}


def _check_ids(node: fx.Node, lookups: list[fx.Node], sources: set[fx.Node]) -> dict[fx.Node, int]:
    compared: dict[fx.Node, int] = {}
    for user in node.users:
        if user in lookups or traits_of(user.target).shape_only or packet_of(user.target) in _ORDERED:
            continue
        if packet_of(user.target) in _COMPARISONS and _is_known(user, sources):
            compared |= [(user, i) for i, operand in enumerate(user.args[:2]) if _is_constant(operand)]
            continue
        if not _moves_ids(user):
            raise RefusedError(
                f"the vocabulary stays whole: {user.name} = {user.target} {_reading(node, user)} [{source_line(user)}]"
            )
        compared |= _check_ids(user, lookups, sources)
    return compared


def _is_known(comparison: fx.Node, sources: set[fx.Node]) -> bool:
    """Return whether ids are compared with each other or with constants, so that renumbering keeps the result."""
    return all(_is_constant(operand) or _origin(operand) in sources for operand in comparison.args[:2])


def _is_constant(operand: Any) -> bool:
    """Return whether an operand is a number, or an integer buffer that nothing writes into."""
    if not isinstance(operand, fx.Node):
        return isinstance(operand, int | float)
    whole = not operand.meta["val"].is_floating_point() if "val" in operand.meta else False
    return operand.op == "get_attr" and whole and not is_written(operand)


def _renumber(graph: fx.GraphModule, compared: dict[str, int], kept: list[int]) -> None:
    """Replace the old ids that the ids are compared with by new ones; an id that was not kept by one that is in the same order."""
    for node in [node for node in graph.graph.nodes if node.name in compared]:
        place = compared[node.name]
        packet, old = packet_of(node.target), node.args[place]
        packet = packet if place else _COMPARISONS[packet]
        if isinstance(old, fx.Node):
            value = attribute(graph, str(old.target))
            ids = [_new_id(packet, int(one), kept) for one in value.flatten()]
            with graph.graph.inserting_before(node):
                moved = value.new_tensor(ids, dtype=torch.int64).reshape(value.shape)
                new: Any = add_buffer(graph, f"_new_{old.name}", moved)
        else:
            new = _new_id(packet, old, kept)
        node.update_arg(place, new)
    remove_dead(graph)
    graph.recompile()


def _new_id(comparison: Any, old: float, kept: list[int]) -> int:
    """Return the new id that ids are to be compared with instead of an old one; −1, which equals none, where it was not kept."""
    if comparison in (aten.eq, aten.ne):
        return kept.index(int(old)) if old in kept else -1
    below = comparison in (aten.lt, aten.ge)
    return bisect.bisect_left(kept, old) if below else bisect.bisect_right(kept, old) - 1


def _reading(ids: fx.Node, user: fx.Node) -> str:
    """Say what a node does with ids that are no longer what they were."""
    row = traits_of(user.target)
    if row.indices and bind(user)[row.indices].value is not ids and user.args[0] is ids:
        return "picks some of the ids"
    if row.indices:
        return "looks up by the ids in something else"
    return "joins the ids with others" if row.moves == "join" else "reads the ids themselves"


def _move_padding(graph: fx.GraphModule, lookups: list[str], kept: list[int]) -> None:
    """Renumber padding_idx, an old id that concerns gradients only; −1 where it was not kept."""
    for node in graph.graph.find_nodes(op="call_function", target=aten.embedding.default):
        padding = bind(node)["padding_idx"].value
        if node.name in lookups and isinstance(padding, int) and padding >= 0:
            moved = kept.index(padding) if padding in kept else -1
            node.args = (*node.args[:2], moved, *node.args[3:])
    graph.recompile()


def _with_new_ids(slim: Program, names: set[str], kept: list[int]) -> Program:
    """Translate the example inputs into new ids; a token that was not kept becomes token 0."""
    table = {old: new for new, old in enumerate(kept)}

    def translate(value: Tensor) -> Tensor:
        new = torch.tensor([table.get(int(i), 0) for i in value.flatten()], dtype=value.dtype)
        return new.reshape(value.shape)

    return with_inputs(slim, {name: translate(value) for name, value in _given(slim, tuple(names)).items()})


def _given(program: Program, names: Sequence[str]) -> dict[str, Tensor]:
    """Return the example inputs of these names."""
    order = [node.name for node in program.placeholders()]
    pairs = zip(order, program.flat_inputs(), strict=True)
    return {name: value for name, value in pairs if name in names and isinstance(value, Tensor)}


def _are_names(found: Any) -> bool:
    return isinstance(found, list | tuple) and all(isinstance(name, str) for name in found)


def token_list(found: Any) -> tuple[int, ...]:
    """Return a list of integers, at least one, as a tuple; SelectionError where it is none."""
    ids = found if isinstance(found, Sequence) and not isinstance(found, str) else [None]
    wrong = [value for value in ids if not isinstance(value, int) or isinstance(value, bool)]
    if wrong or not ids:
        raise SelectionError(
            f"expected a list of token ids (integers, at least one), got {reprlib.repr((wrong or [found])[0])}"
        )
    return tuple(ids)
