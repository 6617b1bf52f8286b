"""Write back: put a slim program's weights into the module that it was captured from, where that module's code takes any size.

All or nothing: tensors, and the size attributes of torch.nn modules, are put in place and the module is run. Where it fails or computes
something else than the program, all is restored, and the refusal names the line of the module's own code. Attributes of other classes
(`num_heads`) are not guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fxprune.errors import RefusedError
from fxprune.export.divergence import describe_divergence
from fxprune.export.module_sizes import arguments_of, declared
from fxprune.export.parametrizations import make_plain, originals
from fxprune.frontend.agreement import module_outputs
from fxprune.frontend.canonicalization.fold_weights import folded_sources
from fxprune.ir import Program, attribute, difference, run_example, tolerance

INSTEAD = "use slim.module(), which needs none of its code"


@dataclass
class _Edit:
    """Reversible changes of a module."""

    model: nn.Module
    undo: list[Callable[[], None]] = field(default_factory=list)

    def module(self, path: str) -> nn.Module:
        return self.model.get_submodule(path)

    def set(self, path: str, name: str, value: object) -> None:
        """Set an attribute of the module at a path: a parameter, a buffer, a module or a number."""
        owner = self.module(path)
        before = getattr(owner, name)
        self.undo.append(lambda: setattr(owner, name, before))
        setattr(owner, name, value)

    def plain(self, path: str, name: str) -> None:
        """Turn an attribute that the module at a path computes into a parameter."""
        self.undo.append(make_plain(self.module(path), name))

    def back(self) -> None:
        while self.undo:
            self.undo.pop()()


def write_back(model: nn.Module, slim: Program) -> float:
    """Put a slim program's weights into the module that it was captured from, in place; return the largest relative difference.

    Parameters that did not change stay the same objects, ties stay ties; smaller ones are new, so make optimizers afterwards. A module of
    which nothing is left becomes nn.Identity where the outputs prove that right. RefusedError where the module can't compute what
    the program does on its example inputs, with the line of its own code and both shapes; then it is exactly as it was.
    """
    edit = _Edit(model)
    try:
        return _written(edit, slim, run_example(slim))
    except BaseException:
        edit.back()
        raise


def _written(edit: _Edit, slim: Program, outputs: Sequence[Tensor]) -> float:
    """Write the weights, and return the difference as `write_back`; on failure nothing is restored."""
    model, bar = edit.model, tolerance(outputs)
    _put_weights(edit, slim)
    gap = _gap(model, slim, outputs)
    if gap <= bar:
        return gap
    gone = _gone(model, slim.tensors() | _joined(originals(model, slim)))
    where = "" if gone else describe_divergence(model, slim)
    for path in gone:
        edit.set(*_split(path), nn.Identity())
    gap = _gap(model, slim, outputs) if gone else gap
    if not gap <= bar:
        raise RefusedError(_why(model, gap, gone, where))
    return gap


def _gap(model: nn.Module, slim: Program, outputs: Sequence[Tensor]) -> float:
    """Return the largest relative difference of outputs; infinite where the module does not run."""
    try:
        got = module_outputs(model, slim)
    except Exception:  # noqa: BLE001 - why it does not run is found by running it again beside the program
        return float("inf")
    return difference(got, outputs)


def _put_weights(edit: _Edit, slim: Program) -> None:
    """Put in the program's tensors, under all names that the module has for each, and the size attributes of torch's modules."""
    computed = originals(edit.model, slim)
    for name in (name for name, found in computed.items() if not found):
        edit.plain(*_split(name))
    tensors = slim.tensors() | _joined(computed)
    own, touched = _names(edit.model), {_split(name)[0]: name for name in computed}
    for names in own:
        value = next((tensors[name] for name in names if name in tensors), None)
        before: Tensor = attribute(edit.model, names[0])
        if value is None or _same(value, before):
            continue
        new = value.detach().to(before.device).clone()
        if isinstance(before, nn.Parameter):
            new = nn.Parameter(new, before.requires_grad)
        for name in names:
            path, last = _split(name)
            edit.set(path, last, new)
            touched.setdefault(path, name)
    _add_biases(edit, slim, {name for names in own for name in names} | computed.keys())
    for name in computed:
        path, last = _split(name)
        if last in vars(edit.module(path)):  # a hook computes it anew in each call
            edit.set(path, last, tensors[name].detach())
    for path, name in touched.items():
        read = next((n for n in tensors if _split(n) == (path, "weight")), name)
        for attribute_name, size in declared(edit.module(path), arguments_of(slim, read)).items():
            edit.set(path, attribute_name, size)


def _joined(computed: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: value for found in computed.values() for name, value in found.items()}


def _add_biases(edit: _Edit, slim: Program, known: set[str]) -> None:
    """Put the parameters that were added where a module has an empty place for them (None); RefusedError where it has none."""
    for name, value in slim.parameters().items():
        if name in known:
            continue
        path, last = _split(name)
        owner = dict(edit.model.named_modules()).get(path)
        if owner is None or owner._parameters.get(last, value) is not None:
            raise RefusedError(
                f"{type(edit.model).__name__} has no {name}, which the program has: {_why_new(slim, name)}; {INSTEAD}"
            )
        edit.set(path, last, nn.Parameter(value.detach().clone()))


def _why_new(slim: Program, name: str) -> str:
    """Return why a program has a parameter that the module has not."""
    sources = folded_sources(slim).get(name)
    if sources:
        return f"its code computes it from {', '.join(sources)}, and capture folded that (with training=True it does not)"
    return "a matrix that became two factors, or a weight that was added, has no place in its code"


def _names(model: nn.Module) -> list[list[str]]:
    """Return the names of every parameter and buffer; several for one that is tied."""
    found: dict[int, list[str]] = {}
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, value in named:
        found.setdefault(id(value), []).append(name)
    return list(found.values())


def _same(one: Tensor, other: Tensor) -> bool:
    alike = one.shape == other.shape and one.dtype == other.dtype
    return one is other or (alike and torch.equal(one.to(other.device), other))


def _gone(model: nn.Module, tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the outermost modules that have parameters of which the program, which has these tensors, reads none."""
    empty: list[str] = []
    read = {name for names in _names(model) if not tensors.keys().isdisjoint(names) for name in names}
    for path, module in model.named_modules():
        own = {f"{path}.{name}" for name, _ in module.named_parameters(remove_duplicate=False)}
        if path and own and not read & own:
            empty.append(path)
    return [path for path in empty if not any(path.startswith(f"{other}.") for other in empty)]


def _split(name: str) -> tuple[str, str]:
    path, _, last = name.rpartition(".")
    return path, last


def _why(model: nn.Module, gap: float, gone: Sequence[str], where: str) -> str:
    kind = type(model).__name__
    if gone:
        more = f" (and {len(gone) - 1} more)" if len(gone) > 1 else ""
        return (
            f"nothing is left of {gone[0]}{more}, and {kind} calls it: with nn.Identity in its place it computes something else "
            f"or fails. Nothing was changed; take it out of your code, or {INSTEAD}"
        )
    found = (
        where or f"its outputs differ from the program's by {gap:.2g}, and no line of its code could be named"
    )
    return f"{kind} can't hold the slim weights: {found}. Nothing was changed; let that line read sizes from weights, or {INSTEAD}"
