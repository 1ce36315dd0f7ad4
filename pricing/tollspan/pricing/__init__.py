"""What every inference costs: usage and a price book to exact charges.

    from tollspan.pricing import PriceEngine, Selectors, shipped_book

    engine = PriceEngine(shipped_book())
    charges = engine.price(
        {"tokens.input.uncached": 1200, "tokens.output": 100},
        at=datetime(2026, 11, 20, 12, tzinfo=UTC),
        selectors=Selectors(provider="openai", model="gpt-5-mini"),
    )

The same over Arrow columns is `PriceEngine.price_columns`. Importing this needs neither NumPy nor pyarrow; price data
is loaded when something is first priced.
"""

from tollspan.pricing.book import PriceBook, PriceRow
from tollspan.pricing.books import load_book, shipped_book
from tollspan.pricing.engine import Charge, Charges, PriceEngine
from tollspan.pricing.errors import BookError
from tollspan.pricing.meters import METERS, Meter
from tollspan.pricing.selectors import Selectors

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
    "load_book",
    "shipped_book",
)
