"""The table of runtimes: each computes the same, each is measured, and an absent one is refused in a sentence."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from fxprune import capture
from fxprune.errors import ExportError, UsageError
from fxprune.export import export_onnx, save_pt2
from fxprune.export.agreement import _outputs
from fxprune.ir import Feeds, Program, feeds
from fxprune.runtimes import RUNTIMES, Settings, Timing, measure, registry, runtime_of, timing
from fxprune.runtimes.openvino import _compile
from fxprune.runtimes.pytorch import prepare_pytorch
from fxprune.runtimes.registry import Runtime, describe_settings, prepare, settings_identity
from fxprune.runtimes.timing import FEWEST_RUNS, fastest


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 8)
        self.up = nn.Linear(8, 16)
        self.down = nn.Linear(16, 8)

    def forward(
        self, scale: Tensor, parts: dict[str, Tensor], bias: Tensor | None = None
    ) -> dict[str, Tensor]:
        x = self.table(parts["ids"]) * scale
        y = self.down(nn.functional.gelu(self.up(x)))
        return {"hidden": y if bias is None else y + bias, "found": parts["mask"] & (parts["ids"] > 3)}


def net() -> Program:
    torch.manual_seed(0)
    ids, free = torch.arange(15).reshape(3, 5) % 9, {0: Dim.AUTO, 1: Dim.AUTO}
    kwargs = {"parts": {"ids": ids, "mask": ids > 0}, "bias": None}
    shapes = {"scale": None, "parts": {"ids": free, "mask": free}, "bias": None}
    return capture(Net(), (torch.tensor([2.0]),), kwargs, shapes)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Program, Path]:
    """A program, and its files without their suffix."""
    program, path = net(), tmp_path_factory.mktemp("net") / "model"
    export_onnx(program, path.with_suffix(".onnx"))
    save_pt2(program, path.with_suffix(".pt2"))
    return program, path


def present(name: str) -> Runtime:
    """The row of a runtime; the test is skipped where it is not there."""
    if why := RUNTIMES[name].missing():
        pytest.skip(why)
    return RUNTIMES[name]


@pytest.mark.parametrize("name", RUNTIMES)
def test_every_runtime_computes_what_the_program_computes(name: str, made: tuple[Program, Path]) -> None:
    program, path = made
    run = prepare(path.with_suffix(present(name).suffix), Settings(runtime=name))
    kept = []
    for point in ({"batch": 3, "length": 5}, {"batch": 2, "length": 7}):
        given: Feeds = dict(reversed(feeds(program, point).items()))
        for value in given.values():
            value.flags.writeable = False
        expected = _outputs(program, point)
        assert expected is not None
        kept.append((expected, run({**given, "unknown": np.ones(1)})))
    for expected, found in kept:  # a later run must not write into the outputs of an earlier one
        assert [value.dtype for value in found] == [np.float32, np.bool_]
        assert float(np.abs(expected[0] - found[0]).max()) < 1e-5
        assert np.array_equal(expected[1], found[1])


@pytest.mark.parametrize("name", RUNTIMES)
def test_every_runtime_is_measured(name: str, made: tuple[Program, Path]) -> None:
    program, path = made
    file, settings = path.with_suffix(present(name).suffix), Settings(runtime=name)
    timed = measure({"one": file, "two": file}, dict.fromkeys(("one", "two"), feeds(program)), settings, 0.01)
    assert list(timed) == ["one", "two"]
    assert all(entry.runs >= FEWEST_RUNS for entry in timed.values())
    assert all(0 < entry.low <= entry.median <= entry.high for entry in timed.values())


@pytest.mark.parametrize("name", RUNTIMES)
def test_an_input_that_is_missing_is_a_sentence(name: str, made: tuple[Program, Path]) -> None:
    run = prepare(made[1].with_suffix(present(name).suffix), Settings(runtime=name))
    given = feeds(made[0])
    given.pop("parts_ids")
    with pytest.raises(ExportError, match="parts_ids"):
        run(given)


def test_openvino_takes_the_threads_and_stays_in_float32(made: tuple[Program, Path]) -> None:
    present("openvino")
    compiled = _compile(made[1].with_suffix(".onnx"), Settings(threads=1))
    asked = ("INFERENCE_NUM_THREADS", "PERFORMANCE_HINT", "INFERENCE_PRECISION_HINT")
    told = [str(compiled.get_property(name)) for name in asked]
    assert told[0] == "1"
    assert "LATENCY" in told[1]
    assert "float32" in told[2]


def test_torch_takes_the_threads_for_each_run_and_puts_them_back(
    made: tuple[Program, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, asked = torch.get_num_threads(), list[int]()
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    run = prepare_pytorch(made[1].with_suffix(".pt2"), Settings(threads=7))
    run(feeds(made[0]))
    run(feeds(made[0]))
    assert asked == [7, before, 7, before]


def test_a_runtime_that_is_absent_names_its_command(
    made: tuple[Program, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert RUNTIMES["openvino"].missing().endswith("install it: pip install openvino")
    assert RUNTIMES["torch"].missing() == ""
    with pytest.raises(UsageError, match=r"OpenVINO can't be imported .* pip install openvino"):
        prepare(made[1].with_suffix(".onnx"), Settings(runtime="openvino"))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (Settings(runtime="tensorrt"), "no runtime 'tensorrt'; runtimes: onnxruntime, openvino, torch"),
        (
            Settings(runtime="onnxruntime:Nothing"),
            r"no provider 'Nothing' here; available: .*CPUExecutionProvider",
        ),
        (Settings(runtime="onnxruntime:"), "ONNX Runtime has no provider '' here"),
        (Settings(runtime="torch:cuda"), "PyTorch has no provider 'cuda' here; available: none"),
        (
            Settings(runtime="torch", optimization="basic"),
            "no optimisation level 'basic' in PyTorch; levels: all",
        ),
        (Settings(optimization="most"), "levels: disable, basic, extended, all"),
        (Settings(threads=0), "threads must be at least 1, got 0"),
    ],
)
def test_what_a_runtime_has_not_is_a_sentence(settings: Settings, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        runtime_of(settings)


def test_a_provider_that_does_not_start_is_not_measured_as_the_cpu(
    made: tuple[Program, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fallen:
        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    names = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Fallen)
    with pytest.raises(UsageError, match="could not start CUDAExecutionProvider and fell back to the CPU"):
        prepare(made[1].with_suffix(".onnx"), Settings(runtime="onnxruntime:CUDAExecutionProvider"))


@pytest.mark.parametrize(
    ("name", "suffix", "sentence"),
    [
        ("onnxruntime", ".pt2", r"ONNX Runtime runs .onnx files, not .*\.pt2; for those: torch"),
        ("torch", ".onnx", r"PyTorch runs .pt2 files, not .*\.onnx; for those: onnxruntime, openvino"),
    ],
)
def test_a_file_of_another_runtime_is_a_sentence(
    name: str, suffix: str, sentence: str, made: tuple[Program, Path]
) -> None:
    with pytest.raises(UsageError, match=sentence):
        prepare(made[1].with_suffix(suffix), Settings(runtime=name))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("onnxruntime", "ONNX Runtime can't open .*Protobuf parsing failed"),
        ("openvino", "OpenVINO can't open .*: [^E]"),
        ("torch", "torch can't load .*: File is not a zip file"),
    ],
)
def test_a_broken_file_is_a_sentence(name: str, sentence: str, tmp_path: Path) -> None:
    broken = (tmp_path / "model").with_suffix(present(name).suffix)
    broken.write_text("nothing")
    with pytest.raises(ExportError, match=sentence) as caught:
        prepare(broken, Settings(runtime=name))
    assert "\n" not in str(caught.value)


def test_the_fastest_level_is_chosen_among_all(
    made: tuple[Program, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    program, path = made
    medians = {"disable": 4.0, "basic": 3.0, "extended": 1.0, "all": 2.0}

    def turns(runs: dict[str, Callable[[], float]], _: float) -> dict[str, Timing]:
        assert all(run() > 0 for run in runs.values())
        return {level: Timing(medians[level], 0, 9, 5) for level in runs}

    monkeypatch.setattr(timing, "_turns", turns)
    best, timed = fastest(path.with_suffix(".onnx"), feeds(program), Settings(threads=2))
    assert best == Settings(threads=2, optimization="extended")
    assert {level: entry.median for level, entry in timed.items()} == medians
    best, timed = fastest(path.with_suffix(".pt2"), feeds(program), Settings(runtime="torch"))
    assert (best, list(timed)) == (Settings(runtime="torch"), ["all"])


def test_every_level_is_really_measured(made: tuple[Program, Path]) -> None:
    best, timed = fastest(made[1].with_suffix(".onnx"), feeds(made[0]), seconds=0.01)
    assert list(timed) == ["disable", "basic", "extended", "all"]
    assert timed[best.optimization].median == min(entry.median for entry in timed.values())


def test_an_identity_changes_with_all_that_a_timing_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = settings_identity(Settings())
    assert plain.startswith(f"onnxruntime {onnxruntime.__version__}, 1 thread, optimisation all, ")
    others = [Settings(threads=2), Settings(optimization="basic"), Settings(runtime="torch")]
    told = [plain, *map(settings_identity, others)]
    monkeypatch.setattr(registry, "processor", lambda: "Abacus")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    told.append(settings_identity(Settings()))
    assert told[-1].endswith("optimisation all, Sum before LayerNormalization, Abacus, 3 cores")
    assert len(set(told)) == 5


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (Settings(), "ONNX Runtime on the CPU, 1 thread, optimisation all"),
        (Settings(2, "basic", "onnxruntime:X"), "ONNX Runtime on X, 2 threads, optimisation basic"),
        (Settings(runtime="openvino"), "OpenVINO on the CPU, 1 thread"),
    ],
)
def test_settings_are_told_in_words(settings: Settings, words: str) -> None:
    assert describe_settings(settings) == words
