"""Layer scores: raters that score a program without some of its regions, and an evaluator without labels."""

from __future__ import annotations

import hashlib
import importlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, Future, as_completed
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxprune.analysis import Analysis, analyze
from fxprune.export import save_pt2
from fxprune.frontend.capture import capture
from fxprune.ir import Program
from fxprune.ir.interpreter import Recorder
from fxprune.ir.program import container_modules
from fxprune.ir.signature import required_outputs
from fxprune.ir.tensors import tensor_bytes
from fxprune.rewrite.bypass import bypass
from fxprune.search.journal import Journal, evaluator_identity

Evaluate: TypeAlias = Callable[[Program], float]
"""Quality of a program, higher is better. Candidates share their weights with the searched program: to train one, train a copy."""


class EvaluationRater:
    """Rater that evaluates each candidate program; every evaluation is recorded in a journal, and none is repeated.

    With an executor, candidates run there, in any order: `evaluate` must be picklable, and the program is passed as a `.pt2` file in a
    folder that the workers must be able to read.
    """

    def __init__(
        self,
        program: Program,
        evaluate: Evaluate,
        journal: str | None = None,
        executor: Executor | None = None,
    ) -> None:
        self.program, self.evaluate, self.executor = program, evaluate, executor
        self.journal = Journal(journal, evaluator_identity(evaluate), fingerprint(analyze(program)))
        self.observe: Callable[[float], None] = lambda seconds: None

    def rate(self, removed: Sequence[str], candidates: Sequence[str]) -> list[float]:
        """Return one score per candidate; those in the journal are not evaluated."""
        return self.scores([(*removed, name) for name in candidates])

    def scores(self, sets: Sequence[Iterable[str]]) -> list[float]:
        """Return the score of the program without each set of regions (it may be empty); those in the journal are not evaluated."""
        asked = [frozenset(names) for names in sets]
        waiting = [gone for gone in dict.fromkeys(asked) if gone not in self.journal.scores]
        for _ in range(len(asked) - len(waiting)):
            self.observe(0.0)
        run = self._elsewhere if self.executor else self._here
        for gone, score, seconds in run(waiting):
            self.journal.write(gone, score, seconds)
            self.observe(seconds)
        return [self.journal.scores[gone] for gone in asked]

    def _here(self, sets: Sequence[frozenset[str]]) -> Any:
        for gone in sets:
            start = time.perf_counter()
            score = float(self.evaluate(bypass(self.program, sorted(gone))))
            yield gone, score, time.perf_counter() - start

    def _elsewhere(self, sets: Sequence[frozenset[str]]) -> Any:
        assert self.executor is not None
        with tempfile.TemporaryDirectory(prefix="fxprune-search-") as folder:
            path = Path(folder) / "program.pt2"
            save_pt2(self.program, path, classes=True)
            needed = container_modules(self.program)
            futures: dict[Future[tuple[float, float]], frozenset[str]] = {
                self.executor.submit(
                    evaluate_candidate, str(path), tuple(sorted(gone)), self.evaluate, needed
                ): gone
                for gone in sets
            }
            for future in as_completed(futures):
                yield futures[future], *future.result()


def fingerprint(analysis: Analysis) -> str:
    """Return a hash of the program's axes and of every weight, so that a journal is not used for a model that was trained since."""
    digest = hashlib.sha256(analysis.digest.encode())
    for name, value in sorted(analysis.program.tensors().items()):
        digest.update(name.encode())
        if value.device.type != "meta":
            digest.update(tensor_bytes(value))
    return digest.hexdigest()[:16]


def evaluate_candidate(
    path: str, removed: tuple[str, ...], evaluate: Evaluate, needed: Sequence[str] = ()
) -> tuple[float, float]:
    """Return (score, seconds) of one candidate; runs in a worker, and first imports the modules that the file needs."""
    for module in needed:
        importlib.import_module(module)
    analysis = _loaded(path)
    start = time.perf_counter()
    return float(evaluate(bypass(analysis.program, removed))), time.perf_counter() - start


