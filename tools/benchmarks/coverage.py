"""`python -m fxprune.tools.benchmarks.coverage`: check every architecture of a zoo and write docs/results/coverage.md or packages.md.

Each architecture runs in a process of its own, in stages with a time limit each: the pruned against the zeroed program, the axes with
constraints in another order, and ONNX Runtime. The pages' records, with the commit of each row, are docs/results/coverage.jsonl and
packages.jsonl: `--records FILE --only NAME …` renews single rows. The zoos are in `tests/zoo`, outside the wheel: this requires the
source checkout, `transformers`, and for `--zoo packages` the packages of tests/zoo/packages.txt.
"""

import argparse
import datetime as dt
import importlib
import json
import logging
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fxprune.errors import UsageError
from fxprune.tools.benchmarks.coverage_page import Record, is_right, render_coverage
from fxprune.tools.benchmarks.packages_page import render_packages
from fxprune.tools.commands.console import progress

_ROOT = Path(__file__).resolve().parents[2]
_RESULTS = _ROOT / "docs" / "results"
_SECONDS = 60
ONNX_SECONDS = 120
WORKERS = 2

HF = "hf"
#: zoo (a module of tests/zoo with ROWS): its page, and the function that renders it
_ZOOS: Mapping[str, tuple[Path, Callable[[Sequence[Record]], str]]] = MappingProxyType(
    {HF: (_RESULTS / "coverage.md", render_coverage), "packages": (_RESULTS / "packages.md", render_packages)}
)


@dataclass(frozen=True)
class Limits:
    """Time limits in seconds, of the check and of each later stage; `onnx`: whether the stage of ONNX Runtime runs."""

    check: float = _SECONDS
    later: float = ONNX_SECONDS
    onnx: bool = True


@dataclass(frozen=True)
class _Job:
    """A running check of one architecture, with its latest record; `fixed` in a second try, made where symbolic sizes took too long."""

    zoo: str
    name: str
    fixed: bool
    process: ForkProcess
    answer: Connection
    until: float
    record: Record | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the zoo and write the page; return 0 if every record is right, else 1."""
    options = _options(arguments)
    names = options.names or list(zoo_module(options.zoo).ROWS)
    target, render = _ZOOS[options.zoo]
    target = options.output or target
    records = _collect(names, options)
    if len(records) < len(names):
        progress().print(f"the page speaks of {len(records)} of {len(names)}", markup=False)
    order = {name: place for place, name in enumerate(names)}
    records.sort(key=lambda record: order[record["name"]])
    if options.records:
        options.records.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    target.parent.mkdir(exist_ok=True)
    target.write_text(render(records))
    progress().print(f"wrote {target}", markup=False)
    return int(not all(is_right(record) for record in records))


def _collect(names: Sequence[str], options: argparse.Namespace) -> list[Record]:
    """The records, those of an earlier run first, then the others as they finish; after Ctrl-C, those that were finished."""
    console, records, made = progress(), _earlier(options.records, names), _made()
    waiting = options.only or [name for name in names if name not in records]
    limits = Limits(options.seconds, options.onnx_seconds, options.onnx)
    try:
        for count, found in enumerate(check_all(waiting, limits, options.workers, options.zoo), 1):
            record = {**found, "made": made}
            records[record["name"]] = record
            if options.records:
                with options.records.open("a") as file:
                    file.write(f"{json.dumps(record)}\n")
            console.print(f"{count}/{len(waiting)} {_line(record)}", markup=False)
    except KeyboardInterrupt:
        console.print("interrupted", markup=False)
    return [records[name] for name in names if name in records]


def _made() -> str:
    """The day, and the commit where the checkout is one of git."""
    day, git = dt.datetime.now(tz=dt.UTC).date().isoformat(), shutil.which("git")
    if git is None:
        return day
    asked = [git, "-C", str(_ROOT), "rev-parse", "--short", "HEAD"]
    said = subprocess.run(asked, capture_output=True, text=True, check=False)  # noqa: S603
    return f"{day} {said.stdout.strip()}".strip()


def _earlier(path: Path | None, names: Sequence[str]) -> dict[str, Record]:
    """The records of a file by name, the last one of each."""
    if path is None or not path.exists():
        return {}
    found = {record["name"]: record for record in map(json.loads, path.read_text().splitlines())}
    return {name: found[name] for name in names if name in found}


def _line(record: Record) -> str:
    said = (f"{record['name']}: {record['status']}", record["reason"], record["order"], record["onnx"])
    return " | ".join([part[:120] for part in (*said, record["onnx_reason"]) if part])


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m fxprune.tools.benchmarks.coverage", description=__doc__)
    add = parser.add_argument
    add("names", nargs="*", help="architectures to check (default: all of the zoo)")
    add(
        "--zoo",
        choices=list(_ZOOS),
        default=HF,
        help="transformers' architectures, or models of other packages",
    )
    add("-o", "--output", type=Path, help="the page to write (default: the zoo's own in docs/results)")
    add("--records", type=Path, help="a file of records, one a line: what is there is not run again")
    add(
        "--only", nargs="+", help="run these again, and no others; the page has all that there are records of"
    )
    add("--seconds", type=float, default=_SECONDS, help="time limit for the check of one architecture")
    add("--onnx", action=argparse.BooleanOptionalAction, default=True, help="whether ONNX Runtime must agree")
    add("--onnx-seconds", type=float, default=ONNX_SECONDS, help="time limit for each stage after the check")
    add("--workers", type=int, default=WORKERS, help="how many run at once")
    return parser.parse_args(arguments)


def zoo_module(module: str) -> Any:
    """A module of tests/zoo; UsageError without the source checkout."""
    if not (_ROOT / "tests" / "zoo").is_dir():
        raise UsageError(
            f"no zoo at {_ROOT / 'tests' / 'zoo'}: it is no part of the wheel, run this from a source checkout"
        )
    if str(_ROOT / "tests") not in sys.path:
        sys.path.insert(0, str(_ROOT / "tests"))
    return importlib.import_module(f"zoo.{module}")


def check_all(
    names: Sequence[str], limits: Limits = Limits(), workers: int = WORKERS, zoo: str = HF
) -> Iterator[Record]:
    """Check architectures, `workers` at once, each in a fork of this process with the libraries loaded; yield records as they finish."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    zoo_module(zoo)
    _load(limits)
    waiting, running = [(name, False) for name in names], list[_Job]()
    while waiting or running:
        while waiting and len(running) < workers:
            running.append(_start(zoo, *waiting.pop(0), limits))
        time.sleep(0.05)
        for job in list(running):
            running.remove(job)
            now = _with_latest_record(job, limits)
            record = _finished(now, limits)
            if record is None:
                running.append(now)
            elif record["status"] == "timeout" and not job.fixed:
                waiting.insert(0, (job.name, True))
            else:
                yield record


