"""Torch-Pruning baseline: the subjects, pruned by Torch-Pruning as its examples prune such models.

Its examples for BERT and LLMs remove heads and neurons and then correct the model's attributes by hand; here the hidden width stays, for
the metric's sake. Channels are rounded to 8, as its README advises for speed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.errors import FxpruneError, UsageError
from fxprune.ir import Program, first_line, quiet
from fxprune.tools.benchmarks.subjects import Subject
from fxprune.tools.benchmarks.subjects.common import Inputs, pick_output

_NEEDS = "the peer is Torch-Pruning ({}); install: pip install 'fxprune[bench]'"
ROUND_TO = 8
_ROWS = 64  # of calibration data, for the importance that uses gradients
TEMPERATURE = 0.05

IMPORTANCES = ("magnitude", "taylor")
RATIO_TRIES = 4  # of the bisection that looks for a ratio


@dataclass
class Hints:
    """Hints that Torch-Pruning needs for a model: layers to leave, the tensor of its outputs to trace back from, numbers of heads.

    `stream` are the layers that write residual channels, `most` the largest share of heads that it can remove; `mend` sets the attributes
    that Torch-Pruning does not update, given the numbers of heads that are left.
    """

    ignored: list[nn.Module]
    result: Callable[[Any], Tensor]
    heads: dict[nn.Module, int] = field(default_factory=dict)
    stream: tuple[nn.Module, ...] = ()
    most: float = 1.0
    mend: Callable[[Mapping[nn.Module, int]], None] = lambda heads: None


def torch_pruning(
    subject: Subject, ratio: float, importance: str = "magnitude", stream: bool = False
) -> nn.Module:
    """The subject without a share of its heads and neurons, or of its channels, in eval mode, physically smaller; no layer is trained.

    `magnitude` is the examples' own: the L2 norm, averaged over a group. `taylor` takes gradients of an unlabelled loss. `stream`
    prunes the residual channels of an image model as well. UsageError for a wrong request, a missing package, or an error of
    Torch-Pruning itself.
    """
    _check(subject, ratio, importance)
    tp = _library()
    loaded = subject.load()
    model: Any = loaded.model
    hints = HINTS[subject.name](model)
    hints.ignored += () if stream else hints.stream
    try:
        with quiet(), torch.enable_grad():
            score = _importance(tp, model, subject, importance)
            pruner = _pruner(tp, model, dict(loaded.kwargs), score, ratio, hints)
            pruner.step()
    except Exception as error:
        raise UsageError(f"Torch-Pruning can't prune {subject.name}: {first_line(error)}") from error
    hints.mend(pruner.num_heads)
    model.zero_grad()
    pruned: nn.Module = model.eval()
    return pruned


@dataclass(frozen=True, eq=False)
class Reached:
    """The speedup that a ratio reached, and the program."""

    speedup: float
    ratio: float
    program: Program


def at_speed(
    subject: Subject, speed: float, importance: str, tried: Callable[[nn.Module], tuple[float, Program]]
) -> tuple[Reached | None, str]:
    """The ratio that comes closest to a speed, by bisection, and a sentence where Torch-Pruning or the capture failed on the way.

    `tried` returns the measured speedup and the program of a pruned model.
    """
    low, high, best = 0.02, 0.95, None
    for _ in range(RATIO_TRIES):
        ratio = (low + high) / 2
        try:
            reached, program = tried(torch_pruning(subject, ratio, importance))
        except FxpruneError as error:
            return best, str(error)
        low, high = (ratio, high) if reached < speed else (low, ratio)
        if best is None or abs(reached - speed) < abs(best.speedup - speed):
            best = Reached(reached, ratio, program)
    return best, ""


def _check(subject: Subject, ratio: float, importance: str) -> None:
    if subject.name not in HINTS:
        raise UsageError(f"no hints for {subject.name!r}; Torch-Pruning gets {', '.join(HINTS)}")
    if not 0 < ratio < 1:
        raise UsageError(f"the ratio must be above 0 and below 1, got {ratio:g}")
    if importance not in IMPORTANCES:
        raise UsageError(f"no importance {importance!r}; there are {', '.join(IMPORTANCES)}")


def _library() -> Any:
    try:
        with quiet():
            import torch_pruning as library
    except ImportError as error:
        raise UsageError(_NEEDS.format(error)) from error
    return library


def _pruner(tp: Any, model: nn.Module, inputs: Inputs, score: Any, ratio: float, hints: Hints) -> Any:
    return tp.pruner.BasePruner(
        model,
        inputs,
        importance=score,
        global_pruning=False,
        pruning_ratio=ratio,
        ignored_layers=hints.ignored,
        round_to=ROUND_TO,
        num_heads=hints.heads,
        prune_num_heads=bool(hints.heads),
        prune_head_dims=not hints.heads,
        head_pruning_ratio=min(ratio, hints.most),
        output_transform=hints.result,
        # Its defaults are dictionaries that all calls share and write to.
        in_channel_groups={},
        out_channel_groups={},
    )


def _importance(tp: Any, model: nn.Module, subject: Subject, importance: str) -> Any:
    """Torch-Pruning's importance; `taylor` uses the gradients accumulated over all calibration batches."""
    if importance == "magnitude":
        return tp.importance.GroupMagnitudeImportance(p=2, group_reduction="mean")
    for batch in subject.calibration(_ROWS):
        LOSSES[subject.name](model(**batch), batch).backward()
    return tp.importance.GroupTaylorImportance()


