"""Axis naming: readable, unique names of the module path that the members share, and the role."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from fxprune.analysis.nested_axes import enclosing_atoms
from fxprune.dims import Dim, is_pinned, leaves
from fxprune.ir.naming import free_name

Place = tuple[str, int, Dim]
Label = tuple[str, int, int]


def name_axes(
    roles: Mapping[Dim, str],
    places: Mapping[Dim, list[Place]],
    labels: Mapping[Label, str],
    learned: set[str],
) -> dict[Dim, str]:
    """Return one name for each axis: the one that it had before shrinking, else a new one; names are unique."""
    own = {leaf: [name for name, _, _ in places[leaf] if name in learned] for leaf in roles}
    known = {leaf: _label(leaf, places[leaf], labels) for leaf in roles}
    names = {leaf: name for leaf, name in known.items() if name}
    new = [leaf for leaf in roles if leaf not in names]
    words = _words(roles, places)
    short = {leaf: _join(shared_path(own[leaf]), words[leaf]) for leaf in new}
    taken = set(names.values())
    rivals: dict[str, list[Dim]] = {}
    for leaf in new:
        rivals.setdefault(short[leaf], []).append(leaf)
    for leaf in new:
        first = _leader(rivals[short[leaf]], places) is leaf and short[leaf] not in taken
        wanted = short[leaf] if first else _join(_module(own[leaf][0]), words[leaf])
        names[leaf] = free_name(wanted, set(names.values()), ".")
    return names


def _words(roles: Mapping[Dim, str], places: Mapping[Dim, list[Place]]) -> dict[Dim, str]:
    """Return the word for each axis: its role; of heads that multiply (grouped queries) the shared ones are kv, the others rep."""
    words = dict(roles)
    heads = [leaf for leaf, role in roles.items() if role == "heads"]
    for leaf in heads:
        near = set().union(*(enclosing_atoms(dim, leaf) for _, _, dim in places[leaf])) & set(heads) - {leaf}
        if near:
            shared = all(len(places[leaf]) > len(places[other]) for other in near)
            words[leaf] = "kv" if shared else "rep"
    return words


def _leader(rivals: list[Dim], places: Mapping[Dim, list[Place]]) -> Dim | None:
    """Return the rival that gets the short name: the one with the most members, None on a tie."""
    counts = Counter({leaf: len(places[leaf]) for leaf in rivals}).most_common(2)
    return counts[0][0] if len(counts) == 1 or counts[0][1] > counts[1][1] else None


def _label(leaf: Dim, places: list[Place], labels: Mapping[Label, str]) -> str:
    for name, place, dim in places:
        for ordinal, other in enumerate(free_atoms(dim)):
            if other is leaf and (name, place, ordinal) in labels:
                return labels[(name, place, ordinal)]
    return ""


def free_atoms(dim: Dim, sizes: Mapping[Dim, int] | None = None) -> list[Dim]:
    """Return the free atoms of a dim that have more than one index (after shrinking to `sizes`), in the order that labels count."""
    return [leaf for leaf in leaves(dim) if not is_pinned(leaf) and (sizes or {}).get(leaf, leaf.size) > 1]


def _module(parameter: str) -> str:
    return parameter.rpartition(".")[0]


def shared_path(parameters: list[str]) -> str:
    """Return the longest module path that all parameters share."""
    paths = [_module(parameter).split(".") for parameter in parameters]
    shared: list[str] = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


def _join(path: str, role: str) -> str:
    return f"{path}.{role}" if path else role
