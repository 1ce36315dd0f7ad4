"""Entries that a program makes are read back from their YAML as they were, whatever stands in them."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tollspan.pricing.entries import Entry, amount_text, book_text
from tollspan.pricing.yamlbook import parse_layer

TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_categories=["Cc", "Cs"]), max_size=20)
VALUE = st.one_of(
    TEXT,
    st.integers(min_value=0, max_value=10**18),
    st.lists(st.one_of(st.none(), TEXT), max_size=2),
    st.dictionaries(TEXT, TEXT, max_size=3),
)


@given(st.lists(st.dictionaries(TEXT, VALUE, max_size=5), max_size=6), TEXT, TEXT)
def test_what_is_written_is_what_is_read(entries: list[dict[str, Any]], name: str, version: str) -> None:
    book = yaml.safe_load(book_text(name, version, entries, about="Made by a test.\nTwo lines: of it."))
    assert book["price_book"] == {"id": name, "version": version, "currency": "USD"}
    assert (book["prices"] or []) == entries


def test_what_is_said_again_is_said_once() -> None:
    entry: Entry = {"provider": "acme", "meter": "cpu.seconds", "unit": "hour", "source": {"note": "one source"}}
    text = book_text("b", "1", [entry | {"sku": name, "amount": "0.1"} for name in ("x", "y", "z")])
    assert text.count("one source") == 1
    assert [row.source.note for row in parse_layer(text.encode(), "b.yaml").rows] == ["one source"] * 3


@pytest.mark.parametrize(
    ("usd", "text"),
    [
        (Fraction(1, 3), "0.333333333333"),
        (Fraction(5, 10**13), "0"),  # a half goes to the even neighbour
        (Fraction(15, 10**13), "0.000000000002"),
        (Fraction(70), "70"),
        (Fraction(10**15 * 7, 2), "3500000000000000"),
    ],
)
def test_amounts_are_rounded_half_to_even_at_twelve_decimals(usd: Fraction, text: str) -> None:
    assert amount_text(usd) == text


@given(st.fractions(min_value=0, max_value=10**9))
def test_an_amount_is_never_off_by_more_than_half_of_its_last_digit(usd: Fraction) -> None:
    assert abs(Fraction(Decimal(amount_text(usd))) - usd) <= Fraction(1, 2 * 10**12)


def test_an_amount_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="is not a price"):
        amount_text(Fraction(-1))
