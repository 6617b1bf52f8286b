"""`--image-normalization`: names, numbers, and a sentence for anything else."""

from __future__ import annotations

import re

import pytest

from fxprune.errors import UsageError
from fxprune.tools.inputs.calibration.normalization import (
    NORMALIZATIONS,
    assumed_normalization,
    parse_normalization,
)


def test_names_and_numbers_are_read() -> None:
    assert parse_normalization("half").mean == (0.5,)
    found = parse_normalization("mean=0.485,0.456,0.406 std=0.229,0.224,0.225")
    assert (found.mean, found.std) == (NORMALIZATIONS["imagenet"].mean, NORMALIZATIONS["imagenet"].std)
    assert parse_normalization(NORMALIZATIONS["clip"].help).std[0] == pytest.approx(0.268630)
    assert (assumed_normalization(3).name, assumed_normalization(1).name) == ("imagenet", "none")


@pytest.mark.parametrize(
    "text",
    ["nonsense", "mean=0.5", "std=1 mean=0", "mean=0.5 std=0", "mean=0.5 std=-1", "mean=x std=1", "mean=nan std=1",
     "mean=0 std=inf", "mean=0,0 std=1", "mean=0,0,0,0 std=1", "mean=, std=1", "mean=0 std=1 more"],
)  # fmt: skip
def test_other_texts_are_refused_with_an_example(text: str) -> None:
    sentence = f"--image-normalization {text!r}: expected imagenet, clip, half, none, or numbers"
    with pytest.raises(UsageError, match=re.escape(sentence)):
        parse_normalization(text)


def test_three_channels_are_not_one() -> None:
    NORMALIZATIONS["half"].check(1)
    with pytest.raises(UsageError, match="imagenet is for 3 channels, and the model's images have 1"):
        NORMALIZATIONS["imagenet"].check(1)
