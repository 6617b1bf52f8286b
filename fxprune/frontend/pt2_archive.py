"""Diagnosis of a .pt2 file that torch can't read: the classes that it needs, which torch's own error does not name.

The file names the classes that inputs and outputs are made of (the output class of a transformers model), and torch knows such a class
only once its module has been imported. The result of `Program.plain` is made of dicts, and its file needs no package besides torch.
"""

import re
import zipfile
from pathlib import Path

from torch.utils import _pytree as pytree

_MODEL = re.compile(r"/models/[^/]+\.json$")
_TYPE = re.compile(r'\\"type\\": \\"([\w.]+)\\"')


def unregistered_classes(path: Path) -> tuple[str, ...]:
    """Return the classes in a file's inputs and outputs that torch does not know in this process; none where the file can't be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            texts = [archive.read(name).decode() for name in archive.namelist() if _MODEL.search(name)]
    except (OSError, UnicodeDecodeError, zipfile.BadZipFile):
        return ()
    named = dict.fromkeys(name for text in texts for name in _TYPE.findall(text))
    return tuple(name for name in named if name not in pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE)


def required_modules(path: Path) -> tuple[str, ...]:
    """Return the modules that a process must import before it reads a file."""
    return tuple(dict.fromkeys(name.rpartition(".")[0] for name in unregistered_classes(path)))


def missing_modules(path: Path) -> str:
    """Return a sentence with the unknown classes and the modules to import; empty where there are none."""
    classes, modules = ", ".join(unregistered_classes(path)), ", ".join(required_modules(path))
    return f"its inputs or outputs are made of {classes}; first import {modules}" if classes else ""
