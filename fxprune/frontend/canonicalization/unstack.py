"""Unstack: split stacked projections: `view(…, 3, h, d)`, movements, then `unbind` or `select` of the 3 become three slices.

    x ─ view(b, s, 3, h, d) ─ permute(2, 0, 3, 1, 4) ─ unbind(0) ─ q, k, v        one (h, d) for q, k and v
    x ─ slice ─ view(b, s, h, d) ─ permute(0, 2, 1, 3) ─ q                        q and k apart from v

Where the 3 stands behind the heads (`view(…, h, 3, d)`), the slice is of `view(…, h, 3·d)`. The values are the same to the bit. Without
this, q, k and v would have to lose the same head dimensions.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fxprune.ir import call, hint
from fxprune.ir.arguments import as_int
from fxprune.ir.edit import size_of
from fxprune.rules import traits_of

aten = torch.ops.aten

_MOST = 8
"""A factor of more parts than this is no stack of projections."""

_SQUEEZES = (aten.squeeze.dim, aten.squeeze.dims)


@dataclass(frozen=True)
class Link:
    """Node on the way from the view to the selects, and the dimension in its result that counts the parts."""

    node: fx.Node
    place: int


@dataclass(frozen=True)
class Stack:
    """Factor of a view that counts parts: its place, the number of parts, and the end of the result dims that share its source dim."""

    place: int
    parts: int
    end: int


def unstack(graph: fx.GraphModule) -> None:
    """Replace every such pattern of which all paths end in a select or an unbind."""
    for node in list(graph.graph.nodes):
        if node.target is aten.unflatten.int:
            _as_view(graph, node)
        if traits_of(node.target).moves == "view":
            _unstack(graph, node)


def _as_view(graph: fx.GraphModule, node: fx.Node) -> None:
    """Replace unflatten by the reshape to the same sizes."""
    source: Any = node.args[0]
    rank = len(source.meta["val"].shape)
    place = as_int(node.args[1]) % rank
    with graph.graph.inserting_before(node):
        sizes = [size_of(graph, source, i) for i in range(rank)]
    node.target = aten.reshape.default
    node.args = (source, [*sizes[:place], *node.args[2], *sizes[place + 1 :]])  # type: ignore[misc]


def _unstack(graph: fx.GraphModule, view: fx.Node) -> None:
    for stack in stacks(view):
        paths = follow(Link(view, stack.place))
        if paths[1]:
            for part in range(stack.parts):
                with graph.graph.inserting_before(view):
                    own = _sliced(graph, view, stack, part)
                build_part(graph, paths, own, part)
            return


def stacks(view: fx.Node) -> list[Stack]:
    """Return the small factors of one source dimension that another factor follows."""
    source: Any = view.args[0]
    before, after = source.meta["val"].shape, view.meta["val"].shape
    found: list[Stack] = []
    for dim, whole in enumerate(before):
        start, end = _group(before, after, dim)
        if isinstance(whole, int) and end - start > 1:
            sizes = [(i, after[i]) for i in range(start, end - 1) if isinstance(after[i], int)]
            found += [Stack(i, size, end) for i, size in sizes if 2 <= size <= _MOST]
    return found


def _group(before: Any, after: Any, dim: int) -> tuple[int, int]:
    """Return the range of result dimensions that a source dimension becomes (empty where it does not split cleanly)."""
    lead, whole = math.prod(hint(n) for n in before[:dim]), hint(before[dim])
    for start in range(len(after)):
        for end in range(start + 1, len(after) + 1):
            inner = math.prod(hint(n) for n in after[start:end])
            if math.prod(hint(n) for n in after[:start]) == lead and inner == whole:
                return start, end
    return 0, 0


def follow(start: Link) -> tuple[list[Link], list[Link]]:
    """Return (movements, selects and unbinds) that the parts go through; nothing where a path ends otherwise."""
    chain, ends, stack = [start], [], [start]
    while stack:
        link = stack.pop()
        for user in link.node.users:
            if _ends(user, link.place):
                ends.append(Link(user, link.place))
                continue
            place = _moved(user, link)
            if place is None:
                return [], []
            chain.append(Link(user, place))
            stack.append(chain[-1])
    return chain, ends


def _ends(node: fx.Node, place: int) -> bool:
    rank = len(node.args[0].meta["val"].shape) if node.args and isinstance(node.args[0], fx.Node) else 1
    dim = node.args[1] if len(node.args) > 1 else 0
    if node.target is aten.select.int:
        return as_int(dim) % rank == place and isinstance(node.args[2], int)
    return node.target is aten.unbind.int and as_int(dim) % rank == place


def _moved(node: fx.Node, link: Link) -> int | None:
    """Return where the counted dimension goes in a movement; None for anything else."""
    rank = len(link.node.meta["val"].shape)
    if node.target is aten.permute.default:
        return [as_int(i) % rank for i in node.args[1]].index(link.place)  # type: ignore[union-attr]
    if node.target is aten.transpose.int:
        one, other = as_int(node.args[1]) % rank, as_int(node.args[2]) % rank
        return {one: other, other: one}.get(link.place, link.place)
    if traits_of(node.target).passes == "copy":
        return link.place
    if node.target is aten.unsqueeze.default:
        return link.place + (as_int(node.args[1]) % (rank + 1) <= link.place)
    if node.target in _SQUEEZES:
        gone = _squeezed(node, rank)
        return None if link.place in gone else link.place - sum(i < link.place for i in gone)
    return _viewed(node, link) if traits_of(node.target).moves == "view" else None


def _viewed(node: fx.Node, link: Link) -> int | None:
    """Return where the counted dimension is after a second view; None unless the view leaves it as it is."""
    before, after = (tuple(hint(n) for n in each.meta["val"].shape) for each in (link.node, node))
    parts, lead = before[link.place], math.prod(before[: link.place])
    places = [i for i, size in enumerate(after) if size == parts and math.prod(after[:i]) == lead]
    return places[0] if len(places) == 1 else None


def _squeezed(node: fx.Node, rank: int) -> list[int]:
    """Return the dimensions of size 1 that a squeeze removes."""
    given: Any = node.args[1]
    named = given if isinstance(given, (list, tuple)) else [given]
    shape = node.args[0].meta["val"].shape  # type: ignore[union-attr]
    return [as_int(i) % rank for i in named if hint(shape[as_int(i) % rank]) == 1]


def build_part(graph: fx.GraphModule, paths: tuple[list[Link], list[Link]], own: fx.Node, part: int) -> None:
    """Build one part's movements from its own value, and let everything that selected this part read them."""
    (first, *chain), ends = paths
    made = {first.node: own}
    for link in chain:
        with graph.graph.inserting_before(link.node):
            made[link.node] = _rebuilt(graph, link, made, paths[0])
    for end in ends:
        _connect(end, part, made)


