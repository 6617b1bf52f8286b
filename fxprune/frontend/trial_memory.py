"""Memory of a trial run: how many bytes the values of a graph take on given inputs, counted without computing them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from fxprune.ir import Program
from fxprune.storage.limits import free_memory

SHARE_OF_FREE = 0.5
"""Share of the free memory that all values of a trial may take together."""


class _TooMuchError(Exception):
    """The values exceed the limit."""


class _Counting(fx.Interpreter):
    """Interpreter that adds up the bytes of all values, each memory once."""

    def __init__(self, module: fx.GraphModule, limit: float) -> None:
        super().__init__(module)
        self.left, self.seen = limit, dict[int, Any]()

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op == "get_attr":
            return value  # weights are in memory already
        for leaf in pytree.tree_leaves(value):
            storage = leaf.untyped_storage() if isinstance(leaf, Tensor) else None
            if storage is not None and storage._cdata not in self.seen:
                self.seen[storage._cdata] = storage  # kept, so that no other gets its place
                self.left -= storage.nbytes()
        if self.left < 0:
            raise _TooMuchError
        return value


def fits_in_memory(program: Program, inputs: Sequence[Any]) -> bool:
    """Return whether all values of a run on these inputs, in the order of the placeholders, take at most SHARE_OF_FREE of the free memory.

    What can't be counted, since a size depends on values or the graph fails on such inputs, counts as fitting.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    given = [mode.from_tensor(value) if isinstance(value, Tensor) else value for value in inputs]
    run = _Counting(program.graph_module, SHARE_OF_FREE * free_memory())
    try:
        with mode, torch.no_grad():
            run.run(*given, enable_io_processing=False)
    except _TooMuchError:
        return False
    except Exception:  # noqa: BLE001 - whatever a graph raises that was traced for other sizes
        return True
    return True
