"""Recurrent layers: an LSTM, GRU or RNN of several layers becomes one node for each layer, so that each has a hidden size of its own.

    y, hn = gru(x, h0, [w1, w2], layers=2)    becomes    y1, hn1 = gru(x, h0[:1], [w1])
                                                         y2, hn2 = gru(dropout(y1), h0[1:], [w2])    hn = cat([hn1, hn2])

The values are the same to the bit. Without this, all layers would have the hidden size of the output, which often has to stay. What one
tensor for all layers would tie again is taken apart, too: zeros are created for each layer, and a last state that is selected is its
own layer's.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from fxprune.frontend.canonicalization.unstack import Link, build_part, follow
from fxprune.ir import bind, call
from fxprune.ir.arguments import unbind
from fxprune.ir.edit import fake_mode
from fxprune.rules import traits_of

aten = torch.ops.aten

_RECURRENT = (aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input)

#: operator that creates a value: the place of its sizes among the arguments
_CREATION: dict[Any, int] = {
    aten.zeros.default: 0,
    aten.ones.default: 0,
    aten.full.default: 0,
    aten.new_zeros.default: 1,
    aten.new_ones.default: 1,
    aten.new_full.default: 1,
}


def split_recurrent(graph: fx.GraphModule) -> None:
    """Replace every recurrent node of several layers by one for each layer."""
    for node in list(graph.graph.nodes):
        if node.target in _RECURRENT and bind(node)["num_layers"].value > 1:
            with graph.graph.inserting_before(node):
                layers = _layers(graph, node)
            _connect(graph, node, layers)
            graph.graph.erase_node(node)


def _layers(graph: fx.GraphModule, node: fx.Node) -> list[list[fx.Node]]:
    """Build the layers of a node, and return the results of each: output, last hidden state, and last cell state of an LSTM."""
    given = {name: argument.value for name, argument in bind(node).items()}
    rows, size = 1 + given["bidirectional"], len(given["params"]) // given["num_layers"]
    value, layers = given["input"], list[list[fx.Node]]()
    for layer in range(given["num_layers"]):
        if layer and given["dropout"]:
            value = call(graph, aten.dropout.default, (value, given["dropout"], given["train"]))
        own = {"num_layers": 1, "dropout": 0.0, "params": given["params"][layer * size : (layer + 1) * size]}
        start, stop = layer * rows, (layer + 1) * rows
        own |= {"input": value, "hx": _states(graph, given["hx"], start, stop)}
        layers.append(_layer(graph, node, {**given, **own}, slice(start, stop)))
        value = layers[-1][0]
    return layers


def _states(graph: fx.GraphModule, given: Any, start: int, stop: int) -> Any:
    """Return the initial states of one layer: a value, or a list of two for an LSTM."""
    if isinstance(given, fx.Node):
        return _rows(graph, given, start, stop)
    return [_rows(graph, state, start, stop) for state in given]


def _rows(graph: fx.GraphModule, state: fx.Node, start: int, stop: int) -> fx.Node:
    """Return some positions of dim 0 of a value: created anew, as operands of a concatenation, else as a slice."""
    place = _CREATION.get(state.target)
    if place is not None:
        sizes: Any = state.args[place]
        args = (*state.args[:place], [stop - start, *sizes[1:]], *state.args[place + 1 :])
        return call(graph, state.target, args, dict(state.kwargs))
    found = _operands(state, start, stop)
    if found:
        return found[0] if len(found) == 1 else call(graph, aten.cat.default, (found,))
    return call(graph, aten.slice.Tensor, (state, 0, start, stop))


def _operands(value: fx.Node, start: int, stop: int) -> list[fx.Node]:
    """Return the operands of a concatenation along dim 0 that make up these positions; none where they are not whole ones."""
    if value.target is not aten.cat.default or bind(value)["dim"].value != 0:
        return []
    ends, parts = [0], list[fx.Node](value.args[0])  # type: ignore[arg-type]
    for part in parts:
        ends.append(ends[-1] + part.meta["val"].shape[0])
    return parts[ends.index(start) : ends.index(stop)] if start in ends and stop in ends else []


def _layer(graph: fx.GraphModule, node: fx.Node, given: dict[str, Any], rows: slice) -> list[fx.Node]:
    """Insert a node of one layer, and return its results; they have the sizes of the whole node's, states those of its rows."""
    args, kwargs = unbind(node, given)
    own = graph.graph.call_function(node.target, args, kwargs)  # type: ignore[arg-type]
    output, *states = node.meta["val"]
    with fake_mode(graph):
        own.meta = {**node.meta, "val": (output, *(state[rows] for state in states))}
    return [call(graph, operator.getitem, (own, i)) for i in range(1 + len(states))]


