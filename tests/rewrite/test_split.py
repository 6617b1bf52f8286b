"""Split: row-blocks that read different columns become smaller products, which compute the same, where a meter finds them cheaper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from expecttest import assert_expected_inline
from torch import Tensor, nn

from fxprune import capture, show
from fxprune.cost import Clock
from fxprune.export import export_onnx
from fxprune.gates.lower import lower
from fxprune.ir import Program
from fxprune.rewrite.split import MOST_PRODUCTS, split, splits
from fxprune.runtimes import Settings
from fxprune.search.alternatives import cheaper_splits
from fxprune.tools.benchmarks.split_choice import sparse
from support.blocked import blocked, drawn
from support.gated import masked
from support.models import distance


def called(program: Program) -> Any:
    with torch.no_grad():
        return program(*program.args, **program.kwargs)


def products(program: Program) -> int:
    return len(list(program.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)))


@pytest.mark.parametrize("bias", [True, False])
def test_a_split_matrix_computes_the_same_with_fewer_weights(bias: bool, tmp_path: Path) -> None:
    program = sparse(32, 64, 4, 0.25, bias=bias)
    (found,) = splits(program)
    small = split(program, [found])
    assert distance(called(small), called(program)) < 1e-6
    assert small.parameter_count() == 64 * 8 + 64 * bias
    assert products(small) == len(found.groups) == 4
    assert export_onnx(small, tmp_path / "split.onnx").relative < 1e-5


def test_a_dense_matrix_is_not_split() -> None:
    assert splits(capture(nn.Linear(4, 6), (torch.randn(2, 4),))) == []


def test_more_blocks_than_could_pay_stay_dense() -> None:
    assert splits(sparse(32, 2 * MOST_PRODUCTS + 2, MOST_PRODUCTS + 1, 0.5)) == []


class Three(nn.Module):
    """Queries, keys and values of one input."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(16, 8, bias=name != "k") for name in "qkv")

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.q(x), self.k(x) * 2, self.v(x) * 3], -1)


def test_blocks_that_share_columns_share_a_product() -> None:
    torch.manual_seed(0)
    net = Three()
    with torch.no_grad():
        for part in (net.q, net.k, net.v):
            part.weight[:4, 8:] = 0
            part.weight[4:, :8] = 0
    program = capture(net, (torch.randn(3, 16),))
    (found,) = splits(program)
    small = split(program, [found])
    assert products(small) == 2
    assert small.parameter_count() == 3 * 8 * 8 + 3 * 8
    assert distance(called(small), called(program)) < 1e-6


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
def test_families_with_random_blocks(name: str) -> None:
    """Both ways in which weights are stored."""
    on = blocked(name, 16, 4)
    small = lower(on, masked(on, drawn(on, 1))).program
    found = splits(small)
    assert found
    assert distance(called(split(small, found)), called(small)) < 1e-5


def test_what_is_cheaper_is_metered() -> None:
    program = sparse(32, 64, 4, 0.25)
    costs = {"dense": 2.0, "split": 1.0}

    def meter(wanted: Any) -> dict[str, float]:
        assert {key: make().parameter_count() for key, (_, make) in wanted.items()} == {
            "dense": 64 * 32 + 64,
            "split": 64 * 8 + 64,
        }
        return costs

    small, (verdict,) = cheaper_splits(program, meter)
    assert products(small) == 4
    assert (verdict.pays, verdict.products, verdict.density) == (True, 4, 0.25)
    costs["split"] = 3.0
    same, (verdict,) = cheaper_splits(program, meter)
    assert same is program
    assert (verdict.pays, verdict.dense, verdict.split) == (False, 2.0, 3.0)


@pytest.mark.parametrize(("sizes", "pays"), [((768, 768, 8, 0.5), False), ((768, 3072, 4, 0.25), True)])
def test_the_runtime_decides(sizes: tuple[int, int, int, float], pays: bool, tmp_path: Path) -> None:
    """Many small blocks stay dense, few large ones are split (methods 4.6)."""
    _, (verdict,) = cheaper_splits(sparse(*sizes, rows=128), Clock(Settings(1), tmp_path / "costs.json"))
    assert verdict.pays == pays, verdict


def test_what_was_frozen_stays_frozen() -> None:
    program = sparse(32, 64, 4, 0.25, bias=True)
    for value in program.tensors().values():
        value.requires_grad_(False)
    small = split(program, splits(program))
    assert products(small) == 4
    assert [name for name, value in small.tensors().items() if value.requires_grad] == []


def test_before_and_after() -> None:
    """The first 8 outputs read the first 4 inputs, the others the last 4."""
    layer = nn.Linear(8, 16, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.block_diag(torch.ones(8, 4), torch.ones(8, 4)))
    program = capture(layer, (torch.randn(3, 8),))
    assert_expected_inline(
        show(program),
        """\
input_1: (!3, !8)
weight: (!16, !8)
linear = linear(input_1, weight) -> (!3, !16)
return linear""",
    )
    assert_expected_inline(
        show(split(program, splits(program))),
        """\
input_1: (!3, !8)
split0.columns: (split0.ffn:4)
index_select_default = index_select(input_1, -1, split0.columns) -> (!3, split0.ffn:4)
split0.weight: (!8, split0.ffn:4)
linear_default = linear(index_select_default, split0.weight) -> (!3, !8)
split1.columns: (split1.ffn:4)
index_select_default_1 = index_select(input_1, -1, split1.columns) -> (!3, split1.ffn:4)
split1.weight: (!8, split1.ffn:4)
linear_default_1 = linear(index_select_default_1, split1.weight) -> (!3, !8)
cat_default = cat([linear_default, linear_default_1], -1) -> (!3, !8 + !8)
return cat_default""",
    )
