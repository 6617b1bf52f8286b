"""Masks as graph nodes, and their lowering to a smaller dense program."""

from fxprune.gates.blocked_weights import find_blocked_weights
from fxprune.gates.gate import Gate, Gated
from fxprune.gates.lower import LOWERINGS, Lowered

__all__ = ["LOWERINGS", "Gate", "Gated", "Lowered", "find_blocked_weights"]
