"""Calibration data: unlabelled inputs like those of real use, checked before any long computation begins.

A *batch* holds the tensor inputs of one run by their names (`Program.input_names`); rows lie along dimension 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import Dataset

from fxprune.calibration.ranges import compare_ranges
from fxprune.calibration.validation import check_batch, describe_inputs, inputs_text
from fxprune.errors import UsageError
from fxprune.ir import Program, attribute, describe_error
from fxprune.ir.guards import broken
from fxprune.ir.interpreter import Recorder
from fxprune.rules import is_written
from fxprune.storage.devices import on_device, to_device

Batch: TypeAlias = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Unread:
    """Batches of a source behind those that were read, for data larger than memory: read and checked anew at each iteration."""

    program: Program
    source: Iterable[Any]
    first: int  #: the number of batches that are passed over

    def __iter__(self) -> Iterator[Batch]:
        for place, given in enumerate(islice(self.source, self.first, None), self.first + 1):
            yield check_batch(self.program, given, f"calibration batch {place}")[0]


@dataclass(frozen=True, eq=False)
class Calibration:
    """Batches for one program, as returned by `check_calibration`, and notes for the user on how they differ from what was expected.

    Iterating gives `batches`, which are in memory, and then those that a limit left `unread`, again and again. `images` names the inputs
    that a reader knows to be images (rows, channels, height, width). `held` are batches to hold back in place of some of the others, as
    rows of another kind.
    """

    batches: tuple[Batch, ...]
    notes: tuple[str, ...] = ()
    unread: Unread | None = None
    images: tuple[str, ...] = ()
    held: tuple[Batch, ...] = ()

    def __iter__(self) -> Iterator[Batch]:
        yield from self.batches
        yield from self.unread or ()

    @property
    def rows(self) -> int:
        """Number of rows of all batches, by the first input of each."""
        return sum(map(_rows, self.batches))

    def holding(self, other: Calibration) -> Calibration:
        """Return the data with the batches of another to hold back, and its notes."""
        return replace(self, held=other.batches, notes=(*self.notes, *other.notes))

    def split(self, share: float, program: Program) -> tuple[Calibration, Calibration]:
        """Return (data to fit on, held-back data): about `share` of the batches, spread evenly; a single batch is split by rows.

        Where batches are `held`, all others are fitted on. Neither part is empty; what is unread stays with the first. UsageError where
        `share` is not between 0 and 1, or where there are not two batches or rows to split.
        """
        if not 0 < share < 1:
            raise UsageError(f"the share that is held back must lie between 0 and 1, got {share:g}")
        if self.held:
            return self._part(self.batches, self.unread), self._part(self.held)
        if len(self.batches) == 1:
            fit_rows, back_rows = _split_rows(program, self.batches[0], share)
            return self._part((fit_rows,), self.unread), self._part((back_rows,))
        held = _spread(len(self.batches), share, "calibration batches")
        fit = tuple(batch for place, batch in enumerate(self.batches) if place not in held)
        back = tuple(batch for place, batch in enumerate(self.batches) if place in held)
        return self._part(fit, self.unread), self._part(back)

    def _part(self, batches: tuple[Batch, ...], unread: Unread | None = None) -> Calibration:
        return Calibration(batches, unread=unread, images=self.images)


def check_calibration(program: Program, batches: Iterable[Any], limit: int = 0) -> Calibration:
    """Check that calibration data fit a program, and return copies; they are read no further than `limit` rows (0: all).

    A batch is a mapping of input names to tensors, arrays or lists, or the tensors themselves in the order of the inputs. Inputs that the
    graph never reads may be left out; labels behind the inputs are left out, with a note. What a limit leaves of data that can be iterated
    again is `unread`. UsageError where a name, a type, a size or a value does not fit, or where the program can't run on
    the first batch or gives NaN.
    """
    if limit < 0:
        raise UsageError(f"the number of calibration rows must be at least 0 (all of them), got {limit}")
    kept: list[Batch] = []
    beside: tuple[str, ...] = ()
    left = limit
    for place, given in enumerate(as_batches(batches), 1):
        batch, extra = check_batch(program, given, f"calibration batch {place}")
        beside = beside or extra
        kept.append(shortened(program, batch, left))
        left -= _rows(kept[-1])
        if limit and left <= 0:
            break
    if not kept:
        raise UsageError(
            f"there are no calibration data: give at least one batch with {inputs_text(program)}"
        )
    _try(program, kept[0])
    notes = (*_beside_note(program, beside), *compare_ranges(program, kept))
    again = limit and left <= 0 and iter(batches) is not batches
    return Calibration(tuple(kept), notes, Unread(program, batches, len(kept)) if again else None)


def _beside_note(program: Program, beside: tuple[str, ...]) -> tuple[str, ...]:
    if not beside:
        return ()
    told = ", ".join(beside)
    return (f"calibrated without what the batches hold beside {inputs_text(program)}, as labels are: {told}",)


def flatten_batch(program: Program, batch: Batch) -> list[Any]:
    """Return a batch in the order of the placeholders, on the device that is computed on (`fxprune.storage.devices`).

    Inputs that are no tensors, and those that the batch leaves out, are the example inputs; tensors that the graph writes into are copied.
    """
    found: list[Any] = []
    for node, example in zip(program.placeholders(), program.flat_inputs(), strict=True):
        value = to_device(batch.get(node.name, example))
        found.append(value.clone() if isinstance(value, Tensor) and is_written(node) else value)
    return found


def state(program: Program) -> Batch:
    """Return copies of the buffers that the graph writes into, by name: a run on the copies leaves the program unchanged."""
    names = [str(node.target) for node in program.graph.find_nodes(op="get_attr") if is_written(node)]
    return {name: on_device(attribute(program.graph_module, name)).clone() for name in names}


def run_batch(program: Program, batch: Batch) -> Any:
    """Return the graph's results for a batch; it writes into copies of its buffers."""
    with torch.no_grad():
        return Recorder(program, (), state(program), placed=True).run_flat(flatten_batch(program, batch))


