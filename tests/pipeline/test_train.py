"""Training passes are passes: the same text trains in Python as on the command line, and what is lowered is proven."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fxprune
from fxprune import Context, Progress
from fxprune.errors import VerifyError
from fxprune.gates.lower import lower
from fxprune.passes import Grain
from fxprune.pipeline import Pass, Pipeline
from fxprune.pipeline import train as training
from fxprune.training import Examples, Recipe, Task
from fxprune.training.loop import Checkpoints
from fxprune.training.train import train
from support.gated import family
from support.models import hugging_face

pytest.importorskip("accelerate")
pytest.importorskip("transformers")

RECIPE = Recipe(epochs=2, learning_rate=1e-3, batch_size=8, seed=1)
GRAIN = "grain(density=0.4, beta=0.5)"


def rows() -> Examples:
    ids = torch.randint(1, 99, (24, 9), generator=torch.Generator().manual_seed(1))
    return Examples({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, ids[:, 0] % 3)


def context(**more: object) -> Context:
    task = Task(rows(), ("pooler_output",), lambda module: {"metric": 0.5})
    given = {"task": task, "recipe": RECIPE, "teacher": hugging_face("bert")[0], "lowering": "pad"}
    return Context(**{**given, **more})  # type: ignore[arg-type]


def test_a_pass_that_trains_runs_like_any_other_and_does_what_train_and_lower_do() -> None:
    seen: list[Progress] = []
    result = fxprune.parse_pipeline(f"{GRAIN}, fold").run(family("bert"), context(observe=seen.append))
    teacher = hugging_face("bert")[0]
    taught = train(
        family("bert"), Grain(density=0.4, beta=0.5), rows(), RECIPE, teacher, outputs=("pooler_output",)
    )
    by_hand = lower(taught.gated, taught.module).program
    run = result.steps[0].details["training"]
    assert run["density"] == taught.pruner.density <= 0.4
    assert [entry["metric"] for entry in run["history"] if "metric" in entry] == [0.5, 0.5]
    assert result.program.parameter_count() == by_hand.parameter_count()
    mine, theirs = (each(**family("bert").kwargs)["pooler_output"] for each in (result.program, by_hand))
    torch.testing.assert_close(mine, theirs)
    assert [claim.trained for claim in result.claims] == [True, False]
    assert result.proof.relative <= result.proof.bar == 1e-5
    assert not result.is_selected
    assert [(p.done, p.total) for p in seen if p.total] == [(step, 6) for step in range(1, 7)]
    assert seen[1].stage == GRAIN


def test_what_goes_before_training_is_proven_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong rewrite is found at once, and not after hours."""

    class Wrong(Pass):
        """Scale a weight."""

        name = "wrong"

        def rewrite(self, program: fxprune.Program, selection: fxprune.Selection) -> fxprune.Program:
            made = fxprune.shrink(program, selection)
            made = made.replace(graph_module=made.module())
            for parameter in made.graph_module.parameters():
                parameter.data *= 2
            return made

    monkeypatch.setattr(training, "train", lambda *_, **__: pytest.fail("it trained"))
    steps = Pipeline((Wrong(), *fxprune.parse_pipeline(GRAIN).passes))
    with pytest.raises(VerifyError):
        steps.run(family("bert"), context())


def test_several_passes_train_each_with_checkpoints_of_its_own(tmp_path: Path) -> None:
    text = f"heads(ratio=0.5), {GRAIN}, distill(epochs=1)"
    result = fxprune.parse_pipeline(text).run(family("bert"), context(checkpoints=Checkpoints(tmp_path, 0)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pass-1", "student-2", "student-3"]
    assert [step.details.get("training", {}).get("steps") for step in result.steps] == [None, 6, 3]
    assert [claim.trained for claim in result.claims] == [False, True, True]


def test_prune_trains_a_model_with_all_of_its_dropout() -> None:
    model, inputs = hugging_face("bert")
    auto = torch.export.Dim.AUTO
    shapes = {name: {0: auto, 1: auto} for name in ("input_ids", "attention_mask")}
    result = fxprune.prune(model, GRAIN, kwargs=inputs, context=context(), dynamic_shapes=shapes)
    assert result.steps[0].details["training"]["density"] <= 0.4
    assert result.module(**inputs)["pooler_output"].shape == model(**inputs)["pooler_output"].shape
