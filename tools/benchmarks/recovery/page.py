"""Page of `python -m fxprune.tools.benchmarks.recovery`: docs/results/recovery.md, written from its file of figures."""

from typing import Any

from fxprune.tools.reports.report import Grid, markdown_table, where

_TITLES = {
    "photographs": ("EfficientNet-Lite0: top-1 accuracy on 200 labelled photographs, in percent", 100),
    "minilm": ("MiniLM as a sentence encoder: Spearman × 100 on STS-benchmark's test", 100),
    "smollm2": ("SmolLM2-135M: perplexity on WikiText-2's test (lower is better)", 1),
}

_HEAD = """# Recovery without labels

`recover(minutes=10)` trains what a cut left to say what the original says, on unlabelled inputs; the best moment on held-back rows is
kept. What follows comes from `python -m fxprune.tools.benchmarks.recovery`; the figures are kept in `docs/results/recovery.jsonl`.
Nothing was fitted on what is judged. Speedups were measured in turns with the original in the same run; *closed* is the share of the gap
between the cut program and the original that the recovery closed on held-back rows, by its own loss."""


def render_recovery(entries: list[dict[str, Any]]) -> str:
    """The Markdown page."""
    parts = [_HEAD, *(entry["text"] for entry in entries if entry["kind"] == "remark")]
    for name in dict.fromkeys(entry["subject"] for entry in entries if entry["kind"] == "method"):
        parts += _subject(name, [entry for entry in entries if entry["subject"] == name])
    machines = [entry for entry in entries if entry["kind"] == "machine"]
    if machines:
        parts.append(where({"machine": machines[-1]}))
    return "\n\n".join(parts) + "\n"


def _subject(name: str, entries: list[dict[str, Any]]) -> list[str]:
    title, scale = _TITLES[name]
    dense = [entry for entry in entries if entry["kind"] == "dense"][-1]
    columns = (
        "asked",
        "method",
        "speedup",
        "fewer FLOPs",
        "metric",
        "against the original",
        "closed",
        "minutes",
        "rate",
    )
    lines = tuple(_line(row, dense["metric"], scale) for row in entries if row["kind"] == "method")
    table = markdown_table(Grid(name, columns, lines, numbers=7))
    return [f"## {title}", f"The original: {dense['metric'] * scale:.2f}.", table]


def _line(row: dict[str, Any], dense: float, scale: int) -> tuple[str, ...]:
    gap = f"{1 - row['after'] / row['before']:.0%}" if row.get("before") else ""
    return (
        f"{row['speed']:g}×",
        row["method"],
        f"{row['speedup']:.2f}×",
        f"{row['flop_ratio']:.2f}×",
        f"{row['metric'] * scale:.2f}",
        f"{(row['metric'] - dense) * scale:+.2f}",
        gap,
        f"{row['seconds'] / 60:.0f}" if row["seconds"] else "",
        f"{row['rate']:g}" if row.get("rate") else "",
    )
