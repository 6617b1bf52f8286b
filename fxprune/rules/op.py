"""What a rule sees: one node of the graph, with the dims of its operands, and the verbs with which it speaks of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch.fx import Node

from fxprune.dims import dim as algebra
from fxprune.dims.dim import Dim
from fxprune.rules.notation import Term, parse_notation
from fxprune.rules.routing import Candidates, Routing

Shape: TypeAlias = tuple[Dim, ...]
Dims: TypeAlias = Shape | tuple[Shape, ...]
Path: TypeAlias = tuple[str | int, ...]


@dataclass(frozen=True)
class Contraction:
    """A sum over a dim at a node; `operands` are the values that carry it."""

    node: Node
    dim: Dim
    operands: tuple[Node, ...]


@dataclass(frozen=True)
class Choice:
    """A choice among the positions of a dim, place `place` of the first operand of `node`: one that holds `loser` is as good as absent."""

    node: Node
    dim: Dim
    place: int
    loser: float


@dataclass(frozen=True)
class SizeArgument:
    """An integer argument that is the size of a dim, `offset` added."""

    path: Path
    dim: Dim
    offset: int = 0


@dataclass
class Flow:
    """What the walk over a graph has gathered: dims of values, and facts about dims.

    `least` says how many positions a dim must keep; `choices`, where positions of a dim are candidates.
    """

    dims: dict[Node, Any] = field(default_factory=dict)
    sizes: dict[Node, list[SizeArgument]] = field(default_factory=dict)
    routing: Routing = field(default_factory=Routing)
    choices: list[Choice] = field(default_factory=list)
    least: list[tuple[Dim, int, Node]] = field(default_factory=list)
    contractions: list[Contraction] = field(default_factory=list)
    inexact: list[tuple[Dim, str, Node]] = field(default_factory=list)
    roles: list[tuple[Dim, str]] = field(default_factory=list)
    varies: set[Node] = field(default_factory=set)
    unknown: dict[Node, str] = field(default_factory=dict)
    pins: list[tuple[Dim, Node]] = field(default_factory=list)


_UNKNOWN = 17
"""What a size that depends on data counts as."""


def hint(size: Any) -> int:
    """A size as a number: a symbolic one by its value in the example inputs, a data-dependent one by a stand-in."""
    if isinstance(size, int):
        return size
    value = getattr(size.node, "hint", None)
    return int(value) if value is not None else _stand_in(size)


def _stand_in(size: Any) -> int:
    expression = size.node.expr
    known = getattr(size.node.shape_env, "backed_var_to_val", {})
    value = expression.xreplace({symbol: known.get(symbol, _UNKNOWN) for symbol in expression.free_symbols})
    return max(0, int(value))


def shape_of(value: Any) -> tuple[int, ...] | None:
    """The sizes of a tensor value; None for what is no tensor."""
    return tuple(hint(size) for size in value.shape) if isinstance(value, torch.Tensor) else None


@dataclass(frozen=True)
class Argument:
    """A bound argument: its value, and where it stands in the node (None for a default)."""

    value: Any
    path: Path | None


class Op:
    """One node under a rule."""

    def __init__(self, node: Node, flow: Flow) -> None:
        self.node = node
        self.flow = flow
        self.arguments = bind(node)

    def __getitem__(self, name: str) -> Any:
        """The value of an argument, by its name in the operator's schema (None where absent)."""
        found = self.arguments.get(name)
        return found.value if found else None

    def has(self, name: str) -> bool:
        return isinstance(self[name], Node) and self[name] in self.flow.dims

    def dims(self, name: str) -> Shape:
        """The dims of a tensor argument."""
        shape: Shape = self.flow.dims[self[name]]
        return shape

    def integers(self, name: str) -> tuple[int, ...]:
        """A list of integers (or one integer) as numbers, symbolic ones by their value in the example."""
        value = self[name]
        items = value if isinstance(value, (list, tuple)) else () if value is None else (value,)
        return tuple(as_int(item) for item in items)

    def integer(self, name: str) -> int:
        return as_int(self[name])

    @property
    def out(self) -> tuple[int, ...]:
        """The sizes of the result."""
        return shape_of(self.node.meta["val"]) or ()

    @property
    def outs(self) -> tuple[tuple[int, ...], ...]:
        """The sizes of the results of an operator that has several."""
        return tuple(shape_of(value) or () for value in self.node.meta["val"])

    def fresh(self) -> Shape:
        """New dims for the result."""
        return tuple(algebra.atom(size) for size in self.out)

    def unify(self, left: Dim, right: Dim) -> Dim:
        """Make two dims one; the larger of the two is returned, for size 1 broadcasts."""
        algebra.unify(left, right, self.node.name)
        return right if left.size == 1 else left

    def unify_all(self, left: Sequence[Dim], right: Sequence[Dim]) -> Shape:
        return tuple(self.unify(one, other) for one, other in zip(left, right, strict=True))

    def pin(self, dims: Dim | Iterable[Dim], why: str) -> None:
        for dim in (dims,) if isinstance(dims, Dim) else dims:
            self.flow.pins.append((dim, self.node))
            algebra.pin(dim, why, self.node.name)

    def opaque(self, why: str) -> Shape:
        """Nothing can be said: the dims of all operands stay whole, and so do the result's."""
        for node in self.tensors():
            self.pin(self.flow.dims[node], why)
        result = self.fresh()
        self.pin(result, why)
        return result

    def size(self, dim: Dim, name: str, *index: int, offset: int = 0) -> None:
        """Say that an integer argument is the size of a dim (plus `offset`), so that `shrink` keeps it true."""
        found = self.arguments.get(name)
        if found is not None and found.path is not None:
            said = SizeArgument((*found.path, *index), dim, offset)
            self.flow.sizes.setdefault(self.node, []).append(said)

    def contract(self, dim: Dim, *operands: str | Node) -> None:
        nodes = tuple(self[name] if isinstance(name, str) else name for name in operands)
        self.flow.contractions.append(Contraction(self.node, dim, nodes))

    def choose(self, place: int, loser: float, least: int = 1) -> None:
        """Say that the node chooses at least `least` among the positions of a dim of its first operand, never one that holds `loser`.

        The dim stays whole where the numbers of the chosen are read in a way that does not survive renumbering.
        """
        value: Node = self.node.args[0]  # type: ignore[assignment]
        dim = self.flow.dims[value][place]
        stray = self.flow.routing.strays.get(Candidates(value, place))
        if stray is not None:
            self.pin(dim, f"{stray.name} = {stray.target} reads the numbers of the chosen")
        elif not value.meta["val"].is_floating_point():
            self.pin(dim, f"{self.node.target} gives positions along it")
        least += self.flow.routing.excluded.get(value, 0)
        self.flow.choices.append(Choice(self.node, dim, place, loser))
        self.flow.least.append((dim, least, self.node))
        self.role(dim, "choice")

    def chosen(self, node: Any, table: str = "numbers") -> Dim | None:
        """The dim whose positions a value's contents number (or count, or delimit); None where it is not known."""
        found = getattr(self.flow.routing, table).get(node)
        return self.flow.dims[found.value][found.place] if found else None

    def look_up(self, dim: Dim, node: Any, why: str) -> None:
        """A dim is looked up by the contents of a value: it is the dim that they number, or stays whole."""
        numbered = self.chosen(node)
        if numbered is None or numbered.size != dim.size:
            self.pin((dim, numbered) if numbered else dim, why)
        else:
            self.unify(dim, numbered)

    def inexact(self, dims: Dim | Iterable[Dim], why: str) -> None:
        for dim in (dims,) if isinstance(dims, Dim) else dims:
            self.flow.inexact.append((dim, why, self.node))

    def role(self, dims: Dim | Iterable[Dim], role: str) -> None:
        for dim in (dims,) if isinstance(dims, Dim) else dims:
            self.flow.roles.append((dim, role))

    def varies(self, name: str) -> bool:
        """Whether an argument depends on an input of the graph (weights and constants do not)."""
        return self[name] in self.flow.varies

    def tensors(self) -> list[Node]:
        """All tensor arguments in order, those within lists included."""
        return [node for node in operands(self.node) if node in self.flow.dims]