def _load(limits: Limits) -> None:
    """Import the libraries before forking, exporters and transformers' patches included: they take seconds."""
    zoo_module("stages"), zoo_module("tiny")
    importlib.import_module("torch").set_num_threads(1)
    model = importlib.import_module("torch").nn.Identity()
    with importlib.import_module("fxprune.frontend.library_patches").transformers_patches(model):
        pass
    if limits.onnx:
        importlib.import_module("onnxruntime")
        importlib.import_module("fxprune.export.onnx").warm_up()


def _start(zoo: str, name: str, fixed: bool, limits: Limits) -> _Job:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_run_child, args=(zoo, name, fixed, limits.onnx, theirs), daemon=True)
    process.start()
    theirs.close()
    return _Job(zoo, name, fixed, process, ours, time.monotonic() + limits.check)


def _run_child(zoo: str, name: str, fixed: bool, onnx: bool, answer: Connection) -> None:
    """Run one architecture in a child process without output, and send its outcome as plain data after every stage."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115
    row = zoo_module(zoo).ROWS[name]
    start = time.perf_counter()
    for outcome in zoo_module("stages").stages(name, row.build, row.dynamic and not fixed, onnx):
        answer.send({**asdict(outcome), "total": round(time.perf_counter() - start, 2)})


def _with_latest_record(job: _Job, limits: Limits) -> _Job:
    """The job with the latest record that it sent; each record restarts the time limit, for the next stage."""
    while job.answer.poll():
        try:
            record = job.answer.recv()
        except EOFError:
            job.process.join()
            return job
        job = replace(job, record=record, until=time.monotonic() + limits.later)
    return job


def _finished(job: _Job, limits: Limits) -> Record | None:
    """The record of a job that has ended, crashed or run out of time; None while it runs."""
    if job.process.exitcode == 0 and job.record is not None:
        return job.record
    if job.process.exitcode is not None:
        return _failure_record(job, "crash", f"its process ended with code {job.process.exitcode}")
    if time.monotonic() < job.until:
        return None
    job.process.kill()
    job.process.join()
    limit = limits.check if job.record is None else limits.later
    return _failure_record(job, "timeout", f"not done within {limit:.0f} s")


def _failure_record(job: _Job, status: str, reason: str) -> Record:
    """The record of a job that crashed or timed out: its latest one, with the reason at the stage that was lost."""
    if job.record is None:
        return asdict(zoo_module("check").Outcome(job.name, status, reason))
    if not job.record["order"]:
        return {**job.record, "order": reason}
    return {**job.record, "onnx": status, "onnx_reason": reason}


if __name__ == "__main__":
    sys.exit(main())
