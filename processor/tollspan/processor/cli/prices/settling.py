"""``tollspan prices settle``: what a contract's volumes, commitments and free allotments come to over a period.

In: the terms of a book and the ledger's totals. Out: a credit or a shortfall for each term (`tollspan.pricing.settle`).
Nothing in the ledger changes: a span's cost does not depend on what else was used in its month.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import typer

from tollspan.pricing import METERS, PriceBook, load_book
from tollspan.pricing.book import ANY, Interval, Term, is_pattern
from tollspan.pricing.engine import instant_of as ns_of
from tollspan.pricing.said import interval_text
from tollspan.pricing.selectors import SKU_SELECTORS
from tollspan.pricing.settle import Line, Settlement
from tollspan.pricing.settle import settle as settled
from tollspan.processor.cli.inputs import fail, instant_of
from tollspan.processor.cli.options import Store
from tollspan.processor.cli.output import Format, print_rows, text
from tollspan.processor.cli.prices.rows import rows_of
from tollspan.processor.errors import ConfigError
from tollspan.processor.periods import month as month_of
from tollspan.processor.queries import Rows
from tollspan.processor.queries.window import bound


def settle(
    book: Annotated[Path, typer.Argument(help="The price book (YAML) with the contract's terms under adjustments.")],
    month: Annotated[str | None, typer.Option(help="Calendar month in UTC, for example 2026-10.")] = None,
    since: Annotated[str | None, typer.Option(help="Or from this day or instant on; with --until.")] = None,
    until: Annotated[str | None, typer.Option(help="And before this one.")] = None,
    store: Store = "chdb://",
    fmt: Annotated[Format, typer.Option("--format", help="How to print the settlements.")] = Format.table,
) -> None:
    """Settle a contract's volume discounts, commitments and free allotments over a month, from the ledger's totals.

    A credit is below zero, what is still owed above. The costs of calls in the ledger stay as they are.

    Exit codes: 0 settled; 1 the book or the store cannot be used; 2 wrong usage.

    Example: tollspan prices settle acme.yaml --month 2026-10 --format markdown
    """
    start, end = _period(month, since, until)
    prices = load_book(book)
    terms = in_force(prices.terms, Interval(ns_of(start), ns_of(end)), whole_month=month is not None)
    if not terms:
        fail(f"{book}: no volume, commitment or allotment is in force from {start:%Y-%m-%d} until {end:%Y-%m-%d}.")
    # Here, so that the other commands do not wait for the store's libraries.
    from tollspan.processor.store import connect_for_query

    with connect_for_query(store) as reader:
        lines, silent = totals(reader, prices, start, end)
    settlements = settled(terms, lines)
    if fmt is Format.table:
        print_rows([_brief(settlement) for settlement in settlements], fmt)
        for settlement in settlements:
            typer.echo(f"{settlement.term.id}: {settlement.reason}.")
        _print_sum(settlements, lines, silent)
        return
    print_rows([_full(settlement, lines, in_full=fmt is Format.json) for settlement in settlements], fmt)


def _period(month: str | None, since: str | None, until: str | None) -> tuple[datetime, datetime]:
    if month is not None and since is None and until is None:
        try:
            period = month_of(month)
        except ConfigError as error:
            fail(f"--month {month}: {error}")
        return period.since, period.until
    if month is not None or since is None or until is None:
        fail("Give the period: --month 2026-10, or both --since and --until.")
    start, end = instant_of(since, "--since"), instant_of(until, "--until")
    if start >= end:
        fail(f"--until {until}: it is not after --since {since}.")
    return start, end


def in_force(terms: Iterable[Term], period: Interval, *, whole_month: bool) -> list[Term]:
    """Terms that hold in a period.

    Raises:
        ConfigError: one holds in a part of it: what was used outside must not count towards it. Or one is for a whole
            month, and the period is none.
    """
    found = [term for term in terms if term.effective.meets(period)]
    for term in found:
        if term.kind == "allotment" and not whole_month:
            raise ConfigError(f"{term.id} is an allotment for a calendar month.", "Give --month.")
        if any(period.holds(cut) and cut != period.start for cut in term.effective.cuts):
            raise ConfigError(
                f"{term.id} is in force {interval_text(term.effective)}, which is a part of the period.",
                "Settle the part on its own with --since and --until.",
            )
    return found


def totals(reader: Rows, book: PriceBook, since: datetime, until: datetime) -> tuple[list[Line], int]:
    """The ledger's totals of a period by provider, SKU and meter, in that order, and how many calls told no usage.

    A SKU is called as its price calls it, so that an alias counts as what it stands for; what was priced by a pattern,
    or by a book that is not there any more, is called as the span does.
    """
    sql = resources.files(__package__).joinpath("settle.sql").read_text(encoding="utf-8")
    rows = reader.rows(sql, {"since": bound(since, since), "until": bound(until, until)})
    asked = {row["price_id"] for row in rows}
    skus = {each.row.id: each.row.sku for each in rows_of(book.layers) if each.row.id in asked} if asked else {}
    sums: dict[tuple[str, str, str, bool, bool], list[Decimal]] = {}
    silent = sum(row["charges"] for row in rows if not row["meter"])
    for row in (row for row in rows if row["meter"]):
        provider, sku = _named(row, skus)
        key = (provider, sku, row["meter"], bool(row["priced"]), bool(row["has_list"]))
        counted = (row["quantity"], row["list_cost"] or Decimal(0), row["contracted_cost"] or Decimal(0))
        kept = sums.setdefault(key, [Decimal(0)] * 3)
        sums[key] = [one + other for one, other in zip(kept, counted, strict=True)]
    lines = [
        Line(provider or None, sku, meter, quantity, listed if has_list else None, contracted if priced else None)
        for (provider, sku, meter, priced, has_list), (quantity, listed, contracted) in sorted(sums.items())
    ]
    return lines, silent


def _named(row: Mapping[str, Any], skus: Mapping[str, str]) -> tuple[str, str]:
    """Provider and SKU of what was used, '' for a provider that was not told."""
    owner, names = SKU_SELECTORS[METERS[row["meter"]].axis]
    told = next((row[name] for name in names if row[name]), ANY)
    priced_as = skus.get(row["price_id"], ANY)
    return row[owner].lower(), told.lower() if is_pattern(priced_as) else priced_as


def _brief(settlement: Settlement) -> dict[str, object]:
    return {
        "term": settlement.term.id,
        "kind": settlement.term.kind,
        "counts": _scope(settlement.term),
        "cost": settlement.cost,
        "quantity": settlement.quantity,
        "worth": settlement.worth,
    }


def _full(settlement: Settlement, lines: list[Line], *, in_full: bool) -> dict[str, object]:
    row = _brief(settlement) | {
        "ineligible": settlement.ineligible,
        "coverage": _ratio(settlement.coverage),
        "utilisation": _ratio(settlement.utilisation),
        "unpriced": settlement.unpriced,
        "reason": settlement.reason,
    }
    if in_full:
        shares = zip(lines, settlement.shares, strict=False)
        row["shares"] = [
            {"provider": line.provider, "sku": line.sku, "meter": line.meter, "worth": share}
            for line, share in shares
            if share
        ]
    return row


def _ratio(value: object) -> str | None:
    return None if value is None else str(value)


def _scope(term: Term) -> str:
    return " ".join((f"{term.provider or ANY}/{term.sku}", *((term.meter,) if term.meter != ANY else ())))


def _print_sum(settlements: list[Settlement], lines: list[Line], silent: int) -> None:
    contracted = sum((line.contracted_cost for line in lines if line.contracted_cost is not None), Decimal(0))
    worth = sum((settlement.worth for settlement in settlements), Decimal(0))
    unknown = sum(line.contracted_cost is None for line in lines)
    known = f"{text(contracted)} USD, terms {text(worth)} USD: {text(contracted + worth)} USD"
    typer.echo(f"Contracted cost of the period {known}.")
    if unknown or silent:
        typer.echo(f"Not in it: {unknown} totals without a price, and {silent} calls that told no usage.")
