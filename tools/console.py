"""What the commands share to talk: results on standard output, progress on standard error."""

import json
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

from fxprune.tools.report import Grid


def output() -> Console:
    """The console for results; wide where it is no terminal, so that a redirected table keeps its columns."""
    return Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 140)


def progress() -> Console:
    """The console for progress, notes and errors.

    It holds the stream itself, so that silencing the libraries for a while does not silence it.
    """
    return Console(file=sys.stderr, highlight=False, soft_wrap=True)


def print_json(data: Any) -> None:
    """Print data for machines, and nothing else, on standard output."""
    sys.stdout.write(json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def show(grids: Iterable[Grid]) -> None:
    """Print tables, each under its title."""
    console = output()
    for grid in grids:
        console.print(Text(grid.title, style="bold"))
        console.print(_drawn(grid))


def _drawn(grid: Grid) -> Table:
    table = Table(box=SIMPLE, pad_edge=False)
    for place, column in enumerate(grid.columns):
        number = place >= len(grid.columns) - grid.numbers
        table.add_column(column, justify="right" if number else "left", overflow="fold", no_wrap=number)
    for row in grid.rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


class Stages:
    """Shows what is going on, and remembers how long each stage took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.console = progress()
        self._status: Status | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Run one stage under its name; a terminal shows it turning."""
        start = time.perf_counter()
        with self.console.status(name) as self._status:
            yield
        self.seconds[name] = time.perf_counter() - start
        if self.console.is_terminal and self.seconds[name] > 1:
            self.console.print(f"[dim]{name}: {self.seconds[name]:.1f} s[/dim]")

    def show(self, text: str) -> None:
        """Say more closely what the stage is at."""
        if self._status is not None:
            self._status.update(text)

    def note(self, text: str) -> None:
        """Say something that the user should know before trusting the result."""
        self.console.print(f"note: {text}", markup=False)
