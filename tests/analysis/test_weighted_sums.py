"""Heads where no matrix product shows them: graph attention over edges, and the state of a delta net."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fxprune import analyze, capture, parse_pipeline
from fxprune.ir import Program

Sum = Callable[[Tensor, Tensor, Tensor], Tensor]


class GraphAttention(nn.Module):
    """Attention of 4 heads of 5 dims over the edges of a graph, normalised over the edges that reach a node."""

    def __init__(self, add: Sum) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.add = add
        self.lin, self.out = nn.Linear(6, 20, bias=False), nn.Linear(20, 3)
        self.src, self.dst = nn.Parameter(torch.randn(1, 4, 5)), nn.Parameter(torch.randn(1, 4, 5))

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        h = self.lin(x).view(-1, 4, 5)
        scores = functional.leaky_relu(
            (h * self.src).sum(-1)[edges[0]] + (h * self.dst).sum(-1)[edges[1]]
        ).exp()
        norm = torch.zeros(x.shape[0], 4).index_add(0, edges[1], scores)
        weights = scores / (norm[edges[1]] + 1e-9)
        y = self.add(torch.zeros(x.shape[0], 4, 5), edges[1], h[edges[0]] * weights[..., None])
        logits: Tensor = self.out(functional.elu(y.flatten(1)))
        return logits


class Delta(nn.Module):
    """A delta net of 4 heads of 5 dims, behind a short convolution: each head has a state, read and written by products and sums."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.beta, self.out = nn.Linear(6, 60), nn.Linear(6, 4), nn.Linear(20, 6)
        self.conv = nn.Conv1d(60, 60, 3, padding=2, groups=60)

    def forward(self, x: Tensor) -> Tensor:
        mixed = functional.silu(self.conv(self.qkv(x).transpose(1, 2))[..., :3]).transpose(1, 2)
        q, k, v = (part.reshape(2, 3, 4, 5) for part in mixed.split(20, -1))
        beta, state, outputs = self.beta(x).sigmoid(), torch.zeros(2, 4, 5, 5), []
        for step in range(3):
            key = k[:, step, :, :, None]
            change = (v[:, step] - (state * key).sum(-2)) * beta[:, step, :, None]
            state = state + key * change[:, :, None]
            outputs.append((state * q[:, step, :, :, None]).sum(-2))
        y: Tensor = self.out(torch.stack(outputs, 1).flatten(2))
        return y


class Gated(nn.Module):
    """A gated width that is averaged over positions: its factors have the same dims, so that nothing is weighed by heads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.gate, self.out = nn.Linear(6, 20), nn.Linear(6, 20), nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out((self.up(x) * self.gate(x).sigmoid()).sum(1))
        return y


def scattered(base: Tensor, index: Tensor, values: Tensor) -> Tensor:
    return base.scatter_add(0, index[:, None, None].expand_as(values), values)


def added(base: Tensor, index: Tensor, values: Tensor) -> Tensor:
    return base.index_add(0, index, values)


EDGES = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 0, 3, 2], [1, 2, 3, 4, 5, 6, 0, 4, 0, 5]])


def graph(add: Sum) -> Program:
    return capture(GraphAttention(add), (torch.randn(7, 6), EDGES))


@pytest.mark.parametrize("add", [added, scattered])
def test_heads_of_graph_attention(add: Sum) -> None:
    program = graph(add)
    assert {axis.role: axis.size for axis in analyze(program).axes} == {"heads": 4, "v": 5}
    result = parse_pipeline("heads(ratio=0.25)").run(program)
    assert {name: len(result.selection[name]) for name in result.selection} == {"heads": 3}
    assert result.proof.relative <= 1e-5


def test_heads_of_a_delta_net() -> None:
    program = capture(Delta(), (torch.randn(2, 3, 6),))
    assert {axis.role: axis.size for axis in analyze(program).axes} == {"heads": 4, "qk": 5, "v": 5}
    result = parse_pipeline("heads(ratio=0.5)").run(program)
    assert {name: len(result.selection[name]) for name in result.selection} == {"heads": 2}
    assert result.proof.relative <= 1e-5


def test_a_gated_width_has_no_heads() -> None:
    program = capture(Gated(), (torch.randn(2, 3, 6),))
    assert {axis.role: axis.size for axis in analyze(program).axes} == {"ffn": 20}
