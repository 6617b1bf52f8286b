"""Facts that rules record about dimensions, and the Flow that collects them over a graph."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch.fx import Node

from fxprune.dims import Dim
from fxprune.ir.arguments import Path
from fxprune.rules.addends import Addends
from fxprune.rules.routing import Routing

Shape: TypeAlias = tuple[Dim, ...]

Dims: TypeAlias = Shape | tuple[Shape, ...]


@dataclass(frozen=True)
class Contraction:
    """A sum over a dim at a node; `operands` are the values that carry it."""

    node: Node
    dim: Dim
    operands: tuple[Node, ...]


@dataclass(frozen=True)
class Choice:
    """A choice among the positions of `dim`, dimension `place` of the node's first operand; one that holds `loser` counts as absent.

    Where the node joins its operands, the dimension is that of its result. A `loser` of 0 makes the position's addend in a sum zero.
    """

    node: Node
    dim: Dim
    place: int
    loser: float
    joins: bool = False

    @property
    def value(self) -> Node:
        """The value that holds the positions."""
        return self.node if self.joins else self.node.all_input_nodes[0]


@dataclass(frozen=True)
class SizeArgument:
    """An integer argument that is the size of a dim, `offset` added."""

    path: Path
    dim: Dim
    offset: int = 0


@dataclass
class Flow:
    """The dims of a graph's values, and the facts about dims that rules recorded.

    `least` has the number of positions that a dim must keep; `choices`, the nodes that choose among positions of a dim; `positions`, the
    constants that contain positions of a dim, which are renumbered when it shrinks.
    """

    dims: dict[Node, Any] = field(default_factory=dict)
    sizes: dict[Node, list[SizeArgument]] = field(default_factory=dict)
    routing: Routing = field(default_factory=Routing)
    addends: Addends = field(default_factory=Addends)
    choices: list[Choice] = field(default_factory=list)
    least: list[tuple[Dim, int, Node]] = field(default_factory=list)
    positions: dict[Node, Dim] = field(default_factory=dict)
    contractions: list[Contraction] = field(default_factory=list)
    inexact: list[tuple[Dim, str, Node]] = field(default_factory=list)
    roles: list[tuple[Dim, str]] = field(default_factory=list)
    varies: set[Node] = field(default_factory=set)
    unknown: dict[Node, str] = field(default_factory=dict)
    pins: list[tuple[Dim, Node]] = field(default_factory=list)
