"""Fine-tuning evaluators: they train a copy, the rows are the same every time, and two runs give the same number."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fxprune import bypass, capture, export_onnx
from fxprune.errors import UsageError
from fxprune.ir import Program
from fxprune.passes import Layers
from fxprune.pipeline import Context
from fxprune.search.journal import evaluator_identity
from fxprune.search.layer_scores import EvaluationRater
from fxprune.training import TextClassification
from fxprune.training.examples import Batches
from fxprune.training.fine_tune import Examples, Recipe, accuracy, encoded, fine_tune, predicted
from support import planted

pytest.importorskip("accelerate")

RECIPE = Recipe(epochs=4, learning_rate=3e-3, batch_size=64)


def examples(count: int, seed: int = 1) -> Examples:
    ids, labels = planted.examples(count, seed)
    return Examples({"ids": ids}, labels)


@pytest.fixture(scope="module")
def program() -> Program:
    """Untrained."""
    torch.manual_seed(0)
    example = planted.examples(4, 0)[0]
    return capture(
        planted.Encoder(), kwargs={"ids": example}, dynamic_shapes={"ids": {0: torch.export.Dim.AUTO}}
    )


def evaluator(**changes: Any) -> TextClassification:
    return replace(TextClassification(examples(600), RECIPE, output="output_0"), **changes)


def test_the_rows_are_cut_in_two_the_same_way_every_time() -> None:
    train, held_back = evaluator().parts()
    assert (len(train), len(held_back)) == (510, 90)
    again = evaluator().parts()
    assert [part.digest() for part in again] == [train.digest(), held_back.digest()]
    assert evaluator(split_seed=1).parts()[0].digest() != train.digest()
    everything = torch.cat([train.inputs["ids"], held_back.inputs["ids"]]).tolist()
    assert sorted(everything) == sorted(examples(600).inputs["ids"].tolist())


def test_training_makes_it_better_and_leaves_the_program_as_it_was(program: Program) -> None:
    before = {name: value.clone() for name, value in program.tensors().items()}
    rows = examples(200, seed=7)
    trained = fine_tune(program, examples(600), RECIPE, "output_0")
    told = {
        name: accuracy(rows.labels.numpy(), predicted(program, module, rows, output="output_0").numpy())
        for name, module in (("before", program.graph_module), ("after", trained))
    }
    assert told["before"] < 0.25
    assert told["after"] > 0.3
    assert not trained.training
    assert all(torch.equal(value, before[name]) for name, value in program.tensors().items())


def test_two_evaluations_give_one_number_and_another_seed_another_order(program: Program) -> None:
    torch.manual_seed(5)
    one = evaluator()(program)
    torch.manual_seed(6)
    state = torch.get_rng_state()
    assert evaluator()(program) == one
    assert torch.equal(torch.get_rng_state(), state)
    assert round(one, 3) == one


def test_a_journal_tells_evaluators_apart() -> None:
    told = evaluator_identity(evaluator())
    assert told.startswith("text classification: accuracy of output_0, Recipe(epochs=4, learning_rate=0.003")
    others = (
        evaluator(recipe=Recipe(seed=1)),
        evaluator(split_seed=1),
        evaluator(examples=examples(600, seed=2)),
        evaluator(test=examples(10)),
        evaluator(metric=min),
    )
    assert len({told, *map(evaluator_identity, others)}) == 6
    assert evaluator_identity(pickle.loads(pickle.dumps(evaluator()))) == told


def test_a_journal_tells_models_apart_that_differ_by_one_weight(program: Program, tmp_path: Path) -> None:
    path = str(tmp_path / "journal.jsonl")
    calls: list[Program] = []

    def evaluate(candidate: Program) -> float:
        calls.append(candidate)
        return 1.0

    EvaluationRater(program, evaluate, path).scores([()])
    EvaluationRater(program, evaluate, path).scores([(), ()])
    assert len(calls) == 1
    moved = replace(program, graph_module=program.module())  # type: ignore[arg-type]
    with torch.no_grad():
        next(moved.graph_module.parameters()).view(-1)[0] += 1
    EvaluationRater(moved, evaluate, path).scores([()])
    assert len(calls) == 2


def test_greedy_with_fine_tuning_is_the_papers_own_search(program: Program, tmp_path: Path) -> None:
    quick = evaluator(examples=examples(100), recipe=replace(RECIPE, epochs=1))
    found = Layers(count=2, journal=str(tmp_path / "j.jsonl")).find(program, Context(evaluate=quick))
    assert found is not None
    assert found.evaluations == 8 + 7
    slim = bypass(program, found.order)
    assert quick(slim) == found.scores[-1]
    assert export_onnx(slim, tmp_path / "slim.onnx").relative < 1e-4


def test_on_test_rows_it_trains_on_all() -> None:
    test = examples(50, seed=9)
    train, judged = evaluator(test=test).parts()
    assert (len(train), judged.digest()) == (600, test.digest())


def test_warm_up_rises_and_then_falls() -> None:
    recipe = Recipe(warmup=0.2)
    assert [recipe.rate(step, 10) for step in (0, 1, 2, 6, 10)] == [0.0, 0.5, 1.0, 0.5, 0.0]
    assert Recipe().rate(0, 10) == 1.0


def tokenizer(texts: list[str], padding: str, max_length: int, **_: Any) -> dict[str, torch.Tensor]:
    """Letters."""
    rows = [[ord(letter) for letter in text[:max_length]] for text in texts]
    longest = max_length if padding == "max_length" else max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    return {"ids": ids, "attention_mask": (ids > 0).long()}


class Letters(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = torch.nn.Embedding(256, 8), torch.nn.Linear(8, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(ids).mean(dim=1))  # type: ignore[no-any-return]


def test_texts_become_rows_and_a_batch_is_as_long_as_its_longest() -> None:
    ids = torch.ones(3, 7, dtype=torch.long)
    free = capture(Letters(), kwargs={"ids": ids}, dynamic_shapes=True)
    rows = encoded(tokenizer, ["a", "abc", "abcde"], [0, 1, 0], free, length=4)
    assert rows.inputs.keys() == {"ids"}
    assert (rows.inputs["ids"].shape, rows.lengths.tolist()) == ((3, 4), [1, 3, 4])  # type: ignore[union-attr]
    seen: list[int] = []
    free.graph_module.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(kwargs["ids"].shape[1]), with_kwargs=True
    )
    predicted(free, free.graph_module, rows, batch_size=2, output="output_0")
    assert seen == [3, 4]
    fixed = encoded(tokenizer, ["a"], [0], capture(Letters(), kwargs={"ids": ids}))
    assert (fixed.batch([0])[0]["ids"].shape, fixed.lengths) == ((1, 7), torch.ones(1))


def test_rows_of_like_length_share_a_batch_and_every_epoch_has_other_ones() -> None:
    lengths = torch.arange(100).remainder(10) + 3
    rows = Examples({"ids": torch.zeros(100, 12, dtype=torch.long)}, torch.zeros(100), lengths)
    batches = Batches(rows, 8, 0)
    one = list(batches)
    batches.epoch = 1
    other = list(batches)
    assert len(one) == len(batches) == 13
    assert sorted(i for batch in one for i in batch) == list(range(100))
    assert one != other
    assert list(Batches(rows, 8, 0)) == one
    padded = sum(len(batch) * int(lengths[batch].max()) for batch in one)
    assert padded < 1.1 * int(lengths.sum())


def test_what_does_not_fit_is_a_sentence(program: Program) -> None:
    with pytest.raises(UsageError, match="equally many rows"):
        Examples({"ids": torch.ones(3, 2)}, torch.ones(2))
    with pytest.raises(UsageError, match="both parts need some"):
        examples(2).split(0.1, 0)
    with pytest.raises(UsageError, match="no output 'logits'; outputs: output_0"):
        TextClassification(examples(20))(program)
    with pytest.raises(UsageError, match="the program wants 'ids' as well"):
        encoded(lambda *_, **__: {"input_ids": torch.ones(1, 2)}, ["a"], [0], program)
