"""`fxprune run` with a recovery: killed and started again it goes on, in two processes it writes once, and options are checked first."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fxprune.calibration import repair
from fxprune.tools.commands import run
from fxprune.tools.commands.main import main

TESTS = Path(__file__).parents[2]
CUT = "channels(ratio=0.5)"
GIVEN = ["py:support.recovering:unet", "--calibration", "py:support.recovering:unet_rows"]


def command(out: Path, steps: int, *more: str) -> list[str]:
    recover = f"recover(steps={steps}, rate=0.003, precision='no')"
    return ["run", *GIVEN, "-p", f"{CUT}, {recover}", "-o", str(out), *more]


def environment() -> dict[str, str]:
    paths = f"{TESTS}:{TESTS.parent}:{os.environ.get('PYTHONPATH', '')}"
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_SECONDS_A_POINT", 0.01)
    monkeypatch.setattr(run, "_POINTS", ({"batch": 2},))
    monkeypatch.setattr(run, "warm_up", lambda: None)


def kill_at_a_checkpoint(arguments: list[str], kept: Path) -> None:
    """Run a command in a process of its own, and kill it once the folder of a recovery's checkpoints has one."""
    process = subprocess.Popen([sys.executable, "-m", "fxprune.tools", *arguments], env=environment())
    deadline = time.monotonic() + 120
    while not list(kept.glob("recover-2/step-*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.usefixtures(
    "one_thread"
)  # as the killed process: other sums of its net's own training would be another net
def test_a_killed_run_goes_on_and_leaves_no_checkpoints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, kept = tmp_path / "out", tmp_path / "out.run"
    kill_at_a_checkpoint(command(out, 3000, "--save", "0"), kept)
    assert not out.exists()
    assert (kept / "pass-1" / "step-1").is_dir()
    assert main([*command(out, 3000), "--calibration", "py:support.recovering:rows"]) == 2
    assert "--restart begins anew there, --run names another folder" in capsys.readouterr().err

    def begun(*_: object) -> None:
        raise AssertionError("the cut was kept")

    monkeypatch.setattr("fxprune.passes.Channels.plan", begun)
    assert main(command(out, 3000)) == 0
    first, second = json.loads((out / "report.json").read_text())["steps"]
    assert first["remarks"] == ["taken from the checkpoints of a run that did not come to its end"]
    found = second["details"]["recovery"]
    assert found["resumed"] > 0
    assert found["history"][-1]["step"] == 3000
    assert found["after"] < 0.5 * found["before"]
    assert not kept.exists()
    assert "went on | at step" in (out / "report.md").read_text()
    assert "## Held-back loss of recover(steps=3000" in (out / "report.md").read_text()
    assert "came closer to the original" in (out / "report.html").read_text()


def test_two_processes_write_once(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    launched = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--standalone",
        "-m",
        "fxprune.tools",
    ]
    arguments = [*launched, *command(tmp_path / "out", 30, "--json")]
    done = subprocess.run(
        arguments, env=environment(), check=False, capture_output=True, timeout=300, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)
    assert report["steps"][1]["details"]["recovery"]["kept"] is True
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert done.stderr.count("recover(steps=30, rate=0.003, precision='no'): 100%") == 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--device", "abacus"], "nothing can be computed on device 'abacus'"),
        (
            ["--device", "cpu"],
            "--device cpu is for what computes on data, and 'channels(ratio=0.5)' has none: give --calibration DATA",
        ),
        (["--run", "kept"], "--run kept is for passes that train"),
        (["--restart"], "--restart is for passes that train"),
    ],
)
def test_options_of_training_are_refused_before_any_work(
    options: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "py:no.such:model", "-p", CUT, "-o", str(tmp_path / "out"), *options]) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())


def test_several_processes_without_training_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["run", "py:no.such:model", "-p", CUT, "-o", str(tmp_path / "out")]) == 2
    assert main(["passes"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "2 processes run this, and 'channels(ratio=0.5)' has no pass that trains or calibrates in several"
        in said
    )
    assert "fxprune passes is for one process, and 2 run this; run and train train in several" in said


def test_a_metric_of_ones_own_must_not_fall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TESTS))
    out = tmp_path / "out"
    assert main([*command(out, 8), "--metric", "py:support.recovering:worse_each_time"]) == 0
    told = json.loads((out / "report.json").read_text())
    step = told["steps"][1]
    assert told["metric"] == {"name": "worse_each_time", "before": 0.0, "after": -3.0, "why": ""}
    assert "| worse_each_time | 0 | -3 | -3 |" in (out / "report.md").read_text()
    assert step["details"]["recovery"]["metric"] == [-1.0, -2.0]
    assert not step["details"]["recovery"]["kept"]
    assert "nothing improved, the program stays as it was" in step["remarks"][0]
    assert "the metric fell from -1 to -2" in step["remarks"][0]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("no_number", "py:support.recovering:no_number could not be called: ValueError"),
        (
            "not_finite",
            "py:support.recovering:not_finite returned nan for the model; a metric is a finite number",
        ),
        ("nothing", "py:support.recovering:nothing could not be called: AttributeError"),
    ],
)
def test_a_metric_that_is_none_is_said_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, why: str
) -> None:
    assert main([*command(tmp_path / "out", 8), "--metric", f"py:support.recovering:{name}"]) == 2
    assert why in " ".join(capsys.readouterr().err.split())


def test_results_are_written_where_the_metric_fails_on_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(TESTS))
    out = tmp_path / "out"
    assert (
        main(["run", *GIVEN[:1], "-p", CUT, "-o", str(out), "--metric", "py:support.recovering:fails_later"])
        == 0
    )
    told = json.loads((out / "report.json").read_text())["metric"]
    assert (told["before"], told["after"]) == (1.0, None)
    assert "could not be called: IndexError" in told["why"]
    assert (
        "| fails_later | 1 | none | py:support.recovering:fails_later could not be called"
        in (out / "report.md").read_text()
    )


@pytest.mark.usefixtures("one_thread")
def test_a_killed_run_from_disk_goes_on_and_leaves_no_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fxprune.storage.limits.COPIES", 10**12)
    monkeypatch.setattr("fxprune.storage.scratch.SMALLEST_FILE", 1)
    monkeypatch.setattr("fxprune.storage.kept_steps.SECONDS", 0.0)
    out, kept = tmp_path / "out", tmp_path / "out.run"
    given = ["run", *GIVEN, "-p", "slim(params=0.7)", "-o", str(out)]
    plain, calls = repair._fitted, list[str]()

    def fitted(slim: Any, task: Any, *more: Any) -> Any:
        if kept.is_dir() and len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(task.map.weights[0])
        return plain(slim, task, *more)

    monkeypatch.setattr(repair, "_fitted", fitted)
    assert main(given) == 130
    assert len(list(kept.glob("steps-1-refit-*/step-1"))) == 3
    calls.extend(["resumed"] * 10)
    assert main(given) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
