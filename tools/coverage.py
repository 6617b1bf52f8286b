"""`python -m fxprune.tools.coverage`: check every architecture of the zoo and write docs/coverage.md.

Each architecture runs in a process of its own with a time limit. The zoo lives in `tests/zoo`, outside the wheel: this needs the source
checkout and `transformers`.
"""

import argparse
import importlib
import logging
import multiprocessing
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

from fxprune.errors import UsageError
from fxprune.tools.console import progress

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs" / "coverage.md"
SECONDS = 60
WORKERS = 2

Record = Mapping[str, Any]

COLUMNS = (
    "architecture",
    "status",
    "exact",
    "inexact",
    "difference",
    "change",
    "refusals",
    "operators without a rule",
    "second shape",
)


@dataclass(frozen=True)
class Job:
    """One architecture at work; `fixed` where symbolic sizes took too long and a second try does without."""

    name: str
    fixed: bool
    process: ForkProcess
    answer: Connection
    until: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the zoo and write the page; 1 where an answer is wrong or something crashed."""
    options = _options(arguments)
    names = options.names or list(_zoo("hf").ROWS)
    records = _collect(names, options)
    if len(records) < len(names):
        progress().print(
            f"stopped after {len(records)} of {len(names)}; the page speaks of these", markup=False
        )
    order = {name: place for place, name in enumerate(names)}
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_text(page(sorted(records, key=lambda record: order[record["name"]])))
    progress().print(f"wrote {options.output}", markup=False)
    return int(any(record["status"] in ("wrong", "crash") for record in records))


def _collect(names: Sequence[str], options: argparse.Namespace) -> list[Record]:
    """The records as they come; Ctrl-C keeps those that are there."""
    console, records = progress(), list[Record]()
    try:
        for number, record in enumerate(run(names, options.seconds, options.workers), 1):
            records.append(record)
            line = f"{number}/{len(names)} {record['name']}: {record['status']} {record['reason'][:120]}"
            console.print(line, markup=False)
    except KeyboardInterrupt:
        console.print("interrupted", markup=False)
    return records


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m fxprune.tools.coverage", description=__doc__)
    parser.add_argument("names", nargs="*", help="architectures to check (default: all of the zoo)")
    parser.add_argument("-o", "--output", type=Path, default=TARGET, help="the page to write")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time limit for one architecture")
    parser.add_argument("--workers", type=int, default=WORKERS, help="how many run at once")
    return parser.parse_args(arguments)


def _zoo(module: str) -> Any:
    """A module of tests/zoo; UsageError without the source checkout."""
    if not (ROOT / "tests" / "zoo").is_dir():
        raise UsageError(
            f"no zoo at {ROOT / 'tests' / 'zoo'}: it is no part of the wheel, run this from a source checkout"
        )
    if str(ROOT / "tests") not in sys.path:
        sys.path.insert(0, str(ROOT / "tests"))
    return importlib.import_module(f"zoo.{module}")


def run(names: Iterable[str], seconds: float = SECONDS, workers: int = WORKERS) -> Iterator[Record]:
    """Check architectures, some at once, each forked from this process, which has the libraries loaded; records as they come."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    _zoo("check"), _zoo("tiny")
    waiting, running = [(name, False) for name in names], list[Job]()
    while waiting or running:
        while waiting and len(running) < workers:
            running.append(_start(*waiting.pop(0), seconds))
        time.sleep(0.05)
        for job in list(running):
            record = _finished(job, seconds)
            if record is None:
                continue
            running.remove(job)
            if record["status"] == "timeout" and not job.fixed:
                waiting.insert(0, (job.name, True))
            else:
                yield record


def _start(name: str, fixed: bool, seconds: float) -> Job:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(name, fixed, theirs), daemon=True)
    process.start()
    theirs.close()
    return Job(name, fixed, process, ours, time.monotonic() + seconds)


