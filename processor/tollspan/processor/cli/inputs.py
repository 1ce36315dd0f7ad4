"""What was typed, read: instants, quantities and price books, with one line and exit code 2 for what is wrong."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Final, NoReturn, TypeAlias

import typer

from tollspan.pricing import METERS, PriceBook, load_book, shipped_book
from tollspan.pricing.money import steps_of
from tollspan.pricing.names import nearest
from tollspan.pricing.yamlfield import NUMBER

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_UNPRICED: Final = 3

_YEARS: Final = (1678, 2261)
"""Years in which prices can hold: those that lie whole in int64 nanoseconds."""
_NUMBER: Final = re.compile(rf"{NUMBER}|[+-]?(inf(inity)?|s?nan)", re.IGNORECASE)
_DIGITS: Final = 40
"""More than any quantity or amount has, before or after the point."""

Book: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--book", "--prices", envvar="TOLLSPAN_PRICES", help="Your price book (YAML), in front of the shipped one."
    ),
]
At: TypeAlias = Annotated[str | None, typer.Option(help="Instant, e.g. 2026-11-20T12:00:00Z; left out = now.")]


def fail(message: str) -> NoReturn:
    """One line to stderr, exit code 2."""
    print(f"error: {message.strip()}", file=sys.stderr)
    raise typer.Exit(EXIT_USAGE)


def book_of(path: Path | None) -> PriceBook:
    """The shipped prices, with a book in front if one is given."""
    return load_book(path) if path is not None else shipped_book()


def instant_of(at: str | None, option: str = "--at") -> datetime:
    """The instant that was typed; now when none was."""
    if at is None:
        return datetime.now(UTC)
    try:
        moment = datetime.fromisoformat(at)
    except ValueError:
        fail(f"{option} {at}: not an instant. Write it like 2026-11-20T12:00:00Z.")
    if moment.tzinfo is None and len(at) > len("2026-11-20"):
        fail(f"{option} {at}: no time zone. End it with Z or an offset.")
    if not _YEARS[0] <= moment.year <= _YEARS[1]:
        fail(f"{option} {at}: out of range. Prices are known from {_YEARS[0]} to {_YEARS[1]}.")
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def quantities_of(usage: Sequence[str]) -> dict[str, Decimal]:
    """Quantities by meter, in the meters' units."""
    quantities: dict[str, Decimal] = {}
    for item in usage:
        meter, equals, number = item.partition("=")
        meter = meter.strip()
        if not equals:
            fail(f"--usage {item}: expected METER=QUANTITY, like tokens.output=100.")
        if meter not in METERS:
            fail(f"--usage {item}: {meter!r} is not a meter. {nearest(meter, METERS)}")
        if meter in quantities:
            fail(f"--usage {item}: {meter} is given twice.")
        try:
            quantity = _decimal(number)
            steps_of(meter, quantity)
        except InvalidOperation:
            fail(f"--usage {item}: {number!r} is not a number.")
        except ValueError as error:
            fail(f"--usage {item}: {error}.")
        if quantity < 0:
            fail(f"--usage {item}: a quantity is 0 or more.")
        quantities[meter] = quantity
    return quantities


def amount_of(text: str, option: str) -> Decimal:
    """An amount of USD above 0."""
    try:
        amount = _decimal(text)
    except InvalidOperation:
        fail(f"{option} {text}: not a number. Write it like 2.99.")
    except ValueError as error:
        fail(f"{option} {text}: {error}.")
    if not amount.is_finite() or amount <= 0:
        fail(f"{option} {text}: an amount above 0 is needed.")
    return amount


def _decimal(text: str) -> Decimal:
    """A number as typed, in the digits 0 to 9; one that would take forever to work out exactly is a ValueError."""
    text = text.strip()
    if not _NUMBER.fullmatch(text):
        raise InvalidOperation(text)
    number = Decimal(text)
    if number.is_finite() and number and not -_DIGITS < int(number.as_tuple().exponent) <= number.adjusted() < _DIGITS:
        raise ValueError(f"a number with more than {_DIGITS} digits")
    return number