def as_int(value: Any) -> int:
    """An integer argument as a number: a literal, a symbolic size, or the node of one."""
    if isinstance(value, Node):
        value = value.meta["val"]
    return hint(value)


def bind(node: Node) -> dict[str, Argument]:
    """The node's arguments by the names of the operator's schema, defaults included."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {str(i): Argument(value, ("args", i)) for i, value in enumerate(node.args)}
    bound: dict[str, Argument] = {}
    for i, argument in enumerate(schema.arguments):
        if i < len(node.args):
            bound[argument.name] = Argument(node.args[i], ("args", i))
        elif argument.name in node.kwargs:
            bound[argument.name] = Argument(node.kwargs[argument.name], ("kwargs", argument.name))
        else:
            bound[argument.name] = Argument(argument.default_value, None)
    return bound


def unbind(node: Node, given: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(arguments, named arguments) of a node from values by the names of its operator's schema, all of them: the reverse of `bind`."""
    keyed = {argument.name for argument in node.target._schema.arguments if argument.kwarg_only}  # type: ignore[union-attr]
    plain = tuple(value for name, value in given.items() if name not in keyed)
    return plain, {name: value for name, value in given.items() if name in keyed}


def operands(node: Node) -> Iterator[Node]:
    """The nodes among a node's arguments, in order, those within lists included."""
    stack: list[Any] = [*node.args, *node.kwargs.values()]
    while stack:
        item = stack.pop(0)
        if isinstance(item, Node):
            yield item
        elif isinstance(item, (list, tuple)):
            stack[:0] = item


