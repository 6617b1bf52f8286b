"""Helpers for the tests of pages: a parser that checks whether HTML is well-formed, and a sample report."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

VOID = frozenset(("meta", "br", "hr", "img", "link", "input"))
SHAPES = frozenset(("path", "rect", "circle", "polyline"))


class Reader(HTMLParser):
    """HTML parser that collects tags with their attributes in order, the text, and errors of nesting."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.wrong: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        self.wrong += [f"<{tag}> is never closed" for tag in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID | SHAPES:
            self.wrong.append(f"<{tag}/> closes itself")

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open[-1] != tag:
            self.wrong.append(f"</{tag}> at {self.getpos()}, open is {self.open[-1:]}")
        else:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).replace("\u200b", "").split())

    def with_class(self, name: str) -> list[dict[str, str]]:
        return [given for _, given in self.tags if name in given.get("class", "").split()]

    def widths(self, name: str) -> list[float]:
        """The widths of all elements of a class that have one, as percentages."""
        styles = [each["style"] for each in self.with_class(name) if "style" in each]
        return [float(style.removeprefix("width:").removesuffix("%")) for style in styles]


def read(page: str) -> Reader:
    """Parse a page, and check that it is well-formed and loads nothing from elsewhere."""
    reader = Reader(page)
    assert reader.wrong == []
    assert not {"link", "img", "iframe", "object", "embed", "base"} & {tag for tag, _ in reader.tags}
    assert not {"src", "srcset", "action", "data"} & {name for _, given in reader.tags for name in given}
    assert all(given["href"].startswith("#") for _, given in reader.tags if "href" in given)
    styles = page.partition("<style>")[2].partition("</style>")[0]
    assert not [word for word in ("@import", "url(", "@font-face", "://") if word in styles]
    assert "default-src 'none'" in page
    assert len([tag for tag, _ in reader.tags if tag == "title"]) >= 1
    return reader


def timing(ms: float) -> dict[str, Any]:
    return {"median": ms, "low": ms, "high": ms, "runs": 9}


def axis(
    name: str, role: str, layer: str, before: int | None, after: int | None, **more: Any
) -> dict[str, Any]:
    return {
        "name": name,
        "role": role,
        "layer": layer,
        "before": before,
        "after": after,
        "exact": True,
        "meaning": "zeroed",
    } | more


def layer(name: str, before: int, after: int) -> dict[str, Any]:
    return {"name": name, "removed": after == 0, "parameters": {"before": before, "after": after}}


NASTY = 'a/<b>&"model'

REPORT: dict[str, Any] = {
    "model": NASTY,
    "pipeline": "slim(latency=0.5)",
    "tokens": None,
    "free_outputs": [],
    "steps": [
        {
            "text": "slim(latency=0.5)",
            "details": {
                "budget": "latency",
                "target": 0.5,
                "share": 0.48,
                "factor": 1.0,
                "error_is": "squared difference of the outputs, relative to their squares",
                "trials": [
                    {"predicted": 0.5, "measured": 0.56, "error": 0.2},
                    {"predicted": 0.45, "measured": 0.48, "error": 0.25},
                ],
                "frontier": [{"share": 0.3, "error": 0.6}, {"share": 0.6, "error": 0.1}, {"share": 1.0, "error": 0.0}],
                "sites": [{"site": "layer.0.heads", "axes": {"layer.0.heads": [3, 4]}, "cost": 1.0, "error": 0.25}],
                "refits": [],
            },
        }
    ],
    "example": {"batch": 3},
    "before": {"parameters": 1000, "bytes": 4000, "file_bytes": 5000, "flops": 800},
    "after": {"parameters": 600, "bytes": 2400, "file_bytes": 3000, "flops": 400},
    "session": {"threads": 1, "optimization": "all", "runtime": "onnxruntime"},
    "latency": [
        {"point": {"batch": 1}, "before_ms": timing(4.0), "after_ms": timing(3.0), "speedup": 4 / 3, "flops": {"ratio": 2.0}},
        {"point": {"batch": 8}, "before_ms": timing(20.0), "after_ms": timing(8.0), "speedup": 2.5, "flops": {"ratio": 2.0}},
    ],
    "verdict": {"relative": 5e-7, "bar": 1e-5, "exact": ["layer.0.heads"], "inexact": [], "change": 0.5, "refitted": []},
    "onnx": {"relative": 1e-6, "points": [{"batch": 3}], "opset": 18},
    "seconds": {"capture_to_onnx": 2.0, "plain_export": None, "ratio": None},
    "refused": [
        {
            "why": "<i>an output</i> of the graph",
            "count": 5,
            "what": [f"dim 0 of head.{i}.weight" for i in range(5)],
            "operator": "output",
            "node": "output",
            "source": "somebody/model.py:12 in forward: return x < y & z",
        },
        {"why": "an input of the graph", "count": 1, "what": ["dim 1 of stem.weight"], "operator": "", "node": "x", "source": ""},
    ],
    "layers": [layer("layer.0", 400, 300), layer("layer.1", 200, 0), layer("", 400, 300)],
    "axes": [
        axis("layer.0.heads", "heads", "layer.0", 4, 3, kept=[0, 2, 3]),
        axis("layer.0.ffn", "ffn", "layer.0", 64, 48),
        axis("layer.1.ffn", "ffn", "layer.1", 32, 0),
        axis("hidden", "hidden", "", 16, None),
    ],
    "notes": ["weights are random"],
    "machine": {"python": "3.11", "processor": "a processor", "packages": {"torch": "2.13"}},
}  # fmt: skip
