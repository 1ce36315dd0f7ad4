"""``tollspan prices settle``: what a contract's volumes, commitments and free allotments come to over a period.

In: the terms of a book and the ledger's totals. Out: a credit or a shortfall for each term (`tollspan.pricing.settle`).
Nothing in the ledger changes: a span's cost does not depend on what else was used in its month. A term that is for
another period than the one asked for has no amount, and says which it is for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import typer

from tollspan.pricing import METERS, PriceBook, load_book
from tollspan.pricing.engine import instant_of as ns_of
from tollspan.pricing.patterns import ANY, is_pattern
from tollspan.pricing.rows import Interval, Term
from tollspan.pricing.selectors import SKU_SELECTORS
from tollspan.pricing.settle import ORDER, Line, Settlement, follows, months_of, other_period
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
    """Settle a contract's volume discounts, commitments and free allotments over a period, from the ledger's totals.

    A credit is below zero, what is still owed above. The costs of calls in the ledger stay as they are. A term is
    settled over the period that it is for, its own where it has both ends, else a calendar month; the others are named.

    Exit codes: 0 settled; 1 the book or the store cannot be used; 2 wrong usage.

    Example: tollspan prices settle acme.yaml --month 2026-10 --format markdown
    """
    start, end = _period(month, since, until)
    prices = load_book(book)
    terms, others, months = divided(prices.terms, Interval(ns_of(start), ns_of(end)))
    span = f"from {start:%Y-%m-%d} until {end:%Y-%m-%d}"
    if not terms and not others:
        fail(f"{book}: no volume, commitment or allotment is in force {span}.")
    if not terms:
        fail(f"{book}: nothing is to be settled {span}. {' '.join(f'{t.id}: {why}.' for t, why in others)}")
    # Here, so that the other commands do not wait for the store's libraries.
    from tollspan.processor.store import connect_for_query

    with connect_for_query(store) as reader:
        parts = [totals(reader, prices, first, after) for first, after in _bounds(months) or [(start, end)]]
    lines = [line for part, _ in parts for line in part]
    silent = sum(without for _, without in parts)
    by_month = [(monthly, len(part)) for (_, monthly), (part, _) in zip(months, parts, strict=False)]
    settlements = settled(terms, lines, months=by_month)
    if fmt is Format.table:
        print_rows([_brief(settlement) for settlement in settlements], fmt)
        for settlement in settlements:
            typer.echo(f"{settlement.term.id}: {settlement.reason}.")
        for term, why in others:
            typer.echo(f"{term.id}: not settled for this period; {why}.")
        _print_sum(settlements, lines, silent, len(others))
        return
    rows = [_full(settlement, lines, in_full=fmt is Format.json) for settlement in settlements]
    print_rows([*rows, *(_not_settled(term, why, rows[0]) for term, why in others)], fmt)


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


def divided(
    terms: Iterable[Term], period: Interval
) -> tuple[list[Term], list[tuple[Term, str]], list[tuple[Interval, list[Term]]]]:
    """Terms that hold in a period: those to be settled, the others and why they are not, and of a longer period its
    months with the terms that are for each. Those are settled first, for what they leave."""
    mine: list[Term] = []
    others: list[tuple[Term, str]] = []
    unknown: list[Term] = []  # whose credits in the period are not known as a whole
    months: list[tuple[Interval, list[Term]]] = [(month, []) for month in months_of(period)]
    holding = [term for term in terms if term.effective.meets(period)]
    for term in sorted(holding, key=lambda term: ORDER.index(term.kind)):
        why = other_period(term, period)
        earlier = ", ".join(other.id for other in unknown if follows(term, other))
        if not why and not earlier:
            mine.append(term)
            continue
        others.append((term, why or f"it comes after {earlier}, whose credits in this period are not known"))
        held = [(month, monthly) for month, monthly in months if term.effective.meets(month)]
        if earlier or not held or any(other_period(term, month) for month, _ in held):
            unknown.append(term)
            continue
        for _, monthly in held:
            monthly.append(term)
    return mine, others, months


def _bounds(months: Iterable[tuple[Interval, list[Term]]]) -> list[tuple[datetime, datetime]]:
    """First instants of months, and those after them."""
    starts = [datetime.fromtimestamp((month.start or 0) // 10**9, UTC) for month, _ in months]
    return [(start, month_of(f"{start:%Y-%m}").until) for start in starts]


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


def _not_settled(term: Term, why: str, like: Mapping[str, object]) -> dict[str, object]:
    """A row without amounts, with the columns of the others."""
    reason = f"not settled for this period; {why}"
    known = {"term": term.id, "kind": term.kind, "counts": _scope(term), "reason": reason}
    return {**dict.fromkeys(like), **known}


def _ratio(value: object) -> str | None:
    return None if value is None else str(value)


def _scope(term: Term) -> str:
    return " ".join((f"{term.provider or ANY}/{term.sku}", *((term.meter,) if term.meter != ANY else ())))


def _print_sum(settlements: list[Settlement], lines: list[Line], silent: int, others: int) -> None:
    contracted = sum((line.contracted_cost for line in lines if line.contracted_cost is not None), Decimal(0))
    worth = sum((settlement.worth for settlement in settlements), Decimal(0))
    unknown = sum(line.contracted_cost is None for line in lines)
    known = f"{text(contracted)} USD, terms {text(worth)} USD: {text(contracted + worth)} USD"
    typer.echo(f"Contracted cost of the period {known}.")
    if unknown or silent:
        typer.echo(f"Not in it: {unknown} totals without a price, and {silent} calls that told no usage.")
    if others:
        typer.echo(f"Nor {'a term that is' if others == 1 else f'{others} terms that are'} for another period.")
