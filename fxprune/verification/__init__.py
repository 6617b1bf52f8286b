"""Proofs that a pruned program equals the original with the removed units zeroed, or never chosen."""

from fxprune.verification.claims import Claim
from fxprune.verification.equivalence import Proof, verify

__all__ = ["Claim", "Proof", "verify"]
