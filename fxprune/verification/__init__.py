"""Proofs that a pruned program equals the zeroed original."""

from fxprune.verification.claims import Claim
from fxprune.verification.equivalence import Proof, verify

__all__ = ["Claim", "Proof", "verify"]
