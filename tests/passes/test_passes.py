"""The passes: each cuts its own axes by the given fraction, keeps the units of largest magnitude, and proves the result."""

import pytest
import torch
from torch import nn

from fxprune import analyze, capture, parse_pipeline, verify
from fxprune.passes.fraction import kept_count
from support.models import captured


def cut(name: str, text: str) -> dict[str, int]:
    """The axes that a pipeline cuts, and how many units each keeps."""
    program = captured(name)
    result = parse_pipeline(text).run(program)
    assert verify(program, result.program, result.selection).relative <= 1e-5
    return {axis: len(result.selection[axis]) for axis in result.selection}


def test_heads_of_bert() -> None:
    assert cut("bert", "heads(ratio=0.25)") == {f"encoder.layer.{i}.attention.heads": 3 for i in range(2)}


def test_heads_of_grouped_query_attention_are_removed_in_whole_groups() -> None:
    assert cut("llama", "heads(ratio=0.5)") == {f"model.layers.{i}.self_attn.kv": 1 for i in range(2)}


def test_ffn_with_gates() -> None:
    assert cut("llama", "ffn(ratio=0.5, multiple_of=24)") == {
        f"model.layers.{i}.mlp.ffn": 48 for i in range(2)
    }


def test_channels_tied_over_residuals() -> None:
    assert cut("resnet", "channels(ratio=0.5)")["channels"] == 16


def test_hidden_is_cut_only_by_its_own_pass() -> None:
    assert "hidden" not in cut("gpt2", "heads(ratio=0.5), ffn(ratio=0.5)")
    assert cut("gpt2", "hidden(ratio=0.25)") == {"hidden": 24}


@pytest.mark.parametrize(
    ("size", "ratio", "multiple", "kept"),
    [(12, 0.25, 1, 9), (12, 0.99, 1, 1), (64, 0.5, 24, 48), (8, 0.5, 16, 8), (10, 0.0, 1, 10)],
)
def test_the_number_that_stays_is_rounded_up(size: int, ratio: float, multiple: int, kept: int) -> None:
    assert kept_count(size, ratio, multiple) == kept


def test_magnitude_keeps_what_weighs_most() -> None:
    up, down = nn.Linear(4, 6), nn.Linear(6, 3)
    with torch.no_grad():
        for unit in (1, 4):
            up.weight[unit] = 0.001
            down.weight[:, unit] = 0.001
    model = nn.Sequential(up, nn.ReLU(), down)
    result = parse_pipeline("ffn(ratio=0.34)").run(capture(model, (torch.randn(2, 4),)))
    assert result.selection["ffn"] == (0, 2, 3, 5)


def test_fold_computes_constants_and_changes_no_output() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.register_buffer("scale", torch.arange(4.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            moved: torch.Tensor = self.layer(x[:])
            return moved.view(2, 4) * (self.get_buffer("scale") + 1)

    x = torch.randn(2, 4)
    program = capture(Shifted(), (x,))
    folded = parse_pipeline("fold").run(program).program
    assert torch.equal(folded(x), program(x))
    assert [node.name for node in folded.graph.nodes if node.op == "call_function"] == ["linear", "mul"]
    assert [axis.name for axis in analyze(folded).axes] == []
