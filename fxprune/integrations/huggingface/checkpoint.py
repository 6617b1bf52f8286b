"""A pruned program as a stock Hugging Face checkpoint: a configuration of the same class that says its sizes, proved equal.

Configurations say one number for all layers, so prune uniformly (`ffn(ratio=0.5, uniform=True)`). Which settings give the program's
sizes is found by measurement (`fxprune.integrations.huggingface.config_search`), and whether the model then computes the same by running
it: many settings show in no shape.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.analysis import analyze
from fxprune.errors import ExportError, RefusedError, UsageError
from fxprune.frontend.agreement import answers
from fxprune.integrations.huggingface.config_search import COUNT, Changes, Search, amount, name_of, shown
from fxprune.integrations.huggingface.weight_names import Weights, foreign, readings
from fxprune.ir import TOLERANCES, Program, describe_error, difference, quiet, run_example
from fxprune.rewrite.shared_tables import recoupled

PROOFS = 64
"""Configurations with the right shapes that are run before a search gives up."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A stock model that computes what a program does.

    `settings` are the numbers of the configuration that changed, before and after; `relative` is the largest difference to the program on
    its example inputs; `carried` names weights that the program does not read, and that are as they were.
    """

    model: Any
    settings: Mapping[str, tuple[int | None, int]]
    relative: float
    carried: tuple[str, ...] = ()


@dataclass
class _Tries:
    """What was run, and why it is not the program."""

    slim: Program
    outputs: list[Tensor]
    failed: list[str] = field(default_factory=list)

    def gap(self, model: nn.Module) -> float:
        """The largest relative difference of a model's outputs to the program's."""
        got = answers(model, self.slim)
        return difference(got, self.outputs) if len(got) == len(self.outputs) else float("inf")

    @property
    def bar(self) -> float:
        return max((TOLERANCES.get(value.dtype, 0.0) for value in self.outputs), default=0.0)


def checkpoint(model: Any, slim: Program, config: Any = None) -> Checkpoint:
    """A stock model of the same class with the program's weights, proved to compute the same as the program on its example inputs.

    `model` is the transformers model that the program was captured from, `config` its configuration where it is not `model.config`.
    Removed layers are renumbered. RefusedError says which size no configuration gives, and what it would have to say.
    """
    config = model.config if config is None and hasattr(model, "config") else config
    if not (hasattr(config, "to_dict") and hasattr(model, "save_pretrained")):
        raise UsageError(
            f"{type(model).__name__} has no Hugging Face configuration: a stock checkpoint needs one"
        )
    unknown = foreign(model, slim)
    if unknown:
        raise RefusedError(
            f"no stock {type(model).__name__} has {unknown[0]}, which the program has ({len(unknown)} weights are not the model's: "
            "factors, or biases that a repair added)"
        )
    slim = recoupled(slim)
    tries, searches = _Tries(slim, run_example(slim)), []
    for weights in readings(model, slim):
        searches.append(Search(type(model), config, weights.sizes, weights.kept))
        for changes in _candidates(searches[-1], tries):
            found = _proved(model, searches[-1], changes, weights, tries)
            if found is not None:
                return found
    raise RefusedError(_why(searches[0], tries))


def save_pretrained(
    model: Any, slim: Program, folder: str | Path, overwrite: bool = False, config: Any = None
) -> Checkpoint:
    """`checkpoint`, written to a folder (config.json, model.safetensors), read back by `from_pretrained` and compared once more.

    What exists stays unless `overwrite`. RefusedError as `checkpoint`; ExportError where what was read back differs.
    """
    folder = Path(folder).absolute()
    if folder.exists() and not overwrite and (folder.is_file() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is not empty; give another folder, or overwrite=True")
    made = checkpoint(model, slim, config)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        draft = Path(scratch) / folder.name
        reread = _written(made, slim, draft)
        shutil.rmtree(folder, ignore_errors=True)
        draft.chmod(0o755)
        draft.rename(folder)
    return reread


def _written(made: Checkpoint, slim: Program, draft: Path) -> Checkpoint:
    with quiet():
        made.model.save_pretrained(draft)
        for file in draft.iterdir():  # weights are for whom the configuration is for
            file.chmod((draft / "config.json").stat().st_mode)
        reread = type(made.model).from_pretrained(draft, local_files_only=True).eval()
    tries = _Tries(slim, run_example(slim))
    gap = tries.gap(reread)
    if not gap <= tries.bar:
        raise ExportError(
            f"the checkpoint that was read back differs from the program by {gap:.2g} (allowed {tries.bar:g})"
        )
    return Checkpoint(reread, made.settings, gap, made.carried)


def _candidates(search: Search, tries: _Tries) -> Iterator[Changes]:
    """What gives the sizes; where that is not it, with a number besides that no size follows and that may count heads."""
    before = len(tries.failed)
    yield from search.found()
    if not search.unbuilt and len(tries.failed) == before:
        return
    heads = {1, *(axis.size for axis in analyze(tries.slim).axes if axis.role == "heads")}
    for path in search.silent:
        own = search.value(path)
        for count in sorted(heads, reverse=True):
            if own is not None and own > count:
                yield from search.found({path: count})


def _proved(
    model: Any, search: Search, changes: Changes, weights: Weights, tries: _Tries
) -> Checkpoint | None:
    """The checkpoint, if it computes what the program does."""
    if len(tries.failed) >= PROOFS:
        return None
    said = (
        ", ".join(f"{name_of(path)}={value}" for path, value in changes.items())
        or "the configuration as it is"
    )
    try:
        made = _filled(type(model), search.made(changes), weights)
        gap = tries.gap(made)
    except Exception as error:  # noqa: BLE001, whatever a class raises at numbers that do not fit each other
        tries.failed.append(f"{said} has these shapes, but {describe_error(error)}")
        return None
    if not gap <= tries.bar:
        tries.failed.append(
            f"{said} has these shapes, but its outputs differ by {gap:.2g} (allowed {tries.bar:g})"
        )
        return None
    if getattr(model, "generation_config", None) is not None:
        made.generation_config = model.generation_config
    settings = {name_of(path): (search.value(path), value) for path, value in changes.items()}
    return Checkpoint(made, settings, gap, tuple(weights.carried))


def _filled(kind: Any, config: Any, weights: Weights) -> Any:
    """A model of this configuration with the program's weights."""
    with quiet(), torch.random.fork_rng(devices=[]):
        made = kind(config).eval()
    state = made.state_dict(keep_vars=True)
    for name, own in state.items():
        value = weights.values.get(name, weights.carried.get(name))
        if value is None:
            raise RefusedError(f"it needs {name}, of which nothing is left")
        if value.shape != own.shape:
            raise RefusedError(
                f"{name} is {_shape(own)} there, and {_shape(value)} in the model, where nothing reads it"
            )
        own.data = value.detach().clone()
    return made


