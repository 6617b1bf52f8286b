"""Layers and residual branches: their regions, readable names for them, and the reasons why other repeated modules can't go.

A layer is a run of atoms (see `fxprune.analysis.segments`) with a residual among them: all that a module does, where modules of the same
class stand beside it (by the graph's `nn_module_stack`), or, where modules give no evidence (one module that is called several times, a
graph without them), a unit of the shortest period with which the row repeats.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise, takewhile
from typing import TypeAlias

from torch import Tensor, fx

from fxprune.analysis.axis_names import shared_path
from fxprune.analysis.segments import Row, Segment, find_rows, weights
from fxprune.ir import Program
from fxprune.ir.naming import free_name
from fxprune.rules import Flow

UNITS = ("layer", "branch")


@dataclass(frozen=True)
class Region:
    """Part of a graph that can be bypassed: its output has the dims of its input.

    `unit` is layer or branch; `parameters` are those that it reads (shared ones stay in the model). Where `why` is not empty, the region
    can't go, and that is the reason.
    """

    name: str
    unit: str
    entry: str = ""
    exit: str = ""
    parameters: tuple[str, ...] = ()
    signature: str = ""
    why: str = ""
    nodes: frozenset[str] = field(default=frozenset(), repr=False)


Roles: TypeAlias = Sequence[tuple[str, frozenset[str]]]
"""The role of each axis, and the parameters that carry it: a branch is named by them."""


def find_regions(program: Program, flow: Flow, roles: Roles) -> tuple[Region, ...]:
    """Return the layers, then the residual branches, each in graph order, then the modules that can't go, with the reason."""
    rows = find_rows(program, flow)
    modules = _modules(program, flow)
    whole = _module_units(rows, modules)
    place = {node.name: i for i, node in enumerate(program.graph.nodes)}
    found = [_region(unit, "layer", path) for path, unit in _outermost_complete(whole, modules).items()]
    taken = {name for region in found for name in region.nodes}
    free = [[atom for atom in row.atoms if atom.exit.name not in taken] for row in rows]
    runs = [run for atoms in free for run in _adjacent(atoms)]
    found += [_region(unit, "layer") for run in runs for unit in _repeating(run)]
    residuals = [atom for row in rows for atom in row.atoms if atom.residual]
    found += [_region((replace(atom, tail=()),), "branch", _innermost(atom, modules)) for atom in residuals]
    found.sort(key=lambda region: (UNITS.index(region.unit), place[region.exit]))
    named = _named(roles, found, modules)
    return (*named, *_refused(program, flow, named, modules))


def _region(unit: Sequence[Segment], kind: str, path: str = "") -> Region:
    parameters = tuple(dict.fromkeys(name for atom in unit for name in atom.parameters))
    parts = [part for atom in unit for part in (atom, *atom.tail)]
    nodes = frozenset(node.name for part in parts for node in part.nodes)
    signature = "+".join(part.signature for part in parts)
    name = path or shared_path(list(parameters))
    return Region(name, kind, unit[0].entry.name, unit[-1].end.name, parameters, signature, "", nodes)


Unit: TypeAlias = tuple[Segment, ...]


def _module_units(rows: Sequence[Row], modules: Mapping[str, Module]) -> dict[str, Unit]:
    """Return the repeated modules that are a run of atoms, by path."""
    found: dict[str, Unit] = {}
    for row in rows:
        inside = [_paths(atom, modules) for atom in row.atoms]
        for path in dict.fromkeys(path for paths in inside for path in paths):
            run = tuple(atom for atom, paths in zip(row.atoms, inside, strict=True) if path in paths)
            if path not in found and _is_all_of(run, modules[path], row.reached):
                found[path] = _within_module(run, modules[path])
    return found


def _within_module(run: Unit, module: Module) -> Unit:
    """Cut the last atom's tail where the module ends."""
    tail = takewhile(lambda piece: piece.exit in module.nodes, run[-1].tail)
    return (*run[:-1], replace(run[-1], tail=tuple(tail)))


def _is_all_of(run: Unit, module: Module, reached: frozenset[fx.Node]) -> bool:
    """Return whether atoms follow one another, contain a residual, and are all that a module does to the stream."""
    read = {node for atom in run for node in atom.nodes}
    joined = all(one.end is other.entry for one, other in pairwise(run))
    return joined and module.readers & reached <= read and any(atom.residual for atom in run)


