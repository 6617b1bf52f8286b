"""Batch validation: data that fit a program are taken as they are, and others are refused in a sentence before anything runs long."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.utils.data import DataLoader, TensorDataset

from fxprune import Program, capture
from fxprune.calibration import Calibration, check_calibration
from fxprune.calibration.data import Batch, batched_by_length, flatten_batch
from fxprune.errors import UsageError

AUTO = Dim.AUTO


class Net(nn.Module):
    """Counts its runs, never reads `unread`, and takes the logarithm, which can be NaN."""

    runs: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.register_buffer("runs", torch.zeros(()))

    def forward(
        self, ids: Tensor, weight: Tensor, scale: float, unread: Tensor, flag: bool | None = None
    ) -> Any:
        self.runs.add_(1)
        weight.mul_(scale)
        return {"flag": flag, "hidden": self.table(ids) * weight.log()[..., None], "rows": weight.shape[0]}


@pytest.fixture(scope="module")
def program() -> Program:
    """Takes ids and weight, batch×length."""
    ids, both = torch.arange(12).reshape(3, 4) % 7, {0: AUTO, 1: AUTO}
    shapes = {"ids": both, "weight": both, "scale": None, "unread": {0: AUTO}, "flag": None}
    kwargs = {"ids": ids, "weight": torch.rand(3, 4) + 1, "scale": 2.0, "unread": torch.rand(3), "flag": None}
    return capture(Net(), kwargs=kwargs, dynamic_shapes=shapes)


@pytest.fixture(scope="module")
def image() -> Program:
    """Takes images of 3×6×5, any number of them."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    return capture(model, (torch.rand(2, 3, 6, 5),), dynamic_shapes={"input": {0: AUTO}})


@pytest.fixture(scope="module")
def fixed() -> Program:
    return capture(nn.Linear(4, 2), (torch.rand(2, 4),))


def batch(rows: int = 2, length: int = 5) -> dict[str, Any]:
    return {"ids": torch.arange(rows * length).reshape(rows, length) % 7, "weight": torch.ones(rows, length)}


def refused(program: Program, sentence: str, *batches: Any) -> None:
    with pytest.raises(UsageError, match=re.escape(sentence)):
        check_calibration(program, batches)


def test_batches_are_counted_ordered_and_copied(program: Program) -> None:
    given = [dict(reversed(batch(2).items())), batch(3)]
    found = check_calibration(program, given)
    assert found.rows == 5
    assert list(found.batches[0]) == ["ids", "weight"]
    given[0]["ids"].fill_(6)
    assert torch.equal(found.batches[0]["ids"], batch(2)["ids"])


def test_a_batch_runs_and_neither_it_nor_the_program_changes(program: Program) -> None:
    runs = program.tensors()["runs"].clone()
    found = check_calibration(program, [batch()])
    assert torch.equal(program.tensors()["runs"], runs)
    inputs = flatten_batch(program, found.batches[0])
    assert [type(value).__name__ for value in inputs] == ["Tensor", "Tensor", "float", "Tensor", "NoneType"]
    flag, hidden, rows = fx.Interpreter(program.graph_module).run(*inputs, enable_io_processing=False)
    assert (flag, tuple(hidden.shape), rows) == (None, (2, 5, 4), 2)
    expected = program(**batch(), scale=2.0, unread=torch.rand(2), flag=None)["hidden"]
    assert torch.equal(hidden, expected)
    assert torch.equal(found.batches[0]["weight"], torch.ones(2, 5))


def test_arrays_lists_and_other_widths_become_the_programs_tensors(program: Program) -> None:
    backwards = np.ones((1, 4), np.float64)[:, ::-1]
    backwards.flags.writeable = False
    found = check_calibration(program, [{"ids": np.array([[1, 2, 3, 4]], np.int32), "weight": backwards}])
    assert {name: value.dtype for name, value in found.batches[0].items()} == {
        "ids": torch.int64, "weight": torch.float32
    }  # fmt: skip
    listed = check_calibration(program, [{"ids": [[1, 2]], "weight": [[1.0, 2.0]]}])
    assert listed.batches[0]["ids"].tolist() == [[1, 2]]


