"""Quantization after pruning: the table of quantizers, and the agreement of a quantized file with the unquantized one.

Quantizers are external tools that read and write files; a row of the table is all that fxprune depends on. There is no tolerance, since
8-bit outputs are not expected to be equal: the agreement is reported; only outputs with another shape, or newly not finite, are refused.
"""

import math
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fxprune.calibration import check_calibration
from fxprune.errors import ExportError, UsageError
from fxprune.export import export_onnx, save_pt2
from fxprune.files import draft_file, file_bytes
from fxprune.frontend.capture import capture
from fxprune.integrations.quantization.onnxruntime import (
    count_onnx_integers,
    quantize_dynamic,
    quantize_static,
    quantizer_version,
)
from fxprune.integrations.quantization.pt2e import count_pt2_integers, quantize_pt2e, torchao_version
from fxprune.ir import Feeds, Program, feeds, first_line
from fxprune.runtimes import Settings
from fxprune.runtimes.onnxruntime import file_feeds, file_outputs
from fxprune.runtimes.registry import prepare

_Values = np.ndarray[Any, Any]

_MOST = 16
"""Maximum number of batches that are compared; more add nothing new."""

EXAMPLE = {"batch": 3, "length": 16}
"""Sizes of generated inputs, where an ONNX file is given without any."""


@dataclass(frozen=True, slots=True)
class Quantizer:
    """A quantizer: its title and help, the suffix of the files it reads and writes, and how pip installs it.

    `write` takes the file, its target and the batches, which a quantizer that is not `calibrated` ignores; `integers` counts the matrices
    that a file holds as 8-bit integers; `version` raises ImportError where the library is absent; `runtime` runs the files.
    """

    title: str
    help: str
    suffix: str
    calibrated: bool
    install: str
    version: Callable[[], str]
    write: Callable[[Path, Path, Iterable[Feeds]], None]
    integers: Callable[[Path], int]
    runtime: str


