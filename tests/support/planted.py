# mypy: disable-error-code="no-any-return"
# The result of calling a module is Any to the type checker.
"""Planted encoder: eight layers of which three do nothing, and its evaluator, so that the result of a search is known beforehand.

`python tests/support/planted.py JOURNAL COUNT SECONDS` searches it, so slowly that a test can kill it.
"""

from __future__ import annotations

import sys
import time
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from fxprune import Program, capture
from fxprune.passes import Layers
from fxprune.pipeline import Context

LAYERS, IDLE, WIDTH, TOKENS, LENGTH = 8, (2, 5, 6), 24, 11, 9


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 48), nn.Linear(48, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        x = x + self.attention(h, h, h, need_weights=False)[0]
        return x + self.down(self.up(self.second(x)).relu())


class Encoder(nn.Module):
    """Encoder that is trained to predict the most frequent token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(TOKENS, WIDTH)
        self.layers = nn.ModuleList(Block() for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, TOKENS)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(dim=1))


def examples(count: int, seed: int) -> tuple[Tensor, Tensor]:
    ids = torch.randint(0, TOKENS, (count, LENGTH), generator=torch.Generator().manual_seed(seed))
    return ids, nn.functional.one_hot(ids, TOKENS).sum(dim=1).argmax(dim=-1)


@lru_cache(maxsize=1)
def trained() -> Program:
    """The encoder, trained with idle layers: the output projections of both of their branches stay zero."""
    torch.manual_seed(0)
    model = Encoder()
    for i in IDLE:
        layer: Any = model.layers[i]
        for parameter in (*layer.attention.out_proj.parameters(), *layer.down.parameters()):
            nn.init.zeros_(parameter).requires_grad_(False)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=3e-3)
    for step in range(50):
        ids, wanted = examples(64, step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(ids), wanted).backward()
        optimizer.step()
    return capture(
        model.eval().requires_grad_(), (examples(4, 0)[0],), dynamic_shapes=({0: torch.export.Dim.AUTO},)
    )


def fit(program: Program, wait: float = 0.0) -> float:
    """Minus the loss on examples that were trained on."""
    time.sleep(wait)
    ids, wanted = examples(256, 3)
    with torch.no_grad():
        return -float(nn.functional.cross_entropy(program.graph_module(ids), wanted))


if __name__ == "__main__":
    journal, count, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    found = Layers(count=count, journal=journal).find(trained(), Context(evaluate=partial(fit, wait=seconds)))
    assert found is not None
    sys.stdout.write(" ".join(found.order) + "\n")
