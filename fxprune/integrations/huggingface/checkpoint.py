"""Hugging Face checkpoint of a pruned program: a stock model of the same class, configured to its sizes and proved equal.

Configurations have one number for all layers, so prune uniformly (`ffn(ratio=0.5, uniform=True)`). Settings that give the program's
sizes are found by measurement (`fxprune.integrations.huggingface.config_search`). The model is then run to prove that it computes the
same, because many settings affect no shape.
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
from fxprune.frontend.agreement import module_outputs
from fxprune.frontend.canonicalization.fold_weights import folded_sources
from fxprune.integrations.huggingface.config_search import COUNT, Changes, Search, amount, name_of, shown
from fxprune.integrations.huggingface.weight_names import Weights, added_weights, possible_namings
from fxprune.ir import Program, describe_error, difference, quiet, run_example, tolerance
from fxprune.rewrite.shared_tables import merge_equal_choices

PROOFS = 64
"""Maximum number of configurations with the right shapes that are run before a search gives up."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A stock model that computes the same as a program.

    `settings` are the numbers of the configuration that changed, before and after; `relative` is the largest difference to the program on
    its example inputs; `carried` names weights that the program does not read, and that are unchanged.
    """

    model: Any
    settings: Mapping[str, tuple[int | None, int]]
    relative: float
    carried: tuple[str, ...] = ()


@dataclass
class _Trials:
    """Outputs of the program, and the failed trials with their reasons."""

    slim: Program
    outputs: list[Tensor]
    failed: list[str] = field(default_factory=list)

    def gap(self, model: nn.Module) -> float:
        """Return the largest relative difference of a model's outputs to the program's; inf where the counts differ."""
        return difference(module_outputs(model, self.slim), self.outputs)

    @property
    def bar(self) -> float:
        return tolerance(self.outputs)


def checkpoint(model: Any, slim: Program, config: Any = None) -> Checkpoint:
    """Return a stock model of the same class with the program's weights, proved to compute the same on the program's example inputs.

    `model` is the transformers model that the program was captured from, `config` its configuration where it is not `model.config`.
    The layers that stay are renumbered. UsageError where there is no configuration; RefusedError names a size that no configuration
    gives.
    """
    config = model.config if config is None and hasattr(model, "config") else config
    if not (hasattr(config, "to_dict") and hasattr(model, "save_pretrained")):
        raise UsageError(
            f"{type(model).__name__} has no Hugging Face configuration: a stock checkpoint needs one"
        )
    unknown = added_weights(model, slim)
    if unknown:
        sources = ", ".join(folded_sources(slim).get(unknown[0], ()))
        why = f"computed by its code from {sources}, and folded by capture; with training=True it is not"
        raise RefusedError(
            f"no stock {type(model).__name__} has {unknown[0]}, which the program has ({len(unknown)} weights are not the model's: "
            f"{why if sources else 'factors, or biases that a repair added'})"
        )
    slim = merge_equal_choices(slim)
    tries, searches = _Trials(slim, run_example(slim)), []
    for weights in possible_namings(model, slim):
        searches.append(Search(type(model), config, weights.sizes, weights.kept))
        for changes in _candidates(searches[-1], tries):
            found = _try_checkpoint(model, searches[-1], changes, weights, tries)
            if found is not None:
                return found
    raise RefusedError(_why(searches[0], tries))


def save_pretrained(
    model: Any, slim: Program, folder: str | Path, overwrite: bool = False, config: Any = None
) -> Checkpoint:
    """Write `checkpoint` to a folder (config.json, model.safetensors), read it back by `from_pretrained`, and compare once more.

    UsageError where the folder is not empty, unless `overwrite`. RefusedError as `checkpoint`; ExportError where the model that was read
    back differs.
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
        for file in draft.iterdir():  # weights get the permissions of the configuration
            file.chmod((draft / "config.json").stat().st_mode)
        reread = (
            type(made.model).from_pretrained(draft, local_files_only=True, trust_remote_code=False).eval()
        )
    tries = _Trials(slim, run_example(slim))
    gap = tries.gap(reread)
    if not gap <= tries.bar:
        raise ExportError(
            f"the checkpoint that was read back differs from the program by {gap:.2g} (allowed {tries.bar:g})"
        )
    return Checkpoint(reread, made.settings, gap, made.carried)


def _candidates(search: Search, tries: _Trials) -> Iterator[Changes]:
    """Yield changes that give the sizes; where none is right, also with a changed number that affects no size and may count heads."""
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


def _try_checkpoint(
    model: Any, search: Search, changes: Changes, weights: Weights, tries: _Trials
) -> Checkpoint | None:
    """Return the checkpoint if it computes the same as the program; else None, with the reason in `tries`."""
    if len(tries.failed) >= PROOFS:
        return None
    changed = ", ".join(f"{name_of(path)}={value}" for path, value in changes.items())
    said = changed or "the configuration as it is"
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
    """Return a model of this configuration with the program's weights; RefusedError where a weight is missing or does not fit."""
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


def _why(search: Search, tries: _Trials) -> str:
    """Return the text of the refusal: the nearest configuration, and the reason against it."""
    kind, config = search.kind.__name__, type(search.config).__name__
    base = search.sizes({})
    if base is None:
        return f"no stock {kind} can be built from its own {config}"
    if tries.failed or not search.stuck:
        return f"no stock {kind} computes what the program does: {'; '.join(tries.failed[:2]) or 'none was found'}"
    at = min(search.stuck, key=lambda stuck: stuck.left)
    said = ", ".join(f"{name_of(path)}={value}" for path, value in at.changes.items())
    before = amount(at.wrong, search.sizes(at.changes) or {})
    uneven = "; sizes that differ between layers fit no configuration: prune with uniform=True"
    return (
        f"{shown(at.wrong, search.wanted)} is what the program has, {before} what the model has{f' with {said}' if said else ''}, "
        f"and no setting of {config} gives that: {at.against}{uneven if _uneven(search) else ''}"
    )


def _uneven(search: Search) -> bool:
    """Return whether modules of one list that had a size in common need different ones."""
    base, ends = search.sizes({}) or {}, dict[tuple[str, int, int], set[int]]()
    lists = {name for name, dim in search.wanted if dim == COUNT}
    for (name, dim), value in search.wanted.items():
        if (name, dim) in base and dim != COUNT:
            ends.setdefault((_pattern(name, lists), dim, base[name, dim]), set()).add(value)
    return any(len(values) > 1 for values in ends.values())


def _pattern(name: str, lists: set[str]) -> str:
    """Return a name with `*` for its indices in lists of modules."""
    parts = name.split(".")
    return ".".join("*" if ".".join(parts[:i]) in lists else part for i, part in enumerate(parts))
