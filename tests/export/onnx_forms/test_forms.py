"""ONNX forms: nets of the operators that a row of `REWRITES` is for, in files that ONNX Runtime runs as torch does."""

from pathlib import Path

import pytest

from fxprune import capture, export_onnx
from fxprune.export.onnx_rewrites import REWRITES
from support.onnx_cases import CASES
from support.texts import Net


@pytest.mark.parametrize("name", CASES)
def test_the_file_computes_what_torch_does(name: str, tmp_path: Path) -> None:
    function, inputs, rows = CASES[name]
    assert rows <= REWRITES.keys()
    program = capture(Net(lambda _, *given: function(*given)), inputs)
    assert export_onnx(program, tmp_path / "model.onnx").relative <= 1e-5
