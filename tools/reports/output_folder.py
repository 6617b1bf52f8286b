"""Output folder: filled as a draft on the same file system, and moved to its place when complete."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fxprune.errors import ExportError, UsageError
from fxprune.tools.inputs.loaded import MANIFEST
from fxprune.tools.reports.marked_folders import leftovers, marked_folder, remove_leftovers

_LEAST_BYTES = 2**20  # no results are smaller than their reports
_LONGEST = "checkpoint/model-00001-of-00001.safetensors.index.json"  # a long name among the results
_SUFFIXES = (".onnx", ".data", ".pt2", ".json", ".md", ".html", ".svg", ".png")


def check_output_folder(target: Path, force: bool, inputs: Iterable[Path] = ()) -> None:
    """Raise UsageError, before any work, where the results could not be placed, or would replace an input.

    What an earlier run into this folder left behind when it was killed is removed.
    """
    check_path(target)
    for entry in inputs:
        _check_input(target, entry)
    place = target.absolute()
    stale = set(leftovers(place.name, place, str(place)))
    if place.is_dir() and set(place.iterdir()) - stale and not force:
        raise UsageError(
            f"{target} is not empty; give another folder, or --force to replace the results in it"
        )
    _check_folders(target)
    beside = _beside(place)
    for where in {place, *place.parents}:
        remove_leftovers(place.name, where, str(place))
    with _workspace(place):
        if shutil.disk_usage(beside).free < _LEAST_BYTES:
            raise UsageError(f"can't write to {beside}: the disk is full")


def check_path(target: Path) -> None:
    """Raise UsageError where there can be no folder of this name: it is too long, a link that leads nowhere, a file, or below one."""
    try:
        os.lstat(target.absolute() / _LONGEST)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{str(target)[:80]!r} can't be a folder: {why}") from error
    if target.is_symlink() and not target.exists():
        raise UsageError(f"{target} is a link to {target.readlink()}, which does not exist")
    for path in (target, *target.absolute().parents):
        if path.exists() and not path.is_dir():
            raise UsageError(f"{path} is a file; give the name of a folder")


def _check_input(target: Path, entry: Path) -> None:
    out, read = (Path(os.path.realpath(path)) for path in (target, entry))
    if read.exists() and out in (read, *read.parents):
        raise UsageError(f"{target} holds {entry}, which is read; give another folder for the results")


def _check_folders(target: Path) -> None:
    """Raise UsageError where a folder has the place of a file of the results."""
    if not target.is_dir():
        return
    for path in sorted(target.iterdir()):
        if path.suffix in _SUFFIXES and path.is_dir() and not path.name.startswith("."):
            raise UsageError(
                f"{path} is a folder with the name of a file; move it away, or give another folder"
            )


@contextmanager
def draft_folder(target: Path) -> Iterator[Path]:
    """Yield a draft folder to fill; any error in the block, Ctrl-C included, leaves the target unchanged.

    In a target that exists, files of the same names are replaced, those of an earlier run (by its manifest) removed, and others kept.
    `scratch_of(draft)` is a folder for files that are no results.
    """
    target = target.absolute()
    with _workspace(target) as work:
        draft = work / "new"
        draft.mkdir()
        draft.chmod(0o755)
        yield draft
        _place(draft, target)


def scratch_of(draft: Path) -> Path:
    """Return a folder beside a draft, which goes when the draft does."""
    scratch = draft.with_name("scratch")
    scratch.mkdir(exist_ok=True)
    return scratch


@contextmanager
def _workspace(target: Path) -> Iterator[Path]:
    """Yield a hidden folder from which everything can be renamed into the target: inside it, or beside it where there is none yet."""
    beside = _beside(target)
    with contextlib.ExitStack() as stack:
        try:
            work = stack.enter_context(marked_folder(target.name, beside, str(target)))
        except OSError as error:
            raise UsageError(f"can't write to {beside}: {error.strerror}") from error
        yield work


def _beside(target: Path) -> Path:
    return next(folder for folder in (target, *target.parents) if folder.is_dir())


def _place(draft: Path, target: Path) -> None:
    try:
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            draft.rename(target)
            return
        _replace(draft, target)
    except OSError as error:
        raise ExportError(f"the results could not be moved to {target}: {error.strerror}") from error


def _replace(draft: Path, target: Path) -> None:
    """Move the files of a draft into a folder, and those that they replace out of it: all, or none where one can't be moved."""
    new = {file.name for file in draft.iterdir()}
    # Weights beside an old model.onnx must not be taken for the new one's, nor an old tokenizer for the new model's.
    gone = new | {"model.onnx.data", *_listed(target / MANIFEST)}
    old = draft.with_name("old")
    old.mkdir()
    moves = [(target / name, old / name) for name in sorted(gone) if os.path.lexists(target / name)]
    moves += [(draft / name, target / name) for name in sorted(new)]
    done: list[tuple[Path, Path]] = []
    try:
        for source, place in moves:
            done.append((source, place))
            source.rename(place)
    except BaseException:
        _undo(done)
        raise


def _undo(moves: list[tuple[Path, Path]]) -> None:
    for source, place in reversed(moves):
        if not os.path.lexists(source):
            place.rename(source)


def _listed(manifest: Path) -> list[str]:
    """Return the files of an earlier run by its manifest, only those directly in its folder."""
    try:
        found = list(json.loads(manifest.read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    return [
        name for name in found if isinstance(name, str) and name == Path(name).name and name not in ("", "..")
    ]
