"""Output folder: filled under another name beside its place, and moved there when complete."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fxprune.errors import ExportError, UsageError
from fxprune.tools.inputs.loaded import MANIFEST


def check_output_folder(target: Path, force: bool) -> None:
    """Raise UsageError, before any work, where the results could not be placed."""
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target} is a file; give the name of a folder")
    if target.is_dir() and any(target.iterdir()) and not force:
        raise UsageError(
            f"{target} is not empty; give another folder, or --force to replace the results in it"
        )


@contextmanager
def draft_folder(target: Path) -> Iterator[Path]:
    """Yield a draft folder to fill; any error in the block, Ctrl-C included, leaves the target unchanged.

    In a target that exists, files of the same names are replaced, those of an earlier run (by its manifest) removed, and others kept.
    """
    target = target.absolute()
    beside = next(folder for folder in target.parents if folder.is_dir())
    try:
        draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=beside))
    except OSError as error:
        raise UsageError(f"can't write to {beside}: {error.strerror}") from error
    try:
        draft.chmod(0o755)
        yield draft
        _place(draft, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _place(draft: Path, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):
            draft.rename(target)  # also onto an empty folder
            return
        # Weights beside an old model.onnx must not be taken for the new one's, nor an old tokenizer for the new model's.
        new = {file.name for file in draft.iterdir()}
        for name in {"model.onnx.data", *_listed(target / MANIFEST)} - new:
            _remove(target / name)
        for file in sorted(draft.iterdir()):
            if file.is_dir():
                shutil.rmtree(target / file.name, ignore_errors=True)
            file.replace(target / file.name)
    except OSError as error:
        raise ExportError(f"the results could not be moved to {target}: {error.strerror}") from error


def _remove(place: Path) -> None:
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def _listed(manifest: Path) -> list[str]:
    """Return the files of an earlier run by its manifest, only those directly in its folder."""
    try:
        found = list(json.loads(manifest.read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [
        name for name in found if isinstance(name, str) and name == Path(name).name and name not in ("", "..")
    ]
