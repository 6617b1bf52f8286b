"""The zoo: every architecture that torch.export captures is pruned right.

The hand-written set runs whole; of the Hugging Face architectures a sample of 40 that changes with the date. `python -m
fxprune.tools.benchmarks.coverage` runs them all; ZOO_DATE=2026-11-21 repeats the sample of a day.
"""

import datetime as dt
import os
import random

import pytest

from zoo import hf, nets
from zoo.check import captured, halved, run
from zoo.onnx_check import AGREES, DIFFERS_TOO, NO_EXPORT, agreement
from zoo.shuffled import same_axes

SAMPLE = 40
TODAY = os.environ.get("ZOO_DATE") or dt.datetime.now(tz=dt.UTC).date().isoformat()


def sample() -> list[str]:
    quick = sorted(name for name, row in hf.ROWS.items() if row.dynamic)
    return sorted(random.Random(TODAY).sample(quick, SAMPLE))


@pytest.mark.parametrize("name", sorted(nets.NETS))
def test_hand_written_nets_are_pruned_right(name: str) -> None:
    outcome = run(name, lambda: nets.build(name), dynamic=False)
    assert outcome.status == "ok", outcome.reason
    assert outcome.exact == 0 or outcome.change > 1e-4


@pytest.mark.parametrize("name", sorted(nets.NETS))
def test_the_order_of_constraints_does_not_matter(name: str) -> None:
    program = captured(*nets.build(name), dynamic=False)
    assert [same_axes(program, seed) for seed in range(3)] == [True] * 3


@pytest.mark.parametrize("name", sorted(nets.NETS))
def test_onnx_runtime_agrees_on_halved_nets_whose_original_exports(name: str) -> None:
    module, inputs = nets.build(name)
    program = captured(module, inputs, dynamic=False)
    found = agreement(module, program, halved(program))
    assert found.said in (AGREES, NO_EXPORT, DIFFERS_TOO), found.reason


@pytest.mark.parametrize("name", sample())
def test_todays_sample_of_architectures_is_pruned_right(name: str) -> None:
    row = hf.ROWS[name]
    outcome = run(name, row.build, row.dynamic)
    if outcome.status == "capture-failed":
        pytest.skip(f"torch.export can't capture {name}: {outcome.reason}")
    assert outcome.status == "ok", outcome.reason
    assert outcome.exact == 0 or outcome.change > 1e-6
