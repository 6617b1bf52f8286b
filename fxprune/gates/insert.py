"""Insert gates: multiply parameters into a graph, one value for each unit of an axis, each region, or each block of a weight."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, fx, nn

from fxprune.analysis import Analysis, Axis, Matrix, Units, analyze, matrices
from fxprune.dims import BlockSizes, Dim, coordinates, leaves
from fxprune.dims.blocks import BlockGrid, cut_into_blocks
from fxprune.errors import SelectionError
from fxprune.gates.gate import Gate, Gated, GateTarget
from fxprune.ir import Program, add_parameter, attribute, call, copy_graph, rebuild
from fxprune.ir.naming import free_name
from fxprune.rules import Contraction

aten = torch.ops.aten


def gate(
    program: Program,
    units: Iterable[GateTarget] = (),
    regions: Iterable[str] = (),
    blocks: Mapping[str, tuple[BlockSizes, BlockSizes]] | None = None,
    biases: bool = False,
) -> Gated:
    """Put gates at axes, regions and weights (by name, with the sizes of blocks); the given program stays as it is.

    With `biases`, the bias of an output whose blocks are all closed is closed as well, so that the output is zero.

    SelectionError for an axis whose removal no closed gate equals (an inexact one, one that a choice is made among), for a region that
    can't go, for a weight that the graph does not read or that has fewer than two dimensions, and for block sizes that don't fit a weight.
    """
    analysis = analyze(program)
    builder = _Builder(analysis)
    for asked in units:
        name, within = (asked, "") if isinstance(asked, str) else asked
        builder.units(_gateable(analysis, name), within)
    owners = {m.weight: m for m in matrices(program, analysis.flow).values()} if biases else {}
    for weight, sizes in (blocks or {}).items():
        builder.blocks(weight, sizes, owners.get(weight))
    builder.regions(regions)
    return Gated(program, builder.built(), tuple(builder.gates))


def _gateable(analysis: Analysis, name: str) -> Axis:
    axis = analysis.axis(name)
    if not axis.exact:
        raise SelectionError(
            f"axis {name} can't have gates: no closed gate equals removal ({axis.why_inexact}); gate exact axes"
        )
    if axis.choices:
        raise SelectionError(
            f"axis {name} can't have gates: {axis.choices[0]} chooses among its units, closed or not"
        )
    return axis


class _Builder:
    """Builder of a gated program: a copy of a program's graph, to which gates are added one after another."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis, self.program = analysis, analysis.program
        self.graph = rebuild(self.program, copy_graph(self.program), {}).graph_module
        self.nodes = dict(zip(self.program.graph.nodes, self.graph.graph.nodes, strict=True))
        self.gates: list[Gate] = []
        self.tensors: dict[str, Tensor] = {}
        self.operands: dict[tuple[fx.Node, fx.Node], fx.Node] = {}

    def units(self, axis: Axis, within: str) -> None:
        """Add a gate for each unit of an axis, at every sum over it."""
        outer = self.analysis.axis(within) if within else None
        if outer is not None and within not in self.analysis.within(axis.name):
            possible = ", ".join(self.analysis.within(axis.name)) or "none"
            raise SelectionError(
                f"axis {axis.name} has no units of its own within {within}; it has within: {possible}"
            )
        asked = Units(axis, outer)
        shape = (outer.size, axis.size) if outer else (axis.size,)
        gate = self._add(Gate(self._free(axis.name), "units", axis.name, within), shape)
        for found in self.analysis.flow.contractions:
            if axis.leaf in leaves(found.dim):
                self._close(found, asked, gate)

    def _close(self, found: Contraction, asked: Units, gate: Gate) -> None:
        """Multiply the gate into one operand of a sum.

        Where the axis lies along two dimensions of the operand (the rows and columns of a recurrent weight), multiply along both: the
        values computed for a closed unit are never read.
        """
        operand = self._operand(found, asked)
        here = self.nodes[found.node]
        edge = (found.node, operand)
        current: fx.Node = self.operands.get(edge) or self.nodes[operand]
        for index in _places(asked, self.analysis.flow.dims[operand]):
            with self.graph.graph.inserting_before(here):
                spread = self._spread(gate, index, asked.count, current.meta["val"].dtype)
                product = call(self.graph, aten.mul.Tensor, (current, spread))
            here.replace_input_with(current, product)
            current = product
        self.operands[edge] = current

    def _operand(self, found: Contraction, asked: Units) -> fx.Node:
        """Return the operand that carries the units along the fewest dimensions; among equal ones, a weight before an activation."""
        flow = self.analysis.flow
        places = {node: len(_places(asked, flow.dims[node])) for node in found.operands}
        carriers = [node for node in found.operands if places[node]]
        if not carriers:
            raise SelectionError(
                f"axis {asked.axis.name}: {found.node.name} sums over it, and no operand has its units apart"
            )
        return min(carriers, key=lambda node: (places[node], node in flow.varies))

    def _spread(self, gate: Gate, index: Tensor, count: int, dtype: torch.dtype) -> fx.Node:
        """Return the gate values at the positions `index` of an operand; positions that belong to no unit (`count`) get 1."""
        node = self._read(gate)
        if index.numel() == count and bool((index.flatten() == torch.arange(count)).all()):
            return call(self.graph, aten.view.default, (node, list(index.shape)))
        flat = call(self.graph, aten.view.default, (node, [count]))
        if bool((index == count).any()):
            one = self._constant(f"{gate.name}_open", torch.ones(1, dtype=dtype))
            flat = call(self.graph, aten.cat.default, ([flat, one], 0))
        places = self._constant(f"{gate.name}_places", index.flatten())
        taken = call(self.graph, aten.index_select.default, (flat, 0, places))
        return call(self.graph, aten.view.default, (taken, list(index.shape)))

    def blocks(self, weight: str, sizes: tuple[BlockSizes, BlockSizes], owner: Matrix | None) -> None:
        """Add a gate for each block of a weight, before all readers of its node, and at the bias of its owner."""
        node = self.program.reads().get(weight)
        value = attribute(self.program.graph_module, weight) if node is not None else None
        if node is None or not isinstance(value, nn.Parameter) or value.dim() < 2:
            raise SelectionError(f"no weight {weight!r} of two dimensions or more is read by the graph")
        try:
            pairs = zip(value.shape[:2], sizes, strict=True)
            grid = BlockGrid(*(cut_into_blocks(size, each) for size, each in pairs))
        except ValueError as error:
            raise SelectionError(f"{weight}: {error}") from None
        bias = owner.bias if owner else ""
        outputs = int(bool(owner and owner.turned))
        made = Gate(self._free(weight), "blocks", weight, grid=grid, bias=bias, outputs=outputs)
        gate = self._add(made, grid.shape)
        tail = (1,) * (value.dim() - 2)
        self._closed(node, lambda: self._stretched(self._read(gate), gate, tail))
        if bias:
            self._closed(self.program.reads()[bias], lambda: self._row_gates(gate))

    def _closed(self, node: fx.Node, spread: Callable[[], fx.Node]) -> None:
        """Multiply a tensor by the value that `spread` builds, before all of its readers."""
        read = self.nodes[node]
        users = list(read.users)
        with self.graph.graph.inserting_before(users[0]):
            product = call(self.graph, aten.mul.Tensor, (read, spread()))
        for user in users:
            user.replace_input_with(read, product)

    def _stretched(self, node: fx.Node, gate: Gate, tail: tuple[int, ...]) -> fx.Node:
        """Repeat every gate over its block."""
        assert gate.grid is not None
        for place, sizes in enumerate((gate.grid.rows, gate.grid.columns)):
            node = self._repeated(node, gate, place, sizes)
        return call(self.graph, aten.view.default, (node, [*gate.grid.size, *tail])) if tail else node

    def _row_gates(self, gate: Gate) -> fx.Node:
        """Return the largest gate of each output's blocks: 1 where some block is open."""
        assert gate.grid is not None
        some = call(self.graph, aten.amax.default, (self._read(gate), [1 - gate.outputs]))
        sizes = (gate.grid.rows, gate.grid.columns)[gate.outputs]
        return self._repeated(some, gate, 0, sizes)

    def _repeated(self, node: fx.Node, gate: Gate, place: int, sizes: tuple[int, ...]) -> fx.Node:
        """Repeat each position along a dimension by its size; a broadcast where all sizes are equal, whose gradient is a plain sum."""
        if set(sizes) == {1}:
            return node
        shape = list(node.meta["val"].shape)
        if len(set(sizes)) == 1:
            apart = call(self.graph, aten.unsqueeze.default, (node, place + 1))
            wide = [*shape[: place + 1], sizes[0], *shape[place + 1 :]]
            spread = call(self.graph, aten.expand.default, (apart, wide))
            whole = [*shape[:place], sum(sizes), *shape[place + 1 :]]
            return call(self.graph, aten.reshape.default, (spread, whole))
        counts = torch.tensor(sizes)
        index = self._constant(f"{gate.name}_of_{place}", torch.arange(len(sizes)).repeat_interleave(counts))
        return call(self.graph, aten.index_select.default, (node, place, index))

    def regions(self, names: Iterable[str]) -> None:
        """Add a gate for each region; among regions with the same exit the inner ones come first."""
        order = {node.name: i for i, node in enumerate(self.program.graph.nodes)}
        found = [self.analysis.region(name) for name in dict.fromkeys(names)]
        now = {node.name: self.nodes[node] for node in self.program.graph.nodes}
        # The rest of a sum without a summand may be another summand: their gates would undo each other.
        addends = {region.addend for region in self.analysis.regions}
        for region in sorted(found, key=lambda region: (order[region.exits[-1]], len(region.nodes))):
            gate = self._add(Gate(self._free(region.name), "region", region.name), ())
            if region.entries[0] in addends:
                self._scale(now[region.addend], gate)
                continue
            for entry, way_out in zip(region.entries, region.exits, strict=True):
                now[way_out] = self._mix(now[entry], now[way_out], gate)

    def _mix(self, entry: fx.Node, way_out: fx.Node, gate: Gate) -> fx.Node:
        """Put `entry + gate · (exit − entry)` in place of an exit."""
        with self.graph.graph.inserting_after(way_out):
            read = self._read(gate)
        with self.graph.graph.inserting_after(read):
            mixed = call(self.graph, aten.lerp.Tensor, (entry, way_out, read))
        way_out.replace_all_uses_with(mixed, delete_user_cb=lambda user: user is not mixed)
        return mixed

    def _scale(self, addend: fx.Node, gate: Gate) -> None:
        """Multiply the gate into a summand."""
        with self.graph.graph.inserting_after(addend):
            read = self._read(gate)
        with self.graph.graph.inserting_after(read):
            scaled = call(self.graph, aten.mul.Tensor, (addend, read))
        addend.replace_all_uses_with(scaled, delete_user_cb=lambda user: user is not scaled)

    def built(self) -> Program:
        """Return the program with all its gates, open."""
        return rebuild(self.program, self.graph.graph, self._all())

    def _all(self) -> dict[str, Tensor]:
        return {**self.program.tensors(), **self.tensors}

    def _add(self, gate: Gate, shape: tuple[int, ...]) -> Gate:
        like = next(iter(self.program.parameters().values()))
        dtype = like.dtype if like.is_floating_point() else torch.float32
        self.tensors[gate.name] = nn.Parameter(torch.ones(shape, dtype=dtype, device=like.device))
        self.gates.append(gate)
        return gate

    def _free(self, name: str) -> str:
        """Return an unused parameter name; dots are replaced, as `gates.a` can't be both a parameter and the module of `gates.a.b`."""
        taken = {gate.name for gate in self.gates} | set(self.program.tensors())
        return free_name(f"gates.{name.replace('.', '_')}", taken)

    def _read(self, gate: Gate) -> fx.Node:
        return add_parameter(self.graph, gate.name, self.tensors[gate.name])

    def _constant(self, name: str, value: Tensor) -> fx.Node:
        while name in self.tensors and not torch.equal(self.tensors[name], value):
            name += "_"
        self.tensors[name] = value.to(next(iter(self.program.parameters().values())).device)
        return add_parameter(self.graph, name, value)


def _places(asked: Units, dims: tuple[Dim, ...]) -> list[Tensor]:
    """Return the unit of each position, for each dimension of a value that carries the axis; of size 1 along dimensions that don't matter.

    Positions that belong to no unit hold the number of units.
    """
    found = []
    outer = _grid(asked.outer.leaf, dims, range(len(dims))) if asked.outer else None
    for place, dim in enumerate(dims):
        if asked.axis.leaf not in leaves(dim):
            continue
        own = _grid(asked.axis.leaf, dims, [place])
        unit = own if outer is None else outer * asked.axis.size + own
        there = own >= 0 if outer is None else (own >= 0) & (outer >= 0)
        if bool(there.any()):
            found.append(torch.where(there, unit, asked.count))
    return found


def _grid(leaf: Dim, dims: tuple[Dim, ...], places: Iterable[int]) -> Tensor:
    """Return the coordinates of an atom along some dimensions of a value, −1 where there is none; of size 1 along the other dimensions."""
    result = torch.full((1,) * len(dims), -1)
    for place in places:
        if leaf in leaves(dims[place]):
            shape = [dims[place].size if i == place else 1 for i in range(len(dims))]
            result = torch.maximum(result, coordinates(dims[place], leaf).reshape(shape))
    return result
