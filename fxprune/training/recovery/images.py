"""Augmentation of images without labels: crops, flips, brightness and contrast, and mixtures of two; the original says what is right."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name


@dataclass(frozen=True)
class Augmentation:
    """Ranges that are drawn from, row by row: the smallest share of a side that a crop keeps, and how strong the rest is."""

    crop: float = 0.5
    flip: bool = True
    tone: float = 0.2  #: brightness and contrast change by at most so much of the deviation
    mix: float = 0.5  #: share of the batches that are mixed with themselves in another order


def augmented(images: Tensor, how: Augmentation) -> Tensor:
    """Return other views of images (rows, channels, height, width), of the same sizes, drawn from torch's random numbers."""
    views = _toned(_cropped(images, how), how)
    if len(views) < 2 or torch.rand(()) >= how.mix:
        return views
    share = torch.distributions.Beta(0.4, 0.4).sample((len(views), 1, 1, 1)).to(views)
    return share * views + (1 - share) * views[torch.randperm(len(views), device=views.device)]


def _cropped(images: Tensor, how: Augmentation) -> Tensor:
    rows = len(images)
    side = how.crop + (1 - how.crop) * torch.rand(rows)
    stretch = torch.exp((torch.rand(rows) - 0.5) * 0.5)
    wide, high = (side * stretch).clamp(max=1), (side / stretch).clamp(max=1)
    left, top = ((2 * torch.rand(rows) - 1) * (1 - size) for size in (wide, high))
    sign = torch.where(torch.rand(rows) < 0.5, -1.0, 1.0) if how.flip else torch.ones(rows)
    zero = torch.zeros(rows)
    places = torch.stack([torch.stack([wide * sign, zero, left], -1), torch.stack([zero, high, top], -1)], 1)
    grid = F.affine_grid(places.to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def _toned(images: Tensor, how: Augmentation) -> Tensor:
    shape = (len(images), 1, 1, 1)
    mean, deviation = images.mean((1, 2, 3), keepdim=True), images.std((1, 2, 3), keepdim=True)
    contrast = 1 + how.tone * (2 * torch.rand(shape).to(images) - 1)
    brightness = how.tone * (2 * torch.rand(shape).to(images) - 1)
    return (images - mean) * contrast + mean + brightness * deviation