def _connect(graph: fx.GraphModule, node: fx.Node, layers: Sequence[Sequence[fx.Node]]) -> None:
    """Let readers of the whole node's output read the last layer's, and those of its last states what they select of them."""
    for user in list(node.users):
        result = user.args[1]
        assert user.target is operator.getitem
        assert isinstance(result, int)
        if result == 0:
            user.replace_all_uses_with(layers[-1][0])
        else:
            _connect_states(graph, user, [layer[result] for layer in layers])
        graph.graph.erase_node(user)


def _connect_states(graph: fx.GraphModule, whole: fx.Node, states: list[fx.Node]) -> None:
    """Replace the last states of all layers where single positions or layers are read; elsewhere by their concatenation."""
    rows = states[0].meta["val"].shape[0]
    _replace_parts(graph, whole, [(state, row) for state in states for row in range(rows)])
    for user in list(whole.users):
        if traits_of(user.target).moves == "view" and _shows_layers(user, len(states), rows):
            _replace_parts(graph, user, [(state, None) for state in states])
        bound = bind(user)
        if user.target is aten.slice.Tensor and bound["dim"].value == 0 and bound["step"].value == 1:
            _replace_slice(graph, user, states)
    if whole.users:
        with graph.graph.inserting_before(whole):
            joined = call(graph, aten.cat.default, (states,))
        whole.replace_all_uses_with(joined)


def _replace_parts(
    graph: fx.GraphModule, whole: fx.Node, parts: Sequence[tuple[fx.Node, int | None]]
) -> None:
    """Replace what is selected of dim 0 of a value: part i is a state, or one row of it; nothing where a path ends otherwise."""
    paths = follow(Link(whole, 0))
    for i, (state, row) in enumerate(parts if paths[1] else ()):
        with graph.graph.inserting_before(whole):
            own = state if row is None else call(graph, aten.select.int, (state, 0, row))
        build_part(graph, paths, own, i)


def _shows_layers(view: fx.Node, layers: int, rows: int) -> bool:
    """Return whether a view splits `layers · rows` positions, and nothing else."""
    source: Any = view.args[0]
    before, after = (list(map(str, node.meta["val"].shape)) for node in (source, view))
    return after == [str(layers), str(rows), *before[1:]]


def _replace_slice(graph: fx.GraphModule, node: fx.Node, states: list[fx.Node]) -> None:
    """Replace a slice of whole layers by their states."""
    start, stop, rows = *_bounds(node), states[0].meta["val"].shape[0]
    if start % rows == stop % rows == 0 and start < stop:
        found = states[start // rows : stop // rows]
        with graph.graph.inserting_before(node):
            own = found[0] if len(found) == 1 else call(graph, aten.cat.default, (found,))
        node.replace_all_uses_with(own)


def _bounds(node: fx.Node) -> tuple[int, int]:
    """Return the first and the last position (exclusive) that a slice of dim 0, which has a fixed size, reads."""
    bound, source = bind(node), node.args[0]
    start, stop, _ = slice(bound["start"].value, bound["end"].value).indices(source.meta["val"].shape[0])  # type: ignore[union-attr]
    return start, stop
