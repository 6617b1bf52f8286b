"""torchvision where its compiled part is made for another build of torch: its models import, and its detectors run, in Python."""

from __future__ import annotations

import importlib
import inspect
import sys
from typing import Any

import torch
from torch import Tensor

_BOXES = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def declare_operators() -> None:
    """Declare the operators that torchvision names and does not bring, and compute `nms` and `roi_align` in Python."""
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError:
        return
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", _BOXES)
        torch.library.impl("torchvision::nms", "cpu", suppressed)
        _compute_in_python()


def suppressed(boxes: Tensor, scores: Tensor, most: float) -> Tensor:
    """Non-maximum suppression: the boxes, best first, that overlap no better one by more than `most`."""
    first, last = boxes[:, :2], boxes[:, 2:]
    shared = (torch.min(last[:, None], last) - torch.max(first[:, None], first)).clamp_min(0).prod(-1)
    areas = (last - first).prod(-1)
    overlap = shared / (areas[:, None] + areas - shared)
    kept: list[int] = []
    for place in scores.argsort(descending=True, stable=True).tolist():
        if not bool((overlap[place, kept] > most).any()):
            kept.append(place)
    return torch.tensor(kept, dtype=torch.long)


def _compute_in_python() -> None:
    """Let `nms` run without the compiled part, and `roi_align` as it is written, for torchvision compiles that with a C compiler."""
    boxes: Any = importlib.import_module("torchvision.ops.boxes")
    boxes._assert_has_ops = lambda: None
    align: Any = importlib.import_module("torchvision.ops.roi_align")
    align._roi_align = inspect.unwrap(align._roi_align)
