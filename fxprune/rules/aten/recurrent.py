"""Recurrent networks as one operator: rows are gates × hidden, columns read the previous step, all layers have one hidden size.

    w_ih  (gates! x H, inputs)     w_hh  (gates! x H, H)     b  (gates! x H)     w_hr  (P, H) where the LSTM projects

The input of a later layer is the Sum of the directions of the previous layer. The initial states are one tensor, so all layers share H.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from fxprune.dims import Dim, atom, product
from fxprune.dims.dim import total
from fxprune.dims.unify import unify
from fxprune.rules.facts import Shape
from fxprune.rules.op import Op
from fxprune.rules.registry import rule

aten = torch.ops.aten


@rule(aten.lstm, zero="lose")
def lstm(op: Op) -> tuple[Shape, ...]:
    """Return the dims of the output, the last hidden states and the last cell states."""
    hidden, cell = (op.flow.dims[node] for node in op["hx"])
    if hidden[-1].size == cell[-1].size:  # a projection is always narrower
        op.unify(hidden[-1], cell[-1])
    else:
        op.flow.least.append((cell[-1], hidden[-1].size + 1, op.node))
    _states(op, hidden, cell)
    outputs = _layers(op, hidden[-1], cell[-1])
    return (*_sequence(op), outputs), hidden, cell


@rule(aten.gru, aten.rnn_tanh, aten.rnn_relu, zero="lose")
def gru(op: Op) -> tuple[Shape, ...]:
    """Return the dims of the output and the last hidden states."""
    hidden = op.dims("hx")
    _states(op, hidden)
    return (*_sequence(op), _layers(op, hidden[-1], hidden[-1])), hidden


def _lead(op: Op) -> Shape:
    return op.dims("input")[:-1]


def _sequence(op: Op) -> Shape:
    """Return batch and steps in the input's order; pin the steps, each of which depends on the previous one."""
    lead = _lead(op)
    op.pin(lead[-1 if op["batch_first"] else 0], "each step goes on from the one before")
    return lead


def _states(op: Op, *states: Shape) -> None:
    """Pin the layers of each state (`layers! batch H`); unify its batch with the input's."""
    batch = _lead(op)[0 if op["batch_first"] else -1]
    for state in states:
        op.pin(state[0], "one state a layer and direction")
        if len(state) > 2:
            op.unify(state[1], batch)


def _layers(op: Op, hidden: Dim, cell: Dim) -> Dim:
    """Unify the weights of all layers and directions; return the output dim of the last layer."""
    directions = 2 if op["bidirectional"] else 1
    count = op.integer("num_layers") * directions
    weights: Sequence[fx.Node] = op["params"]
    size = len(weights) // count
    inputs, source = op.dims("input")[-1], [op["input"]]
    for layer in range(op.integer("num_layers")):
        for direction in range(directions):
            start = (layer * directions + direction) * size
            _layer(op, list(weights[start : start + size]), (inputs, source), (hidden, cell))
        inputs, source = total([hidden] * directions), []
    return inputs


def _layer(
    op: Op, weights: list[fx.Node], inputs: tuple[Dim, list[fx.Node]], states: tuple[Dim, Dim]
) -> None:
    """Unify the weights of one layer in one direction: [w_ih, w_hh, b_ih?, b_hh?, w_hr?]."""
    hidden, cell = states
    w_ih, w_hh, *others = weights
    rows = _gates(op, op.flow.dims[w_ih][0], cell)
    op.unify(rows, op.flow.dims[w_hh][0])
    _read(op, op.flow.dims[w_ih][1], inputs[0], [*inputs[1], w_ih])
    _read(op, op.flow.dims[w_hh][1], hidden, [w_hh])
    for other in others:
        shape = op.flow.dims[other]
        if len(shape) == 1:
            op.unify(shape[0], rows)
        else:
            op.unify(shape[0], hidden)
            _read(op, shape[1], cell, [other])


def _gates(op: Op, rows: Dim, cell: Dim) -> Dim:
    """Split rows as Product(gates, hidden), and pin the gates, which are read by position."""
    gates = atom(rows.size // cell.size)
    op.pin(gates, "the gates of a recurrent cell")
    unify(rows, product([gates, cell]), op.node.name)
    return rows


def _read(op: Op, columns: Dim, what: Dim, operands: list[fx.Node]) -> None:
    """Unify the columns of a matrix with the dim that it reads, and contract them."""
    op.unify(columns, what)
    op.contract(columns, *operands)
    op.role(columns, "ffn")


@rule(aten.lstm_cell, zero="lose")
def lstm_cell(op: Op) -> tuple[Shape, ...]:
    """Return the dims of the hidden and cell states of one step."""
    hidden, cell = (op.flow.dims[node] for node in op["hx"])
    op.unify_all(hidden, cell)
    op.unify_all(hidden[:-1], _lead(op))
    _layer(op, _cell_weights(op), (op.dims("input")[-1], [op["input"]]), (hidden[-1], cell[-1]))
    return hidden, cell


@rule(aten.gru_cell, aten.rnn_tanh_cell, aten.rnn_relu_cell, zero="lose")
def gru_cell(op: Op) -> Shape:
    """Return the dims of the hidden state of one step."""
    hidden = op.dims("hx")
    op.unify_all(hidden[:-1], _lead(op))
    _layer(op, _cell_weights(op), (op.dims("input")[-1], [op["input"]]), (hidden[-1], hidden[-1]))
    return hidden


def _cell_weights(op: Op) -> list[fx.Node]:
    names: tuple[Any, ...] = ("w_ih", "w_hh", "b_ih", "b_hh")
    return [op[name] for name in names if op.has(name)]
