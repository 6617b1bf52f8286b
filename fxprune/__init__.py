"""fxprune: the compiler that makes any PyTorch model physically smaller, and proves that nothing else changed."""

from fxprune.analysis.axes import Analysis, Axis, Member, Refusal, analyze
from fxprune.analysis.regions import Region
from fxprune.errors import FxpruneError
from fxprune.export.onnx import export
from fxprune.export.pt2 import save
from fxprune.export.write_back import write_back
from fxprune.frontend.capture import capture
from fxprune.ir.program import Program
from fxprune.ir.selection import Selection
from fxprune.passes import pipeline as parse_pipeline
from fxprune.rewrite.apply import apply
from fxprune.rewrite.bypass import bypass
from fxprune.rewrite.shrink import shrink, zero_readers
from fxprune.rewrite.vocabulary import TokenIds, Vocabulary, keep_tokens, verify_tokens
from fxprune.rules import register_rule
from fxprune.verification.equivalence import Proof, verify

__all__ = [
    "Analysis",
    "Axis",
    "FxpruneError",
    "Member",
    "Program",
    "Proof",
    "Refusal",
    "Region",
    "Selection",
    "TokenIds",
    "Vocabulary",
    "analyze",
    "apply",
    "bypass",
    "capture",
    "export",
    "keep_tokens",
    "parse_pipeline",
    "register_rule",
    "save",
    "shrink",
    "verify",
    "verify_tokens",
    "write_back",
    "zero_readers",
]
