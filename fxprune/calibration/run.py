"""Calibration pass: run a graph over batches, segment by segment, and pass the requested values and gradients to observers.

A program in memory is one segment. Of several, the values between them are computed first, for all batches; then the segments are run once
more, the last one first, each from the values that it reads, and differentiated by what the later ones passed back (as activation
checkpointing does, arXiv 1604.06174).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, fx

from fxprune.calibration.data import Batch, Calibration, flatten_batch, state
from fxprune.calibration.objective import Objective
from fxprune.calibration.processes import add_up, own_share
from fxprune.calibration.segments import CrossingValues, Segment, segment_bytes, segments_of
from fxprune.calibration.validation import check_range
from fxprune.errors import FxpruneError
from fxprune.ir import Program, attribute, describe_error
from fxprune.ir.interpreter import Recorder
from fxprune.rules import is_written
from fxprune.rules.aliasing import returns_alias
from fxprune.storage.devices import on_device, to_device
from fxprune.storage.kept_steps import Keeper, keeper


@dataclass
class BatchRecord:
    """Record of one batch in one segment: values by node name, and for each differentiated number the gradients by node and parameter name.

    `batch` is its number, `nodes` are the names of the segment's own nodes (the values that it reads are recorded, too), `left` the
    parameters that segments still to come read.
    """

    values: dict[str, Tensor] = field(default_factory=dict)
    slopes: list[dict[str, Tensor]] = field(default_factory=list)
    batch: int = 0
    nodes: frozenset[str] = frozenset()
    left: frozenset[str] = frozenset()


class Observer(Protocol):
    """Protocol of an observer: it requests values of nodes (`values`), and gradients at `nodes` and `parameters`, batch by batch."""

    values: frozenset[str] = frozenset()
    nodes: frozenset[str] = frozenset()
    parameters: frozenset[str] = frozenset()

    def take(self, seen: BatchRecord) -> None:
        """Take in the record of one batch in one segment."""

    def done(self, left: frozenset[str]) -> None:
        """Note that a segment is over for all batches; `left` are the names of the nodes of segments still to come."""
        return

    def sums(self, left: frozenset[str]) -> Iterable[Tensor]:
        """Return the sums that are complete but for the batches of other processes, each once, to be added up in place."""
        return ()

    def saved(self) -> dict[str, Tensor] | None:
        """Return all that it has taken in between two segments, by name; None where a killed run can't go on from it."""
        return None

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Take in what `saved` returned in an earlier run, before any batch."""
        return


class _Recorder(Recorder):
    """Recorder that makes nodes and parameters differentiable where gradients are requested.

    A value that the graph overwrites is recorded as its last reader got it.
    """

    def __init__(self, program: Program, meters: Sequence[Observer], own: Mapping[str, Tensor]) -> None:
        values, nodes, parameters = requested(meters)
        found = {name: on_device(attribute(program.graph_module, name)) for name in parameters}
        learned = {name: value.detach().requires_grad_() for name, value in found.items()}
        super().__init__(program, values, {**own, **learned}, placed=True)
        self.writes = any(map(is_written, program.graph.nodes))
        self.nodes, self.sources = nodes, learned

    def run_segment(self, segment: Segment, given: Mapping[fx.Node, Any]) -> dict[fx.Node, Any]:
        """Run a segment from the values that it reads, and return those that it leaves; values are dropped after their last reader."""
        self.env: dict[fx.Node, Any] = dict(given)
        self.values = {node: value for node, value in given.items() if node.name in (self.names or ())}
        wanted = set(segment.leaves)
        last = {source: node for node in segment.nodes for source in node.all_input_nodes}
        for node in segment.nodes:
            for source in node.all_input_nodes:
                if source.op == "get_attr" and source not in self.env:
                    self.env[source] = self.run_node(source)
            self.env[node] = self.run_node(node)
            for source in node.all_input_nodes:
                if last[source] is node and source not in wanted and source.op != "placeholder":
                    self.env.pop(source, None)
        return {node: self.env[node] for node in segment.leaves}

    def results(self, output: fx.Node) -> Any:
        """Return the results of the graph, whose values the last segment left."""
        for source in output.all_input_nodes:
            if source.op == "get_attr":
                self.env[source] = self.run_node(source)
        return self.run_node(output)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        value = super().get_attr(target, args, kwargs)
        return value.detach() if isinstance(value, Tensor) and target not in self.given else value

    def compute(self, node: fx.Node) -> Any:
        if self.writes and not returns_alias(node):
            read = self.values.keys() & set(node.all_input_nodes)
            self.values |= {source: self.env[source].detach().clone() for source in read}
        value = super().compute(node)
        if node.name in self.nodes:
            self.sources[node.name] = value if value.requires_grad else value.requires_grad_()
            value = value.clone() if self.writes else value
        return value


def requested(meters: Sequence[Observer]) -> tuple[set[str], set[str], set[str]]:
    """Return what observers request: values, and gradients at nodes and parameters."""
    values, nodes, parameters = (
        set().union(*(getattr(meter, name) for meter in meters)) for name in ("values", "nodes", "parameters")
    )
    return values, nodes, parameters


def run_calibration(
    program: Program,
    data: Calibration,
    meters: Sequence[Observer],
    objective: Objective,
    segment: int | None = None,
) -> None:
    """Run every batch, and pass its record to the observers, segment by segment; records are not kept.

    `segment` is the limit of `segments_of` (None: that of `segment_bytes`). FxpruneError where the graph can't be differentiated although
    an observer requests gradients.
    """
    limit = segment_bytes(program) if segment is None else segment
    _Sweep(program, data, meters, objective, segments_of(program, limit)).run()


class _Sweep:
    """A run of all batches through the segments of a program: to the end, and back where gradients are requested."""

    def __init__(
        self,
        program: Program,
        data: Calibration,
        meters: Sequence[Observer],
        objective: Objective,
        segments: Sequence[Segment],
    ) -> None:
        self.program, self.data, self.meters, self.objective = program, data, meters, objective
        self.segments = segments
        _, nodes, parameters = requested(meters)
        self.backward = bool(nodes or parameters)
        self.learned = _learned(program, nodes, parameters)
        self.batches, self.shared = own_share(data.batches)
        self.values, self.slopes = CrossingValues(), CrossingValues()
        self.left = frozenset[str]()  # parameters that segments still to be observed read
        self.draws = 0  # numbers that are differentiated for each batch
        alone = self.backward and len(segments) > 1 and not self.shared
        self.keeper = keeper("sweep") if alone else Keeper()

    def run(self) -> None:
        """Run the segments in order, then all but the last one in reverse; of those that a killed run has done, none again."""
        last = self._resumed()
        before: tuple[fx.Node, ...] = ()
        for place, segment in enumerate(self.segments[: min(last, len(self.segments) - 1)]):
            self._each(segment, self._forward)
            self._end(self.segments[place + 1 :], not self.backward)
            before = self._dropped(segment, before) if not self.backward else ()
        if last == len(self.segments) - 1:
            self._each(self.segments[-1], self._last)
            self._done(last if self.backward else 0)
            last -= 1
        for place in reversed(range(last + 1 if self.backward else 0)):
            self._each(self.segments[place], self._back)
            self._done(place)

    def _done(self, place: int) -> None:
        """End a segment on the way back, and keep what has been done where that is due."""
        self._end(self.segments[:place], True)
        states = [meter.saved() for meter in self.meters] if place and self.keeper.is_due else [None]
        if None in states:
            return
        tensors = {
            f"{i} {name}": value for i, state in enumerate(states) for name, value in (state or {}).items()
        }
        slopes = {
            f"slope {number} {draw} {node.name}": value for ((number, draw), node), value in self.slopes.all()
        }
        numbers = {"place": place, "segments": len(self.segments), "draws": self.draws}
        self.keeper.write(len(self.segments) - place, (tensors | slopes, numbers))

    def _resumed(self) -> int:
        """Return the place of the segment to begin the way back with, once what a killed run has kept of the later ones is taken in."""
        whole = len(self.segments) - 1
        tensors, numbers = self.keeper.read() or ({}, {})
        if not tensors or numbers["segments"] != len(self.segments):
            return whole
        self.draws = numbers["draws"]
        nodes = {node.name: node for segment in self.segments for node in segment.leaves}
        for name, value in tensors.items():
            if name.startswith("slope "):
                _, number, draw, node = name.split(" ")
                self.slopes.keep((int(number), int(draw)), {nodes[node]: value})
        for i, meter in enumerate(self.meters):
            own = {name: value for name, value in tensors.items() if name.startswith(f"{i} ")}
            meter.restore({name.partition(" ")[2]: value for name, value in own.items()})
        return int(numbers["place"]) - 1

    def _each(self, segment: Segment, what: Callable[[Segment, int, Batch], None]) -> None:
        self.left = self._unread(segment)
        for number, batch in self.batches.items():
            what(segment, number, batch)

    def _end(self, left: Sequence[Segment], observed: bool) -> None:
        names = frozenset[str]().union(*(segment.names for segment in left))
        for meter in self.meters if observed else ():
            if self.shared:
                add_up(meter.sums(names))
            meter.done(names)

    def _forward(self, segment: Segment, number: int, batch: Batch) -> None:
        tap, given = self._recorder(), self._given(segment, number, batch)
        with torch.no_grad():
            left = tap.run_segment(segment, given)
        self.values.keep(number, {node: value for node, value in left.items() if node not in given})
        if not self.backward:
            _check_values(tap)
            self._observe(segment, number, tap, [])

    def _last(self, segment: Segment, number: int, batch: Batch) -> None:
        tap, given = self._recorder(), self._given(segment, number, batch)
        with torch.set_grad_enabled(self.backward):
            given = self._leaves(given)
            tap.run_segment(segment, given)
            _check_values(tap)
            outputs = tap.results(self.program.graph.output_node())
            heads: list[_Head] = []
            if self.backward:
                share = Calibration((batch,)).rows / self.data.rows
                random = torch.Generator().manual_seed(self.objective.seed + number * _APART)
                there = {name: to_device(value) for name, value in batch.items()}
                numbers = self.objective.values(outputs, there, share, random)
                heads = [_head_of(each) for each in reversed(numbers)]
                self.draws = len(heads)
        self._observe(segment, number, tap, self._slopes(segment, number, tap, given, heads))

    def _back(self, segment: Segment, number: int, batch: Batch) -> None:
        tap = self._recorder()
        with torch.enable_grad():
            given = self._leaves(self._given(segment, number, batch))
            left = tap.run_segment(segment, given)
        _check_values(tap)
        heads = []
        for draw in range(self.draws):
            kept = self.slopes.of((number, draw), segment.leaves)
            passed = {node: to_device(slope) for node, slope in kept.items()}
            self.slopes.drop((number, draw), segment.leaves)
            ends = [node for node in passed if left[node].requires_grad]
            heads.append(([left[node] for node in ends], [passed[node] for node in ends]))
        self._observe(segment, number, tap, self._slopes(segment, number, tap, given, heads))
        self.values.drop(number, [node for node in segment.leaves if node not in given])

    def _slopes(
        self,
        segment: Segment,
        number: int,
        tap: _Recorder,
        given: Mapping[fx.Node, Any],
        heads: Sequence[_Head],
    ) -> list[dict[str, Tensor]]:
        """Return the gradients of each number by the names of nodes and parameters; keep those that earlier segments go on with."""
        inner = {node: given[node] for node in segment.reads if node in self.learned}
        found = []
        for draw, (ends, passed) in enumerate(heads):
            slopes = _differentiated(
                (ends, passed), [*tap.sources.values(), *inner.values()], draw + 1 < len(heads)
            )
            own = dict(zip(tap.sources, slopes, strict=False))
            found.append({name: slope for name, slope in own.items() if slope is not None})
            back = zip(inner, slopes[len(own) :], strict=True)
            self.slopes.keep((number, draw), {node: slope for node, slope in back if slope is not None})
        for name, slope in (pair for slopes in found for pair in slopes.items()):
            check_range(f"the gradient at {name}", slope)
        return found

    def _observe(
        self, segment: Segment, number: int, tap: _Recorder, slopes: list[dict[str, Tensor]]
    ) -> None:
        values = {node.name: value.detach() for node, value in tap.values.items()}
        seen = BatchRecord(values, slopes, number, segment.names, self.left)
        for meter in self.meters:
            meter.take(seen)

    def _unread(self, segment: Segment) -> frozenset[str]:
        """Return the parameters that segments still to be observed read."""
        place = self.segments.index(segment)
        left = self.segments[:place] if self.backward else self.segments[place + 1 :]
        return frozenset[str]().union(*(each.parameters for each in left))

    def _recorder(self) -> _Recorder:
        return _Recorder(self.program, self.meters, state(self.program))

    def _given(self, segment: Segment, number: int, batch: Batch) -> dict[fx.Node, Any]:
        inputs = dict(zip(self.program.placeholders(), flatten_batch(self.program, batch), strict=True))
        crossing = self.values.of(number, segment.reads)
        return inputs | {node: to_device(value) for node, value in crossing.items()}

    def _leaves(self, given: Mapping[fx.Node, Any]) -> dict[fx.Node, Any]:
        """Return values with those that gradients are passed back through as leaves of a new differentiation."""
        return {
            node: value.detach().requires_grad_() if node in self.learned else value
            for node, value in given.items()
        }

    def _dropped(self, segment: Segment, before: Sequence[fx.Node]) -> tuple[fx.Node, ...]:
        """Let go of the values that no later segment reads, and return those that are kept."""
        for number in self.batches:
            self.values.drop(number, [node for node in before if node not in segment.leaves])
        return segment.leaves


_APART = 1_000_003
"""Distance of the seeds of two batches: each draws by itself, whichever process runs it."""

_Head = tuple[list[Tensor], list[Tensor] | None]
"""Values at the end of a segment, and the gradients there; None for a single number, whose own is 1."""


def _check_values(tap: _Recorder) -> None:
    for node, value in tap.values.items():
        check_range(repr(node.name), value)


def _head_of(number: Tensor) -> _Head:
    if not number.requires_grad:
        raise FxpruneError(
            "no output depends on the weights through differentiable operators: use a score without gradients (activation)"
        )
    return [number], None


def _differentiated(head: _Head, sources: Sequence[Tensor], again: bool) -> list[Tensor | None]:
    """Return the gradients at the sources, None where nothing depends on one; `again`: the values are differentiated once more."""
    ends, passed = head
    if not ends or not sources:
        return [None] * len(sources)
    try:
        return list(torch.autograd.grad(ends, sources, passed, retain_graph=again, allow_unused=True))
    except RuntimeError as error:
        raise FxpruneError(f"the graph can't be differentiated: {describe_error(error)}") from error


def _learned(program: Program, nodes: set[str], parameters: set[str]) -> set[fx.Node]:
    """Return the floating-point tensors that depend on what gradients are requested at."""
    found: set[fx.Node] = set()
    for node in program.graph.nodes:
        asked = node.name in nodes or (node.op == "get_attr" and node.target in parameters)
        if asked or not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return {node for node in found if _is_floating(node.meta.get("val"))}


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def pack_by_bytes(items: Iterable[Any], bytes_of: Any, limit: int) -> list[list[Any]]:
    """Split items, in their order, into as few lists as possible of at most `limit` bytes each (a single item may be larger)."""
    lists: list[list[Any]] = []
    room = 0
    for item in items:
        size = bytes_of(item)
        if not lists or size > room:
            lists.append([])
            room = limit
        lists[-1].append(item)
        room -= size
    return lists
