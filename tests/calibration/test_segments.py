# mypy: disable-error-code="no-any-return"
"""Segments: a program that runs stretch by stretch gives the scores of a whole run, and is cut where little crosses."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from fxprune import Program, analyze, capture
from fxprune.analysis import Units
from fxprune.analysis.sites import find_sites
from fxprune.calibration import Calibration, Objective, segments
from fxprune.calibration.run import BatchRecord, Observer, run_calibration
from fxprune.calibration.segments import CrossingValues, segments_of
from fxprune.scores import SCORES, Evidence, Worth
from fxprune.storage import is_mapped
from support.planted import LAYERS, examples, trained
from support.scored import BY_DATA
from support.slimmable import subject

FEW = 4096
"""Bytes of weights: a layer of the small models below has more."""

LAYER = 20_000
"""About the bytes of a layer of the planted encoder."""


def rated(program: Program, data: Calibration, score: str, segment: int, draws: int = 1) -> dict[str, Worth]:
    analysis = analyze(program)
    units = [Units(site.main) for site in find_sites(analysis, True)]
    units += [Units(axis, site.main) for site in find_sites(analysis) for axis in site.inner]
    evidence = Evidence(analysis, data, Objective(draws=draws), segment=segment)
    return {each.axis.name: worth for each, worth in SCORES[score].rate(evidence, units).items()}


@pytest.mark.parametrize("score", BY_DATA)
@pytest.mark.parametrize("name", ["bert", "llama", "gpt2"])
def test_scores_are_those_of_a_whole_run(name: str, score: str) -> None:
    program, data = subject(name)
    assert len(segments_of(program, FEW)) > 4
    whole, parts = (rated(program, data, score, limit, draws=2) for limit in (0, FEW))
    assert whole.keys() == parts.keys()
    for axis, worth in whole.items():
        assert torch.equal(worth.order, parts[axis].order), axis
        assert torch.allclose(worth.errors, parts[axis].errors, rtol=1e-5), axis


def test_gradients_are_taken_where_the_caller_takes_none() -> None:
    program, data = subject("bert")
    with torch.no_grad():
        whole, parts = (rated(program, data, "taylor", limit) for limit in (0, FEW))
    assert all(float(worth.errors.max()) > 0 for worth in whole.values())
    assert all(torch.equal(worth.order, parts[axis].order) for axis, worth in whole.items())


def test_values_between_segments_may_lie_in_scratch_files(monkeypatch: pytest.MonkeyPatch) -> None:
    program, data = subject("bert")
    whole = rated(program, data, "obs", 0)
    placed: list[bool] = []

    class Kept(CrossingValues):
        def __init__(self) -> None:
            super().__init__(limit=0)

        def _placed(self, value: object) -> tuple[object, int]:
            found, size = super()._placed(value)
            placed.append(isinstance(found, Tensor) and is_mapped(found))
            return found, size

    monkeypatch.setattr("fxprune.calibration.run.CrossingValues", Kept)
    monkeypatch.setattr("fxprune.storage.scratch.SMALLEST_FILE", 0)
    parts = rated(program, data, "obs", FEW)
    assert sum(placed) > 20
    assert all(torch.equal(worth.order, parts[axis].order) for axis, worth in whole.items())


def test_all_nodes_lie_in_one_segment_each_and_little_crosses() -> None:
    program = trained()
    found = segments_of(program, LAYER)
    wanted = [node for node in program.graph.nodes if node.op not in ("placeholder", "get_attr", "output")]
    assert [node for each in found for node in each.nodes] == wanted
    crossing = [[node for node in each.leaves if isinstance(node.meta["val"], Tensor)] for each in found[:-1]]
    assert len(found) >= LAYERS
    assert [len(each) for each in crossing] == [1] * len(crossing)  # the stream alone
    assert all(set(one.leaves) <= set(other.reads) for one, other in pairwise(found))


class Drawing(nn.Module):
    """A net whose values can't be computed twice."""

    def __init__(self, draws: bool) -> None:
        super().__init__()
        self.first, self.second, self.draws = nn.Linear(64, 64), nn.Linear(64, 64), draws

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if self.draws:
            return self.second(h + torch.rand_like(h))
        h[:, :2].mul_(0.5)
        return self.second(h)


@pytest.mark.parametrize("draws", [True, False])
def test_what_cannot_be_computed_twice_is_one_segment(draws: bool) -> None:
    program = capture(Drawing(draws).eval(), (torch.randn(2, 64),))
    assert len(segments_of(program, FEW)) == 1


class Names(Observer):
    """Observer that counts the nodes of each record, and those left after each segment."""

    values = frozenset({"ids"})

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []
        self.left: list[int] = []

    def take(self, seen: BatchRecord) -> None:
        self.seen.append((seen.batch, len(seen.nodes)))

    def done(self, left: frozenset[str]) -> None:
        self.left.append(len(left))


def test_without_gradients_each_segment_is_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    program = trained()
    data = Calibration(tuple({"ids": examples(4, seed)[0]} for seed in range(3)))
    watch = Names()
    run_calibration(program, data, [watch], Objective(), FEW)
    count = len(segments.segments_of(program, FEW))
    assert len(watch.seen) == 3 * count
    assert watch.left == sorted(watch.left, reverse=True)
    assert watch.left[-1] == 0
