"""Fusion counts of ONNX Runtime: operators for attention, GELU and normalisation, fused or native.

Pruning may break the pattern that a fusion matches: then the pruned file has fewer of them than the dense one.
"""

import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fxprune.errors import UsageError
from fxprune.runtimes import Settings
from fxprune.runtimes.base import DEFAULT
from fxprune.runtimes.onnxruntime import save_optimized

# ONNX's own operators and those of ONNX Runtime; SiLU is fused to QuickGelu, too.
_FAMILIES: dict[str, frozenset[str]] = {
    "attention": frozenset({
        "Attention", "DecoderAttention", "DecoderMaskedMultiHeadAttention", "DecoderMaskedSelfAttention",
        "GroupQueryAttention", "LinearAttention", "LongformerAttention", "MultiHeadAttention",
        "PackedAttention", "PackedMultiHeadAttention", "PagedAttention", "QAttention", "SparseAttention",
    }),
    "gelu": frozenset({"BiasGelu", "BiasSplitGelu", "FastGelu", "Gelu", "GemmFastGelu", "QuickGelu"}),
    "normalisation": frozenset({
        "BatchNormalization", "EmbedLayerNormalization", "GroupNorm", "GroupNormalization",
        "InstanceNormalization", "LayerNormalization", "QEmbedLayerNormalization", "RMSNormalization",
        "SimplifiedLayerNormalization", "SkipGroupNorm", "SkipLayerNormalization",
        "SkipSimplifiedLayerNormalization",
    }),
}  # fmt: skip

# Where ONNX Runtime has no kernel, it inlines the function's body, and names its values so, with a number from the second on.
WRITTEN_OUT = re.compile(r"_inlfunc_([A-Za-z]+?)(?:_token_(\d+))?_")


def fusions(path: Path, settings: Settings = DEFAULT) -> dict[str, int]:
    """Count the operators of each family that ONNX Runtime runs for an ONNX file, and all `nodes`.

    Operators inside functions and branches count, and so does one whose function ONNX Runtime itself inlines. A pattern
    that the file spells out, and that no fusion matches, counts among `nodes` only. UsageError for other runtimes.
    """
    if settings.runtime.partition(":")[0] != "onnxruntime":
        raise UsageError(f"fusions are counted in onnxruntime only, not in {settings.runtime}")
    found, nodes = Counter[str](), 0
    for graph in _graphs(_optimized(path, settings)):
        nodes += len(graph.node)
        found.update(node.op_type for node in graph.node)
        found.update(_written_out(graph))
    counts = {family: sum(found[name] for name in members) for family, members in _FAMILIES.items()}
    return {**counts, "nodes": nodes}


def _optimized(path: Path, settings: Settings) -> Any:
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "optimized.onnx"
        save_optimized(path, settings, written)
        return onnx.load(written, load_external_data=False).graph


def _graphs(graph: Any) -> Iterator[Any]:
    """A graph and the branches and loop bodies inside it; functions are no longer there, ONNX Runtime inlines them."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


def _written_out(graph: Any) -> list[str]:
    """The names of the functions that ONNX Runtime inlined in this graph, one entry for each call."""
    found = (WRITTEN_OUT.match(name) for node in graph.node for name in node.output)
    return [function for function, _ in dict.fromkeys(match.groups() for match in found if match)]