def broadcast(op: Op, shapes: Sequence[Shape], sizes: Sequence[int]) -> Shape:
    """Dims of a result that broadcasts operands, aligned from the right."""
    result: list[Dim] = []
    for place, size in enumerate(reversed(sizes)):
        aligned = [shape[-1 - place] for shape in shapes if place < len(shape)]
        carriers = [dim for dim in aligned if dim.size == size]
        for dim in carriers[1:]:
            op.unify(carriers[0], dim)
        result.append(carriers[0] if carriers and size != 1 else algebra.atom(size))
    return tuple(reversed(result))


def apply_notation(op: Op, notation: str, roles: dict[str, str]) -> Dims:
    """Run a rule that is written in notation; operands are the operator's tensor arguments in schema order."""
    signature = parse_notation(notation)
    names = [n for n, a in op.arguments.items() if _is_operand(op, n, a)]
    words: dict[str, Dim] = {}
    stars: list[Shape] = []
    carriers: dict[str, list[Node]] = {}
    for terms, name in zip(signature.operands, names, strict=False):
        if op.has(name):
            _read_operand(op, terms, name, words, stars, carriers)
    star = broadcast(op, stars, _star_sizes(stars)) if stars else ()
    for word in signature.contracted:
        if word in words and word != "*":
            op.contract(words[word], *carriers[word])
    for word, role in roles.items():
        op.role(words[word], role)
    results = tuple(_write(result, words, star) for result in signature.results)
    return results[0] if len(results) == 1 else results


def _is_operand(op: Op, name: str, argument: Argument) -> bool:
    return op.has(name) or (argument.value is None and _takes_tensor(op.node, name))


def _takes_tensor(node: Node, name: str) -> bool:
    found = next(a for a in node.target._schema.arguments if a.name == name)  # type: ignore[union-attr]
    return "Tensor" in str(found.type)


def _read_operand(
    op: Op,
    terms: tuple[Term, ...],
    name: str,
    words: dict[str, Dim],
    stars: list[Shape],
    carriers: dict[str, list[Node]],
) -> None:
    shape = list(op.dims(name))
    lead = len(shape) - sum(not term.star for term in terms)
    if any(term.star for term in terms):
        stars.append(tuple(shape[:lead]))
        shape = shape[lead:]
    for term, dim in zip((t for t in terms if not t.star), shape, strict=False):
        _read_term(op, term, dim, words)
        for word in term.words:
            carriers.setdefault(word, []).append(op[name])


def _read_term(op: Op, term: Term, dim: Dim, words: dict[str, Dim]) -> None:
    if len(term.words) == 1:
        word = term.words[0]
        words[word] = op.unify(words[word], dim) if word in words else dim
    elif all(word in words for word in term.words):
        op.unify(dim, algebra.product(words[word] for word in term.words))
    for word in term.pinned:
        op.pin(words[word], f"{op.node.target} reads it by position")


def _star_sizes(stars: Sequence[Shape]) -> list[int]:
    rank = max(len(shape) for shape in stars)
    columns = [[shape[-1 - i].size for shape in stars if i < len(shape)] for i in range(rank)]
    return [max(column) if 0 not in column else 0 for column in reversed(columns)]


def _write(terms: tuple[Term, ...], words: dict[str, Dim], star: Shape) -> Shape:
    shape: list[Dim] = []
    for term in terms:
        shape.extend(star if term.star else (algebra.product(words[word] for word in term.words),))
    return tuple(shape)
