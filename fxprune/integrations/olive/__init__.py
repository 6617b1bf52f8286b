"""Microsoft Olive: a pass of its workflows, and one step of anybody's workflow."""

from __future__ import annotations

import importlib
from typing import Any

PASS = frozenset({"FxPrune", "write_package_config"})
"""What workflows name in this folder; loaded when asked for, because it needs Olive, and the rest of the folder does not."""


def __getattr__(name: str) -> Any:
    if name not in PASS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("fxprune.integrations.olive.olive_pass"), name)
