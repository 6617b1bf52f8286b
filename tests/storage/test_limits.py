"""Limits of memory: what the user allows wins over what the system has, and decides what is pruned from files."""

import pytest

from fxprune.errors import UsageError
from fxprune.storage import limits
from fxprune.storage.limits import allowed_memory, free_memory, limited, needs_disk, parse_bytes, used_memory


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("6GB", 6_000_000_000),
        ("1.5 G", 1_500_000_000),
        ("512MiB", 512 << 20),
        ("100", 100),
        ("2kb", 2000),
        ("1B", 1),
    ],
)
def test_amounts_have_units(text: str, wanted: int) -> None:
    assert parse_bytes(text) == wanted


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "6XB", "nan", "infGB", "6 GB GB", "1e400GB", "six"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="an amount of memory is a number above 0 with a unit, as in 6GB"):
        parse_bytes(text)


def test_what_is_allowed_is_the_least_of_limit_and_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "free_memory", lambda: 1_000_000)
    monkeypatch.setattr(limits, "used_memory", lambda: 500_000)
    monkeypatch.delenv("FXPRUNE_MEMORY", raising=False)
    assert allowed_memory() == 1_500_000
    with limited(1_200_000):
        assert allowed_memory() == 1_200_000
        assert (needs_disk(300_000), needs_disk(300_001)) == (False, True)
    with limited(2_000_000):
        assert allowed_memory() == 1_500_000
    monkeypatch.setenv("FXPRUNE_MEMORY", "1MB")
    assert allowed_memory() == 1_000_000


def test_this_process_uses_memory_and_the_system_has_some() -> None:
    assert used_memory() > 50_000_000
    assert free_memory() > 1_000_000
