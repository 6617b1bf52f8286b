# mypy: disable-error-code="no-any-return"
# The result of calling a module is Any to the type checker.
"""Three small networks of other kinds than transformers, trained on made-up data in a few seconds, and cut: what recovery has to mend."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F  # noqa: N812 - its usual name

from fxprune import Program, capture, parse_pipeline
from fxprune.calibration import Calibration, check_calibration

AUTO = Dim.AUTO


class UNet(nn.Module):
    """A U-Net of one level that cleans pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.down, self.middle = nn.Conv2d(12, 16, 3, padding=1, stride=2), nn.Conv2d(16, 16, 3, padding=1)
        self.up, self.last = nn.ConvTranspose2d(16, 12, 2, 2), nn.Conv2d(24, 12, 3, padding=1)
        self.out = nn.Conv2d(12, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        high = self.norm(self.first(x)).relu()
        low = self.down(high).relu()
        low = low + self.middle(low).relu()
        return self.out(self.last(torch.cat([high, self.up(low)], 1)).relu())


class Tagger(nn.Module):
    """A GRU that gives each word one of five tags."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.gru, self.tags = (
            nn.Embedding(20, 12),
            nn.GRU(12, 16, batch_first=True),
            nn.Linear(16, 5),
        )

    def forward(self, ids: Tensor) -> Tensor:
        return self.tags(self.gru(self.words(ids))[0])


class Detector(nn.Module):
    """Boxes, scores and a map from one backbone, as a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 16, 3, stride=2, padding=1), nn.ReLU()
        )
        self.boxes, self.scores, self.map = nn.Linear(16, 4), nn.Linear(16, 3), nn.Conv2d(16, 1, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = self.body(x)
        whole = found.amax((2, 3))
        return {"boxes": self.boxes(whole), "scores": self.scores(whole), "map": self.map(found)}


def pictures(rows: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return noisy pictures (rows, 1, 8, 8), and what lies under the noise."""
    clean = F.interpolate(torch.rand(rows, 1, 3, 3, generator=random), (8, 8), mode="bilinear")
    clean = (clean > 0.5).float()
    return clean + 0.4 * torch.randn(clean.shape, generator=random), clean


def _pictures_loss(net: Any, random: torch.Generator) -> Tensor:
    x, clean = pictures(32, random)
    return (net(x) - clean).square().mean()


def _tags_loss(net: Any, random: torch.Generator) -> Tensor:
    ids = torch.randint(0, 20, (16, 9), generator=random)
    tags = (ids + ids.roll(1, 1)) % 5
    return F.cross_entropy(net(ids)[:, 1:].flatten(0, 1), tags[:, 1:].flatten())


def _boxes_loss(net: Any, random: torch.Generator) -> Tensor:
    x, clean = pictures(32, random)
    found = net(x)
    mass = clean.mean((2, 3))
    boxes = torch.cat([clean.amax(2).mean(-1), clean.amax(3).mean(-1), mass, 1 - mass], 1)
    small = F.avg_pool2d(clean, 2)
    kind = (mass[:, 0] * 3).long().clamp(max=2)
    return (
        (found["boxes"] - boxes).square().mean()
        + F.cross_entropy(found["scores"], kind)
        + (found["map"] - small).square().mean()
    )


#: name: (the net, its loss on fresh rows, an example, the cut)
NETS: dict[str, tuple[Callable[[], nn.Module], Callable[..., Tensor], Tensor, str]] = {
    "unet": (UNet, _pictures_loss, torch.rand(4, 1, 8, 8), "channels(ratio=0.5)"),
    "tagger": (Tagger, _tags_loss, torch.arange(36).reshape(4, 9) % 20, "ffn(ratio=0.5)"),
    "detector": (Detector, _boxes_loss, torch.rand(4, 1, 8, 8), "channels(ratio=0.5)"),
}


def rows(name: str, count: int, seed: int) -> list[Tensor]:
    """Return unlabelled batches of 16."""
    random = torch.Generator().manual_seed(seed)
    if name == "tagger":
        return [torch.randint(0, 20, (16, 9), generator=random) for _ in range(count)]
    return [pictures(16, random)[0] for _ in range(count)]


@cache
def trained(name: str) -> Program:
    """Return a net that was trained for 150 steps, captured."""
    make, loss, example, _ = NETS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = make()
        random = torch.Generator().manual_seed(1)
        optimizer = torch.optim.Adam(net.parameters(), 5e-3)
        for _ in range(150):
            optimizer.zero_grad()
            loss(net, random).backward()
            optimizer.step()
    return capture(net.eval(), (example,), dynamic_shapes=({0: AUTO},))


def unet() -> tuple[nn.Module, tuple[Tensor], dict[str, Any], Any]:
    """Return the trained U-Net as the command line takes a model."""
    return trained("unet").module(), (NETS["unet"][2],), {}, ({0: AUTO},)


def unet_rows() -> list[Tensor]:
    """Return its unlabelled batches, as the command line takes calibration data."""
    return rows("unet", 16, 2)


@cache
def cut(name: str) -> Program:
    """Return the net after its cut."""
    return parse_pipeline(NETS[name][3]).run(trained(name)).program


@cache
def data(name: str) -> Calibration:
    """Return 16 unlabelled batches."""
    return check_calibration(trained(name), rows(name, 16, 2))


def worse_each_time(model: nn.Module, calls: list[nn.Module] = []) -> float:  # noqa: B006
    """A metric that falls from call to call."""
    calls.append(model)
    return 1 - len(calls)


def not_finite(model: nn.Module) -> float:
    """A metric without a value."""
    return float("nan")


def fails_later(model: nn.Module, calls: list[nn.Module] = []) -> float:  # noqa: B006
    """A metric that can measure the original alone."""
    if calls:
        raise IndexError("no such word")
    calls.append(model)
    return 1.0


def no_number(model: nn.Module) -> str:
    """A metric that is none."""
    return type(model).__name__
