"""Constant propagation: which elements of each value are the same for all inputs, as empty rows of weights leave them.

The program runs once, on its example inputs; each value gets a mask of its shape, True where an element depends on no input. An operator
that is neither pointwise nor has a law (see `_law_of`) gives known elements only where all of its operands are known.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxprune.ir import Program, bind
from fxprune.ir.interpreter import Recorder
from fxprune.ir.random_values import may_draw
from fxprune.rules import find_rule, is_written, packet_of, passes_value, traits_of
from fxprune.rules.aten.pointwise import is_pointwise

aten = torch.ops.aten

_STRETCHES = ("view", "flatten", "expand")
"""Movements that may take sizes of inputs, and that keep every element, or copies of it, where its dims place it."""

Law: TypeAlias = Callable[["ConstantMasks", fx.Node], Any]
"""Transfer function of an operator: the mask of a node's value."""


def propagate_constants(program: Program) -> ConstantMasks:
    """Return the elements that a program computes alike for all inputs."""
    run = ConstantMasks(program)
    with torch.no_grad():
        run.run_flat(program.flat_inputs())
    return run


class ConstantMasks(Recorder):
    """Masks of the known elements: `masks[node]`, booleans of the value's shape, and `values[node]`, the value in one run."""

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        self.masks: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op != "output":
            self.masks[n] = _nothing(value) if is_written(n) else self._mask(n, value)
        return value

    def _mask(self, node: fx.Node, value: Any) -> Any:
        if node.op != "call_function":
            return pytree.tree_map(lambda leaf: _full(leaf, node.op == "get_attr"), value)
        if node.target is operator.getitem:
            return self.masks[node.args[0]][node.args[1]]  # type: ignore[index]
        if traits_of(node.target).moves not in _STRETCHES and self._depends_on_sizes(node):
            return _nothing(value)
        return _law_of(node.target)(self, node)

    def _depends_on_sizes(self, node: fx.Node) -> bool:
        """Return whether a number among the operands comes from the inputs' sizes: elements known here may differ at other sizes."""
        return any(not isinstance(self.masks[n], (Tensor, tuple, list)) for n in node.all_input_nodes)

    def zero(self, node: fx.Node) -> Tensor:
        """Return where a value is zero for all inputs."""
        found: Tensor = self.masks[node] & (self.values[node] == 0)
        return found

    def again(self, node: fx.Node, change: Callable[[fx.Node], Any]) -> Any:
        """Run the node's operator on other operands."""
        args, kwargs = fx.map_arg((node.args, node.kwargs), change)
        return node.target(*args, **kwargs)  # type: ignore[operator]


def _full(leaf: Any, known: bool) -> Any:
    return torch.full(leaf.shape, known) if isinstance(leaf, Tensor) else leaf


def _nothing(value: Any) -> Any:
    return pytree.tree_map(lambda leaf: _full(leaf, False), value)


def _tensors(run: ConstantMasks, node: fx.Node) -> list[fx.Node]:
    return [source for source in node.all_input_nodes if isinstance(run.values[source], Tensor)]


def _whole(run: ConstantMasks, node: fx.Node) -> Any:
    """Mark all elements where all operands are known and nothing is random, else none: the default for operators without a law."""
    sources = [mask for source in node.all_input_nodes for mask in pytree.tree_leaves(run.masks[source])]
    everything = not may_draw(node) and all(bool(mask.all()) for mask in sources)
    return pytree.tree_map(lambda leaf: _full(leaf, everything), run.values[node])


def _dropped(run: ConstantMasks, node: fx.Node) -> Tensor:
    """Keep the operand's mask, for dropout does nothing in evaluation; in training nothing is known."""
    if not passes_value(node):
        return torch.zeros_like(run.values[node], dtype=torch.bool)
    return run.masks[node.all_input_nodes[0]]  # type: ignore[no-any-return]


def _pointwise(run: ConstantMasks, node: fx.Node) -> Tensor:
    """Mark elements where all operands are known, and those of a product also where one factor is zero."""
    shape, sources = run.values[node].shape, _tensors(run, node)
    found = torch.full(shape, not may_draw(node))
    for source in sources:
        found = found & run.masks[source].expand(shape)
    rule = find_rule(node.target)
    if rule is not None and rule.zero == "times":
        for source in sources:
            found = found | run.zero(source).expand(shape)
    return found


def _moved(run: ConstantMasks, node: fx.Node) -> Any:
    """Move a mask as its value is moved; nothing is known where another tensor controls the movement."""
    first = node.args[0] if isinstance(node.args[0], (list, tuple)) else node.args[:1]
    moving = [source for source in first if isinstance(source, fx.Node)]
    if any(source not in moving for source in _tensors(run, node)):
        return _nothing(run.values[node])
    return run.again(
        node, lambda source: run.masks[source].contiguous() if source in moving else run.values[source]
    )


def _selected(run: ConstantMasks, node: fx.Node) -> Tensor:
    """Select from a mask as from its value, where the indices are known."""
    source, index = bind(node)["self"].value, bind(node)["index"].value
    if not bool(run.masks[index].all()):
        return torch.zeros_like(run.values[node], dtype=torch.bool)
    return run.again(node, lambda n: run.masks[n] if n is source else run.values[n])  # type: ignore[no-any-return]


