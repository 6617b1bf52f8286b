"""Scratch files: tensors that are written to a temporary file and read back as views of it.

The files lie in the folder for temporary files (the environment's TMPDIR) and have no name once they are open: their space is free again
when the last tensor that reads them is gone, even where the process is killed.
"""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from fxprune.storage.mapped import has_memory, is_mapped, let_go, mark

SMALLEST_FILE = 1 << 16
"""Bytes below which a tensor stays in memory."""


def to_disk(tensor: Tensor) -> Tensor:
    """Return a tensor with the same values in a scratch file, a parameter where it is one; small ones, and those without memory, as is."""
    size = tensor.numel() * tensor.element_size()
    if tensor.device.type != "cpu" or not has_memory(tensor) or size < SMALLEST_FILE or is_mapped(tensor):
        return tensor
    wide = tensor.detach().contiguous()
    found = torch.empty(0, dtype=tensor.dtype).set_(_written(wide), 0, tensor.shape, wide.stride())
    return nn.Parameter(found, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else found


def placed_like(value: Tensor, result: Tensor) -> Tensor:
    """Return a result where the value that it was made from is: on its device, or in a scratch file if it is mapped; it is let go."""
    here = result.to(value.device)
    if not is_mapped(value):
        return here
    let_go(value)
    return to_disk(here)


def _written(tensor: Tensor) -> torch.UntypedStorage:
    size = tensor.numel() * tensor.element_size()
    with tempfile.NamedTemporaryFile(prefix="fxprune-", delete=False) as file:
        path = Path(file.name)
        try:
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
            file.flush()
            view = torch.from_file(str(path), False, size, dtype=torch.uint8)
        finally:
            with suppress(OSError):  # where the system keeps the name of an open file
                path.unlink()
    mark(view.untyped_storage())
    return view.untyped_storage()