def test_tensors_alone_are_inputs_in_order(program: Program, image: Program) -> None:
    assert check_calibration(program, [tuple(batch().values())]).rows == 2
    assert check_calibration(image, [torch.rand(4, 3, 6, 5), np.ones((1, 3, 6, 5))]).rows == 5
    assert list(check_calibration(image, [[torch.rand(1, 3, 6, 5)]]).batches[0]) == ["input_1"]


def test_a_loader_gives_labels_behind_the_inputs_and_they_are_told_once(image: Program) -> None:
    data = TensorDataset(torch.rand(6, 3, 6, 5), torch.arange(6), torch.rand(6, 2))
    found = check_calibration(image, DataLoader(data, batch_size=4))
    assert [list(each) for each in found.batches] == [["input_1"]] * 2
    assert found.rows == 6
    assert found.notes == (
        "calibrated without what the batches hold beside the input input_1, as labels are: int64 4, float32 4×2",
    )
    named = ({"input_1": torch.rand(2, 3, 6, 5)}, ["cat", "dog"])
    assert check_calibration(image, [named]).notes[0].endswith(": a list")


def test_labels_by_name_are_left_out_where_all_inputs_are_there(program: Program) -> None:
    found = check_calibration(program, [{**batch(), "labels": torch.ones(2)}])
    assert list(found.batches[0]) == ["ids", "weight"]
    assert found.notes[0].endswith("as labels are: 'labels'")
    refused(program, "batch 1 has 'labels', which is no input of", {"ids": batch()["ids"], "labels": [1]})


def test_labels_are_left_out_only_where_the_inputs_fit(image: Program) -> None:
    refused(
        image,
        "calibration batch 1 holds 2 tensors, too many for the input input_1, and the first does not fit: calibration batch 1:"
        " input_1 is 2×6×5×3, and the program takes batch×3×6×5",
        (torch.rand(2, 6, 5, 3), torch.ones(2)),
    )


class Endless:
    """Images without end; counts those that it made."""

    made = 0

    def __iter__(self) -> Iterator[Tensor]:
        for place in itertools.count():
            self.made += 1
            yield torch.full((4, 3, 6, 5), float(place))


def test_what_a_limit_leaves_is_read_lazily_again_and_again(image: Program) -> None:
    loader = Endless()
    found = check_calibration(image, loader, limit=10)
    assert (found.rows, loader.made) == (10, 3)
    for _ in range(2):
        firsts_of = [float(each["input_1"][0, 0, 0, 0]) for each in itertools.islice(found, 5)]
        assert firsts_of == [0, 1, 2, 3, 4]
    fit, back = found.split(0.34, image)
    assert [float(each["input_1"].max()) for each in itertools.islice(fit, 3)] == [0, 2, 3]
    assert [float(each["input_1"].max()) for each in back] == [1]
    assert check_calibration(image, iter(Endless()), limit=10).unread is None  # can't be read again
    wrong = check_calibration(image, [torch.rand(2, 3, 6, 5), torch.rand(2, 3, 6, 4)], limit=2)
    with pytest.raises(UsageError, match="calibration batch 2: input_1 is 2×3×6×4"):
        list(wrong)


@pytest.mark.parametrize(("limit", "rows", "taken"), [(0, 9, 3), (3, 3, 1), (4, 4, 2), (7, 7, 3)])
def test_a_generator_is_read_once_and_no_further_than_the_limit(
    program: Program, limit: int, rows: int, taken: int
) -> None:
    asked = []

    def batches() -> Iterator[dict[str, Tensor]]:
        for place in range(3):
            asked.append(place)
            yield batch(3, 4 + place)

    assert check_calibration(program, batches(), limit).rows == rows
    assert asked == list(range(taken))


def test_a_batch_of_a_fixed_size_is_not_cut_by_the_limit(fixed: Program) -> None:
    assert check_calibration(fixed, [torch.rand(2, 4)] * 5, limit=3).rows == 4
    with pytest.raises(UsageError, match="the number of calibration rows must be at least 0"):
        check_calibration(fixed, [], limit=-1)


