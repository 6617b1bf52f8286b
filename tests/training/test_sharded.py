"""Parameters that FSDP2 shards: recovery and fine-tuning end as with whole ones, and give whole ones back."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.two_processes import run_in_two

pytest.importorskip("accelerate")


def test_sharded_parameters_end_as_whole_ones(tmp_path: Path) -> None:
    one, other = run_in_two("sharded_in_two", tmp_path)
    assert one == other
    for what in ("recover", "fine_tune"):
        whole, sharded = one["whole"][what], one["sharded"][what]
        for key, value in whole.items():
            assert sharded[key] == pytest.approx(value, rel=1e-3, abs=1e-3), (what, key)
    found = one["sharded"]["recover"]
    assert found["after"] < 0.6 * found["before"]
    assert one["kept"].startswith("checkpoints hold whole modules, and FSDP shards them")
    assert one["gates"].startswith("gates close by whole parameters, and FSDP shards them")
    assert one["first"].startswith("parameters that FSDP shards can't be read back whole; train by FSDP2")
