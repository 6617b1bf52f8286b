"""The shape of the code base, read from the source: nothing is imported, so these tests take no time.

A new folder under `fxprune/` gets its place in `FLOORS` here, or the first test says so.
"""

import ast
import re
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = ("fxprune", "passes", "tools")
LINES_A_FILE = 400
LINES_A_FUNCTION = 60
FILES_A_FOLDER = 16

# Names that several modules may define: the alias of torch.ops.aten, and what runs a script.
SHARED_NAMES = {"aten", "main"}

# Values of rich that say how something looks; whoever asks for them prints them.
RICH_VALUES = {"rich.table.Table", "rich.text.Text"}

# From the top down: a folder imports from itself and from lower floors, never from its neighbours. "" stands for `fxprune/__init__.py`.
FLOORS = (
    ("tools",),
    ("integrations",),
    ("",),
    ("passes",),
    ("pipeline",),
    ("verification",),
    ("search",),
    ("cost",),
    ("scores", "export"),
    ("training",),
    ("calibration", "runtimes"),
    ("gates", "frontend"),
    ("rewrite",),
    ("analysis",),
    ("rules",),
    ("dims",),
    ("ir",),
    ("storage",),
    ("files",),
    ("errors",),
)

FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}

# What edits graphs, by folder: all modules (nothing named), or those that mention one of these names.
_NODES = {"erase_node", "replace_all_uses_with", "replace_input_with"}
EDITS: dict[str, set[str]] = {"rewrite": set(), "gates": {"rebuild"}, "frontend": _NODES, "export": _NODES}

# Each heavy library has one adapter, the only place to mend when the library changes.
ONNX = {
    "fxprune.export.onnx",
    "fxprune.export.onnx_cleanup",
    "fxprune.export.onnx_operators",
    "fxprune.export.random_values",
    "fxprune.runtimes.onnxruntime",
    "fxprune.runtimes.peepholes",
}
HUGGING_FACE = {
    "fxprune.frontend.library_patches",
    "fxprune.tools.inputs.huggingface",
    "fxprune.tools.inputs.models",
    "fxprune.integrations.huggingface.trainer",
    "fxprune.integrations.huggingface.exporters",
}
ADAPTERS = {
    "onnx": ONNX | {"fxprune.tools.benchmarks.ort_fusions", "fxprune.integrations.quantization.onnxruntime"},
    "onnx_ir": ONNX,
    "onnxruntime": ONNX | {"fxprune.integrations.quantization.onnxruntime"},
    "torchao": {"fxprune.integrations.quantization.pt2e"},
    "openvino": {"fxprune.runtimes.openvino"},
    "olive": {"fxprune.integrations.olive.olive_pass"},
    "pydantic": {"fxprune.integrations.olive.olive_pass"},
    "onnxscript": ONNX,
    "transformers": HUGGING_FACE,
    "optimum": {*(f"fxprune.tools.inputs.{name}" for name in ("huggingface", "models", "example_inputs"))},
    "accelerate": {"fxprune.training.loop"},
    "datasets": {"fxprune.tools.inputs.tables", "fxprune.tools.inputs.calibration.dataset_folder"},
    "PIL": {"fxprune.tools.inputs.calibration.images", "fxprune.tools.benchmarks.subjects.images"},
    "soundfile": {"fxprune.tools.inputs.calibration.sounds"},
    "sklearn": {"fxprune.tools.inputs.metrics", "fxprune.tools.benchmarks.subjects.images"},
    "jinja2": {"fxprune.tools.reports.templates"},
    "matplotlib": {"fxprune.tools.reports.layers_report"},
}


def test_every_folder_has_a_floor() -> None:
    assert sorted({folder(name) for name in product_trees()} - FLOOR.keys()) == []


def test_every_folder_opens_with_its_sentence() -> None:
    heads = {name: ast.get_docstring(tree) or "" for name, tree in packages().items()}
    assert [name for name, head in heads.items() if not re.match(r"[^\n]+\.(\n|$)", head)] == []


def test_folders_are_small() -> None:
    crowded = {
        name_of(place.parent): count
        for place, count in ((place, len(list(place.parent.glob("*.py"))) - 1) for place in package_files())
        if count > FILES_A_FOLDER
    }
    assert crowded.keys() <= {"fxprune.passes"}  # the suite: one pass, one file


def test_fxprune_itself_holds_three_files() -> None:
    assert {path.name for path in (ROOT / "fxprune").glob("*.py")} == {"__init__.py", "errors.py", "files.py"}


