"""Kept outcomes: a pipeline that was killed in a recovery goes on there, and takes nothing that followed from something else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fxprune import Program, parse_pipeline
from fxprune.ir import difference, run_example
from fxprune.ir.edit import with_tensors
from fxprune.passes import Channels, Fold
from fxprune.pipeline import Context, Outcome, Progress, Result
from fxprune.pipeline.kept_outcomes import _digest
from fxprune.training.loop import Checkpoints
from support.recovering import data, trained

pytestmark = pytest.mark.usefixtures("one_thread")

RECOVER = "recover(steps=12, rate=0.003, precision='no')"
CUT = "channels(ratio=0.5)"
TAKEN = "taken from the checkpoints of a run that did not come to its end"


class KilledError(Exception):
    """Stands for a signal."""


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that fills with the names of the passes that run."""
    names = list[str]()
    for kind in (Channels, Fold):
        own = kind.run

        def run(self: Any, program: Program, context: Context, own: Any = own) -> Outcome:
            names.append(self.name)
            found: Outcome = own(self, program, context)
            return found

        monkeypatch.setattr(kind, "run", run)
    return names


def context(folder: Path, **more: Any) -> Context:
    return Context(**{"data": data("unet"), "checkpoints": Checkpoints(folder, 0), **more})


def killed(text: str, within: Context, at: float = 0.5) -> None:
    def kill(progress: Progress) -> None:
        if progress.stage.startswith("recover") and progress.total and progress.done > at * progress.total:
            raise KilledError

    with pytest.raises(KilledError):
        parse_pipeline(text).run(trained("unet"), replace(within, observe=kill))


def run(text: str, within: Context) -> Result:
    return parse_pipeline(text).run(trained("unet"), within)


def test_a_killed_pipeline_goes_on_at_its_recovery(tmp_path: Path, ran: list[str]) -> None:
    text = f"{CUT}, {RECOVER}"
    whole = run(text, context(tmp_path / "whole"))
    killed(text, context(tmp_path / "kept"))
    assert [path.name for path in sorted((tmp_path / "kept").iterdir())] == ["pass-1", "recover-2"]
    ran.clear()
    found = run(text, context(tmp_path / "kept"))
    assert ran == []
    assert difference(run_example(found.program), run_example(whole.program)) < 1e-5
    assert found.selection == whole.selection
    assert found.proof.relative <= found.proof.bar
    assert found.steps[0].remarks == (TAKEN,)
    assert "it went on at step" in found.steps[1].remarks[0]
    again = run(text, context(tmp_path / "kept"))
    assert [step.remarks[-1] for step in again.steps] == [TAKEN, TAKEN]
    assert [step.text for step in again.steps] == [step.text for step in whole.steps]
    assert difference(run_example(again.program), run_example(found.program)) == 0.0


def test_rounds_go_on_in_the_second_recovery(tmp_path: Path, ran: list[str]) -> None:
    text = f"{CUT}, {RECOVER}, channels(ratio=0.2), {RECOVER}"
    killed(text, context(tmp_path), at=0.99)  # in the first
    run(text, context(tmp_path))
    assert ran == ["channels", "channels"]
    names = ["pass-1", "pass-2", "pass-3", "pass-4", "recover-2", "recover-4"]
    assert [path.name for path in sorted(tmp_path.iterdir())] == names


def test_what_a_selection_and_tensors_do_not_give_again_runs_again(
    tmp_path: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"{CUT}, fold, {RECOVER}"
    own = Fold.run

    def noted(self: Fold, program: Program, context: Context) -> Outcome:
        found = own(self, program, context)
        return replace(found, program=found.program.replace(notes=("folded",)))

    monkeypatch.setattr(Fold, "run", noted)
    killed(text, context(tmp_path))
    ran.clear()
    found = run(text, context(tmp_path))
    assert ran == ["fold"]
    assert found.proof.relative <= found.proof.bar
    assert "it went on at step" in found.steps[2].remarks[0]


@pytest.mark.parametrize("text", ["channels(ratio=0.25)", CUT])
def test_other_options_and_other_weights_are_not_taken(tmp_path: Path, ran: list[str], text: str) -> None:
    killed(f"{CUT}, {RECOVER}", context(tmp_path))
    ran.clear()
    program = trained("unet")
    if text == CUT:
        name, value = next(iter(program.tensors().items()))
        program = with_tensors(program, {name: 2 * value.detach()})
    found = parse_pipeline(f"{text}, {RECOVER}").run(program, context(tmp_path))
    assert ran == ["channels"]
    assert "it began anew: the checkpoint" in found.steps[1].remarks[0]
    assert "is of another cut, or of other options" in found.steps[1].remarks[0]


def test_without_checkpoints_nothing_is_kept_and_nothing_said(ran: list[str]) -> None:
    found = run(f"{CUT}, {RECOVER}", context(Path("nowhere"), checkpoints=None))
    assert not Path("nowhere").exists()
    assert [len(step.remarks) for step in found.steps] == [0, 1]


def test_data_and_code_of_the_users_own_are_told_apart(tmp_path: Path) -> None:
    slim, program = parse_pipeline("slim(params=0.5)").passes[0], trained("unet")
    own = context(tmp_path)
    few = replace(data("unet"), batches=data("unet").batches[:8])
    found = [_digest(slim, program, each) for each in (own, replace(own, data=few), replace(own, seed=1))]
    assert len({*found}) == 3
    assert _digest(slim, program, replace(own, loss=lambda *_: torch.zeros(()))) == ""
