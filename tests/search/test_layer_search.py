"""Layer search: the right layers go, with as many evaluations as the paper counts, and none is ever repeated."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import onnx
import pytest
import torch

from fxprune import analyze, apply, export_onnx, parse_pipeline
from fxprune.errors import PipelineError, SelectionError, UsageError
from fxprune.ir import Selection
from fxprune.passes import Layers
from fxprune.pipeline import Context
from fxprune.search import Journal
from fxprune.search.layer_search import exhaustive, greedy, oneshot, search_layers
from support import planted

IDLE = [f"layers.{i}" for i in reversed(planted.IDLE)]


class Table:
    """Rates from a table: what is missed of a set is the sum of its parts, and more where two go together."""

    def __init__(self, missed: dict[str, float], together: dict[frozenset[str], float] | None = None) -> None:
        self.missed, self.together, self.asked = missed, together or {}, 0

    def rate(self, removed: Sequence[str], candidates: Sequence[str]) -> list[float]:
        self.asked += len(candidates)
        return [self._rate(frozenset((*removed, name))) for name in candidates]

    def _rate(self, gone: frozenset[str]) -> float:
        extra = sum(worth for pair, worth in self.together.items() if pair <= gone)
        return -sum(self.missed[name] for name in gone) - extra


def test_greedy_sees_what_is_gone_and_oneshot_does_not() -> None:
    rater = Table({"a": 1.0, "b": 2.0, "c": 3.0}, {frozenset("ab"): 5.0})
    assert greedy(rater, "abc", 2).order == ("a", "c")
    assert oneshot(rater, "abc", 2).order == ("a", "b")
    assert exhaustive(rater, "abc", 2).order == ("a", "c")


def test_ties_go_to_the_highest_index() -> None:
    rater = Table(dict.fromkeys("abcd", 1.0))
    assert greedy(rater, "abcd", 3).order == ("d", "c", "b")
    assert oneshot(rater, "abcd", 2).order == ("d", "c")
    assert exhaustive(rater, "abcd", 2).order == ("c", "d")


@pytest.mark.parametrize(("size", "count"), [(12, 6), (8, 3), (5, 1)])
def test_greedy_makes_as_many_evaluations_as_the_paper_counts(size: int, count: int) -> None:
    rater = Table({str(i): float(i) for i in range(size)})
    found = greedy(rater, list(rater.missed), count)
    assert rater.asked == found.evaluations == size * count - count * (count - 1) // 2


def test_the_idle_layers_of_a_trained_encoder_go_and_nothing_changes(tmp_path: Path) -> None:
    program = planted.trained()
    found = Layers(count=3).find(program, Context(evaluate=planted.fit))
    assert found is not None
    assert list(found.order) == IDLE
    assert found.evaluations == 8 * 3 - 3
    slim = apply(program, Selection(removed=found.order))
    ids = planted.examples(16, 1)[0]
    assert (slim(ids) - program(ids)).abs().max() <= 1e-6
    export_onnx(slim, tmp_path / "slim.onnx")
    names = [tensor.name for tensor in onnx.load(tmp_path / "slim.onnx").graph.initializer]
    assert not [name for name in names if name.startswith(tuple(f"layers.{i}." for i in planted.IDLE))]
    assert [name for name in names if name.startswith("layers.3.")]


def test_influence_needs_no_evaluator_and_text_is_enough() -> None:
    program = planted.trained()
    result = parse_pipeline("layers(count=3)").run(program)
    assert sorted(result.selection.removed) == sorted(IDLE)
    assert [r.name for r in analyze(result.program).regions if r.unit == "layer"] == [
        f"layers.{i}" for i in range(8) if i not in planted.IDLE
    ]
    assert str(parse_pipeline('layers(count=3, unit="branch")')) == "layers(count=3, unit='branch')"


def test_loss_is_how_far_outputs_move() -> None:
    program = planted.trained()
    found = Layers(count=4, score="loss").find(program)
    assert found is not None
    assert list(found.order[:3]) == IDLE
    assert found.scores[:3] == pytest.approx((0.0, 0.0, 0.0), abs=1e-12)
    assert found.scores[3] < -1e-3
    assert Layers(count=1, score="loss", search="oneshot").plan(program).removed == ("layers.6",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("layers", "say either count or ratio"),
        ("layers(count=1, search='random')", "search must be one of greedy, oneshot, exhaustive"),
        ("layers(count=1, evaluate=3)", "layers has no option 'evaluate'"),
    ],
)
def test_bad_options_are_a_sentence(text: str, said: str) -> None:
    with pytest.raises(PipelineError, match=said):
        parse_pipeline(text)


def test_one_layer_must_stay() -> None:
    with pytest.raises(SelectionError, match="8 of 8 regions can't go"):
        Layers(count=8).find(planted.trained(), Context(evaluate=planted.fit))


def test_progress_counts_all_evaluations() -> None:
    said: list[tuple[int, int]] = []
    rater = Layers(count=2)._rater(planted.trained(), Context(evaluate=planted.fit))
    names = [f"layers.{i}" for i in range(4)]
    search_layers("greedy", rater, names, 2, lambda done, total, left: said.append((done, total)))
    assert said == [(i, 7) for i in range(1, 8)]


def test_processes_give_the_same_answer() -> None:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        found = Layers(count=1).find(planted.trained(), Context(evaluate=planted.fit, executor=pool))
    alone = Layers(count=1).find(planted.trained(), Context(evaluate=planted.fit))
    assert found is not None
    assert alone is not None
    assert found.order == alone.order == ("layers.6",)
    assert torch.allclose(torch.tensor(found.scores), torch.tensor(alone.scores), atol=1e-6)


def lines(path: Path) -> list[tuple[str, ...]]:
    return [
        tuple(json.loads(line)["removed"]) for line in path.read_text().splitlines() if line.endswith("}")
    ]


def test_a_killed_search_goes_on_and_repeats_nothing(tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    command = [sys.executable, planted.__file__, str(journal), "3"]
    killed = subprocess.Popen([*command, "0.2"], stdout=subprocess.DEVNULL)
    while not journal.exists() or len(lines(journal)) < 10:
        assert killed.poll() is None
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before = lines(journal)
    assert 10 <= len(before) < 21
    done = subprocess.run([*command, "0.2"], check=True, capture_output=True, text=True)
    assert done.stdout.split() == IDLE
    after = lines(journal)
    assert after[: len(before)] == before
    assert len(after) == len(set(after)) == 21


def test_a_journal_survives_a_torn_line_and_tells_evaluators_apart(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path, "one", "p").write(["a"], 1.0, 0.1)
    path.write_text(path.read_text() + '{"format": "fxprune.jour')
    again = Journal(path, "one", "p")
    assert again.scores == {frozenset(["a"]): 1.0}
    again.write(["b"], 2.0, 0.1)
    assert Journal(path, "one", "p").scores == {frozenset(["a"]): 1.0, frozenset(["b"]): 2.0}
    assert Journal(path, "other", "p").scores == {}
    (tmp_path / "other").write_text("[1]\n")
    with pytest.raises(UsageError, match="line 1: no journal of a search"):
        Journal(tmp_path / "other", "one", "p")