def test_tests_mirror_the_folders() -> None:
    own = {"support", "zoo", "fuzz", "adversarial"}
    places = {path.parent.relative_to(ROOT / "tests") for path in files("tests")}
    folders = {Path(*name.split(".")[1:]) for name in packages()}
    assert (
        sorted(
            map(str, {place for place in places if place.parts[:1] and place.parts[0] not in own} - folders)
        )
        == []
    )


def test_a_public_name_is_defined_in_one_module() -> None:
    homes: dict[str, list[str]] = {}
    for name, tree in product_trees().items():
        for defined in public_definitions(tree) - SHARED_NAMES:
            homes.setdefault(defined, []).append(name)
    assert {name: places for name, places in homes.items() if len(places) > 1} == {}


def test_names_that_a_folder_hands_on_are_imported_from_it() -> None:
    handed = {
        source: name
        for name, tree in packages().items()
        if folder(name)
        for source in imported(tree)
        if inside(source, name)
    }
    strays = [
        f"{name} imports {target}: take it from {handed[target]}"
        for name, tree in product_trees().items()
        for target in imported(tree)
        if target in handed and not inside(name, handed[target]) and target not in product_trees()
    ]
    assert strays == []


def test_imports_run_downwards() -> None:
    assert upward(internal_imports()) == []


def test_imports_have_no_cycles() -> None:
    assert cycle(internal_imports()) == []


def test_type_checking_blocks_hide_no_import() -> None:
    users = [name for name, tree in product_trees().items() if "TYPE_CHECKING" in mentioned(tree)]
    assert users == []


def test_heavy_libraries_are_imported_by_their_adapters_only() -> None:
    strays = [
        f"{name} imports {library}"
        for name, tree in product_trees().items()
        for library in roots_of(tree) & ADAPTERS.keys()
        if name not in ADAPTERS[library]
    ]
    assert strays == []


def test_only_tools_print() -> None:
    core = {name: tree for name, tree in product_trees().items() if not inside(name, "fxprune.tools")}
    assert [name for name, tree in core.items() if prints(tree)] == []


def test_packages_listed_are_the_folders() -> None:
    folders = {name_of(path.parent) for place in PRODUCT for path in files(place)}
    folders -= {name for name in folders if inside(name, "fxprune.tools.benchmarks")}
    assert set(project()["tool"]["setuptools"]["packages"]) == folders


def test_files_beside_the_code_are_package_data() -> None:
    listed = project()["tool"]["setuptools"]["package-data"]
    given = {
        path
        for package, globs in listed.items()
        for glob in globs
        for path in ROOT.joinpath(*package.split(".")).resolve().glob(glob)
    }
    found = {
        path
        for folder in PRODUCT
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix != ".py"
    }
    real = {
        path
        for path in found
        if "__pycache__" not in path.parts and not any(p.is_symlink() for p in path.parents)
    }
    assert real == given


def test_every_rewrite_has_a_test_that_shows_before_and_after() -> None:
    """As text, in the test file that mirrors the module: all of `rewrite`, and what edits graphs elsewhere."""
    homes = {name: ROOT / "tests" / Path(*name.split(".")[1:-1]) for name in editors()}
    missing = [
        name
        for name, home in homes.items()
        if not shows_before_and_after(home / f"test_{name.rpartition('.')[2]}.py")
    ]
    assert missing == []
    assert {folder(name) for name in homes} == EDITS.keys()


def test_links_lead_to_the_mapped_folders() -> None:
    places = project()["tool"]["setuptools"]["package-dir"]
    for package, folder in places.items():
        assert ROOT.joinpath(*package.split(".")).resolve() == ROOT / folder


def test_files_and_functions_are_small() -> None:
    assert [row for folder in (*PRODUCT, "tests") for path in files(folder) for row in outgrown(path)] == []


@pytest.mark.parametrize(
    ("imports", "complaint"),
    [
        ({"fxprune.dims.dim": {"fxprune.passes.heads"}}, "fxprune.dims.dim imports fxprune.passes.heads"),
        ({"fxprune.rules.view": {"fxprune"}}, "fxprune.rules.view imports fxprune"),
        ({"fxprune.errors": {"fxprune.rules"}}, "fxprune.errors imports fxprune.rules"),
    ],
)
def test_an_import_from_above_is_seen(imports: dict[str, set[str]], complaint: str) -> None:
    assert upward(imports) == [complaint]


