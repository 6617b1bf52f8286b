"""Each operator's law about zeros against the operator itself: where the operands that the law names are zero, so is the result.

Operators are called with operands made from their schema, by hand and by torch (OpInfo). No analysis takes part.
"""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterator, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxprune.rules import RULES, find_rule, packet_of, traits_of
from fxprune.rules.aten.pointwise import UNTAGGED, ZERO, is_pointwise
from support.samples import CALLS, CAST, c, overloads, r

aten = torch.ops.aten

#: laws that promise a zero whatever the other arguments are
LAWS = ("keep", "zero", "times", "plus", "first", "over", "affine", "self")
DTYPES = (torch.float64, torch.int64, torch.bool, torch.complex128)
#: least operands in the domains that functions have: between 0 and 1, and above 1
DOMAINS = (0.2, 1.2)

MORE: list[tuple[str, tuple[Any, ...]]] = [
    ("conv2d", (r(2, 6, 5, 5), r(8, 6, 3, 3), r(8))),
    ("grid_sampler", (r(2, 4, 5, 5), r(2, 3, 3, 2).tanh(), 0, 0, False)),
    ("index.Tensor", (r(4, 6), [torch.tensor([0, 2])])),
    ("max_pool1d upsample_nearest1d _upsample_nearest_exact1d", (r(2, 4, 6), [2])),
    ("max_pool2d upsample_nearest2d", (r(2, 4, 6, 6), [2, 2])),
    ("max_pool3d", (r(2, 4, 6, 6, 6), [2, 2, 2])),
    ("upsample_linear1d", (r(2, 4, 6), [3], False)),
    ("upsample_bicubic2d upsample_bilinear2d", (r(2, 4, 6, 6), [3, 3], False)),
    ("upsample_trilinear3d", (r(2, 4, 6, 6, 6), [3, 3, 3], False)),
    ("matrix_H numpy_T tril_ triu_", (r(4, 6),)),
    ("prelu", (r(2, 6, 3), r(6))),
    ("roll", (r(4, 6), [1], [0])),
    ("tensordot", (r(4, 6), r(6, 5), [1], [0])),
    ("einsum", ("ab,bc,b->ac", [r(4, 6), r(6, 5), r(6)])),
    ("view_as_real", (c(4, 6),)),
    ("_grouped_mm", (r(16, 16).bfloat16(), r(2, 16, 32).bfloat16(), torch.tensor([8, 16]).int())),
]

Given = dict[str, Any]
Call = tuple[Any, Given]


# --- the laws, as what must be zero -----------------------------------------------------------------------


def zeroed(law: str, target: Any, given: Given) -> Iterator[Given]:
    """The arguments of a call with zeros, in each way in which the law promises that the result is zero."""
    linear, tensors = traits_of(target).linear, [name for name, value in given.items() if is_tensor(value)]
    if law == "times":
        factors = [place for place, leaf in enumerate(pytree.tree_leaves(given)) if is_value(leaf)]
        yield from (with_zero(given, place) for place in factors)
    elif law == "affine":
        names = (linear.input, linear.weight) if linear else ("input", "weight")
        yield from (with_zeros(given, (name, linear.bias if linear else "bias")) for name in names)
    else:
        named = {"keep": tensors, "plus": ("self", "other", "end"), "self": ("g",)}
        named |= dict.fromkeys(("first", "over"), tensors[:1])
        yield with_zeros(given, named.get(law, ()))


def is_tensor(value: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))


def is_value(leaf: Any) -> bool:
    """A tensor that is multiplied: no list of offsets."""
    return isinstance(leaf, Tensor) and leaf.dtype != torch.int32


def with_zeros(given: Given, names: Container[str]) -> Given:
    return {name: pytree.tree_map(zero, value) if name in names else value for name, value in given.items()}


def with_zero(given: Given, place: int) -> Given:
    leaves, spec = pytree.tree_flatten(given)
    found: Given = pytree.tree_unflatten([*leaves[:place], zero(leaves[place]), *leaves[place + 1 :]], spec)
    return found


