"""`--checkpoint`: the checkpoint beside the other results, its lines in the report, and refusals."""

import json
from pathlib import Path

import pytest
import torch

from fxprune.ir import quiet
from fxprune.passes import parse_pipeline
from fxprune.tools.commands import run
from fxprune.tools.commands.checkpoint_option import write_checkpoint_folder
from fxprune.tools.commands.main import main
from fxprune.tools.inputs import models
from fxprune.tools.reports import run_report
from fxprune.tools.reports.output_folder import draft_folder
from support.tiny import BERT, saved

transformers = pytest.importorskip("transformers")
pytest.importorskip("optimum")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("model"), **BERT)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_POINTS", ({"batch": 2, "length": 5},))
    monkeypatch.setattr(run, "_SECONDS_A_POINT", 0.02)


def told(out: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((out / "report.json").read_text())["checkpoint"]
    return found


def test_a_stock_checkpoint_lies_beside_the_other_results(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["run", f"hf:{model}", "-p", "ffn(ratio=0.5, uniform=True)", "--checkpoint", "-o", str(out)]
    assert main(command) == 0
    assert told(out) == {
        "folder": "checkpoint",
        "why": "",
        "class": "BertModel",
        "settings": {"intermediate_size": [32, 16]},
        "relative": 0.0,
        "unread": [],
    }
    row = "checkpoint/, read back by BertModel.from_pretrained; intermediate_size 32 → 16"
    assert f"| stock checkpoint | 0.0e+00 | {row} |" in (out / "report.md").read_text()
    files = {file.name: file.stat().st_mode & 0o777 for file in (out / "checkpoint").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= files.keys()
    assert files["model.safetensors"] == files["config.json"]
    with quiet():
        stock = transformers.AutoModel.from_pretrained(out / "checkpoint").eval()
        before = transformers.AutoConfig.from_pretrained(model)
    assert stock.config.use_cache == before.use_cache
    ids = torch.arange(5, 11).reshape(2, 3)
    slim = torch.export.load(out / "model.pt2").module()
    mask, types = torch.ones_like(ids), torch.zeros_like(ids)
    with torch.no_grad():
        got, wanted = (
            each(input_ids=ids, attention_mask=mask, token_type_ids=types) for each in (stock, slim)
        )
    assert torch.allclose(got.last_hidden_state, wanted["last_hidden_state"], atol=1e-5)


def test_what_no_configuration_says_is_told(model: Path, tmp_path: Path) -> None:
    loaded = models.load(f"hf:{model}")
    slim = parse_pipeline("heads(ratio=0.5)").run(loaded.capture()).program
    why = write_checkpoint_folder(loaded, slim, tmp_path)["why"]
    assert why.startswith(
        "encoder.layer.0.attention.self.query.weight 8×16 is what the program has, 16×16 what the model has"
    )
    assert run_report._stock({"folder": "", "why": why}) == [("stock checkpoint", "none", why)]
    assert list(tmp_path.iterdir()) == []


def test_an_older_checkpoint_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "out"
    (target / "checkpoint").mkdir(parents=True)
    (target / "checkpoint" / "old.safetensors").write_text("old")
    (target / "mine.txt").write_text("mine")
    with draft_folder(target) as draft:
        (draft / "checkpoint").mkdir()
        (draft / "checkpoint" / "new.safetensors").write_text("new")
    assert [file.name for file in (target / "checkpoint").iterdir()] == ["new.safetensors"]
    assert sorted(file.name for file in target.iterdir()) == ["checkpoint", "mine.txt"]


def test_without_a_hugging_face_folder_it_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_net.py").write_text(
        "import torch\ndef net():\n    return torch.nn.Linear(4, 4), (torch.randn(2, 4),), {}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    command = ["run", "py:own_net:net", "-p", "ffn(ratio=0.5)", "--checkpoint", "-o", str(tmp_path / "out")]
    assert main(command) == 2
    assert "py:own_net:net is none: give hf:DIR, or leave it out" in capsys.readouterr().err
