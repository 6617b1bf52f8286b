"""fxprune: the compiler that makes any PyTorch model physically smaller, and proves that nothing else changed."""

from collections.abc import Collection, Mapping, Sequence
from os import PathLike
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from fxprune.analysis import Analysis, Axis, Region, analyze
from fxprune.analysis.axes import Member, Refusal
from fxprune.analysis.show import show
from fxprune.errors import FxpruneError
from fxprune.export import export_onnx, save_pt2
from fxprune.export.write_back import write_back
from fxprune.frontend.capture import capture
from fxprune.ir import Program, Selection
from fxprune.passes import parse_pipeline
from fxprune.pipeline import Context, Pipeline, Progress, Result
from fxprune.rewrite import TokenIds, Vocabulary, keep_tokens, verify_tokens, zero_readers
from fxprune.rewrite.apply import apply
from fxprune.rewrite.bypass import bypass
from fxprune.rewrite.shrink import shrink
from fxprune.rules import register_rule
from fxprune.verification import Proof, verify

__all__ = [
    "Analysis",
    "Axis",
    "Context",
    "FxpruneError",
    "Member",
    "Pipeline",
    "Program",
    "Progress",
    "Proof",
    "Refusal",
    "Region",
    "Result",
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
    "prune",
    "register_rule",
    "save_pt2",
    "show",
    "shrink",
    "verify",
    "verify_tokens",
    "write_back",
    "zero_readers",
]


def prune(
    model: nn.Module | ExportedProgram | str | PathLike[str],
    pipeline: str | Pipeline,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    context: Context | None = None,
    dynamic_shapes: Any = None,
    free_outputs: Collection[str] = (),
    within: str | Sequence[str] | None = None,
) -> Result:
    """Prune a model: capture it on example inputs, run a pipeline, and prove the result. The model is left as it was.

    `pipeline` is text, as in `"heads(ratio=0.25), ffn(ratio=0.5), fold"`. `context` holds what its passes take beside the program
    (calibration data, labelled rows, a runtime's settings); `dynamic_shapes`, `free_outputs` and `within` are those of `capture`.
    An FxpruneError says what was refused, what failed, or what is missing; VerifyError what differs, or why nothing could be proven.
    """
    steps = parse_pipeline(pipeline) if isinstance(pipeline, str) else pipeline
    given = context or Context()
    steps.check(given)
    program = capture(model, args, kwargs, dynamic_shapes, free_outputs, steps.uses("task"), within)
    result = steps.run(program, given)
    result.proof.require()  # made here, so that nothing unproven is handed on
    return result
