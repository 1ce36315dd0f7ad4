"""Prices as rows: every row of a book, listed or compiled, and how one is shown.

In: a `PriceBook`. Out: `Listed` rows, and mappings for `output.print_rows`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from tollspan.pricing import PriceBook, PriceRow, Selectors
from tollspan.pricing.book import Layer
from tollspan.pricing.rows import Alias
from tollspan.pricing.said import holding, hours_text
from tollspan.pricing.schedule import instant_text
from tollspan.pricing.selectors import ON_DEMAND, ONLINE, SKU_SELECTORS, STANDARD
from tollspan.pricing.suggestions import providers, rows_in
from tollspan.processor.cli.explained import steps_text, tiers_text
from tollspan.processor.cli.output import text

USUAL: Final = {"service_tier": STANDARD, "processing": ONLINE, "purchase": ON_DEMAND}
"""Conditions that a span meets which says nothing; not worth a place in a table."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A price and where it stands.

    Attributes:
        book: name of its layer.
        provider: who sells it, ``*`` for any.
        row: the price.
    """

    book: str
    provider: str
    row: PriceRow

    @property
    def sku(self) -> str:
        return f"{self.provider}/{self.row.sku}"


def rows_of(layers: Sequence[Layer], provider: str | None = None) -> Iterator[Listed]:
    """Every price of the layers, front to back; a catalogue is compiled as far as is asked for.

    Args:
        provider: only what this one sells, and what any may.
    """
    for layer in layers:
        listed = rows_in(layer)
        if listed is not None:
            yield from (Listed(layer.name, row.provider or "*", row) for row in listed if _sold(row, provider))
            continue
        for owner in [provider] if provider is not None else providers(PriceBook([layer])):
            seen: set[str] = set()
            for name in layer.names("model", owner):
                for _, sku in layer.skus("model", owner, name.lower()):
                    if sku.name not in seen:
                        seen.add(sku.name)
                        of = sku.name.partition("/")[0]
                        yield from (Listed(layer.name, of, row) for rows in sku.rows.values() for row in rows)


def _sold(row: PriceRow, provider: str | None) -> bool:
    return provider is None or row.provider in (provider, None)


def aliases_in(layer: Layer) -> Sequence[Alias]:
    """Aliases of a layer that lists them."""
    listed: Sequence[Alias] = getattr(getattr(layer, "table", layer), "listed_aliases", ())
    return listed


def selectors_of(row: PriceRow, provider: str | None = None) -> Selectors:
    """A span that the price is for: it names the SKU and meets every condition."""
    owner, names = SKU_SELECTORS[row.axis]
    asked = {owner: row.provider or provider, **dict(row.when)}
    if names:
        asked[names[0]] = row.sku
    return Selectors(**asked)


def price_text(row: PriceRow) -> str:
    """``0.25 / 1000000 token``."""
    return "included" if row.kind == "included" else f"{text(row.amount)} / {row.per_unit}"


def conditions_text(row: PriceRow, *, usual: bool = False) -> str:
    """What it asks for; ``usual`` with what every span meets that says nothing."""
    return ", ".join(f"{key}={value}" for key, value in row.when.items() if usual or USUAL.get(key) != value)


def brief(listed: Listed) -> dict[str, object]:
    """What a terminal has room for."""
    row = listed.row
    return {
        "sku": listed.sku,
        "meter": row.meter,
        "price": price_text(row) + (f"; {steps_text(row)}" if row.steps else ""),
        "for": conditions_text(row),
        "in_force": holding(row) + ("" if row.status == "active" else f", {row.status}"),
        "book": listed.book + ("" if row.kind == "list" else f", {row.kind}"),
    }


def full(listed: Listed) -> dict[str, object]:
    """Everything about it."""
    row = listed.row
    return {
        "book": listed.book,
        "provider": listed.provider,
        "sku": row.sku,
        "meter": row.meter,
        "amount": row.amount,
        "per": row.per,
        "unit": row.unit,
        "from": _instant(row.effective.start),
        "until": _instant(row.effective.end),
        "hours": None if row.schedule is None else hours_text(row.schedule),
        "when": conditions_text(row, usual=True),
        "tiers": tiers_text(row) if row.steps else None,
        "minimum": row.minimum,
        "kind": row.kind,
        "status": row.status,
        "stated": row.stated or None,
        "price_id": row.id,
        "source": row.source.url or None,
        "retrieved_at": row.source.retrieved_at or None,
        "via": row.source.via or None,
        "note": row.source.note or None,
    }


def _instant(at: int | None) -> str | None:
    return None if at is None else instant_text(at)
