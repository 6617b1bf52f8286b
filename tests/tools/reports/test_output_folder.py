"""The folder for the results: what is known before the work, and what is left of it after a failure."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fxprune.errors import ExportError, UsageError
from fxprune.tools.reports.marked_folders import MARK, leftovers, marked_folder
from fxprune.tools.reports.output_folder import check_output_folder, draft_folder

KILLED = """
import os, signal, sys
from pathlib import Path
from fxprune.tools.reports.output_folder import draft_folder
with draft_folder(Path(sys.argv[1])) as draft:
    (draft / "model.onnx").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def killed(target: Path) -> None:
    assert subprocess.run([sys.executable, "-c", KILLED, str(target)], check=False).returncode == -9


@pytest.mark.parametrize("read", ["out", "out/model.pt2", "out/checkpoint/config.json", "link/model.pt2"])
def test_a_folder_that_holds_an_input_is_refused(read: str, tmp_path: Path) -> None:
    (tmp_path / "out" / "checkpoint").mkdir(parents=True)
    for name in ("model.pt2", "checkpoint/config.json"):
        (tmp_path / "out" / name).write_text("mine")
    (tmp_path / "link").symlink_to("out")
    with pytest.raises(UsageError, match="which is read; give another folder"):
        check_output_folder(tmp_path / "out", True, [tmp_path / read])
    check_output_folder(tmp_path / "out" / "slim", False, [tmp_path / read])
    assert (tmp_path / "out" / "model.pt2").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("o" * 300, "File name too long"),
        ("/".join(["folder"] * 800), "File name too long"),
        ("loop", "Too many levels of symbolic links"),
        ("loop/out", "Too many levels of symbolic links"),
        ("dangling", "is a link to nowhere, which does not exist"),
        ("nul\0", "embedded null byte"),
        ("file", "is a file; give the name of a folder"),
        ("file/deep/out", "is a file; give the name of a folder"),
        ("full", "full/report.md is a folder with the name of a file"),
    ],
)
def test_a_place_that_can_not_be_one_is_known_before_the_work(name: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "file").write_text("")
    (tmp_path / "full" / "report.md").mkdir(parents=True)
    before = names(tmp_path)
    with pytest.raises(UsageError, match=why):
        check_output_folder(tmp_path / name, True)
    assert names(tmp_path) == before


def test_a_place_that_can_not_be_written_to_and_a_full_disk_are_known_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="can't write to /proc"):
        check_output_folder(Path("/proc/out"), False)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 8, 1))
    with pytest.raises(UsageError, match="the disk is full"):
        check_output_folder(tmp_path / "out", False)
    assert names(tmp_path) == []


def test_the_draft_lies_in_the_file_system_of_the_folder(tmp_path: Path) -> None:
    """A folder that exists may be a mount point: nothing can be renamed into it from its parent."""
    (tmp_path / "out").mkdir()
    with draft_folder(tmp_path / "out") as draft:
        assert draft.parent.parent == tmp_path / "out"
        (draft / "model.onnx").write_text("new")
    assert names(tmp_path / "out") == ["model.onnx"]
    with draft_folder(tmp_path / "deep" / "out") as draft:
        assert draft.parent.parent == tmp_path
        (draft / "model.onnx").write_text("new")
    assert names(tmp_path) == ["deep", "out"]


@pytest.mark.skipif(not os.path.ismount("/dev/shm"), reason="no second file system")
def test_a_mount_point_takes_results(tmp_path: Path) -> None:
    with marked_folder("test", Path("/dev/shm"), "a test") as folder:
        (tmp_path / "out").symlink_to(folder)
        with draft_folder(tmp_path / "out") as draft:
            (draft / "model.onnx").write_text("new")
        assert names(folder) == [MARK, "model.onnx"]


def test_a_move_that_fails_leaves_the_folder_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.txt", "b.txt", "tokenizer.json"):
        (tmp_path / name).write_text("old")
    (tmp_path / "fxprune.json").write_text('{"files": ["a.txt", "b.txt", "tokenizer.json"]}')
    rename, moved = Path.rename, []

    def failing(self: Path, target: Path) -> Path:
        moved.append(self)
        if len(moved) == 5:
            raise OSError(28, "No space left on device")
        return rename(self, target)

    def replace_both() -> None:
        with draft_folder(tmp_path) as draft:
            (draft / "a.txt").write_text("new")
            (draft / "b.txt").write_text("new")

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(ExportError, match="No space left"):
        replace_both()
    assert names(tmp_path) == ["a.txt", "b.txt", "fxprune.json", "tokenizer.json"]
    assert {(tmp_path / name).read_text() for name in ("a.txt", "b.txt", "tokenizer.json")} == {"old"}


@pytest.mark.parametrize("there", [True, False])
def test_what_a_killed_run_left_is_removed_by_the_next(there: bool, tmp_path: Path) -> None:
    target = tmp_path / "out"
    if there:
        target.mkdir()
    killed(target)
    (left,) = (target if there else tmp_path).iterdir()
    assert left.name.startswith(".out-")
    (tmp_path / ".out-mine").mkdir()
    check_output_folder(tmp_path / "other", False)
    assert left.exists()
    check_output_folder(target, False)
    assert not left.exists()
    assert names(tmp_path) == ([".out-mine", "out"] if there else [".out-mine"])


def test_a_folder_that_a_run_still_holds_or_that_bears_no_mark_of_ours_stays(tmp_path: Path) -> None:
    forged = {".out-a": "", ".out-b": "fxprune.draft/1\nanother\n", ".out-c": "fxprune.draft/1\nme\nmore"}
    for name, text in forged.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / MARK).write_text(text)
    with marked_folder("out", tmp_path, "me"):
        assert leftovers("out", tmp_path, "me") == []
    assert names(tmp_path) == sorted(forged)
    (tmp_path / ".out-c" / MARK).write_text("fxprune.draft/1\nme\n")
    assert leftovers("out", tmp_path, "me") == [tmp_path / ".out-c"]
