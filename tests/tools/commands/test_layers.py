"""`fxprune layers`: a tiny classifier of made-up sentences, searched from the command line."""

import json
from pathlib import Path
from typing import Any

import pytest

from fxprune.errors import UsageError
from fxprune.tools.commands import console, layer_family
from fxprune.tools.commands.main import main
from fxprune.tools.inputs.tables import LabelledTables, LabelledTexts, read_task
from fxprune.tools.reports.layers_report import curve_grids, curve_markdown, draw_curve
from support.tiny import BERT, TRAIN, saved, write

pytest.importorskip("transformers")
for extra in ("optimum", "accelerate", "datasets", "matplotlib"):
    pytest.importorskip(extra)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of three layers with its tokenizer in `model`, and a task in `task`."""
    place = tmp_path_factory.mktemp("layers")
    saved(place / "model", **BERT)
    (place / "task").mkdir()
    write(place / "task", TRAIN, TRAIN[:8])
    return place


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_family, "_SECONDS", 0.02)
    monkeypatch.setattr(console.Steps, "SECONDS", 0.0)


def command(place: Path, out: Path, *more: str) -> list[str]:
    recipe = ["--epochs", "1", "--learning-rate", "0.01", "--batch-size", "16"]
    return ["layers", f"hf:{place / 'model'}", "--data", str(place / "task"), *recipe, "-o", str(out), *more]


def test_a_search_writes_the_curve_and_goes_on_from_its_journal(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    wanted = command(
        place,
        out,
        "--count",
        "2",
        "--by",
        "greedy,influence,last,loss",
        "--exhaustive",
        "2",
        "--seeds",
        "1,2",
        "--json",
    )
    assert main(wanted) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert "seed 1: greedy: 5 of 5, 0 s left" in printed.err
    assert "2 weights are not in" in printed.err
    assert sorted(path.name for path in out.iterdir()) == [
        "layers.json", "layers.md", "layers.png", "layers.svg", "report.html", "selection-1.json", "selection-2.json"
    ]  # fmt: skip
    assert found["rows"] == {"searched": 68, "held_back": 12, "dev": 8}
    assert [run["evaluations"] for run in found["methods"]["greedy"]] == [5, 5]
    assert [run["order"] for run in found["methods"]["last"]] == [
        ["bert.encoder.layer.2", "bert.encoder.layer.1"]
    ] * 2
    assert [len(entry["scores"]) for entry in found["exhaustive"]] == [3, 3]
    parameters = [entry["parameters"] for entry in found["family"]]
    assert parameters[0] - parameters[1] == parameters[1] - parameters[2] == 2224
    order = found["methods"]["greedy"][0]["order"]
    assert json.loads((out / "selection-2.json").read_text())["removed"] == order

    journal = Path(f"{out}.journal.jsonl")
    lines = journal.read_text()
    assert main([*wanted, "--force"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert journal.read_text() == lines
    assert again["methods"] == found["methods"]


def test_two_workers_find_the_same(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(place, tmp_path / "one", "--json")) == 0
    one = json.loads(capsys.readouterr().out)
    assert main(command(place, tmp_path / "two", "--json", "--workers", "2")) == 0
    assert json.loads(capsys.readouterr().out)["methods"] == one["methods"]


FOUND: dict[str, Any] = {
    "model": "minilm", "data": "TREC", "metric": "accuracy", "seeds": [1, 2], "rows": {"searched": 85, "held_back": 15, "dev": 9},
    "recipe": {"epochs": 3, "learning_rate": 1e-4, "batch_size": 32, "precision": "bf16"},
    "methods": {
        "greedy": [
            {"seed": 1, "order": ["layer.4"], "evaluations": 6, "metrics": [0.9, 0.88]},
            {"seed": 2, "order": ["layer.3"], "evaluations": 6, "metrics": [0.92, 0.9]},
        ],
    },
    "exhaustive": [{
        "seed": 1, "size": 1, "best": "layer.4", "scores": [0.8, 0.7, 0.6], "ranks": {"greedy": [1, 0.8]},
    }],
    "family": [
        {"parameters": 2000, "ms": {"median": 6.0}},
        {"parameters": 1500, "ms": {"median": 5.0}},
    ],
    "point": {"batch": 8, "length": 64}, "session": {"threads": 1, "optimization": "all"},
    "machine": {"python": "3.11", "processor": "a CPU", "packages": {"torch": "2"}},
}  # fmt: skip


def test_the_tables_say_mean_and_range(tmp_path: Path) -> None:
    line, choices, ranks = curve_grids(FOUND)
    assert line.title == "Accuracy on dev: mean (lowest–highest) of 2 seeds"
    assert line.rows == (
        ("0", "0.910 (0.900–0.920)", "2,000", "6.00", "1.00×"),
        ("1", "0.890 (0.880–0.900)", "1,500", "5.00", "1.20×"),
    )
    assert choices.rows[0] == ("greedy", "1", "layer.4", "6")
    assert ranks.title == "Rank among all 3 sets of 1, by accuracy on the held-back rows"
    assert ranks.rows == (("1", "layer.4 (0.800)", "1 (0.800)", "0.700", "0.600"),)
    assert "Searched by the accuracy on 15 rows of train" in curve_markdown(FOUND)
    draw_curve(FOUND, tmp_path)
    assert "<svg" in (tmp_path / "layers.svg").read_text()


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--by", "luck"], "--by must name some of greedy, oneshot, influence, loss, last, got 'luck'"),
        (["--seeds", "a"], "--seeds must be numbers separated by commas, got 'a'"),
        (["--count", "3"], "3 of 3 regions can't go"),
        (["--threads", "0"], "threads must be at least 1, got 0"),
        (["--workers", "0"], "--workers must be at least 1, got 0"),
        (["--epochs", "0"], "--epochs and --batch-size must be at least 1"),
        (["--output-name", "scores"], "the model has no output 'scores' (--output-name); outputs: logits"),
        (["--text", "question"], "has no column 'question'; columns: sentence, label"),
    ],
)
def test_bad_use_is_a_sentence(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], sentence: str
) -> None:
    assert main(command(place, tmp_path / "out", *more)) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_journal_that_is_no_journal_is_refused_before_any_work(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = place / "task" / "train.tsv"
    before = rows.read_bytes()
    assert main([*command(place, tmp_path / "deep" / "out"), "--journal", str(rows)]) == 2
    assert "line 1: no journal of a search; give another path" in capsys.readouterr().err
    assert rows.read_bytes() == before
    assert list(tmp_path.iterdir()) == []


def test_data_of_any_kind_is_read_as_it_stands(tmp_path: Path) -> None:
    rows = [('say "NA"', "b"), ("NA", "a")]
    task = read_task(write(tmp_path, rows, rows[:1]))
    assert task == LabelledTables(
        LabelledTexts(('say "NA"', "NA"), (1, 0)), LabelledTexts(('say "NA"',), (1,)), ("a", "b")
    )
    (tmp_path / "dev.tsv").unlink()
    (tmp_path / "dev.jsonl").write_text('{"label": "b", "sentence": "x"}\n')
    assert read_task(tmp_path, most=1) == LabelledTables(
        LabelledTexts(('say "NA"',), (1,)), LabelledTexts(("x",), (1,)), ("a", "b")
    )


def test_data_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError,
        match=r"must hold one of train.tsv, train.csv, train.jsonl, train.parquet, train.json, train.txt; it holds 0",
    ):
        read_task(tmp_path)
    write(tmp_path, [("x", "a")], [("y", "z")])
    with pytest.raises(UsageError, match="dev has the class 'z', which train has not"):
        read_task(tmp_path)
