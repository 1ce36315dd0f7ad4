"""The books people use: what ships, and their own in front of it."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from tollspan.pricing.book import PriceBook
from tollspan.pricing.corrections import corrections
from tollspan.pricing.yamlbook import read_layer


@cache
def shipped_book() -> PriceBook:
    """Prices that come with Tollspan: infrastructure (``infrastructure.yaml``), then LLMs (`corrections`, `catalogue`).

    The LLM catalogue loads when a model is first priced.
    """
    corrected = corrections()
    return PriceBook((read_layer(Path(__file__).with_name("infrastructure.yaml")), corrected, corrected.catalogue))


def load_book(path: str | os.PathLike[str], *, shipped: bool = True) -> PriceBook:
    """The user's own YAML book, in front of the shipped ones.

    Args:
        path: the file; its format is described in `yamlbook`.
        shipped: False leaves the shipped prices out: what the file does not price is unpriced.

    Raises:
        BookError: it cannot be read, is no book, or is ambiguous: one line with file, line, field and reason.
    """
    own = read_layer(path)
    return shipped_book().with_front(own) if shipped else PriceBook((own,))
