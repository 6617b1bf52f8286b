"""Microsoft Olive: a pass for its workflows, and the delivery step behind it, which needs no Olive."""

from __future__ import annotations

import importlib
from typing import Any

PASS = frozenset({"FxPrune", "write_package_config"})
"""Names that workflows use from this folder; loaded on first access, because they need Olive, and the rest of the folder does not."""


def __getattr__(name: str) -> Any:
    if name not in PASS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("fxprune.integrations.olive.olive_pass"), name)
