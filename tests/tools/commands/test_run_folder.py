"""OUT.run: checkpoints of one run, which another does not take, and a folder of somebody else is not touched."""

from pathlib import Path
from typing import Any

import pytest

from fxprune.errors import UsageError
from fxprune.tools.commands.run_folder import check_run_folder, open_run_folder

ASKED: dict[str, Any] = {"epochs": 3, "seed": 0}


def test_a_run_without_a_checkpoint_forbids_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "out.run"
    check_run_folder(folder, {"epochs": 0}, restart=False)
    assert not folder.parent.exists()
    open_run_folder(folder, {"epochs": 0}, restart=False)
    open_run_folder(folder, ASKED, restart=False)
    assert [path.name for path in folder.iterdir()] == ["run.json"]


def test_what_differs_is_named_with_what_to_do(tmp_path: Path) -> None:
    open_run_folder(tmp_path, ASKED, restart=False)
    (tmp_path / "student-1" / "step-5").mkdir(parents=True)
    open_run_folder(tmp_path, ASKED, restart=False)
    said = "holds a run with epochs=3, this one has 4; seed=0, this one has 1; --restart begins anew"
    with pytest.raises(UsageError, match=said):
        check_run_folder(tmp_path, {"epochs": 4, "seed": 1}, restart=False)
    open_run_folder(tmp_path, {"epochs": 4}, restart=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize("text", [None, "[1]", '{"model": "mine"}', "[" * 100_000, "half"])
def test_a_folder_of_somebody_else_is_left_alone(text: str | None, tmp_path: Path) -> None:
    (tmp_path / "teacher").mkdir()
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match="--run names another folder"):
        open_run_folder(tmp_path, ASKED, restart=True)
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file; --run names another folder"):
        check_run_folder(tmp_path / "file", ASKED, restart=False)
