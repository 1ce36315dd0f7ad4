"""``tollspan prices list`` and ``show``: what books and the catalogue charge."""

from __future__ import annotations

import sys
from typing import Annotated, Final

import typer

from tollspan.pricing import METERS, PriceBook, Selectors
from tollspan.pricing.book import Match
from tollspan.pricing.engine import instant_of as ns_of
from tollspan.pricing.names import nearest
from tollspan.pricing.patterns import compile_pattern, is_pattern, literal_length
from tollspan.pricing.selectors import SKU_SELECTORS, provider_of
from tollspan.pricing.suggestions import likely, providers, rows_in
from tollspan.processor.cli.inputs import EXIT_UNPRICED, At, Book, book_of, fail, instant_of
from tollspan.processor.cli.output import Format, print_rows
from tollspan.processor.cli.prices.rows import Listed, brief, full, rows_of

SHOWN: Final = 200
"""Rows of a table for people, unless --limit asks for others."""

_METERS: Final = {name: position for position, name in enumerate(METERS)}
_TELLING: Final = 2
"""Characters of a pattern that stand for themselves, from which on it names something."""

Formats = Annotated[Format, typer.Option("--format", help="How to print the rows.")]


def list_(
    provider: Annotated[str | None, typer.Option(help="Model provider or cloud provider.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", "--sku", help="Model, device or host type; * and ? are wildcards.")
    ] = None,
    meter: Annotated[str | None, typer.Option(help="Meter; * and ? are wildcards.")] = None,
    at: At = None,
    layer: Annotated[str | None, typer.Option(help="Only this book, by its name.")] = None,
    book: Book = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many rows; a table shows 200.")] = None,
    fmt: Formats = Format.table,
) -> None:
    """List the prices in force at an instant: of your own book, and of what ships.

    A price of a book in front takes the place of those behind it; `tollspan price --explain` says which one applies.

    Example: tollspan prices list --provider openai --model "gpt-5*" --meter "tokens.output*"
    """
    instant = ns_of(instant_of(at))
    prices = book_of(book)
    layers = [each for each in prices.layers if layer is None or each.name == layer]
    if not layers:
        fail(f"--layer {layer}: no such book. {nearest(layer or '', [each.name for each in prices.layers])}")
    if meter is not None and not any(compile_pattern(meter).fullmatch(name) for name in METERS):
        fail(f"--meter {meter}: no such meter. {nearest(meter, METERS)}")
    owner = provider_of(provider.strip().lower()) if provider is not None else None
    names = compile_pattern(model.strip().lower()) if model is not None else None
    meters = compile_pattern(meter) if meter is not None else None
    found = [
        listed
        for listed in rows_of(layers, owner)
        if listed.row.effective.holds(instant)
        and listed.row.status != "cancelled"
        and (names is None or names.fullmatch(listed.row.sku))
        and (meters is None or meters.fullmatch(listed.row.meter))
    ]
    if not found:
        known = _owners(prices)
        hint = nearest(owner, known) if owner is not None and owner not in known else ""
        print(f"No price in force matches. {hint}".strip(), file=sys.stderr)
    shown = found[: limit or (SHOWN if fmt is Format.table else len(found))]
    if shown or fmt is Format.json:
        print_rows([(brief if fmt is Format.table else full)(listed) for listed in shown], fmt)
    if len(shown) < len(found) and limit is None:
        print(f"{len(shown)} of {len(found)} rows; narrow it down, or give --limit.", file=sys.stderr)


