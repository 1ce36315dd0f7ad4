"""Fields of a YAML file: values with their place, and errors that name it.

In: YAML text. Out: `Field`s, which read scalars as the text that stands in the file, so that an amount is exact whether
it is quoted or not, and that raise `BookError` with file, line, field and reason for everything else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from datetime import date as Date
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

from tollspan.pricing.errors import BookError
from tollspan.pricing.money import UNIT_PRICE_DECIMALS
from tollspan.pricing.names import nearest
from tollspan.pricing.rows import Interval

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_YEARS: Final = (1678, 2261)
"""Years that lie whole in the int64 nanoseconds that instants are held in."""
_NULL: Final = "tag:yaml.org,2002:null"
_DATE: Final = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
_DATE_LENGTH: Final = len("2026-11-20")
_LONGEST_RANGE: Final = timedelta(days=3660)
"""Ten years: a range of dates that is longer is a slip of the pen, not a holiday."""
_WHOLE_DIGITS: Final = 18
_LONGEST_NAME: Final = 512
"""Characters of a name or pattern: more than any model, device or place is called."""
_DEEPEST: Final = 100

NUMBER: Final = r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?"
"""A decimal number as a book may write it; the schema of a book says the same."""
_NOT_FINITE: Final = r"[+-]?\.?(inf(inity)?|nan)"


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

    @property
    def is_mapping(self) -> bool:
        return getattr(self.node, "id", None) == "mapping"

    @property
    def is_sequence(self) -> bool:
        return getattr(self.node, "id", None) == "sequence"

    @property
    def is_null(self) -> bool:
        return bool(self.node.tag == _NULL)

    def mapping(self, *known: str, required: tuple[str, ...] = ()) -> dict[str, Field]:
        """Fields of a mapping by name, those that are null left out."""
        if not self.is_mapping:
            raise self.error(f"expected a mapping with {', '.join(known)}")
        found = self.entries(known)
        for name in required:
            if name not in found:
                raise self.error(f"{name!r} is missing")
        return found

    def entries(self, known: tuple[str, ...] | None = None) -> dict[str, Field]:
        """Fields of a mapping whose names are the author's own, or among ``known``; those that are null left out."""
        if not self.is_mapping:
            raise self.error("expected a mapping of names")
        found: dict[str, Field] = {}
        seen: set[str] = set()
        for key, value in self.node.value:
            name = Field(key, self.file, self.path).text()
            here = Field(key, self.file, f"{self.path}.{name}" if self.path else name)
            if name in seen:
                raise here.error("given twice")
            if known is not None and name not in known:
                raise here.error("unknown field", nearest(name, known))
            seen.add(name)
            if value.tag != _NULL:
                found[name] = Field(value, self.file, here.path)
        return found

    def items(self) -> Iterator[Field]:
        """Elements of a sequence."""
        if not self.is_sequence:
            raise self.error("expected a list")
        for position, value in enumerate(self.node.value):
            yield Field(value, self.file, f"{self.path}[{position}]")

    def some(self) -> list[Field]:
        """Elements of a sequence that may not be empty."""
        found = list(self.items())
        if not found:
            raise self.error("the list is empty", "List at least one, or leave it out.")
        return found

    def text(self) -> str:
        if getattr(self.node, "id", None) != "scalar" or self.is_null or not self.node.value.strip():
            raise self.error("expected a value")
        return str(self.node.value).strip()

    def name(self) -> str:
        name = self.text().lower()
        if len(name) > _LONGEST_NAME:
            raise self.error(f"a name of {len(name)} characters", f"At most {_LONGEST_NAME} are compared.")
        return name

    def choice(self, *known: str) -> str:
        text = self.text()
        if text not in known:
            raise self.error(f"{text!r} is not one of {', '.join(known)}")
        return text

    def whole(self, least: int) -> int:
        text = self.text().replace("_", "")
        if len(text) > _WHOLE_DIGITS:
            raise self.error(f"{text!r} has more digits than a quantity can have")
        if not text.isascii() or not text.isdigit() or int(text) < least:
            raise self.error(f"{text!r} is not a whole number of at least {least}")
        return int(text)

    def decimal(self) -> Decimal:
        """A finite number, with sign."""
        text = self.text()
        if re.fullmatch(_NOT_FINITE, text, re.IGNORECASE):
            raise self.error(f"{text!r} is not an amount of 0 or more")
        if not re.fullmatch(NUMBER, text):
            raise self.error(f"{text!r} is not a decimal number", "Write it like 1.25.")
        try:
            value = Decimal(text)
        except ArithmeticError:  # an exponent that is a number of its own
            value = Decimal("Infinity")
        if value.is_zero():
            return Decimal(0)  # whatever its exponent
        if not value.is_finite() or -int(value.as_tuple().exponent) > UNIT_PRICE_DECIMALS or value.adjusted() >= 20:
            raise self.error(f"{text!r} has more digits than a price can have", "Use a larger 'per'.")
        return value

    def amount(self) -> Decimal:
        value = self.decimal()
        if value < 0:
            raise self.error(f"{self.text()!r} is not an amount of 0 or more")
        return value

    def share(self) -> Fraction:
        """A part of a whole, as ``1/7`` or ``0.5``."""
        text = self.text()
        if not re.fullmatch(rf"[0-9]{{1,6}}/[0-9]{{1,6}}|{NUMBER}", text) or len(text) > 2 * _WHOLE_DIGITS:
            raise self.error(f"{text!r} is not a share", "Write it like 1/7.")
        try:
            share = Fraction(text) if "/" in text else Fraction(self.decimal())
        except ZeroDivisionError:
            raise self.error(f"{text!r} is not a share", "Write it like 1/7.") from None
        if not 0 < share <= 1:
            raise self.error(f"{text!r} is not a share", "It is more than 0 and at most 1.")
        return share

    def date(self) -> Date:
        text = self.text()
        if not re.fullmatch(_DATE, text):
            raise self.error(f"{text!r} is not a date", "Write it like 2026-10-01.")
        return self._day(text)

    def dates(self) -> frozenset[Date]:
        """Dates and ranges of dates (``2026-10-01..2026-10-08``, the last one with them)."""
        found: set[Date] = set()
        for item in self.some():
            bounds = [Field(_Text(part, item.node), self.file, item.path).date() for part in item.text().split("..", 1)]
            first, last = bounds[0], bounds[-1]
            if last < first:
                raise item.error(f"{item.text()!r} ends before it begins")
            if last - first > _LONGEST_RANGE:
                raise item.error(f"{item.text()!r} is longer than ten years", "List the dates that are meant.")
            found.update(Date.fromordinal(day) for day in range(first.toordinal(), last.toordinal() + 1))
        return frozenset(found)

    def instant(self) -> int:
        """Ns since the epoch; a date is its first instant in UTC."""
        text = self.text()
        if re.match(_DATE, text):
            self._day(text[:_DATE_LENGTH])
        try:
            moment = datetime.fromisoformat(text if re.match(_DATE, text) else "")
        except ValueError:
            raise self.error(f"{text!r} is not an instant", "Write it like 2026-11-20T12:00:00Z.") from None
        if moment.tzinfo is None:
            if len(text) > _DATE_LENGTH:
                raise self.error(f"{text!r} has no time zone", "End it with Z or an offset.")
            moment = moment.replace(tzinfo=UTC)
        if not _YEARS[0] <= moment.year <= _YEARS[1]:
            raise self.error(f"{text!r} is out of range", "Leave a bound that is open out, or write null.")
        return (moment - _EPOCH) // timedelta(microseconds=1) * 1000

    def _day(self, text: str) -> Date:
        try:
            return Date.fromisoformat(text)
        except ValueError:
            raise self.error(f"there is no date {text}", "Look at the calendar.") from None

    def interval(self) -> Interval:
        bounds = list(self.items())
        if len(bounds) != 2:
            raise self.error("expected [from, to], either may be null")
        return self.ordered(*(None if bound.is_null else bound.instant() for bound in bounds))

    def ordered(self, start: int | None, end: int | None) -> Interval:
        if start is not None and end is not None and start >= end:
            raise self.error("ends before it begins", "It lasts from the first instant until just before the second.")
        return Interval(start, end)


class _Text:
    """A part of a scalar, at the scalar's place."""

    id: Final = "scalar"
    tag: Final = ""

    def __init__(self, value: str, node: Any) -> None:
        self.value = value
        self.start_mark = node.start_mark


def compose(content: bytes, file: str) -> Field:
    """The root of a YAML document.

    Raises:
        BookError: it is not one document of YAML.
    """
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        depth = 0
        for event in yaml.parse(content, Loader=loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST:  # libyaml composes recursively, and deep enough it takes the process with it
                line = event.start_mark.line + 1 if event.start_mark is not None else 1
                raise BookError(f"{file}:{line}: nested more than {_DEEPEST} deep.", "A book needs less.")
        return Field(yaml.compose(content, Loader=loader), file)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else 1
        hint = "Quote a name that begins with '*'." if "alias" in (error.problem or "") else ""
        raise BookError(f"{file}:{line}: not valid YAML: {error.problem or error.context}.", hint) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BookError(f"{file}:1: not valid YAML: {' '.join(str(error).split())}.") from error
