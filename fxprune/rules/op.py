"""Op, the argument of a rule: one node with the dims of its operands, and methods that record facts about them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch.fx import Node

from fxprune.dims import Dim, atom
from fxprune.dims.dim import pin
from fxprune.dims.unify import unify
from fxprune.ir import bind, operands, shape_of
from fxprune.ir.arguments import as_int
from fxprune.rules.facts import Choice, Contraction, Dims, Flow, Shape, SizeArgument
from fxprune.rules.routing import Candidates


class Op:
    """One node with the dims of its operands, and the Flow in which its rule records facts."""

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
        return tuple(atom(size) for size in self.out)

    def unify(self, left: Dim, right: Dim) -> Dim:
        """Make two dims one, and return the larger of the two, since size 1 broadcasts."""
        unify(left, right, self.node.name)
        return right if left.size == 1 else left

    def unify_all(self, left: Sequence[Dim], right: Sequence[Dim]) -> Shape:
        return tuple(self.unify(one, other) for one, other in zip(left, right, strict=True))

    def pin(self, dims: Dim | Iterable[Dim], why: str) -> None:
        for dim in (dims,) if isinstance(dims, Dim) else dims:
            self.flow.pins.append((dim, self.node))
            pin(dim, why, self.node.name)

    def fixed(self, sizes: Sequence[int], why: str) -> Shape:
        """New dims of these sizes, pinned."""
        shape = tuple(atom(size) for size in sizes)
        self.pin(shape, why)
        return shape

    def opaque(self, why: str) -> Shape:
        """Pin the dims of all operands and of the result, for operators of which nothing more is known."""
        for node in self.tensors():
            self.pin(self.flow.dims[node], why)
        return self.fixed(self.out, why)

    def listed(self) -> Dims:
        """Pin the dims of all operands and of the result, or the results: positions along the operands' dims."""
        why = f"{self.node.target} lists positions along it"
        for node in self.tensors():
            self.pin(self.flow.dims[node], why)
        several = isinstance(self.node.meta["val"], (tuple, list))
        return tuple(self.fixed(out, why) for out in self.outs) if several else self.fixed(self.out, why)

    def size(self, dim: Dim, name: str, *index: int, offset: int = 0) -> None:
        """Record that an integer argument is the size of a dim (plus `offset`), so that it is updated when the dim shrinks."""
        found = self.arguments.get(name)
        if found is not None and found.path is not None:
            said = SizeArgument((*found.path, *index), dim, offset)
            self.flow.sizes.setdefault(self.node, []).append(said)

    def contract(self, dim: Dim, *operands: str | Node) -> None:
        nodes = tuple(self[name] if isinstance(name, str) else name for name in operands)
        self.flow.contractions.append(Contraction(self.node, dim, nodes))

    def choose(self, place: int, loser: float, least: int = 1) -> None:
        """Record that the node chooses at least `least` among the positions of a dim of its first operand, never one that holds `loser`.

        The dim is pinned where the numbers of the chosen are read in a way that does not survive renumbering, or the operand is no float.
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

    def part(self) -> bool:
        """Record that the node takes single positions that can leave with their addends; False where it takes parts otherwise."""
        of = self.flow.addends.taken(self.node)
        if of is None:
            return False
        dim = self.flow.dims[of.value][of.place]
        self.flow.choices.append(Choice(self.node, dim, of.place, 0.0))
        self.role(dim, "experts")
        first = self.flow.addends.takers[of][0]
        if self.node in (
            first,
            *first.all_input_nodes,
        ):  # one sum, however many nodes take its addends' shares
            self.contract(dim, of.value)
        return True

    def join(self, place: int) -> Dim | None:
        """The dim of operands side by side that can leave, one by one; None where the node joins them otherwise."""
        if self.node not in self.flow.addends.stacks:
            return None
        of = self.flow.addends.stacks[self.node]
        dim = self.flow.dims[of.value][of.place] if of else atom(self.out[place])
        self.flow.choices.append(Choice(self.node, dim, place, 0.0, joins=True))
        self.role(dim, "experts")
        return dim

    def chosen(self, node: Any, table: str = "numbers") -> Dim | None:
        """The dim whose positions a value contains as indices (or counts, or offsets, by `table`); None where it is not known."""
        found = getattr(self.flow.routing, table).get(node)
        return self.flow.dims[found.value][found.place] if found else None

    def look_up(self, dim: Dim, node: Any, why: str) -> None:
        """Record that a dim is indexed by the contents of `node`: unify it with the dim that they number, or pin it."""
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

    def looked_up(self, node: Any, what: str = "rows are looked up") -> str:
        """Say how positions are found: by values that an input decides, or at positions that are the same for all inputs."""
        return f"{what} by value" if node in self.flow.varies else f"{what} at fixed positions"

    def varies(self, name: str) -> bool:
        """Whether an argument depends on an input of the graph (weights and constants do not)."""
        return self[name] in self.flow.varies

    def tensors(self) -> list[Node]:
        """All tensor arguments in order, those within lists included."""
        return [node for node in operands(self.node) if node in self.flow.dims]
