"""Module calls: what a graph records of the user's modules, and which of their calls hand their inputs on with something added."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import chain, takewhile
from typing import Any

from torch import Tensor, fx

from fxprune.analysis.regions.atoms import Walk
from fxprune.analysis.regions.region import Region
from fxprune.analysis.regions.streams import Streams
from fxprune.rules import is_written, traits_of


@dataclass(eq=False)
class ModuleCall:
    """One call of a module: its path, its class, its nodes in graph order, and the calls around it, the outermost first.

    `repeated` where a module of its class, or the same module, is called beside it; `composite` where it contains modules.
    """

    path: str
    kind: str
    outer: tuple[ModuleCall, ...]
    nodes: dict[fx.Node, None] = field(default_factory=dict)
    repeated: bool = False
    composite: bool = False

    @property
    def beside(self) -> tuple[str, str]:
        """The parent and the class, by which repeated calls are grouped."""
        return self.path.rpartition(".")[0], self.kind


@dataclass(frozen=True)
class Ways:
    """Ways through a call: for each exit the entry that it hands on, and the nodes that nothing needs without the call.

    Where the call can't go, `why` is the reason. `vague` where the reason is that no entry is known to be handed on.
    """

    entries: tuple[fx.Node, ...] = ()
    exits: tuple[fx.Node, ...] = ()
    nodes: tuple[fx.Node, ...] = ()
    why: str = ""
    vague: bool = False


def ways_of(streams: Streams, call: ModuleCall) -> Ways:
    """Return the ways through a call: it is replaced by the identity where each value that leaves it is one that enters it."""
    exits = [node for node in call.nodes if _leaves(streams, call, node)]
    pairs = [(entry, way_out) for way_out in exits if (entry := _handed_on(streams, call, way_out))]
    entries = list(dict.fromkeys(entry for entry, _ in pairs))
    matched = {way_out for _, way_out in pairs}
    computed = streams.behind(entries or _inputs(streams, call), call.nodes)
    stray = [node for node in exits if node in computed and node not in matched]
    if stray or not pairs:
        return _refusal(streams, call, stray, bool(pairs))
    written = [node for node in entries if is_written(node)]
    if written:
        return Ways(why=f"its input {_text(written[0])} is written into")
    dead = streams.dead(matched, entries)
    held = [node for node in computed if node not in dead and not traits_of(node.target).asserts]
    if held:
        return Ways(why=f"{_text(held[-1])} inside of it has an effect of its own")
    if not streams.reads_weights_within(entries, dead):
        return Ways(why="it adds nothing that weights make of its input")
    return Ways(tuple(entry for entry, _ in pairs), tuple(way_out for _, way_out in pairs), tuple(dead))


def _leaves(streams: Streams, call: ModuleCall, node: fx.Node) -> bool:
    return any(user not in call.nodes for user in streams.users(node))


def _handed_on(streams: Streams, call: ModuleCall, way_out: fx.Node) -> fx.Node | None:
    """Return the latest value outside that a call hands on to this exit with something added; None where there is none."""
    walk = Walk(streams, way_out)
    for node, added in walk if streams.key(way_out) is not None else ():
        if node in call.nodes:
            walk.go_on(node, added)
        elif added:
            return node
    return None


def _inputs(streams: Streams, call: ModuleCall) -> list[fx.Node]:
    """Return the floating values that a call reads, in the order of their readers."""
    found = streams.frontier(call.nodes)
    return [node for node in found if _is_floating(node.meta.get("val"))]


def _is_floating(value: object) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def _refusal(streams: Streams, call: ModuleCall, stray: Collection[fx.Node], handed_on: bool) -> Ways:
    """Return the reason why a call can't go: values of it that leave it, beside those that it hands on, or none that it hands on."""
    if not stray:
        return Ways(why="no value that it computes from its inputs is read outside")
    if handed_on:
        return Ways(why=_read_outside(streams, call, next(iter(stray))))
    way_out, inputs = list(stray)[-1], _inputs(streams, call)
    if not inputs or not isinstance(way_out.meta.get("val"), Tensor):
        return Ways(why=f"{_text(way_out)} is no tensor that it computes from another")
    alike = [node for node in inputs if _sizes(node) == _sizes(way_out)]
    if not alike:
        return Ways(why=f"it changes the shape: {_sizes(inputs[0])} to {_sizes(way_out)}")
    if any(streams.key(node) == streams.key(way_out) is not None for node in alike):
        return Ways(why=f"it adds nothing to its input: {_text(way_out)} is no sum of it", vague=True)
    types = [node.meta["val"].dtype for node in (alike[0], way_out)]
    if types[0] != types[1]:
        return Ways(why=f"it changes the dtype: {types[0]} to {types[1]}")
    return Ways(
        why="its output has other dims than its input (they can't be proved to be the same)", vague=True
    )


