"""Traits: the kind of each operator, one row an operator, for every part of the compiler that needs to know it.

    register_trait(aten.addmm, linear=Linear("mat1", "mat2", "self", turned=True, bare=aten.mm.default))
    register_trait(aten.index_select, moves="pick", indices="index")

A rule is the effect of an operator on dims and zeros (see `fxprune.rules.registry`); a trait says what else may be done with it: re-fitted,
factorized, passed through, folded. What torch knows is not repeated here (the pointwise tag, aliases that a schema declares), and an
operator without a row has no traits: it is left alone. Third parties register a row beside their rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fxprune.errors import RuleError
from fxprune.ir import bind

aten = torch.ops.aten

#: `moves`: how an operator places the elements of its operand; it computes none
MOVEMENTS = {
    "view": "in the same order, under sizes that are given",
    "flatten": "in the same order, under sizes that follow from the dims that are named",
    "expand": "with copies",
    "transpose": "with its dims in another order",
    "reverse": "in another order along a dim",
    "part": "in part, or in parts",
    "join": "beside those of other operands",
    "pick": "as indices or values choose them",
}

#: `passes`: why the value of the first operand is that of the result, position by position
PASSAGES = {
    "alias": "it is the operand",
    "cast": "in another dtype, or on another device",
    "copy": "in other memory",
    "dropout": "in evaluation, when its argument `train` is False",
}


@dataclass(frozen=True)
class Linear:
    """The operands of a product by their names: result = input @ weightᵀ + bias, in whichever floating dtype they have.

    Other arguments may scale it or, of a convolution, be its geometry; only at their defaults are they known to do nothing.
    """

    input: str
    weight: str
    bias: str = ""  #: "" where there is none
    turned: bool = False  #: the weight is stored as columns × outputs
    spatial: bool = False  #: a convolution: channels and weights have spatial dims behind them, of any number
    transposed: bool = (
        False  #: a convolution that adds patches to the result, where others read them from the input
    )
    matrix: bool = (
        True  #: whether the weight is one matrix (with a kernel's points), not a vector nor a batch of them
    )
    bare: Any = None  #: the operator without the bias, which takes the arguments behind it, where the bias can't be left out


@dataclass(frozen=True)
class Trait:
    """Row of TRAITS; a default says that nothing of the kind is known."""

    linear: Linear | None = None
    mixes: bool = False  #: multiplies its operands and sums, by no matrix (attention)
    moves: str = ""  #: row of MOVEMENTS
    passes: str = ""  #: row of PASSAGES
    indices: str = ""  #: the argument that contains positions to read, count or write
    divides: str = (
        ""  #: the argument that it divides by or takes the logarithm of: the result is infinite at zero
    )
    shape_only: bool = (
        False  #: its result depends on the shapes and dtypes of operands, never on their values
    )
    asserts: bool = False  #: it checks, and has no result
    aliases: bool = False  #: the result may be an operand or a view of one, which the schema does not declare

    @property
    def is_product(self) -> bool:
        """Whether it multiplies its operands and sums."""
        return self.mixes or self.linear is not None

    @property
    def is_matrix(self) -> bool:
        """Whether it multiplies by a matrix."""
        return self.linear is not None and self.linear.matrix


TRAITS: dict[Any, Trait] = {}
_NONE = Trait()


def packet_of(target: Any) -> Any:
    """The packet of an overload; any other target is returned as it is."""
    return target.overloadpacket if isinstance(target, torch._ops.OpOverload) else target


def packets(names: str) -> frozenset[Any]:
    """Return the ATen packets of these names, without those that this torch does not have."""
    return frozenset(getattr(aten, name) for name in names.split() if hasattr(aten, name))


def register_trait(*operators: Any, **facts: Any) -> None:
    """Register a row for each of these operators, `facts` being the fields of Trait; RuleError where one has a row already.

    An operator is a packet such as `torch.ops.mylib.scale`, one overload of it, whose row replaces the packet's, or a qualified name.
    """
    row = Trait(**facts)
    for name, known in ((row.moves, MOVEMENTS), (row.passes, PASSAGES)):
        if name and name not in known:
            raise RuleError(f"no kind of operator is called {name!r}; kinds: {', '.join(known)}")
    for operator in operators:
        if operator in TRAITS:
            raise RuleError(f"{operator} has traits already: one operator, one row")
        TRAITS[operator] = row


def traits_of(target: Any) -> Trait:
    """Return the row of a node's target: of the overload, else of its packet, else of its name; one without traits where there is none."""
    packet = packet_of(target)
    keys = (target, packet, getattr(packet, "_qualified_op_name", None))
    return next((TRAITS[key] for key in keys if key in TRAITS), _NONE)


