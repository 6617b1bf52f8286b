"""Inventory of a report: sizes of layers and axes before and after, removed layers, new ranks, and unknown sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fxprune import Selection, analyze, apply, bypass
from fxprune.ir import Program
from fxprune.rewrite.factorize import factorize
from fxprune.tools.reports.inventory import inventory
from support.models import captured


@pytest.fixture(scope="module")
def bert() -> Program:
    pytest.importorskip("transformers")
    return captured("bert")


def rows(found: dict[str, Any], **wanted: Any) -> list[dict[str, Any]]:
    return [axis for axis in found["axes"] if all(axis[name] == value for name, value in wanted.items())]


def test_axes_have_their_sizes_and_few_units_are_listed(bert: Program) -> None:
    heads = next(axis for axis in analyze(bert).axes if axis.role == "heads")
    kept = list(range(1, heads.size))
    selection = Selection({heads.name: kept}, {heads.name: heads.size})
    found = inventory(bert, apply(bert, selection), selection)
    (row,) = rows(found, name=heads.name)
    assert (row["before"], row["after"], row["kept"], row["role"]) == (
        heads.size,
        heads.size - 1,
        kept,
        "heads",
    )
    assert row["layer"]
    assert heads.name.startswith(row["layer"])
    others = [axis for axis in found["axes"] if axis["name"] != heads.name]
    assert {axis["before"] - axis["after"] for axis in others} == {0}
    cut = next(layer for layer in found["layers"] if layer["name"] == row["layer"])
    assert cut["parameters"]["after"] < cut["parameters"]["before"]
    assert not cut["removed"]


def test_parameters_add_up(bert: Program) -> None:
    found = inventory(bert, bert, Selection())
    assert sum(layer["parameters"]["before"] for layer in found["layers"]) == bert.parameter_count()
    assert sum(layer["parameters"]["after"] for layer in found["layers"]) == bert.parameter_count()
    assert found["layers"][-1]["name"] == ""


def test_a_layer_that_went_is_gone_with_its_axes(bert: Program) -> None:
    name = next(region.name for region in analyze(bert).regions if region.unit == "layer")
    found = inventory(bert, bypass(bert, [name]), Selection(removed=(name,)))
    assert [layer["name"] for layer in found["layers"] if layer["removed"]] == [name]
    assert {axis["after"] for axis in rows(found, layer=name)} == {0}
    assert all(axis["after"] == axis["before"] for axis in found["axes"] if axis["layer"] != name)


def test_ranks_are_new(bert: Program) -> None:
    axis = next(axis for axis in analyze(bert).axes if axis.role == "ffn")
    weight = next(member.name for member in axis.members if member.name.endswith("weight"))
    size = tuple(bert.tensors()[weight].shape)
    found = inventory(bert, factorize(bert, {weight: 3}).program, Selection())
    (rank,) = rows(found, role="rank")
    assert (rank["before"], rank["after"], rank["layer"]) == (
        min(size),
        3,
        rows(found, name=axis.name)[0]["layer"],
    )
    assert torch.Size(size).numel() > 3 * sum(size)