@pytest.mark.parametrize(
    "source",
    [
        "print(1)",
        "import rich",
        "from rich import print as show",
        "from rich.console import Console",
        "import sys\nsys.stderr.write('x')",
        "from sys import stdout",
    ],
)
def test_printing_is_seen(source: str) -> None:
    assert prints(ast.parse(source))


def test_a_table_that_is_returned_is_no_printing() -> None:
    assert not prints(ast.parse("from rich.table import Table\nfrom rich.text import Text"))


def project() -> dict[str, dict[str, dict[str, dict[str, str]]]]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def files(folder: str) -> Iterator[Path]:
    # Links are left out by hand: not every version of rglob does it.
    for path in sorted((ROOT / folder).rglob("*.py")):
        if not any(place.is_symlink() for place in path.parents):
            yield path


def name_of(path: Path) -> str:
    """Return the import name of a file or folder of the product."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    home = () if parts[0] == "fxprune" else ("fxprune",)
    return ".".join((*home, *parts)).removesuffix(".__init__")


@cache
def product_trees() -> dict[str, ast.Module]:
    return {name_of(path): ast.parse(path.read_text()) for folder in PRODUCT for path in files(folder)}


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def folder(name: str) -> str:
    """Return the folder of a module, as FLOORS names it; a file that lies in none stands for itself."""
    return [*name.split("."), ""][1]


def package_files() -> Iterator[Path]:
    return (path for place in PRODUCT for path in files(place) if path.name == "__init__.py")


@cache
def packages() -> dict[str, ast.Module]:
    return {name_of(path): ast.parse(path.read_text()) for path in package_files()}


def public_definitions(tree: ast.Module) -> set[str]:
    """Return the names without a leading underscore that a module defines at its top level; imports are none."""
    targets = [
        n.targets if isinstance(n, ast.Assign) else [n.target]
        for n in tree.body
        if isinstance(n, ast.Assign | ast.AnnAssign)
    ]
    names = {t.id for group in targets for t in group if isinstance(t, ast.Name)}
    names |= {
        n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }
    return {name for name in names if not name.startswith("_")}


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield what a module imports, anywhere in it; `from a import b` is `a.b`, module or not."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import of {node.module}: write the full name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def roots_of(tree: ast.AST) -> set[str]:
    return {name.split(".")[0] for name in imported(tree)}


def internal_imports() -> dict[str, set[str]]:
    trees = product_trees()
    return {
        name: {known(target, trees) for target in imported(tree) if inside(target, "fxprune")}
        for name, tree in trees.items()
    }


def known(target: str, modules: Mapping[str, object]) -> str:
    """Return the module that `target` is, or is a name of."""
    return target if target in modules else target.rpartition(".")[0]


def upward(imports: Mapping[str, set[str]]) -> list[str]:
    return [
        f"{name} imports {target}"
        for name, targets in imports.items()
        for target in sorted(targets)
        if (high := folder(name)) != (low := folder(target)) and FLOOR[low] <= FLOOR[high]
    ]


def cycle(imports: Mapping[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def editors() -> Iterator[str]:
    """Yield the modules that edit graphs: those of `rewrite`, and others where they mention an edit."""
    for name, tree in product_trees().items():
        edits = EDITS.get(folder(name))
        if edits is not None and name not in packages() and (not edits or edits & mentioned(tree)):
            yield name


def shows_before_and_after(test: Path) -> bool:
    tests = public_definitions(ast.parse(test.read_text())) if test.exists() else set()
    return any(name.startswith("test_before_and_after") for name in tests)


def mentioned(tree: ast.AST) -> set[str]:
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return names | {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def prints(tree: ast.AST) -> bool:
    means = {"print", "stdout", "stderr", "sys.stdout", "sys.stderr"}
    rich = {name for name in imported(tree) if inside(name, "rich")} - RICH_VALUES
    return bool(rich) or not means.isdisjoint(mentioned(tree) | roots_of(tree) | set(imported(tree)))


def outgrown(path: Path) -> Iterator[str]:
    text = path.read_text()
    place = path.relative_to(ROOT)
    if text.count("\n") > LINES_A_FILE:
        yield f"{place}: {text.count(chr(10))} lines, the ceiling is {LINES_A_FILE}"
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if lines > LINES_A_FUNCTION:
            yield f"{place}:{node.lineno} {node.name}: {lines} lines, the ceiling is {LINES_A_FUNCTION}"