def test_data_that_are_no_batches_are_refused(program: Program) -> None:
    refused(program, "there are no calibration data: give at least one batch with the inputs ids, weight")
    refused(
        program,
        "calibration batch 1 is a str; expected a mapping of input names to tensors, or tensors in"
        " the order of the inputs: ids, weight, unread",
        "ids",
    )
    refused(program, "batch 1 holds 4 tensors, too many for the inputs ids, weight", [torch.ones(1)] * 4)
    rows = TensorDataset(torch.ones(4, 3))
    refused_data = "got a TensorDataset; give a torch.utils.data.DataLoader of it"
    with pytest.raises(UsageError, match=refused_data):
        check_calibration(program, rows)  # type: ignore[arg-type]
    for data in (batch(), torch.ones(2, 3), 5):
        with pytest.raises(UsageError, match=f"of batches, got a {type(data).__name__}; put a single batch"):
            check_calibration(program, data)  # type: ignore[arg-type]


def test_names_must_be_the_inputs_that_are_read(program: Program) -> None:
    refused(
        program,
        "calibration batch 2 has 'weights', which is no input of the program (near: weight);"
        " it takes the inputs ids, weight, unread",
        batch(),
        {**batch(), "weights": 1},
    )
    refused(program, "batch 1 lacks 'weight'; the program takes the inputs ids", {"ids": batch()["ids"]})
    assert "unread" in check_calibration(program, [{**batch(), "unread": torch.ones(9)}]).batches[0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_must_be_finite(program: Program, value: float) -> None:
    bad = {**batch(), "weight": torch.tensor([[1.0, value, value, 1, 1]] * 2)}
    refused(program, "batch 2: weight holds NaN or infinity as float32 (4 of 10 values); mend", batch(), bad)


def test_numbers_must_be_of_the_same_kind_and_in_range(program: Program) -> None:
    refused(
        program,
        "calibration batch 1: ids is float32, and the program takes int64; convert it with .to(torch.int64)",
        {**batch(), "ids": torch.ones(2, 5)},
    )
    refused(program, "weight is bool, and the program takes float32", {**batch(), "weight": [[True]]})
    refused(program, "weight is a list that can't be read as a tensor", {**batch(), "weight": [["a"]]})
    refused(program, "weight is a ndarray that can't be read", {**batch(), "weight": np.array([None])})
    narrow = capture(nn.Flatten(), (torch.ones(2, 3, dtype=torch.int32),))
    assert check_calibration(narrow, [torch.ones(2, 3, dtype=torch.int64)]).rows == 2
    refused(
        narrow,
        "holds int64 values that int32, which the program takes, can't hold",
        torch.full((2, 3), 2**40),
    )
    refused(narrow, "input_1 is bool, and the program takes int32", torch.ones(2, 3, dtype=torch.bool))


def test_sizes_must_fit(program: Program, image: Program, fixed: Program) -> None:
    refused(
        image,
        "calibration batch 1: input_1 is 2×3×6×4, and the program takes batch×3×6×5: dimension 3 is fixed and"
        " must be 5",
        torch.rand(2, 3, 6, 4),
    )
    refused(
        image,
        "input_1 is 3×6×5, and the program takes batch×3×6×5: it must have 4 dimensions, not 3",
        torch.rand(3, 6, 5),
    )
    refused(image, "input_1 is a single number, and", torch.tensor(1.0))
    refused(
        image,
        "input_1 is 0×3×6×5, and the program takes batch×3×6×5: dimension 0 must not",
        torch.rand(0, 3, 6, 5),
    )
    refused(
        fixed,
        "input_1 is 1×4, and the program takes 2×4: dimension 0 is fixed and must be 2",
        torch.rand(1, 4),
    )
    refused(
        program,
        "calibration batch 1: dimension 1 of ids is 5 and dimension 1 of weight is 4; the program takes equal",
        {**batch(), "weight": torch.ones(2, 4)},
    )  # fmt: skip


def test_the_first_batch_is_tried(program: Program) -> None:
    refused(
        program,
        "the program can't run on the first calibration batch (ids 1×2 from 3 to 9, weight 1×2):"
        " IndexError: index out of range in self",
        {"ids": [[3, 9]], "weight": [[1.0, 1.0]]},
    )
    refused(
        program,
        "output 'hidden' has NaN on the first calibration batch (ids 1×2 from 3 to 3, weight 1×2); leave",
        {"ids": [[3, 3]], "weight": [[1.0, -1.0]]},
    )


def firsts(part: Calibration) -> list[float]:
    return [float(value["input_1"].flatten()[0]) for value in part.batches]


@pytest.mark.parametrize(
    ("count", "share", "held"),
    [(2, 0.1, [1]), (2, 0.9, [1]), (3, 0.9, [0, 2]), (8, 0.25, [2, 6]), (9, 0.34, [1, 4, 7])],
)
def test_whole_batches_are_held_back_evenly(
    fixed: Program, count: int, share: float, held: list[int]
) -> None:
    data = check_calibration(fixed, [torch.full((2, 4), float(place)) for place in range(count)])
    fit, back = data.split(share, fixed)
    assert firsts(back) == held
    assert firsts(fit) == [place for place in range(count) if place not in held]


def test_rows_of_ones_own_are_held_back_in_place_of_some(fixed: Program) -> None:
    data = check_calibration(fixed, [torch.full((2, 4), float(place)) for place in range(8)])
    other = check_calibration(fixed, [torch.full((2, 4), 9.0)])
    fit, back = replace(data, held=other.batches).split(0.25, fixed)
    assert firsts(back) == [9]
    assert firsts(fit) == list(range(8))


def test_a_single_batch_is_split_by_rows_where_their_number_is_free(
    program: Program, image: Program, fixed: Program
) -> None:
    data = check_calibration(image, [torch.arange(5.0).reshape(5, 1, 1, 1).expand(5, 3, 6, 5)])
    fit, back = data.split(0.4, image)
    assert [part.batches[0]["input_1"][:, 0, 0, 0].tolist() for part in (fit, back)] == [[0, 2, 4], [1, 3]]
    for rows in (fit, back):
        assert check_calibration(image, rows.batches).rows == rows.rows
    both = check_calibration(program, [batch(2, 5)]).split(0.5, program)
    assert [tuple(part.batches[0]["weight"].shape) for part in both] == [(1, 5), (1, 5)]
    with pytest.raises(UsageError, match=r"the program takes all of its 2 rows at once; give at least 2"):
        check_calibration(fixed, [torch.rand(2, 4)]).split(0.5, fixed)
    with pytest.raises(UsageError, match=r"1 calibration rows can't be split in two: give at least 2"):
        check_calibration(image, [torch.rand(1, 3, 6, 5)]).split(0.5, image)


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, float("nan")])
def test_a_share_is_between_none_and_all(image: Program, share: float) -> None:
    with pytest.raises(UsageError, match=f"must lie between 0 and 1, got {share:g}"):
        Calibration(({"input_1": torch.rand(4, 3, 6, 5)},)).split(share, image)


def row(*ids: int) -> dict[str, list[int]]:
    return {"ids": list(ids), "mask": [1] * len(ids)}


def ids(batches: list[Batch]) -> list[list[list[int]]]:
    return [value["ids"].tolist() for value in batches]


def test_texts_of_one_length_share_a_batch() -> None:
    made = batched_by_length([row(1), row(1, 2), row(3), row(4, 5), row(6, 7), row(8, 9, 9)], 2)
    assert ids(made) == [[[8, 9, 9]], [[1, 2], [4, 5]], [[6, 7]], [[1], [3]]]
    assert [tuple(value["mask"].shape) for value in made] == [(1, 3), (2, 2), (1, 2), (2, 1)]
    assert made[0]["ids"].dtype == torch.int64
    assert batched_by_length([], 2) == []
    with pytest.raises(UsageError, match="a batch must have at least 1 row, got 0"):
        batched_by_length([row(1)], 0)
