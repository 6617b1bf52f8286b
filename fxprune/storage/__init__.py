"""Tensors in files: views of checkpoints and of scratch files, whose memory is let go after use and read again when it is needed."""

from fxprune.storage.mapped import adopt, is_mapped, let_go, letting_go
from fxprune.storage.scratch import placed_like, to_disk

__all__ = ["adopt", "is_mapped", "let_go", "letting_go", "placed_like", "to_disk"]
