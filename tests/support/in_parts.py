"""Models that torch.export can't capture whole, for their own code decides on values."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class Backbone(nn.Module):
    """Two convolutions; it returns a mapping, and its model asks for an attribute and calls a method."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.two, self.width = nn.Conv2d(16, 8, 3, padding=1), 8

    def scaled(self, x: Tensor) -> Tensor:
        return x / self.width

    def forward(self, x: Tensor) -> Mapping[str, Tensor]:
        return {"features": self.two(F.relu(self.norm(self.one(x))))}


class Head(nn.Module):
    """A head that is called at two sizes, with a constant argument."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor, slope: float = 0.0) -> Tensor:
        found: Tensor = self.two(F.leaky_relu(self.one(x), slope))
        return found


class Detector(nn.Module):
    """A detector: a backbone, a shared head, rows chosen by their values, and blocks in a Python loop that looks at its result."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = Backbone(), Head()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(5, 20), nn.GELU(), nn.Linear(20, 5)) for _ in range(3)
        )
        self.last = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        found = self.backbone(self.backbone.scaled(x))["features"]
        levels = [self.head(found, slope=0.1), self.head(found[..., ::2, ::2], slope=0.1)]
        rows = torch.cat([level.flatten(2).mT for level in levels], 1)
        rows = rows[:, [place for place in range(rows.shape[1]) if rows[0, place, 0].item() > -1e3]]
        for block in self.blocks:
            rows = rows + block(rows)
            if rows.sum().item() > 1e9:
                break
        scores: Tensor = self.last(rows)
        return scores


class OpenedUp(nn.Module):
    """A model that calls a layer of a submodule from outside, and reads a weight of another."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
        self.read, self.free = (
            nn.Sequential(nn.Linear(4, 4)),
            nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4)),
        )

    def forward(self, x: Tensor) -> Tensor:
        if x.sum().item() > 1e9:
            return x
        x = self.inner(x) + self.inner[2](self.inner[0](x))
        found: Tensor = self.free(self.read(x)) + F.linear(x, self.read.get_parameter("0.weight").flip(0))
        return found


def load() -> tuple[Detector, tuple[Tensor], dict[str, Tensor]]:
    """Return a detector and an image, as `py:` takes them."""
    torch.manual_seed(0)
    return Detector().eval(), (torch.randn(1, 3, 8, 8),), {}