def _sliced(graph: fx.GraphModule, view: fx.Node, stack: Stack, part: int) -> fx.Node:
    """Return the view of one part: merge the counting factor with all behind it, slice, and view again."""
    sizes: list[Any] = _explicit(view)
    inner = [view.meta["val"].shape[i] for i in range(stack.place + 1, stack.end)]
    block = math.prod(inner)
    merged = [*sizes[: stack.place], stack.parts * block, *sizes[stack.end :]]
    whole = call(graph, aten.reshape.default, (view.args[0], merged))
    cut = call(graph, aten.slice.Tensor, (whole, stack.place, part * block, (part + 1) * block))
    return call(graph, aten.reshape.default, (cut, _without(sizes, stack.place)))


def _explicit(view: fx.Node) -> list[Any]:
    """Return the sizes that a view is given, −1 written out where the size is a number."""
    given: Any = view.args[1]
    shape = view.meta["val"].shape
    pairs = zip(given, shape, strict=True)
    return [size if item == -1 and isinstance(size, int) else item for item, size in pairs]


def _without(items: Any, place: int) -> list[Any]:
    return [item for i, item in enumerate(items) if i != place]


def _rebuilt(graph: fx.GraphModule, link: Link, made: dict[fx.Node, fx.Node], chain: list[Link]) -> fx.Node:
    node = link.node
    source: Any = node.args[0]
    place = next(other.place for other in chain if other.node is source)
    rank = len(source.meta["val"].shape)
    if traits_of(node.target).passes == "copy":
        return call(graph, node.target, (made[source],), dict(node.kwargs))
    if traits_of(node.target).moves == "view":
        return call(graph, aten.reshape.default, (made[source], _without(node.args[1], link.place)))
    if node.target is aten.unsqueeze.default:
        at = as_int(node.args[1]) % (rank + 1)
        return call(graph, node.target, (made[source], at - (at > place)))
    if node.target in _SQUEEZES:
        sizes = [i - (i > place) for i in _squeezed(node, rank)]
        return call(graph, aten.squeeze.dims, (made[source], sizes))
    order = list(range(rank))
    if node.target is aten.permute.default:
        order = [as_int(i) % rank for i in node.args[1]]  # type: ignore[union-attr]
    else:
        one, other = as_int(node.args[1]) % rank, as_int(node.args[2]) % rank
        order[one], order[other] = other, one
    kept = [i - (i > place) for i in order if i != place]
    return call(graph, aten.permute.default, (made[source], kept))


def _connect(end: Link, part: int, made: dict[fx.Node, fx.Node]) -> None:
    node = end.node
    source: Any = node.args[0]
    parts = source.meta["val"].shape[end.place]
    if node.target is aten.select.int:
        if as_int(node.args[2]) % parts == part:
            node.replace_all_uses_with(made[source])
        return
    for user in list(node.users):
        if user.target is operator.getitem and as_int(user.args[1]) % parts == part:
            user.replace_all_uses_with(made[source])
