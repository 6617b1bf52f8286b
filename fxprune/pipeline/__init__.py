"""Passes in order: their text, their context, their proofs."""