def _padded(run: ConstantMasks, node: fx.Node) -> Tensor:
    """Pad a mask with True, for padding is known."""
    bound = bind(node)
    source, pad = bound["self"].value, fx.map_arg(bound["pad"].value, run.values.__getitem__)
    found: Tensor = aten.constant_pad_nd.default(run.masks[source].float(), pad, 1.0) > 0
    return found


def _product(run: ConstantMasks, node: fx.Node) -> Tensor:
    """Mark sums of products each of which is known: both factors known, or one of them zero."""
    bound, linear = bind(node), traits_of(node.target).linear
    assert linear is not None
    one, other = bound[linear.input].value, bound[linear.weight].value
    more = bound[linear.bias].value if linear.bias else None

    def open_terms(unknown: fx.Node, there: fx.Node) -> Any:
        """Return the number of terms in which `unknown` is not known and `there` may be other than zero."""
        stand_in = {unknown: ~run.masks[unknown], there: ~run.zero(there)}
        if isinstance(more, fx.Node):
            stand_in[more] = torch.zeros_like(run.masks[more])
        return run.again(node, lambda n: stand_in[n].double() if n in stand_in else run.values[n])

    if one is other or more in (one, other):
        return torch.full(run.values[node].shape, bool(run.masks[one].all()) and more is None)
    found: Tensor = (open_terms(one, other) == 0) & (open_terms(other, one) == 0)
    if not isinstance(more, fx.Node):
        return found
    along: Tensor = run.masks[more]
    if linear.spatial:
        along = along.reshape(-1, *(1,) * (run.values[other].dim() - 2))
    return found & along.expand(found.shape)


def _averaged(run: ConstantMasks, node: fx.Node) -> Tensor:
    """Mark means and maxima all of whose terms are known."""
    masks = {source: (~run.masks[source]).double() for source in _tensors(run, node)}
    found: Tensor = run.again(node, lambda n: masks[n] if n in masks else run.values[n]) == 0
    return found


def _summed(run: ConstantMasks, node: fx.Node) -> Tensor:
    """Mark sums all of whose terms are known; where their number may change with the inputs' sizes, only zeros."""
    sizes = [size for source in _tensors(run, node) for size in source.meta["val"].shape]
    found = _averaged(run, node)
    return found if all(isinstance(size, int) for size in sizes) else found & (run.values[node] == 0)


def _batch_normed(run: ConstantMasks, node: fx.Node) -> Any:
    """Mark channels that are known, or have a scale of zero, where the statistics are known: not those of the input."""
    bound = bind(node)
    first = run.values[bound["input"].value]
    learned = [name for name in ("weight", "bias", "running_mean", "running_var") if name in bound]
    given = [bound[name].value for name in learned if isinstance(bound[name].value, fx.Node)]
    if any(name in bound and bound[name].value for name in ("training", "use_input_stats")):
        return _nothing(run.values[node])
    across = (-1, *(1,) * (first.dim() - 2))
    found = run.masks[bound["input"].value]
    if isinstance(bound["weight"].value, fx.Node):
        found = found | run.zero(bound["weight"].value).reshape(across)
    for each in given:
        found = found & run.masks[each].reshape(across)
    rest = run.values[node]
    return found if isinstance(rest, Tensor) else (found, *_nothing(tuple(rest[1:])))


def _attended(run: ConstantMasks, node: fx.Node) -> Tensor:
    """Mark means over positions that all have the same known number; with a mask, which may exclude all positions, only zeros."""
    bound = bind(node)
    source = bound["value"].value
    value, shape = run.values[source], run.values[node].shape
    same = run.masks[source].all(-2) & (value == value[..., :1, :]).all(-2)
    if bound["attn_mask"].value is not None:
        same = same & (value[..., 0, :] == 0)
    same = same[..., None, :]
    if same.dim() > 2 and same.shape[-3] != shape[-3]:
        same = same.repeat_interleave(shape[-3] // same.shape[-3], -3)
    found: Tensor = same.expand(shape)
    return found


#: operator: the mask of its result; those of whole kinds of operators are found by their traits
_LAWS: dict[Any, Law] = {
    aten.index_select: _selected,
    aten.constant_pad_nd: _padded,
    aten.sum: _summed,
    **dict.fromkeys((aten.mean, aten.amax), _averaged),
    **dict.fromkeys((aten.avg_pool1d, aten.avg_pool2d, aten.avg_pool3d), _averaged),
    **dict.fromkeys(
        (aten.adaptive_avg_pool1d, aten.adaptive_avg_pool2d, aten.adaptive_avg_pool3d), _averaged
    ),
    **dict.fromkeys((aten.max_pool1d, aten.max_pool2d, aten.max_pool3d), _averaged),
    **dict.fromkeys(
        (aten.batch_norm, aten.instance_norm, aten._native_batch_norm_legit_no_training), _batch_normed
    ),
    aten.scaled_dot_product_attention: _attended,
}


def _law_of(target: Any) -> Law:
    """Return the law of an operator: its own, that of its kind, or the default."""
    row = traits_of(target)
    if row.linear:
        return _product
    if row.passes == "dropout":
        return _dropped
    if row.moves not in ("", "pick"):
        return _moved
    return _LAWS.get(packet_of(target)) or (_pointwise if is_pointwise(target) else _whole)