@lru_cache(maxsize=1)
def _loaded(path: str) -> Analysis:
    return analyze(capture(Path(path)))


class LastLayersRater:
    """Rater that gives equal scores, so that the last candidates go first (top-layer dropping, arXiv 2004.03844)."""

    def __init__(self) -> None:
        self.observe: Callable[[float], None] = lambda seconds: None

    def rate(self, removed: Sequence[str], candidates: Sequence[str]) -> list[float]:
        """Return 0 for each candidate; ties go to the last."""
        for _ in candidates:
            self.observe(0.0)
        return [0.0] * len(candidates)


class BlockInfluenceRater:
    """Rater by block influence (arXiv 2403.03853): a region matters little if its output has the direction of its input.

    The score is the mean cosine of a region's input and output, over the last dimension, on calibration inputs (keyword arguments); one
    run of the program rates all candidates.
    """

    def __init__(self, program: Program, data: Sequence[dict[str, Any]] = ()) -> None:
        self.program, self.data = program, list(data) or [dict(program.kwargs)]
        self.observe: Callable[[float], None] = lambda seconds: None

    def rate(self, removed: Sequence[str], candidates: Sequence[str]) -> list[float]:
        """Return the mean cosine of each candidate, given what is removed."""
        program = bypass(self.program, removed)
        analysis = analyze(program)
        regions = [analysis.region(name) for name in candidates]
        totals = [0.0] * len(regions)
        for kwargs in self.data:
            values = _values(program, kwargs, {n for r in regions for n in (*r.entries, *r.exits)})
            for i, region in enumerate(regions):
                pairs = zip(region.entries, region.exits, strict=True)
                totals[i] += statistics.fmean(_cosine(values[one], values[other]) for one, other in pairs)
        for _ in candidates:
            self.observe(0.0)
        return [total / len(self.data) for total in totals]


class FaithfulnessRater:
    """Evaluator without labels: minus the squared difference of a candidate's outputs from the original's, over the square of those.

    The mean over calibration inputs (keyword arguments; the example inputs where none are given) and floating outputs; 0 is the best.
    """

    def __init__(self, program: Program, data: Sequence[dict[str, Any]] = ()) -> None:
        self.data = list(data) or [dict(program.kwargs)]
        self.args = program.args
        self.wanted = [self._outputs(program, kwargs) for kwargs in self.data]
        self.identity = f"faithfulness on {len(self.data)} inputs, {sum(float(v.sum()) for w in self.wanted for v in w):.6e}"

    def __call__(self, candidate: Program) -> float:
        """Return minus the mean relative squared difference."""
        pairs: list[tuple[Tensor, Tensor]] = []
        for kwargs, wanted in zip(self.data, self.wanted, strict=True):
            pairs += zip(self._outputs(candidate, kwargs), wanted, strict=True)
        return -sum(_squared(got, wanted) for got, wanted in pairs) / len(pairs)

    def _outputs(self, program: Program, kwargs: dict[str, Any]) -> list[Tensor]:
        with torch.no_grad():
            values = required_outputs(program, pytree.tree_leaves(program(*self.args, **kwargs)))
        return [value.double() for value in values if isinstance(value, Tensor) and value.is_floating_point()]


def _squared(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).square().sum() / wanted.square().sum().clamp_min(1e-30))


def _cosine(one: Tensor, other: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one.double(), other.double(), dim=-1).mean())


def _values(program: Program, kwargs: dict[str, Any], names: set[str]) -> dict[str, Tensor]:
    """Return the values of some nodes in one run; positional inputs are those of the example."""
    recorder = Recorder(program, names)
    with torch.no_grad():
        recorder.run_flat(program.replace(kwargs=kwargs).flat_inputs())
    return {node.name: value for node, value in recorder.values.items()}
