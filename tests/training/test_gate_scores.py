"""Movement scores and group lasso: the planted blocks or groups are found, and no others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from fxprune import capture
from fxprune.gates import Gated
from fxprune.gates.gate import tensors_of
from fxprune.gates.insert import gate
from fxprune.training import Cubic, Pruner, Share
from fxprune.training.gate_budgets import GateState, KeepOpen, Threshold
from fxprune.training.gate_scores import Movement
from fxprune.training.group_lasso import Lasso, OneShot
from fxprune.training.schedules import Rising


def regression(rows: int, columns: int, sizes: tuple[int, int]) -> Gated:
    torch.manual_seed(0)
    net = nn.Linear(columns, rows, bias=False)
    program = capture(net, (torch.randn(4, columns),), dynamic_shapes=({0: Dim.AUTO},))
    return gate(program, blocks={"weight": sizes})


def planted(on: Gated, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """(which blocks matter, the weights to be found)."""
    random = torch.Generator().manual_seed(seed)
    grid = on.gates[0].grid
    assert grid is not None
    matters = torch.zeros(grid.shape, dtype=torch.bool)
    matters.view(-1)[torch.randperm(matters.numel(), generator=random)[: round(share * matters.numel())]] = (
        True
    )
    true = torch.randn(grid.size, generator=random) * grid.spread(matters)
    return matters, true


def fitted(on: Gated, true: Tensor, pruner: Pruner, steps: int, rate: float = 1e-2) -> None:
    """Learn what a linear map with noise says."""
    random = torch.Generator().manual_seed(1)
    module = pruner.module
    weights = [value for name, value in module.named_parameters() if not name.startswith("gates.")]
    optimizer = torch.optim.Adam(weights, lr=rate)
    for step in range(steps):
        x = torch.randn(64, true.shape[1], generator=random)
        y = x @ true.t() + 0.1 * torch.randn(64, true.shape[0], generator=random)
        loss = nn.functional.mse_loss(module(x), y)
        if isinstance(pruner.score, Lasso):
            loss = loss + pruner.score.penalty()
        loss.backward()
        pruner.step(step / (steps - 1))
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("seed", range(3))
def test_movement_finds_the_blocks_that_matter(seed: int) -> None:
    """Half of the blocks are irrelevant: sigmoid(score) falls below the threshold for them, and for no other."""
    on = regression(32, 64, (8, 8))
    matters, true = planted(on, 0.5, seed)
    score = Movement(1e-2, Rising(1.0, 0.05, 0.5))
    pruner = Pruner(on, on.module(), Threshold(Rising(0.1, 0.05, 0.5)), score)
    fitted(on, true, pruner, 1500)
    (open_,) = pruner.open.values()
    assert float((~open_[~matters]).float().mean()) >= 0.95
    assert float(open_[matters].float().mean()) >= 0.95


def test_movement_meets_a_density() -> None:
    """The best blocks stay, and a block that overtakes another comes back."""
    on = regression(32, 64, (8, 8))
    matters, true = planted(on, 0.5, 0)
    pruner = Pruner(on, on.module(), Share(Cubic(0.5, 0.05, 0.5), regrow=True), Movement())
    fitted(on, true, pruner, 1000)
    (open_,) = pruner.open.values()
    assert pruner.density == pytest.approx(0.5)
    assert torch.equal(open_, matters)


def test_the_gradient_of_a_block_goes_straight_through() -> None:
    """Closed or open: sum over the block of weight times the gradient of the masked weight."""
    on = regression(4, 6, (2, 3))
    module = on.module()
    tensors = tensors_of(module)
    gates, weight = tensors[on.gates[0].name], tensors["weight"]
    with torch.no_grad():
        gates[0, 1] = 0
    x = torch.randn(5, 6)
    module(x).square().sum().backward()
    masked = (weight * gates.repeat_interleave(2, 0).repeat_interleave(3, 1)).detach().requires_grad_()
    nn.functional.linear(x, masked).square().sum().backward()
    assert masked.grad is not None
    expected = (masked.grad * weight).reshape(2, 2, 2, 3).sum((1, 3))
    assert torch.allclose(gates.grad, expected, rtol=1e-4)  # type: ignore[arg-type]


def test_what_is_kept_stays_open() -> None:
    on = regression(4, 4, (2, 2))
    own = on.gates[0]
    kept = torch.tensor([[True, False], [False, False]])
    pruner = Pruner(on, on.module(), KeepOpen(Share(lambda _: 0.25), {own: kept}))
    pruner.scores[own].copy_(torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
    pruner.step(1.0)
    assert pruner.open[own].tolist() == [[True, False], [False, True]]


def lasso(on: Gated, module: nn.Module, strength: float, rounds: int) -> Pruner:
    own = on.gates[0]
    weight = tensors_of(module)["weight"]
    assert own.grid is not None
    grid = own.grid
    score = Lasso({own: lambda: grid.totals(weight.square())}, strength, rounds, 0.999)
    pruner = Pruner(on, module, OneShot(2.0, 1.0), score)
    score.bind(pruner.scores, pruner.slots)
    return pruner


def separation(on: Gated, module: nn.Module, matters: Tensor) -> tuple[float, float]:
    """(the share of planted groups among the largest, least norm of those over the largest of the others)."""
    grid = on.gates[0].grid
    assert grid is not None
    norms = grid.totals(tensors_of(module)["weight"].detach().square()).sqrt()
    largest = norms.flatten().topk(int(matters.sum())).indices
    return float(matters.flatten()[largest].float().mean()), float(
        norms[matters].min() / norms[~matters].max()
    )


def plain(on: Gated, true: Tensor, strength: float, steps: int) -> nn.Module:
    """Group lasso as it was before: the sum of norms, not squared."""
    module = on.module()
    pruner = lasso(on, module, 0.0, 1)
    grid, weight = on.gates[0].grid, tensors_of(module)["weight"]
    assert grid is not None
    pruner.score.penalty = lambda: strength * (grid.totals(weight.square()) + 1e-12).sqrt().sum()  # type: ignore[attr-defined]
    fitted(on, true, pruner, steps)
    return module


@pytest.mark.parametrize("seed", range(2))
def test_reweighted_groups_come_apart(seed: int) -> None:
    """Block columns, 30 % planted: all found, and at least five times further apart than by group lasso at its best strength.

    With eps 1e-6; with 1e-3 it is about twice as far.
    """
    on = regression(32, 64, (8, 1))
    matters, true = planted(on, 0.3, seed)
    found = []
    for strength in (3e-4, 1e-3, 3e-3):
        module = on.module()
        fitted(on, true, lasso(on, module, strength, 4), 1600)
        found.append(separation(on, module, matters))
    others = [separation(on, plain(on, true, s, 1600), matters) for s in (1e-3, 3e-3, 1e-2, 3e-2)]
    recall, apart = max(found, key=lambda pair: pair[1])
    assert recall == 1.0
    assert apart >= 5 * max(far for _, far in others)


def test_groups_are_cut_once_and_equally() -> None:
    on = regression(8, 6, (4, 1))
    own = on.gates[0]
    scores = {own: torch.arange(12.0).reshape(2, 6)}
    open_ = {own: torch.ones(2, 6, dtype=torch.bool)}
    standing = GateState(open_, scores, {})
    assert OneShot(0.5, 0.5)(standing, 0.4)[own].all()
    assert OneShot(0.5, 0.5)(standing, 0.6)[own].sum(1).tolist() == [0, 6]
    assert OneShot(0.5, 0.5, equal=True)(standing, 0.6)[own].sum(1).tolist() == [3, 3]
    assert OneShot(0.5, threshold=3.0)(standing, 0.6)[own].sum(1).tolist() == [0, 2]
