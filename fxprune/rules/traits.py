"""Traits: the kind of each operator, one row an operator, for every part of the compiler that needs to know it.

    register_trait(aten.addmm, linear=Linear("mat1", "mat2", "self", turned=True, bare=aten.mm.default))
    register_trait(aten.index_select, moves="pick", indices="index")

A rule is the effect of an operator on dims and zeros (see `fxprune.rules.registry`); a trait says what else may be done with it: re-fitted,
factorized, passed through, folded. What torch knows is not repeated here (the pointwise tag, aliases that a schema declares), and an
operator without a row has no traits: it is left alone. Third parties register a row beside their rule.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace
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
    transposed: bool = False  #: a convolution whose patches lie in the result, not in the input
    matrix: bool = True  #: the weight is one matrix (of a kernel's points), not a vector or a batch of them
    bare: Any = None  #: the overload without the bias, which stands first, where the bias is required


@dataclass(frozen=True)
class ChannelNorm:
    """The arguments of a norm of channels by their names: result = (input − mean) / √(variance + eps) · weight + bias along dim 1.

    Where `training` is true, the statistics are those of the input.
    """

    input: str
    weight: str
    bias: str
    mean: str
    variance: str
    eps: str
    training: str


@dataclass(frozen=True)
class Trait:
    """Row of TRAITS; a default says that nothing of the kind is known."""

    linear: Linear | None = None
    norm: ChannelNorm | None = None
    mixes: bool = False  #: multiplies its operands and sums, by no matrix (attention)
    moves: str = ""  #: row of MOVEMENTS
    passes: str = ""  #: row of PASSAGES
    indices: str = ""  #: the argument that contains positions to read, count or write
    multiplies: str = ""  #: the arguments whose elements are factors of the result's
    divides: str = (
        ""  #: the arguments that it divides by or takes the logarithm of: infinite, or no number, at zero
    )
    adds: str = ""  #: the arguments that go element by element into a sum (that of a GRU cell, the state), whatever else it computes
    shape_only: bool = False  #: its result depends on the shapes and dtypes of operands, not on their values
    asserts: bool = False  #: it checks, and has no result
    aliases: bool = False  #: the result may share an operand's memory, which the schema does not declare

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


def packets(names: str, library: Any = aten) -> frozenset[Any]:
    """Return the packets of these names, without those that this torch does not have."""
    return frozenset(getattr(library, name) for name in names.split() if hasattr(library, name))


def register_trait(*operators: Any, **facts: Any) -> None:
    """Register a row for each of these operators, `facts` being the fields of Trait.

    An operator is a packet such as `torch.ops.mylib.scale`, one overload of it, whose row replaces the packet's, or a qualified name.
    RuleError where one has a row already, or lacks an argument that the row names.
    """
    row = Trait(**facts)
    for name, known in ((row.moves, MOVEMENTS), (row.passes, PASSAGES)):
        if name and name not in known:
            raise RuleError(f"no kind of operator is called {name!r}; kinds: {', '.join(known)}")
    for operator in operators:
        if operator in TRAITS:
            raise RuleError(f"{operator} has traits already: one operator, one row")
        if not isinstance(operator, str):  # the library behind a name may not be loaded
            _check_arguments(operator, row)
        TRAITS[operator] = row


def _check_arguments(operator: Any, row: Trait) -> None:
    linear = (row.linear.input, row.linear.weight, row.linear.bias) if row.linear else ()
    named = {
        *linear,
        *(astuple(row.norm) if row.norm else ()),
        row.indices,
        *row.multiplies.split(),
        *row.divides.split(),
        *row.adds.split(),
        "train" if row.passes == "dropout" else "",
    } - {""}
    overloads = [operator]
    if isinstance(operator, torch._ops.OpOverloadPacket):
        overloads = [getattr(operator, name) for name in operator.overloads()]
    known = [argument.name for overload in overloads for argument in overload._schema.arguments]
    if not named <= {*known}:
        absent = ", ".join(sorted(named - {*known}))
        raise RuleError(f"{operator} has no argument {absent}; arguments: {', '.join(dict.fromkeys(known))}")


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


def _rows(names: str, **facts: Any) -> None:
    register_trait(*packets(names), **facts)


# --- products ---------------------------------------------------------------------------------------------

_CONVOLUTION = Linear("input", "weight", "bias", spatial=True)

_rows("linear", linear=Linear("input", "weight", "bias"))
_rows("mm", linear=Linear("self", "mat2", turned=True))
_rows("matmul", linear=Linear("self", "other", turned=True))
_rows("addmm", linear=Linear("mat1", "mat2", "self", turned=True, bare=aten.mm.default))
_rows("bmm", linear=Linear("self", "mat2", matrix=False))
_rows("baddbmm", linear=Linear("batch1", "batch2", "self", matrix=False, bare=aten.bmm.default))
_rows("addbmm", linear=Linear("batch1", "batch2", "self", matrix=False))
_rows("addmv", linear=Linear("mat", "vec", "self", matrix=False, bare=aten.mv.default))
_rows("conv1d conv2d conv3d", linear=_CONVOLUTION)
_TRANSPOSED = replace(_CONVOLUTION, turned=True, transposed=True)
_rows("conv_transpose1d conv_transpose2d conv_transpose3d", linear=_TRANSPOSED)
_rows("convolution _convolution", linear=replace(_CONVOLUTION, matrix=False))  # transposed by an argument
_rows("einsum", mixes=True, aliases=True)
_rows("scaled_dot_product_attention", mixes=True)
_BATCH_NORM = ChannelNorm("input", "weight", "bias", "running_mean", "running_var", "eps", "training")
_rows("batch_norm", norm=_BATCH_NORM)

# --- movements --------------------------------------------------------------------------------------------

_rows("view reshape _unsafe_view view_copy _reshape_copy", moves="view")
register_trait(aten.view.dtype)  # reads bits as another dtype: no movement
_rows("flatten unflatten unsqueeze unsqueeze_copy squeeze squeeze_copy", moves="flatten")
_rows("expand expand_copy broadcast_to repeat tile repeat_interleave", moves="expand")
register_trait(aten.repeat_interleave.self_Tensor, moves="pick")  # a tensor says how often
register_trait(aten.repeat_interleave.Tensor)  # computes positions
_rows("permute permute_copy transpose transpose_copy swapaxes swapdims", moves="transpose")
_rows("t t_copy numpy_T mT movedim moveaxis", moves="transpose")
_rows("flip roll", moves="reverse")
_rows("slice slice_copy select select_copy split chunk unbind unbind_copy", moves="part")
_rows("split_with_sizes split_with_sizes_copy unsafe_split_with_sizes", moves="part")
_rows("cat concat concatenate stack", moves="join")
_rows("sort", moves="pick")
_rows("index", moves="pick", indices="indices")
_rows("gather index_select", moves="pick", indices="index")

# --- the value itself -------------------------------------------------------------------------------------

_rows("alias alias_copy detach detach_copy lift lift_fresh lift_fresh_copy positive", passes="alias")
_rows("to _to_copy type_as", passes="cast")
_rows("clone contiguous", passes="copy")
_rows("dropout alpha_dropout feature_dropout feature_alpha_dropout", passes="dropout", aliases=True)

# --- sums -------------------------------------------------------------------------------------------------

_rows("add add_ sub sub_ rsub subtract subtract_", adds="self other")
_rows("lerp lerp_", adds="self end")
_rows("addcmul addcmul_", adds="self")
_rows("gru_cell", adds="hx")

# --- operands by position, by their reciprocal, by their shape --------------------------------------------

_rows("embedding", indices="indices")
_rows("scatter", indices="index")
_rows("one_hot histc", indices="self")
_rows("mul multiply", multiplies="self other")
_rows("div true_divide divide", multiplies="self", divides="other")
_rows("div_ true_divide_ divide_ floor_divide floor_divide_", divides="other")
_rows("remainder remainder_ fmod fmod_", divides="other")
_rows("addcdiv addcdiv_", divides="tensor2", adds="self")
_rows("reciprocal reciprocal_ rsqrt rsqrt_ log log_ log2 log2_ log10 log10_", divides="self")
_rows(
    "logit logit_ logit_backward lgamma lgamma_ digamma digamma_ mvlgamma mvlgamma_ polygamma polygamma_",
    divides="self",
)
_rows("acosh acosh_ arccosh arccosh_ special_ndtri special_polygamma", divides="self")
_rows("special_bessel_y0 special_bessel_y1", divides="self")
_rows("special_modified_bessel_k0 special_modified_bessel_k1", divides="self")
_rows("special_scaled_modified_bessel_k0 special_scaled_modified_bessel_k1", divides="x")
_rows("special_zeta", divides="self other")
_rows("xlogy xlogy_", divides="other")
_rows("zeros ones full empty scalar_tensor sym_size sym_numel", shape_only=True)
_rows("zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty", shape_only=True)
_rows("rand randn randint randperm rand_like randn_like randint_like", shape_only=True)

# --- results that share memory, and no results ------------------------------------------------------------

_rows("meshgrid broadcast_tensors atleast_1d atleast_2d atleast_3d", aliases=True)
_rows("_assert_tensor_metadata _assert_async _assert_scalar", asserts=True)
_rows("sym_constrain_range sym_constrain_range_for_size", asserts=True)
