"""Rewrites before ONNX of recurrent networks: an LSTM with projections is one without, since ONNX has no other."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from fxprune.export.onnx_forms.reductions import values_of
from fxprune.ir import attribute, call
from fxprune.ir.edit import add_buffer, move_uses, size_of
from fxprune.rules import packet_of

aten = torch.ops.aten


def projected_lstm(graph: fx.GraphModule, node: fx.Node) -> None:
    """Return the results of an LSTM with projections by layers without one: R = W_hh P, and outputs times P.

    The hidden state h = P m of each step is read by W_hh alone, so that an LSTM whose state is m, of the cell's size, computes the same.
    An initial h that is not zero becomes P⁺ h, which P maps to h again.
    """
    bound = values_of(node)
    if "batch_sizes" in bound or bound["hx"][0].meta["val"].shape[-1] == bound["hx"][1].meta["val"].shape[-1]:
        return
    directions = 2 if bound["bidirectional"] else 1
    size = len(bound["params"]) // (bound["num_layers"] * directions)
    source, states = bound["input"], list[list[fx.Node]]()
    for layer in range(bound["num_layers"]):
        first = layer * directions
        weights = [bound["params"][(first + i) * size : (first + i + 1) * size] for i in range(directions)]
        own = [call(graph, aten.slice.Tensor, (state, 0, first, first + directions)) for state in bound["hx"]]
        source, *last = _layer(graph, bound, source, own, weights)
        states.append(last)
    hidden, cell = (call(graph, aten.cat.default, (list(each),)) for each in zip(*states, strict=True))
    for user in list(node.users):
        move_uses(graph, user, (source, hidden, cell)[user.args[1]])  # type: ignore[index]


def _layer(
    graph: fx.GraphModule,
    bound: dict[str, Any],
    source: fx.Node,
    states: Sequence[fx.Node],
    weights: Sequence[Sequence[fx.Node]],
) -> tuple[fx.Node, fx.Node, fx.Node]:
    """Compute one layer, in one direction or two: its output, and the last hidden and cell states."""
    matrices = [each[-1] for each in weights]
    params = [
        value
        for each in weights
        for value in (each[0], call(graph, aten.mm.default, (each[1], each[-1])), *each[2:-1])
    ]
    hidden = _unprojected(graph, states[0], matrices)
    fixed = (bound["has_biases"], 1, 0.0, False, bound["bidirectional"], bound["batch_first"])
    ran = call(graph, aten.lstm.input, (source, [hidden, states[1]], params, *fixed))
    output, last, cell = (call(graph, operator.getitem, (ran, place)) for place in range(3))
    width = output.meta["val"].shape[-1] // len(matrices)
    parts = [
        call(graph, aten.slice.Tensor, (output, -1, i * width, (i + 1) * width)) for i in range(len(matrices))
    ]
    outputs = [_times(graph, part, matrix) for part, matrix in zip(parts, matrices, strict=True)]
    lasts = _by_direction(graph, last, matrices)
    return _joined(graph, outputs, -1), lasts, cell


def _times(graph: fx.GraphModule, value: fx.Node, matrix: fx.Node) -> fx.Node:
    return call(graph, aten.linear.default, (value, matrix))


def _joined(graph: fx.GraphModule, parts: list[fx.Node], dim: int) -> fx.Node:
    return parts[0] if len(parts) == 1 else call(graph, aten.cat.default, (parts, dim))


def _by_direction(graph: fx.GraphModule, state: fx.Node, matrices: Sequence[fx.Node]) -> fx.Node:
    """Multiply the state of each direction by its matrix."""
    parts = [call(graph, aten.slice.Tensor, (state, 0, i, i + 1)) for i in range(len(matrices))]
    return _joined(graph, [_times(graph, *each) for each in zip(parts, matrices, strict=True)], 0)


def _unprojected(graph: fx.GraphModule, hidden: fx.Node, matrices: Sequence[fx.Node]) -> fx.Node:
    """Return states that the projections map to the given ones: zeros of the cell's size where they are zeros."""
    source: Any = hidden.args[0]
    if packet_of(source.target) not in (aten.zeros, aten.zeros_like):
        return _by_direction(graph, hidden, [_inverse(graph, matrix) for matrix in matrices])
    value, cell = hidden.meta["val"], matrices[0].meta["val"].shape[1]
    kind = {"dtype": value.dtype, "device": value.device}
    return call(
        graph, aten.zeros.default, ([size_of(graph, hidden, 0), size_of(graph, hidden, 1), cell],), kind
    )


def _inverse(graph: fx.GraphModule, matrix: fx.Node) -> fx.Node:
    """Return the pseudo-inverse of a projection, as a buffer."""
    value = attribute(graph, str(matrix.target)).detach()
    return add_buffer(graph, f"_inverse_{matrix.name}", torch.linalg.pinv(value.double()).to(value.dtype))
