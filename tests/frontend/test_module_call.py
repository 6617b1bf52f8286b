"""Calls of a module for capture: inputs that capture itself gave are dropped again."""

from collections.abc import Callable

import pytest
import torch
from expecttest import assert_expected_inline
from torch import nn

from fxprune import capture, show
from fxprune.errors import CaptureError
from fxprune.frontend.module_call import drop_inputs
from support.texts import Net, exported


def test_before_and_after_of_inputs_that_are_dropped() -> None:
    """A constant that capture itself gave, such as `use_cache=False`."""
    net = Net(lambda net, x, use_cache=True: (x + 1, x) if use_cache else x + 1)
    program = exported(net, torch.randn(3, 8), use_cache=False)
    assert_expected_inline(
        show(program),
        """\
x: (!3, !8)
use_cache
add = add(x, 1) -> (!3, !8)
return add""",
    )
    drop_inputs(program.graph_module, frozenset({"use_cache"}))
    assert_expected_inline(
        show(program.replace(kwargs={})),
        """\
x: (!3, !8)
add = add(x, 1) -> (!3, !8)
return add""",
    )


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # torch.compile imports what torch itself deprecates
@pytest.mark.parametrize(
    "wrapper", [nn.DataParallel, torch.compile, lambda net: torch.compile(nn.DataParallel(net))]
)
def test_what_runs_another_module_is_captured_as_that(wrapper: Callable[[nn.Module], nn.Module]) -> None:
    program = capture(
        wrapper(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))), (torch.randn(3, 4),)
    )
    assert list(program.parameters()) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_torchscript_is_refused_in_a_sentence() -> None:
    x = torch.randn(3, 4)
    with pytest.warns(DeprecationWarning, match="jit"):
        traced = torch.jit.trace(nn.Linear(4, 8), (x,))
    with pytest.raises(CaptureError, match="this is a TorchScript module, of which no Python code is left"):
        capture(traced, (x,))
