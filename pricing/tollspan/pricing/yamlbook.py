"""Price books in YAML: the user's own, and the infrastructure prices that ship.

In: a file. Out: a `TableLayer`, or one `BookError` that names file, line, field and reason. Numbers are read as the
text that stands in the file, so an amount is exact whether it is quoted or not.

The format::

    price_book: {id: acme-2026, version: 14, currency: USD}      # id and version stand in the ledger
    aliases:
      - ref: my-prod-chat                  # the name on the span
        provider: azure.ai.openai          # the span's provider; left out = any
        sku: azure.ai.openai/gpt-4o        # provider/sku of what it is, in this book or one behind it
        from: 2025-12-02T00:00:00Z         # instants, half-open; left out = open
        to: null
    prices:
      - id: acme/input                     # left out = made from the other fields
        provider: acme                     # provider or cloud provider; left out = any
        sku: my-model-*                    # model, device or host type; * and ? are wildcards; left out = *
        meter: tokens.input.uncached       # a name from the list of meters
        amount: "1.32"                     # USD, exact
        per: 1000000                       # left out = 1
        unit: token                        # left out = the meter's own; seconds also as minute, hour; bytes as GB, GiB
        effective: [2026-08-16T16:00:00Z, null]
        windows:                           # stretches of the week, UTC; left out = always
          - {days: [mon-fri], hours: ["01:00-04:00", "06:00-10:00"]}
        when: {service_tier: standard, processing: online, region: us-east-1}
        tiers: {basis: request_input_tokens, mode: cliff, steps: [{above: 200000, amount: "2.64"}]}
        minimum: 10                        # least quantity charged when any was used, in the meter's unit
        kind: contract                     # list (default) | contract | amortised | estimate | included
        source: {url: "https://...", retrieved_at: 2026-11-20}

Under ``when`` stand ``service_tier``, ``processing``, ``region``, ``cloud_provider``, ``host_type`` and ``device``,
each with a value or a list of them (a row for each); a selector that is left out is not asked for. More conditions win
over fewer, then a row with windows over one without. Rows that would tie for some span are an error. Names are compared
in lower case, and model providers in any of their spellings (`selectors.PROVIDERS`): ``azure``, ``azure.ai.openai`` and
``azure_openai`` are one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from itertools import product
from pathlib import Path
from typing import Any, Final

from tollspan.pricing.book import ALWAYS, DAY, WEEK, Alias, Interval, PriceRow, Source, Step, TableLayer
from tollspan.pricing.errors import BookError
from tollspan.pricing.meters import METERS
from tollspan.pricing.money import UNIT_PRICE_DECIMALS, rate, steps_of, units_of
from tollspan.pricing.names import nearest
from tollspan.pricing.overlaps import tied_aliases, tied_rows
from tollspan.pricing.selectors import WHEN_KEYS, normalize_when, owner_of, provider_of

KINDS: Final = ("list", "contract", "amortised", "estimate", "included")
_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NULL: Final = "tag:yaml.org,2002:null"


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
    root = Field(_compose(content, file), file)
    fields = root.mapping("price_book", "aliases", "prices")
    header = fields["price_book"].mapping("id", "version", "currency") if "price_book" in fields else {}
    if "currency" in header and header["currency"].text() != "USD":
        raise header["currency"].error("only USD is supported", "Convert the amounts to USD.")
    name = header["id"].text() if "id" in header else Path(file).stem
    version = header["version"].text() if "version" in header else ""
    digest = hashlib.sha256(content).hexdigest()[:8]

    listed = list(fields["prices"].items()) if "prices" in fields else []
    alias_fields = list(fields["aliases"].items()) if "aliases" in fields else []
    if not listed and not alias_fields:
        raise root.error("the book holds no prices and no aliases", "List rows under 'prices:'.")
    placed = [(row, item) for position, item in enumerate(listed) for row in _prices(item, name, position)]
    rows, price_fields = [row for row, _ in placed], [item for _, item in placed]
    aliases = [_alias(item) for item in alias_fields]
    one_spelling = [replace(alias, provider=provider_of(alias.provider)) for alias in aliases]
    for tie, items in ((tied_rows(rows), price_fields), (tied_aliases(one_spelling), alias_fields)):
        if tie is not None:
            first, second, reason = tie
            raise items[second].error(f"{reason} (line {items[first].line})", "Change one of the two.")
    return TableLayer(name, f"{version}.{digest}" if version else digest, rows, aliases)


@dataclass(frozen=True)
class Field:
    """A YAML node with its place, for reading values and for errors that name file, line and field."""

    node: Any
    file: str
    path: str = ""

    @property
    def line(self) -> int:
        return int(self.node.start_mark.line) + 1 if self.node is not None else 1

    def error(self, reason: str, hint: str = "") -> BookError:
        where = f"{self.file}:{self.line}: " + (f"{self.path}: " if self.path else "")
        return BookError(f"{where}{reason}.", hint)

    def mapping(self, *known: str, required: tuple[str, ...] = ()) -> dict[str, Field]:
        """Fields of a mapping by name, those that are null left out."""
        pairs = getattr(self.node, "value", None)
        if getattr(self.node, "id", None) != "mapping" or not isinstance(pairs, list):
            raise self.error(f"expected a mapping with {', '.join(known)}")
        found: dict[str, Field] = {}
        seen: set[str] = set()
        for key, value in pairs:
            name = str(key.value)
            inner = Field(value, self.file, f"{self.path}.{name}" if self.path else name)
            here = Field(key, self.file, inner.path)
            if name in seen:
                raise here.error("given twice")
            if name not in known:
                raise here.error("unknown field", nearest(name, known))
            seen.add(name)
            if value.tag != _NULL:
                found[name] = inner
        for name in required:
            if name not in found:
                raise self.error(f"{name!r} is missing")
        return found

    def items(self) -> Iterator[Field]:
        """Elements of a sequence."""
        if not self.is_sequence:
            raise self.error("expected a list")
        for position, value in enumerate(self.node.value):
            yield Field(value, self.file, f"{self.path}[{position}]")

    @property
    def is_sequence(self) -> bool:
        return getattr(self.node, "id", None) == "sequence"

    @property
    def is_null(self) -> bool:
        return bool(self.node.tag == _NULL)

    def text(self) -> str:
        if getattr(self.node, "id", None) != "scalar" or self.is_null or not self.node.value.strip():
            raise self.error("expected a value")
        return str(self.node.value).strip()

    def name(self) -> str:
        return self.text().lower()

    def choice(self, *known: str) -> str:
        text = self.text()
        if text not in known:
            raise self.error(f"{text!r} is not one of {', '.join(known)}")
        return text

    def whole(self, least: int) -> int:
        text = self.text().replace("_", "")
        if not text.isascii() or not text.isdigit() or int(text) < least:
            raise self.error(f"{text!r} is not a whole number of at least {least}")
        return int(text)

    def amount(self) -> Decimal:
        text = self.text()
        try:
            value = Decimal(text)
        except InvalidOperation:
            raise self.error(f"{text!r} is not a decimal number", "Write it like 1.25.") from None
        if not value.is_finite() or value < 0:
            raise self.error(f"{text!r} is not an amount of 0 or more")
        if -int(value.as_tuple().exponent) > UNIT_PRICE_DECIMALS or value >= 10**20:
            raise self.error(f"{text!r} has more digits than a price can have", "Use a larger 'per'.")
        return value

    def instant(self) -> int:
        text = self.text()
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise self.error(f"{text!r} is not an instant", "Write it like 2026-11-20T12:00:00Z.") from None
        if moment.tzinfo is None:
            if len(text) > len("2026-11-20"):
                raise self.error(f"{text!r} has no time zone", "End it with Z or an offset.")
            moment = moment.replace(tzinfo=UTC)  # a date is its first instant in UTC
        return (moment - _EPOCH) // timedelta(microseconds=1) * 1000

    def interval(self) -> Interval:
        bounds = list(self.items())
        if len(bounds) != 2:
            raise self.error("expected [from, to], either may be null")
        return self.ordered(*(None if bound.is_null else bound.instant() for bound in bounds))

    def ordered(self, start: int | None, end: int | None) -> Interval:
        if start is not None and end is not None and start >= end:
            raise self.error("ends before it begins")
        return Interval(start, end)


def _compose(content: bytes, file: str) -> Any:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return yaml.compose(content, Loader=loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else 1
        hint = "Quote a name that begins with '*'." if "alias" in (error.problem or "") else ""
        raise BookError(f"{file}:{line}: not valid YAML: {error.problem or error.context}.", hint) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BookError(f"{file}:1: not valid YAML: {' '.join(str(error).split())}.") from error


def _prices(item: Field, book: str, position: int) -> Iterator[PriceRow]:
    """Rows of one entry: one, or one for each value of a condition that lists several."""
    fields = item.mapping(
        *(
            "id",
            "provider",
            "sku",
            "meter",
            "amount",
            "per",
            "unit",
            "effective",
            "windows",
            "when",
            "tiers",
            "minimum",
        ),
        *("kind", "source"),
        required=("meter", "amount"),
    )
    meter = fields["meter"].text()
    if meter not in METERS:
        raise fields["meter"].error(f"{meter!r} is not a meter", nearest(meter, METERS))
    units = units_of(meter)
    unit = fields["unit"].text() if "unit" in fields else METERS[meter].unit
    if unit not in units:
        raise fields["unit"].error(f"{unit!r} is not a unit of {meter}", f"Use {', '.join(units)}.")
    per = fields["per"].whole(1) if "per" in fields else 1
    provider = fields["provider"].name() if "provider" in fields else None
    sku = fields["sku"].name() if "sku" in fields else "*"
    if METERS[meter].axis == "platform" and sku != "*":
        raise fields["sku"].error(f"{meter} has no SKU", "Leave the field out; the provider names the price.")
    amount = fields["amount"].amount()
    steps = _steps(fields["tiers"]) if "tiers" in fields else ()
    for value, where in ((amount, fields["amount"]), *((s.amount, fields.get("tiers", item)) for s in steps)):
        try:
            rate(meter, value, per, unit)
        except OverflowError as error:
            raise where.error(str(error)) from None
    minimum = fields["minimum"].amount() if "minimum" in fields else None
    if minimum is not None:
        try:
            steps_of(meter, minimum)
        except ValueError as error:
            raise fields["minimum"].error(str(error)) from None
    source = {}
    if "source" in fields:
        source = {k: v.text() for k, v in fields["source"].mapping("url", "retrieved_at", "via", "note").items()}
    row = PriceRow(
        id=fields["id"].text() if "id" in fields else f"{book}/{provider or '*'}/{sku}/{meter}#{position + 1}",
        meter=meter,
        sku=sku,
        amount=amount,
        provider=None if provider == "*" else owner_of(METERS[meter].axis, provider),
        per=per,
        unit=unit,
        effective=fields["effective"].interval() if "effective" in fields else ALWAYS,
        windows=_windows(fields["windows"]) if "windows" in fields else (),
        steps=steps,
        minimum=minimum,
        kind=fields["kind"].choice(*KINDS) if "kind" in fields else "list",
        source=Source(**source),
    )
    choices = _conditions(fields["when"]) if "when" in fields else []
    for values in product(*(values for _, values in choices)):
        several = [value for value, (_, among) in zip(values, choices, strict=True) if len(among) > 1]
        when = {key: value for (key, _), value in zip(choices, values, strict=True)}
        yield replace(row, id="@".join([row.id, *several]), when=when)


def _conditions(field: Field) -> list[tuple[str, list[str]]]:
    """Selectors with the values of which one must be met; a selector that may be anything is left out."""
    choices: list[tuple[str, list[str]]] = []
    for key, wanted in field.mapping(*WHEN_KEYS).items():
        entries = list(wanted.items()) if wanted.is_sequence else [wanted]
        values = [normalize_when(key, entry.text()) for entry in entries]
        if not values or len(set(values)) < len(values):
            raise wanted.error("expected a value, or a list of different ones")
        if "*" not in values:
            choices.append((key, values))
    return choices


def _steps(tiers: Field) -> tuple[Step, ...]:
    fields = tiers.mapping("basis", "mode", "steps", required=("steps",))
    if "basis" in fields:
        fields["basis"].choice("request_input_tokens")
    if "mode" in fields:
        fields["mode"].choice("cliff")
    steps: list[Step] = []
    for item in fields["steps"].items():
        step = item.mapping("above", "amount", required=("above", "amount"))
        above = step["above"].whole(0)
        if steps and above <= steps[-1].above:
            raise step["above"].error("steps must ascend")
        steps.append(Step(above, step["amount"].amount()))
    if not steps:
        raise fields["steps"].error("expected at least one step")
    return tuple(steps)


def _windows(field: Field) -> tuple[tuple[int, int], ...]:
    """Stretches of the week in ns since Monday 00:00 UTC, sorted, those that touch joined."""
    stretches: list[tuple[int, int]] = []
    for item in field.items():
        fields = item.mapping("tz", "days", "hours")
        if "tz" in fields and fields["tz"].text() not in ("UTC", "Z"):
            raise fields["tz"].error("only UTC is supported", "State the hours in UTC.")
        days = (
            sorted({day for entry in fields["days"].items() for day in _days(entry)}) if "days" in fields else range(7)
        )
        hours = [_hours(entry) for entry in fields["hours"].items()] if "hours" in fields else [(0, DAY)]
        for day in days:
            for start, end in hours:
                stretches.extend(_wrapped(day * DAY + start, day * DAY + (end if end > start else end + DAY)))
    joined: list[tuple[int, int]] = []
    for start, end in sorted(stretches):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return tuple(joined)


def _wrapped(start: int, end: int) -> list[tuple[int, int]]:
    """A stretch that may run past Sunday, cut at the week's end."""
    return [(start, end)] if end <= WEEK else [(start, WEEK), (0, end - WEEK)]


