"""`fxprune train`: tiny models learn made-up tasks from the command line, lose units, and resume where they were killed."""

import json
import shutil
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch

from fxprune.cost.budgets import counting_meter
from fxprune.tools.commands import console, run
from fxprune.tools.commands.main import main
from fxprune.training.loop import Loop
from support.pickles import OLD_FILES, Bomb
from support.tiny import ANIMALS, BERT, COLOURS, TRAIN, saved, write

pytest.importorskip("transformers")
for extra in ("optimum", "accelerate", "datasets", "matplotlib", "sklearn"):
    pytest.importorskip(extra)

PIPELINE = "grain(density=0.3, beta=0.5)"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(run, "_SECONDS_A_POINT", 0.01)
    monkeypatch.setattr(console.Steps, "SECONDS", 0.0)
    monkeypatch.setenv("FXPRUNE_CACHE", str(tmp_path / "costs.json"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT in `model`, and a task in `task`."""
    place = tmp_path_factory.mktemp("train")
    saved(place / "model", **BERT)
    (place / "task").mkdir()
    write(place / "task", TRAIN, TRAIN[:8])
    return place


def command(
    place: Path, out: Path, *more: str, task: str = "text-classification", epochs: int = 3
) -> list[str]:
    recipe = [
        "--epochs",
        str(epochs),
        "--learning-rate",
        "0.01",
        "--batch-size",
        "16",
        "--teacher-epochs",
        "2",
    ]
    where = ["--task", task, "--data", str(place / "task"), "-o", str(out)]
    return ["train", f"hf:{place / 'model'}", *where, *recipe, "--lowering", "pad", "-p", PIPELINE, *more]


def stopped(_: Loop) -> None:
    raise KeyboardInterrupt


def found(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return told


def test_a_classifier_loses_units_while_it_learns(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert (
        main([*command(place, out), "-p", f"layers(count=1, score='last'), {PIPELINE}, fold", "--json"]) == 0
    )
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert "grain(density=0.3, beta=0.5): 15 of 15, loss" in printed.err
    names = ["model.onnx", "model.pt2", "report.html", "train.json", "train.md", "train.png", "train.svg"]
    read = ["config.json", "fxprune.json", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(path.name for path in out.iterdir()) == sorted([*names, *read])
    config = json.loads((out / "config.json").read_text())
    assert config["id2label"] == {"0": "animal", "1": "colour"}
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert told["density"] <= 0.3
    assert [entry["role"] for entry in told["left"]] == ["qk", "v", "ffn"] * 2 + ["ffn"]
    assert told["after"]["parameters"] < told["before"]["parameters"]
    assert list(told["student"]) == ["accuracy"]
    assert {name for name, value in told["proved"].items() if value > 1e-5} == set()
    assert [entry["step"] for entry in told["history"] if "accuracy" in entry] == [5, 10, 15]
    assert "| accuracy |" in (out / "train.md").read_text()
    session = onnxruntime.InferenceSession(str(out / "model.onnx"))
    given = {entry.name: torch.ones(2, 5, dtype=torch.long).numpy() for entry in session.get_inputs()}
    assert session.run(None, given)[0].shape == (2, 2)


def test_a_device_that_is_not_there(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command(place, tmp_path / "out"), "--device", "abacus"]) == 2
    assert "nothing can be computed on device 'abacus'" in " ".join(capsys.readouterr().err.split())


def test_a_command_that_was_killed_goes_on_and_ends_the_same(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([*command(place, tmp_path / "whole"), "--json"]) == 0
    whole = found(capsys)
    honest, done = Loop._save, []

    def killed(self: Loop) -> None:
        assert self.checkpoints is not None
        self._saved = float("-inf")  # now
        honest(self)
        done.append(self.moment.step)
        if len(done) == 10 + 7:  # the teacher's steps, then the student's
            raise KeyboardInterrupt

    monkeypatch.setattr(Loop, "_save", killed)
    out = tmp_path / "out"
    assert main([*command(place, out), "--json"]) == 130
    assert not out.exists()
    monkeypatch.setattr(Loop, "_save", honest)
    capsys.readouterr()
    assert main([*command(place, out), "--json"]) == 0
    resumed = found(capsys)
    for name in ("left", "history", "student", "teacher", "density"):
        assert resumed[name] == whole[name]


def test_checkpoints_of_another_run_are_not_taken(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, honest = tmp_path / "out", Loop._save

    def killed(self: Loop) -> None:
        self._saved = float("-inf")  # now
        honest(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_save", killed)
        assert main(command(place, out, epochs=1)) == 130
    assert main([*command(place, out, epochs=2), "--force"]) == 2
    assert "holds a run with epochs=1, this one has 2; --restart begins anew" in capsys.readouterr().err
    assert main([*command(place, out, epochs=2), "--force", "--restart", "--json"]) == 0
    assert found(capsys)["steps"] == 10


def test_a_strangers_checkpoints_do_not_run(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of earlier versions were pickles; here they come into the folder of a run that was killed before its first."""
    out, marker, record = tmp_path / "out", tmp_path / "marker", tmp_path / "run.json"
    given = command(place, out, epochs=1)

    def recorded(_: Loop) -> None:
        shutil.copy(tmp_path / "out.run" / "run.json", record)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_save", recorded)
        assert main(given) == 130
    assert not (tmp_path / "out.run").exists()
    (tmp_path / "out.run").mkdir()
    shutil.copy(record, tmp_path / "out.run")
    for name in ("teacher", "student-1"):
        step = tmp_path / "out.run" / name / "step-5"
        step.mkdir(parents=True)
        for file in OLD_FILES:
            torch.save(Bomb(marker), step / file)
    capsys.readouterr()
    assert main(given) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert (
        f"{tmp_path / 'out.run' / 'student-1' / 'step-5'} is of another run, or of another version of fxprune"
        in told
    )
    assert "or --restart" in told
    assert main([*given, "--teacher", "labels", "--run", str(tmp_path / "out.run"), "--restart"]) == 0
    assert not marker.exists()


def test_pairs_of_texts(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Same or not; the columns of a file without a header are named on the command line."""
    folder = tmp_path / "task"
    folder.mkdir()
    rows = [f"{one}\t{'yes' if one == other else 'no'}\t{other}" for one in COLOURS for other in COLOURS]
    for name in ("train", "dev"):
        (folder / f"{name}.tsv").write_text("\n".join(rows) + "\n")
    named = ["--columns", "one,same,other", "--text", "one", "--second", "other", "--label", "same"]
    more = ["--data", str(folder), *named, "--metric", "matthews", "--teacher", "labels", "--json"]
    assert main([*command(place, tmp_path / "out", epochs=1), *more]) == 0
    told = found(capsys)
    assert (told["rows"], list(told["student"]), told["teacher"]) == (
        [16, 16],
        ["matthews"],
        {"model": "labels"},
    )


def test_a_teacher_of_ones_own(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Wider than the student, so that its hidden states are mapped; nothing is fine-tuned first."""
    wide = {**BERT, "hidden_size": 24, "num_labels": 2}
    teacher = saved(tmp_path / "teacher", "BertForSequenceClassification", **wide)
    given = command(place, tmp_path / "out", "--teacher", f"hf:{teacher}", "--json", epochs=1)
    assert main(given) == 0
    told = found(capsys)
    assert told["teacher"]["model"] == f"hf:{teacher}"
    assert told["teacher"]["epochs"] == 0
    assert not (tmp_path / "out.run" / "teacher").exists()


def test_classes_of_words(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "task"
    folder.mkdir()
    rows = [
        {"tokens": ["the", word, "thing"], "tags": ["O", kind, "O"]}
        for kind, words in (("C", COLOURS), ("A", ANIMALS))
        for word in words
    ]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows * 6)))
    spaced = [f"{' '.join(row['tokens'])}\t{' '.join(row['tags'])}" for row in rows]
    (folder / "dev.tsv").write_text("\n".join(["tokens\ttags", *spaced]))
    given = command(
        place, tmp_path / "out", "--json", "--data", str(folder), task="token-classification", epochs=6
    )
    assert main(given) == 0
    told = found(capsys)
    assert list(told["student"]) == ["f1"]
    assert told["teacher"]["f1"] > 0.9
    assert told["student"]["f1"] > 0.9


def test_questions_about_contexts(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SQuAD's own format for train, rows for dev; long contexts make several windows."""
    folder = tmp_path / "task"
    folder.mkdir()
    asked = [(f"the {one}", f"{other} thing " * 3 + f"the {one} {animal}", animal)
             for one in COLOURS for other in COLOURS if one != other for animal in ANIMALS]  # fmt: skip
    nested = [
        {"paragraphs": [{"context": c, "qas": [{"question": q, "id": str(i), "answers": [{"text": a, "answer_start": c.index(a)}]}]}]}
        for i, (q, c, a) in enumerate(asked)
    ]  # fmt: skip
    (folder / "train.json").write_text(json.dumps({"version": "1.1", "data": nested}))
    rows = [
        {"question": q, "context": c, "answers": {"text": [a], "answer_start": [c.index(a)]}}
        for q, c, a in asked
    ]
    (folder / "dev.jsonl").write_text("\n".join(map(json.dumps, rows[:20])))
    given = command(
        place, tmp_path / "out", "--json", "--data", str(folder), task="question-answering", epochs=12
    )
    assert main([*given, "--length", "14", "--teacher-epochs", "12"]) == 0
    told = found(capsys)
    assert told["rows"] == [48, 20]
    assert list(told["student"]) == ["f1", "exact"]
    assert told["teacher"]["exact"] > 0.9


def test_running_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path / "model", "GPT2LMHeadModel", n_embd=16, n_layer=2, n_head=2, n_positions=32)
    folder = tmp_path / "task"
    folder.mkdir()
    text = "\n".join(f"the {colour} {animal}" for colour in COLOURS for animal in ANIMALS)
    for name in ("train", "dev"):
        (folder / f"{name}.txt").write_text(f"{text}\n" * 8)
    given = command(tmp_path, tmp_path / "out", "--json", "--length", "12", task="text-generation", epochs=8)
    assert main([*given, "--teacher-epochs", "16"]) == 0
    told = found(capsys)
    assert list(told["student"]) == ["perplexity"]
    assert told["teacher"]["perplexity"] < 6  # of 15 words
    assert told["lower_is_better"]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["-p", "heads(ratio=0.5)"], "has no pass that trains; it needs one"),
        (["--metric", "bleu"], "--metric bleu: text-classification has accuracy, matthews, f1"),
        (["--text", "body"], "has no column 'body'; columns: sentence, label"),
        (["--epochs", "0"], "--epochs and --batch-size must be at least 1"),
        (["--data", "nowhere"], "nowhere must hold one of train.tsv"),
    ],
)
def test_what_can_not_be_trained_is_a_sentence(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], sentence: str
) -> None:
    assert main([*command(place, tmp_path / "out"), *more]) == 2
    assert sentence in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_pass_that_trains_does_not_run_alone(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", f"hf:{place / 'model'}", "-p", "grain", "-o", str(tmp_path / "out")]) == 2
    told = "grain needs labelled rows to train on: give `fxprune train` with --task and --data, or Context(task=…) in Python"
    assert told in capsys.readouterr().err


def test_blocks_are_filled_and_trained_again(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """hybrid-filled; and again with the heads that it left (rewind)."""
    out = tmp_path / "out"
    blocks = "blocks(density=0.3, rows=4, columns=4, rate=0.1)"
    assert main([*command(place, out), "-p", f"{blocks}, fill, distill(epochs=1)", "--json"]) == 0
    told = found(capsys)
    assert told["density"] <= 0.3
    assert told["steps"] == told["history"][-1]["step"] == 20
    assert {row["role"] for row in told["left"]} >= {"ffn", "blocks"}, told["left"]
    assert list(told["proved"]) == ["lowered", "after", "lowered (2)", "onnx"]
    assert max(told["proved"].values()) < 1e-4
    again = tmp_path / "again"
    rewound = f"blocks(density=0.1, rows=4, columns=4, rewind={str(out)!r})"
    assert main([*command(place, again), "-p", rewound, "--json"]) == 0
    after = found(capsys)
    assert all(set(heads) <= set(after["heads"][axis]) for axis, heads in told["heads"].items())


def test_groups_are_pulled_cut_and_split(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Splits are taken where they are cheaper (here: of fewer operations)."""
    monkeypatch.setattr("fxprune.pipeline.context.Clock", lambda *_: counting_meter("flops"))
    out = tmp_path / "out"
    assert main([*command(place, out), "-p", "group_lasso(density=0.5, blocks=2), split", "--json"]) == 0
    told = found(capsys)
    assert told["density"] == pytest.approx(0.5, abs=0.02)
    assert max(told["proved"].values()) < 1e-4


def test_ranks_leave_while_it_learns(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """FLOP: what is left of each matrix is told; factors that are not faster (here: of fewer operations) are matrices again."""
    monkeypatch.setattr("fxprune.pipeline.context.Clock", lambda *_: counting_meter("flops"))
    out = tmp_path / "out"
    given = [*command(place, out, "--json"), "-p", "flop(sparsity=0.5, rate=0.3)"]
    assert main(given) == 0
    told = found(capsys)
    ranks = [entry for entry in told["left"] if entry["role"] == "rank"]
    assert len(ranks) == 19
    assert all(entry["open"] <= entry["of"] for entry in ranks)
    assert 0 < told["density"] < 1
    assert told["proved"]["lowered"] < 1e-5
    assert "rank" in (out / "train.md").read_text(encoding="utf-8")
