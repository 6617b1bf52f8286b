"""Trials of cuts on an executor lead to the same plan as in this process."""

from __future__ import annotations

from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import pytest
import torch

from fxprune.errors import UsageError
from fxprune.ir.edit import with_tensors
from fxprune.passes import Slim
from fxprune.pipeline import Context
from fxprune.search.unit_plans import Planned
from fxprune.storage import to_disk
from support.slimmable import POINT, Subject, layer


def planned(subject: Subject, executor: Executor | None, **more: object) -> Planned:
    program, data = subject
    context = Context(data=data, point=POINT, executor=executor, **more)  # type: ignore[arg-type]
    return Slim(flops=0.6).decide(program, context)


def test_processes_give_the_same_plan() -> None:
    with ProcessPoolExecutor(2, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        there = planned(layer(idle=True), pool)
        assert pool._processes  # something ran there
    here = planned(layer(idle=True), None)
    assert there.selection == here.selection
    errors = [[row["error"] for row in each.details["sites"]] for each in (there, here)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-4)


def test_a_loss_that_can_not_be_pickled_is_refused_before_any_work() -> None:
    program, data = layer()
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        context = Context(data=data, point=POINT, executor=pool, loss=lambda outputs, batch: outputs.sum())
        with pytest.raises(
            UsageError, match="an executor runs the loss in other processes, and it can't be pickled"
        ):
            Slim(flops=0.6).run(program, context)
        assert not pool._processes


def test_a_program_on_disk_is_tried_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxprune.storage.scratch.SMALLEST_FILE", 1)
    program, data = layer(idle=True)
    on_disk = with_tensors(program, {name: to_disk(value) for name, value in program.tensors().items()})
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        found = planned((on_disk, data), pool)
        assert not pool._processes
    assert found.selection == planned((program, data), None).selection


def test_threads_give_the_same_plan() -> None:
    with ThreadPoolExecutor(4) as pool:
        there = planned(layer(idle=True), pool)
    assert there.selection == planned(layer(idle=True), None).selection
