"""The Python blocks of the README and of docs/ run as they stand, and print what their comments say."""

import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ELSEWHERE = {
    "guide/olive.md": "tests/support/olive_workflow.py",
    "guide/onnxruntime.md": "tests/integrations/test_optimum.py",
}
"""Pages whose blocks need files or packages that are not here, and what runs them."""

PAGES = (
    ROOT / "README.md",
    *sorted(set((ROOT / "docs").rglob("*.md")) - {ROOT / "docs" / name for name in ELSEWHERE}),
)


def blocks(page: Path) -> list[tuple[str, str]]:
    """Each Python block under the name of its page and the title of its section."""
    text = page.read_text(encoding="utf-8")
    sections = [section.partition("\n") for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]]
    return [
        (f"{page.stem}: {title}", code.partition("```")[0])
        for title, _, body in sections
        for code in body.split("```python\n")[1:]
    ]


TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
BLOCKS = [block for page in PAGES for block in blocks(page)]


def test_every_python_block_is_found() -> None:
    assert len(BLOCKS) == TEXT.count("```python\n")
    assert {
        "README: One call",
        "first-steps: In Python",
        "per-head: In Python",
        "operators: Teach it an operator",
    } <= {title for title, _ in BLOCKS}


def test_the_readme_fits_on_a_few_screens() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 160


@pytest.mark.parametrize(("title", "code"), BLOCKS, ids=[title for title, _ in BLOCKS])
def test_a_block_prints_what_its_comments_say(title: str, code: str, tmp_path: Path) -> None:
    if "transformers" in code:
        pytest.importorskip("transformers")
    if "pt2e" in code:
        pytest.importorskip("torchao", reason="torchao is not installed (extra `quantize`)")
    if "import openvino" in code:
        pytest.importorskip("openvino", reason="OpenVINO is not installed")
    if "fxprune.training.fine_tune" in code or "fxprune.training.loop" in code:
        pytest.importorskip("accelerate")
    file = tmp_path / "block.py"
    file.write_text(code, encoding="utf-8")
    ran = subprocess.run([sys.executable, file], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, f"{title}: {ran.stderr}"
    printed = ran.stdout.splitlines()
    promised = re.findall(r"^print\(.*\)  # (.*)$", code, re.MULTILINE)
    assert len(printed) >= len(promised)
    for line, promise in zip(printed[len(printed) - len(promised) :], promised, strict=True):
        assert line == promise or _same_magnitude(line, promise)


def _same_magnitude(line: str, promise: str) -> bool:
    """A measured difference: what is said is rounded, and machines differ a little."""
    return re.fullmatch(r"\d+e-\d+", promise) is not None and float(line) <= 10 * float(promise)


def test_names_in_the_text_exist() -> None:
    pytest.importorskip("transformers")
    shown = re.sub(r"<!--.*?-->", "", TEXT, flags=re.DOTALL)
    names = set(re.findall(r"(?<![\w/.])fxprune(?:\.\w+)+", shown)) - {"fxprune.json"}
    assert {"fxprune.export_onnx", "fxprune.rewrite.unfuse.unfuse"} <= names
    assert [name for name in sorted(names) if not _exists(name)] == []


def _exists(name: str) -> bool:
    try:
        pkgutil.resolve_name(name)
    except (AttributeError, ImportError):
        return False
    return True


def test_the_index_lists_every_page() -> None:
    docs = ROOT / "docs"
    listed = set(
        re.findall(r"\]\(((?:guide|results)/[\w-]+\.md)\)", (docs / "README.md").read_text(encoding="utf-8"))
    )
    assert listed == {str(page.relative_to(docs)) for page in docs.rglob("*.md")} - {"README.md"}


def test_links_between_pages_lead_somewhere() -> None:
    pages = (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))
    links = [
        (page, link)
        for page in pages
        for link in re.findall(r"\]\((?!http|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
    ]
    assert [f"{page.name}: {link}" for page, link in links if not (page.parent / link).exists()] == []


def test_the_map_for_contributors_lists_every_folder() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `((?:fxprune/)?\w+/)`", text, re.MULTILINE))
    folders = {f"fxprune/{path.parent.name}/" for path in (ROOT / "fxprune").glob("*/__init__.py")}
    assert named == folders - {"fxprune/passes/", "fxprune/tools/"} | {"passes/", "tools/", "tests/", "docs/"}
