"""Low-rank factors: matrices become two where that is measured to be faster, with a proof, and with a reason where they stay whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fxprune import analyze, capture, export_onnx
from fxprune.calibration import Calibration, check_calibration
from fxprune.cost.budgets import counting_meter
from fxprune.cost.count import count_flops
from fxprune.errors import PassError, PipelineError, UsageError, VerifyError
from fxprune.ir import Program, copy_graph, rebuild
from fxprune.passes import Lowrank, parse_pipeline
from fxprune.pipeline import Context, Pipeline
from fxprune.search.rank_plans import RankChoice, RankCostTable, RankDrafts, apply_ranks, groups, with_members
from fxprune.search.svd import plain_spectra
from support.gated import family
from support.models import distance

WIDE = 384


def outputs(program: Program) -> Any:
    return program(*program.args, **program.kwargs)


def thin_net(rank: int = 24) -> Program:
    """Two wide layers whose weights have few directions, and a small one."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(WIDE, WIDE), nn.ReLU(), nn.Linear(WIDE, WIDE), nn.ReLU(), nn.Linear(WIDE, 4)
    )
    with torch.no_grad():
        for layer in (net[0], net[2]):
            wide = torch.randn(WIDE, rank) @ torch.randn(rank, WIDE) / rank**0.5 / WIDE**0.5
            layer.get_parameter("weight").copy_(wide + 1e-3 * torch.randn(WIDE, WIDE) / WIDE**0.5)
    return capture(net.eval(), (torch.randn(96, WIDE),), dynamic_shapes=True)


def data_of(program: Program) -> Calibration:
    name = program.input_names()[0]
    return check_calibration(program, [{name: torch.randn(64, WIDE)} for _ in range(12)])


@pytest.fixture(scope="module")
def energetic() -> tuple[Program, Any]:
    program = thin_net()
    each = Lowrank(energy=0.99, batch=96)
    return program, Pipeline((each,)).run(program, Context(data=data_of(program), cache=False))


def test_matrices_of_few_directions_become_two(energetic: tuple[Program, Any], tmp_path: Path) -> None:
    program, result = energetic
    first, second, last = result.steps[0].details["ranks"]
    assert first["ranks"] == second["ranks"] == [32]
    assert first["factors"] < 0.97 * first["dense"]
    assert (last["ranks"], last["size"]) == ([], [4, WIDE])
    assert (
        "no rank below 4, where factors are as large, is measured to be faster" in last["why"] or last["why"]
    )
    assert [axis.role for axis in analyze(result.program).axes].count("rank") == 2
    assert distance(outputs(result.program), outputs(program)) < 0.02
    assert export_onnx(result.program, tmp_path / "thin.onnx").relative < 1e-4


def test_what_it_did_is_proved(energetic: tuple[Program, Any]) -> None:
    _, result = energetic
    verdict = result.proof
    assert verdict.relative < 1e-5
    assert set(verdict.refitted) >= {"0.weight", "2.weight"}
    assert 0 < verdict.change < 0.02


def test_what_was_changed_besides_is_found(energetic: tuple[Program, Any]) -> None:
    program, result = energetic
    (claim,) = result.claims
    other = {"4.weight": nn.Parameter(program.tensors()["4.weight"] + 1.0)}
    changed = rebuild(claim.after, copy_graph(claim.after), other)
    with pytest.raises(VerifyError):
        replace(claim, after=changed).prove()


def test_passes_before_and_after_are_proved_apart() -> None:
    """Neurons go, the rest becomes two, and then a rank goes from that."""
    program = thin_net()
    data = data_of(program)
    each = Lowrank(rank=48, batch=96, update="none")
    steps = Pipeline(
        (*parse_pipeline("ffn(ratio=0.25)").passes, each, *parse_pipeline("ffn(ratio=0.25), fold").passes)
    )
    result = steps.run(program, Context(data=data, cache=False))
    assert [claim.factors.keys() for claim in result.claims] == [set(), {"0.weight", "2.weight"}, set()]
    assert result.proof.relative < 1e-5
    assert sorted(result.selection) == sorted(result.claims[0].selection)
    assert result.program.tensors()["0.weight_rows"].shape[1] == 48


