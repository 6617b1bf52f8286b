"""Names that rewrites give: the factors of a weight, the copies of an axis or a tensor, and free names."""

from __future__ import annotations

from collections.abc import Container

FACTORS = ("_rows", "_columns")
"""The suffixes of the two factors of a weight."""


def free_name(wanted: str, taken: Container[str], joint: str = "_") -> str:
    """The wanted name, numbered from 2 where it is taken."""
    name, number = wanted, 2
    while name in taken:
        name, number = f"{wanted}{joint}{number}", number + 1
    return name


def part_name(axis: str, number: int) -> str:
    """The name of an axis in a copy: `heads` becomes `heads.part0`."""
    return f"{axis}.part{number}"


def part_tensor(name: str, number: int) -> str:
    """The name of a tensor in a copy: `query.weight` becomes `query.part0.weight`."""
    path, _, last = name.rpartition(".")
    return ".".join(filter(None, (path, f"part{number}", last)))
