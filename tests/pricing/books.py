"""Books and calls that the pricing tests share."""

from __future__ import annotations

import textwrap
from datetime import UTC, datetime
from decimal import Decimal

from tollspan.pricing import Charges, PriceBook, PriceEngine, Selectors
from tollspan.pricing.yamlbook import parse_layer

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
INPUT = "tokens.input.uncached"
OUTPUT = "tokens.output"


def book_of(*layers: str) -> PriceBook:
    """Layers of YAML text, the front one first, and nothing that ships behind them."""
    return PriceBook([parse_layer(textwrap.dedent(text).encode(), f"book{n}.yaml") for n, text in enumerate(layers)])


def price(book: PriceBook, usage: dict[str, int | Decimal], at: datetime = NOON, **selectors: str | None) -> Charges:
    return PriceEngine(book).price(usage, at=at, selectors=Selectors(**selectors))


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)
