"""`fxprune passes`: the passes and their options, read from their declarations."""

import argparse
import dataclasses
import inspect
import re
from collections.abc import Iterator
from typing import Any

from fxprune.passes import pass_table
from fxprune.pipeline.base import options_of
from fxprune.tools.commands import console
from fxprune.tools.reports.report import Grid


def passes_command(options: argparse.Namespace) -> int:
    """List every pass: its help is the first sentence of its docstring, its options are its fields."""
    entries = [describe_pass(kind) for kind in pass_table().values()]
    if options.json:
        console.print_json(entries)
        return 0
    console.print_tables([Grid("Passes", ("pass", "option", "what it does"), tuple(_rows(entries)))])
    return 0


def _rows(entries: list[dict[str, Any]]) -> Iterator[tuple[str, str, str]]:
    for entry in entries:
        yield entry["name"], "", entry["help"]
        for name, option in entry["options"].items():
            default = "" if option["required"] else f" = {option['default']!r}"
            yield "", f"{name}: {option['type']}{default}", option["help"]


def describe_pass(kind: Any) -> dict[str, Any]:
    """Return one pass as data: its name, its help, and each option with its type, default and help.

    An option whose default is None is the context's, which the command line fills from options of its own (`--threads`).
    """
    text = inspect.getdoc(kind) or ""
    return {
        "name": kind.name,
        "help": text.partition("\n\n")[0].partition(". ")[0].rstrip(".").replace("\n", " "),
        "options": {option.name: _option(kind, option) for option in options_of(kind)},
    }


def _option(kind: type, option: dataclasses.Field[Any]) -> dict[str, Any]:
    required = option.default is dataclasses.MISSING
    default = None if required else option.default
    told = _help(kind, option.name)
    return {"type": _type(option.type), "default": default, "required": required, "help": told}


def _help(kind: type, option: str) -> str:
    """Return the `#:` comment beside a field, in the class that declares it."""
    for base in kind.__mro__[:-1]:
        found = re.search(rf"^    {option}: .*#: (.*)$", inspect.getsource(base), re.MULTILINE)
        if found:
            return found[1]
    return ""


def _type(declared: Any) -> str:
    named = declared if isinstance(declared, str) else getattr(declared, "__name__", str(declared))
    return named.removesuffix(" | None")
