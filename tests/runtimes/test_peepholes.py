"""Forms of ONNX files that a runtime computes faster: the same numbers, and what the runtime fuses or leaves apart."""

from collections import Counter
from pathlib import Path

import onnx
import pytest
import torch
from onnxruntime import InferenceSession, SessionOptions
from torch import Tensor, nn

from fxprune import capture, export_onnx
from fxprune.ir import Program
from fxprune.runtimes import Settings
from fxprune.runtimes.peepholes import rewrite_file
from fxprune.runtimes.registry import settings_identity

PATTERN = "Add before LayerNormalization"


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(8, 16), nn.Linear(16, 8), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x + self.down(torch.relu(self.up(x))))
        return out


def block() -> Program:
    torch.manual_seed(0)
    return capture(nn.Sequential(Block(), Block()).eval(), (torch.randn(2, 5, 8),), dynamic_shapes=True)


def operators(path: Path, folder: Path) -> Counter[str]:
    """The operators that ONNX Runtime runs at its own default level."""
    options = SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(folder / "optimized.onnx"), 3
    InferenceSession(str(path), options)
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


def test_a_sum_before_a_norm_is_fused_with_nothing(tmp_path: Path) -> None:
    made = export_onnx(block(), tmp_path / "model.onnx")
    assert (made.peepholes, made.relative <= 1e-6) == ({PATTERN: 2}, True)
    found = operators(made.path, tmp_path)
    assert (found["SkipLayerNormalization"], found["Sum"], found["LayerNormalization"]) == (0, 2, 2)


@pytest.mark.parametrize(
    "settings",
    [
        Settings(peepholes=False),
        Settings(runtime="openvino"),
        Settings(runtime="onnxruntime:CUDAExecutionProvider"),
    ],
)
def test_other_runtimes_and_whoever_asks_get_the_file_as_torch_writes_it(
    settings: Settings, tmp_path: Path
) -> None:
    made = export_onnx(block(), tmp_path / "model.onnx", settings=settings)
    assert made.peepholes == {}
    assert operators(made.path, tmp_path)["SkipLayerNormalization"] == 2


def test_a_file_of_another_exporter_is_rewritten_in_place(tmp_path: Path) -> None:
    made = export_onnx(block(), tmp_path / "model.onnx", settings=Settings(peepholes=False))
    given = {"input_1": torch.randn(3, 4, 8).numpy()}
    before = InferenceSession(made.path.read_bytes()).run(None, given)[0]
    assert rewrite_file(made.path) == {PATTERN: 2}
    assert rewrite_file(made.path) == {}
    after = InferenceSession(made.path.read_bytes()).run(None, given)[0]
    assert abs(before - after).max() <= 1e-6


def test_times_of_files_in_other_forms_are_other_times() -> None:
    plain, faster = settings_identity(Settings(peepholes=False)), settings_identity(Settings())
    assert faster.replace(", Sum before LayerNormalization", "") == plain != faster
