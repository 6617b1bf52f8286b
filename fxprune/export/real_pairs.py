"""Complex values as pairs of real ones, in a last dimension of size 2: ONNX has no complex numbers outside of its signal operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from fxprune.ir import attribute, bind, call
from fxprune.ir.edit import add_buffer, move_uses
from fxprune.rules import packet_of

aten = torch.ops.aten

Pairs: TypeAlias = Mapping[fx.Node, fx.Node]


def as_real_pairs(graph: fx.GraphModule) -> None:
    """Replace complex values between real ones by pairs; a graph in which an operator on them has no row in `PAIRED` stays as it is."""
    calls = [node for node in graph.graph.nodes if node.op == "call_function"]
    concerned = [node for node in calls if is_complex(node) or any(map(is_complex, node.all_input_nodes))]
    given = any(is_complex(node) for node in graph.graph.find_nodes(op="placeholder"))
    if given or any(packet_of(node.target) not in PAIRED for node in concerned):
        return  # torch's exporter has some of them, and says which it has not
    pairs = _constants(graph)
    for node in concerned:
        with graph.graph.inserting_before(node):
            made = PAIRED[packet_of(node.target)](graph, node, pairs)
        if is_complex(node):
            pairs[node] = made
        else:
            move_uses(graph, node, made)
    for node in reversed(list(pairs)):
        if not node.users:
            graph.graph.erase_node(node)


def _constants(graph: fx.GraphModule) -> dict[fx.Node, fx.Node]:
    """Return the pair of each complex buffer, as a buffer."""
    pairs = {}
    for node in list(graph.graph.find_nodes(op="get_attr")):
        if is_complex(node):
            value = torch.view_as_real(
                attribute(graph, str(node.target)).detach().resolve_conj()
            ).contiguous()
            with graph.graph.inserting_before(node):
                pairs[node] = add_buffer(graph, f"_pair_{node.name}", value)
    return pairs


def is_complex(node: fx.Node) -> bool:
    """Return whether a value is a tensor of complex numbers."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_complex()


def _same(graph: fx.GraphModule, node: fx.Node, pairs: Pairs) -> fx.Node:
    source: Any = node.args[0]
    return pairs.get(source, source)


def _polar(graph: fx.GraphModule, node: fx.Node, pairs: Pairs) -> fx.Node:
    size, angle = node.args
    parts = [call(graph, function.default, (angle,)) for function in (aten.cos, aten.sin)]
    return call(
        graph, aten.stack.default, ([call(graph, aten.mul.Tensor, (size, part)) for part in parts], -1)
    )


def _times(graph: fx.GraphModule, node: fx.Node, pairs: Pairs) -> fx.Node:
    """(a + bi)(c + di) = (ac − bd) + (ad + bc)i; a real factor multiplies both parts."""
    one, other = node.args[:2]
    if one not in pairs or other not in pairs:
        pair, factor = (pairs[one], other) if one in pairs else (pairs[other], one)  # type: ignore[index]
        wide = call(graph, aten.unsqueeze.default, (factor, -1)) if isinstance(factor, fx.Node) else factor
        return call(graph, aten.mul.Tensor, (pair, wide))
    (a, b), (c, d) = _parts(graph, pairs[one]), _parts(graph, pairs[other])  # type: ignore[index]
    real = call(graph, aten.sub.Tensor, (_product(graph, a, c), _product(graph, b, d)))
    imaginary = call(graph, aten.add.Tensor, (_product(graph, a, d), _product(graph, b, c)))
    return call(graph, aten.stack.default, ([real, imaginary], -1))


def _product(graph: fx.GraphModule, one: fx.Node, other: fx.Node) -> fx.Node:
    return call(graph, aten.mul.Tensor, (one, other))


def _parts(graph: fx.GraphModule, pair: fx.Node) -> list[fx.Node]:
    return [call(graph, aten.select.int, (pair, -1, part)) for part in (0, 1)]


