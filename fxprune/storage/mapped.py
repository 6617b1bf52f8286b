"""Mapped tensors: views of files, which the system reads page by page when they are used, and whose pages can be let go.

Pages are let go only while all of them are still the file's, as Linux tells: what was written into them, by the owner of a module that
trains on it, stays. Where the system can't tell, or has no `madvise` (Windows), pages are not let go, and all else works.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor, nn

_MAPPED: WeakSet[torch.UntypedStorage] = WeakSet()
"""Storages that are views of files. They are known as objects, not by address: memory that replaces them is never let go."""

_MAPS = Path("/proc/self/maps")
"""Linux's list of the address ranges of this process, with the file that each is a view of."""

_PAGES = Path("/proc/self/pagemap")
"""Linux's list of the pages of this process, 64 bits each: bit 63 is set for one in memory, 62 on swap, 61 where it is a file's."""


def mark(storage: torch.UntypedStorage) -> None:
    """Record that a storage is a private view of a file."""
    _MAPPED.add(storage)


def is_mapped(tensor: Tensor) -> bool:
    """Return whether a tensor is known to be a view of a file."""
    if tensor.device.type != "cpu" or not has_memory(tensor):
        return False
    return tensor.untyped_storage() in _MAPPED


def has_memory(tensor: Tensor) -> bool:
    """Return whether a tensor has plain memory: a strided one with elements, and no subclass that computes its values."""
    plain = type(tensor) in (Tensor, nn.Parameter)
    return plain and tensor.layout == torch.strided and tensor.numel() > 0


def let_go(tensor: Tensor) -> None:
    """Let go of the memory of a mapped tensor, whole pages of it; of any other, nothing."""
    if not is_mapped(tensor):
        return
    page, start = mmap.PAGESIZE, tensor.data_ptr()
    end = start + tensor.untyped_storage().nbytes() - tensor.storage_offset() * tensor.element_size()
    if tensor.is_contiguous():
        end = start + tensor.numel() * tensor.element_size()
    first, last = -(-start // page) * page, end // page * page
    advise = _madvise()
    if last > first and advise is not None and _unwritten(first, last):
        advise(first, last - first, mmap.MADV_DONTNEED)


def adopt(tensors: Iterable[Tensor]) -> int:
    """Record which tensors are private views of files already, as loaders of safetensors leave them; return how many are."""
    files = _file_ranges()
    own = [each for each in tensors if each.device.type == "cpu" and has_memory(each)]
    found = [each.untyped_storage() for each in own if _lies_in(each.untyped_storage(), files)]
    for storage in found:
        mark(storage)
    return len(found)


@contextmanager
def letting_go() -> Iterator[None]:
    """In the block, let go of the mapped parameters of each module after its call."""

    def after(module: nn.Module, args: Any, result: Any) -> None:
        for parameter in module._parameters.values():
            if parameter is not None:
                let_go(parameter)

    hook = nn.modules.module.register_module_forward_hook(after)
    try:
        yield
    finally:
        hook.remove()


@cache
def _madvise() -> Any:
    """Return the system's call, None where there is none."""
    if not hasattr(mmap, "MADV_DONTNEED"):
        return None
    call = ctypes.CDLL(None).madvise
    call.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return call


def _unwritten(first: int, last: int) -> bool:
    """Return whether the used pages of an address range are all still the file's; False where the system can't tell."""
    size = mmap.PAGESIZE
    try:
        with _PAGES.open("rb", buffering=0) as file:
            file.seek(first // size * 8)
            pages = np.frombuffer(file.read((last - first) // size * 8), dtype=np.uint64)
    except OSError:
        return False
    used, of_file = (pages >> np.uint64(62)) != 0, (pages >> np.uint64(61)) & np.uint64(1) != 0
    return len(pages) == (last - first) // size and bool((of_file | ~used).all())


def _file_ranges() -> list[tuple[int, int]]:
    """Return the address ranges of this process that are private views of regular files, ascending; none where the system has no list."""
    if not _MAPS.exists():
        return []
    found = []
    for line in _MAPS.read_text(encoding="utf-8", errors="replace").splitlines():
        place, rights, _, _, _, *name = line.split(maxsplit=5)
        if name and name[0].startswith("/") and rights.endswith("p"):
            first, last = (int(number, 16) for number in place.split("-"))
            found.append((first, last))
    return found


def _lies_in(storage: torch.UntypedStorage, ranges: list[tuple[int, int]]) -> bool:
    first, last = storage.data_ptr(), storage.data_ptr() + storage.nbytes()
    return any(start <= first and last <= end for start, end in ranges)
