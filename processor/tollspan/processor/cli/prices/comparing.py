"""``tollspan prices diff``: what changes between two books, or between a book and what ships."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Final, Literal

import typer

from tollspan.pricing import PriceEngine, PriceRow, load_book, shipped_book
from tollspan.pricing.book import Layer
from tollspan.pricing.engine import instant_of as ns_of
from tollspan.pricing.money import decimal_of
from tollspan.pricing.patterns import ANY, is_pattern
from tollspan.pricing.rows import WHOLE, Alias, Factor, Term
from tollspan.pricing.said import holding, interval_text
from tollspan.processor.cli.explained import exact_text
from tollspan.processor.cli.inputs import fail, instant_of
from tollspan.processor.cli.output import Format, print_rows, text
from tollspan.processor.cli.prices.rows import Listed, aliases_in, conditions_text, price_text, rows_of, selectors_of

SHIPPED: Final = "shipped"
"""What stands for the shipped prices in the place of a file."""

PERCENT_DECIMALS: Final = 2


Kind = Literal["added", "removed", "changed"]


@dataclass(frozen=True, slots=True)
class Item:
    """Something of a book that can differ: a price, an alias, a factor, an adjustment, a term.

    Attributes:
        key: what makes it the same thing in another book.
        sku, meter, conditions, in_force: for people.
        text: what it says, for people; equal texts charge the same.
        rate: what a percentage is worked out from; None where there is none.
        details: what else somebody pays by, name → value.
    """

    key: tuple[object, ...]
    sku: str
    meter: str
    conditions: str
    in_force: str
    text: str
    rate: Fraction | None
    details: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Change:
    """One difference; None where there is no old or no new."""

    change: Kind
    old: Item | None
    new: Item | None


def diff(
    old: Annotated[str, typer.Argument(help="A book (YAML), or the word shipped.")],
    new: Annotated[str, typer.Argument(help="The other one.")],
    at: Annotated[
        str | None,
        typer.Option(help="Compare what is in force at this instant; left out = over all time, shipped prices now."),
    ] = None,
    fmt: Annotated[Format, typer.Option("--format", help="How to print the rows.")] = Format.table,
) -> None:
    """Compare two price books, or a book with what ships: prices that were added, removed or changed.

    A book against the shipped prices is compared price by price with what would be charged without it.

    Exit codes: 0 compared, whatever was found; 1 a book is broken; 2 wrong usage.

    Example: tollspan prices diff acme-2026.yaml acme-2027.yaml --at 2027-01-01
    """
    instant = ns_of(instant_of(at)) if at is not None or SHIPPED in (old, new) else None
    if old == new == SHIPPED:
        fail("Both are what ships. Give a book for one of them.")
    if SHIPPED in (old, new):
        assert instant is not None
        book_is_new = old == SHIPPED
        changes = list(_with_shipped(_layers(new if book_is_new else old), instant, book_is_new=book_is_new))
    else:
        changes = list(compare(_items(_layers(old), instant), _items(_layers(new), instant)))
    if not changes and fmt is Format.table:
        typer.echo("No price is different.", err=True)
        return
    print_rows([_shown(change) for change in changes], fmt)


def _layers(path: str) -> Sequence[Layer]:
    return load_book(Path(path), shipped=False).layers


def compare(old: Iterable[Item], new: Iterable[Item]) -> Iterator[Change]:
    """Differences between two books, in the order of the new one, what was removed last."""
    before, after = ({item.key: item for item in items} for items in (old, new))
    for key, item in after.items():
        earlier = before.get(key)
        if earlier is None:
            yield Change("added", None, item)
        elif _differs(earlier, item):
            yield Change("changed", earlier, item)
    for key, item in before.items():
        if key not in after:
            yield Change("removed", item, None)


def _differs(old: Item, new: Item) -> bool:
    """Whether it is different for somebody who pays; the text of the file and its sources do not matter."""
    same = old.text == new.text if old.rate is None or new.rate is None else old.rate == new.rate
    return not same or old.details != new.details


def _items(layers: Sequence[Layer], at: int | None) -> Iterator[Item]:
    """Everything in a book that somebody pays by.

    Args:
        at: only what is in force then, whenever it begins and ends; None = all, a thing being the same if it begins at
            the same instant.
    """
    for listed in rows_of(layers):
        row = listed.row
        if at is None or (row.status != "cancelled" and row.effective.holds(at)):
            yield _price(listed, whole=at is None)
    for layer in layers:
        for kind, entries in (("factor", layer.factors), ("adjustment", layer.adjustments)):
            yield from (_factor(kind, entry, at) for entry in entries if at is None or entry.effective.holds(at))
        yield from (_term(term, at) for term in layer.terms if at is None or term.effective.holds(at))
        for alias in aliases_in(layer):
            if at is None or alias.effective.holds(at):
                yield _alias(alias, at)


def _price(listed: Listed, *, whole: bool) -> Item:
    row = listed.row
    when = tuple(sorted(row.when.items()))
    start = row.effective.start if whole else None
    rates = (f"{step.above:,} {text(step.amount)}" for step in row.steps)
    details = {
        "tiers": ", ".join(f"above {rate}" for rate in rates) or "none",
        "minimum": text(row.minimum) if row.minimum is not None else "none",
        "status": row.status,
    }
    if whole:
        details["in force"] = interval_text(row.effective)
    return Item(
        (row.axis, listed.provider, row.sku, row.meter, when, row.kind, row.schedule, start),
        listed.sku,
        row.meter,
        conditions_text(row),
        holding(row),
        price_text(row),
        _rate(row),
        details,
    )


def _rate(row: PriceRow) -> Fraction:
    """USD·10¹² for a base step; nothing for what is included."""
    rate = row.rates[0][1]
    return Fraction(0) if row.kind == "included" else Fraction(rate.num, rate.den)


def _factor(kind: str, entry: Factor, at: int | None) -> Item:
    when = ", ".join(f"{key}={value}" for key, value in sorted(entry.when.items()))
    scope = (entry.provider, entry.sku, entry.meter)
    return Item(
        (kind, *scope, when, entry.effective.start if at is None else None),
        f"{entry.provider or ANY}/{entry.sku}",
        entry.meter,
        when,
        interval_text(entry.effective),
        f"{kind} × {exact_text(entry.factor)}",
        entry.factor,
        {"in force": interval_text(entry.effective)} if at is None else {},
    )


def _term(term: Term, at: int | None) -> Item:
    mode = "graduated" if term.graduated else "cliff"
    steps = ", ".join(f"above {text(above)} × {exact_text(factor)}" for above, factor in term.steps)
    said = f"volume of {term.basis}, {mode}: {steps}" if term.kind == "volume" else f"{term.kind} {text(term.amount)}"
    return Item(
        (term.kind, term.provider, term.sku, term.meter, term.effective.start if at is None else None),
        f"{term.provider or ANY}/{term.sku}",
        term.meter,
        "",
        interval_text(term.effective),
        said,
        Fraction(term.amount) if term.kind != "volume" else None,
        {"in force": interval_text(term.effective)} if at is None else {},
    )


def _alias(alias: Alias, at: int | None) -> Item:
    share = "" if alias.share == WHOLE else f" × {alias.share}"
    return Item(
        ("alias", alias.provider, alias.ref, alias.effective.start if at is None else None),
        f"{alias.provider or ANY}/{alias.ref}",
        ANY,
        "",
        interval_text(alias.effective),
        f"alias of {alias.target_provider or ANY}/{alias.target_sku}{share}",
        None,
        {"in force": interval_text(alias.effective)} if at is None else {},
    )


def _with_shipped(layers: Sequence[Layer], at: int, *, book_is_new: bool) -> Iterator[Change]:
    """Each price of a book beside the one that would apply without it; its contract as what it adds."""
    engine = PriceEngine(shipped_book())
    for listed in rows_of(layers):
        row = listed.row
        if row.status == "cancelled" or not row.effective.holds(at):
            continue
        own = _price(listed, whole=False)
        shipped = None if is_pattern(row.sku) else engine.quote(row.meter, at=at, selectors=selectors_of(row)).row
        theirs = None if shipped is None else _price(Listed("", listed.provider, shipped), whole=False)
        if theirs is None or _differs(theirs, own):
            yield _one_sided(theirs, own, book_is_new=book_is_new)
    for item in _items(layers, at):
        if item.key[0] in _BESIDE_PRICES:
            yield _one_sided(None, item, book_is_new=book_is_new)


_BESIDE_PRICES: Final = ("factor", "adjustment", "volume", "commitment", "allotment", "alias")
"""First parts of keys of what is no price."""


def _one_sided(theirs: Item | None, own: Item, *, book_is_new: bool) -> Change:
    if theirs is None:
        return Change("added", None, own) if book_is_new else Change("removed", own, None)
    return Change("changed", theirs, own) if book_is_new else Change("changed", own, theirs)


def percent(old: Fraction | None, new: Fraction | None) -> str | None:
    """By how much it rises, to two decimals, half to even; None from nothing, which no percentage leaves."""
    if not old or new is None:
        return None
    rise = (new - old) / old * 100
    return f"{decimal_of(round(rise * 10**PERCENT_DECIMALS), PERCENT_DECIMALS):+.2f}"


def _shown(change: Change) -> dict[str, object]:
    old, new = change.old, change.new
    of = new or old
    assert of is not None
    details = ""
    if old is not None and new is not None:
        pairs = ((name, old.details.get(name, "none"), said) for name, said in new.details.items())
        details = "; ".join(f"{name}: {before} → {said}" for name, before, said in pairs if before != said)
    return {
        "change": change.change,
        "sku": of.sku,
        "meter": of.meter,
        "for": of.conditions,
        "old": None if old is None else old.text,
        "new": None if new is None else new.text,
        "percent": percent(old.rate, new.rate) if old is not None and new is not None else None,
        "in_force": of.in_force,
        "details": details,
    }