def _shape(value: Tensor) -> str:
    return "×".join(map(str, value.shape))


def _why(search: Search, tries: _Tries) -> str:
    """The refusal: what was nearest, and what stands against it."""
    kind, config = search.kind.__name__, type(search.config).__name__
    base = search.sizes({})
    if base is None:
        return f"no stock {kind} can be built from its own {config}"
    if tries.failed or not search.stuck:
        return f"no stock {kind} computes what the program does: {'; '.join(tries.failed[:2]) or 'none was found'}"
    at = min(search.stuck, key=lambda stuck: stuck.left)
    said = ", ".join(f"{name_of(path)}={value}" for path, value in at.changes.items())
    before = amount(at.wrong, search.sizes(at.changes) or {})
    uneven = (
        "; sizes that differ between layers fit no configuration: prune with uniform=True"
        if _uneven(search)
        else ""
    )
    return (
        f"{shown(at.wrong, search.wanted)} is what the program has, {before} what the model has{f' with {said}' if said else ''}, "
        f"and no setting of {config} gives that: {at.against}{uneven}"
    )


def _uneven(search: Search) -> bool:
    """Whether modules of one list that had a size in common are to have others."""
    base, ends = search.sizes({}) or {}, dict[tuple[str, int, int], set[int]]()
    lists = {name for name, dim in search.wanted if dim == COUNT}
    for (name, dim), value in search.wanted.items():
        if (name, dim) in base and dim != COUNT:
            ends.setdefault((_pattern(name, lists), dim, base[name, dim]), set()).add(value)
    return any(len(values) > 1 for values in ends.values())


def _pattern(name: str, lists: set[str]) -> str:
    """A name without its places in lists of modules."""
    parts = name.split(".")
    return ".".join("*" if ".".join(parts[:i]) in lists else part for i, part in enumerate(parts))
