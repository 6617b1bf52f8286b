"""The table of docs/results/quantization.md, drawn from the figures that `fxprune.tools.benchmarks.quantization` measured."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fxprune.tools.reports import report
from fxprune.tools.reports.report import Grid


def render_quantization(text: str, entries: Sequence[Mapping[str, Any]], note: str) -> str:
    """The page with its table drawn anew, between `<!-- table -->` and `<!-- /table -->`."""
    made = "\n\n".join([report.markdown_table(_grid(entries)), *([note] if note else []), _where(entries)])
    return re.sub(
        r"(<!-- table -->\n).*?(<!-- /table -->)",
        lambda found: f"{found[1]}{made}\n{found[2]}",
        text,
        flags=re.DOTALL,
    )


def _grid(entries: Sequence[Mapping[str, Any]]) -> Grid:
    """A row for each form of the model."""
    rows = [entry for entry in entries if entry["kind"] == "row"]
    points = [report.describe_point(each["point"]) for each in rows[0]["latency"]]
    cells = [
        (
            row["name"],
            f"{row['bytes'] / 1e6:.1f} MB",
            *(f"{each['speedup']:.2f}×" for each in row["latency"]),
            f"{row['agreement']['relative']:.2f}" if row["agreement"] else "–",
            f"{row['agreement']['cosine']:.4f}" if row["agreement"] else "–",
            f"{100 * row['metric']:.2f}",
        )
        for row in rows
    ]
    columns = ("form", "file", *points, "largest difference", "cosine", "Spearman × 100")
    return Grid("", columns, tuple(cells), len(columns) - 1)


def _where(entries: Sequence[Mapping[str, Any]]) -> str:
    return report.where({"machine": next(entry for entry in entries if entry["kind"] == "machine")})
