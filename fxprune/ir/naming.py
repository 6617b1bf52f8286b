"""Names of tensors that rewrites create: the factors of a weight, and the copies of an axis or a tensor."""

from __future__ import annotations

FACTORS = ("_rows", "_columns")
"""The suffixes of the two factors of a weight."""


def part_name(axis: str, number: int) -> str:
    """The name of an axis in a copy: `heads` becomes `heads.part0`."""
    return f"{axis}.part{number}"


def part_tensor(name: str, number: int) -> str:
    """The name of a tensor in a copy: `query.weight` becomes `query.part0.weight`."""
    path, _, last = name.rpartition(".")
    return ".".join(filter(None, (path, f"part{number}", last)))