def _work(name: str, fixed: bool, answer: Connection) -> None:
    """What a process does: one architecture, in silence, and its outcome as plain data."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115
    importlib.import_module("torch").set_num_threads(1)
    row = _zoo("hf").ROWS[name]
    start = time.perf_counter()
    outcome = _zoo("check").run(name, row.build, row.dynamic and not fixed)
    answer.send({**asdict(outcome), "total": time.perf_counter() - start})


def _finished(job: Job, seconds: float) -> Record | None:
    """The record of a job that has answered, died or run out of time; None while it is at work."""
    if job.answer.poll():
        try:
            record: Record = job.answer.recv()
        except EOFError:
            job.process.join()
            return _lost(job.name, "crash", f"its process ended with code {job.process.exitcode}")
        job.process.join()
        return record
    if time.monotonic() < job.until:
        return None
    job.process.kill()
    job.process.join()
    return _lost(job.name, "timeout", f"not done within {seconds:.0f} s")


def _lost(name: str, status: str, reason: str) -> Record:
    return asdict(_zoo("check").Outcome(name, status, reason))


PREAMBLE = """\
Generated by `python -m fxprune.tools.coverage`; don't edit. Each architecture is built from a tiny configuration of
`transformers` ({transformers}, torch {torch}) with random weights, biases, norms and statistics. Every exact axis is
halved, then every one is cut to a single index; each time the result is compared with the original whose removed units
are zeroed. *difference* is the largest relative difference of both runs (float32, bar 1e-5; where float32 rounds more,
float64 must agree to 1e-10), *change* how much pruning moved the outputs. *second shape* says whether batch and length
were dynamic and checked at another size too."""


def page(records: Sequence[Record]) -> str:
    """The Markdown page of all records."""
    preamble = PREAMBLE.format(transformers=_version("transformers"), torch=_version("torch"))
    parts = ["# Coverage", preamble, _summary(records), "\n".join(_table(records))]
    parts += _section("Captured, but not right", [r for r in records if r["status"] in ("wrong", "crash")])
    parts += _section(
        "Right in float64: float32 rounds", [r for r in records if r["status"] == "ok" and r["reason"]]
    )
    parts += _section("Not captured: torch's reason", [r for r in records if r["status"] == "capture-failed"])
    parts += _section("Not done in time", [r for r in records if r["status"] == "timeout"])
    return "\n\n".join(parts) + "\n"


def _version(library: str) -> str:
    return str(importlib.import_module(library).__version__)


def _summary(records: Sequence[Record]) -> str:
    counts = Counter(record["status"] for record in records)
    captured = [record for record in records if record["status"] in ("ok", "wrong", "crash")]
    axes = sum(record["exact"] for record in captured), sum(record["inexact"] for record in captured)
    said = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    return (
        f"**{counts['ok']} of {len(captured)} captured architectures are right** ({len(records)} in all: {said}); "
        f"{axes[0]} exact axes, {axes[1]} inexact."
    )


def _table(records: Sequence[Record]) -> Iterator[str]:
    yield f"| {' | '.join(COLUMNS)} |"
    yield f"|{'---|' * len(COLUMNS)}"
    for record in records:
        yield f"| {' | '.join(_cells(record))} |"


def _cells(record: Record) -> tuple[str, ...]:
    name, status = str(record["name"]), str(record["status"])
    if status not in ("ok", "wrong", "crash"):
        return (name, status, *("" for _ in COLUMNS[2:]))
    unknown = ", ".join(f"`{operator}`" for operator in record["unknown"])
    counts = (
        str(record["exact"]),
        str(record["inexact"]),
        f"{record['relative']:.1e}",
        f"{record['change']:.1e}",
    )
    return (name, status, *counts, str(record["refusals"]), unknown, _second(str(record["dynamic"])))


def _second(said: str) -> str:
    if said == "static":
        return "fixed sizes"
    return "the original refuses it" if "refuses" in said else "yes"


def _section(title: str, records: Sequence[Record]) -> list[str]:
    if not records:
        return []
    return [f"## {title}", "\n".join(f"- {record['name']}: {_line(record['reason'])}" for record in records)]


def _line(text: str) -> str:
    return " ".join(text.replace(str(ROOT), "").replace("|", "\\|").split())[:400]


if __name__ == "__main__":
    sys.exit(main())
