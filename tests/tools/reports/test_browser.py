"""Pages in a real browser, where one is installed: no part is wider than a phone or a desktop, nothing is fetched, no error occurs."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fxprune import analyze, capture
from fxprune.tools.reports.explain_html import render_explain
from fxprune.tools.reports.report_html import render_report
from support.drawn import REPORT
from zoo.nets import build

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--window-size=1400,900", "--dump-dom",
)  # fmt: skip
WIDTHS = (360, 390, 768, 1280)
ASK = """<script>
const frames = [...document.querySelectorAll("iframe")];
const ask = (f) => {
  const inside = f.contentWindow, root = inside.document.documentElement;
  const fetched = inside.performance.getEntriesByType("resource").length;
  const letter = inside.document.querySelector(".letter");
  if (letter) letter.click();
  return [f.title, root.scrollWidth, f.clientWidth, fetched, inside.document.querySelectorAll(".on").length].join(" ");
};
addEventListener("load", () => { document.body.innerHTML = "<pre>" + frames.map(ask).join("\\n") + "</pre>"; });
</script>"""

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")


def pages() -> dict[str, str]:
    found = {"report": render_report(REPORT)}
    for name in ("decoder", "unet"):
        model, inputs = build(name)
        found[name] = render_explain(name, analyze(capture(model, kwargs=inputs)))
    return found


@needs_browser
def test_pages_fit_phones_and_desks_and_fetch_nothing(tmp_path: Path) -> None:
    framed = "".join(
        f'<iframe title="{name}" style="border:0;width:{width}px;height:600px" srcdoc="{html.escape(text)}"></iframe>'
        for name, text in pages().items()
        for width in WIDTHS
    )
    (tmp_path / "frames.html").write_text(f"<!doctype html><body>{framed}{ASK}</body>", encoding="utf-8")
    dom = browse(tmp_path)
    rows = [line.split() for line in dom.partition("<pre>")[2].partition("</pre>")[0].splitlines()]
    assert len(rows) == 3 * len(WIDTHS)
    assert [row for row in rows if int(row[1]) > int(row[2]) or row[3] != "0"] == []
    assert {row[0] for row in rows if int(row[4]) > 1} == {
        "decoder",
        "unet",
    }  # a click shows a group's members


def browse(folder: Path) -> str:
    """What the browser made of the frames."""
    place = f"--user-data-dir={folder / 'profile'}"
    command = [str(CHROMIUM), *FLAGS, place, (folder / "frames.html").as_uri()]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr[-500:]
    assert not re.findall(r"CONSOLE.*(?:Error|Refused)", ran.stderr)
    return ran.stdout
