"""Kept outcomes: what the passes before and with a long training did, on disk, so that a run that was killed goes on behind them.

An outcome is kept where its selection and the tensors that it changed give its program again, node by node and bit by bit; where they do
not (factors, folded constants), the pass runs again. In several processes the first one runs a pass, and the others take its outcome: what
is decided by measured times would differ.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, fx

from fxprune.calibration import Calibration
from fxprune.calibration.processes import from_first, is_first_process, process_count, splitting
from fxprune.errors import UsageError
from fxprune.ir import Program, Selection
from fxprune.ir.edit import with_tensors
from fxprune.ir.tensors import tensor_bytes, update_digest
from fxprune.pipeline.base import Outcome, Pass
from fxprune.pipeline.context import Context
from fxprune.rewrite.apply import apply
from fxprune.storage.kept_steps import Content, keeping
from fxprune.training.checkpoint_files import (
    Snapshot,
    newest_snapshot,
    pack_snapshot,
    read_snapshot,
    unpack_snapshot,
    write_snapshot,
)

_PLAIN = ("device", "lowering", "point", "recipe", "rows", "seed", "settings")
"""Fields of a context that a digest has as text."""

_NO_MATTER = ("cache", "checkpoints", "executor", "teacher_outputs")
"""Fields that change no outcome."""


_NUMBERS = {"seconds", "selection", "refitted", "details", "remarks"}
"""Fields of an outcome that are kept beside tensors."""


@dataclass(frozen=True)
class KeptOutcome:
    """Place of the outcome of one pass; `digest` says what it follows from, "" where that is not known, and nothing is kept."""

    folder: Path | None
    digest: str

    def read(self) -> Snapshot | None:
        """Return what an earlier run kept of the same pass on the same program and data."""
        found = _own_snapshot(self.folder, self.digest) if self.folder and self.digest else None
        return found if found is not None and found.numbers.keys() >= _NUMBERS else None

    def write(self, snapshot: Snapshot | None) -> None:
        """Write an outcome, where there is one to be kept."""
        if self.folder and self.digest and snapshot and is_first_process():
            write_snapshot(
                self.folder, Snapshot(snapshot.tensors, {**snapshot.numbers, "digest": self.digest})
            )


def _own_snapshot(folder: Path, digest: str) -> Snapshot | None:
    """Return the newest checkpoint of a folder; None where there is none, it can't be read, or it has another digest."""
    path = newest_snapshot(folder)
    if path is None:
        return None
    try:
        found = read_snapshot(path)
    except UsageError:
        return None
    return found if found.numbers.get("digest") == digest else None


def run_or_resume(passes: Sequence[Pass], program: Program, context: Context) -> tuple[Outcome, float]:
    """Run the pass of the context's step, or take what an earlier run or the first process made of it; return its seconds, too."""
    each, start = passes[context.step], time.perf_counter()
    kept_for = any("checkpoints" in later.uses for later in passes[context.step :])
    if not (kept_for or context.together):
        return _run(each, program, context), time.perf_counter() - start
    kept = _kept(each, program, context)
    found = _shared(kept.read() if is_first_process() else None, program)
    if found is not None:
        earlier = ("taken from the checkpoints of a run that did not come to its end",)
        return _restored(program, found, earlier), float(found.numbers["seconds"])
    together = (each.splits and context.together) or "checkpoints" in each.uses  # it runs in all processes
    if is_first_process() or together:
        try:
            outcome = _run(each, program, context)
        except Exception:
            if not together:
                _shared(None, program)  # the others run it as well, and fail as well
            raise
        wanted = kept.folder or (process_count() > 1 and not together)
        made = _snapshot(program, outcome, time.perf_counter() - start) if wanted else None
        kept.write(made)
        if not together:
            _shared(made, program)
        return outcome, time.perf_counter() - start
    taken = _shared(None, program)
    outcome = each.run(program, context) if taken is None else _restored(program, taken)
    return outcome, time.perf_counter() - start


@dataclass(frozen=True)
class KeptSteps:
    """Store of the steps of one pass (see `fxprune.storage.kept_steps`), as checkpoints in folders whose names begin with `folder`'s."""

    folder: Path
    digest: str

    def read(self, name: str) -> Content | None:
        """Return what an earlier run of the same pass on the same program and data wrote."""
        found = _own_snapshot(self._place(name), self.digest)
        return None if found is None else (found.tensors, found.numbers)

    def write(self, name: str, step: int, content: Content) -> None:
        """Write the steps that have been done, in place of what is there."""
        tensors, numbers = content
        snapshot = Snapshot(tensors, {**numbers, "step": step, "digest": self.digest})
        with suppress(OSError, SafetensorError):  # without room for it the run goes on, too
            write_snapshot(self._place(name), snapshot)

    def _place(self, name: str) -> Path:
        return self.folder.with_name(f"{self.folder.name}-{name}")