def _outermost_complete(whole: Mapping[str, Unit], modules: Mapping[str, Module]) -> dict[str, Unit]:
    """Choose, of nested modules, the outermost whose siblings of the same class are all units, else the innermost."""
    complete = {path for path in whole if all(other in whole for other in _siblings(path, modules))}
    found: dict[str, Unit] = {}
    for path, unit in whole.items():
        chain = sorted((p for p in whole if f"{path}.".startswith(f"{p}.")), key=len)
        deeper = [p for p in whole if p.startswith(f"{path}.")]
        best = next((p for p in chain if p in complete), None)
        if best == path or (best is None and not deeper):
            found[path] = unit
    return found


def _siblings(path: str, modules: Mapping[str, Module]) -> list[str]:
    """Return the modules of the same class under the same parent, the given one included."""
    parent, kind = path.rpartition(".")[0], modules[path].kind
    return [p for p, module in modules.items() if p.rpartition(".")[0] == parent and module.kind == kind]


def _paths(atom: Segment, modules: Mapping[str, Module]) -> list[str]:
    """Return the repeated modules that contain all nodes of an atom that read weights."""
    return [path for path, module in modules.items() if module.repeated and _within(atom, module)]


def _within(atom: Segment, module: Module) -> bool:
    readers = [node for node in atom.nodes if node in module.all_readers]
    return bool(readers) and all(node in module.nodes for node in readers)


def _innermost(atom: Segment, modules: Mapping[str, Module]) -> str:
    """Return the innermost module that contains all nodes of an atom that read weights, "" where there is none."""
    return max((path for path, module in modules.items() if _within(atom, module)), key=len, default="")


def _adjacent(atoms: Sequence[Segment]) -> list[list[Segment]]:
    """Split atoms where one does not begin at the end of the one before: what lies between belongs to neither."""
    runs: list[list[Segment]] = []
    for atom in atoms:
        if runs and runs[-1][-1].end is atom.entry:
            runs[-1].append(atom)
        else:
            runs.append([atom])
    return runs


def _repeating(row: Sequence[Segment]) -> Iterator[tuple[Segment, ...]]:
    """Yield the units of every stretch that repeats and contains a residual."""
    signs = [atom.signature for atom in row]
    at = 0
    while at < len(row):
        period, end = _stretch(signs, at)
        if period and any(atom.residual for atom in row[at : at + period]):
            yield from _units(row[at:end], period)
        at = end if period else at + 1


