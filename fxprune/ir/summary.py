"""Summaries: a small table that says what an object holds, for terminals, notebooks and rich."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

#: rows that are shown; of the others only their number
LIMIT = 40


@dataclass(frozen=True)
class Summary:
    """A table of text cells under a title, with notes below it."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()

    def text(self) -> str:
        """Return the summary as aligned columns of plain text."""
        table = [self.columns, *self.rows[:LIMIT]] if self.rows else []
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]
        return "\n".join([self.title, *lines, *self._lines()])

    def html(self) -> str:
        """Return the summary as an HTML table that needs no style sheet."""
        head = _html_row("th", self.columns) if self.rows else ""
        body = "".join(_html_row("td", row) for row in self.rows[:LIMIT])
        notes = "".join(f"<div>{escape(line)}</div>" for line in self._lines())
        caption = f'<caption style="text-align:left">{escape(self.title)}</caption>'
        return f"<div><table>{caption}<thead>{head}</thead><tbody>{body}</tbody></table>{notes}</div>"

    def rich(self) -> Any:
        """Return the summary as a `rich.table.Table`; nothing is printed."""
        from rich.table import Table
        from rich.text import Text

        notes = Text("\n".join(self._lines()))
        table = Table(title=Text(self.title), caption=notes, title_justify="left", caption_justify="left")
        for column in self.columns:
            table.add_column(Text(column))
        for row in self.rows[:LIMIT]:
            table.add_row(*map(Text, row))  # a Text, for rich would read `[0]` in a plain string as markup
        return table

    def _lines(self) -> Iterator[str]:
        if len(self.rows) > LIMIT:
            yield f"… and {len(self.rows) - LIMIT} more"
        yield from self.notes


def _html_row(tag: str, cells: Sequence[str]) -> str:
    inner = "".join(f'<{tag} style="text-align:left">{escape(cell)}</{tag}>' for cell in cells)
    return f"<tr>{inner}</tr>"


class HasSummary:
    """Mixin of an object that shows itself by its `summary()`: printed, in a notebook, and by rich."""

    def summary(self) -> Summary:
        """Return what the object holds, as a table."""
        raise NotImplementedError

    def __str__(self) -> str:
        return self.summary().text()

    def __repr__(self) -> str:
        return f"<{self.summary().title}>"

    def _repr_html_(self) -> str:
        return self.summary().html()

    def __rich__(self) -> Any:
        return self.summary().rich()


def quantity(count: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun: `1 axis`, `2 axes`."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"
