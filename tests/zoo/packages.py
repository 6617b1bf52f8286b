"""The packages part of the zoo: one row for each model, of PyPI packages beyond `transformers`, with random weights at small sizes.

A row is `package/model`: the package, the call that builds the model, and its inputs in words that `inputs.parse_inputs` reads.
No package but torchvision is imported before a row's `build` is called. `tests/zoo/packages.txt` lists them all.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from zoo.calls import Call
from zoo.inputs import parse_inputs
from zoo.packages_images import IMAGES
from zoo.packages_pixels import PIXELS
from zoo.packages_sequences import SEQUENCES
from zoo.packages_tables import TABLES
from zoo.packages_timm import TIMM
from zoo.packages_torchvision import TORCHVISION
from zoo.torchvision_operators import declare_operators


@dataclass(frozen=True)
class Row:
    """One model: its package on PyPI, the call that builds it, and its inputs in words."""

    name: str
    call: Call
    inputs: str
    dynamic: bool = False

    @property
    def package(self) -> str:
        """The package's name on PyPI."""
        return self.name.partition("/")[0]

    def build(self) -> tuple[nn.Module, Mapping[str, Any]]:
        """The model in evaluation mode and its keyword inputs; ImportError where the package is not there, or can't build it here."""
        importlib.metadata.version(self.package)
        os.environ["HF_HUB_OFFLINE"] = "1"
        torch.manual_seed(0)
        try:
            model = self.call.made()
        except Exception as error:
            raise ImportError(f"can't be built here: {type(error).__name__}: {error}") from error
        return model.eval(), parse_inputs(self.inputs)


declare_operators()  # before anything else: transformers, too, imports torchvision where it is installed

ROWS = {
    name: Row(name, *said)
    for name, said in {**IMAGES, **PIXELS, **SEQUENCES, **TABLES, **TORCHVISION, **TIMM}.items()
}
