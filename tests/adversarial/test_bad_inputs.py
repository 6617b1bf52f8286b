"""Bad inputs: whatever option or file is bad, the command ends with exit code 2 and a sentence that names it, and leaves nothing behind."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fxprune.cost.latency import Clock
from fxprune.errors import FxpruneError, UsageError
from fxprune.files import draft_file, write_text
from fxprune.passes import Lowrank, Slim
from fxprune.passes.blocks import _kept_heads
from fxprune.runtimes.base import DEFAULT
from fxprune.tools.commands import layer_family, run
from fxprune.tools.commands.main import main
from support.bad_files import BROKEN, PLACES, BadFile, bad_files
from support.bad_inputs import CALLS, NET, BadCall, bad_calls
from support.bad_place import MODULES, furnish

pytest.importorskip("transformers")
for extra in ("optimum", "accelerate", "datasets", "matplotlib", "sklearn"):
    pytest.importorskip(extra)

BAD_CALLS, BAD_FILES = list(bad_calls()), list(bad_files())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working folder, with right files; measuring is cut short."""
    root = tmp_path_factory.mktemp("bad")
    (root / "modules").mkdir()
    for name, source in MODULES.items():
        (root / "modules" / f"{name}.py").write_text(source)
    (root / "place").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root / "modules")
        patch.chdir(root / "place")
        patch.setenv("FXPRUNE_CACHE", str(root / "costs.json"))
        patch.setattr(run, "_SECONDS_A_POINT", 0.01)
        patch.setattr(run, "warm_up", lambda: None)
        patch.setattr(layer_family, "_SECONDS", 0.01)
        furnish(root / "place")
        yield root / "place"


def found(place: Path) -> dict[str, tuple[int, int]]:
    """All that lies in the folder: sizes and times, by path."""
    paths = ((path, path.lstat()) for path in place.rglob("*"))
    return {str(path.relative_to(place)): (told.st_size, told.st_mtime_ns) for path, told in paths}


def refused(
    place: Path, arguments: Sequence[str], named: Sequence[str], capfd: pytest.CaptureFixture[str]
) -> None:
    before = found(place)
    try:
        code = main(list(arguments))
        told = capfd.readouterr()
        assert (code, told.out) == (2, ""), told.err
        lines = told.err.splitlines()
        assert len(lines) <= 3
        assert "Traceback" not in told.err
        assert any(name.lower() in told.err.lower() for name in named), (named, told.err)
        assert found(place) == before
    finally:
        for path in ("out", "out.run", "out.journal.jsonl"):
            shutil.rmtree(place / path, ignore_errors=True)
            (place / path).unlink(missing_ok=True)


def test_there_are_hundreds() -> None:
    assert len(BAD_CALLS) > 700
    assert len(BAD_FILES) > 400
    assert {call.arguments[0] for call in BAD_CALLS} == CALLS.keys()


@pytest.mark.parametrize("bad", BAD_CALLS, ids=lambda bad: bad.name)
def test_a_bad_value_is_refused_and_named(
    bad: BadCall, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    refused(place, bad.arguments, bad.named, capfd)


@pytest.mark.parametrize("bad", BAD_FILES, ids=lambda bad: bad.name)
def test_a_bad_file_is_refused_and_named(
    bad: BadFile, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = place / bad.kind.path
    whole = path.read_bytes()
    path.unlink()
    try:
        if bad.way in PLACES:
            _occupy(path, bad.way)
        else:
            path.write_bytes(bad.broken(whole, lambda other: (place / other).read_bytes()))
        refused(place, bad.kind.call, (path.name, *bad.kind.named), capfd)
    finally:
        _clear(path)
        path.write_bytes(whole)


def _occupy(path: Path, way: str) -> None:
    if way == "folder":
        path.mkdir()
    elif way == "link to itself":
        path.symlink_to(path.name)


def _clear(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    path.unlink(missing_ok=True)


@pytest.mark.parametrize(
    "kind", ["selection.json", "ids.txt", "net.pt2", "rows.npz", "texts.txt", "task/train.tsv"]
)
def test_a_file_that_may_not_be_read(kind: str, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read every file")
    bad = next(bad for bad in BAD_FILES if bad.kind.path == kind)
    (place / kind).chmod(0)
    try:
        refused(place, bad.kind.call, (Path(kind).name,), capfd)
    finally:
        (place / kind).chmod(0o644)


@pytest.mark.parametrize("way", BROKEN)
def test_a_broken_cache_of_costs_heals(way: str, tmp_path: Path) -> None:
    cache = tmp_path / "costs.json"
    cache.write_bytes(BROKEN[way](b'{"a": 1.0, "b": 2.0}'))
    assert Clock(DEFAULT, cache)._cached == {}


@pytest.mark.parametrize(
    "heads", [*BROKEN, 5, ["a"], {"a": 5}, {"a": ["x"]}, {"a": [True]}, {"a": [-1]}, {"a": [10**25]}]
)
def test_a_broken_record_of_kept_heads_is_refused(heads: Any, tmp_path: Path) -> None:
    path, record = tmp_path / "train.json", {"format": "fxprune.train/1", "heads": {"a": [0]}}
    whole = json.dumps(record).encode()
    broken = (
        BROKEN[heads](whole) if isinstance(heads, str) else json.dumps({**record, "heads": heads}).encode()
    )
    path.write_bytes(whole)
    assert _kept_heads(path) == {"a": [0]}
    path.write_bytes(broken)
    with pytest.raises(UsageError, match=r"train\.json"):
        _kept_heads(path)


@pytest.mark.parametrize("way", ["link", "file"])
def test_what_stands_in_the_place_of_a_file_stays(way: str, tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    if way == "link":
        target.symlink_to(target.name)
    else:
        target.touch()
    with pytest.raises(FxpruneError, match=r"page\.html exists"):
        write_text(target, "text")
    with pytest.raises(FxpruneError, match=r"page\.html exists"), draft_file(target, overwrite=False):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert target.is_symlink() == (way == "link")


def test_a_full_disk_is_a_sentence_and_leaves_no_draft(
    place: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Path.write_text

    def full(self: Path, text: str, **more: str) -> int:
        if "fxprune.selection/1" not in text:
            return honest(self, text, **more)
        honest(self, text[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    monkeypatch.setattr(Path, "write_text", full)
    refused(place, CALLS["run"], ("No space left on device",), capfd)


#: passes that look at calibration data, each in its own way
LOOKING = (
    "lowrank(energy=0.9)",
    "lowrank(rank=2, whiten=False)",
    "slim(flops=0.5)",
    "slim(flops=0.5, score='activation', repair='none')",
    "ffn(ratio=0.5, score='activation')",
    "ffn(ratio=0.5, score='obs')",
)


@pytest.mark.parametrize("pipeline", LOOKING)
def test_calibration_out_of_range_is_refused(
    pipeline: str, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    np.savez(place / "huge.npz", input_1=np.full((9, 8), 1e30, np.float32))
    try:
        call = ("run", NET, "-p", pipeline, "-o", "out", "--calibration", "huge.npz")
        refused(place, call, ("the calibration data are out of range",), capfd)
    finally:
        (place / "huge.npz").unlink()


@pytest.mark.parametrize("pipeline", LOOKING[:3])
def test_a_single_row_is_refused_before_the_search(
    pipeline: str, place: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def searched(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(Slim, "decide", searched)
    monkeypatch.setattr(Lowrank, "_choices", searched)
    call = ("run", NET, "-p", pipeline, "-o", "out", "--calibration", "rows.npz", "--rows", "1")
    refused(place, call, ("can't be split",), capfd)
