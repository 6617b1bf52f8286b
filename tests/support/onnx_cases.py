"""Cases of operators that torch's exporter lacks or writes wrongly: a net of some, its inputs, and their rows of `REWRITES`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

F, aten = nn.functional, torch.ops.aten
draw = torch.Generator().manual_seed(0)
rows, others = torch.randn(3, 5, generator=draw), torch.randn(3, 5, generator=draw)
image = torch.randn(2, 4, 7, 9, generator=draw)
volume = torch.randn(1, 2, 5, 6, 7, generator=draw)
steps = torch.randn(2, 4, 6, generator=draw)
integers = torch.tensor([[3, -3, 7, -7, 5], [0, 1, -1, 2, -8]])
places = torch.tensor([[1, 0, 2, 1, 0], [2, 2, 0, 1, 1], [0, 1, 2, 0, 0]])
ties = torch.tensor([[1.0, 2, 2, 3, 1], [0, -1, 0, -1, 5], [2, 2, 2, 2, 2]])
odd = torch.tensor([[0.0, -0.0, 1, -1, 2], [torch.nan, torch.inf, -torch.inf, 3, -3.5]])
axes = torch.tensor([0.0, 0, 1, -1, 0, 1, -2]), torch.tensor([1.0, -1, 0, 0, 0, 2, -1])
half = torch.tensor([True, False, True, False, True])

Outputs = Callable[..., tuple[Tensor, ...]]

CASES: dict[str, tuple[Outputs, tuple[Tensor, ...], set[Any]]] = {
    "pools": (
        lambda x, v: (
            F.adaptive_max_pool2d(x, (3, 4)),
            F.adaptive_max_pool1d(x[0], 4),
            F.adaptive_max_pool3d(v, (2, 3, 4)),
            F.adaptive_avg_pool3d(v, (2, 3, 4)),
            F.avg_pool2d(x, 3, 2, 1, divisor_override=5),
            F.avg_pool3d(v, 2, divisor_override=3),
        ),
        (image, volume),
        {aten.adaptive_max_pool1d, aten.adaptive_max_pool2d, aten.adaptive_max_pool3d}
        | {aten.adaptive_avg_pool3d, aten.avg_pool2d, aten.avg_pool3d},
    ),
    "resampling": (
        lambda x: (
            F.interpolate(x, (3, 4), mode="bilinear", antialias=True),
            F.interpolate(x, (14, 4), mode="bicubic", antialias=True, align_corners=True),
            F.interpolate(x, scale_factor=0.6, mode="bilinear", antialias=True),
            F.pixel_unshuffle(x[:, :, :6, :8], 2),
            F.pixel_unshuffle(x[0, :, :6, :6], 3),
        ),
        (image,),
        {aten._upsample_bilinear2d_aa, aten._upsample_bicubic2d_aa, aten.pixel_unshuffle},
    ),
    "running values": (
        lambda x, m: (x.cumprod(1), x.cummax(0)[0], x.cummin(-1)[0], m.cumprod(1)),
        (rows, integers),
        {aten.cumprod, aten.cummax, aten.cummin},
    ),
    "order": (
        lambda x, t: (
            x.median(),
            x.median(1, keepdim=True)[0],
            x.kthvalue(2, 0)[0],
            *torch.sort(t, stable=True, dim=1),
            *torch.sort(t, stable=True, descending=True, dim=1),
            torch.argmin(t, keepdim=True),
            torch.argmax(t),
            x.amax(),
            x.amin(),
        ),
        (rows, ties),
        {aten.kthvalue, aten.median, aten.sort, aten.argmax, aten.argmin, aten.amax, aten.amin},
    ),
    "searches": (
        lambda x, t: (
            torch.searchsorted(x[0].sort()[0], t),
            torch.searchsorted(x.sort(1)[0], t, right=True),
            torch.searchsorted(x.sort(1)[0], t, side="right", out_int32=True),
            t.masked_select(t > 0.5),
        ),
        (rows, ties),
        {aten.searchsorted, aten.masked_select},
    ),
    "distances": (
        lambda x, y: (
            *(torch.cdist(x, y, p=p) for p in (0.0, 1.0, 2.0, 3.0, torch.inf)),
            torch.cdist(x, y, compute_mode="use_mm_for_euclid_dist"),
            torch.cdist(x.repeat(9, 1), y.repeat(9, 1)[None]),
        ),
        (rows, others),
        {aten.cdist},
    ),
    "writes": (
        lambda x, i, s: (
            x.scatter(0, i[:1], s),
            x.scatter_add(1, i[:2, :3], s),
            x.scatter(1, i, s, reduce="add"),
            x.scatter(1, i, s, reduce="multiply"),
            *(
                x.scatter_reduce(1, i, s, kind, include_self=own)
                for kind in ("mean", "prod", "amax")
                for own in (True, False)
            ),
            *(x.index_reduce(1, torch.tensor([0, 2, 2]), s[:, :3], kind) for kind in ("mean", "amin")),
        ),
        (rows, places, others),
        {aten.scatter, aten.scatter_add, aten.scatter_reduce, aten.index_reduce},
    ),
    "functions of elements": (
        lambda a, b, x, y: (
            torch.hypot(a, b),
            torch.copysign(a, b),
            torch.fmax(x, x.flip(1)),
            torch.fmin(x, x.flip(1)),
            torch.atan2(y, y.flip(0) - 1),
            F.rrelu(a),
        ),
        (rows, others, odd, axes[0]),
        {aten.hypot, aten.copysign, aten.fmax, aten.fmin, aten.atan2, aten.rrelu},
    ),
    "limits in tensors": (
        lambda a, m: (a.clamp(torch.tensor(-0.5), torch.tensor(0.5)), m.clamp(torch.tensor(-2), None)),
        (rows, integers),
        {aten.clamp},
    ),
    "angles on the axes": (lambda y, x: (torch.atan2(y, x),), axes, {aten.atan2}),
    "integers": (
        lambda m, x: (
            m.relu(),
            F.relu6(m),
            m.round(),
            m.floor(),
            m.ceil(),
            m.trunc(),
            torch.stack([m, x[:2]]),
            torch.hstack([m, x[:2]]),
            torch.vstack([m, x]),
            torch.dstack([m, x[:2]]),
            torch.column_stack([m, x[:2]]),
            torch.cat([m, x]),
            torch.concatenate([m, x]),
            torch.concat([m, x]),
            torch.row_stack([m, x]),
        ),
        (integers, rows),
        {aten.relu, aten.relu6, aten.round, aten.floor, aten.ceil, aten.trunc}
        | {aten.stack, aten.hstack, aten.vstack, aten.dstack, aten.column_stack, aten.cat}
        | {aten.concatenate, aten.concat, aten.row_stack},
    ),
    "booleans": (lambda m, x: (m + m.flip(0), m * (x[0] > 0)), (half, rows), {aten.add, aten.mul}),
    "places of elements": (
        lambda x: (
            x.repeat_interleave(2),
            x[0].repeat_interleave(3, 0),
            x.roll(9, -1),
            x.roll((7, -1), (0, 1)),
            x.roll(3),
        ),
        (rows,),
        {aten.repeat_interleave, aten.roll},
    ),
    "products": (
        lambda x, y: (
            torch.baddbmm(torch.full((2, 4, 4), torch.nan), x, y, beta=0, alpha=2),
            F.scaled_dot_product_attention(x, x, y.transpose(1, 2)[..., :5]),
            F.scaled_dot_product_attention(x[0], x[0], x[0]),
            F.scaled_dot_product_attention(x[None, None], x[None, None], x[None, None], torch.eye(4).bool()),
        ),
        (steps, steps.transpose(1, 2).contiguous()),
        {aten.baddbmm, aten.scaled_dot_product_attention},
    ),
}
