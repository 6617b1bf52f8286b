"""Images as inputs: decoded by Pillow, and prepared by the model's own image processor, or resized, cropped and normalised."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from fxprune.errors import UsageError
from fxprune.ir import Program, is_free, quiet
from fxprune.tools.inputs.calibration.normalization import (
    Normalization,
    assumed_normalization,
    parse_normalization,
)
from fxprune.tools.inputs.calibration.request import (
    NORMALIZATION_OPTION,
    Asked,
    Request,
    Slot,
    one_input,
)
from fxprune.tools.inputs.huggingface import load_preprocessor
from fxprune.tools.inputs.loaded import call_or_refuse

PrepareImage = Callable[[Any], dict[str, Tensor]]
"""A function from a decoded image to one row of inputs."""


def check_images(asked: Asked, model: str, trust: bool) -> None:
    """Raise UsageError where Pillow is missing, or the normalisation or the model's image processor can't be read."""
    _pillow()
    if asked.normalization:
        parse_normalization(asked.normalization)
    else:
        load_preprocessor("AutoImageProcessor", model, trust)


def decode_image(file: Path | BinaryIO) -> Any:
    """Return an image of Pillow, upright, of one channel (`L`) or three (`RGB`); what Pillow raises at broken files comes through."""
    from PIL import Image, ImageOps

    _pillow()
    with quiet(), Image.open(file) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode[0] in "IF":  # 16 bits and more, which Pillow would clip to 8
            return Image.fromarray(_eight_bits(np.asarray(upright)))
        return upright.convert("L" if upright.mode in {"1", "L", "LA"} else "RGB")


def _pillow() -> None:
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"images are read by Pillow ({error}); install: pip install 'fxprune[images]'"
        ) from error


def _eight_bits(pixels: Any) -> Any:
    """Return pixels of 16 bits (or floats from 0 to 1) as bytes."""
    most = 1.0 if pixels.dtype.kind == "f" else 65535.0
    return np.uint8(np.clip(pixels / most, 0, 1) * 255 + 0.5)


@dataclass(frozen=True)
class ImageInput:
    """The input that takes images: their channels and sizes, and whether channels come last."""

    slot: Slot
    channels: int
    height: int
    width: int
    last: bool

    def fits(self, value: Tensor) -> bool:
        """Return whether an image (without the batch dimension) has the sizes that are fixed."""
        wanted = self.slot.takes[1:]
        return value.ndim == 3 and all(
            is_free(size) or int(size) == found for size, found in zip(wanted, value.shape, strict=True)
        )

    def declare(self, request: Request) -> None:
        """Say that this input holds images, where they may be augmented: floating-point numbers, channels first."""
        if not self.last and self.slot.example.is_floating_point():
            request.images[self.slot.name] = None


def image_input(program: Program) -> ImageInput:
    """Return the input that takes images; UsageError where none has the form of images, or several have."""
    form = "images (N × 1 or 3 channels × height × width, or channels last)"
    return one_input(program, _as_image, form)


def _as_image(slot: Slot) -> ImageInput | None:
    sizes = slot.takes
    kind = slot.example.dtype
    if len(sizes) != 4 or not (kind.is_floating_point or kind == torch.uint8):
        return None
    for channel, height, width in ((1, 2, 3), (3, 1, 2)):
        if not is_free(sizes[channel]) and int(sizes[channel]) in {1, 3}:
            return ImageInput(slot, int(sizes[channel]), slot.size(height), slot.size(width), channel == 3)
    return None


def image_preparation(request: Request) -> PrepareImage:
    """Return the function that makes a row of inputs: the model's own processor, or, asked for or without one, the usual steps."""
    asked, loaded = request.asked, request.loaded
    if asked.normalization:
        return _usual(request, image_input(request.program), parse_normalization(asked.normalization))
    processor = load_preprocessor("AutoImageProcessor", loaded.name, loaded.trusted)
    if processor is not None:
        return _own(request, processor)
    found = image_input(request.program)
    if found.slot.example.dtype != torch.uint8:
        assumed = assumed_normalization(found.channels)
        request.note(
            f"calibrated on images that are normalised as {assumed.name} ({assumed.help}), which is assumed:"
            f" {NORMALIZATION_OPTION} says otherwise"
        )
        return _usual(request, found, assumed)
    return _usual(request, found, None)


def _usual(request: Request, found: ImageInput, normalization: Normalization | None) -> PrepareImage:
    """Return the function that resizes the shorter side, crops the centre, and normalises (None: leaves bytes)."""
    from PIL import Image, ImageOps

    if normalization and found.slot.example.dtype == torch.uint8:
        raise UsageError(f"{NORMALIZATION_OPTION}: {found.slot.name} takes bytes, which are not normalised")
    if normalization:
        normalization.check(found.channels)
    size, mode = (found.width, found.height), "RGB" if found.channels == 3 else "L"
    found.declare(request)

    def prepare(image: Any) -> dict[str, Tensor]:
        fitted = ImageOps.fit(image.convert(mode), size, Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(fitted)).reshape(found.height, found.width, found.channels)
        if normalization:
            pixels = (pixels / 255 - torch.tensor(normalization.mean)) / torch.tensor(normalization.std)
        return {found.slot.name: pixels if found.last else pixels.permute(2, 0, 1).contiguous()}

    return prepare


def _own(request: Request, processor: Any) -> PrepareImage:
    """Return the function that a model's image processor makes; where it makes other sizes than the program takes, its numbers alone."""
    from PIL import Image

    names, kind = request.program.input_names(), type(processor).__name__

    def prepare(image: Any) -> dict[str, Tensor]:
        with quiet():
            made = call_or_refuse(
                f"{kind} of {request.loaded.name} can't prepare an image",
                lambda: processor(images=[image.convert("RGB")], return_tensors="pt"),
            )
        row = {name: made[name][0] for name in names if isinstance(made.get(name), Tensor)}
        if not row:
            raise UsageError(f"{kind} makes {', '.join(made)}, and the model takes {', '.join(names)}")
        return row

    with contextlib.suppress(UsageError):
        found = image_input(request.program)
        row = prepare(Image.new("RGB", (640, 480)))
        if found.slot.name in row and not found.fits(row[found.slot.name]):
            sizes = "×".join(map(str, row[found.slot.name].shape[-2:]))
            request.note(
                f"calibrated on images of {found.height}×{found.width}, which the program takes; {kind} makes {sizes}:"
                " only its mean and deviation are used"
            )
            return _usual(request, found, _numbers_of(processor))
        if found.slot.name in row:
            found.declare(request)
    return prepare


def _numbers_of(processor: Any) -> Normalization:
    if not getattr(processor, "do_normalize", False):
        return Normalization(type(processor).__name__, (0.0,), (1.0,))
    return Normalization(type(processor).__name__, tuple(processor.image_mean), tuple(processor.image_std))