def _steps(each: Pass, program: Program, context: Context) -> KeptSteps | None:
    """Return where the steps of a pass are kept: those of a program on disk are long enough for that."""
    given = context.checkpoints
    if given is None or not program.is_mapped() or process_count() > 1:
        return None
    digest = _digest(each, program, context)
    return KeptSteps(Path(given.folder) / f"steps-{context.step + 1}", digest) if digest else None


def _run(each: Pass, program: Program, context: Context) -> Outcome:
    together = splitting() if each.splits and context.together else nullcontext()
    with together, keeping(_steps(each, program, context)):
        return each.run(program, context)


def _kept(each: Pass, program: Program, context: Context) -> KeptOutcome:
    given = context.checkpoints
    if given is None:
        return KeptOutcome(None, "")
    return KeptOutcome(Path(given.folder) / f"pass-{context.step + 1}", _digest(each, program, context))


def _shared(snapshot: Snapshot | None, program: Program) -> Snapshot | None:
    """Return the first process's snapshot in all processes."""
    if process_count() == 1:
        return snapshot
    device = next((value.device for value in program.tensors().values()), torch.device("cpu"))
    found = from_first(pack_snapshot(snapshot) if snapshot else None, device)
    return None if found is None else unpack_snapshot(found)


def _snapshot(program: Program, outcome: Outcome, seconds: float) -> Snapshot | None:
    """Return an outcome as a snapshot; None where it does not give the program again."""
    if outcome.factors or outcome.proof or program.islands:
        return None
    own = outcome.program.tensors()
    tensors = {name: own[name] for name in outcome.refitted if name in own}
    if not _is_same(_program(program, outcome.selection, tensors), outcome.program):
        return None
    numbers = {
        "step": 1,
        "seconds": seconds,
        "selection": outcome.selection.to_json(),
        "refitted": list(outcome.refitted),
        "details": dict(outcome.details),
        "remarks": list(outcome.remarks),
    }
    return Snapshot(tensors, numbers)


def _restored(program: Program, found: Snapshot, remarks: tuple[str, ...] = ()) -> Outcome:
    numbers = found.numbers
    selection = Selection.from_json(numbers["selection"])
    after = _program(program, selection, found.tensors)
    return Outcome(
        after,
        selection,
        tuple(numbers["refitted"]),
        numbers["details"],
        remarks=(*numbers["remarks"], *remarks),
    )


def _program(program: Program, selection: Selection, tensors: Mapping[str, Tensor]) -> Program:
    done = apply(program, selection) if len(selection) or selection.removed else program
    return with_tensors(done, tensors) if tensors else done


def _is_same(one: Program, other: Program) -> bool:
    """Return whether two programs have the same nodes, and tensors of the same bits."""
    if _text(one) != _text(other):
        return False
    mine, theirs = one.tensors(), other.tensors()
    return all(tensor_bytes(mine[name]) == tensor_bytes(theirs[name]) for name in mine)


def _text(program: Program) -> list[Any]:
    """Return the nodes of a program with their sizes, and what it says of its sizes, as plain data."""
    fields = (program.labels, program.free_outputs, program.free_inputs, program.spare, program.notes)
    tensors = [(name, value.dtype, tuple(value.shape)) for name, value in program.tensors().items()]
    return [*map(_node_text, program.graph.nodes), fields, tuple(map(str, program.guards)), tensors]


def _node_text(node: fx.Node) -> tuple[Any, ...]:
    args, kwargs = (
        fx.node.map_arg(given, lambda each: f"%{each.name}") for given in (node.args, node.kwargs)
    )
    value = node.meta.get("val")
    size = str(tuple(value.shape)) if isinstance(value, Tensor) else ""
    return node.op, node.name, str(node.target), str(args), str(kwargs), size


def _digest(each: Pass, program: Program, context: Context) -> str:
    """Return a digest of all that an outcome follows from; "" where code of the user's own is part of it."""
    found = hashlib.blake2b(str(each).encode(), digest_size=16)
    for name in sorted({*each.uses} - {*_NO_MATTER}):
        value = getattr(context, name)
        if name in _PLAIN or value is None:
            found.update(f"{name} {value!r}".encode())
        elif name == "data" and isinstance(value, Calibration):
            for batch in (*value.batches, {}, *value.held):
                update_digest(found, batch)
        else:
            return ""
    found.update(f"device {context.device}".encode())
    for each_program in dict.fromkeys((program, context.original or program)):
        found.update(repr([_node_text(node) for node in each_program.graph.nodes]).encode())
        update_digest(found, each_program.tensors())
    return found.hexdigest()
