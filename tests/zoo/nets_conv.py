# mypy: disable-error-code="no-any-return"
# The result of calling a module is Any to the type checker.
"""Hand-written convolutional and recurrent nets: residuals, concatenations, groups, resizing, padding, norms, recurrence."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from zoo.nets_attention import pixels
from zoo.nets_dense import BATCH, LENGTH, sequence


def conv(i: int, o: int, k: int = 3, **options: Any) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(i, o, k, padding=k // 2, bias=False, **options), nn.BatchNorm2d(o))


class ConvNet(nn.Module):
    """Convolutions, pooling and a classifier on flattened places (VGG)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = (
            nn.Conv2d(2, 8, 3, padding=1),
            nn.Conv2d(8, 12, 3, padding=1),
            nn.Linear(12 * 4, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = F.max_pool2d(self.a(x).relu(), 2)
        return self.head(F.max_pool2d(self.b(h).relu(), 2).flatten(1))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.short = conv(2, 8), conv(8, 16, 1, stride=2)
        self.a, self.b = nn.Sequential(conv(8, 12), nn.ReLU()), conv(12, 8)
        self.c, self.d = nn.Sequential(conv(8, 12, stride=2), nn.ReLU()), conv(12, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x).relu()
        h = (h + self.b(self.a(h))).relu()
        h = (self.short(h) + self.d(self.c(h))).relu()
        return self.head(F.adaptive_avg_pool2d(h, 1).flatten(1))


class OptionA(nn.Module):
    """ResNet's shortcut without weights: stride and zero channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = (
            conv(2, 8),
            conv(8, 16, stride=2),
            conv(16, 16),
            nn.Linear(16, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x).relu()
        short = F.pad(h[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        h = (short + self.b(self.a(h).relu())).relu()
        return self.head(h.mean((2, 3)))


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(8 + 4 * i) for i in range(3)])
        self.layers = nn.ModuleList([nn.Conv2d(8 + 4 * i, 4, 3, padding=1) for i in range(3)])
        self.head = nn.Conv2d(20, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            h = torch.cat([h, layer(norm(h).relu())], dim=1)
        return self.head(F.avg_pool2d(h, 2))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.mid = conv(2, 8), conv(8, 12), conv(12, 16)
        self.up2, self.up1 = nn.ConvTranspose2d(16, 12, 2, stride=2), nn.ConvTranspose2d(12, 8, 2, stride=2)
        self.join2, self.join1, self.head = conv(24, 12), conv(16, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x).relu()
        two = self.down2(F.max_pool2d(one, 2)).relu()
        mid = self.mid(F.max_pool2d(two, 2)).relu()
        two = self.join2(torch.cat([self.up2(mid), two], dim=1)).relu()
        return self.head(self.join1(torch.cat([self.up1(two), one], dim=1)).relu())


class Grouped(nn.Module):
    """ResNeXt's block: a grouped convolution between two pointwise ones."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.group, self.widen = conv(2, 16, 1), conv(16, 16, groups=4), conv(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.widen(self.group(self.reduce(x).relu()).relu())


class Depthwise(nn.Module):
    """MobileNet's block with squeeze and excitation, and a channel multiplier."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.depth, self.project = conv(2, 8, 1), conv(8, 16, groups=8), conv(16, 5, 1)
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu6(self.depth(F.hardswish(self.expand(x))))
        gate = F.hardsigmoid(self.excite(self.squeeze(F.adaptive_avg_pool2d(h, 1)).relu()))
        return self.project(h * gate)


class Shuffle(nn.Module):
    """ShuffleNet's exchange of channels between groups."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(2, 12, 1), conv(12, 12, 1, groups=3), conv(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.channel_shuffle(self.b(self.a(x).relu()), 3)
        b, c, height, width = h.shape
        return self.head(h.view(b, 4, c // 4, height, width).transpose(1, 2).reshape(b, c, height, width))


class SuperResolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (
            nn.Conv2d(2, 8, 3, padding=1),
            nn.Conv2d(8, 24, 3, padding=1),
            nn.Conv2d(6, 3, 1),
        )
        self.d = nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.pixel_shuffle(self.b(self.a(x).tanh()), 2)
        return self.d(F.pixel_unshuffle(self.c(h), 2))


class Interpolated(nn.Module):
    """A pyramid: maps are resized and summed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 8, 3, 2, padding=1)
        self.c, self.head = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.a(x).relu()
        coarse = self.b(fine)
        smooth = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
        return self.head(self.c(fine) + smooth + F.interpolate(coarse, size=(8, 8), mode="nearest"))


class Padded(nn.Module):
    """Reflect, replicate, circular and constant padding."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 8, 3, padding=1, padding_mode="reflect")
        self.b = nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular")
        self.c = nn.Conv2d(8, 8, 3, padding=1, padding_mode="replicate")
        self.head = nn.Conv2d(8, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.pad(self.c(self.b(self.a(x)).relu()), (1, 1, 1, 1), value=0.5))


class GroupNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(2, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.norm(self.a(x)).relu())


class InstanceNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(2, 8, 3, padding=1), nn.InstanceNorm2d(8, affine=True)
        self.b = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.leaky_relu(self.norm(self.a(x))))


class ConvNext(nn.Module):
    """Depthwise, channels last, layer norm, a scale per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depth = nn.Conv2d(2, 8, 2, 2), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.scale, self.head = nn.Parameter(torch.ones(8)), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        y = self.norm(self.depth(h).permute(0, 2, 3, 1))
        h = h + (self.scale * self.down(F.gelu(self.up(y)))).permute(0, 3, 1, 2)
        return self.head(h.mean((-2, -1)))


class Patches(nn.Module):
    """A vision transformer's start: patches, a class token, positions."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.token = nn.Conv2d(2, 8, 4, 4), nn.Parameter(torch.zeros(1, 1, 8))
        self.place, self.norm, self.head = (
            nn.Parameter(torch.randn(1, 5, 8)),
            nn.LayerNorm(8),
            nn.Linear(8, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.patch(x).flatten(2).transpose(1, 2)
        h = torch.cat([self.token.expand(x.shape[0], -1, -1), h], dim=1) + self.place
        return self.head(self.norm(h)[:, 0])


class Conv1d(nn.Module):
    """A dilated, gated stack on sequences (WaveNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate = nn.Conv1d(6, 8, 1), nn.Conv1d(8, 32, 3, dilation=2)
        self.skip, self.back, self.head = nn.Conv1d(16, 12, 1), nn.Conv1d(16, 8, 1), nn.Conv1d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x.transpose(1, 2))
        a, b = self.gate(F.pad(h, (4, 0))).chunk(2, dim=1)
        y = a.tanh() * b.sigmoid()
        return self.head(self.skip(y).relu()) + self.back(y + 0).add(h).sum(1, keepdim=True)


class Conv3d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv3d(2, 8, 3, padding=1), nn.BatchNorm3d(8), nn.Conv3d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.a(x.unsqueeze(2).expand(-1, -1, 4, -1, -1))).relu()
        return self.b(F.max_pool3d(h, 2))


class GridSample(nn.Module):
    """Values sampled at places that the net computes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.grid, self.b = nn.Conv2d(2, 8, 1), nn.Conv2d(2, 2, 1), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        places = self.grid(x).tanh().permute(0, 2, 3, 1)
        return self.b(F.grid_sample(self.a(x), places, align_corners=False))


class Unfolded(nn.Module):
    """A convolution by unfold."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 4, 1), nn.Linear(36, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(F.unfold(self.a(x), 3, padding=1).transpose(1, 2)).relu())


class DynamicConv(nn.Module):
    """A mixture of kernels, chosen by the input; one sample at a time by groups."""

    def __init__(self) -> None:
        super().__init__()
        self.route, self.kernels, self.head = (
            nn.Linear(2, 4),
            nn.Parameter(torch.randn(4, 8, 2, 3, 3)),
            nn.Conv2d(8, 5, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        mixed = torch.einsum("bk,koihw->boihw", self.route(x.mean((2, 3))).softmax(-1), self.kernels)
        h = F.conv2d(x.reshape(1, -1, 8, 8), mixed.reshape(-1, 2, 3, 3), padding=1, groups=x.shape[0])
        return self.head(h.view(x.shape[0], 8, 8, 8).relu())


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.rnn, self.head = (
            nn.Linear(6, 8),
            nn.LSTM(8, 10, 2, batch_first=True, bidirectional=True),
            nn.Linear(20, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.up(x).relu())[0])


class Gru(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.mid, self.head = nn.GRU(6, 10, batch_first=True), nn.Linear(10, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mid(self.rnn(x)[0][:, -1]).relu())


class GruCell(nn.Module):
    """A cell in a loop that torch.export unrolls."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(6, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(BATCH, 8)
        for i in range(4):
            h = self.cell(x[:, i], h)
        return self.head(h)


class StateSpace(nn.Module):
    """A selective scan, unrolled (Mamba)."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.conv = nn.Linear(6, 32), nn.Conv1d(16, 16, 4, groups=16, padding=3)
        self.project, self.step = nn.Linear(16, 2 + 2 * 4), nn.Linear(2, 16)
        self.rate, self.skip, self.out = (
            nn.Parameter(torch.randn(16, 4)),
            nn.Parameter(torch.ones(16)),
            nn.Linear(16, 6),
        )

    def forward(self, x: Tensor) -> Tensor:
        h, gate = self.into(x).chunk(2, dim=-1)
        h = F.silu(self.conv(h.transpose(1, 2))[..., :LENGTH].transpose(1, 2))
        step, b, c = self.project(h).split([2, 4, 4], dim=-1)
        step = F.softplus(self.step(step))
        decay = torch.exp(step[..., None] * -self.rate.exp())
        state, outputs = x.new_zeros(x.shape[0], 16, 4), []
        for i in range(3):
            state = decay[:, i] * state + (step * h)[:, i, :, None] * b[:, i, None]
            outputs.append((state * c[:, i, None]).sum(-1))
        return self.out((torch.stack(outputs, 1) + h[:, :3] * self.skip) * F.silu(gate[:, :3]))


CONVOLUTION = {
    "conv-net": lambda: (ConvNet(), pixels()),
    "resnet": lambda: (ResNet(), pixels()),
    "resnet-option-a": lambda: (OptionA(), pixels()),
    "densenet": lambda: (DenseNet(), pixels()),
    "unet": lambda: (UNet(), pixels()),
    "grouped": lambda: (Grouped(), pixels()),
    "depthwise": lambda: (Depthwise(), pixels()),
    "shuffle": lambda: (Shuffle(), pixels()),
    "super-resolution": lambda: (SuperResolution(), pixels()),
    "interpolated": lambda: (Interpolated(), pixels()),
    "padded": lambda: (Padded(), pixels()),
    "group-norm": lambda: (GroupNorm(), pixels()),
    "instance-norm": lambda: (InstanceNorm(), pixels()),
    "convnext": lambda: (ConvNext(), pixels()),
    "patches": lambda: (Patches(), pixels()),
    "conv1d": lambda: (Conv1d(), sequence()),
    "conv3d": lambda: (Conv3d(), pixels()),
    "grid-sample": lambda: (GridSample(), pixels()),
    "unfolded": lambda: (Unfolded(), pixels()),
    "dynamic-conv": lambda: (DynamicConv(), pixels()),
    "lstm": lambda: (Lstm(), sequence()),
    "gru": lambda: (Gru(), sequence()),
    "gru-cell": lambda: (GruCell(), sequence()),
    "state-space": lambda: (StateSpace(), sequence()),
}
