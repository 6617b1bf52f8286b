"""Runtime registry: one row per runtime, and functions that open and describe the runtime that settings name."""

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fxprune.errors import UsageError
from fxprune.ir import first_line
from fxprune.runtimes.base import DEFAULT, Prepared, Settings
from fxprune.runtimes.onnxruntime import (
    LEVELS,
    onnxruntime_providers,
    onnxruntime_version,
    prepare_onnxruntime,
)
from fxprune.runtimes.openvino import openvino_version, prepare_openvino
from fxprune.runtimes.peepholes import peepholes_for
from fxprune.runtimes.pytorch import prepare_pytorch, pytorch_version


@dataclass(frozen=True, slots=True)
class Runtime:
    """Row of the table RUNTIMES: the name in sentences, a description, the suffix of its files, and the command that installs it.

    `open` prepares a file and returns a function that runs it once on given inputs, by name. `version` raises
    ImportError where the runtime is absent. `levels` are its optimisation levels, `providers` what may follow
    its name and a colon.
    """

    title: str
    help: str
    suffix: str
    install: str
    version: Callable[[], str]
    open: Callable[[Path, Settings], Prepared]
    levels: tuple[str, ...] = ("all",)
    providers: Callable[[], tuple[str, ...]] = tuple

    def missing(self) -> str:
        """Return why the runtime can't be imported, with the command that installs it, in a sentence; empty where it can."""
        try:
            self.version()
        except ImportError as error:
            return f"{self.title} can't be imported ({first_line(error)}); install it: {self.install}"
        return ""


MOST_THREADS = max(256, os.cpu_count() or 1)
"""More threads than that lock a machine up."""

RUNTIMES: dict[str, Runtime] = {
    "onnxruntime": Runtime(
        "ONNX Runtime", "ONNX Runtime on the CPU, or on a provider that is named after a colon, as onnxruntime:CUDAExecutionProvider",
        ".onnx", "pip install onnxruntime", onnxruntime_version, prepare_onnxruntime, LEVELS, onnxruntime_providers,
    ),
    "openvino": Runtime(
        "OpenVINO", "OpenVINO on the CPU, in float32", ".onnx", "pip install openvino", openvino_version, prepare_openvino,
    ),
    "torch": Runtime(
        "PyTorch", "PyTorch on the CPU, without a compiler", ".pt2", "pip install torch", pytorch_version, prepare_pytorch,
    ),
}  # fmt: skip


def runtime_of(settings: Settings) -> Runtime:
    """Return the row that the settings name; UsageError where it is unknown or absent, or does not support the settings."""
    name, colon, provider = settings.runtime.partition(":")
    if name not in RUNTIMES:
        raise UsageError(f"no runtime {name!r}; runtimes: {', '.join(RUNTIMES)}")
    row = RUNTIMES[name]
    if why := row.missing():
        raise UsageError(why)
    if colon and provider not in row.providers():
        available = ", ".join(row.providers()) or "none"
        raise UsageError(f"{row.title} has no provider {provider!r} here; available: {available}")
    if settings.optimization not in row.levels:
        levels = ", ".join(row.levels)
        raise UsageError(f"no optimisation level {settings.optimization!r} in {row.title}; levels: {levels}")
    if settings.threads < 1:
        raise UsageError(f"threads must be at least 1, got {settings.threads}")
    if settings.threads > MOST_THREADS:
        raise UsageError(f"threads must be at most {MOST_THREADS}, got {settings.threads}")
    return row


def prepare(path: Path, settings: Settings = DEFAULT) -> Prepared:
    """Open a file in the runtime that the settings name, and return a function that runs it once on given inputs."""
    row = runtime_of(settings)
    # Without this check the runtime would report a broken file. A suffix of no runtime may be anything.
    if path.suffix != row.suffix and path.suffix in {other.suffix for other in RUNTIMES.values()}:
        raise UsageError(
            f"{row.title} runs {row.suffix} files, not {path}; for those: {', '.join(runtimes_for(path.suffix))}"
        )
    return row.open(path, settings)


def runtimes_for(suffix: str) -> list[str]:
    """Return the names of the runtimes that run files with a suffix."""
    return [name for name, row in RUNTIMES.items() if row.suffix == suffix]


def describe_settings(settings: Settings) -> str:
    """Describe the settings in words, for the title of a table."""
    name, _, provider = settings.runtime.partition(":")
    row = RUNTIMES[name]
    level = f", optimisation {settings.optimization}" if len(row.levels) > 1 else ""
    return f"{row.title} on {provider or 'the CPU'}, {_threads(settings)}{level}"


def settings_identity(settings: Settings) -> str:
    """Return, in a line, all that a timing under these settings depends on: the runtime, its version, the settings, and the machine."""
    version = runtime_of(settings).version()
    machine = f"{processor()}, {os.cpu_count()} cores"
    forms = "".join(f", {row.form}" for row in peepholes_for(settings))
    level = f"optimisation {settings.optimization}{forms}"
    return f"{settings.runtime} {version}, {_threads(settings)}, {level}, {machine}"


def processor() -> str:
    """Return the model name of the CPU, on Linux from /proc/cpuinfo, elsewhere from `platform`."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    found = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return found[0] if found else platform.processor() or platform.machine()


def _threads(settings: Settings) -> str:
    return "1 thread" if settings.threads == 1 else f"{settings.threads} threads"