def batched_by_length(rows: Sequence[Mapping[str, Sequence[int]]], most: int) -> list[Batch]:
    """Batch tokenised texts of equal length together, so that none is padded: at most `most` rows per batch, longest first.

    Rows of one length keep their order; every tensor is (rows, length), int64.
    """
    if most < 1:
        raise UsageError(f"a batch must have at least 1 row, got {most}")
    alike: dict[tuple[tuple[str, int], ...], list[Mapping[str, Sequence[int]]]] = {}
    for row in rows:
        lengths = tuple(sorted((name, len(values)) for name, values in row.items()))
        alike.setdefault(lengths, []).append(row)
    order = sorted(alike, key=lambda lengths: max((size for _, size in lengths), default=0), reverse=True)
    chunks = [alike[key][i : i + most] for key in order for i in range(0, len(alike[key]), most)]
    return [
        {name: torch.tensor([row[name] for row in chunk], dtype=torch.long) for name in chunk[0]}
        for chunk in chunks
    ]


def _rows(batch: Batch) -> int:
    first = next(iter(batch.values()), torch.ones(()))
    return first.shape[0] if first.ndim else 1


def _spread(count: int, share: float, things: str) -> set[int]:
    """Return the indices to hold back: each in the middle of an equal stretch, for data are often ordered."""
    if count < 2:
        raise UsageError(f"{count} {things} can't be split in two: give at least 2")
    held = min(max(round(share * count), 1), count - 1)
    return {(2 * i + 1) * count // (2 * held) for i in range(held)}


def _split_rows(program: Program, batch: Batch, share: float) -> tuple[Batch, Batch]:
    count = _rows(batch)
    held = _spread(count, share, "calibration rows")
    fit = _pick(program, batch, [row for row in range(count) if row not in held])
    back = _pick(program, batch, sorted(held))
    if fit is None or back is None:
        raise UsageError(
            f"the only calibration batch can't be split: the program takes all of its {count} rows at once;"
            " give at least 2 batches"
        )
    return fit, back


def rows_along(program: Program, batch: Batch) -> tuple[str, ...]:
    """Return the inputs that hold one row of a batch per index of dimension 0; none where the number of rows is fixed, or differs."""
    free = program.free_dims()
    along = tuple(name for name in batch if 0 in free.get(name, ()))
    alike = len({batch[name].shape[0] for name in along}) == 1
    return along if alike and next(iter(batch)) in along else ()


def _pick(program: Program, batch: Batch, chosen: list[int]) -> Batch | None:
    """Return some rows of a batch; None where it can't be cut, or where the graph does not hold for so many rows."""
    along = rows_along(program, batch)
    if not along:
        return None
    found = {name: value[chosen] if name in along else value for name, value in batch.items()}
    names = [node.name for node in program.placeholders()]
    given = dict(zip(names, flatten_batch(program, found), strict=True))
    return None if broken(program.input_guards(), given) else found


def shortened(program: Program, batch: Batch, limit: int) -> Batch:
    """Return the first `limit` rows (0: no limit); the whole batch where it has no more, or can't be cut."""
    if not 0 < limit < _rows(batch):
        return batch
    return _pick(program, batch, list(range(limit))) or batch


def as_batches(batches: Any) -> Iterable[Any]:
    """Return what is an iterable of batches; UsageError for a single batch, and for rows without a batch dimension."""
    # All of these are iterable too, but over rows, names or characters instead of batches.
    if isinstance(batches, (Tensor, np.ndarray, Mapping, str)) or not isinstance(batches, Iterable):
        rows = isinstance(batches, Dataset)
        raise UsageError(
            f"calibration data must be an iterable of batches, got a {type(batches).__name__};"
            f" {'give a torch.utils.data.DataLoader of it' if rows else 'put a single batch into a list'}"
        )
    return batches


def _try(program: Program, batch: Batch) -> None:
    """Run a program on its first batch; UsageError where it fails or gives NaN."""
    try:
        outputs = _run(program, batch)
    except Exception as error:
        raise UsageError(
            f"the program can't run on the first calibration batch ({describe_inputs(batch)}): {describe_error(error)}"
        ) from error
    wrong = [name for name, value in outputs.items() if bool(value.isnan().any())]
    if wrong:
        raise UsageError(
            f"output {wrong[0]!r} has NaN on the first calibration batch ({describe_inputs(batch)});"
            " leave such rows out, or mend the model"
        )


def _run(program: Program, batch: Batch) -> dict[str, Tensor]:
    """Return the tensor outputs by name."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = run_batch(program, batch)
    values = pytree.tree_leaves(found, is_leaf=lambda x: x is None)
    by_node = dict(zip(map(id, program.outputs()), values, strict=True))
    named = {name: by_node[id(node)] for name, node in program.named_outputs().items()}
    return {name: value for name, value in named.items() if isinstance(value, Tensor)}