def show(
    name: Annotated[str, typer.Argument(help="MODEL or PROVIDER/MODEL; a device or host type alike.")],
    provider: Annotated[str | None, typer.Option(help="Model provider or cloud provider, instead of a prefix.")] = None,
    book: Book = None,
    fmt: Formats = Format.table,
) -> None:
    """Show every price of one model, device or host type over time: also those that are past, to come or cancelled.

    Exit codes: 0 shown; 2 wrong usage; 3 no book knows the name.

    Example: tollspan prices show deepseek/deepseek-v4-pro --format csv
    """
    prices = book_of(book)
    wanted = name.strip().lower()
    owner = provider_of(provider.strip().lower()) if provider is not None else None
    found: list[Listed] = []
    if owner is None and "/" in wanted:
        prefix, _, rest = wanted.partition("/")
        if found := _named(prices, rest, provider_of(prefix)):
            wanted, owner = rest, provider_of(prefix)
    found = found or _named(prices, wanted, owner)
    if not found:
        if owner is None and "/" in wanted:
            prefix, _, wanted = wanted.partition("/")
            owner = provider_of(prefix)
        hint = _nearest(prices, wanted, owner)
        print(f"error: no price of {name} is known. {hint}", file=sys.stderr)
        raise typer.Exit(EXIT_UNPRICED)
    order = [layer.name for layer in prices.layers]
    found.sort(
        key=lambda each: (each.sku, _METERS[each.row.meter], order.index(each.book), each.row.effective.start or 0)
    )
    print_rows([(brief if fmt is Format.table else full)(listed) for listed in found], fmt)
    if fmt is Format.table:
        for source in dict.fromkeys(_source(listed) for listed in found):
            print(source)


def _nearest(book: PriceBook, name: str, provider: str | None) -> str:
    """What to do about a name that no book knows."""
    known = _owners(book)
    if provider is not None and provider not in known:
        return f"No book has prices of {provider}. {nearest(provider, known)}".strip()
    near = likely(name, {listed.row.sku for listed in rows_of(book.layers, provider)})
    return f"Did you mean {', '.join(near)}?" if near else "See `tollspan prices list`."


def _owners(book: PriceBook) -> list[str]:
    """Model providers and clouds that some book has prices of."""
    clouds = {row.provider for layer in book.layers for row in rows_in(layer) or ()}
    return sorted({*providers(book), *(cloud for cloud in clouds if cloud is not None)})


def _named(book: PriceBook, name: str, provider: str | None) -> list[Listed]:
    """Prices of every SKU that the name stands for, on whatever axis and with whomever; those that it stands for by a
    pattern alone only where there are no others."""
    found: dict[tuple[str, str, str], tuple[bool, list[Listed]]] = {}
    for axis, (owner_key, names) in SKU_SELECTORS.items():
        if not names:
            continue
        for owner in [provider] if provider is not None else [None, *_sellers(book, name)]:
            for match in book.matches(axis, Selectors(**{owner_key: owner, names[0]: name})):
                if match.sku.anything or _names_nothing(match):
                    continue
                of = match.sku.name.partition("/")[0]
                rows = [Listed(match.layer, of, row) for rows in match.sku.rows.values() for row in rows]
                found.setdefault((match.layer, match.sku.name, axis), (match.kind == "pattern", rows))
    by_name = any(not pattern for pattern, _ in found.values())
    return [listed for pattern, rows in found.values() if not (pattern and by_name) for listed in rows]


def _names_nothing(match: Match) -> bool:
    """Whether its prices stand under wildcards that fit nearly every name, like ``*-*`` for machines."""
    skus = {row.sku for rows in match.sku.rows.values() for row in rows}
    return all(is_pattern(sku) and literal_length(sku) < _TELLING for sku in skus)


def _sellers(book: PriceBook, name: str) -> list[str]:
    """Who may sell something of that name: those that list the model, and every cloud."""
    clouds = {row.provider for layer in book.layers for row in rows_in(layer) or () if row.axis != "model"}
    return [*book.owners(name), *sorted(cloud for cloud in clouds if cloud is not None)]


def _source(listed: Listed) -> str:
    source = listed.row.source
    said = ", ".join(part for part in (source.retrieved_at and f"retrieved {source.retrieved_at}", source.via) if part)
    return f"source: {source.url or 'not given'}{f' ({said})' if said else ''}"
