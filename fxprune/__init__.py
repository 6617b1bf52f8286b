"""fxprune: the compiler that makes any PyTorch model physically smaller, and proves that nothing else changed."""

from fxprune.analysis import Analysis, Axis, Region, analyze
from fxprune.analysis.axes import Member, Refusal
from fxprune.errors import FxpruneError
from fxprune.export import export_onnx, save_pt2
from fxprune.export.write_back import write_back
from fxprune.frontend.capture import capture
from fxprune.ir import Program, Selection
from fxprune.passes import pipeline as parse_pipeline
from fxprune.rewrite import TokenIds, Vocabulary, keep_tokens, verify_tokens, zero_readers
from fxprune.rewrite.apply import apply
from fxprune.rewrite.bypass import bypass
from fxprune.rewrite.shrink import shrink
from fxprune.rules import register_rule
from fxprune.verification import Proof, verify

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
    "export_onnx",
    "keep_tokens",
    "parse_pipeline",
    "register_rule",
    "save_pt2",
    "shrink",
    "verify",
    "verify_tokens",
    "write_back",
    "zero_readers",
]
