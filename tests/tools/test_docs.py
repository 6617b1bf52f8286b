from fxprune.tools.docs import README, filled


def test_the_readmes_tables_are_up_to_date() -> None:
    text = README.read_text(encoding="utf-8")
    assert filled(text) == text
