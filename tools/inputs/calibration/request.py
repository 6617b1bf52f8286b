"""Requests for calibration data: what the options ask, and for which program."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor, fx

from fxprune.errors import UsageError
from fxprune.ir import Program, first_line, is_free
from fxprune.ir.example_inputs import inputs
from fxprune.tools.inputs.calibration.batching import Batching, batching_of
from fxprune.tools.inputs.loaded import Loaded

DATA = "FILE.npz, FILE.safetensors or py:PACKAGE.MODULE:FUNCTION"
"""Forms that fit any model."""

NORMALIZATION_OPTION = "--image-normalization"
SAMPLING_OPTION = "--sampling-rate"

_SHOWN = 3  # files that a note names

_T = TypeVar("_T")


@dataclass(frozen=True)
class Asked:
    """Options of calibration data: what `--calibration` names, rows to hold in memory (0: all), tokens of a text, and those of media.

    `option` is the name of that option, for messages.
    """

    text: str
    rows: int = 0
    length: int = 128
    normalization: str = ""
    sampling_rate: int | None = None
    option: str = "--calibration"


@dataclass(frozen=True, eq=False)
class Request:
    """Options, the program that the data are for, and where it came from.

    Readers add to `notes`, to `skipped` files with reasons, and to `images` the inputs that hold images.
    """

    asked: Asked
    program: Program
    loaded: Loaded
    notes: dict[str, None] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    images: dict[str, None] = field(default_factory=dict)

    @property
    def batching(self) -> Batching:
        return batching_of(self.program)

    def note(self, text: str) -> None:
        """Note something for the user, once."""
        self.notes[text] = None

    def all_notes(self) -> tuple[str, ...]:
        """Return the notes, with one on the files that were passed over."""
        few = [f"{name} ({why})" for name, why in list(self.skipped.items())[:_SHOWN]]
        more = [f"{len(self.skipped) - _SHOWN} more"] * (len(self.skipped) > _SHOWN)
        skipped = f"calibrated without what can't be read: {', '.join([*few, *more])}"
        return (*self.notes, *([skipped] if few else ()))

    def readable(self, things: Iterable[tuple[str, Callable[[], _T]]], what: str) -> Iterator[_T]:
        """Yield what functions read, and note those that fail; UsageError where all do."""
        found = False
        for name, read in things:
            try:
                value = read()
            except UsageError:
                raise
            except Exception as error:  # noqa: BLE001 - decoders raise whatever they like at broken files
                self.skipped[name] = first_line(error)
                continue
            found = True
            yield value
        if not found:
            name, why = next(iter(self.skipped.items()))
            raise UsageError(
                f"none of the {what} in {self.asked.text} can be read; the first is {name}: {why}"
            )


@dataclass(frozen=True)
class Slot:
    """A floating or integer input that the graph reads: its node, its sizes as the program takes them, and those of the example."""

    node: fx.Node
    takes: tuple[Any, ...]
    example: Tensor

    @property
    def name(self) -> str:
        return str(self.node.name)

    def size(self, dim: int) -> int:
        """Return a size: the fixed one, or that of the example where it is dynamic."""
        return int(self.example.shape[dim] if is_free(self.takes[dim]) else self.takes[dim])


def slots(program: Program) -> list[Slot]:
    """Return the tensor inputs that the graph reads."""
    examples = inputs(program)
    nodes = [node for node in program.placeholders() if node.users and node.name in examples]
    return [Slot(node, tuple(node.meta["val"].shape), examples[node.name]) for node in nodes]


def one_input(program: Program, as_form: Callable[[Slot], _T | None], form: str) -> _T:
    """Return what a function makes of the one input that has a form; UsageError where none has it, or several have."""
    found = [(slot.name, made) for slot in slots(program) if (made := as_form(slot)) is not None]
    if len(found) == 1:
        return found[0][1]
    which = f"{' and '.join(name for name, _ in found)} have" if found else "no input of the model has"
    raise UsageError(
        f"{which} the form of {form}: {inputs_told(program)};"
        " give data by input name (FILE.npz, or py:PACKAGE.MODULE:FUNCTION)"
    )


def inputs_told(program: Program) -> str:
    """Return the inputs that the graph reads with their sizes, as a part of a sentence."""
    return ", ".join(f"{slot.name} {'×'.join(map(str, slot.example.shape))}" for slot in slots(program))
