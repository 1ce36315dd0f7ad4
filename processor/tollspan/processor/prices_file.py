"""The prices in use: an engine on the user's book, renewed when the file changes (`watched`).

In: the path of a YAML price book. Out: a `PriceEngine` for whoever follows.
"""

from __future__ import annotations

from tollspan.pricing import PriceEngine, load_book, shipped_book
from tollspan.processor.watched import CHECK_S, Watched

__all__ = ["CHECK_S", "Prices"]


class Prices(Watched[PriceEngine]):
    """The engine in use, and the thread that renews it.

    The file is the user's price book, in front of the shipped one; None for the shipped one alone, which never changes.

    Raises:
        BookError: the book is broken now.
    """

    area = "prices"
    what = "price book"

    @property
    def engine(self) -> PriceEngine:
        """The engine in use."""
        return self.current

    def load(self) -> PriceEngine:
        """An engine on the book as it stands."""
        return PriceEngine(shipped_book() if self.path is None else load_book(self.path))

    def version(self, of: PriceEngine) -> str:
        """The book's version."""
        return f"book version {of.book_version}"
