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


class GroupedQueries(nn.Module):
    """Attention of 14 query heads over 2 key/value heads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v, self.o = (
            nn.Linear(16, 56),
            nn.Linear(16, 8),
            nn.Linear(16, 8),
            nn.Linear(56, 16),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = self.q(x).view(2, 5, 14, 4).transpose(1, 2)
        k, v = (f(x).view(2, 5, 2, 1, 4).expand(2, 5, 2, 7, 4).reshape(2, 5, 14, 4) for f in (self.k, self.v))
        y = nn.functional.scaled_dot_product_attention(q, k.transpose(1, 2), v.transpose(1, 2))
        mixed: torch.Tensor = self.o(y.transpose(1, 2).reshape(2, 5, 56))
        return mixed


@pytest.mark.parametrize(
    ("ratio", "axes", "remark"),
    [
        (
            0.3,
            {"rep": 5},
            "took query heads within groups that are too few to lose any: rep (5 of 7 stay in each of the 2 units of kv)",
        ),
        (0.5, {"kv": 1}, ""),
    ],
)
def test_groups_that_are_too_few_lose_equally_many_query_heads(
    ratio: float, axes: dict[str, int], remark: str
) -> None:
    program = capture(GroupedQueries(), (torch.randn(2, 5, 16),))
    result = parse_pipeline(f"heads(ratio={ratio})").run(program)
    kept = {name: [result.selection.axes[name]] for name in result.selection}
    rows = {name: result.selection.rows(name) or kept[name] for name in kept}
    assert {name: len(row) for name, found in rows.items() for row in found} == axes
    assert "".join(result.steps[0].remarks) == remark
    assert result.steps[0].note == ""
    assert result.proof.relative <= 1e-5


class Patches(nn.Module):
    """A stream of 24 that a convolution of patches begins, as in ViT."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patch, self.cls = nn.Conv2d(3, 24, 4, 4), nn.Parameter(torch.randn(1, 1, 24))
        self.norm, self.up, self.down = nn.LayerNorm(24), nn.Linear(24, 40), nn.Linear(40, 24)
        self.last, self.head = nn.LayerNorm(24), nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.patch(x).flatten(2).transpose(1, 2)
        y = torch.cat([self.cls.expand(y.shape[0], -1, -1), y], 1)
        y = y + self.down(self.up(self.norm(y)).relu())
        logits: torch.Tensor = self.head(self.last(y)[:, 0])
        return logits


class Stage(nn.Module):
    """A stage of ConvNeXt: a stream of 12 that only convolutions and norms over channels touch, and a block of depthwise convolution."""

    def __init__(self, residual: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.residual = residual
        self.stem, self.deep, self.norm = (
            nn.Conv2d(3, 12, 4, 4),
            nn.Conv2d(12, 12, 3, padding=1, groups=12),
            nn.LayerNorm(12),
        )
        self.up, self.down, self.head = nn.Conv2d(12, 20, 1), nn.Conv2d(20, 12, 1), nn.Conv2d(12, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x)
        z = self.norm(self.deep(y).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        z = self.down(self.up(z).relu())
        logits: torch.Tensor = self.head(y + z if self.residual else z)
        return logits


def test_hidden_takes_the_stream_of_patches_and_of_convolutions() -> None:
    for net, size in ((Patches(), 24), (Stage(), 12)):
        program = capture(net.eval(), (torch.randn(2, 3, 16, 16),))
        (axis,) = (axis for axis in analyze(program).axes if axis.role == "hidden")
        assert (axis.name, axis.size, axis.exact) == ("hidden", size, False)
        result = parse_pipeline("hidden(ratio=0.25)").run(program)
        assert {name: len(result.selection[name]) for name in result.selection} == {"hidden": size * 3 // 4}


def test_a_pass_without_axes_names_the_one_that_takes_inexact_channels() -> None:
    program = capture(Stage(residual=False).eval(), (torch.randn(2, 3, 16, 16),))
    (step,) = parse_pipeline("hidden(ratio=0.25)").run(program).steps
    assert step.note == (
        "found nothing to remove: it takes axes of role hidden; the graph has 1 channels (pass channels), "
        "1 inexact channels (pass hidden with roles='channels'), 1 rank"
    )
    result = parse_pipeline("hidden(ratio=0.25, roles='channels', only='stem, deep, norm, up')").run(program)
    assert {len(result.selection[name]) for name in result.selection} == {9}


class Modules(nn.Module):
    """A mixture whose experts are modules, each behind a function of a slice of the router's shares."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate, self.experts = nn.Linear(6, 4), nn.ModuleList(nn.Linear(6, 5) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shares = self.gate(x).softmax(-1)
        parts = [expert(x) * shares[..., k : k + 1].exp() for k, expert in enumerate(self.experts)]
        return torch.stack(parts).sum(0)


def test_experts_that_are_modules_and_stay_are_named_with_the_reason() -> None:
    (step,) = parse_pipeline("experts(ratio=0.5)").run(capture(Modules(), (torch.randn(3, 6),))).steps
    why, _, line = step.note.partition(" [")
    assert why == (
        "found nothing to remove: it takes exact axes of role experts; the graph has no axis; dim 0 of gate.weight is taken apart, "
        "and exp = aten.exp.default reads a position on its own"
    )
    assert "shares[..., k : k + 1].exp()" in line
