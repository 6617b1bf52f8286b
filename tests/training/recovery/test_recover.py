"""Recovery: it closes most of the gap of a cut, never makes a program worse, keeps to its budget, and goes on where it was killed."""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fxprune import Program, parse_pipeline
from fxprune.calibration import check_calibration
from fxprune.errors import PipelineError, UsageError
from fxprune.ir import difference, run_example
from fxprune.passes import Recover
from fxprune.pipeline import Context
from fxprune.training.loop import Checkpoints
from fxprune.training.recovery import Lessons, Material, Recovered, recover
from support.recovering import NETS, cut, data, rows, trained

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 120


def recovered(name: str, options: Lessons | None = None, **more: Any) -> Recovered:
    own = options or Lessons(steps=STEPS, rate=3e-3, precision="no")
    material = more.pop("material", None) or Material(data(name))
    return recover(trained(name), cut(name), material, own, **more)


def apart(program: Program, name: str) -> float:
    """Return the mean squared difference of the outputs from the original's, on rows that nothing was trained on."""
    total = 0.0
    for batch in rows(name, 8, 77):
        ours, theirs = program(batch), trained(name)(batch)
        both = zip(_leaves(ours), _leaves(theirs), strict=True)
        total += sum(float((a - b).square().mean() / b.var()) for a, b in both)
    return total


def _leaves(outputs: Any) -> list[Tensor]:
    return list(outputs.values()) if isinstance(outputs, dict) else [outputs]


@pytest.mark.parametrize("name", NETS)
def test_most_of_the_gap_is_closed_on_rows_of_neither_part(name: str) -> None:
    done = recovered(name)
    assert done.details["kept"] is True
    assert done.details["after"] < 0.5 * done.details["before"]
    assert apart(done.program, name) < 0.5 * apart(cut(name), name)
    json.dumps(done.details)


@pytest.mark.parametrize(
    ("name", "distances"),
    [
        ("unet", {"output_0": "square"}),
        ("tagger", {"output_0": "logits"}),
        ("detector", {"boxes": "logits", "scores": "logits", "map": "square"}),
    ],
)
def test_distances_follow_from_the_graph(name: str, distances: dict[str, str]) -> None:
    assert recovered(name, Lessons(steps=1, rate=1e-3)).details["outputs"] == distances


def test_the_pipeline_proves_what_was_trained() -> None:
    text = "channels(ratio=0.5), recover(steps=30, rate=0.003)"
    found = parse_pipeline(text).run(trained("unet"), Context(data=data("unet")))
    assert found.proof.relative <= found.proof.bar == 1e-5
    assert set(found.program.parameters()) <= set(found.refitted) <= set(found.program.tensors())
    assert [step.text for step in found.steps] == ["channels(ratio=0.5)", "recover(steps=30, rate=0.003)"]
    assert [step.note for step in found.steps] == ["", ""]
    assert found.steps[1].details["recovery"]["kept"] is True


def test_what_can_not_improve_stays_as_it_was() -> None:
    done = recovered("unet", Lessons(steps=3, rate=1e6, clip=0.0))
    assert done.program is cut("unet")
    assert (done.changed, done.details["kept"]) == ((), False)


def test_a_metric_that_falls_refuses_the_result() -> None:
    seen: list[int] = []

    def worse(program: Program) -> float:
        seen.append(program.parameter_count())
        return -len(seen)

    done = recovered("unet", Lessons(steps=10, rate=1e-3), material=Material(data("unet"), metric=worse))
    assert done.program is cut("unet")
    assert done.details["metric"] == [-1, -2]


def test_an_uncut_program_has_nothing_to_recover() -> None:
    done = recover(trained("unet"), trained("unet"), Material(data("unet")), Lessons(steps=5))
    assert done.program is trained("unet")
    assert done.details["why"] == "the program already says what the original says"


def test_the_original_and_the_cut_program_stay_as_they_were() -> None:
    before = [run_example(program) for program in (trained("unet"), cut("unet"))]
    recovered("unet", Lessons(steps=5, rate=1e-2))
    after = [run_example(program) for program in (trained("unet"), cut("unet"))]
    assert [difference(a, b) for a, b in zip(before, after, strict=True)] == [0.0, 0.0]


def test_the_rate_is_found_by_trials() -> None:
    details = recovered("detector", Lessons(steps=100, precision="no")).details
    losses = {row["rate"]: row["loss"] for row in details["tried"] if not row["batch_statistics"]}
    assert details["rate"] == min(losses, key=lambda rate: losses[rate])
    assert details["rate"] >= 1e-3


def test_a_budget_of_time_is_kept_to() -> None:
    start = time.monotonic()
    details = recovered("detector", Lessons(minutes=0.1)).details
    assert time.monotonic() - start < 12  # 6 seconds, the last judgement, and a busy machine
    assert details["history"][-1]["progress"] == 1.0


