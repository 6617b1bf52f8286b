"""fxprune: the compiler that makes any PyTorch model physically smaller, and proves that nothing else changed."""

from fxprune.analysis import Analysis, Axis, Member, Refusal, analyze
from fxprune.capture import capture
from fxprune.errors import FxpruneError
from fxprune.program import Program
from fxprune.rules import register_rule
from fxprune.selection import Selection
from fxprune.shrink import shrink, zeroed

__all__ = [
    "Analysis",
    "Axis",
    "FxpruneError",
    "Member",
    "Program",
    "Refusal",
    "Selection",
    "analyze",
    "capture",
    "register_rule",
    "shrink",
    "zeroed",
]
