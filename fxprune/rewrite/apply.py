"""Apply a selection: bypass the regions that it removes, shrink the axes that it cuts."""

from __future__ import annotations

from dataclasses import replace

from fxprune.ir import Program, Selection
from fxprune.rewrite.bypass import bypass
from fxprune.rewrite.shrink import shrink


def apply(program: Program, selection: Selection) -> Program:
    """Return the program without the regions that a selection removes, and shrunk to the units that it keeps."""
    slim = bypass(program, selection.removed)
    cuts = selection.axes or selection.model
    return shrink(slim, replace(selection, removed=())) if cuts else slim
