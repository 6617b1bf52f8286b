"""Size attributes of torch.nn modules, as they follow from the tensors: one row per class.

Attributes of other classes are not guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from torch import fx, nn

from fxprune.ir import Program

Declared: TypeAlias = dict[str, Any]

Arguments: TypeAlias = Mapping[str, Any]
"""The arguments of the operator that reads a module's weight, by their names in its schema."""


def _linear(module: Any, arguments: Arguments) -> Declared:
    return {"out_features": module.weight.shape[0], "in_features": module.weight.shape[1]}


def _bilinear(module: Any, arguments: Arguments) -> Declared:
    return dict(zip(("out_features", "in1_features", "in2_features"), module.weight.shape, strict=True))


def _embedding(module: Any, arguments: Arguments) -> Declared:
    return {"num_embeddings": module.weight.shape[0], "embedding_dim": module.weight.shape[1]}


def _normalized(module: Any, arguments: Arguments) -> Declared:
    return {"normalized_shape": tuple(module.weight.shape)} if module.weight is not None else {}


def _features(module: Any, arguments: Arguments) -> Declared:
    given = [each for each in (module.weight, module.running_mean) if each is not None]
    return {"num_features": given[0].shape[0]} if given else {}


def _groups(module: Any, arguments: Arguments) -> Declared:
    if module.weight is None:
        return {}
    groups = arguments.get("num_groups", module.num_groups)
    return {"num_channels": module.weight.shape[0], "num_groups": groups}


def _convolution(module: Any, arguments: Arguments) -> Declared:
    groups, (first, second) = arguments.get("groups", module.groups), module.weight.shape[:2]
    out, into = (second * groups, first) if module.transposed else (first, second * groups)
    return {"groups": groups, "out_channels": out, "in_channels": into}


def _recurrent(module: Any, arguments: Arguments) -> Declared:
    return {"input_size": module.weight_ih_l0.shape[1], "hidden_size": module.weight_hh_l0.shape[1]}


def _cell(module: Any, arguments: Arguments) -> Declared:
    return {"input_size": module.weight_ih.shape[1], "hidden_size": module.weight_hh.shape[1]}


#: class: the function that gives its size attributes, from its tensors and the arguments of the operator that reads its weight
DECLARES: Mapping[type[nn.Module], Callable[[Any, Arguments], Declared]] = {
    nn.Linear: _linear,
    nn.Bilinear: _bilinear,
    nn.Embedding: _embedding,
    nn.EmbeddingBag: _embedding,
    nn.LayerNorm: _normalized,
    nn.RMSNorm: _normalized,
    nn.modules.batchnorm._NormBase: _features,
    nn.GroupNorm: _groups,
    nn.modules.conv._ConvNd: _convolution,
    nn.RNNBase: _recurrent,
    nn.RNNCellBase: _cell,
}


def declared(module: nn.Module, arguments: Arguments) -> Declared:
    """Return the size attributes that follow from a module's tensors, by the row of its class; none for a class without a row."""
    row = next((DECLARES[kind] for kind in type(module).__mro__ if kind in DECLARES), None)
    try:
        return row(module, arguments) if row else {}
    except RuntimeError:  # a weight that is computed (spectral norm) from tensors that do not fit
        return {}


def arguments_of(program: Program, name: str) -> Arguments:
    """Return the arguments of the first operator that reads a tensor, by name, without those that are nodes."""
    nodes = [node for node in program.graph.find_nodes(op="get_attr") if node.target == name]
    readers = [user for node in nodes for user in node.users]
    schema = next((user.target._schema.arguments for user in readers if hasattr(user.target, "_schema")), ())
    values = readers[0].args if readers else ()
    named = {each.name: value for each, value in zip(schema, values, strict=False)}
    return {name: value for name, value in named.items() if not isinstance(value, fx.Node)}
