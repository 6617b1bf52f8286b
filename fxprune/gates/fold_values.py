"""Fold gate values into weights: gates between closed and open become open, so that the program can be lowered."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fxprune.analysis import Analysis, Axis, analyze
from fxprune.dims import coordinates, leaves
from fxprune.errors import SelectionError
from fxprune.gates.gate import Gate, Gated, tensors_of


def fold_values(gated: Gated, module: nn.Module, values: Mapping[Gate, Tensor]) -> None:
    """Set a module's gates to 0 and 1 in place, multiplying values in between into weights; it computes the same as with `values`.

    Exact for axes that products with weights sum over, as ranks are. SelectionError where a gate of anything else has a value in between.
    """
    analysis, tensors = analyze(gated.base), tensors_of(module)
    nodes = gated.base.reads()
    with torch.no_grad():
        for gate, value in values.items():
            if bool(((value != 0) & (value != 1)).any()):
                axis = _axis(analysis, gate)
                for name in weights_to_scale(axis):
                    dims = analysis.flow.dims[nodes[name]]
                    place = next(i for i, dim in enumerate(dims) if axis.leaf in leaves(dim))
                    units = coordinates(dims[place], axis.leaf)
                    factor = torch.where(units < 0, 1.0, value.cpu()[units.clamp_min(0)])
                    shape = [-1 if i == place else 1 for i in range(len(dims))]
                    tensors[name].mul_(factor.reshape(shape).to(tensors[name]))
            tensors[gate.name].copy_(value != 0)


def _axis(analysis: Analysis, gate: Gate) -> Axis:
    axis = analysis.by_name.get(gate.of) if gate.kind == "units" and not gate.within else None
    if axis is None or axis.role != "rank":
        raise SelectionError(
            f"gate {gate.name}: only gates of ranks can have values between 0 and 1 in the end"
        )
    return axis


def weights_to_scale(axis: Axis) -> tuple[str, ...]:
    """Return the weights to multiply by the gate values of a rank: those that read it, once each.

    Both factors of a tied table read the rank and produce it (the embedding through one, the head through the other): one is enough.
    """
    names = tuple(dict.fromkeys(member.name for member in axis.members if member.learned))
    readers = tuple(name for name in names if name in axis.readers)
    return readers if len(readers) < len(names) else names[:1]