def test_a_latency_is_kept_to() -> None:
    program = thin_net()
    done = Lowrank(latency=0.6, batch=96).run(program, Context(data=data_of(program), cache=False))
    assert done.details["share"] <= 0.6
    assert len(done.details["trials"]) >= 1
    assert distance(outputs(done.program), outputs(program)) < 0.05


def test_without_data_the_weights_alone_decide() -> None:
    program = thin_net()
    done = Lowrank(rank=32, whiten=False, update="none", batch=96).run(program, Context(cache=False))
    assert done.program.tensors()["2.weight_columns"].shape == (32, WIDE)
    assert done.refitted == ()
    with pytest.raises(UsageError, match=r"say lowrank\(…, whiten=False, update='none'\)"):
        Lowrank(rank=32).run(program)


def test_a_rank_at_break_even_stays_whole() -> None:
    program = thin_net()
    done = Lowrank(rank=WIDE // 2, whiten=False, update="none", batch=96).run(program, Context(cache=False))
    assert all(row["why"] for row in done.details["ranks"])
    assert done.factors == {}
    assert distance(outputs(done.program), outputs(program)) == 0


def choices(program: Program, shared: bool = True) -> list[RankChoice]:
    """By operations, so that nothing is timed."""
    found = groups(analyze(program), apart=not shared)
    table = RankCostTable(program, counting_meter("flops"), None)
    return table.choices(found, plain_spectra(program, with_members(found)))


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5", "vit"])
def test_every_way_of_every_choice_can_be_written(name: str) -> None:
    """All at their cheapest, and all at half: the files' operations are those of the table."""
    program = family(name)
    thin = RankDrafts(program, choices(program))
    half = thin.within(thin.whole / 2)
    assert half is not None
    for draft in (half, thin.least()):
        slim = draft.make()
        assert slim.parameter_count() < program.parameter_count()
        assert all(value.isfinite().all() for value in torch.utils._pytree.tree_leaves(outputs(slim)))
        said = thin.whole - draft.cost
        assert count_flops(program, None) - count_flops(slim, None) == pytest.approx(said)


def test_queries_keys_and_values_may_share_their_first_product() -> None:
    program = family("bert")
    first = choices(program)[0]
    kinds = {len(way.parts) for way in first.ways[1:]}
    assert kinds == {1, 3}
    way = next(way for way in first.ways[1:] if len(way.parts) == 1)
    made = apply_ranks(program, [way])
    assert len({columns for _, columns in made.names.values()}) == 1
    assert all(len(way.parts) == 1 for choice in choices(program, shared=False) for way in choice.ways[1:])


def test_a_budget_takes_the_terms_that_cost_least() -> None:
    program = family("bert")
    thin = RankDrafts(program, choices(program))
    last = float("inf")
    for share in (0.5, 0.7, 0.9, 1.01):
        draft = thin.within(share * thin.whole)
        assert draft is not None
        assert draft.cost <= share * thin.whole * 1.0001
        assert draft.error <= last
        last = draft.error
    assert last == 0
    assert thin.within(0.001 * thin.whole) is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("lowrank", "say one of energy, rank, latency"),
        ("lowrank(energy=0.9, rank=8)", "say one of energy, rank, latency"),
        ("lowrank(energy=1.5)", "energy must lie between 0 and 1"),
        ("lowrank(rank=8, update='some')", "update must be one of none, second, all"),
        ("lowrank(rank=8, threads=0)", "threads must be at least 1"),
        ("lowrank(rank=8, memory=-1)", "memory must be at least 1 megabyte"),
    ],
)
def test_options_that_make_no_sense(text: str, why: str) -> None:
    with pytest.raises(PipelineError, match=why):
        parse_pipeline(text)


def test_a_model_without_matrices_is_refused() -> None:
    program = capture(nn.Conv2d(2, 3, 3), (torch.randn(1, 2, 8, 8),))
    with pytest.raises(PassError, match="no matrix of this program can become two"):
        parse_pipeline("lowrank(rank=1, whiten=False, update='none')").run(program)
