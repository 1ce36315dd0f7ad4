"""Suggestions: what may have been meant where something has no price.

In: an unpriced charge, and the book that has no price for it. Out: `Suggestion`s: names that the book knows, tiers,
regions, meters, and the time in which a price holds. They are for people; nothing is ever priced by them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from tollspan.pricing.book import Layer, Match, PriceBook
from tollspan.pricing.charges import Charge
from tollspan.pricing.meters import METERS, Axis
from tollspan.pricing.names import close
from tollspan.pricing.resolve import INCLUDED_IN, Situation
from tollspan.pricing.rows import PriceRow
from tollspan.pricing.said import holding, interval_text
from tollspan.pricing.selectors import PROVIDERS, SKU_SELECTORS, Selectors

_MOST_VALUES: Final = 12
"""Values that one suggestion lists at most."""


@dataclass(frozen=True, slots=True)
class Suggestion:
    """What may help where something has no price.

    Attributes:
        reason: from `resolve.REASONS`.
        text: one sentence or two.
        values: the names in it, most likely first.
    """

    reason: str
    text: str
    values: tuple[str, ...] = ()


def suggestions(book: PriceBook, charge: Charge, at: int, situation: Situation) -> Iterator[Suggestion]:
    """What may help for a charge without a price; nothing for one that has one."""
    if charge.cost is not None:
        return
    for reason in charge.reasons:
        text, values = _help(reason, book, charge.meter, at, situation)
        if text:
            yield Suggestion(reason, text, values)


def _help(reason: str, book: PriceBook, meter: str, at: int, situation: Situation) -> tuple[str, tuple[str, ...]]:
    selectors = situation.selectors
    if reason in ("provider_missing", "provider_ambiguous"):
        name = selectors.model or selectors.request_model or ""
        owners = tuple(book.owners(name) or book.owners(selectors.request_model or ""))
        return f"Give the provider; {name} is listed by {_some(owners)}.", owners
    if reason == "unknown_model":
        return _unknown_model(book, selectors)
    if reason in ("unknown_device", "unknown_host", "unknown_platform"):
        return _unknown_machine(book, situation.axis, selectors)
    rows = list(_rows(meter, [match for match in situation.matches if match.effective.holds(at)]))
    if reason == "no_meter_price":
        known = {m for match in situation.matches if not match.sku.anything for m in match.sku.rows}
        meters = tuple(name for name in METERS if name in known)
        return (f"What has a price here: {_some(meters)}." if meters else ""), meters
    if reason == "no_price_at_time":
        past = (interval_text(match.effective) for match in situation.matches if not match.effective.holds(at))
        times = tuple(dict.fromkeys((*past, *(holding(row) for row in rows if row.status != "cancelled"))))
        return (f"There is a price {_some(times, ' and ')}." if times else "Its price was cancelled."), times
    in_force = [row for row in rows if row.effective.holds(at) and row.status != "cancelled"]
    if reason == "tier_unknown":
        tiers = tuple(sorted({_tier(row) for row in in_force}))
        return f"Tiers with a price: {_some(tiers)}.", tiers
    if reason.startswith("no_price_for_"):
        key = reason.removeprefix("no_price_for_")
        values = tuple(sorted({row.when[key] for row in in_force if key in row.when}))
        given = getattr(selectors, key, None)
        said = f"not for {given}" if given else "none for a call that does not say"
        return f"There is a price for {key.replace('_', ' ')} {_some(values)}, {said}.", values
    return "", ()


def _unknown_model(book: PriceBook, selectors: Selectors) -> tuple[str, tuple[str, ...]]:
    name = selectors.model or selectors.request_model
    if name is None:
        return "Give the model; prices are found by provider and model.", ()
    if selectors.provider is None:
        return "No provider is given; prices are found by provider and model.", ()
    near = tuple(likely(name, book.names("model", selectors)))
    owners = tuple(book.owners(name))
    if owners:
        return f"{selectors.provider} does not list {name}; {_some(owners)} {'do' if owners[1:] else 'does'}.", owners
    if near:
        return f"Did you mean {_some(near, ' or ')}?", near
    known = providers(book)
    if selectors.provider not in known:
        alike = tuple(close(selectors.provider, known))
        if alike:
            return f"No book lists models of {selectors.provider}. Did you mean {_some(alike, ' or ')}?", alike
    return f"Give {name} a price, or an alias, in a book of your own.", ()


def _unknown_machine(book: PriceBook, axis: Axis, selectors: Selectors) -> tuple[str, tuple[str, ...]]:
    owner, name_selectors = SKU_SELECTORS[axis]
    cloud = getattr(selectors, owner)
    name = next((value for key in name_selectors if (value := getattr(selectors, key))), None)
    what = {"device": "device", "host": "host type"}.get(axis, "cloud provider")
    clouds = tuple(sorted({row.provider for row in _listed(book) if row.axis == axis and row.provider is not None}))
    if cloud is None and clouds:
        return f"Give the cloud provider; there are prices for {_some(clouds)}.", clouds
    if axis == "platform":
        return (f"There are prices for {_some(clouds)}." if clouds else ""), clouds
    if name is None:
        return f"Give the {what}; prices are found by cloud provider and {what}.", ()
    names = book.names(axis, selectors)
    near = tuple(likely(name, names)) or (tuple(names) if len(names) <= _MOST_VALUES else ())
    if near:
        return f"{what.capitalize()}s with a price: {_some(near)}.", near
    return f"Give the {what} {name} a price in a book of your own.", ()


def likely(name: str, known: Iterable[str], limit: int = 5) -> list[str]:
    """Known names that a person may have meant: those that contain what was typed, then those that look like it."""
    names = list(known)
    inside = sorted((each for each in names if len(name) > 2 and name.lower() in each.lower()), key=len)
    return list(dict.fromkeys([*inside[:limit], *close(name, names)]))[:limit]


def providers(book: PriceBook) -> list[str]:
    """Model providers that any layer of a book has prices for, under their one name."""
    known = {row.provider for row in _listed(book) if row.axis == "model" and row.provider is not None}
    if any(layer.name == "genai-prices" for layer in book.layers):
        from genai_prices.data import providers as listed  # half a second: only where a suggestion needs it

        known.update(PROVIDERS.get(provider.id, provider.id) for provider in listed)
    return sorted(known)


def rows_in(layer: Layer) -> Sequence[PriceRow] | None:
    """Rows of a layer that lists them; None of one that compiles its own when they are asked for."""
    found: Sequence[PriceRow] | None = getattr(getattr(layer, "table", layer), "rows", None)
    return found


def _listed(book: PriceBook) -> Iterator[PriceRow]:
    for layer in book.layers:
        yield from rows_in(layer) or ()


def _rows(meter: str, matches: Sequence[Match]) -> Iterator[PriceRow]:
    """Rows that could have applied to a meter: its own, else those of the nearest meter that includes it."""
    for candidate in (meter, *INCLUDED_IN.get(meter, ())):
        found = [row for match in matches for row in match.sku.rows.get(candidate, ())]
        if found:
            yield from found
            return


def _tier(row: PriceRow) -> str:
    if row.when.get("processing", "online") != "online":
        return row.when["processing"]
    return row.when.get("service_tier", "standard")


def _some(values: Iterable[str], between: str = ", ") -> str:
    listed = list(values)
    rest = len(listed) - _MOST_VALUES
    return between.join(listed[:_MOST_VALUES]) + (f" and {rest} more" if rest > 0 else "")
