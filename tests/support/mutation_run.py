"""Mutation run over the core: `python tests/support/mutation_run.py` (make mutants) prints which faults no test notices.

MUTANTS is the size of the sample (0: all), SEED draws it, ONLY is a part of the path of the modules. Each mutant runs in a fork of this
process, in which torch, the tests and some captured models are loaded already; a hang counts as killed.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

from support.mutation import ROOT, SourceMutant, applied, mutants

_AXES = "analysis/test_axes analysis/test_show"
_CUT = "rewrite/test_size_arguments rewrite/test_shape_propagation frontend/test_io_constraints rules/test_routing"
_PROOF = "verification/test_equivalence adversarial/test_state"

#: module of the core: the tests nearest to it, the fast ones first
TESTS: dict[str, str] = {
    "dims/dim": "dims/test_unify dims/test_dim analysis/test_axes",
    "dims/unify": "dims/test_unify dims/test_dim analysis/test_axes",
    "dims/masks": "dims/test_dim dims/test_masks analysis/test_nested_axes",
    "dims/blocks": "dims/test_blocks passes/test_blocks",
    "analysis/exactness": "analysis/test_zero_sets analysis/test_exactness rules/test_routing",
    "analysis/dim_inference": f"frontend/test_io_constraints {_AXES}",
    "analysis/axes": f"analysis/test_cache rules/test_routing {_AXES}",
    "rewrite/shrink": f"{_CUT} rewrite/test_shrink",
    "rewrite/shape_propagation": _CUT,
    "rewrite/size_arguments": _CUT,
    "rewrite/bypass": "rewrite/test_bypass rewrite/test_apply frontend/test_io_constraints adversarial/test_deleted_layers",
    "ir/compare": "ir/test_compare verification/test_equivalence adversarial/test_tampered",
    "verification/equivalence": f"{_PROOF} frontend/test_io_constraints adversarial/test_deleted_layers adversarial/test_tampered",
    "verification/claims": "verification/test_claims passes/test_lowrank",
    "verification/float64": "verification/test_float64 verification/test_equivalence",
    "verification/inputs": f"verification/test_inputs {_PROOF}",
    "verification/random_values": f"verification/test_random_values {_PROOF} adversarial/test_tampered",
}

#: mutants that compute the same, by their text: why
EQUIVALENT: dict[str, str] = {
    "fxprune/dims/unify.py: while left and right: → while left or right:": "both lists have one total, and so one end",
    "fxprune/dims/unify.py: while after and after[0].size <= place: → while after[0].size <= place:": "places lie within",
}

# The plug-ins are loaded once, before the first of many runs in one process.
_OPTIONS = [
    "-qq",
    "-x",
    "-p",
    "no:cacheprovider",
    "--tb=no",
    "-W",
    "ignore::pytest.PytestAssertRewriteWarning",
]
PASSED, UNCHANGED, HUNG = 0, 77, 99
#: of CPU time, and of memory: more than any of the lists of tests takes
SECONDS, BYTES = 60, 8 << 30


@dataclass(frozen=True)
class Trial:
    """One mutant and what its tests said: an exit status of pytest, UNCHANGED or HUNG."""

    mutant: SourceMutant
    status: int
    seconds: float

    def __str__(self) -> str:
        word = {PASSED: "SURVIVED", UNCHANGED: "unchanged", HUNG: "hung"}.get(self.status, "killed")
        return f"{word:9} {self.seconds:5.1f} s  {self.mutant}"


def files(module: str) -> list[str]:
    paths = (ROOT / "tests" / f"{name}.py" for name in TESTS[module].split())
    return [str(path) for path in paths if path.exists()]


def quietly(*args: str) -> int:
    with (
        Path(os.devnull).open("w") as null,
        contextlib.redirect_stdout(null),
        contextlib.redirect_stderr(null),
    ):
        return int(pytest.main([*_OPTIONS, *args]))


def forked(action: Callable[[], int]) -> int:
    """The status of an action in a process of its own; HUNG where it takes too much time or memory."""
    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        resource.setrlimit(resource.RLIMIT_DATA, (BYTES, BYTES))
        status = 1
        with contextlib.suppress(BaseException):
            status = action()
        os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return HUNG if status == -signal.SIGKILL else status


def tried(mutant: SourceMutant, tests: list[str]) -> Trial:
    def action() -> int:
        with applied(mutant) as changed:
            return quietly(*tests) if changed else UNCHANGED

    start = time.monotonic()
    status = forked(action)
    return Trial(mutant, status, time.monotonic() - start)


def prepare(modules: list[str]) -> None:
    """Load what all tests need, so that no mutant hides behind a result that is kept, and see that they pass without a fault."""
    torch.set_num_threads(1)
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    hypothesis.settings.register_profile("mutants", derandomize=True, database=None, phases=phases)
    hypothesis.settings.load_profile("mutants")
    quietly("--collect-only", *{file: None for module in modules for file in files(module)})
    from fxprune import Program
    from support.models import HUGGING_FACE, captured

    for name in HUGGING_FACE:
        captured(name)
    for each in gc.get_objects():
        if type(each) is Program:
            each._results.clear()
    for module in modules:
        assert forked(partial(quietly, *files(module))) == PASSED, f"the tests of {module} fail"


def sample(count: int, seed: int, only: str) -> list[tuple[str, Callable[[], SourceMutant]]]:
    """Mutants drawn from all, in an order by chance: those tried when a run is interrupted are a sample too."""
    chosen = [module for module in TESTS if only in module]
    every = [(module, make) for module in chosen for make in mutants(ROOT / "fxprune" / f"{module}.py")]
    return random.Random(seed).sample(every, min(count or len(every), len(every)))


def report(trials: list[Trial]) -> list[str]:
    counted = [t for t in trials if t.status != UNCHANGED and t.mutant.text not in EQUIVALENT]
    alive = [t for t in counted if t.status == PASSED]
    hung = sum(t.status == HUNG for t in counted)
    killed = len(counted) - len(alive)
    rate = f"{killed / max(1, len(counted)):.1%}"
    head = (
        f"{len(counted)} mutants: {killed} killed ({hung} of them hung), {len(alive)} survived; {rate} killed"
    )
    return [head, *(f"  {t.mutant}" for t in alive)]


def main() -> None:
    settings: dict[str, Any] = {"MUTANTS": "100", "SEED": "0", "ONLY": ""}
    count, seed, only = (os.environ.get(name) or value for name, value in settings.items())
    drawn = sample(int(count), int(seed), only)
    prepare(list(dict.fromkeys(module for module, _ in drawn)))
    trials: list[Trial] = []
    with contextlib.suppress(KeyboardInterrupt):
        for module, make in drawn:
            trials.append(tried(make(), files(module)))
            sys.stdout.write(f"{trials[-1]}\n")
            sys.stdout.flush()
    sys.stdout.write("\n".join(("", *report(trials), "")))


if __name__ == "__main__":
    main()
