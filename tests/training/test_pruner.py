"""The pruner: scores are gate gradients, planted units go first, densities are met, and no optimizer moves a gate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from fxprune import analyze
from fxprune.errors import UsageError
from fxprune.gates import Gated
from fxprune.gates.insert import gate
from fxprune.gates.lower import lower
from fxprune.ir import copy_graph, rebuild
from fxprune.training import Cubic, Pruner, Share
from fxprune.training.gate_scores import StepInputs, Taylor
from fxprune.training.pruner import unit_costs
from support.gated import family, named, within_heads
from support.models import distance
from support.two_processes import run_in_two


def intra() -> Gated:
    """BERT's units as GRAIN has them."""
    return within_heads(family("bert"))


def loss_of(module: Any, on: Gated, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    hidden: Tensor = module(**on.program.kwargs)["last_hidden_state"]
    return (hidden * torch.randn(hidden.shape)).sum()


def test_costs_are_the_parameters_of_the_units() -> None:
    """Of BERT with 32 dims: FFN 2d+1, QK 2d+2, VO 2d+1 (methods 2.1)."""
    on = intra()
    costs = unit_costs(on)
    assert [
        float(costs[named(on, end)].unique()) for end in ("0.ffn", "0.attention.self.qk", "0.attention.v")
    ] == [65, 66, 65]


def test_a_schedule_has_three_phases() -> None:
    left = Cubic(0.1, 0.2, 0.4)
    assert [left(t) for t in (0.0, 0.2, 0.3, 0.4, 1.0)] == pytest.approx([1, 1, 0.1 + 0.9 / 8, 0.1, 0.1])
    with pytest.raises(UsageError, match=r"got 0\.4 and 0\.4"):
        Cubic(0.1, 0.4, 0.4)


@pytest.mark.parametrize("per_cost", [False, True])
def test_units_of_unequal_sizes_may_be_ranked_by_score_for_each_parameter(per_cost: bool) -> None:
    """All have the same score: by score alone they go in their order, per parameter the large heads go before the neurons."""
    program = family("bert")
    axes = [axis.name for axis in analyze(program).axes if axis.role in ("ffn", "heads")]
    on = gate(program, axes)
    pruner = Pruner(on, on.module(), Share(lambda _: 0.6, per_cost))
    for score in pruner.scores.values():
        score.fill_(1.0)
    pruner.step(1.0)
    left = [int(open_.sum()) for open_ in pruner.open.values()]
    assert left == ([0, 64, 1, 64] if per_cost else [0, 25, 4, 64])


@pytest.mark.parametrize("density", [0.5, 0.1, 0.03])
def test_the_density_is_met_within_a_unit(density: float) -> None:
    on = intra()
    module = on.module()
    pruner = Pruner(on, module, Share(lambda _: density))
    loss_of(module, on).backward()
    pruner.step(1.0)
    total = sum(float(cost.sum()) for cost in pruner.costs.values())
    empty = sum(int((~table.any(1)).sum()) for gate_, table in pruner.open.items() if gate_.of.endswith(".v"))
    largest = 66 * (1 + 8 * empty)  # q/k dims of heads without v dims go besides
    assert density - largest / total <= pruner.density <= density


def planted() -> Gated:
    """Half of the heads write nothing."""
    base = family("bert")
    weights = {
        n: t.detach().clone()
        for n, t in base.tensors().items()
        if n.endswith("attention.output.dense.weight")
    }
    for weight in weights.values():
        weight[:, :16] = 0
    learned = {name: nn.Parameter(weight) for name, weight in weights.items()}
    return within_heads(rebuild(base, copy_graph(base), learned))


def test_heads_that_write_nothing_go_first() -> None:
    on = planted()
    module = on.module()
    before = module(**on.program.kwargs)["last_hidden_state"].detach()
    silent = 2 * 2 * 8 * (65 + 66) / sum(float(cost.sum()) for cost in unit_costs(on).values())
    pruner = Pruner(on, module, Share(lambda _: 1 - silent))
    loss_of(module, on).backward()
    pruner.step(1.0)
    for layer in range(2):
        for end in ("attention.v", "attention.self.qk"):
            assert pruner.open[named(on, f"{layer}.{end}")].tolist() == [[False] * 8] * 2 + [[True] * 8] * 2
        assert bool(pruner.open[named(on, f"{layer}.ffn")].all())
    assert pruner.density == pytest.approx(1 - silent)
    found = lower(on, module).program
    assert distance(found(**on.program.kwargs)["last_hidden_state"], before) < 1e-5
    assert [a.size for a in analyze(found).axes if a.role == "heads"] == [2, 2]


def test_the_score_is_the_sum_over_the_unit_of_weight_times_gradient() -> None:
    on = intra()
    module = on.module()
    pruner = Pruner(on, module, Share(lambda _: 1.0), Taylor(beta=0.0))
    loss_of(module, on).backward()
    pruner.step(0.0)
    weights = dict(module.named_parameters())
    query, bias = (weights[f"encoder.layer.0.attention.self.query.{kind}"] for kind in ("weight", "bias"))
    assert query.grad is not None
    assert bias.grad is not None
    expected = ((query * query.grad).sum(1) + bias * bias.grad).abs().reshape(4, 8).double()
    assert torch.allclose(
        pruner.scores[named(on, "0.attention.self.qk")],
        expected,
        rtol=1e-3,
        atol=1e-3 * float(expected.detach().max()),
    )


def test_nothing_opens_again() -> None:
    on = intra()
    module = on.module()
    pruner = Pruner(on, module, Share(Cubic(0.1, 0.0, 1.0)))
    before = {g: table.clone() for g, table in pruner.open.items()}
    for step in range(6):
        loss_of(module, on, step).backward()
        pruner.step(step / 5)
        assert not [g for g in before if bool((pruner.open[g] & ~before[g]).any())]
        before = {g: table.clone() for g, table in pruner.open.items()}
    assert pruner.density <= 0.1


def test_only_the_observed_loss_counts() -> None:
    """Gradient separation: a second loss does not move the scores, and neither reaches the gates' own gradients."""
    scores = []
    for extra in (0.0, 100.0):
        on = intra()
        module = on.module()
        pruner = Pruner(on, module, Share(lambda _: 1.0))
        task = loss_of(module, on)
        pruner.observe(task)
        (task + extra * loss_of(module, on, 1)).backward()
        assert [g.name for g, p in pruner.parameters.items() if p.grad is not None] == []
        pruner.step(0.0)
        scores.append(pruner.scores)
    one, other = scores
    assert [a.tolist() for a in one.values()] == [b.tolist() for b in other.values()]


def test_small_heads_empty_first_under_structure_regularisation() -> None:
    """What comes in is multiplied by tanh(D / alpha)."""
    on = intra()
    v = named(on, "0.attention.v")
    slopes, open_ = {v: torch.ones(4, 8, dtype=torch.float64)}, {v: torch.ones(4, 8, dtype=torch.bool)}
    open_[v][1, 2:] = False
    scores = {v: torch.zeros(4, 8, dtype=torch.float64)}
    Taylor(0.0, {v: 0.3}).update(StepInputs(scores, slopes, open_))
    assert scores[v][:, 0].tolist() == pytest.approx([0.99746, 0.68228, 0.99746, 0.99746], abs=1e-4)


def test_steps_that_are_not_finite_are_skipped() -> None:
    on = intra()
    module = on.module()
    pruner = Pruner(on, module, Share(lambda _: 1.0))
    (loss_of(module, on) * float("nan")).backward()
    pruner.step(0.0)
    assert all(not bool(score.any()) for score in pruner.scores.values())


def test_a_restart_goes_on() -> None:
    """The module's own state holds which gates are open, and the scores."""
    on = intra()
    module = on.module()
    pruner = Pruner(on, module, Share(Cubic(0.3, 0.0, 0.5)))
    loss_of(module, on).backward()
    pruner.step(0.3)
    fresh = on.module()
    again = Pruner(on, fresh, Share(Cubic(0.3, 0.0, 0.5)))
    fresh.load_state_dict({name: value.clone() for name, value in module.state_dict().items()})
    assert again.density == pruner.density < 1
    for one in (pruner, again):
        loss_of(one.module, on, 1).backward()
        one.step(0.4)
    assert again.density == pruner.density
    assert all(torch.equal(again.scores[g], pruner.scores[g]) for g in pruner.scores)
    assert all(torch.equal(again.open[g], pruner.open[g]) for g in pruner.scores)


def test_optimizers_never_move_a_gate() -> None:
    on = intra()
    module = on.module()
    pruner = Pruner(on, module, Share(lambda _: 0.5))
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(3):
        loss_of(module, on).backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        pruner.step(1.0)
        optimizer.step()
        optimizer.zero_grad()
    values = {float(v) for p in pruner.parameters.values() for v in p.detach().flatten()}
    assert values == {0.0, 1.0}


def test_two_processes_close_the_same_units(tmp_path: Path) -> None:
    """Under Accelerate, each on data of its own."""
    one, other = run_in_two("pruned_in_two", tmp_path)
    assert one["processes"] == 2
    assert one["ids"] != other["ids"]
    assert one["density"] <= 0.3
    for key in ("density", "open", "scores", "weight"):
        assert one[key] == other[key]


def test_a_compiled_module_is_pruned_the_same() -> None:
    """Up to rounding; and it is compiled once."""
    counts = CompileCounter()
    pruners = []
    for wrap in (lambda module: module, lambda module: torch.compile(module, backend=counts)):
        on = intra()
        module: Any = wrap(on.module())
        pruner = Pruner(on, module, Share(lambda _: 0.5))
        for step in range(3):
            loss_of(module, on, step).backward()
            pruner.step(1.0)
        pruners.append(pruner)
    one, other = pruners
    assert counts.frame_count == 1
    assert one.density == other.density
    assert all(
        torch.allclose(one.scores[a], other.scores[b]) for a, b in zip(one.scores, other.scores, strict=True)
    )
