"""Axis roles: how an axis is used, by the evidence of its uses.

Three kinds of evidence come from the graph as a whole: an axis between products by weights and nowhere else is their rank, units among
which is chosen are experts where each has a matrix of its own, and sums of weighted values have heads.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import Any

import torch
from torch import fx

from fxprune.analysis.dim_inference import flat_dims
from fxprune.dims import Dim, is_pinned, leaves
from fxprune.ir import bind
from fxprune.rules import Flow, packet_of, traits_of
from fxprune.rules.facts import Shape

aten = torch.ops.aten

#: (the evidence that must all be present, the role): the first row that fits gives the role of an axis
ROLES: tuple[tuple[frozenset[str], str], ...] = (
    (frozenset({"experts"}), "experts"),
    (frozenset({"heads"}), "heads"),
    (frozenset({"qk"}), "qk"),
    (frozenset({"v"}), "v"),
    (frozenset({"rank"}), "rank"),
    (frozenset({"groups"}), "groups"),
    (
        frozenset({"norm", "sum"}),
        "hidden",
    ),  # also where convolutions read it: ViT's patches, ConvNeXt's stages
    (frozenset({"channels"}), "channels"),
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


def find_mixtures(flow: Flow) -> list[Dim]:
    """Return the atoms of units among which is chosen, and each of which has a matrix of its own that no score is computed from.

    A stacked weight (experts, in, out) is multiplied, or looked up by the numbers of the chosen; the weights of a router, the codes of a
    codebook and the neurons of a width behind a softmax are vectors.
    """
    if not flow.choices:
        return []
    chosen: dict[Dim, set[fx.Node]] = {}
    for choice in flow.choices:
        for leaf in leaves(choice.dim):
            chosen.setdefault(leaf, set()).add(choice.node)
    read = _readers_of_stacks(flow, chosen)
    order = {node: i for i, node in enumerate(flow.choices[0].node.graph.nodes)}
    return [leaf for leaf, nodes in read.items() if not _all_behind(chosen[leaf], nodes, order)]


def _readers_of_stacks(flow: Flow, chosen: Container[Dim]) -> dict[Dim, set[fx.Node]]:
    """Return, by chosen atom, the nodes that multiply by a matrix of each of its units, or look such matrices up."""
    summed: dict[fx.Node, set[Dim]] = {}
    for contraction in flow.contractions:
        summed.setdefault(contraction.node, set()).update(leaves(contraction.dim))
    read: dict[Dim, set[fx.Node]] = {}
    for node in flow.dims:
        linear = traits_of(node.target).linear
        if node not in flow.varies or (linear and linear.spatial):
            continue
        for source in (each for each in node.all_input_nodes if each not in flow.varies):
            for leaf in _stacked(flow.dims.get(source, ()), chosen, summed.get(node, set())):
                read.setdefault(leaf, set()).add(node)
    return read


def _stacked(shape: Shape, chosen: Container[Dim], summed: set[Dim]) -> Iterator[Dim]:
    """Yield the chosen atoms that have a dim to themselves, beside two others at least, and are not what alone is summed over."""
    for dim in shape:
        own = dict.fromkeys(leaves(dim))
        others = [other for other in shape if other is not dim and other.size > 1]
        apart = summed.isdisjoint(own) or any(leaf in summed for other in others for leaf in leaves(other))
        if len(others) > 1 and apart and all(leaf in chosen for leaf in own):
            yield from own


def _all_behind(nodes: set[fx.Node], wanted: set[fx.Node], order: Mapping[fx.Node, int]) -> bool:
    """Return whether some nodes are computed from all wanted ones; what is earlier than these is not walked, else each layer walks all."""
    first = min(order[node] for node in wanted)
    found, waiting = set[fx.Node](), list(nodes)
    while waiting:
        sources = waiting.pop().all_input_nodes
        new = [source for source in sources if source not in found and order[source] >= first]
        found.update(new)
        waiting += new
    return wanted <= found


#: operator that sums, or adds at positions: the argument whose values it adds
_ADDED: dict[Any, str] = {
    aten.sum: "self",
    **dict.fromkeys((aten.index_add, aten.index_add_), "source"),
    **dict.fromkeys((aten.scatter_add, aten.scatter_add_, aten.scatter_reduce, aten.scatter_reduce_), "src"),
}


def find_weighted_sums(flow: Flow) -> list[tuple[str, Dim]]:
    """Return (role, dim) of sums of products that no matrix product writes, such as attention over edges, or a state of each head.

    Values (…, heads, v) are weighed by a number for each head that depends on inputs, too, and added up over other dims. A dim that both
    factors have and that is summed over is compared along, as query and key dims are.
    """
    found: list[tuple[str, Dim]] = []
    for node in flow.dims:
        product = _added_product(node) if node.op == "call_function" and node in flow.varies else None
        if product is not None:
            found += _weighted(flow, product, node)
    return found


def _added_product(node: fx.Node) -> fx.Node | None:
    """Return the product of two values that a node adds up, views between them aside."""
    name, bound = _ADDED.get(packet_of(node.target), ""), bind(node)
    source = bound[name].value if name in bound else None
    while isinstance(source, fx.Node) and traits_of(source.target).moves and len(source.all_input_nodes) == 1:
        source = source.all_input_nodes[0]
    is_product = isinstance(source, fx.Node) and packet_of(source.target) in (aten.mul, aten.multiply)
    return source if is_product else None


def _weighted(flow: Flow, product: fx.Node, by: fx.Node) -> list[tuple[str, Dim]]:
    factors = [node for node in product.all_input_nodes if node in flow.varies]
    if len(factors) != 2:
        return []
    one, other = (_free(flow, node) for node in factors)
    left = _free(flow, by)
    shared = [leaf for leaf in one if leaf in other]
    heads, apart = (
        [leaf for leaf in shared if leaf in left],
        [leaf for leaf in (*one, *other) if leaf not in shared],
    )
    if not heads or not apart:
        return []
    words = {"heads": heads, "qk": [leaf for leaf in shared if leaf not in left], "v": apart}
    return [(role, leaf) for role, leaves_ in words.items() for leaf in leaves_]


def _free(flow: Flow, node: fx.Node) -> list[Dim]:
    """Return the atoms of a value that could shrink."""
    found = dict.fromkeys(leaf for dim in flat_dims(flow.dims[node]) for leaf in leaves(dim))
    return [leaf for leaf in found if leaf.size > 1 and not is_pinned(leaf)]


def role_of(evidence: set[str]) -> str:
    """Return the role of an axis: the first row of ROLES that its uses fit, at the latest `other`."""
    return next(role for needed, role in ROLES if needed <= evidence)
