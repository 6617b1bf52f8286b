"""Claims: what passes did, part by part, and the one proof that is made of them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from fxprune import Program, Selection, capture, shrink
from fxprune.errors import VerifyError
from fxprune.ir import copy_graph, rebuild, run_example
from fxprune.ir.compare import moved_by
from fxprune.rewrite.factorize import factorize
from fxprune.verification import Claim, Proof
from fxprune.verification.claims import prove_claims
from support.texts import mlp

HALF, QUARTER = Selection({"ffn": range(16)}), Selection({"ffn": range(8)})
FACTORS = {"up.weight": ("up.weight_rows", "up.weight_columns")}


def program() -> Program:
    torch.manual_seed(0)
    return capture(mlp(), (torch.randn(3, 8),))


def test_a_claim_grows_by_each_pass() -> None:
    whole = program()
    half = shrink(whole, HALF)
    quarter = shrink(half, QUARTER)
    idle = Claim(whole, whole, factors=FACTORS)
    one = idle.then(half, HALF, ("up.bias", "down.bias"))
    two = one.then(quarter, QUARTER, ("down.bias", "up.weight"), unchanged=True)
    assert (idle.is_idle, one.is_idle, two.is_idle) == (True, False, False)
    assert (two.before, two.after, two.factors) == (whole, quarter, FACTORS)
    assert two.selection == HALF.compose(QUARTER)
    assert two.refitted == ("up.bias", "down.bias", "up.weight")
    assert (one.unchanged, two.unchanged) == (False, False)
    assert idle.then(half, HALF, (), unchanged=True).unchanged
    assert two.prove().exact == ("ffn",)


def test_a_proof_that_was_made_is_not_made_again() -> None:
    made = Proof(1e-7, 1e-5, ("ffn",), (), 1.0)
    assert Claim(program(), program(), proof=made).prove() is made


def test_factors_are_compared_with_their_products_and_these_count_as_re_fitted() -> None:
    whole = program()
    after = factorize(whole, {"up.weight": 2}).program
    proof = Claim(whole, after, factors=FACTORS, refitted=("down.bias",)).prove()
    assert (proof.status, proof.refitted) == ("equal", ("down.bias", "up.weight"))
    assert 0 < proof.relative <= proof.bar == 1e-5
    assert proof.change > 0.01
    wrong = rebuild(
        after, copy_graph(after), {"down.weight": torch.nn.Parameter(after.tensors()["down.weight"] * 2)}
    )
    with pytest.raises(VerifyError, match="its value differs by"):
        Claim(whole, wrong, factors=FACTORS).prove()


def test_one_claim_is_its_own_proof() -> None:
    made = Proof(1e-7, 1e-5, ("ffn",), (), 1.0)
    assert prove_claims(program(), [Claim(program(), program(), proof=made)]) is made


def test_the_proof_of_several_claims() -> None:
    """The one that comes nearest to its bar, what all of them say, the fewest inputs, and how far the whole moved."""
    whole = program()
    half, quarter = shrink(whole, HALF), shrink(whole, QUARTER)
    first = Proof(1e-7, 1e-5, ("a", "b"), ("c",), 9.0, ("w",), {"a": 1.0, "b": 2.0}, 4, "")
    last = Proof(5e-11, 1e-10, ("b", "d"), ("c", "e"), 9.0, ("w", "v"), {"d": 3.0}, 3, "the reason")
    claims = [Claim(whole, half, proof=first), Claim(half, quarter, proof=last)]
    change = moved_by(run_example(quarter), run_example(whole))
    wanted = Proof(
        5e-11,
        1e-10,
        ("a", "b", "d"),
        ("c", "e"),
        change,
        ("w", "v"),
        {"a": 1.0, "b": 2.0, "d": 3.0},
        3,
        "the reason",
    )
    assert prove_claims(whole, claims) == wanted
    assert change > 0.1
    again = prove_claims(whole, [replace(claims[0], proof=replace(first, why="another")), claims[1]])
    assert again.why == "another"
    exact = prove_claims(whole, [replace(claims[0], proof=replace(first, bar=0.0)), claims[1]])
    assert (exact.relative, exact.bar) == (1e-7, 0.0)


def test_where_outputs_may_shrink_the_whole_has_no_change() -> None:
    whole = program()
    free = whole.replace(free_outputs=frozenset(whole.output_names()))
    made = Proof(0.0, 1e-5, ("ffn",), (), 1.0)
    found = prove_claims(free, [Claim(free, free, proof=made)] * 2)
    assert math.isnan(found.change)
