"""Canonicalization: a captured graph rewritten into fewer forms, so that rules stay short."""