def _stretch(signs: Sequence[str], at: int) -> tuple[int, int]:
    """Return (the shortest period with which a stretch begins here and repeats at least once, its end), or (0, at)."""
    for period in range(1, (len(signs) - at) // 2 + 1):
        end = at + period
        while end < len(signs) and signs[end] == signs[end - period]:
            end += 1
        if end - at >= 2 * period:
            return period, end
    return 0, at


def _units(stretch: Sequence[Segment], period: int) -> list[tuple[Segment, ...]]:
    """Split a stretch into units of one length, with as much of their tails as all of them share."""
    units = [stretch[i : i + period] for i in range(0, len(stretch) - period + 1, period)]
    tails = [[piece.signature for piece in unit[-1].tail] for unit in units]
    shared = sum(1 for _ in takewhile(lambda pieces: len(set(pieces)) == 1, zip(*tails, strict=False)))
    return [(*unit[:-1], replace(unit[-1], tail=unit[-1].tail[:shared])) for unit in units]


#: (role of an axis that only the branch carries, the branch's name): the first that fits
_KINDS = (("heads", "attention"), ("experts", "experts"), ("ffn", "ffn"), ("channels", "conv"))


def _named(roles: Roles, found: Sequence[Region], modules: Mapping[str, Module]) -> list[Region]:
    """Give regions unique names: the module's path; a part of a module, or a second region in it, appends what it does."""
    taken: set[str] = set()
    named: list[Region] = []
    for region in found:
        wanted = region.name or region.unit
        if region.unit == "branch" and (wanted in taken or _is_part(region, modules)):
            kind = _kind(roles, region)
            wanted = f"{wanted}.{kind if not wanted.endswith(kind) else 'branch'}"
        named.append(replace(region, name=free_name(wanted, taken, ".")))
        taken.add(named[-1].name)
    return named


def _is_part(region: Region, modules: Mapping[str, Module]) -> bool:
    """Return whether the module whose name a region bears reads weights outside of it."""
    module = modules.get(region.name)
    return module is not None and any(node.name not in region.nodes for node in module.readers)


def _kind(roles: Roles, region: Region) -> str:
    own = {role for role, names in roles if names <= set(region.parameters)}
    return next((word for role, word in _KINDS if role in own), "branch")


def _refused(
    program: Program, flow: Flow, found: Sequence[Region], modules: Mapping[str, Module]
) -> list[Region]:
    """Return repeated modules that contain modules and are no layers, with the reason why they can't go."""
    covered = set().union(*(region.nodes for region in found if region.unit == "layer"))
    names = {region.name for region in found}
    refused = []
    for path, module in modules.items():
        readers = {node.name for node in module.readers}
        inside = readers <= covered or any(f"{path}.".startswith(f"{name}.") for name in names)
        if module.repeated and module.composite and readers and not inside:
            why = _why(program, flow, module)
            holds_layers = any(name.startswith(f"{path}.") for name in names)
            refused += [Region(path, "layer", why=why)] if why != _OTHER_DIMS or not holds_layers else []
    paths = [region.name for region in refused]
    return [region for region in refused if not any(region.name.startswith(f"{path}.") for path in paths)]


@dataclass
class Module:
    """Module as the graph records it: its class, the nodes that come from it, and all nodes that depend on inputs and read weights.

    `repeated` where another module of its class stands beside it; `composite` where it contains modules.
    """

    kind: str
    all_readers: frozenset[fx.Node]
    nodes: set[fx.Node] = field(default_factory=set)
    repeated: bool = False
    composite: bool = False

    @property
    def readers(self) -> set[fx.Node]:
        """The module's nodes that read weights."""
        return self.nodes & self.all_readers


def _modules(program: Program, flow: Flow) -> dict[str, Module]:
    """Return the modules that nodes come from, by path."""
    calls = [node for node in program.graph.nodes if node.op == "call_function" and node in flow.varies]
    readers = frozenset(node for node in calls if weights(program, [node], flow))
    found: dict[str, Module] = {}
    for node in calls:
        for path, kind in (node.meta.get("nn_module_stack") or {}).values():
            if path:
                found.setdefault(path, Module(str(kind), readers)).nodes.add(node)
    beside = Counter((path.rpartition(".")[0], module.kind) for path, module in found.items())
    for path, module in found.items():
        module.repeated = beside[(path.rpartition(".")[0], module.kind)] > 1
        module.composite = any(other.startswith(f"{path}.") for other in found)
    return found


_OTHER_DIMS = "its output has other dims than its input (they can't be proved to be the same)"


def _why(program: Program, flow: Flow, module: Module) -> str:
    """Return the reason why a module is no region."""
    inside = module.nodes
    nodes = [node for node in program.graph.nodes if node in inside]
    tensors = [node for node in nodes if isinstance(node.meta.get("val"), Tensor)]
    leaving = [(node, user) for node in tensors for user in node.users if user not in inside]
    for node, user in leaving:
        if user.op == "output":
            return f"its output leaves the model: {_output_name(program, node)}"
    ways = list(dict.fromkeys(node for node, _ in leaving))
    if len(ways) > 1:
        first, user = next((n, u) for n, u in leaving if n is not ways[-1])
        return f"{first.name} = {first.target} inside of it is read by {user.name} = {user.target} outside"
    read = [s for node in tensors for s in node.all_input_nodes if s not in inside and s in flow.varies]
    entries = [node for node in read if isinstance(node.meta.get("val"), Tensor)]
    if ways and entries:
        before, after = (tuple(n.meta["val"].shape) for n in (entries[0], ways[0]))
        if before != after:
            return f"it changes the shape: {_sizes(before)} to {_sizes(after)}"
        return _OTHER_DIMS
    return "it has not one way in and one way out"


def _sizes(shape: Sequence[object]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def _output_name(program: Program, node: fx.Node) -> str:
    outputs = program.named_outputs()
    return next((name for name, value in outputs.items() if value is node), node.name)