def _minilm(model: Any) -> Hints:
    """Hints of Torch-Pruning's example for BERT; the embeddings are left as well, and with them the hidden width."""
    attentions = [layer.attention.self for layer in model.encoder.layer]
    heads = {
        linear: attention.num_attention_heads
        for attention in attentions
        for linear in (attention.query, attention.key, attention.value)
    }

    def mend(left: Mapping[nn.Module, int]) -> None:
        for attention in attentions:
            attention.num_attention_heads = left[attention.query]
            attention.attention_head_size = attention.query.out_features // left[attention.query]
            attention.all_head_size = attention.query.out_features

    ignored = [model.embeddings, model.pooler]
    return Hints(ignored, lambda outputs: outputs.pooler_output.sum(), heads, mend=mend)


def _smollm2(model: Any) -> Hints:
    """Hints of Torch-Pruning's example for LLMs; the embeddings are left as well, and with them the hidden width.

    It traces grouped heads only where keys are repeated explicitly: with `sdpa` it fails (shape '[9, -1]' is invalid for input of
    size 192). Where it should leave one query head for a key head, it silently leaves all three: so no more than a third go.
    """
    config, implementation = model.config, model.config._attn_implementation
    model.set_attn_implementation("eager")
    layers = list(model.model.layers)
    heads = {
        linear: config.num_attention_heads if linear is layer.self_attn.q_proj else config.num_key_value_heads
        for layer in layers
        for linear in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)
    }

    def mend(left: Mapping[nn.Module, int]) -> None:
        for attention in (layer.self_attn for layer in layers):
            attention.num_key_value_groups = attention.q_proj.out_features // attention.k_proj.out_features
        model.set_attn_implementation(implementation)

    ignored = [model.model.embed_tokens, model.lm_head]
    return Hints(ignored, lambda outputs: outputs.logits, heads, most=1 / 3, mend=mend)


def _efficientnet(model: Any) -> Hints:
    """Hints for all layers but the classifier; the residual channels are few, and 8 of 16 would go at any ratio."""
    stream = (model._conv_stem, *(block._project_conv for block in model._blocks))
    return Hints([model._fc], lambda outputs: outputs, stream=stream)


def _nearest_itself(outputs: Any, batch: Inputs) -> Tensor:
    """A contrastive loss without labels: each sentence of a batch should be nearer to itself than to the others."""
    pooled = nn.functional.normalize(pick_output(outputs, "last_hidden_state").mean(dim=1), dim=-1)
    return nn.functional.cross_entropy(pooled @ pooled.T / TEMPERATURE, torch.arange(len(pooled)))


def _next_token(outputs: Any, batch: Inputs) -> Tensor:
    logits = pick_output(outputs, "logits")[:, :-1].flatten(0, 1)
    return nn.functional.cross_entropy(logits, batch["input_ids"][:, 1:].flatten())


def _own_answer(outputs: Any, batch: Inputs) -> Tensor:
    """Cross-entropy with the model's own top-1 as the label."""
    return nn.functional.cross_entropy(outputs, outputs.argmax(dim=-1))


HINTS: Mapping[str, Callable[[Any], Hints]] = MappingProxyType(
    {"minilm": _minilm, "smollm2": _smollm2, "efficientnet": _efficientnet, "photographs": _efficientnet}
)
LOSSES: Mapping[str, Callable[[Any, Inputs], Tensor]] = MappingProxyType(
    {
        "minilm": _nearest_itself,
        "smollm2": _next_token,
        "efficientnet": _own_answer,
        "photographs": _own_answer,
    }
)
