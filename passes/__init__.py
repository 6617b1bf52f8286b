"""Passes: one pass, one file, one name. `PASSES` lists them; plug-ins add theirs through the entry-point group `fxprune.passes`."""

from __future__ import annotations

from importlib.metadata import entry_points

from fxprune.errors import PipelineError
from fxprune.passes.blocks import Blocks
from fxprune.passes.channels import Channels
from fxprune.passes.distill import Distill
from fxprune.passes.empty import Empty
from fxprune.passes.experts import Experts
from fxprune.passes.ffn import Ffn
from fxprune.passes.fill import Fill
from fxprune.passes.flop import Flop
from fxprune.passes.fold import Fold
from fxprune.passes.grain import Grain
from fxprune.passes.group_lasso import GroupLasso
from fxprune.passes.heads import Heads
from fxprune.passes.hidden import Hidden
from fxprune.passes.layers import Layers
from fxprune.passes.lowrank import Lowrank
from fxprune.passes.recover import Recover
from fxprune.passes.slim import Slim
from fxprune.passes.split import Split
from fxprune.pipeline import Pass, Pipeline
from fxprune.pipeline.parse import parse_passes

PASSES: tuple[type[Pass], ...] = (
    *(Heads, Ffn, Experts, Channels, Hidden, Layers, Slim, Lowrank),
    *(Grain, Blocks, GroupLasso, Flop, Distill, Recover),
    *(Fill, Empty, Split, Fold),
)


def pass_table() -> dict[str, type[Pass]]:
    """Return all passes by name, those of installed plug-ins included; PipelineError for a name that is taken."""
    found = {each.name: each for each in PASSES}
    for entry in entry_points(group="fxprune.passes"):
        each = entry.load()
        if each.name in found:
            raise PipelineError(
                f"the plug-in {entry.value} brings a pass {each.name!r}, which exists already; uninstall or rename it"
            )
        found[each.name] = each
    return found


def parse_pipeline(text: str) -> Pipeline:
    """Read a pipeline such as `heads(ratio=0.25), ffn(ratio=0.5), fold`; PipelineError points at the part that can't be read."""
    return parse_passes(text, pass_table())


__all__ = [
    "PASSES",
    "Blocks",
    "Channels",
    "Distill",
    "Empty",
    "Experts",
    "Ffn",
    "Fill",
    "Flop",
    "Fold",
    "Grain",
    "GroupLasso",
    "Heads",
    "Hidden",
    "Layers",
    "Lowrank",
    "Recover",
    "Slim",
    "Split",
    "parse_pipeline",
    "pass_table",
]