def _days(entry: Field) -> range | list[int]:
    first, _, last = entry.name().partition("-")
    if first not in _DAYS or (last and last not in _DAYS):
        raise entry.error(f"{entry.text()!r} is not a day", "Use mon ... sun, or a range like mon-fri.")
    start, end = _DAYS.index(first), _DAYS.index(last or first)
    return range(start, end + 1) if start <= end else [*range(start, 7), *range(end + 1)]


def _hours(entry: Field) -> tuple[int, int]:
    start, dash, end = entry.text().partition("-")
    bounds = [_time(part) for part in (start, end)] if dash else []
    if len(bounds) != 2 or None in bounds or bounds[0] == bounds[1]:
        raise entry.error(f"{entry.text()!r} is not a stretch of a day", 'Write it like "22:00-06:00".')
    return bounds[0] or 0, bounds[1] or 0


def _time(text: str) -> int | None:
    hour, colon, minute = text.strip().partition(":")
    if not (colon and hour.isascii() and hour.isdigit() and minute.isascii() and minute.isdigit() and len(minute) == 2):
        return None
    total = int(hour) * 60 + int(minute)
    return total * 60 * 10**9 if total <= 24 * 60 and int(minute) < 60 else None


def _alias(item: Field) -> Alias:
    fields = item.mapping("ref", "provider", "sku", "from", "to", required=("ref", "sku"))
    provider, slash, sku = fields["sku"].name().partition("/")
    if not slash:
        raise fields["sku"].error("expected provider/sku", "Write it like openai/gpt-5-mini.")
    bounds = [fields[name].instant() if name in fields else None for name in ("from", "to")]
    owner = fields["provider"].name() if "provider" in fields else None
    return Alias(
        ref=fields["ref"].name(),
        target_provider=None if provider == "*" else provider,
        target_sku=sku,
        provider=None if owner == "*" else owner,
        effective=item.ordered(*bounds),
    )
