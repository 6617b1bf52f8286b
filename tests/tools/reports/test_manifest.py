"""Output folders for other tools: config, tokenizer and manifest, and the sentence where one is given to fxprune again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest

from fxprune import TokenIds
from fxprune.errors import UsageError
from fxprune.export.agreement import BAR
from fxprune.tools.commands import run
from fxprune.tools.commands.main import main
from fxprune.tools.inputs import models
from fxprune.tools.inputs.huggingface import save_preprocessing
from fxprune.tools.reports import output_folder
from fxprune.tools.reports.manifest import NO_TOKENIZER, _labelled, _renamed
from support.tiny import BERT, WORDS, saved

transformers = pytest.importorskip("transformers")
pytest.importorskip("optimum")

ROOT = Path(__file__).resolve().parents[3]
KEPT = [0, 1, 2, 3, 5, 6, 9]  # [PAD], [UNK], [CLS], [SEP], the, thing, blue
SIZES: dict[str, Any] = {
    **BERT,
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "sep_token_id": 3,
    "mask_token_id": 4,
}


@pytest.fixture(scope="module")
def quick() -> Iterator[None]:
    """Measuring is cut short."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(run, "_SECONDS_A_POINT", 0.02)
        patched.setattr(run, "_POINTS", ())
        patched.setattr("fxprune.tools.commands.run.warm_up", lambda: None)
        yield


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("given"), **SIZES)


@pytest.fixture(scope="module")
def out(given: Path, quick: None) -> Path:
    place = given / "out"
    pipeline = "layers(count=1, unit='branch'), heads(ratio=0.25), ffn(ratio=0.5), fold"
    assert main(["run", f"hf:{given}", "-p", pipeline, "-o", str(place)]) == 0
    return place


def manifest(out: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((out / "fxprune.json").read_text())
    return read


def test_a_folder_has_all_that_a_loader_asks_for(out: Path) -> None:
    found = sorted(path.name for path in out.iterdir())
    assert found == [
        "config.json", "fxprune.json", "model.onnx", "model.pt2", "report.html", "report.json", "report.md", "selection.json",
        "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert manifest(out)["files"] == found


def test_transformers_reads_the_config_and_the_tokenizer(out: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(out)
    assert config.architectures == ["BertModel"]
    assert config.fxprune == {"manifest": "fxprune.json", "untold": []}
    assert config.is_heterogeneous
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert tokenizer("the red thing")["input_ids"] == [2, 5, 7, 6, 3]


def test_the_manifest_tells_the_sizes_of_the_onnx_file(out: Path) -> None:
    graph = onnx.load(out / "model.onnx").graph
    weights = [tuple(weight.dims) for weight in graph.initializer if len(weight.dims) == 2]
    told, config = manifest(out), transformers.AutoConfig.from_pretrained(out)
    skipped = [set(one.skip) for one in config.per_layer_config]
    assert sorted(map(len, skipped)) == [0, 1]
    for layer, gone, own in zip(told["layers"], skipped, config.per_layer_config, strict=True):
        assert {part for part, is_gone in layer["branches"].items() if is_gone} == gone
        (attention,) = layer["attentions"]
        sizes = {size["role"]: size["after"] for size in layer["sizes"]}
        wide = attention["heads"][1] * attention["v"][1]
        assert (wide, sizes["ffn"]) == (0 if "attention" in gone else 24, 0 if "mlp" in gone else 16)
        assert "attention" in gone or (own.num_attention_heads, own.head_dim) == (3, 8)
        assert "mlp" in gone or own.intermediate_size == 16
    attentions, mlps = (sum(part not in gone for gone in skipped) for part in ("attention", "mlp"))
    assert sum(sorted(dims) == [24, 32] for dims in weights) == 4 * attentions
    assert sum(sorted(dims) == [16, 32] for dims in weights) == 2 * mlps


def test_the_manifest_tells_what_goes_in_and_what_comes_out(out: Path) -> None:
    told = manifest(out)
    assert told["task"] == "feature-extraction"
    assert [entry["name"] for entry in told["inputs"]] == ["input_ids", "attention_mask", "token_type_ids"]
    assert told["inputs"][0] == {"name": "input_ids", "dtype": "int64", "shape": ["batch", "length"]}
    assert told["outputs"][0] == {
        "name": "last_hidden_state",
        "dtype": "float32",
        "shape": ["batch", "length", 32],
    }
    assert set(told["proof"]) == {"pruned against zeroed original", "ONNX Runtime against program"}
    assert max(told["proof"].values()) < 1e-4


def test_the_example_of_the_docs_runs(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "small").symlink_to(out)
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "guide" / "onnxruntime.md").read_text(encoding="utf-8")
    code = page.split("```python\n")[1].partition("```")[0]
    exec(compile(code, "docs/guide/onnxruntime.md", "exec"), {})
    assert capsys.readouterr().out == "2\n"
    assert "print(outputs[0].shape[0])  # 2" in code


def test_a_folder_that_is_given_back_says_what_to_give(out: Path) -> None:
    with pytest.raises(
        UsageError, match=r"holds no weights: fxprune wrote it; to go on from there give .*model\.pt2"
    ):
        models.load(f"hf:{out}")


def test_with_some_tokens_there_is_no_tokenizer_not_even_an_older_one(out: Path, given: Path) -> None:
    (given / "tokens.json").write_text(json.dumps(KEPT))
    (out / "mine.txt").write_text("a file of the user's")
    tokens = ["--tokens", str(given / "tokens.json"), "--token-table", "embeddings.word_embeddings.weight"]
    assert main(["run", f"hf:{given}", *tokens, "-o", str(out), "--force"]) == 0
    assert not list(out.glob("tokenizer*"))
    assert (out / "mine.txt").is_file()
    assert NO_TOKENIZER in manifest(out)["notes"]
    config = transformers.AutoConfig.from_pretrained(out)
    assert (config.vocab_size, config.pad_token_id, config.sep_token_id, config.mask_token_id) == (
        7,
        0,
        3,
        None,
    )
    assert manifest(out)["inputs"][0]["name"] == "input_ids"


def test_ids_of_special_tokens_are_the_new_ones() -> None:
    config = transformers.GPT2Config(vocab_size=9, bos_token_id=8, eos_token_id=[8, 3, 5], pad_token_id=2)
    renamed = _renamed(config, TokenIds((1, 3, 8), "wte.weight", 9, (), ()))
    found = (renamed.vocab_size, renamed.bos_token_id, renamed.eos_token_id, renamed.pad_token_id)
    assert found == (3, 2, [2, 1], None)


def test_classes_are_named() -> None:
    config = _labelled(transformers.BertConfig(), ("animal", "colour", "shape"))
    assert config.id2label == {0: "animal", 1: "colour", 2: "shape"}
    assert (config.label2id["shape"], config.num_labels) == (2, 3)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"files": 3}', '{"files": ["../secret", "/etc/passwd", "..", "", 3, "a/b"]}']
)
def test_a_manifest_lists_no_file_outside_its_folder(text: str, tmp_path: Path) -> None:
    (tmp_path / "fxprune.json").write_text(text)
    assert output_folder._listed(tmp_path / "fxprune.json") == []


