"""Proofs that a pruned program equals the zeroed original."""
