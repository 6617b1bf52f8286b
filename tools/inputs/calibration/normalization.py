"""Normalisation of images: mean and standard deviation of each channel, on a scale from 0 (black) to 1."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from types import MappingProxyType

from fxprune.errors import UsageError
from fxprune.tools.inputs.calibration.request import NORMALIZATION_OPTION


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation, one of each or one a channel; `name` is how it is written."""

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def help(self) -> str:
        """The numbers, as `--image-normalization` takes them."""
        return f"mean={_text(self.mean)} std={_text(self.std)}"

    def check(self, channels: int) -> None:
        """Raise UsageError where it is for another number of channels."""
        count = max(len(self.mean), len(self.std))
        if count not in {1, channels}:
            raise UsageError(
                f"{NORMALIZATION_OPTION} {self.name} is for {count} channels, and the model's images have {channels}"
            )


_ROWS = (
    Normalization("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    Normalization("clip", (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    Normalization("half", (0.5,), (0.5,)),
    Normalization("none", (0.0,), (1.0,)),
)

NORMALIZATIONS: Mapping[str, Normalization] = MappingProxyType({row.name: row for row in _ROWS})
"""Usual normalisations by name: that of torchvision and timm, that of CLIP, -1 to 1, and 0 to 1."""


def assumed_normalization(channels: int) -> Normalization:
    """Return what is taken where nobody says: almost all models of colour images are trained with ImageNet's numbers."""
    return NORMALIZATIONS["imagenet" if channels == 3 else "none"]


def parse_normalization(text: str) -> Normalization:
    """Return the normalisation that `--image-normalization` names or writes out; UsageError for anything else."""
    if text in NORMALIZATIONS:
        return NORMALIZATIONS[text]
    found = re.fullmatch(r"mean=([^\s=]+)[\s;]+std=([^\s=]+)", text.strip())
    mean, std = (
        [_number(each) for each in group.split(",")] for group in (found.groups() if found else ("", ""))
    )
    numbers = [*mean, *std]
    if not all(isfinite(number) for number in numbers) or min(std) <= 0 or {len(mean), len(std)} - {1, 3}:
        raise UsageError(
            f"{NORMALIZATION_OPTION} {text[:80]!r}: expected {', '.join(NORMALIZATIONS)}, or numbers on a scale from 0 to 1,"
            f" one or three of each, the last above 0, as in {NORMALIZATION_OPTION} 'mean=0.5 std=0.25,0.25,0.25'"
        )
    return Normalization(text, tuple(mean), tuple(std))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _text(numbers: tuple[float, ...]) -> str:
    return ",".join(f"{number:g}" for number in numbers)
