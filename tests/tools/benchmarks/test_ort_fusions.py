"""Fusion counts of ONNX Runtime: attention, GELU and normalisation, counted wherever they are, and the same after pruning."""

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from fxprune import capture, parse_pipeline
from fxprune.errors import UsageError
from fxprune.export import export_onnx
from fxprune.runtimes import Settings
from fxprune.runtimes.onnxruntime import LEVELS
from fxprune.tools.benchmarks.ort_fusions import fusions
from support.models import captured


def test_pruning_keeps_the_fusions_of_a_small_bert(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    dense = captured("bert", dynamic=True)
    slim = parse_pipeline("heads(ratio=0.5), ffn(ratio=0.5)").run(dense).program
    assert slim.parameter_count() < dense.parameter_count()
    counts = [
        fusions(export_onnx(program, tmp_path / f"{place}.onnx").path)
        for place, program in enumerate((dense, slim))
    ]
    assert counts[0] == counts[1]
    assert counts[0] == {"attention": 2, "gelu": 2, "normalisation": 5, "nodes": counts[0]["nodes"]}
    assert counts[0]["nodes"] < len(onnx.load(tmp_path / "0.onnx").graph.node)


def test_a_fusion_is_counted_where_the_level_makes_it(tmp_path: Path) -> None:
    class WrittenOut(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            inner = math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))
            return 0.5 * x * (1 + torch.tanh(inner))

    model = nn.Sequential(nn.Linear(4, 8), WrittenOut(), nn.Linear(8, 4))
    file = export_onnx(capture(model, (torch.randn(3, 4),)), tmp_path / "model.onnx").path
    counts = {level: fusions(file, Settings(optimization=level)) for level in ("disable", "all")}
    assert {level: count["gelu"] for level, count in counts.items()} == {"disable": 0, "all": 1}
    assert counts["disable"]["nodes"] > counts["all"]["nodes"]


def test_operators_in_functions_and_branches_count_and_so_do_those_written_out(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    onnx.save(inside_out(), file)
    for level in LEVELS:
        counts = fusions(file, Settings(optimization=level))
        assert {name: counts[name] for name in ("attention", "gelu", "normalisation")} == {
            "attention": 0,
            "gelu": 3,  # the function's two and the branch's one
            "normalisation": 2,  # ONNX Runtime has no kernel for it on the CPU and writes it out
        }
    assert list(tmp_path.iterdir()) == [file]


def inside_out() -> onnx.ModelProto:
    """Two group normalisations, a function with two GELUs, and one GELU in a branch."""
    size, one = [2, 8, 3], np.ones(8, np.float32)
    value = helper.make_tensor_value_info
    weights = [helper.make_tensor(name, TensorProto.FLOAT, [8], one) for name in ("w", "b")]
    then, other = (
        helper.make_graph([helper.make_node(kind, ["d"], [kind])], kind, [], [value(kind, 1, size)])
        for kind in ("Gelu", "Relu")
    )
    nodes = [
        helper.make_node("GroupNormalization", ["x", "w", "b"], ["a"], num_groups=2),
        helper.make_node("GroupNormalization", ["a", "w", "b"], ["c"], num_groups=2),
        helper.make_node("Twice", ["c"], ["d"], domain="own"),
        helper.make_node("If", ["which"], ["y"], then_branch=then, else_branch=other),
    ]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("own", 1)]
    gelus = [helper.make_node("Gelu", ["x"], ["t"]), helper.make_node("Gelu", ["t"], ["y"])]
    twice = helper.make_function("own", "Twice", ["x"], ["y"], gelus, opsets[:1])
    inputs = [value("x", TensorProto.FLOAT, size), value("which", TensorProto.BOOL, [])]
    graph = helper.make_graph(nodes, "graph", inputs, [value("y", TensorProto.FLOAT, size)], weights)
    return helper.make_model(graph, opset_imports=opsets, functions=[twice], ir_version=10)


def test_fusions_are_those_of_onnx_runtime(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="in onnxruntime only, not in openvino"):
        fusions(tmp_path / "model.onnx", Settings(runtime="openvino"))
