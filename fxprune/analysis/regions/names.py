"""Names of regions: a module's path where the region is the call of that module, else the path of what holds it, and what it does."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TypeAlias

from fxprune.analysis.regions.region import Region
from fxprune.ir.naming import free_name

Roles: TypeAlias = Sequence[tuple[str, frozenset[str]]]
"""The role of each axis, and the parameters that carry it: a branch is named by them."""

#: (role of an axis that only the branch carries, the branch's name): the first that fits
_KINDS = (("heads", "attention"), ("experts", "experts"), ("ffn", "ffn"), ("channels", "conv"))


def with_names(
    roles: Roles, found: Sequence[Region], own: Collection[int], paths: Collection[str]
) -> list[Region]:
    """Return regions with unique names; those of the places `own` are calls of the modules whose `paths` they bear, and no others do."""
    kinds = _Kinds(roles)
    taken: set[str] = set()
    renamed: list[Region] = []
    for place, region in enumerate(found):
        is_own = place in own and (region.unit == "layer" or region.name not in taken)
        wanted = region.name if is_own else _described(kinds, region, paths, taken)
        name = free_name(wanted, taken, ".")
        renamed.append(replace(region, name=name))
        taken.add(name)
    return renamed


def _described(kinds: _Kinds, region: Region, paths: Collection[str], taken: Collection[str]) -> str:
    """Return the path of what holds a region, or its unit, and what the region does where that is a module's path or taken."""
    name = region.name or region.unit
    if name not in paths and name not in taken:
        return name
    word = kinds.of(region) if region.unit == "branch" else "layer"
    name = name if name.endswith(word) else f"{name}.{word}"
    return f"{name}.{region.unit}" if name in paths else name


class _Kinds:
    """Kinds of regions, by the roles of the axes that only they carry."""

    def __init__(self, roles: Roles) -> None:
        self.roles: dict[str, list[tuple[str, frozenset[str]]]] = {}
        for role, names in roles:
            self.roles.setdefault(min(names, default=""), []).append((role, names))

    def of(self, region: Region) -> str:
        """Return the word for what a region does."""
        own, carried = set(region.parameters), [self.roles.get(name, ()) for name in region.parameters]
        found = {role for axes in carried for role, names in axes if len(names) <= len(own) and names <= own}
        return next((word for role, word in _KINDS if role in found), "branch")
