# mypy: disable-error-code="no-any-return"
# OpInfo and what it calls are Any to the type checker.
"""Each rule against torch's own samples (OpInfo), and against hand-made ones where torch has none: no rule goes unchecked."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

from fxprune import Selection, analyze, capture, shrink, zero_readers
from fxprune.errors import CaptureError
from fxprune.frontend.canonicalization import canonicalize
from fxprune.frontend.canonicalization.canonicalize import CANONICALIZATIONS, functionalize
from fxprune.rules import REFUSED, RULES, find_rule, packet_of
from rules.test_rules import CASES
from support.models import distance
from support.one_operator import Verdict, by_hand, check, check_program
from support.samples import CALLS, CAST, COMPOSED, overloads, r

aten = torch.ops.aten

#: random, or of sizes that depend on values, or uninitialised: cutting an operand draws or finds other values, so only the run counts
VALUE_DEPENDENT = (
    "rand", "uniform", "bernoulli", "multinomial", "normal", "dropout", "rrelu", "lowrank", "fractional", "multi_head", "empty", "cauchy",
    "exponential", "geometric",
)  # fmt: skip
#: the harness can't check these: results whose size depends on values, that are sparse or half complex
NO_PROGRAM = (
    "masked_select", "nonzero", "argwhere", "unique", "as_strided", "hash_tensor", "tensor_split", "chalf", "jiterator", "sparse",
)  # fmt: skip
#: operators that take one type only, each with a test of its own
GROUPED = {"aten::_grouped_mm": torch.bfloat16, "transformers::grouped_mm_fallback": torch.float64}

DTYPES = (torch.float64, torch.int64, torch.bool, torch.complex128)
HAND = [*((*call, False) for call in overloads(CALLS)), *((*call, True) for call in overloads(CAST))]
RANDOM = {
    aten.normal,
    aten.poisson,
    aten.binomial,
    aten.rrelu_,
    aten.rand_like,
    aten.bernoulli_,
    aten.randperm,
}


@pytest.mark.parametrize(("target", "operands", "cast"), HAND, ids=[str(target) for target, *_ in HAND])
def test_an_operator_called_by_hand_agrees_with_its_rule(target: Any, operands: Any, cast: bool) -> None:
    verdict = check_program(by_hand(target, *operands, cast=cast))
    assert verdict.unknown == ()
    assert packet_of(target) in verdict.operators
    assert verdict.relative < 1e-10 or packet_of(target) in RANDOM


@pytest.mark.parametrize("name", GROUPED)
def test_grouped_products_agree_with_their_rule(name: str) -> None:
    pytest.importorskip("transformers.integrations.moe")
    namespace, _, operator = name.partition("::")
    target = getattr(getattr(torch.ops, namespace), operator).default
    ends = torch.tensor([8, 16], dtype=torch.int32)
    verdict = check_program(
        by_hand(target, r(16, 16).to(GROUPED[name]), r(2, 16, 32).to(GROUPED[name]), ends)
    )
    assert verdict.unknown == ()
    assert verdict.exact == 2
    assert verdict.relative < 1e-10


class Histogram(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> Any:
        counts, edges = torch.histogramdd(x, bins=3)
        return self.down(self.up(x).relu()), counts, edges[0]


def test_an_unknown_operator_with_a_list_among_its_results_is_no_crash() -> None:
    program = capture(Histogram(), (torch.randn(5, 6)[:, :6],))
    (axis,) = analyze(program).axes
    selection = Selection({axis.name: range(0, axis.size, 2)})
    x = torch.randn(5, 6)
    assert axis.size == 8
    assert distance(shrink(program, selection)(x), zero_readers(program, selection)(x)) < 1e-6


# --- torch's own samples ----------------------------------------------------------------------------------


def infos() -> list[Any]:
    from torch.testing._internal.common_methods_invocations import op_db

    return [info for info in op_db if not any(part in info.name for part in NO_PROGRAM)]


def forms(info: Any) -> Iterator[tuple[str, Callable[..., Any], int]]:
    """The operator and its in-place variant, each with the number of samples to take."""
    yield info.name, info.op, 6
    if info.inplace_variant:
        yield f"{info.name}_", lambda x, *args, **kwargs: info.inplace_variant(x.clone(), *args, **kwargs), 2


def verdicts(info: Any, form: tuple[str, Callable[..., Any], int]) -> Iterator[Verdict | str]:
    """What comes of each sample that can be captured; the sentence of an exception where there is one."""
    dtype = next((dtype for dtype in DTYPES if dtype in info.dtypes), None)
    if dtype is None:
        return
    name, function, count = form
    for sample in itertools.islice(info.sample_inputs("cpu", dtype, requires_grad=False), count):
        if sample.kwargs.get("dropout_p") or (name.endswith("_") and sample.broadcasts_input):
            continue
        try:
            yield check(function, sample.input, *sample.args, **sample.kwargs)
        except CaptureError:
            continue
        except Exception as error:  # noqa: BLE001 - all that goes wrong is shown at once
            yield f"{name}: {type(error).__name__}: {error}"


def faults(name: str, verdict: Verdict | str) -> list[str]:
    if isinstance(verdict, str):
        return [verdict]
    judged = not any(part in name for part in VALUE_DEPENDENT)
    return [f"{name}: {verdict}"] if judged and not verdict.relative < 1e-8 else []


def not_functional() -> Any:
    """In-place operators stay as they are, so that their own rules are checked."""
    kept = tuple(each for each in CANONICALIZATIONS if each is not functionalize)
    return mock.patch.object(canonicalize, "CANONICALIZATIONS", kept)


def by_cases() -> set[Any]:
    """The operators of the programs that the tests above and those of test_rules.py check."""
    programs = [check(function, *operands) for _, function, operands, _ in [*CASES, *COMPOSED]]
    return {packet_of(target) for target, *_ in HAND}.union(*(verdict.operators for verdict in programs))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_rules_hold_on_torchs_samples_and_none_goes_unchecked(capsys: pytest.CaptureFixture[str]) -> None:
    wrong: list[str] = []
    reached: Counter[Any] = Counter()
    axes = 0
    for info, form in [(one, form) for one in infos() for form in forms(one)]:
        with not_functional() if form[0].endswith("_") else nullcontext():
            found = list(verdicts(info, form))
        wrong += [fault for verdict in found for fault in faults(form[0], verdict)]
        for verdict in found:
            if isinstance(verdict, Verdict):
                axes += verdict.exact
                reached.update(verdict.operators)
    more = by_cases() - reached.keys()
    with capsys.disabled():
        print(told(reached, more, axes))  # noqa: T201 - what the run was worth
    unchecked = sorted(map(str, RULES.keys() - reached.keys() - more - _grouped()))
    unknown = sorted({str(packet) for packet in reached if _unknown(packet)})
    assert "\n".join([*wrong, *unchecked, *unknown]) == ""
    assert axes > 3000


def told(reached: Counter[Any], more: set[Any], axes: int) -> str:
    counts = len(RULES.keys() & reached.keys()), len(RULES.keys() & more)
    return (
        f"\n{len(RULES)} rules: {counts[0]} met by torch's samples, {counts[1]} by hand-made ones only, "
        f"{len(GROUPED)} by a test of their own; {axes} exact axes cut"
    )


def _grouped() -> set[Any]:
    """The keys of the rules that have a test of their own."""
    return {packet for packet in RULES if getattr(packet, "_qualified_op_name", packet) in GROUPED}


def _unknown(packet: Any) -> bool:
    """An ATen operator with neither a rule nor a line in REFUSED."""
    if not isinstance(packet, torch._ops.OpOverloadPacket) or not str(packet).startswith("aten."):
        return False
    rules = (find_rule(getattr(packet, overload)) for overload in packet.overloads())
    return packet not in REFUSED and not any(rules)
