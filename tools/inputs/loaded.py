"""Loaded models, as commands get them: module, example inputs, and where they came from."""

import importlib
import inspect
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from fxprune.errors import UsageError
from fxprune.files import about
from fxprune.frontend.capture import capture
from fxprune.frontend.io_constraints import free_dims
from fxprune.ir import Program, describe_error, first_line, quiet

MANIFEST = "fxprune.json"
"""The file that describes the results of a run, and lists its files."""


MODEL_FORMS = "minilm, hf:DIR, hf:DIR#TASK, py:PACKAGE.MODULE:FUNCTION or FILE.pt2"

OWN_FUNCTION = "give the model and its inputs in a function (py:…)"


def call_or_refuse(what: str, function: Callable[[], Any]) -> Any:
    """Call a function of the user or of a library; its errors become a UsageError that begins with `what`."""
    try:
        return function()
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{what}: {first_line(error)}") from error


def call_named(text: str, what: str) -> Any:
    """Return what the function returns that `py:PACKAGE.MODULE:FUNCTION` names; UsageError where there is none, or it fails."""
    function = find_named(text, what)
    try:
        return function()
    except (Exception, SystemExit) as error:
        raise failed_call(text, error) from error


def find_named(text: str, what: str) -> Callable[[], Any]:
    """Return the function that `py:PACKAGE.MODULE:FUNCTION` names; UsageError where there is none, or its module can't be imported."""
    module, _, name = text.removeprefix("py:").partition(":")
    if not module or not name:
        raise UsageError(f"can't read {what} {text!r}; expected py:PACKAGE.MODULE:FUNCTION")
    if "" not in sys.path:
        sys.path.insert(0, "")  # the folder that the command was called in, as `python -m` has it
    try:
        found: Callable[[], Any] = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:
        raise failed_call(text, error) from error
    return found


def failed_call(text: str, error: BaseException) -> UsageError:
    """Return the error of a function that `text` names."""
    return UsageError(f"{text} could not be called: {describe_error(error)}")


@dataclass(frozen=True)
class Loaded:
    """A model and inputs to capture it on; `notes` are warnings about its results.

    Of a Hugging Face model also its original config, its task by optimum's name, and whether code of its folder may run.
    """

    name: str
    model: nn.Module | ExportedProgram
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    dynamic_shapes: Any = None
    notes: tuple[str, ...] = ()
    config: Any = None
    task: str = ""
    trusted: bool = False

    def capture(
        self,
        free_outputs: Collection[str] = (),
        training: bool = False,
        within: str | Sequence[str] | None = None,
    ) -> Program:
        """Capture the model, for training if asked, or parts of it where it can't be captured whole (see `fxprune.capture`).

        Outputs of these names, and those below them (`past_key_values`), may shrink; `all` is every output. UsageError for unknown names.
        """
        with quiet(), about(self.name):
            given = (self.model, self.args, self.kwargs, self.dynamic_shapes)
            program = capture(*given, training=training, within=within)
        if program.islands and free_outputs:
            raise UsageError(
                f"{self.name} was captured in parts: the rest of it reads their outputs, so none of them may shrink"
            )
        names = program.output_names()
        asked = {name: {n for n in names if f"{n}.".startswith(f"{name}.")} for name in free_outputs}
        unknown = [name for name, found in asked.items() if not found and name != "all"]
        if unknown:
            raise UsageError(
                f"no output {unknown[0]!r} to free; outputs: {', '.join(names)}, or all of them: all"
            )
        freed = set().union(*(found or names for found in asked.values()))
        return free_dims(program, outputs=freed)

    def uncached(self) -> tuple[dict[str, Any], Any]:
        """Return the kwargs and dynamic shapes of a plain export: as captured, with no cache among the outputs."""
        model = self.model
        takes = inspect.signature(model.forward).parameters if isinstance(model, nn.Module) else ()
        if "use_cache" not in takes or "use_cache" in self.kwargs:
            return dict(self.kwargs), self.dynamic_shapes
        shapes = self.dynamic_shapes
        dynamic = {**shapes, "use_cache": None} if isinstance(shapes, Mapping) else shapes
        return {**self.kwargs, "use_cache": False}, dynamic
