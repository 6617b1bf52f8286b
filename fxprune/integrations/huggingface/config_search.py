"""Configuration search: find the settings of a Hugging Face class that give wanted sizes, by building models on the meta device.

No table of fields is needed. Each whole number of a configuration (and of its parts) is changed alone, the model is built without memory,
and the sizes that change are those that the field governs; they are taken to be linear in it. A search then sets one field after another
until all sizes are as wanted. Several configurations may give the same shapes: the caller proves one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import nn

from fxprune.ir import quiet

Field: TypeAlias = tuple[str | int, ...]
"""Path of a number in a configuration: `("text_config", "hidden_size")`, `("depths", 2)`."""

Changes: TypeAlias = Mapping[Field, int]

_Size: TypeAlias = tuple[str, int]
"""A parameter and one of its dimensions, or a list of modules and COUNT, for its length."""

ConfigSizes: TypeAlias = dict[_Size, int]

COUNT = -1

CONTAINERS = (nn.ModuleList, nn.Sequential)

TRIED = 4000
"""Maximum number of configurations that are built before a search gives up."""


def _sizes_of(model: nn.Module) -> ConfigSizes:
    """Return the sizes of all tensors in a model's state dict, and the lengths of its lists of modules."""
    state, modules = model.state_dict(), dict(model.named_modules())
    found = {(name, dim): size for name, value in state.items() for dim, size in enumerate(value.shape)}
    counts = {(path, COUNT): len(part) for path, part in modules.items() if isinstance(part, CONTAINERS)}
    return counts | found


@dataclass(frozen=True)
class DeadEnd:
    """Dead end of a search: how many sizes were wrong, one of them, the changes so far, and the effect of a further change."""

    left: int
    wrong: _Size
    changes: Changes
    against: str