def test_a_tokenizer_that_can_not_be_read_is_a_note(given: Path, tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "tokenizer.json").write_text("nothing")
    (tmp_path / "from" / "config.json").write_text((given / "config.json").read_text())
    notes = save_preprocessing(f"hf:{tmp_path / 'from'}", tmp_path, ["AutoTokenizer"])
    assert len(notes) == 1
    assert "the AutoTokenizer of" in notes[0]
    assert save_preprocessing("py:a:b", tmp_path, ["AutoTokenizer"]) == ()
    assert len(WORDS) == 15


NET = """
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval(), (torch.randn(3, 8),), {}
"""


def test_the_runtime_that_is_asked_for_is_compared(
    quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    (tmp_path / "small_net.py").write_text(NET)
    monkeypatch.syspath_prepend(tmp_path)
    command = ["run", "py:small_net:net", "-p", "ffn(ratio=0.5)", "-o", str(tmp_path / "out")]
    assert main([*command, "--runtime", "openvino"]) == 0
    assert "OpenVINO on the CPU against program" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert 0 <= report["onnx"]["runtime"]["relative"] <= BAR
    told = manifest(tmp_path / "out")
    assert told["proof"]["OpenVINO on the CPU against program"] == report["onnx"]["runtime"]["relative"]
    assert (told["task"], told["layers"]) == ("", [])
    assert [(size["role"], size["before"], size["after"]) for size in told["rest"]] == [("ffn", 16, 8)]


def test_a_folder_of_an_earlier_run_goes_as_its_files_do(tmp_path: Path) -> None:
    """`--checkpoint` writes a folder; the next run into the same place may be without one."""
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").write_text("{}")
    (tmp_path / "mine").mkdir()
    (tmp_path / "fxprune.json").write_text('{"files": ["checkpoint", "report.md"]}')
    with output_folder.draft_folder(tmp_path) as draft:
        (draft / "model.onnx").write_text("new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fxprune.json", "mine", "model.onnx"]
