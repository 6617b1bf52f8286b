"""The fuzzer: random programs of all operator families, each captured, analysed, shrunk at random, and compared with the zeroed one.

`make fuzz` runs it; FUZZ_PROGRAMS, FUZZ_SECONDS and FUZZ_FIRST (a seed) are its limits. A failure names its seed, and `wild(seed)`
rebuilds the net.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections import Counter

import pytest

from fuzz.check import chosen, example, fault
from fuzz.nets import WildNet, wild
from fxprune import analyze, capture
from fxprune.errors import CaptureError

PROGRAMS = int(os.environ.get("FUZZ_PROGRAMS", "2000"))
SECONDS = float(os.environ.get("FUZZ_SECONDS", "3600"))
FIRST = int(os.environ.get("FUZZ_FIRST", "0"))


def judged(net: WildNet, seed: int, counts: Counter[str]) -> str:
    """The first failed claim about a net, as text; empty where all hold."""
    try:
        program = capture(net, (example(),), training=True)
    except CaptureError:
        counts["not captured"] += 1
        return ""
    analysis = analyze(program)
    counts["axes"] += len(analysis.axes)
    counts["exact axes"] += sum(axis.exact for axis in analysis.axes)
    counts["programs cut"] += bool(list(chosen(analysis, seed, exact=True)))
    return fault(program, analysis, seed)


def checked(seed: int, counts: Counter[str]) -> str:
    try:
        net = wild(seed)
        finite = bool(net(example()).isfinite().all())
    except (RuntimeError, IndexError, ValueError):
        counts["no net"] += 1  # torch itself rejects the net
        return ""
    if not finite:
        counts["not finite"] += 1
        return ""
    counts["programs"] += 1
    try:
        found = judged(net, seed, counts)
    except Exception:  # noqa: BLE001 (a crash is a fault, too)
        found = traceback.format_exc(limit=-3)
    return f"seed {seed}, {net!r}: {found}" if found else ""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # operators that are deprecated, or of few numbers
def test_random_programs_are_pruned_right(capsys: pytest.CaptureFixture[str]) -> None:
    counts: Counter[str] = Counter()
    faults: list[str] = []
    start = time.monotonic()
    for seed in range(FIRST, FIRST + PROGRAMS):
        if time.monotonic() - start > SECONDS:
            break
        faults += [found] if (found := checked(seed, counts)) else []
    with capsys.disabled():
        said = ", ".join(f"{count} {what}" for what, count in counts.items())
        sys.stdout.write(f"\nfuzz: {said}, {len(faults)} faults, {time.monotonic() - start:.0f} s\n")
    assert not faults, "\n".join(faults)
