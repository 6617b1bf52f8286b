"""fxprune: the compiler that makes any PyTorch model physically smaller, and proves that nothing else changed."""

from fxprune.analysis import Analysis, Axis, Member, Refusal, analyze
from fxprune.bypass import apply, bypass
from fxprune.capture import capture
from fxprune.emit import export, save
from fxprune.errors import FxpruneError
from fxprune.passes import pipeline as parse_pipeline
from fxprune.program import Program
from fxprune.repeats import Region
from fxprune.rules import register_rule
from fxprune.selection import Selection
from fxprune.shrink import shrink, zeroed
from fxprune.tokens import TokenIds
from fxprune.verify import Verdict, verify
from fxprune.vocabulary import Vocabulary, keep_tokens, verify_tokens
from fxprune.write_back import write_back

__all__ = [
    "Analysis",
    "Axis",
    "FxpruneError",
    "Member",
    "Program",
    "Refusal",
    "Region",
    "Selection",
    "TokenIds",
    "Verdict",
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
    "zeroed",
]
