"""Kept steps: a long run on a program on disk that is killed in the middle goes on there, and ends as one that was not."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fxprune import Program
from fxprune.calibration import Calibration, repair
from fxprune.calibration.run import _Sweep
from fxprune.passes import parse_pipeline
from fxprune.pipeline import Context, Result
from fxprune.storage import kept_steps
from fxprune.training.loop import Checkpoints
from support.slimmable import BATCH, LENGTH, subject

FEW = 4096
"""Bytes of weights of a segment."""


class KilledError(BaseException):
    """Exception that ends a run in the middle."""


@pytest.fixture(autouse=True)
def _patched(monkeypatch: pytest.MonkeyPatch) -> None:
    from_files(monkeypatch)


def from_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every program is too large for memory, and every step long enough to be kept."""
    monkeypatch.setattr("fxprune.storage.limits.COPIES", 10**12)
    monkeypatch.setattr("fxprune.storage.scratch.SMALLEST_FILE", 1)
    monkeypatch.setattr("fxprune.calibration.segments.SEGMENT_BYTES", FEW)
    monkeypatch.setattr(kept_steps, "SECONDS", 0.0)


def run(text: str, program: Program, data: Calibration, folder: Path) -> Result:
    context = Context(
        data=data, point={"batch": BATCH, "length": LENGTH}, cache=False, checkpoints=Checkpoints(folder, 1e9)
    )
    return parse_pipeline(text).run(program, context)


def counted(monkeypatch: pytest.MonkeyPatch, name: str, last: int = 0) -> list[int]:
    """Count the calls of a method of the sweep; the call after `last` kills the run."""
    calls: list[int] = []
    plain = getattr(_Sweep, name)

    def method(self: Any, *given: Any) -> Any:
        if last and len(calls) == last:
            raise KilledError
        calls.append(1)
        return plain(self, *given)

    monkeypatch.setattr(_Sweep, name, method)
    return calls


def same(one: Result, other: Result) -> None:
    assert one.selection.to_json() == other.selection.to_json()
    assert one.refitted == other.refitted
    mine, theirs = one.program.tensors(), other.program.tensors()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert one.proof.status == other.proof.status == "equal"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("bert", "slim(params=0.7)"),
        ("llama", "slim(flops=0.7, repair='all+logits')"),
        ("gpt2", "ffn(ratio=0.5, score='taylor')"),
    ],
)
def test_a_run_that_is_killed_in_its_third_segment_goes_on_there(
    name: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, data = subject(name)
    whole_calls = counted(monkeypatch, "_back")
    whole = run(text, program, data, tmp_path / "whole")
    batches = len(data.batches)
    monkeypatch.undo()
    from_files(monkeypatch)
    counted(monkeypatch, "_back", last=2 * batches + 1)
    with pytest.raises(KilledError):
        run(text, program, data, tmp_path / "killed")
    monkeypatch.undo()
    from_files(monkeypatch)
    again = counted(monkeypatch, "_back")
    same(run(text, program, data, tmp_path / "killed"), whole)
    assert len(again) == len(whole_calls) - 2 * batches


def test_a_run_that_is_killed_while_it_fits_goes_on_at_that_matrix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, data = subject("bert")
    plain, calls = repair._fitted, list[str]()
    last = 0

    def fitted(slim: Any, task: Any, *given: Any) -> Any:
        if last and len(calls) == last:
            raise KilledError
        calls.append(task.map.weights[0])
        return plain(slim, task, *given)

    monkeypatch.setattr(repair, "_fitted", fitted)
    whole = run("slim(params=0.7)", program, data, tmp_path / "whole")
    matrices = len(whole.steps[0].details["refits"])
    last = len(calls) - matrices + 2
    calls.clear()
    with pytest.raises(KilledError):
        run("slim(params=0.7)", program, data, tmp_path / "killed")
    last = 0
    calls.clear()
    same(run("slim(params=0.7)", program, data, tmp_path / "killed"), whole)
    assert len(calls) == matrices - 2


def test_steps_of_other_data_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, data = subject("bert")
    counted(monkeypatch, "_back", last=3 * len(data.batches))
    with pytest.raises(KilledError):
        run("ffn(ratio=0.5, score='taylor')", program, data, tmp_path / "killed")
    monkeypatch.undo()
    from_files(monkeypatch)
    other = Calibration(data.batches[1:])
    whole = run("ffn(ratio=0.5, score='taylor')", program, other, tmp_path / "whole")
    same(run("ffn(ratio=0.5, score='taylor')", program, other, tmp_path / "killed"), whole)


def test_without_a_store_nothing_is_kept() -> None:
    keeper = kept_steps.keeper("sweep")
    assert (keeper.is_due, keeper.read()) == (False, None)
    keeper.write(1, ({"x": torch.ones(1)}, {}))
    assert keeper.read() is None