def _read_outside(streams: Streams, call: ModuleCall, node: fx.Node) -> str:
    user = next(user for user in streams.users(node) if user not in call.nodes)
    if user.op == "output":
        named = streams.program.named_outputs()
        return f"its output leaves the model: {next(n for n, value in named.items() if value is node)}"
    return f"{_text(node)} inside of it is read by {_text(user)} outside"


def _text(node: fx.Node) -> str:
    return f"{node.name} = {node.target}"


def _sizes(node: fx.Node) -> str:
    return "[" + ", ".join(map(str, getattr(node.meta.get("val"), "shape", ()))) + "]"


def above(path: str) -> list[str]:
    """Return the paths of the modules around a path, the outermost first."""
    parts = path.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _stacks(streams: Streams) -> dict[fx.Node, dict[Any, Any]]:
    """Return the modules that each node was called in; what a rewrite has put in belongs to the module that reads it."""
    found: dict[fx.Node, dict[Any, Any]] = {}
    for node in reversed(streams.calls):
        own = node.meta.get("nn_module_stack") or {}
        readers = (found[user] for user in node.users if found.get(user))
        # torch puts a path in place of the model's own, which is empty, where it knows none
        found[node] = own if any(not path for path, _ in own.values()) else next(readers, {})
    return found


class ModuleCalls:
    """The calls of a program's modules, in the order in which they begin."""

    def __init__(self, streams: Streams) -> None:
        self.streams = streams
        self.chains: dict[fx.Node, tuple[ModuleCall, ...]] = {}
        self._ways: dict[ModuleCall, Ways] = {}
        found: dict[tuple[str, str], ModuleCall] = {}
        stacks = _stacks(streams)
        for node in streams.calls:
            around: tuple[ModuleCall, ...] = ()
            for key, (path, kind) in stacks[node].items():
                if path:
                    call = found.setdefault((str(key), path), ModuleCall(path, str(kind), around))
                    call.nodes[node] = None
                    around = (*around, call)
            self.chains[node] = around
        self.all = tuple(found.values())
        self.by_path: dict[str, list[ModuleCall]] = {}
        count = Counter(call.beside for call in self.all)
        for call in self.all:
            call.repeated = count[call.beside] > 1
            self.by_path.setdefault(call.path, []).append(call)
            for outer in call.outer:
                outer.composite = True

    def ways(self, call: ModuleCall) -> Ways:
        """Return the ways through a call; see `ways_of`."""
        if call not in self._ways:
            self._ways[call] = ways_of(self.streams, call)
        return self._ways[call]

    def innermost(self, way: Ways) -> str:
        """Return the path of the innermost call that contains all nodes of a way that read weights, "" where there is none."""
        own = self.streams.behind(way.entries, way.nodes)
        readers = [node for node in own if self.streams.reads_weights(node)]
        readers = readers or [node for node in way.nodes if self.streams.reads_weights(node)]
        shared = takewhile(
            lambda calls: len(set(calls)) == 1, zip(*(self.chains[n] for n in readers), strict=False)
        )
        return next((calls[0].path for calls in reversed(list(shared))), "")

    def own(self, regions: Sequence[Region]) -> set[int]:
        """Return the places of regions that are a call of the module whose path they bear."""
        joined = [(self.by_path.get(region.name, ()), (region.entries, region.exits)) for region in regions]
        return {
            i for i, (calls, ends) in enumerate(joined) if any(self._joins(call) == ends for call in calls)
        }

    def paths(self) -> set[str]:
        """Return the paths of all modules that are called, and of those that hold weights."""
        tensors = (above(name) for name in self.streams.program.tensors())
        return {*self.by_path, *chain.from_iterable(tensors)}

    def _joins(self, call: ModuleCall) -> tuple[tuple[str, ...], tuple[str, ...]]:
        ways = self.ways(call)
        return tuple(node.name for node in ways.entries), tuple(node.name for node in ways.exits)
