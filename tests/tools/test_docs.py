from pathlib import Path

import pytest

from fxprune.tools.docs import PAGES, README, TABLES, fill_tables


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(README.parent)) for page in PAGES])
def test_the_tables_of_a_page_are_up_to_date(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert fill_tables(text) == text


def test_each_table_stands_in_one_page() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert {name: text.count(f"<!-- {name} -->\n") for name in TABLES} == dict.fromkeys(TABLES, 1)


def test_the_readme_has_no_options_and_the_guide_has_them() -> None:
    passes, options = TABLES["passes"](), TABLES["pass_options"]()
    assert "| `fold` | Compute constants once" in passes
    assert (
        "| `heads` | `ratio`, `score='magnitude'`, `multiple_of=1`, `uniform=False`, `roles=''`, `only=''`, `skip=''` | Remove whole"
        in options
    )
