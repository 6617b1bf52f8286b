"""Calls of a module for capture: inputs that capture itself gave are dropped again."""

import torch
from expecttest import assert_expected_inline

from fxprune import show
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
