"""Count the parameters, the bytes, and the floating-point operations of one run of a Program.

Operations are counted by running the graph on fake tensors, so at any batch and length and without computing anything. A
multiplication and an addition count as two, and only products, convolutions and attention count.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from fxprune.ir import Point, Program
from fxprune.ir.example_inputs import call_inputs
from fxprune.rules import Linear
from fxprune.rules.traits import TRAITS

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Cost:
    """Parameters counted once each, the bytes of parameters and buffers, and the operations of one run."""

    parameters: int
    bytes: int
    flops: int


def count_cost(program: Program, point: Point | None = None) -> Cost:
    """Return the cost of a program, its operations at a point (by default at the example inputs)."""
    return Cost(program.parameter_count(), program.parameter_bytes(), count_flops(program, point))


def count_flops(program: Program, point: Point | None = None) -> int:
    """Count the operations of one run at a point."""
    leaves, spec = pytree.tree_flatten(call_inputs(program, point))
    counter = FlopCounterMode(display=False, custom_mapping={**_third_party(), **_CPU_ONLY})
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    inputs = [fake.from_tensor(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
    args, kwargs = pytree.tree_unflatten(inputs, spec)
    with torch.no_grad(), counter, fake:
        # past the counter's own hooks, which require a gradient of a parameter that is a result
        program.graph_module.forward(*args, **kwargs)
    return int(counter.get_total_flops())


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Count the operations of attention, for scores and for weighted values: each query head reads every key once, grouped or not."""
    return int(2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1]))


def _matrix_vector(matrix: Any, *_: Any, **__: Any) -> int:
    return int(2 * prod(matrix))


def _recurrent(x: Any, to_gates: Any, from_state: Any, *_: Any, **__: Any) -> int:
    return int(2 * prod(x[:2]) * (prod(to_gates) + prod(from_state)))


def _third_party() -> dict[Any, Callable[..., int]]:
    """Return the formulas of products by a matrix that others have registered; torch has those of its own."""
    rows = [(key, row.linear) for key, row in TRAITS.items() if isinstance(key, torch._ops.OpOverloadPacket)]
    own = {key: linear for key, linear in rows if linear and linear.matrix}
    return {key: _product(key, linear) for key, linear in own.items() if not str(key).startswith("aten.")}


def _product(packet: Any, linear: Linear) -> Callable[..., int]:
    """Return the formula of a product: each number of the result is a sum over the columns of one output."""
    names = [argument.name for argument in getattr(packet, packet.overloads()[0])._schema.arguments]

    def operations(*args: Any, out_shape: Any, **kwargs: Any) -> int:
        weight = {**dict(zip(names, args, strict=False)), **kwargs}[linear.weight]
        return int(2 * prod(out_shape) * prod(weight) // weight[1 if linear.turned else 0])

    return operations


# FlopCounterMode has no formulas for these, which the CPU uses, and would count nothing for them.
_CPU_ONLY: dict[Any, Callable[..., int]] = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten.mkldnn_rnn_layer: _recurrent,
    aten.mv: _matrix_vector,
}
