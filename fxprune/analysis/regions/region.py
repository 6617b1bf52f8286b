"""The Region: a part of a graph whose outputs have the dims of its inputs, so that it can be bypassed."""

from __future__ import annotations

from dataclasses import dataclass, field

UNITS = ("layer", "branch")


@dataclass(frozen=True)
class Region:
    """Part of a graph that can be bypassed: readers of each exit read the entry of the same place instead, which has its dims.

    `unit` is layer or branch; `nodes` are those that nothing needs any more then, `parameters` those that they read (shared ones stay in
    the model). A branch that is a summand says which: its entry is the rest of the sum, `addend` the value that goes. Where `why` is not
    empty, the region can't go, and that is the reason.
    """

    name: str
    unit: str
    entries: tuple[str, ...] = ()
    exits: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    signature: str = ""
    why: str = ""
    nodes: frozenset[str] = field(default=frozenset(), repr=False)
    addend: str = field(default="", repr=False)
