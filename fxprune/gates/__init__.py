"""Masks as graph nodes, and their lowering to a smaller dense program."""
