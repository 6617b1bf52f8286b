"""Folder of a training run's checkpoints (OUT.run): its options, which run they are of, and whether another may go on from them."""

import argparse
import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fxprune.errors import UsageError
from fxprune.files import about, parse_json, read_text, write_text
from fxprune.tools.commands.options import add_option
from fxprune.tools.reports.output_folder import check_path

FILE = "run.json"
_FORMAT = "fxprune.checkpoints/1"
_WAY_OUT = "--restart begins anew there, --run names another folder"

_KINDS = ("teacher", "student*", "pass-*", "steps-*", "recover-*")
"""Patterns of the folders of checkpoints."""


def add_run_options(parser: argparse._ActionsContainer) -> None:
    """Add `--run`, `--save` and `--restart`."""
    text = "where checkpoints are kept (OUT.run): the same command goes on where it stood"
    parser.add_argument("--run", metavar="DIR", help=text)
    add_option(parser, "--save", 120.0, "SECONDS", "from one checkpoint to the next (120)")
    parser.add_argument("--restart", action="store_true", help="begin anew")


def run_folder(options: argparse.Namespace) -> Path:
    """Return the folder of checkpoints: that of `--run`, else OUT.run."""
    return Path(options.run or f"{options.output}.run")


def remove_checkpoints(folder: Path, record: bool = False) -> None:
    """Remove the checkpoints of a folder; with `record` also that of the run, and the folder where nothing else is in it."""
    for path in (path for kind in _KINDS for path in folder.glob(kind)):
        shutil.rmtree(path, ignore_errors=True)
    if record:
        with contextlib.suppress(OSError):
            (folder / FILE).unlink()
            folder.rmdir()


def check_run_folder(folder: Path, asked: Mapping[str, Any], restart: bool) -> None:
    """Raise UsageError where a run with these options may not use the folder; nothing is written.

    A run that was refused before its first checkpoint leaves nothing to go on from, so it forbids nothing.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; --run names another folder for the checkpoints")
    check_path(folder)
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    before = _read(folder)
    if restart or not any(folder.glob("*/step-*")):
        return
    others = [
        f"{name}={before.get(name)!r}, this one has {value!r}"
        for name, value in asked.items()
        if before.get(name) != value
    ]
    if others:
        raise UsageError(f"{folder} holds a run with {'; '.join(others)}; {_WAY_OUT}")


@contextlib.contextmanager
def kept_run(folder: Path, asked: Mapping[str, Any], restart: bool) -> Iterator[None]:
    """Open the folder for the block; where that fails before its first checkpoint, what was made for it is removed."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    open_run_folder(folder, asked, restart)
    try:
        yield
    except BaseException:
        if not any(folder.glob("*/step-*")):
            _forget(folder, made)
        raise


def _forget(folder: Path, made: Sequence[Path]) -> None:
    """Remove the record of a run and the empty folders that were made for it."""
    with contextlib.suppress(OSError):
        (folder / FILE).unlink()
        for path in (*folder.glob("*/"), *made):
            path.rmdir()


def open_run_folder(folder: Path, asked: Mapping[str, Any], restart: bool) -> None:
    """Record the options of a run in its folder, once `check_run_folder` has passed; `restart` removes what it holds."""
    check_run_folder(folder, asked, restart)
    if restart and folder.is_dir():
        remove_checkpoints(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"format": _FORMAT, "options": dict(asked)}, indent=1) + "\n"
        if not (folder / FILE).is_file() or read_text(folder / FILE, "run", UsageError) != text:
            write_text(folder / FILE, text, overwrite=True)
    except OSError as error:
        raise UsageError(f"can't write to {folder}: {error.strerror}; --run names another folder") from error


def _read(folder: Path) -> dict[str, Any]:
    """Return the options of the run in a folder; UsageError where it is of something else."""
    if not (folder / FILE).is_file():
        raise UsageError(f"{folder} holds no checkpoints of fxprune; --run names another folder")
    text = read_text(folder / FILE, "run", UsageError)
    what = f"record of a run that can go on here ({folder}; --run names another folder)"
    with about(folder / FILE):
        return dict(parse_json(text, (_FORMAT, "options", dict), what, UsageError)["options"])
