"""What a request asks: the page's query string, read.

In: names and values of a URL. Out: an `Asked`, in which windows, filters and dimensions are checked; what is wrong is a
`ConfigError` with the nearest right name. The same words as the command line's options.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final

from tollspan.processor.errors import ConfigError
from tollspan.processor.queries import check_limit, filters, instant
from tollspan.processor.values import nearest

ALL: Final = "all"
"""``since=all``: from the first row of the ledger on."""

ORDERS: Final = ("cost", "latency", "time")
MOST_ROWS: Final = 1000

_MANY: Final = frozenset({"where", "by", "set"})
_BUDGET: Final = re.compile(r"[0-9]{1,15}(\.[0-9]{1,12})?")


@dataclass(frozen=True, slots=True)
class Asked:
    """One request.

    Attributes:
        since, until: the window; None for an open end.
        where: filters as typed, all of them good.
        by: names of dimensions, all of them known; None where nothing was said.
        limit: rows at most; None where nothing was said.
        set: values of a query's own parameters as typed.
        order, only, contains: of lists of calls and values.
        budget: USD a month; None for none.
    """

    since: datetime | None = None
    until: datetime | None = None
    where: tuple[str, ...] = ()
    by: tuple[str, ...] | None = None
    limit: int | None = None
    set: tuple[str, ...] = ()
    order: str = "cost"
    only: str = ""
    contains: str = ""
    budget: Decimal | None = None


def read(
    pairs: Iterable[tuple[str, str]], takes: Sequence[str], since: str | None = None, now: datetime | None = None
) -> Asked:
    """Read a query string.

    Args:
        pairs: names and values, in order.
        takes: names that this endpoint takes.
        since: where the window begins unless it is said; None for an open end.
        now: what ages count back from.

    Raises:
        ConfigError: a name is not known or there twice, or a value cannot be read.
    """
    given: dict[str, list[str]] = {}
    for name, value in pairs:
        if name not in takes:
            near = nearest(name, list(takes)) or "."
            raise ConfigError(f"There is no parameter {name!r} here{near}", _known(takes))
        if name in given and name not in _MANY:
            raise ConfigError(f"{name} is there twice.", "Give it once.")
        given.setdefault(name, []).append(value)

    def one(name: str) -> str:
        return given.get(name, [""])[0].strip()

    now = now or datetime.now(UTC)
    from_, to = one("since") or since or "", one("until")
    start = None if from_ == ALL else instant(from_, "since", now)
    end = instant(to, "until", now)
    if start is not None and start >= (end or now + timedelta(days=36500)):
        raise ConfigError(f"since {from_} is not before until {to}.", "Give a window that ends after it begins.")
    by = tuple(each.strip() for text in given.get("by", []) for each in text.split(",") if each.strip())
    where = tuple(text for text in given.get("where", []) if text)
    filters(where)
    order, only = one("order") or "cost", one("only")
    if order not in ORDERS:
        near = nearest(order, list(ORDERS)) or "."
        raise ConfigError(f"order {order!r} is not known{near}", f"One of {', '.join(ORDERS)}.")
    return Asked(
        since=start,
        until=end,
        where=where,
        by=by or None,
        limit=_limit(one("limit")),
        set=tuple(given.get("set", [])),
        order=order,
        only=only,
        contains=one("contains"),
        budget=_budget(one("budget")),
    )


def plainly(text: str) -> str:
    """A sentence about options, for somebody who sees a URL."""
    return re.sub(r"--(since|until|where|by|limit|set)\b", r"\1", text)


def _limit(text: str) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 9:
        raise ConfigError(f"limit {text!r} is no number of rows.", f"Give 1 to {MOST_ROWS}.")
    check_limit(int(text))
    return min(int(text), MOST_ROWS)


def _budget(text: str) -> Decimal | None:
    if not text:
        return None
    if not _BUDGET.fullmatch(text) or not Decimal(text):
        raise ConfigError(
            f"budget {text!r} is no amount above zero.", "Give USD for a calendar month, like 1000 or 99.50."
        )
    return Decimal(text)


def _known(takes: Sequence[str]) -> str:
    return f"It takes {', '.join(takes)}." if takes else "It takes none."