QUANTIZERS: dict[str, Quantizer] = {
    "dynamic": Quantizer(
        "ONNX Runtime's dynamic quantization",
        "ONNX: 8-bit weights; the ranges of activations are taken in every run, and no data are needed",
        ".onnx", False, "pip install onnxruntime", quantizer_version, quantize_dynamic, count_onnx_integers, "onnxruntime",
    ),
    "static": Quantizer(
        "ONNX Runtime's static quantization",
        "ONNX: 8-bit weights and activations, convolutions included, by ranges seen on calibration data",
        ".onnx", True, "pip install onnxruntime", quantizer_version, quantize_static, count_onnx_integers, "onnxruntime",
    ),
    "pt2e": Quantizer(
        "torchao's PT2E quantization for x86",
        ".pt2: 8-bit weights and activations, by ranges seen on calibration data; fast under torch.compile",
        ".pt2", True, "pip install torchao", torchao_version, quantize_pt2e, count_pt2_integers, "torch",
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement of an output with the unquantized one, over all inputs compared.

    `relative` is the largest difference over the largest unquantized value (0 where both are equal), `cosine` the cosine similarity of all
    values as one vector (1 where both are equal).
    """

    relative: float
    cosine: float


@dataclass(frozen=True, slots=True)
class Quantized:
    """A quantized file: the quantizer, its size and the unquantized one's in bytes, the agreement of each output, and the seconds."""

    path: Path
    how: str
    bytes: int
    before_bytes: int
    agreement: Mapping[str, Agreement]
    seconds: float

    @property
    def worst(self) -> Agreement:
        """The largest difference and the smallest cosine of any output."""
        rows = self.agreement.values()
        return Agreement(max(row.relative for row in rows), min(row.cosine for row in rows))


def quantize(
    source: Program | str | Path,
    path: str | Path,
    how: str = "dynamic",
    calibration: Iterable[Any] = (),
    inputs: Iterable[Any] = (),
    overwrite: bool = False,
) -> Quantized:
    """Write a program, or a file that `fxprune.export_onnx` or `fxprune.save_pt2` wrote, with 8-bit integers, and compare the two.

    `how` is a row of `QUANTIZERS`; `calibration` are batches like those of real use (as for `fxprune.calibration.data.check_calibration`),
    and `inputs` those that outputs are compared on (the calibration data, or else the examples). UsageError where the quantizer is unknown
    or not installed, or calibration data are missing; ExportError where nothing could be quantized, or the result does not run.
    """
    row = quantizer(how)
    with tempfile.TemporaryDirectory() as folder, draft_file(path, overwrite) as draft:
        subject = _subject(source, row, Path(folder), calibration, inputs)
        if row.calibrated and not subject.batches:
            raise UsageError(
                f"{row.title} needs calibration data: give batches of inputs like those of real use"
            )
        start = time.perf_counter()
        row.write(subject.file, draft, subject.batches)
        seconds = time.perf_counter() - start
        if not row.integers(draft):
            raise ExportError(f"{row.title} found no matrix in {subject.file.name} that it could quantize")
        found = _agreement(subject, draft, Settings(runtime=row.runtime))
        return Quantized(Path(path), how, file_bytes(draft), file_bytes(subject.file), found, seconds)


def quantizer(how: str) -> Quantizer:
    """Return the row of a name; UsageError where it is unknown or its library can't be imported."""
    if how not in QUANTIZERS:
        raise UsageError(f"no quantizer {how!r}; quantizers: {', '.join(QUANTIZERS)}")
    row = QUANTIZERS[how]
    try:
        row.version()
    except ImportError as error:
        raise UsageError(
            f"{row.title} can't be imported ({first_line(error)}); install it: {row.install}"
        ) from error
    return row


@dataclass(frozen=True)
class _Subject:
    """Subject of a quantization: its file, the names of its outputs, batches to calibrate on (or none), and inputs to compare on."""

    file: Path
    outputs: Sequence[str]
    batches: list[Feeds]
    inputs: list[Feeds]


def _subject(
    source: Program | str | Path,
    row: Quantizer,
    folder: Path,
    calibration: Iterable[Any],
    inputs: Iterable[Any],
) -> _Subject:
    if isinstance(source, Program):
        file, program = _written(source, folder / f"model{row.suffix}"), source
    else:
        file = _given(Path(source), row)
        if row.suffix == ".onnx":
            batches = _arrays(calibration)
            compared = _arrays(inputs) or batches or [file_feeds(file, EXAMPLE)]
            return _Subject(file, file_outputs(file), batches, compared[:_MOST])
        program = capture(file)
    batches = _checked(program, calibration)
    compared = _checked(program, inputs) or batches or [feeds(program)]
    return _Subject(file, program.output_names(), batches, compared[:_MOST])


def _given(file: Path, row: Quantizer) -> Path:
    if file.suffix != row.suffix:
        raise UsageError(f"{row.title} reads {row.suffix} files, or a program; {file} is neither")
    if not file.is_file():
        raise UsageError(f"there is no file {file} to quantize")
    return file


def _checked(program: Program, batches: Iterable[Any]) -> list[Feeds]:
    given = list(batches)
    return _arrays(check_calibration(program, given).batches) if given else []


def _arrays(batches: Iterable[Mapping[str, Any]]) -> list[Feeds]:
    return [{name: np.asarray(value) for name, value in batch.items()} for batch in batches]


def _written(program: Program, file: Path) -> Path:
    return export_onnx(program, file).path if file.suffix == ".onnx" else save_pt2(program, file)


def _agreement(subject: _Subject, quantized: Path, settings: Settings) -> dict[str, Agreement]:
    """Return the agreement of each output; ExportError where shapes differ, or finite values became others."""
    before, after = (prepare(path, settings) for path in (subject.file, quantized))
    sums = {name: _Sums() for name in subject.outputs}
    for given in subject.inputs:
        for name, one, other in zip(subject.outputs, before(given), after(given), strict=True):
            if one.shape != other.shape:
                raise ExportError(
                    f"output {name!r} has the shape {other.shape} when quantized, and {one.shape} before"
                )
            sums[name].add(name, one.astype(np.float64), other.astype(np.float64))
    return {name: each.agreement() for name, each in sums.items()}


class _Sums:
    """Running sums of the agreement of an output, over inputs."""

    def __init__(self) -> None:
        self.gap = self.scale = self.product = self.one = self.other = 0.0

    def add(self, name: str, one: _Values, other: _Values) -> None:
        finite = np.isfinite(one)
        if not np.isfinite(other[finite]).all():
            raise ExportError(f"output {name!r} is not finite when quantized, and was before")
        one, other = one[finite], other[finite]
        self.gap = max(self.gap, float(np.abs(one - other).max(initial=0.0)))
        self.scale = max(self.scale, float(np.abs(one).max(initial=0.0)))
        self.product += float(np.vdot(one, other))
        self.one, self.other = self.one + float(np.vdot(one, one)), self.other + float(np.vdot(other, other))

    def agreement(self) -> Agreement:
        if self.gap == 0:
            return Agreement(0.0, 1.0)
        norms = math.sqrt(self.one * self.other)
        relative = self.gap / self.scale if self.scale else math.inf
        return Agreement(relative, self.product / norms if norms else 0.0)
