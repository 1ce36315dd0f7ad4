"""What every inference costs: usage and a price book to exact charges.

    from tollspan.pricing import PriceEngine, Selectors, shipped_book

    engine = PriceEngine(shipped_book())
    charges = engine.price(
        {"tokens.input.uncached": 1200, "tokens.output": 100},
        at=datetime(2026, 11, 20, 12, tzinfo=UTC),
        selectors=Selectors(provider="openai", model="gpt-5-mini"),
    )

The same over Arrow columns is `PriceEngine.price_columns`. The names below are loaded when they are first used, so
that an instrumented program which only needs `attributes` pays for nothing else; price data is loaded when something is
first priced. Neither needs NumPy or pyarrow.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tollspan.pricing.book import PriceBook
    from tollspan.pricing.books import load_book, shipped_book
    from tollspan.pricing.charges import Charge, Charges
    from tollspan.pricing.engine import PriceEngine
    from tollspan.pricing.errors import BookError
    from tollspan.pricing.meters import METERS, Meter
    from tollspan.pricing.rows import PriceRow
    from tollspan.pricing.selectors import Selectors
    from tollspan.pricing.usage_objects import UsageReading, read_usage

__all__ = (
    "METERS",
    "BookError",
    "Charge",
    "Charges",
    "Meter",
    "PriceBook",
    "PriceEngine",
    "PriceRow",
    "Selectors",
    "UsageReading",
    "load_book",
    "read_usage",
    "shipped_book",
)

_HOMES: Final = {
    "METERS": "meters",
    "BookError": "errors",
    "Charge": "charges",
    "Charges": "charges",
    "Meter": "meters",
    "PriceBook": "book",
    "PriceEngine": "engine",
    "PriceRow": "rows",
    "Selectors": "selectors",
    "UsageReading": "usage_objects",
    "load_book": "books",
    "read_usage": "usage_objects",
    "shipped_book": "books",
}
"""Public name → module that defines it."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value  # found directly from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
