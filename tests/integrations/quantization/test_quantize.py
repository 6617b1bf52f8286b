"""Quantization after pruning: files are smaller and agree, with the figures; impossible requests are refused in a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from fxprune import Program, capture, parse_pipeline
from fxprune.errors import ExportError, UsageError
from fxprune.export import export_onnx
from fxprune.integrations.quantization.onnxruntime import _chosen, count_onnx_integers
from fxprune.integrations.quantization.quantize import QUANTIZERS, _Sums, quantize
from fxprune.ir.example_inputs import inputs
from support.models import captured


class Tied(nn.Module):
    """The table of tokens is the matrix of the last product, which is a Gemm, for its input has two dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 16)

    def forward(self, ids: Tensor) -> Tensor:
        return nn.functional.linear(self.table(ids), self.table.weight, torch.ones(50))


class Residual(nn.Module):
    """Two convolutions with a sum between, then a product with one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.side = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = (x + self.side(x)).relu()
        x = x.mean((2, 3))
        summed: Tensor = x + self.head(x)
        return summed


def net() -> Program:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(128, 512), nn.GELU(), nn.Linear(512, 128))
    return capture(layers, (torch.randn(4, 128),), dynamic_shapes=({0: Dim.AUTO},))


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> tuple[Program, Path]:
    program = net()
    return program, export_onnx(program, tmp_path_factory.mktemp("wide") / "wide.onnx").path


def kinds(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


def batches(program: Program, count: int = 3) -> list[dict[str, Any]]:
    return [{name: torch.randn_like(value) for name, value in inputs(program).items()} for _ in range(count)]


@pytest.mark.parametrize("how", ["dynamic", "static"])
def test_what_is_quantized_is_a_quarter_and_agrees(
    how: str, wide: tuple[Program, Path], tmp_path: Path
) -> None:
    program, file = wide
    found = quantize(file, tmp_path / "int8.onnx", how, batches(program))
    assert found.before_bytes == file.stat().st_size
    assert found.bytes == (tmp_path / "int8.onnx").stat().st_size
    assert found.bytes < 0.29 * found.before_bytes
    assert set(found.agreement) == set(program.output_names())
    assert 0 < found.worst.relative < 0.05
    assert found.worst.cosine > 0.999
    assert count_onnx_integers(found.path) == 2


def test_int8_of_what_is_pruned_agrees_as_int8_of_the_original_does(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    whole = captured("bert", dynamic=True)
    pruned = parse_pipeline("heads(ratio=0.25), ffn(ratio=0.5), fold").run(whole).program
    one, other = (quantize(each, tmp_path / f"{place}.onnx") for place, each in enumerate((whole, pruned)))
    assert other.bytes < one.bytes
    assert other.worst.relative < 1.5 * one.worst.relative < 0.15
    assert min(one.worst.cosine, other.worst.cosine) > 0.999
    # ONNX Runtime's quantizer takes it for an older operator of the same name, and breaks the file.
    assert "Attention" in kinds(other.path)
    assert "MatMulInteger" in kinds(other.path)


def test_a_table_that_is_tied_to_a_gemm_stays_what_it_is(tmp_path: Path) -> None:
    torch.manual_seed(0)
    program = capture(Tied(), (torch.arange(40),))
    assert "Gemm" in kinds(export_onnx(program, tmp_path / "float.onnx").path)
    for how in ("dynamic", "static"):
        found = quantize(program, tmp_path / f"{how}.onnx", how, [{"ids": torch.arange(40)}])
        assert found.worst.relative < 0.05
        assert found.worst.cosine > 0.999


def test_between_convolutions_all_is_integers_and_elsewhere_sums_are_not(tmp_path: Path) -> None:
    torch.manual_seed(0)
    program = capture(Residual(), (torch.randn(2, 3, 8, 8),))
    file = export_onnx(program, tmp_path / "float.onnx").path
    graph = onnx.load(file).graph
    chosen = set(_chosen(file))
    told = [(node.op_type, node.name in chosen) for node in graph.node]
    assert [pair for pair in told if pair[0] in {"Conv", "Relu", "Add", "Gemm"}] == [
        ("Conv", True),
        ("Relu", True),
        ("Conv", True),
        ("Add", True),
        ("Relu", True),
        ("Gemm", True),
        ("Add", False),
    ]
    found = quantize(file, tmp_path / "int8.onnx", "static", batches(program))
    assert found.worst.relative < 0.05


def test_a_file_that_exists_stays_unless_asked(wide: tuple[Program, Path], tmp_path: Path) -> None:
    target = tmp_path / "int8.onnx"
    target.write_text("mine")
    with pytest.raises(ExportError, match="exists; give another name, or allow overwriting"):
        quantize(wide[1], target)
    assert target.read_text() == "mine"
    quantize(wide[1], target, overwrite=True)
    assert count_onnx_integers(target) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["int8.onnx"]


@pytest.mark.parametrize(
    ("source", "how", "sentence"),
    [
        ("wide.onnx", "half", "no quantizer 'half'; quantizers: dynamic, static, pt2e"),
        ("wide.onnx", "static", "static quantization needs calibration data: give batches of inputs"),
        ("wide.pt2", "dynamic", r"reads \.onnx files, or a program; .*wide\.pt2 is neither"),
        ("none.onnx", "dynamic", "there is no file .*none.onnx to quantize"),
    ],
)
def test_what_can_not_be_is_a_sentence(
    source: str, how: str, sentence: str, wide: tuple[Program, Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=sentence):
        quantize(wide[1].with_name(source), tmp_path / "int8.onnx", how)
    assert list(tmp_path.iterdir()) == []


def test_a_library_that_is_absent_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchao", None)
    with pytest.raises(UsageError, match=r"can't be imported \(.*\); install it: pip install torchao"):
        quantize(net(), tmp_path / "int8.pt2", "pt2e")


def test_a_file_without_matrices_is_refused(tmp_path: Path) -> None:
    program = capture(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), (torch.randn(1, 3, 8, 8),))
    with pytest.raises(ExportError, match=r"found no matrix in model\.onnx that it could quantize"):
        quantize(program, tmp_path / "int8.onnx", "dynamic")
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_finite_any_more_is_refused() -> None:
    sums = _Sums()
    sums.add("y", np.array([1.0, np.inf, 2.0]), np.array([1.0, np.inf, 2.0]))
    assert sums.agreement().relative == 0
    with pytest.raises(ExportError, match="output 'y' is not finite when quantized, and was before"):
        sums.add("y", np.array([1.0]), np.array([np.nan]))


def test_agreement_is_the_largest_difference_and_the_cosine() -> None:
    sums = _Sums()
    sums.add("y", np.array([3.0, 0.0]), np.array([3.0, 1.0]))
    sums.add("y", np.array([4.0]), np.array([4.0]))
    found = sums.agreement()
    assert found.relative == 1 / 4
    assert found.cosine == pytest.approx(25 / np.sqrt(25 * 26))


def test_large_files_keep_their_weights_beside_them(
    wide: tuple[Program, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fxprune.integrations.quantization.onnxruntime.LARGE", 1000)
    for how in ("dynamic", "static"):
        found = quantize(wide[1], tmp_path / f"{how}.onnx", how, batches(wide[0]))
        assert (tmp_path / f"{how}.onnx.data").stat().st_size > 100_000
        assert found.worst.relative < 0.05


def test_torchao_quantizes_a_program(tmp_path: Path) -> None:
    pytest.importorskip("torchao", reason="torchao is not installed (extra `quantize`)")
    program = net()
    found = quantize(program, tmp_path / "int8.pt2", "pt2e", batches(program))
    assert found.bytes < 0.4 * found.before_bytes
    assert QUANTIZERS["pt2e"].integers(found.path) == 2
    assert found.worst.relative < 0.05
