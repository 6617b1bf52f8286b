"""`python -m fxprune.tools.docs [--check]`: write the generated tables into README.md and docs/, or check that they are up to date.

A table stands between `<!-- NAME -->` and `<!-- /NAME -->`; `TABLES` maps names to the functions that make them.
"""

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any

from fxprune.calibration.repair import FURTHER, REPAIRS
from fxprune.cost import BUDGETS
from fxprune.gates import LOWERINGS
from fxprune.integrations.quantization.quantize import QUANTIZERS
from fxprune.passes import PASSES
from fxprune.passes.blocks import VARIANTS
from fxprune.rules import FAMILIES, REFUSED, RULES
from fxprune.runtimes import RUNTIMES
from fxprune.runtimes.peepholes import PEEPHOLES
from fxprune.scores import SCORES
from fxprune.search.layer_search import SEARCHES
from fxprune.tools.commands.passes import describe_pass
from fxprune.tools.inputs.calibration.forms import FORMS
from fxprune.tools.inputs.calibration.normalization import NORMALIZATIONS
from fxprune.tools.inputs.tasks import TASKS

_ROOT = Path(__file__).resolve().parent.parent
README = _ROOT / "README.md"
PAGES = (README, *sorted((_ROOT / "docs").rglob("*.md")))


def passes() -> str:
    """Return a table with one row per pass."""
    rows = ["| pass | what it does |", "| --- | --- |"]
    return "\n".join(
        [*rows, *(f"| `{entry['name']}` | {entry['help']} |" for entry in map(describe_pass, PASSES))]
    )


def pass_options() -> str:
    """Return a table with one row per pass, its options in a column."""
    rows = ["| pass | options | what it does |", "| --- | --- | --- |"]
    for entry in map(describe_pass, PASSES):
        options = ", ".join(_option(name, option) for name, option in entry["options"].items())
        rows.append(f"| `{entry['name']}` | {options} | {entry['help']} |")
    return "\n".join(rows)


def _option(name: str, option: Mapping[str, object]) -> str:
    return f"`{name}`" if option["required"] else f"`{name}={option['default']!r}`"


def rules() -> str:
    """Return a sentence with the number of operators that have a rule, and their families."""
    families = ", ".join(
        family.__name__.rpartition(".")[2] for family in FAMILIES if family.__name__[-7:] != "refused"
    )
    return f"{len(RULES)} operators have a rule ({families}), {len(REFUSED)} a line that says why they have none."


def tasks() -> str:
    """Return a table with one row per task that a model can be trained for."""
    rows = ["| task | columns | metrics | what it is |", "| --- | --- | --- | --- |"]
    for name, row in TASKS.items():
        columns, metrics = (", ".join(f"`{each}`" for each in some) for some in (row.columns, row.metrics))
        rows.append(f"| `{name}` | {columns} | {metrics} | {row.help} |")
    return "\n".join(rows)


def _table(what: str, rows: Mapping[str, Any], help_: Callable[[Any], str]) -> Callable[[], str]:
    """Return a function that returns a table with one row per name."""
    head = [f"| {what} | what it is |", "| --- | --- |"]
    return lambda: "\n".join([*head, *(f"| `{name}` | {help_(row)} |" for name, row in rows.items())])


_help: Callable[[Any], str] = attrgetter("help")
_last: Callable[[Any], str] = itemgetter(-1)


def _installed(row: Any) -> str:
    return f"{row.help}; `{row.install}`"


def _form(row: Any) -> str:
    return f"written as `{row.form}` for {', '.join(f'`{name}`' for name in row.runtimes)}: {row.why}"


TABLES: Mapping[str, Callable[[], str]] = {
    "passes": passes,
    "pass_options": pass_options,
    "scores": _table("score", SCORES, _help),
    "budgets": _table("budget", BUDGETS, _help),
    "repairs": _table("repair", REPAIRS, _last),
    "further_repairs": _table("further", FURTHER, str),
    "lowerings": _table("lowering", LOWERINGS, _last),
    "variants": _table("variant", VARIANTS, _help),
    "searches": _table("search", SEARCHES, _last),
    "tasks": tasks,
    "runtimes": _table("runtime", RUNTIMES, _installed),
    "peepholes": _table("pattern", {row.pattern: row for row in PEEPHOLES}, _form),
    "quantizers": _table("quantizer", QUANTIZERS, _installed),
    "calibration_forms": _table("DATA", {form.written: form for form in FORMS}, _help),
    "image_normalizations": _table("normalisation", NORMALIZATIONS, _help),
    "rules": rules,
}


def fill_tables(text: str) -> str:
    """Return the text with every generated table made anew."""
    for name, table in TABLES.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        text = re.sub(pattern, rf"\g<1>{table()}\n\g<2>".replace("\\_", "_"), text, flags=re.DOTALL)
    return text


def main(arguments: list[str] | None = None) -> int:
    """Write the pages, or with --check return 1 where one is out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 where a table is out of date"
    )
    options = parser.parse_args(arguments)
    before = {page: page.read_text(encoding="utf-8") for page in PAGES}
    stale = [page for page, text in before.items() if fill_tables(text) != text]
    for page in stale:
        if options.check:
            print(f"{page.relative_to(_ROOT)} is out of date: python -m fxprune.tools.docs")
        else:
            page.write_text(fill_tables(before[page]), encoding="utf-8")
            print(f"wrote {page.relative_to(_ROOT)}")
    if not stale:
        print(f"{len(PAGES)} pages are up to date")
    return int(options.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
