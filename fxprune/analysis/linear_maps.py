"""Linear maps: what one least-squares fit can change, a product by a matrix or by one for each group of channels, a batch norm, or both.

For each LinearMap, results [rows, outputs] = inputs [rows, columns] @ weight.T + bias; a grouped convolution and a batch norm alone are
batches of such maps, one for each group: [groups, rows, columns]. A batch norm that alone reads a product is its scale and its bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from fxprune.analysis.linear_ops import Matrix, are_own, matrices, parameter_of, tensor_uses
from fxprune.ir import Program, bind
from fxprune.rules import Flow, traits_of
from fxprune.storage import placed_like

_SMALL = 1e-3
"""Share of the largest scale of a batch norm from which on a weight is not divided by it, but takes it over."""


@dataclass(frozen=True)
class Norm:
    """Batch norm with fixed statistics, a scale and a shift for each channel; the four are names of tensors."""

    node: fx.Node
    source: fx.Node
    weight: str
    bias: str
    mean: str
    variance: str
    eps: float

    def deviation(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return what values are divided by [channels]."""
        return (tensors[self.variance].double() + self.eps).sqrt()

    def scale(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return what values are multiplied by [channels]."""
        return tensors[self.weight].detach().double() / self.deviation(tensors)


@dataclass(frozen=True)
class LinearMap:
    """A matrix or grouped convolution, the batch norm that alone reads it, or a batch norm alone."""

    matrix: Matrix | None
    norm: Norm | None

    @property
    def node(self) -> fx.Node:
        """The node that gives the results."""
        last = self.norm or self.matrix
        assert last is not None
        return last.node

    @property
    def source(self) -> fx.Node:
        """The value that is read."""
        first = self.matrix or self.norm
        assert first is not None
        return first.source

    @property
    def weights(self) -> tuple[str, ...]:
        """The names of the matrix and of the norm's scale, as far as there are such."""
        return tuple(part.weight for part in (self.matrix, self.norm) if part is not None)

    def rows(self, value: Tensor) -> Tensor:
        """Return an input as [rows, columns], by groups where there are some."""
        if self.matrix is None:
            return value.transpose(0, 1).reshape(value.shape[1], -1, 1)
        return self._grouped(self.matrix.rows(value))

    def reads_as(self, other: LinearMap) -> bool:
        """Return whether `rows` of both are the same: products of one value, and of no patches or groups of it."""
        plain = (
            m.matrix is not None and not m.matrix.form.spatial and m.matrix.groups == 1 for m in (self, other)
        )
        return self.source is other.source and all(plain)

    def results(self, value: Tensor) -> Tensor:
        """Return a result as [rows, outputs], by groups where there are some."""
        if self.matrix is None:
            return self.rows(value)
        return self._grouped(self.matrix.results(value))

    def _grouped(self, rows: Tensor) -> Tensor:
        groups = self.matrix.groups if self.matrix else 1
        return rows if groups == 1 else rows.unflatten(-1, (groups, -1)).transpose(0, 1)

    def read(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Return (weight [outputs, columns], bias [outputs], None where there is none) in float64, by groups where there are some."""
        weight, bias = self._product(tensors)
        if self.norm is not None:
            scale = self.norm.scale(tensors)
            shift = tensors[self.norm.bias].detach().double() - tensors[self.norm.mean].double() * scale
            weight, bias = weight * scale[:, None], (0.0 if bias is None else bias * scale) + shift
        groups = len(weight) if self.matrix is None else self.matrix.groups
        if groups == 1:
            return weight, bias
        return weight.unflatten(0, (groups, -1)), bias if bias is None else bias.unflatten(0, (groups, -1))

    def _product(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias of the matrix as rows; of a norm alone, those that change nothing."""
        if self.matrix is None:
            return torch.ones_like(tensors[self.weights[0]]).detach().double()[:, None], None
        bias = tensors[self.matrix.bias].detach().double() if self.matrix.bias else None
        return self.matrix.read(tensors[self.matrix.weight]).detach().double(), bias

    def write(
        self, weight: Tensor | None, bias: Tensor | None, tensors: Mapping[str, Tensor]
    ) -> dict[str, nn.Parameter]:
        """Return the parameters whose `read` is a weight and a bias, as far as these are given."""
        new: dict[str, Tensor] = {}
        rows = None if weight is None else weight.reshape(-1, weight.shape[-1])
        shift = None if bias is None else bias.flatten()
        if self.norm is not None:
            rows, shift = self._through_norm(rows, shift, tensors, new)
        if self.matrix is not None and rows is not None:
            new[self.matrix.weight] = self.matrix.write(rows, tensors[self.matrix.weight])
        if self.matrix is not None and shift is not None:
            new[self.matrix.bias] = shift
        return {name: parameter_like(tensors[name], value) for name, value in new.items()}

    def _through_norm(
        self, rows: Tensor | None, shift: Tensor | None, tensors: Mapping[str, Tensor], new: dict[str, Tensor]
    ) -> tuple[Tensor | None, None]:
        """Store what the norm takes, and return the rows that are left for the matrix: the norm's scale stays unless it is small."""
        assert self.norm is not None
        scale = self.norm.scale(tensors)
        if self.matrix is None and rows is not None:
            scale, rows = rows[:, 0], None
            new[self.norm.weight] = scale * self.norm.deviation(tensors)
        elif rows is not None:
            small = scale.abs() <= _SMALL * scale.abs().max()
            scale = scale.where(~small, torch.ones_like(scale))
            rows = rows / scale[:, None]
            if bool(small.any()):
                new[self.norm.weight] = scale * self.norm.deviation(tensors)
        if shift is not None:
            _, own = self._product(tensors)
            new[self.norm.bias] = (
                shift + (tensors[self.norm.mean].double() - (0.0 if own is None else own)) * scale
            )
        return rows, None


def parameter_like(old: Tensor, value: Tensor) -> nn.Parameter:
    """Return a value as a parameter where `old` is, and of its dtype."""
    same = value.device == old.device and value.requires_grad == old.requires_grad
    if isinstance(value, nn.Parameter) and same:
        return value
    return nn.Parameter(placed_like(old, value.detach().to(old.dtype)), old.requires_grad)


def linear_maps(
    program: Program, flow: Flow, kernels: bool = False, norms: bool = False
) -> dict[str, LinearMap]:
    """Return the linear maps by the name of the node that gives the results, in graph order of what they read.

    With `kernels`, grouped convolutions are among them; with `norms`, batch norms, joined to a product that they alone read.
    """
    products = matrices(program, flow, grouped=kernels)
    behind = _norms(program, flow) if norms else {}
    found = []
    for node in program.graph.nodes:
        if node.name in products:
            norm = behind.pop(node, None) if len(node.users) == 1 else None
            found.append(LinearMap(products[node.name], norm))
        elif node in behind:
            found.append(LinearMap(None, behind[node]))
    return {each.node.name: each for each in found}


def _norms(program: Program, flow: Flow) -> dict[fx.Node, Norm]:
    """Return the batch norms by what they read, as far as nothing else reads their parameters, and no other norm their source."""
    uses = tensor_uses(program)
    found: dict[fx.Node, Norm] = {}
    for node in program.graph.nodes:
        norm = _norm(program, node) if node.op == "call_function" else None
        if norm and norm.source in flow.varies and are_own(program, (norm.weight, norm.bias), uses):
            found[norm.source] = norm
    return found


def _norm(program: Program, node: fx.Node) -> Norm | None:
    form, bound = traits_of(node.target).norm, bind(node)
    if form is None or bound[form.training].value:
        return None
    names = [parameter_of(program, bound[name].value)[0] for name in (form.weight, form.bias)]
    statistics = [bound[name].value for name in (form.mean, form.variance)]
    if not all(names) or any(getattr(each, "op", "") != "get_attr" for each in statistics):
        return None
    mean, variance = (str(each.target) for each in statistics)
    return Norm(node, bound[form.input].value, names[0], names[1], mean, variance, bound[form.eps].value)