class KilledError(Exception):
    """Stands for a signal."""


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    options, kept = Lessons(steps=20, rate=3e-3, precision="no"), Checkpoints(tmp_path, seconds=0)

    def kill(progress: float, seconds: float, text: str) -> None:
        if progress > 0.5:
            raise KilledError

    whole = recovered("unet", options)
    with pytest.raises(KilledError):
        recovered("unet", options, checkpoints=kept, observe=kill)
    seen: list[float] = []
    resumed = recovered(
        "unet", options, checkpoints=kept, observe=lambda progress, seconds, text: seen.append(progress)
    )
    assert min(seen) >= 0.5
    assert resumed.details["after"] == pytest.approx(whole.details["after"], rel=1e-5)
    assert [row["step"] for row in resumed.details["history"]] == [
        row["step"] for row in whole.details["history"]
    ]


def test_a_checkpoint_of_another_cut_is_not_used(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, seconds=0)
    recovered("unet", Lessons(steps=4, rate=1e-3), checkpoints=kept)
    seen: list[float] = []
    recovered("unet", Lessons(steps=4, rate=2e-3), checkpoints=kept, observe=lambda p, s, t: seen.append(p))
    assert min(seen) <= 0.25


def test_what_a_limit_left_unread_is_trained_on() -> None:
    class Stream:
        def __init__(self) -> None:
            self.read = 0

        def __iter__(self) -> Any:
            for batch in (
                *data("unet").batches,
                *check_calibration(trained("unet"), rows("unet", 4, 9)).batches,
            ):
                self.read += 1
                yield batch

    stream = Stream()
    known = check_calibration(trained("unet"), stream, 4 * 16)
    assert (len(known.batches), stream.read) == (4, 4)
    done = recovered("unet", Lessons(steps=8, rate=1e-3), material=Material(known))
    assert stream.read >= 24
    assert done.details["kept"] is True


def test_own_distance_takes_the_place_of_what_fits() -> None:
    def own(ours: Any, theirs: Any) -> Tensor:
        found: Tensor = (ours["boxes"] - theirs["boxes"]).square().mean()
        return found

    done = recovered(
        "detector", Lessons(steps=60, rate=3e-3, hidden=0), material=Material(data("detector"), distance=own)
    )
    assert done.details["after"] < 0.5 * done.details["before"]


def test_images_are_augmented_and_still_recovered() -> None:
    done = recovered("unet", Lessons(steps=STEPS, rate=3e-3, images=("x",)))
    assert done.details["after"] < 0.7 * done.details["before"]


def test_inputs_that_a_reader_knows_to_be_images_are_augmented_unless_none_is_asked_for() -> None:
    known = replace(data("unet"), images=("x",))
    assert [part.images for part in known.split(0.25, trained("unet"))] == [("x",), ("x",)]
    for text, found in (
        ("recover(steps=1, rate=0.001)", ["x"]),
        ("recover(steps=1, rate=0.001, images='none')", []),
    ):
        done = parse_pipeline(f"channels(ratio=0.5), {text}").run(trained("unet"), Context(data=known))
        assert done.steps[1].details["recovery"]["images"] == found


BAD_OPTIONS = (
    ("recover(minutes=0)", "minutes must be above 0, got 0"),
    ("recover(steps=-1)", "steps must be above 0, got -1"),
    ("recover(minutes=1, steps=1)", "say minutes or steps, not both"),
    ("recover(rate=-1)", "rate must be at least 0, got -1"),
    (
        "recover(distance='near')",
        "distance must be one of square, logits, divergence, probabilities, cosine, got 'near'",
    ),
    ("recover(local=2)", r"local must lie in \[0, 1\], got 2"),
)


@pytest.mark.parametrize(("text", "said"), BAD_OPTIONS)
def test_bad_options(text: str, said: str) -> None:
    with pytest.raises(PipelineError, match=said):
        parse_pipeline(text)


def no_run(*_: Any, **__: Any) -> None:
    raise AssertionError("a pass ran before the data were checked")


BAD_DATA: tuple[tuple[list[Tensor], str], ...] = (
    ([torch.zeros(1, 1, 8, 8)], r"1 calibration rows can't be split in two: give at least 2"),
    ([torch.zeros(4, 3, 8, 8)], "dimension 1 is fixed and must be 1"),
    ([torch.full((4, 1, 8, 8), math.nan)], "holds NaN or infinity"),
    ([], "there are no calibration data"),
)


@pytest.mark.parametrize(("batches", "said"), BAD_DATA)
def test_bad_data_are_refused_before_anything_runs(
    batches: list[Tensor], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = parse_pipeline("channels(ratio=0.5), recover(steps=5)")
    monkeypatch.setattr(type(steps.passes[0]), "run", no_run)
    with pytest.raises(UsageError, match=said):
        steps.run(trained("unet"), Context(data=batches))


def test_what_it_needs_is_said() -> None:
    with pytest.raises(UsageError, match="recover needs calibration data: give --calibration FILE"):
        parse_pipeline("recover").run(trained("unet"))
    with pytest.raises(UsageError, match="there is no input 'pictures'; inputs: x"):
        Recover(images="pictures").check_program(trained("unet"))


def test_without_accelerate_it_is_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    steps = parse_pipeline("channels(ratio=0.5), recover(steps=5)")
    monkeypatch.setattr(type(steps.passes[0]), "run", no_run)
    with pytest.raises(UsageError, match=r"install: pip install 'fxprune\[train\]'"):
        steps.run(trained("unet"), Context(data=data("unet")))
