"""Complex numbers and Fourier transforms: pairs (real, imaginary) are pinned, and so are transformed dims, whose positions mix."""

from __future__ import annotations

import torch

from fxprune.dims import atom
from fxprune.rules.facts import Shape
from fxprune.rules.op import Op
from fxprune.rules.registry import rule

aten = torch.ops.aten


@rule(aten.view_as_complex, aten.view_as_complex_copy, zero="keep")
def view_as_complex(op: Op) -> Shape:
    """Remove and pin the last dim, the pair (real, imaginary)."""
    *shape, pair = op.dims("self")
    op.pin(pair, "real and imaginary part")
    return tuple(shape)


@rule(aten.view_as_real, aten.view_as_real_copy, zero="keep")
def view_as_real(op: Op) -> Shape:
    """Add a pinned last dim, the pair (real, imaginary)."""
    return (*op.dims("self"), *op.fixed([2], "real and imaginary part"))


_ONE = (
    aten.fft_fft, aten.fft_ifft, aten.fft_rfft, aten.fft_irfft, aten.fft_hfft, aten.fft_ihfft, aten._fft_c2c, aten._fft_r2c, aten._fft_c2r,
)  # fmt: skip
_SEVERAL = (
    aten.fft_fft2, aten.fft_ifft2, aten.fft_rfft2, aten.fft_irfft2, aten.fft_fftn, aten.fft_ifftn, aten.fft_rfftn, aten.fft_irfftn,
    aten.fft_fftshift, aten.fft_ifftshift, aten.fft_hfft2, aten.fft_hfftn, aten.fft_ihfft2, aten.fft_ihfftn,
)  # fmt: skip


@rule(*_ONE, *_SEVERAL, zero="keep")
def transform(op: Op) -> Shape:
    """Pin the transformed dims; the others pass through, and a sum over positions keeps their zeros."""
    shape = op.dims("self")
    named = op.integers("dim") or tuple(range(len(shape)))
    places = {i % len(shape) for i in named}
    op.pin([shape[i] for i in places], f"{op.node.target} mixes all positions")
    pairs = enumerate(zip(shape, op.out, strict=True))
    result = [atom(size) if i in places else dim for i, (dim, size) in pairs]
    op.pin([result[i] for i in places], f"{op.node.target} mixes all positions")
    return tuple(result)


@rule(aten.stft, zero="lose")
def frames(op: Op) -> Shape:
    """Pin all dims but the batch: a signal is read by position."""
    shape = op.dims("self")
    lead, why = shape[:-1], f"{op.node.target} mixes all positions"
    op.pin((*shape[-1:], *(op.dims("window") if op.has("window") else ())), why)
    return (*lead, *op.fixed(op.out[len(lead) :], why))