def passes_value(node: fx.Node) -> bool:
    """Return whether the result of a node is the value of its first operand, in whichever memory and dtype; dropout's in evaluation."""
    kind = traits_of(node.target).passes
    return bool(kind) and not (kind == "dropout" and bind(node)["train"].value)


def is_idle_dropout(node: fx.Node) -> bool:
    """Return whether a node is a dropout in evaluation."""
    return traits_of(node.target).passes == "dropout" and passes_value(node)


# --- products ---------------------------------------------------------------------------------------------

register_trait(aten.linear, linear=Linear("input", "weight", "bias"))
register_trait(aten.mm, linear=Linear("self", "mat2", turned=True))
register_trait(aten.matmul, linear=Linear("self", "other", turned=True))
register_trait(aten.addmm, linear=Linear("mat1", "mat2", "self", turned=True, bare=aten.mm.default))
register_trait(aten.bmm, linear=Linear("self", "mat2", matrix=False))
register_trait(aten.baddbmm, linear=Linear("batch1", "batch2", "self", matrix=False, bare=aten.bmm.default))
register_trait(aten.addbmm, linear=Linear("batch1", "batch2", "self", matrix=False))
register_trait(aten.addmv, linear=Linear("mat", "vec", "self", matrix=False, bare=aten.mv.default))
register_trait(aten.conv1d, aten.conv2d, aten.conv3d, linear=Linear("input", "weight", "bias", spatial=True))
register_trait(
    *(aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d),
    linear=Linear("input", "weight", "bias", turned=True, spatial=True, transposed=True),
)
register_trait(
    *(aten.convolution, aten._convolution),  # an argument says whether they are transposed
    linear=Linear("input", "weight", "bias", spatial=True, matrix=False),
)
register_trait(aten.einsum, mixes=True, aliases=True)
register_trait(aten.scaled_dot_product_attention, mixes=True)

# --- movements --------------------------------------------------------------------------------------------

register_trait(*packets("view reshape _unsafe_view view_copy _reshape_copy"), moves="view")
register_trait(aten.view.dtype)  # reads bits as another dtype: no movement
register_trait(
    *packets("flatten unflatten unsqueeze unsqueeze_copy squeeze squeeze_copy"),
    moves="flatten",
)
register_trait(
    *packets("expand expand_copy broadcast_to repeat tile repeat_interleave"),
    moves="expand",
)
register_trait(
    *packets(
        "permute permute_copy transpose swapaxes swapdims transpose_copy t t_copy numpy_T mT movedim moveaxis"
    ),
    moves="transpose",
)
register_trait(*packets("flip roll"), moves="reverse")
register_trait(
    *packets("""
        slice slice_copy select select_copy split_with_sizes split_with_sizes_copy unsafe_split_with_sizes split chunk unbind unbind_copy
    """),
    moves="part",
)
register_trait(*packets("cat concat concatenate stack"), moves="join")
register_trait(aten.sort, moves="pick")
register_trait(aten.index, moves="pick", indices="indices")
register_trait(aten.gather, aten.index_select, moves="pick", indices="index")

# --- the value itself -------------------------------------------------------------------------------------

register_trait(
    *packets("alias alias_copy detach detach_copy lift lift_fresh lift_fresh_copy positive"), passes="alias"
)
register_trait(*packets("to _to_copy type_as"), passes="cast")
register_trait(*packets("clone contiguous"), passes="copy")
register_trait(
    *packets("dropout alpha_dropout feature_dropout feature_alpha_dropout"),
    passes="dropout",
    aliases=True,
)

# --- operands by position, by their reciprocal, by their shape ---------------------------------------------

register_trait(aten.embedding, indices="indices")
register_trait(aten.scatter, indices="index")
register_trait(aten.one_hot, aten.histc, indices="self")
register_trait(
    *packets("""
        div div_ true_divide true_divide_ divide divide_ floor_divide floor_divide_ remainder remainder_ fmod fmod_
    """),
    divides="other",
)
register_trait(*packets("addcdiv addcdiv_"), divides="tensor2")
register_trait(
    *packets("reciprocal reciprocal_ rsqrt rsqrt_ log log_ log2 log2_ log10 log10_"), divides="self"
)
register_trait(
    *packets("""
        sym_size sym_numel zeros ones full empty
        zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty scalar_tensor
    """),
    shape_only=True,
)

# --- results that share memory, and no results ------------------------------------------------------------

register_trait(*packets("meshgrid broadcast_tensors atleast_1d atleast_2d atleast_3d"), aliases=True)
register_trait(
    *packets(
        "_assert_tensor_metadata _assert_async _assert_scalar sym_constrain_range sym_constrain_range_for_size"
    ),
    asserts=True,
)
