"""Training with a method: train a program on labels or from a teacher while its gates close.

trained = train(program, Grain(density=0.1), examples, Recipe(epochs=10), teacher)
slim = lower(trained.gated, trained.module).program
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from fxprune.gates import Gated
from fxprune.ir import Program
from fxprune.training.devices import placed
from fxprune.training.distillation import Distillation, Losses, matched
from fxprune.training.examples import IGNORED, Examples
from fxprune.training.fine_tune import cross_entropy, logits
from fxprune.training.loop import Checkpoints, Hooks, Loop, Recipe, RunState
from fxprune.training.pruner import Pruner
from fxprune.training.sharded import check_unsharded
from fxprune.training.teacher_cache import TeacherCache

LOGITS = ""  # the key of logits in the teacher cache, beside module paths


Judge: TypeAlias = Callable[[nn.Module], Mapping[str, float]]
"""A function from a module (in eval mode) to its metrics by name."""


@dataclass(frozen=True, eq=False)
class Task:
    """A task to train for: labelled rows, the outputs that are trained, and how a module is judged after each epoch (None: not at all)."""

    examples: Examples
    outputs: tuple[str, ...] = ("logits",)
    judge: Judge | None = None


class Method(Protocol):
    """Protocol of a method: the gates of a program, the pruner that closes them, and the loss that the student is trained with."""

    @property
    def hidden(self) -> float:
        """Weight of the hidden states beside the logits; 0: they are not matched."""

    @property
    def temperature(self) -> float:
        """Temperature of the logits in distillation."""

    @property
    def hard(self) -> float:
        """Weight of the labels beside a teacher's logits, 0 to 1."""

    def gated(self, program: Program) -> Gated:
        """Return the program with gates."""

    def pruner(self, gated: Gated, module: nn.Module) -> Pruner:
        """Return the pruner that closes the gates of a module during training."""

    def loss(self, pruner: Pruner, losses: Losses) -> Tensor:
        """Return the loss to minimise; the pruner may observe parts of it."""


@dataclass(frozen=True, eq=False)
class Trained:
    """Result of training: the gated program, its trained module (in eval mode), the pruner, and the final state of the run."""

    gated: Gated
    module: nn.Module
    pruner: Pruner
    moment: RunState


