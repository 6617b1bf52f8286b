from pathlib import Path

import pytest

from fxprune.tools.docs import PAGES, fill_tables


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_the_tables_of_a_page_are_up_to_date(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert fill_tables(text) == text
