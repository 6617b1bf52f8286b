"""`fxprune explain`: show the axes and regions of a model that can be removed, and why the rest stays whole."""

import argparse
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fxprune.analysis import Analysis, Axis, Region, analyze
from fxprune.errors import UsageError
from fxprune.files import write_text
from fxprune.tools.commands import console
from fxprune.tools.inputs import models
from fxprune.tools.reports import report
from fxprune.tools.reports.explain_html import MEANINGS, render_explain
from fxprune.tools.reports.output_folder import check_path
from fxprune.tools.reports.report import Grid


def explain_command(options: argparse.Namespace) -> int:
    """Show the axes of a model by role and its refusals by reason, or the members of one axis."""
    target = _target(options)
    stages = console.Stages()
    with stages.stage("loading the model"):
        loaded = models.load(options.model, options.trust_remote_code)
    with stages.stage("capturing"):
        program = loaded.capture(options.free_output, within=options.within or "auto")
    for note in program.notes:
        stages.note(note)
    with stages.stage("analysing"):
        analysis = analyze(program)
    chosen = analysis.axis(options.axis) if options.axis else None
    if target:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_text(target, render_explain(loaded.name, analysis), options.force)
    if options.json:
        console.print_json(_axis(chosen) if chosen else _all(loaded.name, analysis))
        return 0
    console.print_tables(_one(analysis, chosen) if chosen else _overview(analysis))
    if target:
        console.output().print(f"drawn in {target}", markup=False)
    return 0


def _target(options: argparse.Namespace) -> Path | None:
    """Return the file for the page, or None; UsageError, before any work, where something is in its place."""
    target = Path(options.html) if options.html else None
    if target and target.is_dir():
        raise UsageError(f"{target} is a folder; give the name of a file")
    if target and os.path.lexists(target) and not options.force:
        raise UsageError(f"{target} exists; give another name, or --force to replace it")
    if target:
        check_path(target.parent)
    return target


def _all(name: str, analysis: Analysis) -> dict[str, Any]:
    return {
        "format": "fxprune.explain/1",
        "model": name,
        "notes": list(analysis.program.notes),
        "axes": [_axis(axis) for axis in analysis.axes],
        "regions": [_picked(region, "name unit entries exits parameters why") for region in analysis.regions],
        "refused": report.refusals(analysis.refusals),
    }


def _axis(axis: Axis) -> dict[str, Any]:
    members = [_picked(member, "name dim notation learned told") for member in axis.members]
    told = _picked(axis, "name role size exact meaning why_inexact")
    return {**told, "members": members, **_picked(axis, "readers choices least")}


def _picked(found: Any, names: str) -> dict[str, Any]:
    """Return some fields as plain data."""
    return {name: getattr(found, name) for name in names.split()}


def _overview(analysis: Analysis) -> list[Grid]:
    return [_axes(analysis.axes), _regions(analysis.regions), _refused(analysis)]


def _regions(regions: Iterable[Region]) -> Grid:
    """Return a table with one row for regions that differ only by the number of their layer and have one structure."""
    groups: dict[tuple[str, str, str, str], list[Region]] = {}
    for region in regions:
        alike = (region.unit, re.sub(r"\d+", "#", region.name), region.signature, region.why)
        groups.setdefault(alike, []).append(region)
    rows = [
        (unit, _names(group), str(len(group)), why or "can be bypassed")
        for (unit, _, _, why), group in groups.items()
    ]
    return Grid("Regions: what could go whole", ("unit", "name", "regions", "why not"), tuple(rows))


def _axes(axes: Iterable[Axis]) -> Grid:
    """Return a table with one row for axes that differ only by the number of their layer."""
    groups: dict[tuple[str, str, int, str, str], list[Axis]] = {}
    for axis in axes:
        alike = (axis.role, re.sub(r"\d+", "#", axis.name), axis.size, axis.meaning, _notation(axis))
        groups.setdefault(alike, []).append(axis)
    rows = [
        (role, _names(group), str(len(group)), str(size), _equality(group[0]), notation)
        for (role, _, size, _, notation), group in sorted(groups.items(), key=lambda entry: entry[0][0])
    ]
    columns = ("role", "name", "axes", "size", "equality", "first member")
    return Grid("Axes by role: what could go", columns, tuple(rows))


def _equality(axis: Axis) -> str:
    """Return what the removal of units equals; the reason where it equals nothing."""
    return f"exact: {axis.meaning}" if axis.exact else axis.why_inexact


def _notation(axis: Axis) -> str:
    return axis.members[0].notation if axis.members else ""


def _names(group: Sequence[Axis | Region]) -> str:
    return group[0].name if len(group) == 1 else f"{group[0].name} … {group[-1].name}"


def _refused(analysis: Analysis) -> Grid:
    rows = [
        (entry["why"], str(entry["count"]), ", ".join(entry["what"][:2]), entry["source"] or entry["node"])
        for entry in report.refusals(analysis.refusals)
    ]
    return Grid("Refusals by reason: what stays whole", ("why", "count", "what", "where"), tuple(rows))


def _one(analysis: Analysis, axis: Axis) -> list[Grid]:
    facts = [
        ("role", axis.role),
        ("size", str(axis.size)),
        ("exact", f"yes: {MEANINGS[axis.meaning]}" if axis.exact else f"no: {axis.why_inexact}"),
        ("readers", ", ".join(analysis.told_readers(axis))),
        *([("chosen at", ", ".join(axis.choices)), ("at least", str(axis.least))] if axis.choices else []),
    ]
    members = [
        (member.told, str(member.dim), member.notation, "parameter" if member.learned else "buffer")
        for member in axis.members
    ]
    return [
        Grid(axis.name, ("", ""), tuple(facts)),
        Grid("Members: what shrinks together", ("name", "dimension", "index", "kind"), tuple(members)),
    ]
