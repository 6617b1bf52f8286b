"""`--trust-remote-code`: without it nothing of a model folder runs and nothing is asked; with it the folder's own classes are used."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from fxprune.errors import UsageError
from fxprune.tools.commands import run
from fxprune.tools.commands.main import main
from fxprune.tools.inputs import models
from fxprune.tools.inputs.huggingface import load_tokenizer, own_code, quiet_libraries, save_preprocessing
from support.own_code import marked
from support.tiny import TRAIN, write

transformers = pytest.importorskip("transformers")
for extra in ("optimum", "accelerate", "datasets"):
    pytest.importorskip(extra)


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that code of a folder writes; whoever asks on stdin is told yes."""
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path / "marker"


def commands(model: str, place: Path) -> dict[str, list[str]]:
    data, out = ["--data", str(write(place, TRAIN, TRAIN[:8]))], ["-o", str(place / "out")]
    selection = place / "selection.json"
    selection.write_text('{"format": "fxprune.selection/1", "axes": {}, "sizes": {}}')
    task = ["--task", "text-classification", "-p", "grain(density=0.5)"]
    return {
        "explain": ["explain", model],
        "run": ["run", model, "-p", "ffn(ratio=0.5)", *out],
        "apply": ["apply", model, str(selection), *out],
        "train": ["train", model, *data, *task, *out],
        "layers": ["layers", model, *data, *out],
    }


@pytest.mark.parametrize("command", ["explain", "run", "apply", "train", "layers"])
@pytest.mark.parametrize("config", [True, False])
def test_nothing_of_a_folder_runs_and_nothing_is_asked(
    tmp_path: Path, marker: Path, capsys: pytest.CaptureFixture[str], command: str, config: bool
) -> None:
    """A config of its own, or only models of its own whose config transformers knows."""
    folder = marked(tmp_path / "model", marker, config=config)
    assert main(commands(f"hf:{folder}", tmp_path)[command]) == 2
    printed = capsys.readouterr()
    told = " ".join(printed.err.split())
    assert "can't be loaded without code of its own (" in told
    assert "which runs only with --trust-remote-code: read it first" in told
    assert "[y/N]" not in told + printed.out
    assert not marker.exists()
    assert not (tmp_path / "out").exists()


def test_a_teacher_and_a_tokenizer_are_no_exceptions(
    tmp_path: Path, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = marked(tmp_path / "plain", marker, config=False, models=False)
    own = marked(tmp_path / "own", marker)
    worded = marked(tmp_path / "worded", marker, config=False, models=False, tokenizer=True)
    given = [*commands(f"hf:{plain}", tmp_path)["train"], "--epochs", "1", "--teacher-epochs", "1"]
    for option, folder in (("--tokenizer", worded), ("--teacher", own)):
        assert main([*given, option, f"hf:{folder}"]) == 2
        assert f"{folder} can't be loaded without code of its own" in " ".join(
            capsys.readouterr().err.split()
        )
        assert not marker.exists()


def test_a_tokenizer_of_its_own_needs_trust(tmp_path: Path, marker: Path) -> None:
    """transformers would take its general tokenizer instead, in silence."""
    folder = marked(tmp_path / "model", marker, config=False, models=False, tokenizer=True)
    with pytest.raises(UsageError, match=r"without code of its own \(tokenization_marked.MarkedTokenizer\)"):
        load_tokenizer(f"hf:{folder}")
    (note,) = save_preprocessing(f"hf:{folder}", tmp_path / "out", ["AutoTokenizer"])
    assert "which runs only with --trust-remote-code" in note
    assert not marker.exists()
    assert type(load_tokenizer(f"hf:{folder}", trust=True)).__name__ == "MarkedTokenizer"
    assert marker.exists()


def test_a_class_of_transformers_stands_for_one_of_the_same_name(tmp_path: Path, marker: Path) -> None:
    folder = marked(tmp_path / "model", marker, config=False, models=False)
    told = json.loads((folder / "config.json").read_text())
    told["auto_map"] = {
        "AutoConfig": "configuration_marked.BertConfig",
        "AutoModel": "modeling_marked.BertModel",
    }
    (folder / "config.json").write_text(json.dumps(told))
    loaded = models.load(f"hf:{folder}")
    assert type(loaded.model) is transformers.BertModel
    assert loaded.notes == (
        f"{folder} brings code of its own (for AutoConfig, AutoModel); it did not run, BertModel is that of transformers",
    )
    assert not marker.exists()


def test_a_model_inside_a_model_does_not_ask(tmp_path: Path, marker: Path) -> None:
    """Classes of transformers may load others inside, and do not hand on whether these are trusted."""
    folder = marked(tmp_path / "model", marker)
    with quiet_libraries(), pytest.raises(ValueError, match="requires you to execute custom code"):
        transformers.AutoConfig.from_pretrained(folder)
    assert not marker.exists()
    assert transformers.dynamic_module_utils.TIME_OUT_REMOTE_CODE > 0


def test_with_the_option_it_runs(
    tmp_path: Path, marker: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_SECONDS_A_POINT", 0.01)
    folder, out = marked(tmp_path / "model", marker, tokenizer=True), tmp_path / "out"
    given = ["run", f"hf:{folder}", "-p", "ffn(ratio=0.5)", "-o", str(out), "--json", "--trust-remote-code"]
    assert main(given) == 0
    assert marker.exists()
    told = json.loads(capsys.readouterr().out)
    assert told["after"]["parameters"] < told["before"]["parameters"]
    assert json.loads((out / "fxprune.json").read_text())["notes"] == []
    classed = models.load(f"hf:{folder}#text-classification", trust=True)
    assert type(classed.model).__name__ == "MarkedForSequenceClassification"
    assert classed.trusted


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"auto_map": {"AutoModel": "a.B", "AutoTokenizer": ["c.D", null]}}', {"AutoModel": ["a.B"], "AutoTokenizer": ["c.D"]}),
        ('{"auto_map": ["c.D", null]}', {"AutoTokenizer": ["c.D"]}),
        ('{"auto_map": 5}', {}),
        ('{"auto_map": {"AutoModel": 5}}', {"AutoModel": []}),
        ("[]", {}),
        ("[" * 100_000, {}),
        ("{", {}),
    ],
)  # fmt: skip
def test_code_that_a_folder_names(tmp_path: Path, text: str, found: dict[str, list[str]]) -> None:
    (tmp_path / "tokenizer_config.json").write_text(text)
    assert own_code(tmp_path) == found
