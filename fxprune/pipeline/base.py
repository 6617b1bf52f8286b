"""Pipelines: an ordered list of passes, written as text and printed back to the same text.

    heads(ratio=0.25), ffn(ratio=0.5), fold

The text is a Python expression list, read with `ast` and never evaluated. A pass is a frozen dataclass: its fields are its options, the
first sentence of its docstring is its help.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, get_type_hints

from fxprune.analysis.axes import Axis, analyze
from fxprune.errors import FxpruneError, PassError, PipelineError, SelectionError
from fxprune.ir.program import Program
from fxprune.ir.selection import Selection
from fxprune.rewrite.bypass import apply
from fxprune.verification.claims import Claim, proved
from fxprune.verification.equivalence import Proof


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a pass made: the program, what it kept, the weights that it re-fitted (by name), and details as plain data for a report.

    `factors` are weights that it replaced by two, with the names of these.
    """

    program: Program
    selection: Selection
    refitted: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    factors: Mapping[str, tuple[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Pass:
    """One step of a pipeline: it plans a selection, and rewrites the program by it."""

    name: ClassVar[str] = ""
    preserves: ClassVar[bool] = False

    def plan(self, program: Program) -> Selection:
        """What each axis keeps; empty for a pass that removes no units."""
        return Selection()

    def rewrite(self, program: Program, selection: Selection) -> Program:
        """The program after this pass."""
        return apply(program, selection)

    def run(self, program: Program) -> Outcome:
        """Plan, then rewrite; a pass that has more to tell than its selection does so here."""
        selection = self.plan(program)
        return Outcome(self.rewrite(program, selection), selection)

    def __str__(self) -> str:
        shown = [f for f in options_of(type(self)) if getattr(self, f.name) != f.default]
        options = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in shown)
        return f"{self.name}({options})" if options else self.name


@dataclass(frozen=True)
class Training(Pass):
    """A pass that decides while a student trains: `fxprune train` and `fxprune.training.train` give it rows and a loop."""

    def run(self, program: Program) -> Outcome:
        """Nothing can be decided here."""
        raise SelectionError(
            f"{self.name} decides while a model trains: use `fxprune train`, or fxprune.training.train in Python"
        )

    def finish(self, program: Program, clock: Any, point: Mapping[str, int]) -> Program:
        """What else is done once it was lowered, by what a clock measures at a point; the program computes the same."""
        return program


def options_of(kind: type[Pass]) -> list[dataclasses.Field[Any]]:
    """The fields that a pipeline's text can set; those marked `metadata=PYTHON` hold functions and data, and are given in Python."""
    return [field for field in dataclasses.fields(kind) if not field.metadata.get("python")]


PYTHON = {"python": True}
"""Marks an option that no text can hold: `evaluate: Evaluate | None = field(default=None, metadata=PYTHON)`."""


@dataclass(frozen=True)
class Step:
    """What one pass did: seconds, axes cut, parameters before and after, a note where it found nothing to do, and its own details."""

    text: str
    seconds: float
    axes: int
    parameters: tuple[int, int]
    note: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """The program after a pipeline, and the selection that leads there, in indices of the original.

    Weights that a pass re-fitted are named in `refitted`: they are not those of the original, all others are. Where a pass has replaced
    matrices by factors, no selection alone leads there: `claims` then says of each part of the pipeline what it did.
    """

    program: Program
    selection: Selection
    steps: tuple[Step, ...]
    refitted: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()

    def prove(self, original: Program) -> Proof:
        """Prove every claim; VerifyError says what differs."""
        whole = Claim(original, self.program, self.selection, self.refitted)
        return proved(original, self.claims or [whole])


@dataclass(frozen=True)
class Pipeline:
    """Passes in order."""

    passes: tuple[Pass, ...]

    def __str__(self) -> str:
        return ", ".join(str(each) for each in self.passes)

    def run(self, program: Program, observe: Callable[[str, int, int], None] | None = None) -> Result:
        """Run the passes; `observe(text, index, count)` is called before each. PassError says which pass failed, and why."""
        steps, claims = list[Step](), [Claim(program, program)]
        for index, each in enumerate(self.passes):
            if observe:
                observe(str(each), index, len(self.passes))
            outcome, step = self._step(program, index)
            if outcome.factors:
                made = Claim(program, outcome.program, Selection(), outcome.refitted, outcome.factors)
                claims += [made, Claim(outcome.program, outcome.program)]
            else:
                claims[-1] = claims[-1].then(outcome.program, outcome.selection, outcome.refitted)
            program = outcome.program
            steps.append(step)
        refitted = dict.fromkeys(name for claim in claims for name in claim.refitted)
        several = tuple(claim for claim in claims if not claim.is_idle) if len(claims) > 1 else ()
        return Result(program, claims[0].selection, tuple(steps), tuple(refitted), several)

    def _step(self, program: Program, index: int) -> tuple[Outcome, Step]:
        each, start = self.passes[index], time.perf_counter()
        try:
            outcome = each.run(program)
        except FxpruneError as error:
            done = ", ".join(str(p) for p in self.passes[:index])
            raise PassError(f"{each}{', after ' + done if done else ''}: {error}") from error
        part, counts = outcome.selection, (program.parameter_count(), outcome.program.parameter_count())
        idle = not (len(part) or part.removed or each.preserves or outcome.refitted or outcome.factors)
        note = "found nothing to remove" if idle else ""
        return outcome, Step(str(each), time.perf_counter() - start, len(part), counts, note, outcome.details)


def planned(
    program: Program, choose: Callable[[Axis], bool], keep: Callable[[Axis], Iterable[int]]
) -> Selection:
    """A selection over the axes that `choose` accepts, each keeping what `keep` says; axes that keep all are left out."""
    analysis = analyze(program)
    axes = [axis for axis in analysis.axes if choose(axis)]
    kept = {axis.name: tuple(keep(axis)) for axis in axes}
    sizes = {axis.name: axis.size for axis in axes}
    cut = {name: indices for name, indices in kept.items() if len(indices) < sizes[name]}
    return Selection(cut, sizes, model=analysis.digest if cut else "")


def parse_pipeline(text: str, table: Mapping[str, type[Pass]]) -> Pipeline:
    """Read a pipeline's text; PipelineError points at the place with a caret and lists what was possible."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise _error(text.strip(), (error.offset or 1) - 1, f"can't read the pipeline: {error.msg}") from None
    items = tree.elts if isinstance(tree, ast.Tuple) else [tree]
    return Pipeline(tuple(_parse_pass(text.strip(), item, table) for item in items))


def _error(text: str, column: int, message: str) -> PipelineError:
    return PipelineError(f"{message}\n  {text}\n  {' ' * column}^")


def _parse_pass(text: str, item: ast.expr, table: Mapping[str, type[Pass]]) -> Pass:
    function = item.func if isinstance(item, ast.Call) else item
    if not isinstance(function, ast.Name):
        raise _error(text, item.col_offset, "expected a pass such as heads(ratio=0.25)")
    found = table.get(function.id)
    if found is None:
        near = difflib.get_close_matches(function.id, table, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise _error(text, item.col_offset, f"no pass {function.id!r}{hint}; passes: {', '.join(table)}")
    options = _options(text, item, found) if isinstance(item, ast.Call) else {}
    missing = [
        f.name for f in options_of(found) if f.default is dataclasses.MISSING and f.name not in options
    ]
    if missing:
        raise _error(
            text, item.col_offset, f"{found.name} needs {missing[0]}, as in {found.name}({missing[0]}=…)"
        )
    try:
        return found(**{name: value for name, (value, _) in options.items()})
    except PipelineError as error:
        column = next((c for name, (_, c) in options.items() if name in str(error)), item.col_offset)
        raise _error(text, column, str(error)) from None


def _options(text: str, item: ast.Call, found: type[Pass]) -> dict[str, tuple[Any, int]]:
    """Option values with their columns."""
    hints = get_type_hints(found)
    names = [f.name for f in options_of(found)]
    if len(item.args) > len(names):
        raise _error(
            text,
            item.args[len(names)].col_offset,
            f"{found.name} takes {len(names)} options: {', '.join(names)}",
        )
    options: dict[str, tuple[Any, int]] = {}
    given = [(name, value, value.col_offset) for name, value in zip(names, item.args, strict=False)]
    given += [(keyword.arg or "**", keyword.value, keyword.col_offset) for keyword in item.keywords]
    for name, value, column in given:
        if name not in names:
            near = ", ".join(names) or "none"
            raise _error(text, column, f"{found.name} has no option {name!r}; options: {near}")
        if name in options:
            raise _error(text, column, f"{found.name}: option {name!r} is given twice")
        options[name] = (_value(text, found.name, name, value, hints[name]), column)
    return options


def _value(text: str, owner: str, name: str, node: ast.expr, wanted: Any) -> Any:
    """A literal of the option's type (an integer is a number too)."""
    try:
        value = ast.literal_eval(node)
    except ValueError:
        raise _error(
            text, node.col_offset, f"{owner}: {name} must be a literal {_type_name(wanted)}"
        ) from None
    kinds = {float: (int, float), int: (int,), str: (str,), bool: (bool,)}.get(wanted, (object,))
    if not isinstance(value, kinds) or (isinstance(value, bool) and wanted is not bool):
        raise _error(text, node.col_offset, f"{owner}: {name} must be {_type_name(wanted)}, got {value!r}")
    return float(str(value)) if wanted is float else value


def _type_name(wanted: Any) -> str:
    return {float: "a number", int: "an integer", str: "a text", bool: "True or False"}.get(
        wanted, str(wanted)
    )


def require(condition: bool, message: str) -> None:
    """PipelineError with this message unless the condition holds."""
    if not condition:
        raise PipelineError(message)