@dataclass
class Search:
    """Search for configurations of a model's class with the wanted sizes.

    `kept` are the indices that stay in lists with one entry per module, where modules are removed, by the length before; `unbuilt`
    counts settings that would give a size and can't be built.
    """

    kind: type[nn.Module]
    config: Any
    wanted: ConfigSizes
    kept: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    stuck: list[DeadEnd] = field(default_factory=list)
    unbuilt: int = 0
    _built: dict[frozenset[tuple[Field, int]], ConfigSizes | None] = field(default_factory=dict)
    _fitted: set[frozenset[tuple[Field, int]]] = field(default_factory=set)
    _followers: dict[Field, set[_Size]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.plain: dict[str, Any] = self.config.to_dict()

    def found(self, start: Changes | None = None) -> Iterator[Changes]:
        """Yield changes of the configuration that give the wanted sizes, without duplicates."""
        seen: set[frozenset[tuple[Field, int]]] = set()
        for changes in self._solved(dict(start or {})):
            key = frozenset(changes.items())
            if key not in seen:
                seen.add(key)
                yield changes

    def made(self, changes: Changes) -> Any:
        """Return the configuration with these changes; lists with an entry for each layer lose those of removed layers."""
        plain = copy.deepcopy(self.plain)
        for path, value in changes.items():
            before = _at(plain, path)
            _put(plain, path, value)
            for name, entries in _lists(_at(plain, path[:-1])):
                if len(entries) == before:
                    _at(plain, path[:-1])[name] = self._entries(entries, value, changes)
        return type(self.config).from_dict(plain)

    def _entries(self, entries: list[Any], count: int, changes: Changes) -> list[Any]:
        kept = self.kept.get(len(entries), ())
        if len(kept) == count:
            return [entries[i] for i in kept]
        fits = frozenset(changes.items()) in self._fitted
        return [*entries, *entries[-1:] * count][:count] if fits else entries

    def sizes(self, changes: Changes) -> ConfigSizes | None:
        """Return the sizes of the changed configuration; None where it can't be built, or TRIED have been built."""
        key = frozenset(changes.items())
        if key not in self._built:
            self._built[key] = self._sizes(changes) if len(self._built) < TRIED else None
        return self._built[key]

    def _sizes(self, changes: Changes) -> ConfigSizes | None:
        """Build the changed configuration; where that fails, build it again with lists fitted to the lengths that its numbers give."""
        found = self._tried(changes)
        if found is None:
            self._fitted.add(frozenset(changes.items()))
            found = self._tried(changes)
        return found

    def _tried(self, changes: Changes) -> ConfigSizes | None:
        try:
            with quiet(), torch.device("meta"):
                return _sizes_of(self.kind(self.made(changes)))
        except Exception:  # noqa: BLE001, whatever a class raises at numbers that it does not take
            return None

    @cached_property
    def fields(self) -> list[Field]:
        """The numbers of the configuration, with those that are not set at the end."""
        found = sorted(_numbers(self.plain, self.config), key=lambda each: each[1] is None)
        return [path for path, _ in found]

    def followers(self, path: Field) -> set[_Size]:
        """Return the sizes that change with a number when it is changed alone."""
        if path not in self._followers:
            base, steps = self.sizes({}) or {}, self._steps(path, {})
            after = self.sizes({path: steps[-1][0]}) or {} if steps else base
            sizes = base.keys() | after.keys()
            self._followers[path] = {size for size in sizes if base.get(size) != after.get(size)}
        return self._followers[path]

    def value(self, path: Field) -> int | None:
        """Return the number in the original configuration; None where it is not set."""
        found: int | None = _at(self.plain, path)
        return found

    @property
    def silent(self) -> list[Field]:
        """The numbers that affect no size, such as a number of heads that share a width."""
        return [path for path in self.fields if not self.followers(path)]

    def _solved(self, changes: dict[Field, int]) -> Iterator[Changes]:
        now = self.sizes(changes) or (self.sizes({}) if len(changes) == 1 else None)
        if now is None:
            return
        wrong = self.wrong(now)
        if not wrong:
            yield changes
            return
        for size in wrong:
            before, ways = self.unbuilt, []
            for way in self._ways(changes, size):
                ways.append(way)
                yield from self._solved(way)
            if ways or self.unbuilt == before:  # unbuilt settings may work once other sizes are right
                self.stuck.append(DeadEnd(len(wrong), size, changes, self._against(size, ways)))
                return

    def _ways(self, changes: dict[Field, int], wrong: _Size) -> Iterator[dict[Field, int]]:
        """Yield changes with one more field, set so that a size is as wanted."""
        for path in self.fields:
            if path not in changes and wrong in self.followers(path):
                value = self._needed(path, changes, wrong)
                if value is not None:
                    yield changes | {path: value}

    def wrong(self, now: ConfigSizes) -> list[_Size]:
        """Return the sizes that are not as wanted, lists of modules first."""
        return [size for size, value in self.wanted.items() if now.get(size) != value]

    def _needed(self, path: Field, changes: dict[Field, int], size: _Size) -> int | None:
        """Return the value of a field that gives a wanted size, if sizes are linear in it; else None."""
        found = self._steps(path, changes) or self._steps(path, {})
        steps = [(value, sizes[size]) for value, sizes in found if size in sizes]
        if len(steps) < 2 or steps[0][1] == steps[1][1]:
            return None
        (v0, s0), (v1, s1) = steps
        ahead, slope = (self.wanted[size] - s0) * (v1 - v0), s1 - s0
        value = v0 + ahead // slope
        if ahead % slope or value <= 0:
            return None
        made = self.sizes(changes | {path: value})
        self.unbuilt += made is None
        return value if made and made.get(size) == self.wanted[size] else None

    def _steps(self, path: Field, changes: dict[Field, int]) -> list[tuple[int, ConfigSizes]]:
        """Return two values of a field at which the model can be built, with the sizes, its own tried first; empty where it can't be."""
        own = self.value(path)
        tried = [8, 16] if own is None else [own, own + 1, own - 1, 2 * own, own // 2]
        found: list[tuple[int, ConfigSizes]] = []
        for value in dict.fromkeys(tried):
            sizes = self.sizes(changes | {path: value}) if value > 0 and len(found) < 2 else None
            found += [(value, sizes)] if sizes is not None else []
        return found if len(found) == 2 else []

    def _against(self, wrong: _Size, ways: list[dict[Field, int]]) -> str:
        """Return the effect on another size of the first setting that gives a size, as text."""
        if not ways:
            return f"no number of it makes {shown(wrong, self.wanted)}"
        now = self.sizes(ways[0]) or {}
        other = next(iter(self.wrong(now)), None)
        *_, (path, value) = ways[0].items()
        then = f", but then {shown(other, now)}, not {amount(other, self.wanted)}" if other else ""
        return f"{name_of(path)}={value} makes {shown(wrong, now)}{then}"


def name_of(path: Field) -> str:
    """Return a field's name in Python's notation: `text_config.hidden_size`, `depths[2]`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def shown(size: _Size, sizes: ConfigSizes) -> str:
    """Return a shape or a length as text: `layers.0.fc.weight 16×32`, `layers 3 modules`."""
    return f"{size[0]} {amount(size, sizes)}"


def amount(size: _Size, sizes: ConfigSizes) -> str:
    """Return the whole shape, or the length, that a size belongs to, as text."""
    name, dim = size
    if dim == COUNT:
        return f"{sizes.get(size, 0)} modules"
    sides = [str(value) for (other, at), value in sizes.items() if other == name and at != COUNT]
    return "×".join(sides) or "absent"


def _numbers(plain: Mapping[str, Any], config: Any) -> Iterator[tuple[Field, int | None]]:
    """Yield every whole number of a configuration, also in lists and parts, and fields that are None and may be one."""
    parts = getattr(config, "sub_configs", {})
    for name, value in plain.items():
        if name in parts and isinstance(value, dict):
            inner = _numbers(value, getattr(config, name, None))
            yield from (((name, *path), number) for path, number in inner)
        elif value is None or type(value) is int:
            yield (name,), value
        elif isinstance(value, list):
            yield from (((name, i), each) for i, each in enumerate(value) if type(each) is int)


def _at(plain: Any, path: Field) -> Any:
    for part in path:
        plain = plain[part]
    return plain


def _lists(part: Any) -> list[tuple[str, list[Any]]]:
    """Return the lists in a part of a configuration, by name."""
    found = part.items() if isinstance(part, dict) else ()
    return [(name, value) for name, value in found if isinstance(value, list)]


def _put(plain: Any, path: Field, value: Any) -> None:
    _at(plain, path[:-1])[path[-1]] = value
