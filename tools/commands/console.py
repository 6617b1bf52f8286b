"""Console of the commands: results on standard output, progress on standard error."""

import errno
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Self

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.status import Status
from rich.table import Table
from rich.text import Text

from fxprune.cost.run_time import duration_text
from fxprune.pipeline import Progress as PipelineProgress
from fxprune.tools.reports.report import Grid


class _Output(Console):
    """Console whose closed pipe is an error like others; rich itself exits."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def output() -> Console:
    """Return the console for results; 140 columns wide where it is no terminal, so that a redirected table keeps its columns."""
    return _Output(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 140)


def progress(silent: bool = False) -> Console:
    """Return the console for progress, notes and errors, or one that prints nothing.

    It keeps the stream itself, so that silencing the libraries for a while does not silence it.
    """
    return Console(file=sys.stderr, highlight=False, soft_wrap=True, quiet=silent)


def print_json(data: Any) -> None:
    """Print data for machines, and nothing else, on standard output."""
    sys.stdout.write(json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def print_tables(grids: Iterable[Grid]) -> None:
    """Print tables, each under its title."""
    console = output()
    for grid in grids:
        console.print(Text(grid.title, style="bold"))
        console.print(_drawn(grid))


def _drawn(grid: Grid) -> Table:
    table = Table(box=SIMPLE, pad_edge=False)
    for place, column in enumerate(grid.columns):
        number = grid.is_number(place)
        table.add_column(column, justify="right" if number else "left", overflow="fold", no_wrap=number)
    for row in grid.rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


class Stages:
    """Display of the current stage, and record of the seconds that each stage took; `silent`: of another process than the first."""

    def __init__(self, silent: bool = False) -> None:
        self.seconds: dict[str, float] = {}
        self.silent, self.console = silent, progress(silent)
        self._status: Status | None = None
        self._bar: Steps | None = None
        self._began = time.perf_counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Run one stage under its name, with a spinner in a terminal."""
        start = time.perf_counter()
        with self.console.status(name) as self._status:
            try:
                yield
            finally:
                self._close()
        self.seconds[name] = time.perf_counter() - start
        if self.console.is_terminal and self.seconds[name] > 1:
            self.console.print(f"[dim]{name}: {self.seconds[name]:.1f} s[/dim]")

    def show(self, text: str) -> None:
        """Update the text of the current stage."""
        if self._status is not None:
            self._status.update(text)

    def observe(self, progress: PipelineProgress) -> None:
        """Show the progress of a pipeline: a bar where steps are counted, else the text of the current stage."""
        if self.silent:
            return
        if not progress.total:
            self._close()
            self._began = time.perf_counter()
            self.show(": ".join(filter(None, (progress.stage, progress.text))))
            return
        if self._bar is None or self._bar.name != progress.stage:
            self._close()
            if self._status is not None:
                self._status.stop()  # one live display at a time
            self._bar = Steps(progress.stage).__enter__()
            self._bar.start = self._began  # the first step began before it was reported
        self._bar.take(progress)

    def _close(self) -> None:
        """Close the bar, and go back to the spinner."""
        if self._bar is not None:
            self._bar.__exit__()
            self._bar = None
            if self._status is not None:
                self._status.start()

    def note(self, text: str) -> None:
        """Print a note that the user should read before trusting the result."""
        self.console.print(f"note: {text}", markup=False)


class Steps:
    """Progress bar with the number of evaluations done and the time left; without a terminal, a line about every SECONDS."""

    SECONDS = 5.0  # between lines

    def __init__(self, name: str, total: int | None = None, silent: bool = False) -> None:
        self.name, self.total, self.done = name, total, 0
        self.first: int | None = None  # steps done before this run
        self.console = progress(silent)
        self.start = self.said = time.perf_counter()
        bar = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"))
        columns = (*bar, TextColumn("{task.fields[left]}"))
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task = self.bar.add_task(name, total=total, count="", left="")

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def at(self, done: int, total: int, left: float, text: str = "", percent: bool = False) -> None:
        """Show that so many are done, and the estimated seconds that are left (NaN: not known), behind `text`."""
        text = text.removesuffix(", ") if math.isnan(left) else f"{text}{duration_text(left)} left"
        count = f"{done}%" if percent else f"{done} of {total}"
        self.bar.update(self.task, completed=done, total=total, count=count, left=text)
        now = time.perf_counter()
        if not self.console.is_terminal and (done == total or now > self.said + self.SECONDS):
            self.said = now
            self.console.print(f"{self.name}: {count}, {text}", markup=False)

    def take(self, progress: PipelineProgress) -> None:
        """Show the progress of a pass."""
        text = f"{progress.text}, " if progress.text else ""
        if math.isnan(progress.seconds) and not progress.percent:
            self.reached(progress.done, progress.total, text)
        else:
            self.at(progress.done, progress.total, progress.seconds, text, progress.percent)

    def one(self, _seconds: float) -> None:
        """Count one more step as done."""
        total = self.total or self.done + 1
        self.reached(self.done + 1, total)

    def reached(self, done: int, total: int, text: str = "") -> None:
        """Show that so many of the total are done; the time left is estimated from those done in this run."""
        if self.first is None:
            self.first = done - 1
        self.done = done
        here = time.perf_counter() - self.start
        self.at(done, total, (total - done) * here / (done - self.first), text)
