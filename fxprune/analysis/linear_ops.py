"""Linear operators: nodes that multiply activations by a weight matrix of their own, and how sums split into terms.

For each Matrix, results [rows, outputs] = inputs [rows, columns] @ matrix.T + bias, so that code about matrices (moments, least squares) is
written once for all operators. Which operators are such products stands in `fxprune.rules.traits`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.ir import Program, attribute, bind, storage_key
from fxprune.rules import Flow, Linear, traits_of
from fxprune.storage import placed_like

aten = torch.ops.aten

#: arguments of a convolution that say where its patches lie, and what they are where it has no such argument
GEOMETRY = {"stride": 1, "padding": 0, "dilation": 1, "output_padding": 0}


def geometry(node: fx.Node, kernel: Sequence[int]) -> list[tuple[int, ...]]:
    """Return stride, padding and dilation of a convolution, a number for each dim of its kernel."""
    bound = bind(node)
    given = [bound[name].value if name in bound else GEOMETRY[name] for name in list(GEOMETRY)[:3]]
    several = [tuple(value) if isinstance(value, (list, tuple)) else (value,) for value in given]
    return [value * len(kernel) if len(value) == 1 else value for value in several]


def _patches(node: fx.Node, weight: str, value: Tensor) -> Tensor:
    """Return the input patch of each output position of a convolution, channels first: [batch · positions, channels · kernel]."""
    kernel = tuple(bind(node)[weight].value.meta["val"].shape[2:])
    stride, padding, dilation = geometry(node, kernel)
    value = value if value.dim() == len(kernel) + 2 else value[None]
    value = nn.functional.pad(value, [edge for size in reversed(padding) for edge in (size, size)])
    for place, size in enumerate(kernel):
        windows = value.unfold(place + 2, dilation[place] * (size - 1) + 1, stride[place])
        value = windows[..., :: dilation[place]]
    return value.movedim(1, len(kernel) + 1).reshape(-1, value.shape[1] * math.prod(kernel))


def is_plain(node: fx.Node, linear: Linear, known: Sequence[str] = ()) -> bool:
    """Return whether a product has its default for every argument beside its operands, the `known` and, of a convolution, its geometry."""
    known = (*known, linear.input, linear.weight, linear.bias, *(GEOMETRY if linear.spatial else ()))
    bound, arguments = bind(node), node.target._schema.arguments  # type: ignore[union-attr]
    return all(bound[one.name].value == one.default_value for one in arguments if one.name not in known)


def can_lose_bias(node: fx.Node, linear: Linear) -> bool:
    """Return whether a product has a form without its bias: the bias is optional, or `bare` is that form."""
    arguments = node.target._schema.arguments  # type: ignore[union-attr]
    required = {one.name for one in arguments if not one.has_default_value()}
    return linear.bare is not None or linear.bias not in required


def _swaps(node: fx.Node) -> bool:
    """Return whether a transposition of two dims swaps them (`transpose(0, 0)` does not)."""
    turned: Tensor = node.target(torch.empty(1, 2, device="meta"), *node.args[1:], **node.kwargs)  # type: ignore[operator]
    return turned.shape == (2, 1)


@dataclass(frozen=True)
class Matrix:
    """Node that multiplies activations (the value of `source`) by one parameter, and adds another (`bias`, "" where there is none)."""

    node: fx.Node
    source: fx.Node
    weight: str
    bias: str
    form: Linear
    turned: bool  #: whether the parameter is stored as columns × outputs
    groups: int = 1  #: of a grouped convolution, which is a batch of matrices: its rows and results have the columns of all

    @property
    def outputs(self) -> int:
        """The dimension of the result, from the right, along which the outputs lie."""
        return _outputs(self.node, self.form)

    @property
    def sizes(self) -> tuple[int, int]:
        """The numbers of outputs and of columns."""
        outputs = int(self.node.meta["val"].shape[-self.outputs])
        return outputs, bind(self.node)[self.form.weight].value.meta["val"].numel() // outputs

    def read(self, parameter: Tensor) -> Tensor:
        """Return a parameter as a matrix [outputs, columns]."""
        return parameter.t() if self.turned else parameter.reshape(parameter.shape[0], -1)

    def write(self, matrix: Tensor, like: Tensor) -> nn.Parameter:
        """Return a matrix as a parameter with the shape and dtype of `like`."""
        value = (matrix.t() if self.turned else matrix).reshape(like.shape)
        own = placed_like(like, value.to(like.dtype).contiguous())
        return nn.Parameter(own, requires_grad=like.requires_grad)

    def rows(self, value: Tensor) -> Tensor:
        """Return an input as [rows, columns]."""
        if self.form.spatial:
            return _patches(self.node, self.form.weight, value)
        return value.reshape(-1, value.shape[-1])

    def results(self, value: Tensor) -> Tensor:
        """Return a result as [rows, outputs]."""
        place = value.dim() - self.outputs
        return value.movedim(place, -1).reshape(-1, value.shape[place])

    def columns(self, places: Tensor) -> Tensor:
        """Expand values per position of the contracted dim to values per column: a kernel has several columns for each channel."""
        return places.repeat_interleave(self.sizes[1] // len(places))


def _outputs(node: fx.Node, form: Linear) -> int:
    rank = bind(node)[form.weight].value.meta["val"].dim() - 2 if form.spatial else 0
    return int(rank + 1)


def matrices(program: Program, flow: Flow, grouped: bool = False) -> dict[str, Matrix]:
    """Return the nodes that multiply activations by a parameter of their own, by name, in graph order; `grouped` convolutions if asked.

    A parameter that more than one node reads (a tied embedding, a shared layer) is no node's own.
    """
    uses = tensor_uses(program)
    found: dict[str, Matrix] = {}
    for node in program.graph.nodes:
        row = traits_of(node.target)
        form = row.linear if node.op == "call_function" and row.is_matrix else None
        matrix = _matrix(program, node, form, grouped) if form and not form.transposed else None
        if matrix and matrix.source in flow.varies and are_own(program, (matrix.weight, matrix.bias), uses):
            found[node.name] = matrix
    return found


def are_own(program: Program, names: Sequence[str], uses: Mapping[Any, int]) -> bool:
    """Return whether each of some tensors is read by one node alone; names that are "" are left out."""
    return all(uses[_key(program, name)] == 1 for name in names if name)


def _key(program: Program, name: str) -> Any:
    return storage_key(attribute(program.graph_module, name))


def tensor_uses(program: Program) -> dict[Any, int]:
    """Return the number of nodes that read each tensor, by storage."""
    uses: dict[Any, int] = {}
    for node in program.graph.find_nodes(op="get_attr"):
        value = attribute(program.graph_module, str(node.target))
        if isinstance(value, Tensor):
            uses[storage_key(value)] = uses.get(storage_key(value), 0) + len(node.users)
    return uses


def _matrix(program: Program, node: fx.Node, form: Linear, grouped: bool) -> Matrix | None:
    bound = bind(node)
    named = [bound[name].value if name else None for name in (form.input, form.weight, form.bias)]
    weight, flipped = parameter_of(program, named[1])
    bias, _ = parameter_of(program, named[2])
    source, has_bias = named[0], named[2] is not None
    plain = is_plain(node, form, ("groups",) if grouped else ())
    if not isinstance(source, fx.Node) or not weight or (has_bias and not bias) or not plain:
        return None
    if form.spatial and "padding" in bound and isinstance(bound["padding"].value, str):
        return None
    if not _fits(program, node, form, (weight, bias)):
        return None
    groups = bound["groups"].value if "groups" in bound else 1
    return Matrix(node, source, weight, bias, form, form.turned != flipped, groups)


def _fits(program: Program, node: fx.Node, form: Linear, names: tuple[str, str]) -> bool:
    """Return whether the weight is one matrix (no vector, no batch of them), and the bias a number for each output."""
    weight, bias = (attribute(program.graph_module, name).shape if name else None for name in names)
    place = _outputs(node, form)
    return len(weight or ()) == place + 1 and bias in (None, (node.meta["val"].shape[-place],))


def parameter_of(program: Program, value: Any) -> tuple[str, bool]:
    """Return (the name of the parameter that a value is, whether it is transposed on the way); the name is "" where it is none."""
    flipped = False
    while isinstance(value, fx.Node) and traits_of(value.target).moves == "transpose":
        if value.meta["val"].dim() != 2 or len(value.users) > 1:
            return "", False
        value, flipped = value.args[0], flipped != _swaps(value)
    if not isinstance(value, fx.Node) or value.op != "get_attr":
        return "", False
    held = attribute(program.graph_module, str(value.target))
    is_weight = isinstance(held, nn.Parameter) and held.is_floating_point() and held.dim() > 0
    return (str(value.target), flipped) if is_weight else ("", False)


_SUM = Linear("self", weight="", matrix=False)
"""The sum of the elements alone."""


def sum_of(node: fx.Node) -> Linear | None:
    """Return the operands of a node that is a sum of products, for its terms; None where it isn't one, is scaled or can't lose its bias."""
    if node.target is aten.sum.dim_IntList:
        return _SUM
    linear = traits_of(node.target).linear if node.op == "call_function" else None
    if linear is None or not (linear.spatial or is_plain(node, linear)):
        return None
    return linear if can_lose_bias(node, linear) else None
