"""Failures are sentences with exit codes, and the state that a killed or interrupted command leaves is none."""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from multiprocessing.process import current_process
from multiprocessing.util import get_temp_dir
from pathlib import Path

import pytest
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from fxprune.errors import ExportError, FxpruneError, PassError, UsageError, VerifyError
from fxprune.tools.commands import main as command_line
from fxprune.tools.commands import run
from fxprune.tools.commands.main import main
from fxprune.tools.commands.options import json_option
from fxprune.tools.failures import failure_of
from fxprune.tools.reports.marked_folders import MARK
from fxprune.tools.reports.report import markdown_text

NET = """
import torch
from torch import nn
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), (torch.randn(3, 8),), {}
def terminated():
    import os, signal
    os.kill(os.getpid(), signal.SIGTERM)
"""
RUN = ["run", "py:failing_net:net", "-p", "ffn(ratio=0.5)", "-o", "out"]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "failing_net.py").write_text(NET)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    (tmp_path / "place").mkdir()
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"


def caused(error: FxpruneError, cause: Exception) -> FxpruneError:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "sentence", "code"),
    [
        (UsageError("no"), "no", 2),
        (VerifyError("differs"), "differs", 1),
        (caused(PassError("heads: no data"), UsageError("no data")), "heads: no data", 2),
        (caused(PassError("heads: differs"), VerifyError("differs")), "heads: differs", 1),
        (caused(ExportError("not moved"), OSError(28, "full")), "not moved", 2),
        (ExportError("not proven"), "not proven", 1),
        (OSError(28, "No space left", "a/b"), "No space left: a/b; no result was written", 2),
        (MemoryError(), "there is not enough memory", 2),
        (LinAlgError("svd"), "the numbers are too large, or too alike", 2),
        (BrokenPipeError(32, "Broken pipe"), "standard output was closed", 2),
        (KeyboardInterrupt(), "interrupted", 130),
        (
            KeyError("x"),
            "an error of fxprune itself (KeyError: 'x'); no result was written\nplease report it",
            3,
        ),
        (UsageError("bad \x1b[31mname"), "bad \\x1b[31mname", 2),
        (UsageError("it failed (see the warnings above)"), "it failed", 2),
        (UsageError("It failed. Look at the log above for more."), "It failed.", 2),
        (SystemExit(3), "code of the model, or of a library, ended the process", 2),
        (UsageError("no file a\nb\nc\nd\ne"), "no file a b c\nd\ne", 2),
        (UsageError("no column " + "x" * 10**6 + " is there"), "no column xxx", 2),
    ],
)
def test_an_error_is_a_sentence_and_a_code(error: BaseException, sentence: str, code: int) -> None:
    told, found = failure_of(error)
    assert told.startswith(sentence)
    assert "above" not in told
    assert len(told) < 1000
    assert found == code


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["bench", "a.onnx", "--seconds", "nan"], "--seconds must be at least 0.001, got nan"),
        (["bench", "a.onnx", "--seconds", "inf"], "--seconds must be at most 86400, got inf"),
        (["bench", "a.onnx", "--threads", "1000000"], "threads must be at most"),
        (["bench", "a.onnx", "--threads", "99999999999"], "threads must be at most"),
        (["bench", "o" * 300], "File name too long"),
        (["bench", "a\0b"], "FILE.onnx has a zero byte: 'a\\x00b'"),
        ([*RUN, "--length", "-1"], "--length must be at least 0, got -1"),
        ([*RUN, "--rows", "9" * 30], "--rows must be at most 2147483647, got a larger number"),
        ([*RUN[:-1], "o" * 300], "can't be a folder: File name too long"),
        ([*RUN[:2], f"--pipeline={'-' * 5000}", "-o", "out"], "can't read the pipeline: "),
        ([*RUN[:3], "(" * 5000, "-o", "out"], "can't read the pipeline: "),
        ([*RUN[:3], "ffn(ratio=\ud800)", "-o", "out"], "--pipeline is no text in UTF-8"),
        (
            [*RUN[:3], "ffn(ratio={[]: 1})", "-o", "out"],
            "ffn: ratio must be a literal, a number or {pattern: number}",
        ),
    ],
    ids=range(13),
)
def test_bad_input_is_at_most_three_lines(
    arguments: list[str], sentence: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "a.onnx").touch()
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert sentence in printed.err
    assert "Traceback" not in printed.err
    assert len(printed.err.splitlines()) <= 3
    assert len(printed.err) < 1000
    assert sorted(path.name for path in place.iterdir()) == ["a.onnx"]


def test_an_error_of_ours_shows_its_traceback_only_when_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: object) -> None:
        raise KeyError("absent")

    monkeypatch.setattr(run, "budgeted_pipeline", broken)
    assert main(RUN) == 3
    told = capsys.readouterr().err
    assert "KeyError, test_failures.py:" in told
    assert "please report it, with what --traceback shows: the issue tracker" in " ".join(told.split())
    assert "Traceback" not in told
    assert main([*RUN, "--traceback"]) == 3
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_sigterm_is_what_ctrl_c_is(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert main(["run", "py:failing_net:terminated", *RUN[2:]]) == 130
    assert "interrupted; no result was written" in capsys.readouterr().err
    assert list(place.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is before


def test_scratch_of_a_killed_command_is_removed_by_the_next(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    mine, left = place / ".fxprune-mine", place / ".fxprune-left"
    mine.mkdir()
    left.mkdir()
    (left / MARK).write_text("fxprune.draft/1\nscratch\n")

    def seen(_: object) -> int:
        assert tempfile.gettempdir() != str(place)
        assert Path(tempfile.gettempdir()).parent == place
        return 0

    monkeypatch.setattr(command_line, "COMMANDS", {"passes": (seen, json_option, "")})
    assert main(["passes"]) == 0
    assert list(place.iterdir()) == [mine]
    assert tempfile.gettempdir() == str(place)


def test_the_folder_of_multiprocessing_outlives_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is made once a process, and removed when the process ends."""
    monkeypatch.delitem(current_process()._config, "tempdir", raising=False)  # type: ignore[attr-defined]

    def shared(_: object) -> int:
        assert Path(get_temp_dir()).parent != Path(tempfile.gettempdir())
        return 0

    monkeypatch.setattr(command_line, "COMMANDS", {"layers": (shared, _with_workers, "")})
    assert main(["layers", "--workers", "2"]) == 0
    assert list(Path(get_temp_dir()).iterdir()) == []


def _with_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=int)


@pytest.mark.parametrize("how", [">&-", "| true", "2>&- >&-"])
def test_a_closed_output_is_no_traceback(how: str) -> None:
    """The commands are slow to import, so that `true` has long ended when the first line is printed."""
    command = f"{sys.executable} -W ignore -m fxprune.tools passes {how}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env=os.environ, check=False
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert len(done.stderr.splitlines()) == (0 if "2>" in how else 1)


def test_markdown_of_names_is_no_markup() -> None:
    assert markdown_text("a\n| b [x](http://y) <b>*`\\&") == r"a | b \[x\](http://y) \<b>\*\`\\\&"
    assert markdown_text("encoder.layer_0 × 4") == "encoder.layer_0 × 4"
