"""Calls as data: a class or function by its path and its arguments, imported and called only when the result is needed."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Call:
    """Call of `module:name` with arguments, which may be calls and lists of calls; a name with a dot is an attribute of a class."""

    path: str
    positional: tuple[Any, ...]
    named: Mapping[str, Any]

    def made(self) -> Any:
        """The result of the call."""
        return named(self.path)(
            *map(_made, self.positional), **{name: _made(value) for name, value in self.named.items()}
        )


@dataclass(frozen=True)
class Name:
    """A class or function itself, as an argument."""

    path: str


def call(path: str, *positional: Any, **named: Any) -> Call:
    """A call to make later."""
    return Call(path, positional, named)


def named(path: str) -> Any:
    """The class or function at `module:name`."""
    module, _, name = path.partition(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _made(value: Any) -> Any:
    if isinstance(value, Call):
        return value.made()
    if isinstance(value, Name):
        return named(value.path)
    if isinstance(value, (list, tuple)):
        return type(value)(map(_made, value))
    return value
