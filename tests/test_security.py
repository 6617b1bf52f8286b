"""Every reader of files in the product has its line in SECURITY.md, and none of them unpickles or trusts a folder's code by itself.

The table there is the allow-list: `| files | calls | what is read | what it may do |`, read from the source, as in test_architecture.py.
"""

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# The last name of what reads a file, or text as code, in the standard library and in the libraries that are used here or were likely to be.
READERS = {
    *("open", "read_text", "read_bytes", "fromfile", "memmap", "loadtxt", "genfromtxt", "ZipFile", "TarFile", "mmap"),
    *("load", "loads", "load_file", "safe_open", "load_model", "load_state", "load_checkpoint", "load_url", "load_library"),
    *("safe_load", "full_load", "unsafe_load", "Unpickler", "read_pickle", "read_csv", "read_json", "read_parquet", "read_table"),
    *("from_pretrained", "load_dataset", "load_from_disk", "load_state_dict_from_url", "snapshot_download", "hf_hub_download"),
    *("InferenceSession", "compile_model", "read_model", "check_model", "DictReader", "reader", "iterparse", "ElementTree"),
    *("import_module", "__import__", "spec_from_file_location", "run_path", "run_module", "literal_eval", "eval", "exec"),
    *("urlopen", "urlretrieve", "CDLL", "LoadLibrary", "get_class_from_dynamic_module"),
}  # fmt: skip

# Readers whose last name is everywhere, by their whole names.
WHOLE_NAMES = {"scipy.io.wavfile.read"}

BUILTINS = {"open", "eval", "exec", "__import__"}

# The one function of the product that others read files by.
OWN = {"fxprune.files.read_text"}

BANNED = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml"}

# What a call must say, in words that Python reads.
MUST_SAY = {
    "torch.load": ("weights_only", True),
    "numpy.load": ("allow_pickle", False),
    "onnx.load": ("load_external_data", False),
    ".from_pretrained": ("trust_remote_code", None),  # False, or what the user asked for
}


def files() -> Iterator[Path]:
    for folder in ("fxprune", "passes", "tools"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not any(place.is_symlink() for place in path.parents):
                yield path


def imported(tree: ast.AST) -> dict[str, str]:
    """Return what the names of a module stand for, as dotted names."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {
                a.asname or a.name.split(".")[0]: a.name if a.asname else a.name.split(".")[0]
                for a in node.names
            }
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def dotted(node: ast.AST) -> str:
    """Return a name with its attributes; what is no name at its root gives a leading dot."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def reads(tree: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Yield the readers that a module mentions: (name, node); `.name` where a method is called on a value."""
    known = imported(tree)
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute | ast.Name) or not isinstance(node.ctx, ast.Load):
            continue
        root, _, rest = dotted(node).partition(".")
        name = f"{known[root]}.{rest}".rstrip(".") if root in known else dotted(node)
        last = name.rpartition(".")[2]
        if (last not in READERS and name not in WHOLE_NAMES) or (
            name.startswith("fxprune.") and name not in OWN
        ):
            continue
        if root in known or (not rest and root in BUILTINS):
            yield name, node
        elif rest and id(node) in called and last not in BUILTINS - {"open"}:  # a module's eval() is a mode
            yield f".{last}", node


def found_readers() -> dict[str, set[str]]:
    """Return the readers of each file of the product that has any."""
    trees = {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in files()}
    found = {name: {reader for reader, _ in reads(tree)} for name, tree in trees.items()}
    return {name: readers for name, readers in found.items() if readers}


def listed_readers() -> dict[str, set[str]]:
    """Return the table of SECURITY.md: readers by file, or by a pattern of files."""
    rows = re.findall(
        r"^\| (`[^|]+`) \| (`[^|]+`) \| [^|]+ \| [^|]+ \|$",
        (ROOT / "SECURITY.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    return {
        name: set(re.findall(r"`([^`]+)`", readers))
        for files, readers in rows
        for name in re.findall(r"`([^`]+)`", files)
    }


def test_every_reader_of_files_has_its_line() -> None:
    listed = listed_readers()
    unlisted = {
        name: sorted(missing)
        for name, readers in found_readers().items()
        if (
            missing := readers
            - set().union(*(own for pattern, own in listed.items() if fnmatch(name, pattern)))
        )
    }
    assert unlisted == {}, "a new reader of files: add it to the table of SECURITY.md, with what it may do"


def test_every_line_has_its_reader() -> None:
    found = found_readers()
    stale = {
        pattern: sorted(gone)
        for pattern, readers in listed_readers().items()
        if (gone := readers - set().union(*(own for name, own in found.items() if fnmatch(name, pattern))))
    }
    assert stale == {}


def test_nothing_is_unpickled() -> None:
    users = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files()
        for name in imported(ast.parse(path.read_text())).values()
        if name.split(".")[0] in BANNED
    ]
    assert users == []


def test_readers_say_what_they_trust() -> None:
    silent = [
        f"{path.relative_to(ROOT)}:{node.lineno} {name}"
        for path in files()
        for name, node in calls(ast.parse(path.read_text()))
        if name in MUST_SAY and not says(node, *MUST_SAY[name])
    ]
    assert silent == []


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Yield the calls of readers; a reader that is handed on without a call can't say anything, and counts as one."""
    names = {id(node): name for name, node in reads(tree)}
    by_function = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for place, name in names.items():
        yield name, by_function.get(place, ast.Call(ast.Name(name), [], [], lineno=0))


def says(call: ast.Call, keyword: str, value: bool | None) -> bool:
    given = [entry.value for entry in call.keywords if entry.arg == keyword]
    if value is None:
        return bool(given) and not (isinstance(given[0], ast.Constant) and given[0].value is not False)
    return [entry.value for entry in given if isinstance(entry, ast.Constant)] == [value]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import torch\ntorch.load(x)", "torch.load"),
        ("from torch import load as get\nmap(get, paths)", "torch.load"),
        ("import numpy as np\nnp.load(x)", "numpy.load"),
        ("import json\nmap(json.loads, lines)", "json.loads"),
        ("path.read_text()", ".read_text"),
        ("open(path)", "open"),
        ("Path(path).open()", ".open"),
        ("from fxprune.files import read_text\nread_text(path)", "fxprune.files.read_text"),
        ("accelerator.load_state(path)", ".load_state"),
        ("x[0].from_pretrained(path)", ".from_pretrained"),
        ("def f():\n    import importlib\n    return importlib.import_module(x)", "importlib.import_module"),
    ],
)
def test_a_reader_is_seen(source: str, name: str) -> None:
    assert [found for found, _ in reads(ast.parse(source))] == [name]


@pytest.mark.parametrize(
    "source",
    [
        "gate.open",
        "model.eval()",
        "from fxprune.tools.inputs import models\nmodels.load(x)",
        "def load(): ...\nload()",
    ],
)
def test_what_reads_nothing_is_not_seen(source: str) -> None:
    assert list(reads(ast.parse(source))) == []


@pytest.mark.parametrize(
    ("call", "fine"),
    [
        ("torch.load(x)", False),
        ("torch.load(x, weights_only=False)", False),
        ("torch.load(x, weights_only=asked)", False),
        ("torch.load(x, weights_only=True)", True),
    ],
)
def test_a_reader_that_trusts_is_seen(call: str, fine: bool) -> None:
    ((name, node),) = calls(ast.parse(f"import torch\n{call}"))
    assert says(node, *MUST_SAY[name]) is fine
