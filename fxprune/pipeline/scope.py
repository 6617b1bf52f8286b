"""Scope of a pass: which axes, regions and weights of a program it may touch, by their roles and by patterns of module paths.

A pattern is that of `fnmatch`. It matches a parameter by its name or by the path of a module around it: `backbone` and `backbone.*` are all
of the backbone, `*.norm` all modules of that name. A part of a program lies within the scope where all of its parameters match `only` and
none matches `skip`: what is shared with the outside keeps its size, and so does what is outside.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TypeAlias

from fxprune.analysis import Analysis, Axis, Region
from fxprune.errors import UsageError
from fxprune.gates import find_blocked_weights
from fxprune.gates.blocked_weights import BlockedWeight
from fxprune.ir import Program

ScopedPart: TypeAlias = Axis | Region | str
"""An axis, a region, or the name of a weight."""


@dataclass(frozen=True, eq=False)
class Scope:
    """Part of an analysed program that a pass may change; without roles, axes of any role."""

    analysis: Analysis = field(repr=False)
    roles: frozenset[str] = frozenset()
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()

    def axes(self) -> list[Axis]:
        """Return the axes of these roles that lie within the patterns."""
        return [axis for axis in self.analysis.axes if self.takes(axis)]

    def blocked(self, roles: Collection[str]) -> list[BlockedWeight]:
        """Return the matrices within the patterns that carry an exact axis of some roles, of those that are also roles of the scope."""
        own = [role for role in roles if not self.roles or role in self.roles]
        return [s for s in find_blocked_weights(self.analysis, own) if not self.outside(s.matrix.weight)]

    def takes(self, part: ScopedPart) -> bool:
        """Return whether a part may be touched: of a region or weight, some parameter carries an axis of these roles."""
        if not self.roles:
            fits = True
        elif isinstance(part, Axis):
            fits = part.role in self.roles
        else:
            own = set(parameters(part))
            fits = any(
                axis.role in self.roles and not own.isdisjoint(parameters(axis))
                for axis in self.analysis.axes
            )
        return fits and not self.outside(part)

    def outside(self, part: ScopedPart) -> str:
        """Return why a part lies outside of the patterns, "" where it lies within."""
        for name in parameters(part):
            if self.only and not is_matched(self.only, name):
                return f"{name} does not match only={', '.join(self.only)!r}"
            if is_matched(self.skip, name):
                return f"{name} matches skip={', '.join(self.skip)!r}"
        return ""

    def left_out(self, parts: Sequence[Axis] | Sequence[Region]) -> dict[str, str]:
        """Return, of some parts, those that are left out though some of their parameters lie within the patterns, with the reason."""
        found = {part.name: self.outside(part) for part in parts}
        within = {part.name: any(not self.outside(name) for name in parameters(part)) for part in parts}
        return {name: why for name, why in found.items() if why and within[name]}


def parameters(part: ScopedPart) -> tuple[str, ...]:
    """Return the parameters of a part, those that leave with its units included, by name; the name of a region that has none."""
    if isinstance(part, str):
        return (part,)
    if isinstance(part, Region):
        return part.parameters or (part.name,)
    return tuple(dict.fromkeys([*(member.name for member in part.members if member.learned), *part.leaving]))


def is_matched(patterns: Collection[str], name: str) -> bool:
    """Return whether one of some patterns matches a parameter's name, or the path of a module around it."""
    return any(fnmatchcase(path, pattern) for path in _paths(name) for pattern in patterns)


def _paths(name: str) -> Iterator[str]:
    """Yield the name of a parameter, then the paths of the modules around it, inside out."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def split_names(text: str) -> tuple[str, ...]:
    """Return the names, or patterns, of a text in which commas stand between them."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def check_patterns(program: Program, given: Mapping[str, Sequence[str]]) -> None:
    """Raise UsageError where a pattern of an option matches no parameter of a program, with the nearest paths."""
    names = list(program.parameters())
    for option, patterns in given.items():
        for pattern in patterns:
            if not any(is_matched([pattern], name) for name in names):
                raise UsageError(
                    f"{option}: {pattern!r} matches no module of this program; {_near(pattern, names)}"
                )


def _near(pattern: str, names: Sequence[str]) -> str:
    paths = list(dict.fromkeys(path for name in names for path in _paths(name)))
    plain = pattern.strip("*").rstrip(".")
    near = difflib.get_close_matches(plain, paths, n=3, cutoff=0.4)
    tops = list(dict.fromkeys(name.partition(".")[0] for name in names))
    return f"nearest: {', '.join(near)}" if near else f"it has {', '.join(tops[:8])}{', …' * (len(tops) > 8)}"
