"""Price-book entries that a program makes, and the YAML they are written in.

In: what an importer or a calculation found, as mappings with the fields that `yamlbook` reads. Out: the text of a book.
Every amount stands in it as text, so that none passes through a float on its way to the reader.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

from tollspan.pricing.money import PICO, decimal_of, divide_half_even

Entry = dict[str, Any]
"""One element of a book's ``prices``: field → text, whole number, mapping or list of them."""


def book_text(
    name: str, version: str, entries: Iterable[Mapping[str, Any]], *, currency: str = "USD", about: str = ""
) -> str:
    """The YAML of a book with these prices.

    Args:
        name: the book's id, which stands in the ledger.
        version: of its content.
        entries: as `Entry`; written in their order.
        currency: of the amounts; one other than USD needs its exchange rates added to the book.
        about: what stands above it as a comment, one line or several.

    Returns:
        Text that `yamlbook.parse_layer` reads, one price a line. Conditions, times and sources that are said again are
        anchors, since most of a long book is the same few of them.
    """
    listed = list(entries)
    said = Counter(text for entry in listed for text in map(_json, entry.values()) if text[0] in "{[")
    anchors: dict[str, str] = {}

    def field(value: Any) -> str:
        text = _json(value)
        if said[text] < 2:
            return text
        if text in anchors:
            return f"*{anchors[text]}"
        anchors[text] = f"a{len(anchors) + 1}"
        return f"&{anchors[text]} {text}"

    header = {"id": name, "version": version, "currency": currency}
    lines = [f"# {line}".rstrip() for line in about.splitlines()]
    lines += [f"price_book: {_json(header)}", "", "prices:"]
    for entry in listed:
        lines.append("  - {" + ", ".join(f"{_json(key)}: {field(value)}" for key, value in entry.items()) + "}")
    return "\n".join(lines) + "\n"


def amount_text(usd: Fraction) -> str:
    """USD with at most twelve decimals, a half rounded to even.

    Raises:
        ValueError: below zero.
    """
    if usd < 0:
        raise ValueError(f"{usd} is not a price")
    text = f"{decimal_of(divide_half_even(usd.numerator * 10**PICO, usd.denominator), PICO):f}"
    return text.rstrip("0").rstrip(".")


def _json(value: Any) -> str:
    """JSON, which is YAML, and in which no text can be mistaken for anything else."""
    return json.dumps(value, ensure_ascii=False)
