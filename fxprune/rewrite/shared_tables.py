"""Shared tables: each use of a table that layers share by broadcast (rotary, position bias) gets its own choice of indices.

    cos ─┬─ mul(q1, cos)                    cos ─┬─ index_select(cos, i1) ─ mul(q1, ·)
         └─ mul(q2, cos)     becomes             └─ index_select(cos, i2) ─ mul(q2, ·)

One rotary table would tie the query/key dimensions of all layers into one axis, one position bias their heads. `i1` and `i2` are buffers
that count 0, 1, …; shrinking cuts them, and the table stays whole. A constant is cloned instead, which costs nothing at run time.
"""

from __future__ import annotations

import operator
from collections import Counter

import torch
from torch import Tensor, fx, nn

from fxprune.analysis import Analysis, analyze, flat_dims
from fxprune.analysis.uniform import choices
from fxprune.dims import Dim, is_pinned, leaves
from fxprune.dims.dim import factors
from fxprune.ir import Program, attribute, call, copy_graph, operands, rebuild
from fxprune.ir.edit import STANDS_FOR, add_buffer, move_uses, own_tensors
from fxprune.rewrite.dead_code import remove_dead
from fxprune.rewrite.shrink import shrink_atoms
from fxprune.rules import Flow, traits_of

aten = torch.ops.aten

_ATTENTION = frozenset({"heads", "qk", "v"})


def decouple_tables(program: Program) -> Program:
    """Give each use of a shared side value its own choice of indices, along dims that are evidence of attention.

    A use is where a side value (a position, a mask, a table, and values computed from them) meets the stream of activations. Returns
    the program as it was unless that makes more axes.
    """
    flow = analyze(program).flow
    shared = _attention_atoms(flow)
    side = _side_values(program, flow) if shared else set()
    uses = [(node, user) for node in program.graph.nodes if node in side for user in node.users]
    uses = [(node, user) for node, user in uses if _meets(node, user, side) and _carries(flow, node, shared)]
    sources = _sources(flow, side, shared)
    readers = Counter(source for node, _ in uses for source in sources[node])
    uses = [(node, user) for node, user in uses if any(readers[source] > 1 for source in sources[node])]
    if not uses:
        return program
    apart = rebuild(program, copy_graph(program), {})
    twin = dict(zip(program.graph.nodes, apart.graph.nodes, strict=True))
    return _separate(program, apart, [(twin[node], twin[user]) for node, user in uses], analyze(apart).flow)


def _separate(program: Program, apart: Program, uses: list[tuple[fx.Node, fx.Node]], flow: Flow) -> Program:
    shared = _attention_atoms(flow)
    for use in uses:
        _give_own(apart.graph_module, flow, use, shared)
    remove_dead(apart.graph_module)
    apart.graph.lint()
    apart.graph_module.recompile()
    return apart if _axis_count(apart) > _axis_count(program) else program


def _axis_count(program: Program) -> int:
    """Return the number of free atoms that the parameters have."""
    flow = analyze(program).flow
    names = program.parameters().keys()
    nodes = [node for node in flow.dims if node.op == "get_attr" and node.target in names]
    found = {leaf for node in nodes for dim in flow.dims[node] for leaf in leaves(dim)}
    return sum(leaf.size > 1 and not is_pinned(leaf) for leaf in found)


def _meets(node: fx.Node, user: fx.Node, side: set[fx.Node]) -> bool:
    """Return whether a use is where a side value meets the stream."""
    return user not in side and user.op == "call_function" and user.target is not operator.getitem


def _sources(flow: Flow, side: set[fx.Node], shared: set[Dim]) -> dict[fx.Node, set[fx.Node]]:
    """Return the tables that each side value comes from, those with a shared atom: one that is read once ties nothing."""
    sources: dict[fx.Node, set[fx.Node]] = {}
    for node in flow.dims:
        if node in side and _carries(flow, node, shared):
            before = [sources[each] for each in operands(node) if each in sources]
            sources[node] = set().union(*before) or {node}
    return sources


def _attention_atoms(flow: Flow) -> set[Dim]:
    found = {leaf for dim, role in flow.roles if role in _ATTENTION for leaf in leaves(dim)}
    return {leaf for leaf in found if leaf.size > 1 and not is_pinned(leaf)}


def _side_values(program: Program, flow: Flow) -> set[fx.Node]:
    """Return values that depend on no product and no token: positions, masks, tables, and values computed from them; weights, too.

    Products and embeddings of tokens bring learned weights into the stream of activations.
    """
    side: set[fx.Node] = set()
    for node in program.graph.nodes:
        if node.op in ("placeholder", "output") or node not in flow.dims:
            continue
        inputs = [source for source in operands(node) if source in flow.dims]
        reads_side = all(source in side or source.op == "placeholder" for source in inputs)
        is_stream = traits_of(node.target).is_product or _embeds_tokens(program, flow, node)
        if node.op == "get_attr" or (reads_side and not is_stream):
            side.add(node)
    return side


