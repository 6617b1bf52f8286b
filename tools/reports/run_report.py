"""Report of a run as a whole: its tables in reading order, its Markdown page, and the rows of its proof."""

from collections.abc import Mapping
from typing import Any

from fxprune.tools.reports.report import (
    Grid,
    describe_point,
    few,
    latency_rows,
    markdown_page,
    markdown_text,
    metric_grids,
    plans,
    quantized,
    refused_rows,
    size_rows,
    where,
)
from fxprune.tools.reports.steps.recovery import recovery_reports


def report_grids(report: Mapping[str, Any]) -> list[Grid]:
    """Return the tables of a report, in reading order."""
    measured = size_rows(report), latency_rows(report), *quantized(report)
    recovered = [each.grid for each in recovery_reports(report["steps"])]
    return [
        *measured,
        *metric_grids(report),
        *plans(report["steps"]),
        *recovered,
        proof_rows(report),
        refused_rows(report),
    ]


def report_markdown(report: Mapping[str, Any]) -> str:
    """Return the report as a Markdown page."""
    head = f"# {markdown_text(report['model'])}: {markdown_text(_what(report))}"
    curves = [each.curve for each in recovery_reports(report["steps"]) if each.curve]
    return markdown_page((head,), [*report_grids(report), *curves], (where(report),))


def _what(report: Mapping[str, Any]) -> str:
    """Return what was done, in words: the pipeline and the tokens."""
    tokens = report["tokens"]
    told = [report["pipeline"], f"{tokens['after']:,} of {tokens['before']:,} tokens" if tokens else ""]
    return ", ".join(part for part in told if part)


def proof_rows(report: Mapping[str, Any]) -> Grid:
    """Return a table of what was proved, and of the time from capture to file."""
    verdict, onnx, seconds = report["verdict"], report["onnx"], report["seconds"]
    over = f"largest relative difference over {len(verdict['exact'])} exact axes"
    change = verdict["change"]
    moved = (
        "" if change is None else f"; pruning itself moved the outputs by {100 * change:.2g} % of their size"
    )
    if verdict.get("inputs", 1) > 1:
        over += f" and {verdict['inputs']} inputs"
    rows = [
        (f"pruned against {against(verdict)}", f"{verdict['relative']:.1e}", f"{over}{moved}"),
        *_never_chosen(verdict),
        *_in_model(verdict),
        *_unmoved(verdict),
        *_inexact(verdict),
        *_refitted(verdict),
        *_tokens(report["tokens"]),
        *_stock(report.get("checkpoint")),
        *map(_freed, report["free_outputs"]),
        *_agreed(onnx),
        *(
            (f"{pattern}, in a faster form", str(count), "places")
            for pattern, count in onnx.get("peepholes", {}).items()
        ),
        *(("size that is fixed in the file", axis, why) for axis, why in onnx.get("fixed", {}).items()),
        *(
            []
            if "failed" in onnx
            else [("capture to ONNX", f"{seconds['capture_to_onnx']:.1f} s", _against_plain(seconds))]
        ),
    ]
    return Grid("Proof", ("claim", "value", "over"), tuple(rows))


def against(verdict: Mapping[str, Any]) -> str:
    """Return what a proof compares with; reports of earlier versions do not say it."""
    return str(verdict.get("against", "zeroed original"))


def _never_chosen(verdict: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    names = verdict.get("chosen", ())
    over = f"removed units can't be chosen, and the others share what was theirs: {few(names)}"
    return [("axes never chosen", str(len(names)), over)] if names else []


def _agreed(onnx: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the row of ONNX Runtime, and that of the runtime that was asked for, where it is another."""
    if "failed" in onnx:
        return [("model.onnx", "none", onnx["failed"])]
    points, other = "; ".join(map(describe_point, onnx["points"])), onnx.get("runtime")
    runs = [{"title": "ONNX Runtime", "relative": onnx["relative"]}, *([other] if other else [])]
    return [(f"{run['title']} against program", f"{run['relative']:.1e}", points) for run in runs]


def _in_model(verdict: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    found = verdict.get("in_model")
    what = "the whole model, run as it is, with slim against zeroed parts in place"
    return [] if found is None else [("in the whole model", f"{found:.1e}", what)]


def _unmoved(verdict: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    names = [name for name, move in verdict.get("moves", {}).items() if move == 0]
    over = f"their removed units move no output on these inputs: {', '.join(names[:3])}{', …' * (len(names) > 3)}"
    return [("axes that show nothing", str(len(names)), over)] if names else []


def _inexact(verdict: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    found = str(len(verdict["inexact"]))
    return [("inexact axes", found, "removed, and no part of the equality claim")] if found != "0" else []


def _refitted(verdict: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    count = len(verdict.get("refitted", ()))
    over = "changed on purpose; the equality is that of the program before"
    return [("re-fitted weights", str(count), over)] if count else []


def _tokens(tokens: Mapping[str, Any] | None) -> list[tuple[str, str, str]]:
    if tokens is None:
        return []
    over = f"{tokens['after']:,} of {tokens['before']:,} rows of {tokens['table']}; what they were: {tokens['file']}"
    return [("kept tokens against all tokens", f"{tokens['relative']:.1e}", over)]


def _stock(told: Mapping[str, Any] | None) -> list[tuple[str, str, str]]:
    if told is None:
        return []
    if told["why"]:
        return [("stock checkpoint", "none", told["why"])]
    settings = ", ".join(f"{name} {before} → {after}" for name, (before, after) in told["settings"].items())
    over = f"{told['folder']}/, read back by {told['class']}.from_pretrained; {settings or 'the config as it was'}"
    return [("stock checkpoint", f"{told['relative']:.1e}", over)]


def _freed(output: Mapping[str, Any]) -> tuple[str, str, str]:
    before, after = ("×".join(map(str, output[when])) for when in ("before", "after"))
    return f"output {output['name']}", after, f"it was allowed to shrink from {before}"


def _against_plain(seconds: Mapping[str, Any]) -> str:
    if seconds["plain_export"] is None:
        return "torch.onnx.export could not export the original as it stands"
    plain, ratio = seconds["plain_export"], seconds["ratio"]
    return f"{ratio:.2f}× a plain torch.onnx.export of the original ({plain:.1f} s)"
