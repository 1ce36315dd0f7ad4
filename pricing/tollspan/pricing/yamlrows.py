"""Price rows of a YAML book: one entry under ``prices:`` to the rows it stands for.

In: the entry's `Field` and what the rest of the book says (`Book`). Out: `PriceRow`s in USD: one, or one for each value
of a condition that lists several, times one for each exchange rate on the way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from itertools import product
from math import prod
from typing import Final, cast
from zoneinfo import ZoneInfo, available_timezones

from tollspan.pricing.currencies import USD, ExchangeRate, UncoveredError, in_usd
from tollspan.pricing.meters import METERS
from tollspan.pricing.money import rate, steps_of, units_of
from tollspan.pricing.names import close, nearest
from tollspan.pricing.patterns import ANY
from tollspan.pricing.rows import ALWAYS, LEVELS, Kind, PriceRow, Source, Status, Step
from tollspan.pricing.schedule import DAY, Schedule, instant_text, week_of
from tollspan.pricing.selectors import WHEN_KEYS, Selectors, normalize_when, owner_of
from tollspan.pricing.yamlfield import Field

ROW_FIELDS: Final = (
    *("id", "provider", "sku", "meter", "amount", "currency", "per", "unit", "effective", "windows", "when", "tiers"),
    *("minimum", "kind", "status", "source"),
)
WINDOW_FIELDS: Final = ("tz", "days", "hours", "except")
TIERS_FIELDS: Final = ("basis", "mode", "steps")
STEP_FIELDS: Final = ("above", "amount")
SOURCE_FIELDS: Final = ("url", "retrieved_at", "via", "note", "sha256")

KINDS: Final = tuple(LEVELS)
STATUSES: Final[tuple[Status, ...]] = ("active", "announced", "cancelled", "withdrawn")
MODES: Final = {"cliff": "request_input_tokens", "graduated": "quantity"}
"""Mode of tiers → the basis it goes with: what the steps are counted in."""
MOST_ROWS: Final = 10_000
"""Rows that one entry may stand for: what its conditions list, multiplied."""
METERS_HINT: Final = "The list of them is in tollspan.pricing.meters."
DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


@dataclass(frozen=True)
class Book:
    """What a price is read by, beside its own fields.

    Attributes:
        name: of the book.
        currency: of amounts that do not say.
        calendars: dates by the name that ``except`` calls them.
        rates: of other currencies.
    """

    name: str
    currency: str
    calendars: Mapping[str, frozenset[date]]
    rates: Sequence[ExchangeRate]


def price_rows(item: Field, book: Book, position: int) -> Iterator[PriceRow]:
    """Rows of one entry; ``position`` is its place in the list, for the id of one that has none."""
    fields = item.mapping(*ROW_FIELDS, required=("meter",))
    meter = fields["meter"].text()
    if meter not in METERS:
        raise fields["meter"].error(f"{meter!r} is not a meter", nearest(meter, METERS) or METERS_HINT)
    per = fields["per"].whole(1) if "per" in fields else 1
    provider = fields["provider"].name() if "provider" in fields else ANY
    sku = fields["sku"].name() if "sku" in fields else ANY
    if METERS[meter].axis == "platform" and sku != ANY:
        raise fields["sku"].error(f"{meter} has no SKU", "Leave the field out; the provider names the price.")
    kind = cast(Kind, fields["kind"].choice(*KINDS)) if "kind" in fields else "list"
    steps, graduated = _tiers(fields["tiers"]) if "tiers" in fields else ((), False)
    row = PriceRow(
        id=fields["id"].text() if "id" in fields else f"{book.name}/{provider}/{sku}/{meter}#{position + 1}",
        meter=meter,
        sku=sku,
        amount=_amount(item, fields, kind),
        provider=None if provider == ANY else owner_of(METERS[meter].axis, provider),
        per=per,
        unit=unit_of(fields["unit"], meter) if "unit" in fields else METERS[meter].unit,
        effective=fields["effective"].interval() if "effective" in fields else ALWAYS,
        schedule=_schedule(fields["windows"], book) if "windows" in fields else None,
        steps=steps,
        graduated=graduated,
        minimum=_minimum(fields["minimum"], meter) if "minimum" in fields else None,
        kind=kind,
        status=cast(Status, fields["status"].choice(*STATUSES)) if "status" in fields else "active",
        source=read_source(fields["source"]) if "source" in fields else Source(),
    )
    pieces = [row] if kind == "included" else _in_usd(row, item, fields, book)
    for piece in pieces:
        _check_rates(piece, item, fields)
    choices = conditions(fields["when"]) if "when" in fields else []
    for suffix, when in combined(choices, fields.get("when", item), len(pieces)):
        for piece in pieces:
            yield replace(piece, id=piece.id + suffix, when=when)


def combined(
    choices: Sequence[tuple[str, list[str]]], field: Field, pieces: int = 1
) -> Iterator[tuple[str, dict[str, str]]]:
    """Every combination of conditions, and the end of its id: the values that tell it from the others.

    Args:
        choices: from `conditions`.
        field: where they stand.
        pieces: rows for each of them.
    """
    rows = prod(len(values) for _, values in choices) * pieces
    if rows > MOST_ROWS:
        raise field.error(
            f"the conditions stand for {rows} rows, more than {MOST_ROWS}", "List fewer values, or write * for any."
        )
    for values in product(*(values for _, values in choices)):
        several = [value for value, (_, among) in zip(values, choices, strict=True) if len(among) > 1]
        when = {key: value for (key, _), value in zip(choices, values, strict=True)}
        yield "".join(f"@{value}" for value in several), when


def conditions(field: Field) -> list[tuple[str, list[str]]]:
    """Selectors with the values of which one must be met; a selector that may be anything is left out."""
    choices: list[tuple[str, list[str]]] = []
    for key, wanted in field.mapping(*WHEN_KEYS).items():
        entries = list(wanted.items()) if wanted.is_sequence else [wanted]
        values = [_condition(key, entry) for entry in entries]
        if not values or len(set(values)) < len(values):
            raise wanted.error("expected a value, or a list of different ones")
        if ANY not in values:
            choices.append((key, values))
    return choices


def unit_of(field: Field, meter: str) -> str:
    """A unit that quantities of the meter can be stated in."""
    unit = field.text()
    units = units_of(meter)
    if unit not in units:
        raise field.error(f"{unit!r} is not a unit of {meter}", f"Use {', '.join(units)}.")
    return unit


def currency_of(field: Field, rates: Sequence[ExchangeRate]) -> str:
    """A currency that the book has a rate for."""
    currency = field.text()
    known = (USD, *sorted({rate.currency for rate in rates}))
    if currency not in known:
        hint = nearest(currency, known) if close(currency, known) else ""
        raise field.error(f"no exchange rate for {currency!r}", hint or "List its rates under 'exchange_rates:'.")
    return currency


def read_source(field: Field) -> Source:
    """Where something was read; a hash is one of SHA-256 in hexadecimal, a day exists."""
    fields = field.mapping(*SOURCE_FIELDS)
    texts = {name: value.text() for name, value in fields.items()}
    if "retrieved_at" in fields:
        fields["retrieved_at"].instant()
    if "sha256" in fields:
        texts["sha256"] = digest = texts["sha256"].lower()
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise fields["sha256"].error("is not a SHA-256", "It has 64 hexadecimal digits.")
    return Source(**texts)


def _amount(item: Field, fields: Mapping[str, Field], kind: Kind) -> Decimal:
    if kind != "included":
        if "amount" not in fields:
            raise item.error(
                "'amount' is missing", "What costs nothing has amount 0; what is prepaid has kind included."
            )
        return fields["amount"].amount()
    for name in ("tiers", "minimum", "currency"):
        if name in fields:
            raise fields[name].error("what is included costs nothing", "Leave the field out.")
    if "amount" in fields and fields["amount"].amount():
        raise fields["amount"].error("what is included costs nothing", "Leave the field out, or write another kind.")
    return Decimal(0)


def _minimum(field: Field, meter: str) -> Decimal:
    minimum = field.amount()
    try:
        steps_of(meter, minimum)
    except ValueError as error:
        raise field.error(str(error)) from None
    return minimum


def _in_usd(row: PriceRow, item: Field, fields: Mapping[str, Field], book: Book) -> list[PriceRow]:
    currency = currency_of(fields["currency"], book.rates) if "currency" in fields else book.currency
    where = fields.get("amount", item)
    try:
        return in_usd(row, currency, book.rates)
    except UncoveredError as error:
        since = f" from {instant_text(error.gap.start)}" if error.gap.start is not None else ""
        until = f" until {instant_text(error.gap.end)}" if error.gap.end is not None else ""
        raise where.error(
            f"no {currency} exchange rate{since or (until and ' from the beginning')}{until}",
            "Add the rate, or bound 'effective'.",
        ) from None
    except ValueError as error:
        raise where.error(str(error), "Use a larger 'per', or a rate with fewer decimals.") from None


def _check_rates(row: PriceRow, item: Field, fields: Mapping[str, Field]) -> None:
    tiers = fields.get("tiers", item)
    where = (fields.get("amount", item), *(tiers for _ in row.steps))
    for amount, field in zip((row.amount, *(step.amount for step in row.steps)), where, strict=True):
        try:
            rate(row.meter, amount, row.per, row.unit)
        except OverflowError as error:
            raise field.error(str(error), "Check 'per' and 'unit'.") from None


def _condition(key: str, entry: Field) -> str:
    value = normalize_when(key, entry.text())
    spans: str | None = getattr(Selectors(**{key: value}).normalized(), key)
    if value != ANY and spans != value:
        hint = _NEVER.get((key, value)) or ("Leave it out." if spans is None else f"Write {spans}.")
        raise entry.error(f"no span has {key} {value!r}", hint)
    return value


_NEVER: Final = {
    ("service_tier", "batch"): "Write processing: batch.",
    ("residency", "global"): "A price that does not name a residency is the global one.",
}
"""Conditions that spans are never in, because the same is said in another way → how."""


def _tiers(field: Field) -> tuple[tuple[Step, ...], bool]:
    """Steps, and whether they are graduated."""
    fields = field.mapping(*TIERS_FIELDS, required=("steps",))
    basis = fields["basis"].choice(*MODES.values()) if "basis" in fields else None
    if "mode" in fields:
        mode = fields["mode"].choice(*MODES)
    else:
        mode = next(mode for mode, of in MODES.items() if basis in (of, None))
    if basis not in (MODES[mode], None):
        raise fields["basis"].error(
            f"{mode} tiers are not counted by {basis}", f"{mode} goes with basis: {MODES[mode]}."
        )
    graduated = mode == "graduated"
    steps: list[Step] = []
    for item in fields["steps"].some():
        step = item.mapping(*STEP_FIELDS, required=STEP_FIELDS)
        above = step["above"].whole(1 if graduated else 0)
        if steps and above <= steps[-1].above:
            raise step["above"].error("steps must ascend", "Sort them by 'above'.")
        steps.append(Step(above, step["amount"].amount()))
    return tuple(steps), graduated


def _schedule(field: Field, book: Book) -> Schedule:
    """Windows as one schedule; they are in one time zone, with the same exceptions."""
    stretches: list[tuple[int, int]] = []
    shared: tuple[str, frozenset[date]] | None = None
    for item in field.some():
        fields = item.mapping(*WINDOW_FIELDS)
        place = (
            _tz(fields["tz"]) if "tz" in fields else "UTC",
            _exceptions(fields["except"], book) if "except" in fields else frozenset(),
        )
        if shared not in (place, None):
            raise item.error("windows of one price have one 'tz' and one 'except'", "Write a price for each.")
        shared = place
        days = (
            sorted({day for entry in fields["days"].some() for day in _days(entry)}) if "days" in fields else range(7)
        )
        hours = [_hours(entry) for entry in fields["hours"].some()] if "hours" in fields else [(0, DAY)]
        for day in days:
            for start, end in hours:
                stretches.append((day * DAY + start, day * DAY + (end if end > start else end + DAY)))
    tz, exceptions = shared or ("UTC", frozenset())
    return Schedule(week_of(stretches), tz, exceptions)


def _tz(field: Field) -> str:
    name = field.text()
    if name in ("UTC", "Z"):
        return "UTC"
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        near = close(name, available_timezones())
        hint = f"Did you mean {', '.join(near)}?" if near else "Write it like Europe/Berlin."
        raise field.error(f"{name!r} is not a time zone", hint) from None
    return name


def _exceptions(field: Field, book: Book) -> frozenset[date]:
    if field.is_sequence:
        return field.dates()
    name = field.text()
    if name not in book.calendars:
        hint = nearest(name, book.calendars) if book.calendars else "List its dates under 'calendars:'."
        raise field.error(f"no calendar {name!r}", hint)
    return book.calendars[name]


def _days(entry: Field) -> Sequence[int]:
    first, _, last = entry.name().partition("-")
    if first not in DAYS or (last and last not in DAYS):
        raise entry.error(f"{entry.text()!r} is not a day", "Use mon ... sun, or a range like mon-fri.")
    start, end = DAYS.index(first), DAYS.index(last or first)
    return range(start, end + 1) if start <= end else [*range(start, 7), *range(end + 1)]


def _hours(entry: Field) -> tuple[int, int]:
    first, _, last = entry.text().partition("-")
    start, end = _time(first), _time(last)
    if start is None or end is None or start in (end, DAY):
        raise entry.error(f"{entry.text()!r} is not a stretch of a day", 'Write it like "22:00-06:00".')
    return start, end


def _time(text: str) -> int | None:
    hour, _, minute = text.strip().partition(":")
    if not all(part.isascii() and part.isdigit() for part in (hour, minute)) or len(minute) != 2 or len(hour) > 2:
        return None
    total = int(hour) * 60 + int(minute)
    return total * 60 * 10**9 if total <= 24 * 60 and int(minute) < 60 else None
