"""Axis roles: how an axis is used, by the evidence of its uses; an axis between products by weights and nowhere else is their rank."""

from __future__ import annotations

import torch
from torch import fx

from fxprune.analysis.dim_inference import flat_dims
from fxprune.dims import Dim, leaves
from fxprune.rules import Flow, packet_of, traits_of

aten = torch.ops.aten

#: (the evidence that must all be present, the role): the first row that fits gives the role of an axis
ROLES: tuple[tuple[frozenset[str], str], ...] = (
    (frozenset({"choice", "channels"}), "channels"),
    (frozenset({"choice"}), "experts"),
    (frozenset({"heads"}), "heads"),
    (frozenset({"qk"}), "qk"),
    (frozenset({"v"}), "v"),
    (frozenset({"rank"}), "rank"),
    (frozenset({"groups"}), "groups"),
    (frozenset({"channels"}), "channels"),
    (frozenset({"norm", "sum"}), "hidden"),
    (frozenset({"ffn"}), "ffn"),
    (frozenset(), "other"),
)


def find_bottlenecks(flow: Flow) -> list[Dim]:
    """Return the atoms of values that products by weights make, and that only products by weights read, which sum over them."""
    made = {node for node in flow.dims if _by_weights(flow, node)}
    summed: dict[Dim, set[fx.Node]] = {}
    for found in flow.contractions:
        for leaf in leaves(found.dim):
            summed.setdefault(leaf, set()).add(found.node)
    fits: dict[Dim, bool] = {}
    for node in flow.dims:
        if node not in flow.varies:
            continue
        for leaf in dict.fromkeys(leaf for dim in flat_dims(flow.dims[node]) for leaf in leaves(dim)):
            readers = summed.get(leaf, set()) & made
            fit = node in made and bool(node.users) and readers >= set(node.users)
            fits[leaf] = fits.get(leaf, True) and fit
    return [leaf for leaf, fit in fits.items() if fit]


def _by_weights(flow: Flow, node: fx.Node) -> bool:
    """Return whether a node multiplies by a matrix, or looks up its rows."""
    if node.op != "call_function" or node not in flow.varies:
        return False
    product = traits_of(node.target).is_matrix or packet_of(node.target) is aten.embedding
    return product and any(source not in flow.varies for source in node.all_input_nodes)


def role_of(evidence: set[str]) -> str:
    """Return the role of an axis: the first row of ROLES that its uses fit, at the latest `other`."""
    return next(role for needed, role in ROLES if needed <= evidence)
