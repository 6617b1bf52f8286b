"""Feed: every row comes once an epoch, rows of other sizes are not joined, and what is larger than memory is read part by part."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import pytest
import torch
from torch import Tensor, nn

from fxprune import capture
from fxprune.calibration.data import Batch
from fxprune.errors import UsageError
from fxprune.training.recovery import feed
from fxprune.training.recovery.feed import Feed
from support.recovering import AUTO

PROGRAM = capture(nn.Linear(3, 2).eval(), (torch.zeros(2, 3),), dynamic_shapes=({0: AUTO},))
FIXED = capture(nn.Linear(3, 2).eval(), (torch.zeros(2, 3),))
NAME = PROGRAM.input_names()[0]


def batches(*counts: int) -> list[Batch]:
    numbers = iter(range(1000))
    return [{NAME: torch.tensor([[float(next(numbers))] * 3 for _ in range(count)])} for count in counts]


def values(batch: Batch) -> list[int]:
    found: list[int] = batch[NAME][:, 0].int().tolist()
    return found


def test_an_epoch_has_every_row_once_in_batches_of_the_size() -> None:
    found = list(islice(Feed(PROGRAM, batches(5, 4, 1), 4, 0).batches(), 6))
    assert [len(values(batch)) for batch in found[:3]].count(4) == 2
    for epoch in (found[:3], found[3:]):
        assert sorted(value for batch in epoch for value in values(batch)) == list(range(10))
    assert [values(batch) for batch in found[:3]] != [values(batch) for batch in found[3:]]


def test_the_seed_decides_and_a_run_that_goes_on_skips() -> None:
    one, other = (Feed(PROGRAM, batches(8, 8), 4, 7) for _ in range(2))
    whole = [values(batch) for batch in islice(one.batches(), 7)]
    assert [values(batch) for batch in islice(other.batches(3), 4)] == whole[3:]


def test_two_processes_share_the_batches() -> None:
    parts = [Feed(PROGRAM, batches(16), 4, 0, (rank, 2)) for rank in range(2)]
    found = [sorted(v for batch in islice(part.batches(), 2) for v in values(batch)) for part in parts]
    assert sorted(found[0] + found[1]) == list(range(16))


def test_batches_of_a_fixed_size_stay_as_they_came() -> None:
    found = islice(
        Feed(FIXED, [{FIXED.input_names()[0]: b[NAME]} for b in batches(2, 2)], 32, 0).batches(), 2
    )
    assert sorted(values({NAME: batch[FIXED.input_names()[0]]}) for batch in found) == [[0, 1], [2, 3]]


@pytest.mark.parametrize("again", [True, False])
def test_what_is_larger_than_memory_is_read_in_parts(again: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "ROOM_FOR_ROWS", 2 * 3 * 4 + 1)  # a part is two batches of two rows
    given = batches(2, 2, 2, 2)
    source: list[Batch] | Iterator[Batch] = given if again else iter(given)
    found = [values(batch) for batch in islice(Feed(PROGRAM, source, 2, 0).batches(), 8)]
    assert sorted(v for batch in found[:4] for v in batch) == list(range(8))
    assert sorted(v for batch in found[4:] for v in batch) == (
        list(range(8)) if again else [4, 4, 5, 5, 6, 6, 7, 7]
    )


def test_nothing_to_read() -> None:
    with pytest.raises(UsageError, match="there is no batch to train on: give calibration data"):
        next(Feed(PROGRAM, list[Batch](), 4, 0).batches())


def test_no_tensor_is_changed() -> None:
    given = batches(4)
    before: Tensor = given[0][NAME].clone()
    next(Feed(PROGRAM, given, 2, 0).batches())
    assert torch.equal(given[0][NAME], before)
