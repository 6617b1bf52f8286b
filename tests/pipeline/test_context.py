"""Context: what a pass takes comes from it, options in the text win over it, and what is missing is named before anything runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fxprune import Context, Progress, capture, parse_pipeline
from fxprune.errors import PassError, UsageError
from fxprune.ir import Program
from fxprune.passes import Blocks, Fill, Flop, Lowrank, Slim, Split
from fxprune.pipeline import Measuring, context
from fxprune.runtimes import Settings
from fxprune.training.teacher_cache import TeacherCache


def program() -> Program:
    torch.manual_seed(0)
    batch = {0: torch.export.Dim.AUTO}
    return capture(
        nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 4)), (torch.randn(4, 8),), None, (batch,)
    )


BATCHES = [torch.randn(16, 8, generator=torch.Generator().manual_seed(1))]


@pytest.mark.parametrize("each", [Slim(latency=0.5), Lowrank(energy=0.9), Split()])
def test_options_in_the_text_win_over_the_context(each: Measuring) -> None:
    given = Context(settings=Settings(4, "basic", "openvino"), point={"batch": 2})
    assert each.settings(given) == Settings(4, "basic", "openvino")
    own = type(each)(**{**vars(each), "threads": 1, "optimization": "all", "runtime": "onnxruntime"})
    assert own.settings(given) == Settings(1, "all", "onnxruntime")
    assert dict(each.point(program(), given)) == {"batch": 2}
    assert dict(type(each)(**{**vars(each), "batch": 3}).point(program(), given)) == {"batch": 3}


@pytest.mark.parametrize(("text", "threads"), [("", 4), (", threads=1", 1)])
def test_what_is_written_is_what_is_measured_with(
    text: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`slim(latency=0.5, threads=1)` measures with one thread, whatever the context says."""

    def refuse(settings: Settings, *_: Any) -> None:
        raise UsageError(f"threads: {settings.threads}")

    monkeypatch.setattr(context, "Clock", refuse)
    steps = parse_pipeline(f"slim(latency=0.6, score='magnitude', repair='none'{text})")
    with pytest.raises(PassError, match=f"threads: {threads}$"):
        steps.run(program(), Context(settings=Settings(threads=4)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "fold, slim(flops=0.5)",
            (
                "slim(flops=0.5) needs calibration data: give --calibration FILE, or Context(data=…) in Python, "
                "or say slim(…, score='magnitude', repair='none')"
            ),
        ),
        (
            "lowrank(rank=2)",
            (
                "lowrank(rank=2) needs calibration data: give --calibration FILE, or Context(data=…) in Python, "
                "or say lowrank(…, whiten=False, update='none')"
            ),
        ),
        (
            "ffn(ratio=0.5, score='taylor')",
            (
                "ffn(ratio=0.5, score='taylor') needs calibration data: give --calibration FILE, or Context(data=…) in Python, "
                "or say ffn(…, score='magnitude')"
            ),
        ),
        (
            "grain",
            "grain needs labelled rows to train on: give `fxprune train` with --task and --data, or Context(task=…) in Python",
        ),
    ],
)
def test_what_is_missing_is_named_before_anything_runs(text: str, message: str) -> None:
    seen: list[Progress] = []
    with pytest.raises(UsageError) as caught:
        parse_pipeline(text).run(program(), Context(observe=seen.append))
    assert (str(caught.value), seen) == (message, [])


def test_batches_are_checked_once_and_may_be_a_generator() -> None:
    steps = parse_pipeline("ffn(ratio=0.5, score='taylor'), ffn(ratio=0.5, score='activation')")
    done = steps.run(program(), Context(data=(batch for batch in BATCHES)))
    assert done.program.parameter_count() < program().parameter_count()
    with pytest.raises(UsageError, match="calibration batch 1"):
        steps.run(program(), Context(data=[torch.randn(3, 7)]))


def test_progress_names_the_pass() -> None:
    seen: list[Progress] = []
    text = "slim(flops=0.5, layers=False)"
    parse_pipeline(text).run(program(), Context(data=BATCHES, observe=seen.append))
    assert {progress.stage for progress in seen} == {text}
    assert "re-fitting matrix 1 of 2" in {progress.text for progress in seen}


def test_the_seed_is_that_of_all_that_draws_unless_the_text_says_one() -> None:
    zeros = program()
    zeros.tensors()["2.weight"].data[:, ::2] = 0
    weights = [
        Fill(seed=seed).run(zeros, Context(seed=given)).program.tensors()["2.weight"]
        for seed, given in ((None, None), (0, 7), (None, 7), (7, None))
    ]
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[2], weights[3])
    assert not torch.equal(weights[0], weights[2])
    assert (Blocks(seed=None), Flop(seed=None)) == (Blocks(), Flop())


def test_a_cache_that_is_given_is_the_one_that_is_used() -> None:
    """An empty cache has a length of 0, and is a cache all the same: its limit is what the user gave."""
    given = TeacherCache(limit=5)
    assert Context(teacher_outputs=given).checked(program()).teacher_outputs is given
    assert Context().checked(program()).teacher_outputs is not None


def test_rows_of_another_kind_bound_what_a_fit_to_one_kind_loses() -> None:
    """Six rows in four of eight dims say little of the rest; judged on rows of all dims, fits that move the rest too far are not taken."""
    random = torch.Generator().manual_seed(0)
    narrow = [torch.randn(3, 8, generator=random) * torch.tensor([1.0] * 4 + [0.0] * 4) for _ in range(2)]
    broad = [torch.randn(64, 8, generator=random) for _ in range(3)]
    whole, steps = program(), parse_pipeline("slim(flops=0.4, score='magnitude', layers=False)")

    def error(given: Context) -> float:
        slim = steps.run(whole, given).program
        return float((slim(broad[2]) - whole(broad[2])).square().mean())

    alone, judged = error(Context(data=narrow)), error(Context(data=narrow, held_back=broad[:2]))
    assert judged < 0.9 * alone
    with pytest.raises(
        UsageError, match="held_back judges what is fitted on data, and there are none: give data"
    ):
        Context(held_back=broad).calibration(whole)
