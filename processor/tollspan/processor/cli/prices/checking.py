"""``tollspan prices check``: what is wrong with a book, and what may be.

In: a book, or what ships. Out: findings. A book that does not load is an error, told with file, line, field and reason;
everything else is a warning: a book may well be meant that way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Final, Literal

import typer

from tollspan.pricing import METERS, BookError, PriceBook, PriceEngine, PriceRow, corrections, load_book, shipped_book
from tollspan.pricing.book import TableLayer
from tollspan.pricing.engine import instant_of as ns_of
from tollspan.pricing.names import close, nearest
from tollspan.pricing.patterns import ANY, is_pattern
from tollspan.pricing.rows import Factor, Term
from tollspan.pricing.schedule import instant_text
from tollspan.pricing.selectors import SKU_SELECTORS, owner_of, provider_of
from tollspan.pricing.suggestions import providers, rows_in
from tollspan.processor.cli.inputs import EXIT_FAILED, At, instant_of
from tollspan.processor.cli.output import Format, print_rows
from tollspan.processor.cli.prices.rows import aliases_in, selectors_of

OLD_DAYS: Final = 180
"""Days after which a price should be looked up again, unless the command says otherwise."""

_HALVES: Final = {"tokens.input.uncached": "tokens.output", "tokens.output": "tokens.input.uncached"}
_ONE_SIDED: Final = ("embed", "rerank", "moderation", "whisper", "tts")
"""Parts of names of models that use tokens on one side only."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a person should look at.

    Attributes:
        level: ``error`` (the book cannot be used) | ``warning``.
        what: what it is about: a price's id, a SKU, a file.
        finding: one sentence, and one that says what to do.
    """

    level: Literal["error", "warning"]
    what: str
    finding: str


def check(
    book: Annotated[Path | None, typer.Argument(help="A price book (YAML); left out = what ships.")] = None,
    shipped: Annotated[bool, typer.Option("--shipped", help="Check what ships, too.")] = False,
    at: At = None,
    older_than: Annotated[int, typer.Option(min=1, help="Warn of prices that were read more days ago.")] = OLD_DAYS,
    strict: Annotated[bool, typer.Option("--strict", help="Fail on warnings, too.")] = False,
    fmt: Annotated[Format, typer.Option("--format", help="How to print the findings.")] = Format.table,
) -> None:
    """Check a price book: that it loads, and what in it looks like a mistake or is out of date.

    Warned of are names that look misspelt or lead nowhere, meters of a model that stay without a price or at another
    book's, prices that ended, that were announced and whose time has come, and that were read long ago. Of what ships:
    corrections that the data behind them has caught up with.

    Exit codes: 0 the book can be used; 1 it cannot, or --strict and there are warnings; 2 wrong usage.

    Example: tollspan prices check acme.yaml --older-than 90 --strict
    """
    moment = instant_of(at)
    findings: list[Finding] = []
    layers: list[TableLayer] = []
    if book is not None:
        try:
            prices = load_book(book)
        except BookError as error:
            findings.append(Finding("error", str(book), str(error)))
        else:
            own = prices.layers[0]
            assert isinstance(own, TableLayer)
            layers.append(own)
            findings.extend((*out_of_date(own, moment, older_than), *mistakes(own, prices, moment)))
    if book is None or shipped:
        tables = (getattr(layer, "table", layer) for layer in shipped_book().layers)
        for table in (table for table in tables if isinstance(table, TableLayer)):
            layers.append(table)
            findings.extend(out_of_date(table, moment, older_than))
        findings.extend(caught_up())
    _print(findings, layers, fmt)
    if any(finding.level == "error" for finding in findings) or (strict and findings):
        raise typer.Exit(EXIT_FAILED)


def _print(findings: list[Finding], layers: list[TableLayer], fmt: Format) -> None:
    if fmt is not Format.table:
        print_rows([{"level": f.level, "what": f.what, "finding": f.finding} for f in findings], fmt)
        return
    for finding in findings:
        about = "" if finding.finding.startswith(finding.what) else f"{finding.what}: "
        typer.echo(f"{finding.level}: {about}{finding.finding}")
    for layer in layers:
        typer.echo(f"{layer.name} {layer.version}: {len(layer.rows)} prices.")
    if not findings:
        typer.echo("Nothing to complain of.")


def out_of_date(layer: TableLayer, at: datetime, older_than: int) -> Iterator[Finding]:
    """Prices to look up again: those announced for a day that is past, those read more days ago than that."""
    yield from _announced(layer, ns_of(at))
    yield from _old(layer, at.date(), older_than)


def mistakes(layer: TableLayer, book: PriceBook, at: datetime) -> Iterator[Finding]:
    """What in a user's book is probably not meant.

    Args:
        layer: to be checked, the front one of the book.
        book: it, and what stands behind it.
        at: the instant that is now.
    """
    instant = ns_of(at)
    behind = PriceBook(book.layers[1:])
    engine, without = PriceEngine(book), PriceEngine(behind)
    by_sku: dict[tuple[str, str | None, str], list[PriceRow]] = {}
    for row in layer.rows:
        if not is_pattern(row.sku):
            by_sku.setdefault((row.axis, row.provider, row.sku), []).append(row)
    for rows in by_sku.values():
        yield from _misspelt(rows[0], behind)
        yield from _ended(rows, engine, instant)
        yield from _left_out(rows, engine, without, instant)
    yield from _leads_nowhere(layer, book)


def _sku(row: PriceRow) -> str:
    return f"{row.provider or '*'}/{row.sku}"


def _announced(layer: TableLayer, at: int) -> Iterator[Finding]:
    for row in layer.rows:
        if row.status == "announced" and row.effective.start is not None and row.effective.holds(at):
            since = instant_text(row.effective.start)
            yield Finding(
                "warning",
                row.id,
                f"it was announced for {since}, which is past. See whether it came, and write status: active.",
            )


def _old(layer: TableLayer, today: date, older_than: int) -> Iterator[Finding]:
    """Sources read long ago, each once."""
    aged: dict[tuple[str, str], list[PriceRow]] = {}
    for row in layer.rows:
        try:
            read = date.fromisoformat(row.source.retrieved_at[:10])
        except ValueError:
            continue
        still = row.effective.end is None and row.status != "cancelled"  # what is over does not change any more
        if (today - read).days > older_than and still:
            aged.setdefault((row.source.url, row.source.retrieved_at), []).append(row)
    for (url, read_at), rows in aged.items():
        more = f" and {len(rows) - 1} more" if rows[1:] else ""
        yield Finding(
            "warning",
            rows[0].id + more,
            f"read on {read_at}, more than {older_than} days ago. Look again at {url or 'where it is from'}.",
        )


def _misspelt(row: PriceRow, behind: PriceBook) -> Iterator[Finding]:
    selectors = selectors_of(row).normalized()
    known = behind.names(row.axis, selectors)
    if not known or any(not match.sku.anything for match in behind.matches(row.axis, selectors)):
        return
    near = [name for name in close(row.sku, known) if _typo(row.sku, name.lower())]
    if near:
        yield Finding("warning", _sku(row), f"no other book knows it. Is it meant to be {' or '.join(near)}?")


def _typo(one: str, other: str) -> bool:
    """Whether two names differ as by a slip of the finger, and not as one version from another."""
    from difflib import SequenceMatcher

    if [char for char in one if char.isdigit()] != [char for char in other if char.isdigit()]:
        return False
    return SequenceMatcher(None, one, other).ratio() >= 0.85


def _ended(rows: list[PriceRow], engine: PriceEngine, at: int) -> Iterator[Finding]:
    for meter in dict.fromkeys(row.meter for row in rows):
        of_meter = [row for row in rows if row.meter == meter and row.status != "cancelled"]
        ends = [row.effective.end for row in of_meter]
        latest = max((end for end in ends if end is not None), default=None)
        if not of_meter or None in ends or latest is None or latest > at:
            continue
        row = of_meter[-1]
        if engine.quote(meter, at=at, selectors=selectors_of(row)).row is None:
            when = instant_text(latest)
            yield Finding("warning", _sku(row), f"{meter} has no price since {when}. Add the price that came after.")


def _left_out(rows: list[PriceRow], engine: PriceEngine, without: PriceEngine, at: int) -> Iterator[Finding]:
    """Meters of a model that the book leaves to others, or to nobody."""
    row = rows[0]
    if row.axis != "model":
        return
    selectors = selectors_of(row)
    own = {each.meter for each in rows if each.effective.holds(at) and each.status != "cancelled"}
    for meter, other in _HALVES.items():
        one_sided = any(part in row.sku for part in _ONE_SIDED)
        if meter in own and not one_sided and engine.quote(other, at=at, selectors=selectors).row is None:
            yield Finding(
                "warning", _sku(row), f"it has a price for {meter} and none for {other}: calls will be partial. Add it."
            )
    quotes = ((meter, without.quote(meter, at=at, selectors=selectors)) for meter in METERS if meter not in own)
    left = [meter for meter, quote in quotes if quote.row is not None and quote.row.meter == meter]
    if own and left:
        yield Finding(
            "warning",
            _sku(row),
            f"the prices of {', '.join(left)} are not in this book; those of the books behind it apply.",
        )


def _leads_nowhere(layer: TableLayer, book: PriceBook) -> Iterator[Finding]:
    """Aliases whose price no book has, and parts of a contract with a provider that no book names."""
    for alias in aliases_in(layer):
        found = (
            skus
            for axis in SKU_SELECTORS
            for each in book.layers
            for skus in each.skus(axis, owner_of(axis, alias.target_provider), alias.target_sku)
        )
        if not any(not sku.anything for _, sku in found):
            target = f"{alias.target_provider or ANY}/{alias.target_sku}"
            yield Finding("warning", alias.ref, f"it is an alias of {target}, and no book has a price of that.")
    known = {*providers(book), *(row.provider for each in book.layers for row in rows_in(each) or ())}
    entries: tuple[Factor | Term, ...] = (*layer.factors, *layer.adjustments, *layer.terms)
    for entry in entries:
        if entry.provider is not None and not {entry.provider, provider_of(entry.provider)} & known:
            near = nearest(entry.provider, sorted(name for name in known if name is not None))
            yield Finding("warning", entry.id, f"no book has prices of {entry.provider}. {near}".strip())


def caught_up() -> Iterator[Finding]:
    """Corrections of what ships that are not needed any more."""
    for needless in corrections.caught_up():
        yield Finding("warning", needless.id, "the data behind this correction now says the same. Take it out.")
