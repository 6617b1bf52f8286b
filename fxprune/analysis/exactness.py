"""Exactness: whether removal of units equals zeros at what reads them, and equals the model with their activations masked.

`ZeroPropagation.of(value)` walks backwards from an operand of a contraction and returns the smallest set of parameters whose zeros make
that operand zero at the removed indices, or None where no zeros of weights can do it (a sigmoid, a bias without the axis).
`Activations` tells sums over activations from statistics of weights (a spectral norm, a zero point), which masks leave as they are.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import fx

from fxprune.analysis.dim_inference import flat_dims
from fxprune.dims import Dim, find, leaves
from fxprune.ir import bind, operands
from fxprune.rules import Contraction, Flow, Linear, find_rule, is_written, packet_of, passes_value, traits_of
from fxprune.rules.dependence import Atoms, atoms_by_value, dependents
from fxprune.rules.facts import Choice

aten = torch.ops.aten

Zeros = frozenset[str]


class ZeroPropagation:
    """Zero propagation for one axis of one program."""

    def __init__(
        self, flow: Flow, leaf: Dim, contractions: Iterable[Contraction], choices: Sequence[Choice]
    ) -> None:
        self.flow = flow
        self.leaf = find(leaf)
        self.sums = {contraction.node for contraction in contractions}
        self.known: dict[fx.Node, Zeros | None] = {}
        self.chosen = bool(choices)
        self.masked = {choice.node for choice in choices if choice.joins}

    def count(self, node: Any) -> int:
        """Return how often the axis occurs in the dims of a value (of several results: of the one with most)."""
        shape = self.flow.dims.get(node, ()) if isinstance(node, fx.Node) else ()
        shapes = [shape] if all(isinstance(dim, Dim) for dim in shape) else shape
        return max((self.count_in(flat_dims(one)) for one in shapes), default=0)

    def count_in(self, dims: Iterable[Dim]) -> int:
        """Return how often the axis occurs among dims."""
        return sum(leaf is self.leaf for dim in dims for leaf in leaves(dim))

    def carries(self, node: Any) -> bool:
        """Return whether a value has the axis among its dims."""
        return self.count(node) > 0

    def is_zero(self, nodes: Iterable[Any]) -> bool:
        """Return whether one of some values is zero as it is at every index of the axis, or at those that are removed."""
        return any(self.of(node) == frozenset() for node in nodes)

    def contracts(self, node: fx.Node) -> bool:
        """Return whether a node sums over the axis."""
        return node in self.sums

    def of(self, node: Any) -> Zeros | None:
        """Return the parameters whose zeros silence a value, or None."""
        if not isinstance(node, fx.Node) or not self.carries(node):
            return None
        if node in self.masked:
            return frozenset()
        if node not in self.known:
            self.known[node] = None
            self.known[node] = self._of(node)
        return self.known[node]

    def _of(self, node: fx.Node) -> Zeros | None:
        if node.op == "get_attr":
            zeros = node.meta["val"].is_floating_point() and not is_written(node)
            return frozenset([str(node.target)]) if zeros else None
        if node.target is operator.getitem:
            return self._result(node)
        rule = find_rule(node.target) if node.op == "call_function" else None
        if rule is None or is_written(node):
            return None
        return LAWS[rule.zero](self, node)

    def _result(self, node: fx.Node) -> Zeros | None:
        """Silence one of several results; None for one of another type than the first, such as positions."""
        source: Any = node.args[0]
        first = source.meta["val"][0]
        return self.of(source) if getattr(first, "dtype", None) == node.meta["val"].dtype else None

    def any(self, nodes: Iterable[Any]) -> Zeros | None:
        """Return the smallest set that silences one operand: of the graph's constants, else of the first other operand that has one.

        Where something chooses among the units, all operands count: one that is silent because they are never chosen needs no zeros.
        """
        ordered = sorted((n for n in nodes if isinstance(n, fx.Node)), key=lambda n: n in self.flow.varies)
        answers: list[Zeros] = []
        for node in ordered:
            if answers and node in self.flow.varies and not self.chosen:
                break
            found = self.of(node)
            answers += [found] if found is not None else []
        return min(answers, key=len, default=None)

    def everywhere(self, nodes: Iterable[Any], result: fx.Node) -> Zeros | None:
        """Return the parameters that silence every operand, if each carries the axis wherever the result does, else None."""
        nodes = list(nodes)
        return self.all(nodes) if all(self.count(node) >= self.count(result) for node in nodes) else None

    def all(self, nodes: Iterable[Any]) -> Zeros | None:
        """Return the parameters that silence every operand, or None."""
        answers = [self.of(node) for node in nodes]
        known = [answer for answer in answers if answer is not None]
        return frozenset().union(*known) if len(known) == len(answers) else None


def _keep(s: ZeroPropagation, node: fx.Node) -> Zeros | None:
    """Silence all carriers; None where the operator adds a place for the axis (expand, repeat), which their zeros do not reach."""
    carriers = [n for n in operands(node) if s.carries(n)]
    return s.all(carriers) if sum(map(s.count, carriers)) >= s.count(node) else None


def _times(s: ZeroPropagation, node: fx.Node) -> Zeros | None:
    return _product(s, node, operands(node))


def _product(s: ZeroPropagation, node: fx.Node, factors: Iterable[Any]) -> Zeros | None:
    """Silence one factor if it carries the axis wherever the result does, else all: y[i, j] = a[i] * b[j] needs both."""
    carriers = [n for n in factors if s.carries(n)]
    enough = [n for n in carriers if s.count(n) >= s.count(node) and not s.contracts(node)]
    if len(carriers) == 1 or not enough:
        return s.all(carriers) if carriers else None
    return s.any(enough)


def _plus(s: ZeroPropagation, node: fx.Node) -> Zeros | None:
    bound = bind(node)
    values = [bound[name].value for name in ("self", "other", "end") if name in bound]
    numbers = [value for value in values if not isinstance(value, fx.Node)]
    tensors = [value for value in values if isinstance(value, fx.Node)]
    return None if any(number not in (0, None) for number in numbers) else s.everywhere(tensors, node)


def _first(s: ZeroPropagation, node: fx.Node) -> Zeros | None:
    first, *rest = list(operands(node))
    values = [other for other in rest if other not in s.flow.positions]
    return None if any(map(s.carries, values)) else s.everywhere([first], node)


def _over(s: ZeroPropagation, node: fx.Node) -> Zeros | None:
    """Silence what is divided, unless the same zeros silence what it is divided by."""
    zeros = s.everywhere(node.args[:1], node)
    reached = s.of(node.args[1])
    return None if zeros is None or (reached is not None and reached <= zeros) else zeros


_OPERANDS = Linear("input", "weight", "bias")
"""The operands of an affine operator without a row of its own."""


def _affine(s: ZeroPropagation, node: fx.Node) -> Zeros | None:
    linear, bound = traits_of(node.target).linear or _OPERANDS, bind(node)
    if linear.input not in bound or linear.weight not in bound:
        return None
    zeros = _product(s, node, [bound[linear.input].value, bound[linear.weight].value])
    return _with(s, node, zeros, bound[linear.bias].value if linear.bias in bound else None)


def _with(s: ZeroPropagation, node: fx.Node, zeros: Zeros | None, addend: Any) -> Zeros | None:
    if zeros is None or not isinstance(addend, fx.Node):
        return zeros
    more = s.everywhere([addend], node)
    return zeros | more if more is not None else None


def _bounds(low: str, high: str) -> Callable[[ZeroPropagation, fx.Node], Zeros | None]:
    """Return the law of a clamp, which keeps a zero if zero lies within the bounds."""

    def law(s: ZeroPropagation, node: fx.Node) -> Zeros | None:
        bound = bind(node)
        least, most = (bound[name].value if name in bound else None for name in (low, high))
        if isinstance(least, fx.Node) or isinstance(most, fx.Node):
            return None
        inside = (least is None or least <= 0) and (most is None or most >= 0)
        return s.everywhere(node.args[:1], node) if inside else None

    return law


def _pow(s: ZeroPropagation, node: fx.Node) -> Zeros | None:
    exponent = bind(node)["exponent"].value
    return s.of(node.args[0]) if isinstance(exponent, (int, float)) and exponent > 0 else None


def _fill(s: ZeroPropagation, node: fx.Node) -> Zeros | None:
    value = bind(node)["value"].value
    return s.everywhere(node.args[:1], node) if value is None or value == 0 else None


def _filled(s: ZeroPropagation, node: fx.Node) -> Zeros | None:
    return frozenset() if bind(node)["fill_value"].value == 0 else None


def _where(s: ZeroPropagation, node: fx.Node) -> Zeros | None:
    bound = bind(node)
    chosen = [bound[name].value for name in ("self", "other") if name in bound]
    literals = [value for value in chosen if not isinstance(value, fx.Node)]
    if any(value != 0 for value in literals):
        return None
    return s.everywhere([value for value in chosen if isinstance(value, fx.Node)], node)


def _softmax(s: ZeroPropagation, node: fx.Node) -> Zeros | None:
    """Require no zeros where removed candidates are masked, so that their share is zero; the axis must occur nowhere else in this value."""
    masked = [c for c in s.flow.choices if c.node is node and s.count_in([c.dim]) == s.count(node) == 1]
    return frozenset() if masked else None


def _marked(s: ZeroPropagation, node: fx.Node) -> Zeros | None:
    """Require no zeros where no operand carries the axis: a removed unit is never chosen, so its bin, or column of a one-hot, is zero."""
    return frozenset() if not any(s.carries(source) for source in operands(node)) else None


def _scatter(s: ZeroPropagation, node: fx.Node) -> Zeros | None:
    """Silence the base, which stays where nothing is written, and the written source where the index carries the axis."""
    bound = bind(node)
    base, index, source = (bound[name].value if name in bound else None for name in ("self", "index", "src"))
    if not s.carries(index):
        return s.everywhere([base], node)
    return s.everywhere([base, source], node) if isinstance(source, fx.Node) else None


def _put(s: ZeroPropagation, node: fx.Node) -> Zeros | None:
    """Silence what is written into, and what is written."""
    bound = bind(node)
    written = [bound[name].value for name in ("values", "source", "src") if name in bound]
    return s.everywhere([bound["self"].value, *written], node) if written else None


def _cumsum(s: ZeroPropagation, node: fx.Node) -> Zeros | None:
    return None if s.contracts(node) else _keep(s, node)


def _by_value(s: ZeroPropagation, node: fx.Node) -> Zeros | None:
    found = VALUE.get(packet_of(node.target))
    return found(s, node) if found else None


def _dropout(s: ZeroPropagation, node: fx.Node) -> Zeros | None:
    """Silence the operand of a dropout that puts another value than zero in the place of what it drops, if it drops nothing."""
    return s.everywhere(node.args[:1], node) if passes_value(node) else None


LAWS: dict[str, Callable[[ZeroPropagation, fx.Node], Zeros | None]] = {
    "lose": lambda s, node: None,
    "keep": _keep,
    "zero": lambda s, node: frozenset(),
    "times": _times,
    "plus": _plus,
    "first": _first,
    "over": _over,
    "affine": _affine,
    "value": _by_value,
    "self": lambda s, node: s.everywhere([bind(node)["g"].value], node),
}

VALUE: dict[Any, Callable[[ZeroPropagation, fx.Node], Zeros | None]] = {
    aten.softmax: _softmax,
    aten._softmax: _softmax,
    aten.one_hot: _marked,
    aten.histc: _marked,
    aten.scatter: _scatter,
    aten.cumsum: _cumsum,
    aten.full: _filled,
    aten.new_full: _filled,
    aten.index_fill: _fill,
    **dict.fromkeys((aten.index_put, aten._unsafe_index_put, aten.index_add, aten.index_copy), _put),
    **dict.fromkeys((aten.scatter_add, aten.scatter_reduce, aten.slice_scatter, aten.select_scatter), _put),
    aten.masked_scatter: _put,
    aten.pow: _pow,
    aten.masked_fill: _fill,
    aten.constant_pad_nd: _fill,
    aten.pad: _fill,
    aten.where: _where,
    aten.clamp: _bounds("min", "max"),
    aten.clamp_min: _bounds("min", "-"),
    aten.clamp_max: _bounds("-", "max"),
    aten.hardtanh: _bounds("min_val", "max_val"),
    aten.alpha_dropout: _dropout,
    aten.feature_alpha_dropout: _dropout,
    aten.scaled_dot_product_attention: lambda s, node: s.everywhere([bind(node)["value"].value], node),
}


def zero_set(
    flow: Flow,
    leaf: Dim,
    facts: tuple[Sequence[Contraction], Sequence[Choice]],
    divided: Sequence[tuple[fx.Node, fx.Node]],
) -> tuple[Zeros, str]:
    """Return (the parameters to zero so that the contractions over the axis are silent, the reason why that is impossible or "").

    `facts` are the axis's own contractions and choices, `divided` the divisions by values that carry it: zeros that reach one of them
    make it infinite, and nothing silences that.
    """
    contractions, choices = facts
    silence = ZeroPropagation(flow, leaf, contractions, choices)
    zeros: Zeros = frozenset()
    why = ""
    taken = {choice.node for choice in choices if choice.loser == 0}
    for contraction in (each for each in contractions if each.node not in taken):
        found = silence.any(contraction.operands)
        zeros |= found or frozenset()
        if found is None:
            why = why or f"no zeros of weights silence it at {contraction.node.name}"
    for node, by in divided:
        reached = silence.of(by)
        if reached is not None and reached <= zeros:
            why = why or f"at zeros of its weights, {node.name} is infinite or no number"
    return zeros, why


class Activations:
    """Values that are zero where the units of an axis are masked; weights and what is computed from them alone are not.

    They depend on inputs; of an axis that no such value carries (the width of a position bias), they are products of constants.
    A weight that an input scales is an activation only where the axis has no other.
    """

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        atoms = atoms_by_value(flow)
        self.varying = dependents(atoms, {node: atoms[node] for node in atoms if node.op == "placeholder"})
        scaled = {node: atoms[node] for node in self.varying}
        computed = dependents(atoms, _products(flow, atoms))
        self.levels = [_by_atom(each) for each in (self.varying, scaled, computed)]
        self.varied = self.levels[1]

    def statistic(self, leaf: Dim, contractions: Sequence[Contraction], choices: Sequence[Choice]) -> str:
        """Return why removal changes a statistic of weights that masks leave as it is: where it is computed; "" where there is none."""
        leaf = find(leaf)
        own = next((level[leaf] for level in self.levels if leaf in level), set())
        silence = ZeroPropagation(self.flow, leaf, contractions, choices)
        read = [(each.node, each.operands) for each in contractions]
        read += [(each.node, (each.value,)) for each in choices]
        for node, values in read:
            apart = bool(own) and own.isdisjoint(values) and not self._has_state(node, values)
            if (apart and not silence.is_zero(values)) or self._returns(node, silence):
                return f"{node.target} over it at {node.name} is a statistic of weights, which changes"
        return ""

    def _has_state(self, node: fx.Node, values: Sequence[fx.Node]) -> bool:
        """Return whether a node reads, with this weight alone, a state of its own (the step before, in a recurrent operator)."""
        return node in self.varying and len(values) == 1 and values[0] not in self.varying

    def _returns(self, node: fx.Node, silence: ZeroPropagation) -> bool:
        """Return whether a sum over an axis of constants alone goes into another one: its first is the scale of a weight."""
        if silence.leaf in self.varied:
            return False
        seen, stack = {node}, [node]
        while stack:
            at = stack.pop()
            new = [user for user in at.users if user not in self.varying and user not in seen]
            if any(silence.contracts(user) for user in new):
                return True
            seen.update(new)
            stack += new
        return False


def _products(flow: Flow, atoms: Atoms) -> Atoms:
    """Return the nodes that sum over a dim, with the atoms of their results that they do not sum over."""
    found = {contraction.node: atoms[contraction.node] for contraction in flow.contractions}
    for contraction in flow.contractions:
        found[contraction.node] = found[contraction.node] - {*leaves(contraction.dim)}
    return found


def _by_atom(carried: Atoms) -> dict[Dim, set[fx.Node]]:
    found: dict[Dim, set[fx.Node]] = {}
    for node, own in carried.items():
        for leaf in own:
            found.setdefault(leaf, set()).add(node)
    return found
