"""Sensitivity of the fuzzer: wrong rules and laws, each of which must be caught within a number of random programs."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch

from fuzz.calls import CALLS, CANNOT
from fuzz.check import example, fault
from fuzz.mutants import MUTANTS, Mutant
from fuzz.nets import DECKS, POINTS, WildNet, wild
from fxprune import Program, analyze, capture
from fxprune.analysis import Analysis
from fxprune.errors import CaptureError
from fxprune.rules import RULES, packet_of
from support.strategies import Step

PROGRAMS = int(os.environ.get("FUZZ_MUTANT_PROGRAMS", "150"))
#: after so many programs that catch a mutant the others need not run
ENOUGH = int(os.environ.get("FUZZ_MUTANT_CATCHES", "3"))
#: stands for a seed where the process died
CRASH = -1


@dataclass(frozen=True)
class Sample:
    """Random program: its seed, its operators, and its axes by the correct rules."""

    seed: int
    program: Program
    operators: frozenset[Any]
    axes: tuple[Any, ...]


def sample(seed: int) -> Sample | None:
    """The program of a seed; None where it is not finite or torch can't export it."""
    net = wild(seed)
    if not net(example()).isfinite().all():
        return None
    try:
        program = capture(net, (example(),), training=True)
    except CaptureError:
        return None  # torch.export's own refusal, which the fuzzer counts
    operators = frozenset(packet_of(node.target) for node in program.graph.nodes)
    return Sample(seed, program, operators, said(analyze(program)))


def said(analysis: Analysis) -> tuple[Any, ...]:
    return tuple((axis.name, axis.exact, axis.readers) for axis in analysis.axes)


def catches(mutant: Mutant, samples: list[Sample]) -> Iterator[int]:
    """Yield the seeds whose programs catch the mutant; programs without its operators are skipped."""
    for one in samples:
        if mutant.operators and not one.operators & set(mutant.operators):
            continue
        if caught(mutant, one):
            yield one.seed


def caught(mutant: Mutant, one: Sample) -> bool:
    """Whether a claim fails; a crash counts, for the fuzzer reports it."""
    program = one.program.replace()  # one that was not analysed yet, by the correct rules
    try:
        analysis = analyze(program)
        if not mutant.operators and said(analysis) == one.axes:
            return False  # a law about zeros decides exactness, and nothing else
        return bool(fault(program, analysis, one.seed))
    except Exception:  # noqa: BLE001
        return True


def _report(mutant: Mutant, samples: list[Sample], end: Connection) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        mutant.patch(monkeypatch)
        for seed, _ in zip(catches(mutant, samples), range(ENOUGH), strict=False):
            end.send(seed)


def tally(mutant: Mutant, samples: list[Sample]) -> list[int]:
    """The first seeds that catch a mutant, found in a process of its own: torch itself may die of wrong sizes (CRASH)."""
    context = multiprocessing.get_context("fork")
    reads, writes = context.Pipe(duplex=False)
    child = context.Process(target=_report, args=(mutant, samples, writes))
    child.start()
    writes.close()
    seeds: list[int] = []
    with contextlib.suppress(EOFError):
        while True:
            seeds.append(reads.recv())
    child.join()
    return seeds if child.exitcode == 0 else [*seeds, CRASH]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_each_mutant_is_caught(capsys: pytest.CaptureFixture[str]) -> None:
    start = time.monotonic()
    samples = [one for seed in range(PROGRAMS) if (one := sample(seed)) is not None]
    table = {mutant.name: tally(mutant, samples) for mutant in MUTANTS}
    rows = [f"{name:65} {seeds[0] if seeds else '-':>5} {len(seeds):>3}" for name, seeds in table.items()]
    missed = [name for name, seeds in table.items() if not seeds]
    with capsys.disabled():
        said = f"{len(table)} mutants, {len(missed)} missed, {len(samples)} programs, {time.monotonic() - start:.0f} s"
        title = f"{'mutant':65} first  of {ENOUGH}"
        sys.stdout.write("\n".join(("", title, *rows, said, "")))
    assert len(table) >= 80
    assert missed == []


def named(packet: Any) -> str:
    return packet if isinstance(packet, str) else packet._qualified_op_name


def test_the_fuzzer_draws_the_rule_table() -> None:
    """Each operator that has a rule is drawn, or a line in CANNOT says why not."""
    drawn = {named(packet) for packet, _ in CALLS} | {named(packet) for _, packet in POINTS}
    cannot = {
        name if "::" in name else f"aten::{name}" for names in CANNOT.values() for name in names.split()
    }
    table = {
        named(packet) for packet in RULES if named(packet).partition("::")[0] in ("aten", "transformers")
    }
    assert sorted(table - drawn - cannot) == []
    assert sorted(cannot & drawn) == []
    assert len(table & drawn) >= 480


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", DECKS)
def test_each_card_makes_a_net_of_finite_values(kind: str) -> None:
    size = DECKS[kind]
    wrong = []
    for card in range(size):
        net = WildNet((Step(kind, card + size * (card % 5)),), card).double().eval()
        with torch.no_grad():
            wrong += [net] if not net(example()).isfinite().all() else []
    assert wrong == []
