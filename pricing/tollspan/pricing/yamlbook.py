"""Price books in YAML: the user's own, and the infrastructure prices that ship.

In: a file. Out: a `TableLayer`, or one `BookError` that names file, line, field and reason. Whatever could be wrong
with a price for some span is found here, when the book loads. Numbers are read as the text that stands in the file, so
an amount is exact whether it is quoted or not. ``book.schema.json`` beside this file says the same to editors; a first
line ``# yaml-language-server: $schema=...`` with its path or address makes them complete and check a book.

The format::

    price_book: {id: acme-2026, version: 14, currency: USD, known_at: 2026-11-20T09:00:00Z, supersedes: 13}
                                           # id and version stand in the ledger; all of it may be left out
    calendars:                             # local dates that windows except, by a name of your own
      cn-holidays: ["2026-10-01..2026-10-08", 2027-01-01]
    exchange_rates:                        # USD for one unit; prices in other currencies become prices in USD
      - {currency: EUR, usd: "1.0832", effective: [2026-01-01, 2026-07-01], source: {url: "https://..."}}
      - {currency: EUR, usd: "1.0911", effective: [2026-07-01, null]}
    aliases:
      - ref: my-prod-chat                  # the name on the span
        provider: azure.ai.openai          # the span's provider; left out = any
        sku: azure.ai.openai/gpt-4o        # provider/sku of what it is, in this book or one behind it
        from: 2025-12-02T00:00:00Z         # instants, half-open; left out = open
        to: null
      - {ref: NVIDIA H100 80GB HBM3 MIG 1g.10gb, sku: "*/NVIDIA H100 80GB HBM3", share: 1/7}    # a part of a device
    prices:
      - id: acme/input                     # left out = made from the other fields
        provider: acme                     # provider or cloud provider; left out = any
        sku: my-model-*                    # model, device or host type; * and ? are wildcards; left out = *
        meter: tokens.input.uncached       # a name from the list of meters
        amount: "1.32"                     # exact
        currency: USD                      # left out = the book's, and USD where that says none
        per: 1000000                       # left out = 1
        unit: token                        # left out = the meter's own; seconds also as minute, hour; bytes as GB, GiB
        effective: [2026-08-16T16:00:00Z, null]
        windows:                           # stretches of the week by the clock of a time zone; left out = always
          - {tz: Asia/Shanghai, days: [mon-fri], hours: ["09:00-12:00", "14:00-18:00"], except: cn-holidays}
        when: {service_tier: standard, processing: online, region: us-east-1, residency: us}
        tiers: {basis: request_input_tokens, mode: cliff, steps: [{above: 200000, amount: "2.64"}]}
        minimum: 10                        # least quantity charged when any was used, in the meter's unit
        kind: list                         # list (default) | estimate | contract | amortised | included
        status: active                     # active (default) | announced | cancelled | withdrawn
        source: {url: "https://...", retrieved_at: 2026-11-20, via: "...", note: "...", sha256: null}
      - {provider: acme, sku: my-model-*, meter: pages, amount: 2, status: announced, effective: [2027-01-01, null],
         tiers: {mode: graduated, steps: [{above: 9, amount: 1}]}}
      - {provider: acme, sku: my-model-*, meter: requests, kind: included}    # prepaid: costs nothing more
      - {provider: acme, sku: H100, meter: gpu.seconds, amount: 2.10, currency: EUR, unit: hour,
         effective: [2026-01-01, null], when: {purchase: [spot, reserved_1y]}}
    factors:                               # multiply list prices of every book; all that match
      - {id: eu-uplift, match: {provider: acme, sku: "*", meter: "tokens.*"}, when: {residency: eu}, percent: 10}
    adjustments:                           # a contract on list prices of every book; the most specific one
      - {id: ea, match: {provider: acme}, percent: -10, effective: [2026-01-01, 2027-01-01]}
      - {id: ea-big, match: {provider: acme, sku: my-model-xl}, factor: "0.85"}
      # settled over a period by `settle`, never on a span:
      - {id: volume, match: {provider: acme},
         volume: {basis: cost, mode: graduated, steps: [{above: 1000, percent: -5}, {above: 9000, factor: "0.9"}]}}
      - {id: commit, match: {provider: acme}, commitment: "50000"}
      - {id: free-egress, match: {provider: aws, meter: network.egress.internet.bytes}, allotment: 100, unit: GB}

A window that ends before it begins runs past midnight. All windows of a price have one time zone and one ``except``,
and nothing of them holds on an excepted date. ``cliff`` tiers count the request's input tokens, ``graduated`` ones the
meter's own quantity in the call, in the meter's unit. A price that is ``announced`` applies from its instant and says
so; one that is ``cancelled`` never applies. ``included`` needs no amount.

Under ``when`` stand ``service_tier``, ``processing``, ``region``, ``cloud_provider``, ``host_type``, ``device``,
``purchase`` and ``residency``, each with a value or a list of them (a row for each); a selector that is left out is not
asked for. The higher kind wins over the lower (``amortised`` and ``included`` over ``contract`` over ``estimate`` and
``list``), then more conditions over fewer, then a row with windows over one without. Rows that would tie for some span
are an error. Names are compared in lower case, and model providers in any of their spellings (`selectors.PROVIDERS`):
``azure``, ``azure.ai.openai`` and ``azure_openai`` are one.

A price in another currency is cut where its exchange rate changes; a time without a rate is an error. Allotments are
for each calendar month in UTC, in the meter's unit where ``unit`` says no other. Commitments and volumes are for their
``effective`` as a whole where it has both ends, else for each calendar month; commitments and volumes of cost are in
USD.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Final, TypeVar

from tollspan.pricing.book import TableLayer
from tollspan.pricing.currencies import USD, ExchangeRate
from tollspan.pricing.errors import BookError
from tollspan.pricing.overlaps import Tie, tied_adjustments, tied_aliases, tied_intervals, tied_rows, tied_terms
from tollspan.pricing.patterns import ANY
from tollspan.pricing.rows import WHOLE, Alias, Factor, Term
from tollspan.pricing.yamlfield import Field, compose
from tollspan.pricing.yamlrows import Book, currency_of, price_rows
from tollspan.pricing.yamlterms import adjustments, exchange_rate, factors

__all__ = ("Field", "parse_layer", "read_layer")

BOOK_FIELDS: Final = (*("price_book", "calendars", "exchange_rates", "aliases", "prices", "factors", "adjustments"),)
HEADER_FIELDS: Final = ("id", "version", "currency", "known_at", "supersedes")
ALIAS_FIELDS: Final = ("ref", "provider", "sku", "from", "to", "share")

_T = TypeVar("_T")
Placed = list[tuple[_T, Field]]
"""What was read, each with its place."""


def read_layer(path: str | os.PathLike[str]) -> TableLayer:
    """The book in a YAML file.

    Raises:
        BookError: it cannot be read, or is not a book; the first reason found.
    """
    file = Path(path)
    try:
        content = file.read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        raise BookError(
            f"{file}: cannot read the price book: {reason}.", "Check the path and its permissions."
        ) from error
    return parse_layer(content, str(file))


def parse_layer(content: bytes, file: str) -> TableLayer:
    """The book in YAML text; ``file`` is what errors call it. Raises as `read_layer`."""
    root = compose(content, file)
    fields = root.mapping(*BOOK_FIELDS)
    header = fields["price_book"].mapping(*HEADER_FIELDS) if "price_book" in fields else {}
    name = header["id"].text() if "id" in header else Path(file).stem
    version = header["version"].text() if "version" in header else ""
    if "supersedes" in header and header["supersedes"].text() == version:
        raise header["supersedes"].error(f"version {version!r} supersedes itself", "Raise 'version'.")
    if "known_at" in header:
        header["known_at"].instant()
    rates = _rates(_listed(fields, "exchange_rates"))
    book = Book(
        name=name,
        currency=currency_of(header["currency"], rates) if "currency" in header else USD,
        calendars=_calendars(fields["calendars"]) if "calendars" in fields else {},
        rates=rates,
    )
    rows = [(row, item) for n, item in enumerate(_listed(fields, "prices")) for row in price_rows(item, book, n)]
    aliases = [(_alias(item), item) for item in _listed(fields, "aliases")]
    uplifts = [(one, item) for n, item in enumerate(_listed(fields, "factors")) for one in factors(item, book, n)]
    granted = [(one, i) for n, i in enumerate(_listed(fields, "adjustments")) for one in adjustments(i, book, n)]
    percentages: Placed[Factor] = [(one, item) for one, item in granted if isinstance(one, Factor)]
    terms: Placed[Term] = [(one, item) for one, item in granted if isinstance(one, Term)]
    if not rows and not aliases and not uplifts and not granted:
        raise root.error("the book holds no prices and no aliases", "List rows under 'prices:'.")

    named: Placed[str] = [(row.id, item) for row, item in rows]
    named.extend((one.id, item) for one, item in (*uplifts, *granted))
    _refuse_tie(_twice(_values(named)), _places(named))
    _refuse_tie(tied_rows(_values(rows)), _places(rows))
    _refuse_tie(tied_aliases(_values(aliases)), _places(aliases))
    _refuse_tie(tied_adjustments(_values(percentages)), _places(percentages))
    _refuse_tie(tied_terms(_values(terms)), _places(terms))
    digest = hashlib.sha256(content).hexdigest()[:8]
    return TableLayer(
        name,
        f"{version}.{digest}" if version else digest,
        _values(rows),
        _values(aliases),
        factors=_values(uplifts),
        adjustments=_values(percentages),
        terms=_values(terms),
        known_at=header["known_at"].text() if "known_at" in header else "",
    )


def _listed(fields: dict[str, Field], name: str) -> list[Field]:
    return list(fields[name].items()) if name in fields else []


def _values(placed: Placed[_T]) -> list[_T]:
    return [value for value, _ in placed]


def _places(placed: Placed[_T]) -> list[Field]:
    return [item for _, item in placed]


def _refuse_tie(tie: Tie | None, items: Sequence[Field]) -> None:
    if tie is not None:
        first, second, reason = tie
        raise items[second].error(f"{reason} (line {items[first].line})", "Change one of the two.")


def _twice(names: Sequence[str]) -> Tie | None:
    seen: dict[str, int] = {}
    for position, name in enumerate(names):
        if name in seen:
            return seen[name], position, f"the id {name!r} is used twice"
        seen[name] = position
    return None


def _calendars(field: Field) -> dict[str, frozenset[date]]:
    return {name: dates.dates() for name, dates in field.entries().items()}


def _rates(items: Sequence[Field]) -> list[ExchangeRate]:
    """Exchange rates, of which those of one currency do not overlap."""
    rates = [exchange_rate(item) for item in items]
    for currency in dict.fromkeys(rate.currency for rate in rates):
        own = [position for position, rate in enumerate(rates) if rate.currency == currency]
        tie = tied_intervals([rates[position].effective for position in own])
        if tie is not None:
            reason = f"{currency} has two rates at one time"
            _refuse_tie((own[tie[0]], own[tie[1]], reason), items)
    return rates


def _alias(item: Field) -> Alias:
    fields = item.mapping(*ALIAS_FIELDS, required=("ref", "sku"))
    provider, slash, sku = fields["sku"].name().partition("/")
    if not provider or not slash or not sku:
        raise fields["sku"].error("expected provider/sku", "Write it like openai/gpt-5-mini.")
    bounds = [fields[name].instant() if name in fields else None for name in ("from", "to")]
    owner = fields["provider"].name() if "provider" in fields else None
    return Alias(
        ref=fields["ref"].name(),
        target_provider=None if provider == ANY else provider,
        target_sku=sku,
        provider=None if owner == ANY else owner,
        effective=item.ordered(*bounds),
        share=fields["share"].share() if "share" in fields else WHOLE,
    )
