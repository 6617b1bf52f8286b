"""Mutants that tests once let pass: each is put into the running process, and the default test that is named must fail."""

from __future__ import annotations

import runpy
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch

from support.mutation import ROOT, applied, replaced

NAN = float("nan")


@dataclass(frozen=True)
class Known:
    """A fault in words, its file, the text before and after, and the test (its file, its name, its arguments) that must fail."""

    fault: str
    path: str
    before: str
    after: str
    test: tuple[str, str, tuple[Any, ...]]


KNOWN = (
    Known(
        "the pin of an atom that is refined is lost",
        "fxprune/dims/unify.py",
        "pin(into, leaf._pin.why, leaf._pin.node)",
        "pass",
        ("dims/test_unify.py", "test_a_pin_reaches_both_parts_of_a_segment_that_is_cut", ()),
    ),
    Known(
        "the law of the first operand ignores the others",
        "fxprune/analysis/exactness.py",
        "None if any(map(s.carries, values)) else s.everywhere([first], node)",
        "s.everywhere([first], node)",
        (
            "analysis/test_zero_sets.py",
            "test_the_parameters_that_silence_a_sum",
            ("rows picked for each column",),
        ),
    ),
    Known(
        "scatter ignores what is written",
        "fxprune/analysis/exactness.py",
        "s.everywhere([base, source], node)",
        "s.everywhere([base], node)",
        (
            "analysis/test_zero_sets.py",
            "test_the_parameters_that_silence_a_sum",
            ("written what is not zero",),
        ),
    ),
    Known(
        "what was one tensor becomes two",
        "fxprune/rewrite/shrink.py",
        "made[key] if key in made else _renumbered(",
        "_renumbered(",
        ("rewrite/test_shrink.py", "test_tied_weights_stay_tied", ()),
    ),
    Known(
        "any NaN counts as equal",
        "fxprune/ir/compare.py",
        "(one.isnan() & other.isnan())",
        "(one.isnan() | other.isnan())",
        (
            "ir/test_compare.py",
            "test_relative_difference",
            (torch.tensor([1, NAN]), torch.tensor([1.0, 2]), float("inf")),
        ),
    ),
    Known(
        "the number of outputs does not count",
        "fxprune/ir/compare.py",
        "        return OutputAgreement(math.inf, 0.0, 0)",
        "        got, expected = got[: len(expected)], expected[: len(got)]",
        ("ir/test_compare.py", "test_another_number_of_outputs_is_infinitely_far", ()),
    ),
    Known(
        "the number of outputs does not count in a proof",
        "fxprune/ir/compare.py",
        "        return OutputAgreement(math.inf, 0.0, 0)",
        "        got, expected = got[: len(expected)], expected[: len(got)]",
        ("adversarial/test_tampered.py", "test_a_dropped_or_repeated_output_is_caught", ("mlp",)),
    ),
    Known(
        "a size argument loses its offset",
        "fxprune/rewrite/size_arguments.py",
        "type(value)(size + said.offset)",
        "type(value)(size)",
        ("rewrite/test_size_arguments.py", "test_a_size_with_an_offset_keeps_it", ()),
    ),
    Known(
        "symbolic sizes are scaled by sizes that are not in lowest terms",
        "fxprune/rewrite/size_arguments.py",
        "shared = math.gcd(old, new)",
        "shared = 1",
        ("rewrite/test_size_arguments.py", "test_a_symbolic_size_is_right_at_other_batches", ()),
    ),
    Known(
        "the sizes that a selection was made for are ignored",
        "fxprune/rewrite/shrink.py",
        "said = selection.sizes.get(axis.name, axis.size)",
        "said = axis.size",
        ("rewrite/test_shrink.py", "test_a_selection_of_other_sizes_is_refused", ()),
    ),
    Known(
        "promised sizes are not checked",
        "fxprune/rewrite/shape_propagation.py",
        "if node in promised and sizes != promised[node]:",
        "if False:",
        ("rewrite/test_shape_propagation.py", "test_a_broken_promise_is_an_error", ()),
    ),
)


@cache
def _read(file: str) -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "tests" / file))


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: known.fault)
def test_a_known_mutant_is_caught(known: Known) -> None:
    file, name, args = known.test
    test = _read(file)[name]
    test(*args)
    with applied(replaced(ROOT / known.path, known.before, known.after)) as changed:
        assert len(changed) == 1
        with pytest.raises((Exception, pytest.fail.Exception)):
            test(*args)
    test(*args)
