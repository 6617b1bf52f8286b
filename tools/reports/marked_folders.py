"""Marked folders: temporary folders that a later run recognises and removes where the run that made them was killed.

A mark is a file that names its owner and is locked as long as the run lives; the lock of a killed process is released by the system.
"""

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

if sys.platform != "win32":
    import fcntl

MARK = ".fxprune-draft"
_FORMAT = "fxprune.draft/1"
_LONGEST = 40  # of a name in a prefix: the whole must stay below 255 bytes


@contextmanager
def marked_folder(name: str, where: Path, owner: str) -> Iterator[Path]:
    """Yield a new folder in `where`, removed at the end; `owner` is the text that `remove_leftovers` looks for."""
    folder = Path(tempfile.mkdtemp(prefix=_prefix(name), dir=where))
    try:
        with (folder / MARK).open("w+", encoding="utf-8", errors="surrogateescape") as mark:
            _take(mark)  # before it can be read
            mark.write(_text(owner))
            mark.flush()
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def leftovers(name: str, where: Path, owner: str) -> list[Path]:
    """Return the marked folders of this name and owner in `where` that no living run holds."""
    with contextlib.suppress(OSError):
        found = [path for path in where.iterdir() if path.name.startswith(_prefix(name))]
        return sorted(path for path in found if _is_abandoned(path, owner))
    return []


def remove_leftovers(name: str, where: Path, owner: str) -> None:
    """Remove what `leftovers` finds."""
    for folder in leftovers(name, where, owner):
        shutil.rmtree(folder, ignore_errors=True)


def _prefix(name: str) -> str:
    return f".{name[:_LONGEST]}-"


def _text(owner: str) -> str:
    return f"{_FORMAT}\n{owner}\n"


def _is_abandoned(folder: Path, owner: str) -> bool:
    """Return whether we marked a folder for this owner, and the run that did is gone; False where that can't be known."""
    if sys.platform == "win32" or folder.is_symlink() or not (folder / MARK).is_file():
        return False
    try:
        if folder.stat().st_uid != os.getuid():
            return False
        with (folder / MARK).open("r+", encoding="utf-8", errors="surrogateescape") as mark:
            return mark.read(len(_text(owner)) + 1) == _text(owner) and _take(mark)
    except OSError:
        return False


def _take(mark: IO[str]) -> bool:
    """Lock the file of a mark; False where another process holds it. The lock goes with the file or the process."""
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