def _embeds_tokens(program: Program, flow: Flow, node: fx.Node) -> bool:
    """Return whether a node looks up learned rows by the ids of an input; rows of one number for each head are a bias."""
    if node.target is not aten.embedding.default:
        return False
    weight, ids = node.args[:2]
    while traits_of(ids.target).moves not in ("", "join", "pick") or traits_of(ids.target).passes:  # type: ignore[union-attr]
        ids = ids.args[0]  # type: ignore[union-attr]
    learned = isinstance(weight, fx.Node) and str(weight.target) in program.parameters()
    biases = {leaf for dim, role in flow.roles if role == "heads" for leaf in leaves(dim)}
    row = set(leaves(flow.dims[node][-1]))
    return learned and ids.op == "placeholder" and not row <= biases  # type: ignore[union-attr]


def _carries(flow: Flow, node: fx.Node, shared: set[Dim]) -> bool:
    return any(leaf in shared for dim in flat_dims(flow.dims[node]) for leaf in leaves(dim))


def _places(flow: Flow, node: fx.Node, shared: set[Dim]) -> list[int]:
    """Return the dimensions of a value that are, as a whole, made of shared attention atoms."""
    wide = [(i, dim) for i, dim in enumerate(flat_dims(flow.dims[node])) if dim.size > 1 and factors(dim)]
    return [i for i, dim in wide if all(leaf in shared for leaf in leaves(dim))]


def _give_own(graph: fx.GraphModule, flow: Flow, edge: tuple[fx.Node, fx.Node], shared: set[Dim]) -> None:
    """Replace the shared value by a value of its own in one use."""
    node, user = edge
    with graph.graph.inserting_before(user):
        own = _own(graph, flow, node, shared)
    if own is not None:
        user.replace_input_with(node, own)


def _own(graph: fx.GraphModule, flow: Flow, node: fx.Node, shared: set[Dim]) -> fx.Node | None:
    """Return a clone of a constant, a choice of a computed value's indices, or the same operator on one of these; None where impossible."""
    value = attribute(graph, str(node.target)) if node.op == "get_attr" else None
    if isinstance(value, nn.Parameter) or node.target is operator.getitem:
        return None
    if isinstance(value, Tensor):
        held = add_buffer(graph, f"_own_{node.name}", value.detach().clone())
        held.meta[STANDS_FOR] = own_tensors(node)
        return held
    places = _places(flow, node, shared)
    if places:
        return _chosen(graph, node, places)
    sources = [source for source in operands(node) if source in flow.dims]
    alone = len(sources) == 1 and _carries(flow, sources[0], shared)
    own = _own(graph, flow, sources[0], shared) if alone else None
    if own is None:
        return None
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: own if n is sources[0] else n)
    return call(graph, node.target, args, kwargs)


def _chosen(graph: fx.GraphModule, node: fx.Node, places: list[int]) -> fx.Node:
    for place in places:
        size, device = node.meta["val"].shape[place], node.meta["val"].device
        index = add_buffer(graph, f"_choice_{node.name}", torch.arange(size, device=device))
        node = call(graph, aten.index_select.default, (node, place, index))
    return node


def drop_whole_choices(program: Program) -> Program:
    """Remove the choices that still take all indices in order; the same program where there are none."""
    whole = [node.name for node in program.graph.nodes if _is_whole_choice(program.graph_module, node)]
    if not whole:
        return program
    joined = rebuild(program, copy_graph(program), {})
    for node in [node for node in joined.graph.nodes if node.name in whole]:
        move_uses(joined.graph_module, node, node.all_input_nodes[0])
    remove_dead(joined.graph_module)
    joined.graph_module.recompile()
    return joined


def _is_whole_choice(graph: fx.GraphModule, node: fx.Node) -> bool:
    if node.target is not aten.index_select.default or node.args[2].op != "get_attr":  # type: ignore[union-attr]
        return False
    source, place, index_node = node.args
    index = attribute(graph, str(index_node.target))  # type: ignore[union-attr]
    size = source.meta["val"].shape[place]  # type: ignore[union-attr]
    if index.device.type == "meta" or not isinstance(size, int) or index.numel() != size:
        return False
    return torch.equal(index.cpu(), torch.arange(size))


def merge_equal_choices(program: Program) -> Program:
    """Cut shared values where all that read them choose the same indices, and remove these choices; the program computes the same."""
    analysis, kept, whole = analyze(program), dict[Dim, Tensor](), dict[str, Tensor]()
    for leaf, nodes in choices(analysis).items():
        names = dict.fromkeys(str(node.target) for node in nodes.values())
        indices = {name: attribute(program.graph_module, name) for name in names}
        first, *others = indices.values()
        if all(torch.equal(first, each) for each in others) and _only_chosen(analysis, leaf, set(nodes)):
            kept[leaf] = torch.zeros(leaf.size, dtype=torch.bool).index_fill(0, first.cpu(), 1)
            whole |= dict.fromkeys(indices, torch.arange(len(first), device=first.device))
    if not kept:
        return program
    cut = shrink_atoms(analysis, kept)
    return drop_whole_choices(rebuild(cut, copy_graph(cut), whole))


def _only_chosen(analysis: Analysis, leaf: Dim, chosen: set[fx.Node]) -> bool:
    """Return whether values that carry an atom are read only by these choices, apart from nodes that carry it on."""
    others = {node: flat_dims(dims) for node, dims in analysis.flow.dims.items() if node not in chosen}
    carrying = {node for node, dims in others.items() if any(leaf in leaves(dim) for dim in dims)}
    return {user for node in carrying for user in node.users} <= carrying | chosen
