"""Linear operators: a table of how each one multiplies activations by a weight matrix, and one of how sums split into terms.

Every row of FORMS gives results [rows, outputs] = inputs [rows, columns] @ matrix.T + bias, so that code about matrices (moments, least
squares) is written once for all operators.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.ir import Program, attribute, bind, storage_key
from fxprune.rules import Flow, packet_of

aten = torch.ops.aten


@dataclass(frozen=True)
class _Form:
    """Row of FORMS: the names of input, weight and bias in the operator's schema, and the maps between its tensors and matrices.

    `turned`: the weight is stored as columns × outputs. `outputs` is the dimension of the result, from the right, along which the outputs
    lie.
    """

    operands: tuple[str, str, str]
    turned: bool
    outputs: int
    accepts: Callable[[fx.Node], bool]
    rows: Callable[[fx.Node, Tensor], Tensor]


def _last(node: fx.Node, value: Tensor) -> Tensor:
    return value.reshape(-1, value.shape[-1])


def _patches(node: fx.Node, value: Tensor) -> Tensor:
    """Return the input patch of each output position of a convolution, channels first: [batch · positions, channels · kernel]."""
    bound = bind(node)
    kernel = tuple(bound["weight"].value.meta["val"].shape[2:])
    rank = len(kernel)
    stride, padding, dilation = (_each(bound[name].value, rank) for name in ("stride", "padding", "dilation"))
    value = value if value.dim() == rank + 2 else value[None]
    if rank == 1:
        value, kernel = value[:, :, None], (1, *kernel)
        stride, padding, dilation = (1, *stride), (0, *padding), (1, *dilation)
    unfolded = nn.functional.unfold(value, kernel, dilation, padding, stride)
    return unfolded.transpose(1, 2).reshape(-1, unfolded.shape[1])


def _each(value: Any, rank: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return values * rank if len(values) == 1 else values


def _always(node: fx.Node) -> bool:
    return True


def _plain_sum(node: fx.Node) -> bool:
    """Return whether the addend is a vector, and nothing is scaled."""
    bound = bind(node)
    addend = bound["self"].value.meta["val"]
    return bool(bound["beta"].value == 1 and bound["alpha"].value == 1 and addend.dim() == 1)


def _one_group(node: fx.Node) -> bool:
    bound = bind(node)
    return bound["groups"].value == 1 and not isinstance(bound["padding"].value, str)


#: operator: its form. The weights of other operators are scored by gradients and activations, and never re-fitted.
FORMS: dict[Any, _Form] = {
    aten.linear: _Form(("input", "weight", "bias"), False, 1, _always, _last),
    aten.addmm: _Form(("mat1", "mat2", "self"), True, 1, _plain_sum, _last),
    aten.mm: _Form(("self", "mat2", ""), True, 1, _always, _last),
    aten.matmul: _Form(("self", "other", ""), True, 1, _always, _last),
    aten.conv1d: _Form(("input", "weight", "bias"), False, 2, _one_group, _patches),
    aten.conv2d: _Form(("input", "weight", "bias"), False, 3, _one_group, _patches),
}


@dataclass(frozen=True)
class Matrix:
    """Node that multiplies activations (the value of `source`) by one parameter, and adds another (`bias`, "" where there is none)."""

    node: fx.Node
    source: fx.Node
    weight: str
    bias: str
    form: _Form
    turned: bool

    def read(self, parameter: Tensor) -> Tensor:
        """Return a parameter as a matrix [outputs, columns]."""
        return parameter.t() if self.turned else parameter.reshape(parameter.shape[0], -1)

    def write(self, matrix: Tensor, like: Tensor) -> nn.Parameter:
        """Return a matrix as a parameter with the shape and dtype of `like`."""
        value = (matrix.t() if self.turned else matrix).reshape(like.shape)
        return nn.Parameter(value.to(like.dtype).contiguous(), requires_grad=like.requires_grad)

    def rows(self, value: Tensor) -> Tensor:
        """Return an input as [rows, columns]."""
        return self.form.rows(self.node, value)

    def results(self, value: Tensor) -> Tensor:
        """Return a result as [rows, outputs]."""
        place = value.dim() - self.form.outputs
        return value.movedim(place, -1).reshape(-1, value.shape[place])

    def columns(self, places: Tensor) -> Tensor:
        """Expand values per position of the contracted dim to values per column: a kernel has several columns for each channel."""
        size = self.node.meta["val"].shape[-self.form.outputs]
        count = bind(self.node)[self.form.operands[1]].value.meta["val"].numel() // size
        return places.repeat_interleave(count // len(places))


def matrices(program: Program, flow: Flow) -> dict[str, Matrix]:
    """Return the nodes that multiply activations by a parameter of their own, by name, in graph order.

    A parameter that more than one node reads (a tied embedding, a shared layer) is no node's own.
    """
    uses = _uses(program)
    found: dict[str, Matrix] = {}
    for node in program.graph.nodes:
        form = FORMS.get(packet_of(node.target)) if node.op == "call_function" else None
        matrix = _matrix(program, node, form) if form else None
        if matrix and matrix.source in flow.varies and _owns(program, matrix, uses):
            found[node.name] = matrix
    return found


def _owns(program: Program, matrix: Matrix, uses: dict[Any, int]) -> bool:
    """Return whether nothing else reads the parameters of a matrix."""
    return all(uses[_key(program, name)] == 1 for name in (matrix.weight, matrix.bias) if name)


def _key(program: Program, name: str) -> Any:
    return storage_key(attribute(program.graph_module, name))


def _uses(program: Program) -> dict[Any, int]:
    """Return the number of nodes that read each tensor, by storage."""
    uses: dict[Any, int] = {}
    for node in program.graph.find_nodes(op="get_attr"):
        value = attribute(program.graph_module, str(node.target))
        if isinstance(value, Tensor):
            uses[storage_key(value)] = uses.get(storage_key(value), 0) + len(node.users)
    return uses


def _matrix(program: Program, node: fx.Node, form: _Form) -> Matrix | None:
    bound = bind(node)
    named = [bound[name].value if name else None for name in form.operands]
    weight, flipped = _parameter(program, named[1])
    bias, _ = _parameter(program, named[2])
    source, has_bias = named[0], named[2] is not None
    if not isinstance(source, fx.Node) or not weight or (has_bias and not bias) or not form.accepts(node):
        return None
    if not _fits(program, node, form, (weight, bias)):
        return None
    return Matrix(node, source, weight, bias, form, form.turned != flipped)


def _fits(program: Program, node: fx.Node, form: _Form, names: tuple[str, str]) -> bool:
    """Return whether the weight is one matrix (no vector, no batch of them), and the bias a number for each output."""
    weight, bias = (attribute(program.graph_module, name).shape if name else None for name in names)
    outputs = node.meta["val"].shape[-form.outputs]
    return len(weight or ()) == form.outputs + 1 and bias in (None, (outputs,))


_TRANSPOSE = (aten.t, aten.transpose, aten.permute, aten.numpy_T, aten.mT)


def _parameter(program: Program, value: Any) -> tuple[str, bool]:
    """Return (the name of the parameter that a value is, whether it is transposed on the way); the name is "" where it is none."""
    flipped = False
    while isinstance(value, fx.Node) and packet_of(value.target) in _TRANSPOSE:
        if value.meta["val"].dim() != 2 or len(value.users) > 1:
            return "", False
        value, flipped = value.args[0], flipped != (value.args[1:] not in ((0, 0), ([0, 1],)))
    if not isinstance(value, fx.Node) or value.op != "get_attr":
        return "", False
    held = attribute(program.graph_module, str(value.target))
    is_weight = isinstance(held, nn.Parameter) and held.is_floating_point() and held.dim() > 0
    return (str(value.target), flipped) if is_weight else ("", False)


@dataclass(frozen=True)
class Sum:
    """Row of SUMS: `addend` is the argument that is added once ("" for none), `along` the dimension it lies along (None: it broadcasts).

    `bare` is the operator of the products alone where that is a different one; it takes the arguments after the addend.
    """

    addend: str = ""
    along: int | None = None
    bare: Any = None


#: operator: how its sum splits into products and an addend
SUMS: dict[Any, Sum] = {
    aten.linear.default: Sum("bias"),
    aten.addmm.default: Sum("self", bare=aten.mm.default),
    aten.mm.default: Sum(),
    aten.bmm.default: Sum(),
    aten.matmul.default: Sum(),
    aten.sum.dim_IntList: Sum(),
    aten.conv1d.default: Sum("bias", 1),
    aten.conv2d.default: Sum("bias", 1),
    aten.conv3d.default: Sum("bias", 1),
}


def sum_of(node: fx.Node) -> Sum | None:
    """Return how a node's sum splits into terms; None where it doesn't, or where it is scaled (addmm's alpha and beta)."""
    arguments = bind(node) if node.target in SUMS else {}
    scaled = [name for name in ("alpha", "beta") if name in arguments and arguments[name].value != 1]
    return None if scaled else SUMS.get(node.target)
