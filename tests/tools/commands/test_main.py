"""The command line: files, printed text, and sentences for bad input."""

import json
from pathlib import Path
from typing import Any

import onnx
import pytest

from fxprune.errors import VerifyError
from fxprune.export import export_onnx
from fxprune.tools.commands import bench, run
from fxprune.tools.commands.main import main
from fxprune.tools.inputs import models
from fxprune.verification import claims

FILES = [
    "fxprune.json",
    "model.onnx",
    "model.pt2",
    "report.html",
    "report.json",
    "report.md",
    "selection.json",
]
PIPELINE = "ffn(ratio=0.5)"

SAMPLE = """
import torch
from torch import nn
from torch.export import Dim

class Net(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.up = nn.Linear(8, width)
        self.down = nn.Linear(width, 4)

    def forward(self, x):
        return self.down(self.up(x).relu())

class Branching(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x
        return -x

def net():
    torch.manual_seed(0)
    return Net(), (torch.randn(3, 8),), {}, {"x": {0: Dim.AUTO}}

def other():
    return nn.Sequential(nn.Linear(8, 6), nn.Tanh()), (torch.randn(3, 8),), {}

def branching():
    return Branching(), {"x": torch.ones(3)}

def nothing():
    return 3
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, beside the one with the sample models; measuring is cut short."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "sample_models.py").write_text(SAMPLE)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    (tmp_path / "place").mkdir()
    monkeypatch.chdir(tmp_path / "place")
    monkeypatch.setattr(run, "_SECONDS_A_POINT", 0.02)
    monkeypatch.setattr("fxprune.tools.commands.run.warm_up", lambda: None)
    return tmp_path / "place"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refused(code: int, capsys: pytest.CaptureFixture[str]) -> str:
    """The sentence on standard error of a command that was called wrongly."""
    printed = capsys.readouterr()
    assert code == 2
    assert printed.out == ""
    assert "Traceback" not in printed.err
    assert len(printed.err.splitlines()) <= 3
    return printed.err


def test_run_writes_its_files_and_a_report_that_holds(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "py:sample_models:net", "-p", PIPELINE, "-o", "out/deep", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert names(place / "out" / "deep") == FILES
    assert names(place) == ["out"]
    assert report == json.loads((place / "out/deep/report.json").read_text())
    assert report["verdict"]["relative"] <= 1e-5
    assert report["onnx"]["relative"] <= 1e-4
    assert report["before"]["parameters"] == 8 * 32 + 32 + 32 * 4 + 4
    assert report["after"]["parameters"] == 8 * 16 + 16 + 16 * 4 + 4
    assert report["after"]["file_bytes"] == (place / "out/deep/model.onnx").stat().st_size
    assert report["seconds"]["ratio"] > 0
    assert [entry["point"] for entry in report["latency"]] == [{"batch": 1}, {"batch": 8}]
    assert {entry["flops"]["ratio"] for entry in report["latency"]} == {2.0}
    assert {entry["why"] for entry in report["refused"]} == {
        "an input of the graph",
        "an output of the graph",
    }


def test_a_selection_applied_again_gives_the_same_file(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "py:sample_models:net", "-p", PIPELINE, "-o", "first"]) == 0
    shown = capsys.readouterr().out
    assert "pruned against zeroed original" in shown
    assert "2.00×" in shown
    assert main(["apply", "py:sample_models:net", "first/selection.json", "-o", "second"]) == 0
    one, other = (place / folder / "model.onnx" for folder in ("first", "second"))
    assert one.read_bytes() == other.read_bytes()
    weights = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(one).graph.initializer]
    assert sum(weight.size for weight in weights if weight.dtype == "float32") == 8 * 16 + 16 + 16 * 4 + 4


@pytest.mark.parametrize(
    ("pipeline", "sentence"),
    [
        ("headz(ratio=0.5)", "did you mean heads"),
        ("heads(ratoi=0.5)", "no option 'ratoi'"),
        ("heads(ratio=1.5)", "ratio must lie in [0, 1), got 1.5"),
        ("heads(ratio=0.5", "can't read the pipeline"),
    ],
)
def test_a_wrong_pipeline_is_pointed_at_before_any_work(
    pipeline: str,
    sentence: str,
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(models, "load", None)
    error = refused(main(["run", "py:sample_models:net", "-p", pipeline, "-o", "out"]), capsys)
    assert sentence in error
    assert error.splitlines()[-1].strip() == "^"
    assert names(place) == []


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("what", "expected minilm, hf:DIR"),
        ("hf:nowhere", "there is no nowhere/config.json"),
        ("nowhere.pt2", "there is no file nowhere.pt2"),
        ("py:sample_models", "expected py:PACKAGE.MODULE:FUNCTION"),
        ("py:sample_models:absent", "no attribute 'absent'"),
        ("py:absent_models:net", "No module named 'absent_models'"),
        ("py:sample_models:nothing", "returned int; expected (model, kwargs)"),
        ("py:sample_models:branching", "if x.sum() > 0"),
    ],
)
@pytest.mark.parametrize("command", ["run", "explain"])
def test_a_model_that_can_not_be_had_is_a_sentence(
    command: str, model: str, sentence: str, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    more = ["-p", "fold", "-o", "out"] if command == "run" else []
    error = refused(main([command, model, *more]), capfd)
    assert sentence in error
    assert names(place) == []


def test_a_selection_for_another_model_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "selection.json").write_text(
        json.dumps({"format": "fxprune.selection/1", "axes": {"encoder.ffn": [0, 1]}, "sizes": {}})
    )
    error = refused(main(["apply", "py:sample_models:other", "selection.json", "-o", "out"]), capsys)
    assert "encoder.ffn" in error
    error = refused(main(["apply", "py:sample_models:other", "absent.json", "-o", "out"]), capsys)
    assert "absent.json" in error
    assert names(place) == ["selection.json"]


def test_a_folder_in_use_is_refused_and_force_replaces_only_results(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "out").mkdir()
    (place / "out" / "mine.txt").write_text("mine")
    (place / "out" / "report.md").write_text("old")
    command = ["run", "py:sample_models:net", "-p", PIPELINE, "-o", "out"]
    assert "not empty" in refused(main(command), capsys)
    assert names(place / "out") == ["mine.txt", "report.md"]
    assert main([*command, "--force", "--json"]) == 0
    capsys.readouterr()
    assert names(place / "out") == sorted([*FILES, "mine.txt"])
    assert (place / "out" / "report.md").read_text() != "old"
    error = refused(main([*command[:-1], "out/mine.txt", "--force"]), capsys)
    assert "is a file" in error


def test_results_never_replace_what_the_command_reads(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "load", None)
    (place / "out" / "model").mkdir(parents=True)
    for name in ("model.pt2", "selection.json", "tokens.txt", "model/config.json"):
        (place / "out" / name).write_text('{"format": "fxprune.selection/1", "axes": {}}')
    net, where = "py:sample_models:net", ["-o", "out", "--force"]
    commands = [
        ["run", "out/model.pt2", "-p", PIPELINE],
        ["run", "hf:out/model#fill-mask", "-p", PIPELINE],
        ["run", "hf:out", "-p", PIPELINE],
        ["apply", net, "out/selection.json"],
    ]
    for command in commands:
        assert "which is read" in refused(main([*command, *where]), capsys)
    assert names(place / "out") == ["model", "model.pt2", "selection.json", "tokens.txt"]


def test_a_claim_that_fails_is_one_and_leaves_nothing(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise VerifyError("linear differs", "linear")

    monkeypatch.setattr(claims, "verify", fail)
    assert main(["run", "py:sample_models:net", "-p", PIPELINE, "-o", "out"]) == 1
    assert "linear differs" in capsys.readouterr().err
    assert names(place) == []


def test_an_interruption_leaves_nothing(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        assert any(name.startswith(".out-") for name in names(place))
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "save_pt2", interrupt)
    assert main(["run", "py:sample_models:net", "-p", PIPELINE, "-o", "out"]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert names(place) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the following arguments are required: COMMAND\nsee fxprune --help"),
        (["run", "minilm"], "the following arguments are required: -o/--output\nsee fxprune run --help"),
        (["nonsense"], "argument COMMAND: invalid choice: 'nonsense'"),
        (["bench"], "the following arguments are required: FILE.onnx\nsee fxprune bench --help"),
        (
            ["bench", "a", "--threads", "x"],
            "argument --threads: invalid int value: 'x'\nsee fxprune bench --help",
        ),
        (["bench", "a", "--nonsense"], "unrecognized arguments: --nonsense\nsee fxprune --help"),
        (["explain", "minilm", "--axis", ""], "--axis is empty; give it a value, or leave it out"),
        (["explain", "minilm", "--axis="], "--axis is empty; give it a value, or leave it out"),
        (["explain", ""], "an argument is empty; give it a value, or leave it out"),
    ],
)
def test_arguments_that_can_not_be_read_are_bad_usage(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"fxprune: {said}" in refused(main(arguments), capsys)


def test_threads_below_one_are_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "model.onnx").touch()
    pruning = ["run", "py:sample_models:net", "-p", "fold", "-o", "out", "--threads", "0"]
    assert "at least 1" in refused(main(pruning), capsys)
    assert "at least 1" in refused(main(["bench", "model.onnx", "--threads", "0"]), capsys)


def test_explain_lists_axes_and_refusals_and_one_axis(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "py:sample_models:net", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    (axis,) = told["axes"]
    assert (axis["role"], axis["size"], axis["exact"]) == ("ffn", 32, True)
    assert {member["name"] for member in axis["members"]} == {"up.weight", "up.bias", "down.weight"}
    assert len(told["refused"]) == 2

    assert main(["explain", "py:sample_models:net"]) == 0
    assert "Refusals by reason" in capsys.readouterr().out
    assert main(["explain", "py:sample_models:net", "--axis", axis["name"]]) == 0
    assert "down.weight" in capsys.readouterr().out
    assert "no axis 'absent'" in refused(
        main(["explain", "py:sample_models:net", "--axis", "absent"]), capsys
    )


@pytest.mark.parametrize(
    ("bend", "meaning", "overview", "sentence"),
    [
        ("ReLU", "zeroed", "exact: zeroed", "yes: removal equals zeroing what reads it"),
        ("Softmax", "never chosen", "exact: never chosen", "yes: removal equals never choosing the unit;"),
    ],
)
def test_explain_says_what_removal_equals(
    place: Path, capsys: pytest.CaptureFixture[str], bend: str, meaning: str, overview: str, sentence: str
) -> None:
    nets = f"nn.Sequential(nn.Linear(8, 32), nn.{bend}(-1), nn.Linear(32, 4))".replace("ReLU(-1)", "ReLU()")
    source = (
        f"import torch\nfrom torch import nn\n\ndef net():\n    return {nets}, (torch.randn(3, 8),), {{}}\n"
    )
    (place / f"bent_{bend}.py").write_text(source)
    assert main(["explain", f"py:bent_{bend}:net", "--json"]) == 0
    (axis,) = json.loads(capsys.readouterr().out)["axes"]
    assert (axis["role"], axis["exact"], axis["meaning"]) == ("ffn", True, meaning)
    assert main(["explain", f"py:bent_{bend}:net"]) == 0
    assert overview in capsys.readouterr().out
    assert main(["explain", f"py:bent_{bend}:net", "--axis", axis["name"]]) == 0
    assert sentence in " ".join(capsys.readouterr().out.split())


def test_passes_are_listed_from_their_declarations(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["passes", "--json"]) == 0
    listed = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert {"heads", "ffn", "channels", "hidden", "fold"} <= listed.keys()
    assert listed["heads"]["options"]["ratio"]["type"] == "float | Mapping[str, float]"
    assert all(option["help"] for entry in listed.values() for option in entry["options"].values())
    assert main(["passes"]) == 0
    assert "multiple_of" in capsys.readouterr().out


def test_bench_compares_files_with_the_first(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "_POINTS", ({"batch": 2, "length": 3},))
    loaded = models.load("py:sample_models:net")
    export_onnx(loaded.capture(), place / "a.onnx")
    export_onnx(loaded.capture(), place / "b.onnx")
    assert main(["bench", "a.onnx", "b.onnx", "--seconds", "0.02", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["points"]
    assert entry["point"] == {"batch": 2}
    assert entry["files"]["a.onnx"]["speedup"] == 1
    assert entry["files"]["b.onnx"]["flop_ratio"] == 1
    assert entry["files"]["b.onnx"]["flops"] == 2 * 2 * (8 * 32 + 32 * 4)
    assert main(["bench", "a.onnx", "b.onnx", "--seconds", "0.02"]) == 0
    assert "quartiles" in capsys.readouterr().out
    assert "no file c.onnx" in refused(main(["bench", "a.onnx", "c.onnx"]), capsys)