def zero(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.zeros_like(value)
    return 0 if isinstance(value, (int, float)) else value


# --- the calls --------------------------------------------------------------------------------------------


def called(target: Any, given: Given) -> list[Tensor] | None:
    """The results of an overload, which writes into copies; None where it does not take these arguments."""
    own = pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, given)
    keyed = {argument.name for argument in target._schema.arguments if argument.kwarg_only}
    args = [value for name, value in own.items() if name not in keyed]
    torch.manual_seed(0)
    try:
        result = target(*args, **{name: value for name, value in own.items() if name in keyed})
        return [leaf + 0 for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
    except (RuntimeError, TypeError, NotImplementedError, IndexError, ValueError):
        return None


def from_schema(packet: Any, least: float = 1.2, dtypes: Sequence[Any] = DTYPES) -> Iterator[Call]:
    """Calls of each overload with positive operands of each dtype, both values of a flag, and odd numbers for the rest."""
    for name in packet.overloads():
        target = getattr(packet, name)
        arguments = target._schema.arguments
        if "prim" in name or any(argument.is_out for argument in arguments):
            continue
        for dtype, defaults in itertools.product(dtypes, (True, False)):
            ways = [values(argument, dtype, defaults, least) for argument in arguments]
            for way in itertools.product(*ways):
                yield target, dict(zip([argument.name for argument in arguments], way, strict=True))


def values(argument: Any, dtype: torch.dtype, default: bool, least: float) -> list[Any]:
    kind = str(argument.real_type).removeprefix("Optional[").removesuffix("]")
    if argument.has_default_value() and (default or kind not in ("bool", "float", "number")):
        return [argument.default_value]
    operand = (r(4, 6).sigmoid() * 0.6 + least).to(dtype)
    known: dict[str, list[Any]] = {
        "Tensor": [operand],
        "bool": [True, False],
        "float": [0.3, 0.7],
        "number": [0.7, 2, -1],
        "int": [1],
    }
    return ["floor", "trunc"] if argument.name == "rounding_mode" else known.get(kind, [])


@cache
def samples() -> dict[str, list[Any]]:
    """Torch's own descriptions of operators, by the names that these may have in ATen."""
    from torch.testing._internal.common_methods_invocations import op_db

    found: dict[str, list[Any]] = {}
    for info in op_db:
        spelled = info.name.replace("nn.functional.", "").replace(".", "_")
        for name in {info.aten_name, spelled, *(alias.name for alias in info.aliases)}:
            found.setdefault(name, []).append(info)
    return found


def from_torch(packet: Any) -> Iterator[Call]:
    """Calls with torch's own samples of the operator."""
    name = packet._qualified_op_name.removeprefix("aten::").removesuffix("_copy")
    targets = [getattr(packet, overload) for overload in packet.overloads()]
    for info in samples().get(name, ()):
        drawn = info.sample_inputs("cpu", torch.float64, requires_grad=False)
        for sample, target in itertools.product(itertools.islice(drawn, 6), targets):
            yield target, named(target, (sample.input, *sample.args)) | sample.kwargs


def named(target: Any, args: Sequence[Any]) -> Given:
    """The arguments of a call by the names of the schema."""
    return dict(zip([argument.name for argument in target._schema.arguments], args, strict=False))


HAND = [*overloads(CALLS), *overloads(CAST), *overloads(MORE)]


def by_hand(packet: Any) -> Iterator[Call]:
    return ((target, named(target, args)) for target, args in HAND if packet_of(target) is packet)


def calls_of(packet: Any) -> Iterator[Call]:
    pointwise = packet in UNTAGGED or any(packet in row for row in ZERO.values())
    return itertools.chain(by_hand(packet), from_schema(packet) if pointwise else ())


# --- the checks -------------------------------------------------------------------------------------------


def lawful() -> list[Any]:
    """The operators whose law promises a zero; a fallback of transformers multiplies as `_grouped_mm` does."""
    found = {key for key, rule in RULES.items() if rule.zero in LAWS and not isinstance(key, str)}
    return sorted(found | {packet for law in LAWS for packet in ZERO.get(law, ())}, key=str)


@pytest.mark.filterwarnings("ignore")
def test_where_a_law_promises_a_zero_the_operator_gives_it() -> None:
    answers = {packet: answers_of(calls_of(packet)) for packet in lawful()}
    assert {name for several in answers.values() for name, answer in several if not answer} == set()
    assert sum(map(bool, answers.values())) > 150


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_no_law_that_promises_a_zero_goes_unchecked() -> None:
    answers = {
        packet: answers_of(itertools.chain(calls_of(packet), from_torch(packet))) for packet in lawful()
    }
    assert {name for several in answers.values() for name, answer in several if not answer} == set()
    assert [packet for packet, several in answers.items() if not several] == []


def answers_of(calls: Iterator[Call]) -> list[tuple[str, bool]]:
    return [(str(target), answer) for target, given in calls for answer in zeros(target, given)]


def zeros(target: Any, given: Given) -> list[bool]:
    """Whether the results are zero, for each way in which the law promises it."""
    rule = find_rule(target)
    if rule is None or rule.zero not in LAWS:
        return []
    found = [called(target, each) for each in zeroed(rule.zero, target, given)]
    return [
        not any(value.count_nonzero() for value in like_the_first(results)) for results in found if results
    ]


def like_the_first(results: list[Tensor]) -> list[Tensor]:
    """The results that a law speaks of: positions, which have another type, are none."""
    return [value for value in results if value.dtype == results[0].dtype]


@pytest.mark.filterwarnings("ignore")
def test_where_a_pointwise_operator_has_no_value_at_zero_its_row_says_so() -> None:
    """Of division by zero and logarithms the analysis knows by the trait `divides` alone (powers depend on their exponent)."""
    packets = [getattr(aten, name) for name in sorted(dir(aten)) if not name.startswith("_")]
    plain = [
        p
        for p in packets
        if isinstance(p, torch._ops.OpOverloadPacket) and is_pointwise(getattr(p, p.overloads()[0]))
    ]
    silent = {
        f"{packet}: {name}"
        for packet, least in itertools.product(plain, DOMAINS)
        for target, given in from_schema(packet, least, DTYPES[:1])
        for name, value in given.items()
        if isinstance(value, Tensor)
        and not target._schema.is_mutable
        and name not in traits_of(target).divides.split()
        and has_pole(target, given, name)
    }
    assert sorted(silent) == ["aten.float_power: self", "aten.pow: self"]


def has_pole(target: Any, given: Given, name: str) -> bool:
    """Whether a finite result is finite no more where one operand is zero."""
    before, after = called(target, given), called(target, with_zeros(given, (name,)))
    if not before or not after or not before[0].is_floating_point():
        return False
    return bool(before[0].isfinite().all()) and not bool(after[0].isfinite().all())