def _both(operator: Any) -> Callable[[fx.GraphModule, fx.Node, Pairs], fx.Node]:
    """Return the row of an operator that is linear in both parts alike: the sum or difference of pairs."""

    def row(graph: fx.GraphModule, node: fx.Node, pairs: Pairs) -> fx.Node:
        return call(graph, operator, tuple(pairs[each] for each in node.args[:2]))  # type: ignore[index]

    return row


def _conjugate(graph: fx.GraphModule, node: fx.Node, pairs: Pairs) -> fx.Node:
    real, imaginary = _parts(graph, _same(graph, node, pairs))
    return call(graph, aten.stack.default, ([real, call(graph, aten.neg.default, (imaginary,))], -1))


def _part(which: int) -> Callable[[fx.GraphModule, fx.Node, Pairs], fx.Node]:
    return lambda graph, node, pairs: _parts(graph, _same(graph, node, pairs))[which]


def _moved(graph: fx.GraphModule, node: fx.Node, pairs: Pairs) -> fx.Node:
    """Apply a movement to the pair: dims are counted from the front, since the pair has one more at the end."""
    args: list[Any] = [pairs[node.args[0]], *node.args[1:]]  # type: ignore[index]
    rank = node.args[0].meta["val"].dim()  # type: ignore[union-attr]
    places = _DIMS[packet_of(node.target)]
    for place in places:
        if place < len(args) and isinstance(args[place], int) and args[place] < 0:
            args[place] += rank + (packet_of(node.target) is aten.unsqueeze)
    return call(graph, node.target, tuple(args), dict(node.kwargs))


def _converted(graph: fx.GraphModule, node: fx.Node, pairs: Pairs) -> fx.Node:
    """A real value becomes a pair with a zero; of a complex one that becomes real, the imaginary part is dropped, as torch does."""
    source: Any = node.args[0]
    if source not in pairs:
        return call(
            graph, aten.stack.default, ([source, call(graph, aten.zeros_like.default, (source,))], -1)
        )
    return pairs[source] if is_complex(node) else _parts(graph, pairs[source])[0]


_DIMS: Mapping[Any, tuple[int, ...]] = {
    aten.unsqueeze: (1,),
    aten.slice: (1,),
    aten.select: (1,),
    aten.index_select: (1,),
    aten.transpose: (1, 2),
    aten.contiguous: (),
    aten.clone: (),
}
"""Movements of complex values, with the places of their arguments that are dims."""


def _flattened(graph: fx.GraphModule, node: fx.Node, pairs: Pairs) -> fx.Node:
    bound, rank = bind(node), node.args[0].meta["val"].dim()  # type: ignore[union-attr]
    first, last = (bound[name].value % rank for name in ("start_dim", "end_dim"))
    return call(graph, aten.flatten.using_ints, (pairs[node.args[0]], first, last))  # type: ignore[index]


def _shaped(graph: fx.GraphModule, node: fx.Node, pairs: Pairs) -> fx.Node:
    source, shape = node.args[:2]
    return call(graph, node.target, (pairs[source], [*shape, 2]))  # type: ignore[index, misc]


PAIRED: Mapping[Any, Callable[[fx.GraphModule, fx.Node, Pairs], fx.Node]] = {
    aten.view_as_complex: _same,
    aten.view_as_real: _same,
    aten.polar: _polar,
    aten.mul: _times,
    aten.add: _both(aten.add.Tensor),
    aten.sub: _both(aten.sub.Tensor),
    aten._conj: _conjugate,
    aten.to: _converted,
    aten.flatten: _flattened,
    aten.real: _part(0),
    aten.imag: _part(1),
    **dict.fromkeys(_DIMS, _moved),
    **dict.fromkeys((aten.view, aten.reshape, aten.expand), _shaped),
}
"""Operators on complex values in terms of pairs."""
