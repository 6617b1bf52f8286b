"""Names of tensors that rewrites make."""

from __future__ import annotations

FACTORS = ("_rows", "_columns")
"""What the names of the two factors have behind that of their weight."""


def part_name(axis: str, number: int) -> str:
    """What an axis is called in a copy."""
    return f"{axis}.part{number}"


def part_tensor(name: str, number: int) -> str:
    """What a tensor is called in a copy: `query.weight` becomes `query.part0.weight`."""
    path, _, last = name.rpartition(".")
    return ".".join(filter(None, (path, f"part{number}", last)))
