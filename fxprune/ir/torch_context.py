"""Contexts for calls into torch (export mode, quiet, inference), and torch's errors in one line."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

import torch
from torch import nn

_SHAPES_LOG = logging.getLogger("torch.fx.experimental.symbolic_shapes")


@contextmanager
def exporting(model: nn.Module, training: bool = False) -> Iterator[None]:
    """Set eval (or training) mode, without gradients, attention fast path, warnings and stderr; restore everything afterwards."""
    modes = {module: module.training for module in model.modules()}
    fastpath, level = torch.backends.mha.get_fastpath_enabled(), _SHAPES_LOG.level
    _SHAPES_LOG.setLevel(
        logging.CRITICAL
    )  # a failed export logs the graph; the exception has the reason, too
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        model.train(training)
        with torch.no_grad(), warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        _SHAPES_LOG.setLevel(level)
        torch.backends.mha.set_fastpath_enabled(fastpath)
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def quiet() -> Iterator[None]:
    """Keep warnings, log lines and prints of the exporters off the terminal."""
    before, swallowed = logging.root.manager.disable, io.StringIO()
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(swallowed), redirect_stderr(swallowed):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def inference() -> Iterator[None]:
    """Disable gradients, and the attention fast path, which exists only outside of exported graphs."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


def innermost_reason(error: BaseException) -> str:
    """The first line of an error's innermost cause, without the graph that torch prints."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def first_line(error: BaseException) -> str:
    """The first non-empty line of an error's text, cut at 300 characters; the error's type where there is none."""
    return _line(error) or type(error).__name__


def describe_error(error: BaseException) -> str:
    """The type of an error, and the first non-empty line of its text, cut at 300 characters."""
    return f"{type(error).__name__}: {_line(error) or 'no reason given'}"


def _line(error: BaseException) -> str:
    text = next(filter(None, map(str.strip, str(error).splitlines())), "")
    return text if len(text) <= 300 else text[:297] + "..."