class Student(nn.Module):
    """The learner and its teacher as one module, whose forward returns the losses (from logits, from hidden states).

    With a share of `hard` labels, the distillation loss of the logits is multiplied by the square of the temperature, so that both terms
    have the same scale.
    """

    def __init__(
        self,
        names: Sequence[str],
        learner: nn.Module,
        examples: Examples,
        outputs: Sequence[str],
        distillation: Distillation | None = None,
        recall: TeacherCache | None = None,
        hard: float = 0.0,
    ) -> None:
        super().__init__()
        self.learner, self.distillation, self.hard = learner, distillation, hard
        self._names, self._outputs = tuple(names), tuple(outputs)
        self._lengths, self._by_token, self._recall = examples.lengths, examples.by_token, recall
        ignored = getattr(learner, "_ddp_params_and_buffers_to_ignore", ())
        self._ddp_params_and_buffers_to_ignore = [f"learner.{name}" for name in ignored]

    def forward(self, inputs: Mapping[str, Tensor], labels: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the losses of one batch: (from logits or labels, from hidden states)."""
        answers = logits(self._names, self.learner(**inputs), self._outputs)
        if self.distillation is None:
            hard = cross_entropy(answers, labels)
            return hard, hard.new_zeros(())
        shown = self._shown(self.distillation, inputs, index)
        losses = self.distillation.losses(answers, shown, self._mask(inputs, index), labels != IGNORED)
        if not self.hard:
            return losses.logits, losses.hidden
        soft = losses.logits * self.distillation.temperature**2
        return self.hard * cross_entropy(answers, labels) + (1 - self.hard) * soft, losses.hidden

    def _mask(self, inputs: Mapping[str, Tensor], index: Tensor) -> Tensor | None:
        """Return booleans (rows, length), true where a row has a token; None for rows without lengths."""
        if self._lengths is None:
            return None
        return (
            torch.arange(_width(inputs), device=index.device) < self._lengths.to(index.device)[index][:, None]
        )

    def _shown(self, teacher: Distillation, inputs: Mapping[str, Tensor], index: Tensor) -> Tensor:
        """Return the teacher's logits, from the cache where it has them; the hidden states are in `teacher.shown` afterwards."""
        lengths = None if self._lengths is None else self._lengths[index.cpu()]
        paths = list(teacher.pairs.values())
        trimmed = {*(paths if lengths is not None else ()), *([LOGITS] if self._by_token else ())}
        known = self._recall is not None and self._recall.get(
            index, [LOGITS, *paths], _width(inputs), trimmed
        )
        if not known:
            said = logits(self._names, teacher.show(**inputs), self._outputs)
            known = {LOGITS: said, **{path: teacher.shown[path] for path in paths}}
            if self._recall is not None:
                self._recall.put(index, lengths, known, trimmed)
        teacher.shown.update({path: known[path] for path in paths})
        return known[LOGITS]


def _width(inputs: Mapping[str, Tensor]) -> int:
    first = next(iter(inputs.values()))
    return int(first.shape[1]) if first.ndim > 1 else 1


def train(
    program: Program,
    method: Method,
    examples: Examples,
    recipe: Recipe,
    teacher: nn.Module | None = None,
    *,
    outputs: Sequence[str] = ("logits",),
    pairs: Mapping[str, str] | None = None,
    hooks: Hooks | None = None,
    checkpoints: Checkpoints | None = None,
    recall: TeacherCache | None = None,
    judge: Judge | None = None,
) -> Trained:
    """Train a copy of the program while its gates close, from a teacher with the same outputs, or on the labels where there is none.

    `pairs` matches hidden states by module path (None: the layers of the same names). `recall` caches the teacher's outputs, and may be
    used by several runs on the same rows. `judge` is called after each epoch; its metrics are recorded in `moment.history`.
    """
    gated = method.gated(program)
    module = gated.module()
    with placed([module, *([teacher] if teacher else ())], recipe.device):
        distillation = _distillation(program, method, examples, module, teacher, pairs) if teacher else None
        student = Student(
            program.output_names(), module, examples, outputs, distillation, recall, method.hard
        )
        pruner = method.pruner(gated, module)
        loop = Loop(student, examples, recipe, _with(hooks or Hooks(), pruner, module, judge), checkpoints)
        check_unsharded(module.parameters(), "gates close by whole parameters")
        moment = loop.run(lambda ready, batch: method.loss(pruner, Losses(*ready(*batch))))
    pruner.settle()
    return Trained(gated, module.eval(), pruner, moment)


def _distillation(
    program: Program,
    method: Method,
    examples: Examples,
    module: nn.Module,
    teacher: nn.Module,
    pairs: Mapping[str, str] | None,
) -> Distillation:
    device = next(module.parameters()).device
    example = {name: value.to(device) for name, value in examples.batch([0, 1])[0].items()}
    found = (matched(program, teacher) if pairs is None else pairs) if method.hidden else {}
    return Distillation(teacher, module, example, found, method.temperature)


def _with(hooks: Hooks, pruner: Pruner, module: nn.Module, judge: Judge | None) -> Hooks:
    """Return hooks that also step the pruner before each optimizer step, and record the run after about each 1 % of it and each epoch."""

    def before(moment: RunState) -> None:
        pruner.step(moment.progress)
        hooks.before(moment)

    def after(moment: RunState) -> None:
        if moment.step % max(1, moment.steps // 100) == 0:
            moment.history.append(_entry(moment, pruner))
        hooks.after(moment)

    def epoch(moment: RunState) -> None:
        with pruner.still():
            judged = judge(module.eval()) if judge else {}
        moment.history.append({**_entry(moment, pruner), **judged})
        hooks.epoch(moment)

    return Hooks(before, after, epoch)


def _entry(moment: RunState, pruner: Pruner) -> dict[str, Any]:
    return {"step": moment.step, "loss": moment.loss, "density": pruner.density}
