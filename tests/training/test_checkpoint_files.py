"""Checkpoints: tensors and numbers only; what a stranger left in the folder of a run is refused or ignored, and never run."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fxprune import capture
from fxprune.errors import UsageError
from fxprune.ir import Program
from fxprune.training import Examples, Recipe
from fxprune.training.checkpoint_files import Snapshot, newest_snapshot, read_snapshot, write_snapshot
from fxprune.training.fine_tune import fine_tune
from fxprune.training.loop import Checkpoints
from support.pickles import OLD_FILES, Bomb

pytest.importorskip("accelerate")

RECIPE = Recipe(epochs=1, learning_rate=1e-2, batch_size=8)


class Tied(nn.Module):
    """A table that is also the last layer's weight, a buffer, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(20, 4), nn.Linear(4, 20, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("scale", torch.ones(4))

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        hidden = nn.functional.dropout(self.table(ids).mean(1) * self.scale, 0.5, self.training)
        return {"logits": self.head(hidden)}


def program() -> Program:
    torch.manual_seed(0)
    auto = torch.export.Dim.AUTO
    ids = torch.ones(2, 5, dtype=torch.long)
    return capture(Tied().eval(), kwargs={"ids": ids}, dynamic_shapes={"ids": {0: auto}})


def rows(count: int = 24) -> Examples:
    ids = torch.randint(1, 20, (count, 5), generator=torch.Generator().manual_seed(1))
    return Examples({"ids": ids}, ids[:, 0] % 3)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of 3 steps, which is over."""
    folder = tmp_path_factory.mktemp("run")
    fine_tune(program(), rows(), RECIPE, checkpoints=Checkpoints(folder))
    return folder


@pytest.fixture
def run(done: Path, tmp_path: Path) -> Path:
    return shutil.copytree(done, tmp_path / "run")


def resume(folder: Path) -> nn.Module:
    return fine_tune(program(), rows(), RECIPE, checkpoints=Checkpoints(folder))


def refusal(folder: Path) -> str:
    with pytest.raises(UsageError) as refused:
        resume(folder)
    told = str(refused.value)
    assert told.startswith(f"{folder / 'step-3'} is of another run, or of another version of fxprune (")
    assert told.endswith(f"); begin anew: empty {folder}, or --restart")
    return told.partition("(")[2].rpartition(");")[0]


def test_a_checkpoint_is_tensors_and_numbers(run: Path) -> None:
    step = run / "step-3"
    assert sorted(path.name for path in step.iterdir()) == ["checkpoint.json", "tensors.safetensors"]
    numbers = json.loads((step / "checkpoint.json").read_text())
    assert numbers.pop("loss") > 0
    assert numbers == {
        "format": "fxprune.checkpoint/1", "step": 3, "steps": 3, "processes": 1, "history": [],
        "sampler": {"rows": 24, "batch_size": 8, "seed": 0}, "schedule": {"steps": 3, "calls": 4, "rates": [0.0, 0.0]},
    }  # fmt: skip
    shapes = {name: list(value.shape) for name, value in load_file(step / "tensors.safetensors").items()}
    assert shapes.pop("random.0.0") == list(torch.get_rng_state().shape)
    own = {"module.head.weight": [20, 4], "module.scale": [4]}  # what is tied is there once
    adam = {"optimizer.0.step": [], "optimizer.0.exp_avg": [20, 4], "optimizer.0.exp_avg_sq": [20, 4]}
    assert shapes == own | adam


def test_what_is_tied_is_restored_and_stays_tied(run: Path) -> None:
    kept = load_file(run / "step-3" / "tensors.safetensors")
    resumed = dict(resume(run).named_parameters(remove_duplicate=False))
    assert all(torch.equal(value, kept["module.head.weight"]) for value in resumed.values())
    assert len({id(value) for value in resumed.values()}) == 1


@pytest.mark.parametrize("name", [*OLD_FILES, "checkpoint.json", "tensors.safetensors"])
def test_a_pickle_never_runs(run: Path, tmp_path: Path, name: str) -> None:
    """Alone, in place of a file, and beside a whole checkpoint, as `torch.save` and as `pickle` write it."""
    marker, step = tmp_path / "marker", run / "step-3"
    for write in (torch.save, lambda bomb, path: Path(path).write_bytes(pickle.dumps(bomb))):
        for whole in (True, False):
            if not whole and name in OLD_FILES:
                (step / "checkpoint.json").unlink(missing_ok=True)
            write(Bomb(marker), step / name)
            if whole and name in OLD_FILES:
                resume(run)
            else:
                assert refusal(run)
            assert not marker.exists()
        shutil.rmtree(run)
        fine_tune(program(), rows(), RECIPE, checkpoints=Checkpoints(run))
    Bomb.check(tmp_path / "other")  # it does write its file where it is unpickled


def test_a_checkpoint_of_an_earlier_version_is_refused(run: Path) -> None:
    for path in (run / "step-3").iterdir():
        path.unlink()
    for name in OLD_FILES:
        (run / "step-3" / name).write_bytes(b"")
    assert refusal(run) == "a checkpoint is tensors.safetensors and checkpoint.json; other files are not read"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format": "fxprune/0"}, 'this is no checkpoint: expected a JSON object with "format": "fxprune.checkpoint/1" and "step"'),
        ({"step": 4}, "step, loss or history are none of a run of 3 steps"),
        ({"step": -1}, "step, loss or history are none of a run of 3 steps"),
        ({"loss": "0"}, "step, loss or history are none of a run of 3 steps"),
        ({"history": [1]}, "step, loss or history are none of a run of 3 steps"),
        ({"steps": 6}, "steps: 6 there, and 3 in this run"),
        ({"processes": 2}, "processes: 2 there, and 1 in this run"),
        ({"sampler": None}, "sampler: None there, and {'rows': 24, 'batch_size': 8, 'seed': 0} in this run"),
        ({"schedule": []}, "schedule: expected steps, calls and 2 rates"),
        ({"schedule": {"steps": 3, "calls": 4, "rates": [0.0]}}, "schedule: expected steps, calls and 2 rates"),
        ({"schedule": {"steps": "3", "calls": 4, "rates": [0.0, 0.0]}}, "schedule: expected steps, calls and 2 rates"),
    ],
)  # fmt: skip
def test_numbers_of_another_run_are_refused(run: Path, change: dict[str, Any], sentence: str) -> None:
    path = run / "step-3" / "checkpoint.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert refusal(run) == sentence


def without(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {other: value for other, value in tensors.items() if other != name}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: without(t, "module.scale"), "module: scale is only in this run"),
        (lambda t: t | {"module.more": torch.ones(1)}, "module: more is only there"),
        (lambda t: t | {"module.scale": torch.ones(1)}, "module: scale is float32 (1,) there, and float32 (4,) in this run"),
        (lambda t: t | {"module.scale": torch.ones(4).double()}, "module: scale is float64 (4,) there, and float32 (4,) in this run"),
        (lambda t: without(t, "optimizer.0.exp_avg"), "optimizer: 0.exp_avg is only in this run"),
        (lambda t: t | {"optimizer.7.step": torch.ones(())}, "optimizer: 7.step is only there"),
        (lambda t: t | {"optimizer.0.step": torch.ones(2)}, "optimizer: 0.step is float32 (2,) there, and float32 () in this run"),
        (lambda t: without(t, "random.0.0"), "random numbers: 0 is only in this run"),
        (lambda t: t | {"random.0.0": torch.zeros_like(t["random.0.0"])}, "random numbers: Invalid mt19937 state"),
    ],
)  # fmt: skip
def test_tensors_of_another_run_are_refused(
    run: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], sentence: str
) -> None:
    path = run / "step-3" / "tensors.safetensors"
    save_file(change(load_file(path)), path)
    assert refusal(run) == sentence


@pytest.mark.parametrize("size", [0, 7, 200])
def test_files_that_were_cut_are_refused(run: Path, size: int) -> None:
    for name in ("tensors.safetensors", "checkpoint.json"):
        path = run / "step-3" / name
        whole = path.read_bytes()
        path.write_bytes(whole[:size])
        assert "can't be read" in refusal(run) or "not JSON" in refusal(run)
        path.write_bytes(whole)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"step": ' + "9" * 5_000 + "}", "\ud800"])
def test_numbers_that_json_stumbles_on_are_refused(run: Path, text: str) -> None:
    (run / "step-3" / "checkpoint.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    assert "this is no checkpoint: not JSON" in (told := refusal(run)) or "can't read the checkpoint" in told


def test_other_rows_are_another_run(run: Path) -> None:
    with pytest.raises(UsageError, match=re.escape("'seed': 0} there, and {'rows': 20")):
        fine_tune(program(), rows(20), RECIPE, checkpoints=Checkpoints(run))
    with pytest.raises(UsageError, match="steps: 3 there, and 6 in this run"):
        fine_tune(program(), rows(), replace(RECIPE, epochs=2), checkpoints=Checkpoints(run))


def test_the_newest_is_the_one_of_the_most_steps(tmp_path: Path) -> None:
    for name in ("step-9", "step-10", "step-x", "step-", "step-" + "9" * 200, "draft"):
        (tmp_path / name).mkdir()
    assert newest_snapshot(tmp_path) == tmp_path / "step-10"
    assert newest_snapshot(tmp_path / "nowhere") is None


def test_tensors_that_share_memory_are_written_apart(tmp_path: Path) -> None:
    base = torch.arange(6.0).reshape(2, 3)
    tensors = {"whole": base, "part": base[0], "turned": base.T, "narrow": base.bfloat16(), "none": base[:0]}
    write_snapshot(tmp_path, Snapshot(tensors, {"step": 1, "metric": torch.tensor(0.5)}))
    write_snapshot(tmp_path, Snapshot(tensors, {"step": 1, "metric": torch.tensor(0.5)}))
    found = read_snapshot(tmp_path / "step-1")
    assert found.numbers["metric"] == 0.5
    assert found.tensors.keys() == tensors.keys()
    assert all(torch.equal(value, tensors[name]) for name, value in found.tensors.items())
