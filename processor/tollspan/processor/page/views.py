"""The page's three views as data: what was spent, what happens now, and where to look when something is dear.

In: a read-only handle, a window and filters. Out: plain data with money as Decimal, instants as datetimes and None for
what is not known; the shapes are those of the page's JSON. Each view looks at the ledger as seldom as it can: one
statement (the ``.sql`` files of this folder) gives totals, steps of time and breakdowns together, and everything it
says is also what a named query says, which `figures` names for each part.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from importlib import resources
from string import Template
from typing import Any, Final

from tollspan.processor.queries import DIMENSIONS, Rows, extent, filters, find, run, slices
from tollspan.processor.queries.dimensions import condition
from tollspan.processor.queries.window import LATEST, bound

COMPONENT: Final = "component"
"""What the trend can be stacked by besides dimensions."""
COMPONENTS: Final = ("model", "compute", "network", "storage", "telemetry", "overhead")
"""In the order of the bits of ``priced_parts``."""
SHOWN: Final = ("feature", "tenant", "model")
ALARMS: Final = ("tenant", "feature", "model", "error_type")
TOP: Final = 10
"""Values of a breakdown that are told one by one."""
STACKED: Final = 7
DRIVERS: Final = 8

_STEPS: Final = (60, 300, 900, 3600, 6 * 3600, 86_400, 7 * 86_400, 28 * 86_400)
_MOST_STEPS: Final = 93
_MONDAY: Final = 4 * 86_400
"""The first Monday after the epoch, so that weeks begin on Mondays."""
_WINDOW: Final = "ledger.start_time >= {from:DateTime64(9, 'UTC')} AND ledger.start_time < {until:DateTime64(9, 'UTC')}"
_SPENT: Final = ("cost", "before")


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of time with two ends, parted into equal steps.

    Attributes:
        since, until: rows from the one on and before the other.
        step_s: length of a step in seconds; steps begin at whole multiples of it (UTC, weeks on Mondays).
    """

    since: datetime
    until: datetime
    step_s: int

    @classmethod
    def of(cls, reader: Rows, since: datetime | None, until: datetime | None, now: datetime | None = None) -> Window:
        """Close the open ends: with the first row of the ledger, and now."""
        now = now or datetime.now(UTC)
        end = min(until or now, LATEST)
        start = since
        if start is None:
            held = extent(reader)
            start = min(held[0], end - timedelta(minutes=1)) if held else end - timedelta(days=30)
        seconds = (end - start).total_seconds()
        step = next((each for each in _STEPS if seconds / each <= _MOST_STEPS), None)
        return cls(start, end, step or _STEPS[-1] * (1 + int(seconds / _STEPS[-1] / _MOST_STEPS)))

    @property
    def before(self) -> datetime:
        """Where the window of the same length before it begins."""
        return max(self.since - (self.until - self.since), datetime(1970, 1, 1, tzinfo=UTC))

    @property
    def origin(self) -> int:
        """Start of the first step, in seconds since the epoch."""
        shift = _MONDAY if self.step_s % (7 * 86_400) == 0 else 0
        return (int(self.since.timestamp()) - shift) // self.step_s * self.step_s + shift

    @property
    def steps(self) -> list[datetime]:
        """Start of each step, the first of which may lie before the window."""
        last = self.until - timedelta(microseconds=1)
        count = (int(last.timestamp()) - self.origin) // self.step_s + 1
        return [datetime.fromtimestamp(self.origin + n * self.step_s, UTC) for n in range(count)]

    @property
    def seconds(self) -> Decimal:
        """Length."""
        return Decimal((self.until - self.since) // timedelta(microseconds=1)) / 10**6

    def values(self, since: datetime | None = None) -> dict[str, Any]:
        """What statements bind.

        Args:
            since: where rows begin; None for the window's own start.
        """
        return {
            "from": bound(since or self.since, self.since),
            "since": bound(self.since, self.since),
            "until": bound(self.until, self.until),
            "origin": self.origin,
            "step": self.step_s,
        }


def statement(
    name: str, where: Sequence[str] = (), free: Sequence[slices.Hours] = (), /, **parts: str
) -> tuple[str, dict[str, Any]]:
    """A statement of this folder, and what its filters and its source bind.

    Args:
        name: of the file.
        where: filters as typed.
        free: hours of the window that are read apart (`slices.alone`), for a statement that is ``FROM $ledger``.
        parts: what else stands for ``$`` names; text of ours only.

    Raises:
        ConfigError: see `filters`.
    """
    passing, values = condition(filters(where))
    ledger, bounds = slices.source(free, "from") if free else ("ledger FINAL", {})
    window = ("true" if free else _WINDOW) + passing
    return Template(_text(name)).substitute(window=window, ledger=ledger, **parts), {**values, **bounds}


@functools.cache
def _text(name: str) -> str:
    return (resources.files(__package__) / f"{name}.sql").read_text(encoding="utf-8")


# -- executive ---------------------------------------------------------------------------------------------------------


def executive(reader: Rows, window: Window, where: Sequence[str] = (), by: str = COMPONENT) -> dict[str, Any]:
    """What was spent, on what, and what changed.

    Args:
        reader: a `tollspan.processor.store.Reader`.
        window: see `Window.of`.
        where: filters as typed.
        by: dimension that the trend is stacked by, or `COMPONENT`.

    Raises:
        ConfigError: a filter or dimension is not known.
        StoreError: see `Reader.query`.
    """
    names = tuple(dict.fromkeys((*SHOWN, *(() if by == COMPONENT else (by,)))))
    cube = _cube(reader, window, where, names)
    now, before = _figure(cube.all), _figure(cube.all, "before_")
    breakdowns = {name: _breakdown(cube.values[name], cube.all) for name in names}
    earlier = bool(cube.all.get("before_rows"))
    unpriced: list[dict[str, Any]] = []
    if now["unpriced_rows"] or now["partial"]:
        sql, values = statement("unpriced", where, slices.alone(reader, window.since, window.until))
        unpriced = reader.rows(sql, {**window.values(), **values})
    return {
        "step": {60: "minute", 3600: "hour", 86_400: "day", 7 * 86_400: "week"}.get(window.step_s, "step"),
        "step_s": window.step_s,
        "before": {"since": window.before, "until": window.since} if earlier else None,
        "spend": now,
        "spend_before": before if earlier else None,
        "change": _change(now["cost"], before["cost"]) if earlier else None,
        "trend": _trend(reader, window, where, by, cube, breakdowns),
        "forecast": _forecast_of(reader, window, where, cube),
        "by": breakdowns,
        "drivers": _drivers(cube.values) if earlier else [],
        "components": _parts(cube.steps.values()),
        "unpriced": {"inferences": now["unpriced"], "rows": now["unpriced_rows"], "reasons": unpriced},
        "figures": {
            "spend": why("total"),
            "unpriced": why("unpriced", only="unpriced"),
            "partial": why("unpriced", only="partial"),
            "cost_per_inference": why("cost-per-inference", only="priced"),
            "forecast": why("forecast"),
            "trend": why("cost", by=(by if by != COMPONENT else "day",)),
            "components": why("by-component"),
            **{f"by.{name}": why("cost", by=(name,)) for name in names},
        },
    }


def why(query: str, by: Iterable[str] = (), only: str = "") -> dict[str, Any]:
    """What explains a figure: a named query, its dimensions, and which calls are behind it."""
    return {"query": query, "by": list(by), "only": only}


@dataclass(frozen=True, slots=True)
class _Cube:
    """What one look at the ledger gives.

    Attributes:
        all: sums over everything, those of the window before under names that begin with ``before_``.
        steps: the same by step of the window; and by place in `COMPONENTS` ``part_known``, ``part_cost``,
            ``part_unpriced_rows``, ``part_inferences`` and ``part_unpriced``, and what has no charge at all
            (``bare_rows``, ``bare_inferences``).
        values: rows by dimension and value.
    """

    all: Mapping[str, Any]
    steps: Mapping[int, Mapping[str, Any]]
    values: Mapping[str, list[dict[str, Any]]]


def _sets(names: Sequence[str], always: str = "") -> dict[str, str]:
    """Parts of a statement that groups by each of some dimensions, and always by another key."""
    more = f"{always}, " if always else ""
    return {
        "keys": ", ".join(("bucket", *names)),
        "sets": ", ".join(f"({more}{name})" for name in names),
        "columns": ",\n        ".join(f"toString({DIMENSIONS[name].sql}) AS {name}" for name in names),
        # Where a row is not of a dimension, its column is empty.
        "values": ", ".join((*names, "''")),
    }


def _levels(names: Sequence[str]) -> dict[int, str]:
    """What GROUPING says of rows by each dimension: the bit of a key, from the right, is set in rows not of it."""
    bits = len(names)
    return {2 ** (bits + 1) - 1 - 2 ** (bits - 1 - place): each for place, each in enumerate(names)}


_COUNTED: Final = {
    "rows": "true", "known": "bitTest(flags, 4)", "unpriced_rows": "bitTest(flags, 2)", "inferences": "call",
    "priced": "call AND NOT bitTest(flags, 2)", "unpriced": "call AND bitTest(flags, 2)",
    "partial": "call AND bitTest(flags, 3)",
}  # fmt: skip
_BEFORE: Final = ", sumIf(usd, NOT now) AS before_cost" + "".join(
    f", countIf(NOT now AND {condition_}) AS before_{name}" for name, condition_ in _COUNTED.items()
)


def _cube(reader: Rows, window: Window, where: Sequence[str], names: Sequence[str]) -> _Cube:
    held = extent(reader)
    # Where nothing is older than the window, nobody has to ask for it.
    earlier = held is not None and held[0] < window.since
    sql, values = statement(
        "executive",
        where,
        slices.alone(reader, window.before if earlier else window.since, window.until),
        **_sets(names),
        # Of whole hours the narrower column says as much.
        second="toInt64(toUnixTimestamp(ledger.start_time))" if window.step_s % 3600 else "3600 * ledger.start_hour",
        now="ledger.start_time >= {since:DateTime64(9, 'UTC')}" if earlier else "true",
        before=_BEFORE if earlier else "",
        size="greatest(ifNull(cost, 0), ifNull(before_cost, 0))" if earlier else "ifNull(cost, 0)",
    )
    all_: dict[str, Any] = {}
    steps: dict[int, dict[str, Any]] = {}
    found: dict[str, list[dict[str, Any]]] = {each: [] for each in names}
    levels = _levels(names)
    several = False
    for row in reader.rows(sql, {**window.values(window.before if earlier else None), **values}):
        if row["level"] in levels:
            found[levels[row["level"]]].append(row)
            continue
        flags, before = row["flags"], "before_" if row["bucket"] < 0 else ""
        count, cost = row[f"{before}rows"], row[f"{before}cost"] or Decimal(0)
        for into in (all_,) if before else (all_, steps.setdefault(row["bucket"], {})):
            _count(into, before, flags, count, cost)
        if not before:
            several |= _split(steps[row["bucket"]], row, flags, count, cost)
    if several:
        sql, values = statement("parts", where, slices.alone(reader, window.since, window.until))
        for row in reader.rows(sql, {**window.values(), **values}):
            into = steps[row["bucket"]]
            into["part_cost"] = [sum(pair) for pair in zip(into["part_cost"], row["costs"], strict=True)]
    return _Cube(all_ or dict.fromkeys(("rows", "before_rows"), 0), steps, found)


def _count(into: dict[str, Any], before: str, flags: int, count: int, cost: Decimal) -> None:
    """Add rows that are alike."""
    call, open_, in_part = bool(flags & 1), bool(flags & 4), bool(flags & 8)
    for name, holds in (
        ("rows", True), ("known", flags & 16), ("unpriced_rows", open_), ("inferences", call),
        ("priced", call and not open_), ("unpriced", call and open_), ("partial", call and in_part),
    ):  # fmt: skip
        into[before + name] = into.get(before + name, 0) + (count if holds else 0)
    into[f"{before}cost"] = into.get(f"{before}cost", Decimal(0)) + cost


def _split(into: dict[str, Any], row: Mapping[str, Any], flags: int, count: int, cost: Decimal) -> bool:
    """Add rows that are alike to their components; True where their cost has several, and is not added yet."""
    if "part_cost" not in into:
        into |= {f"part_{name}": [0] * len(COMPONENTS) for name in _PARTS}
        into |= {"part_cost": [Decimal(0)] * len(COMPONENTS), "bare_rows": 0, "bare_inferences": 0}
    call, known, priced, opened = bool(flags & 1), bool(flags & 16), row["priced_in"], row["open_in"]
    alone = priced & (priced - 1) == 0
    for place in range(len(COMPONENTS)):
        bit = 1 << place
        if priced & bit and known:
            into["part_known"][place] += count
            into["part_cost"][place] += cost if alone else 0
        if opened & bit:
            into["part_unpriced_rows"][place] += count
            into["part_unpriced"][place] += count if call else 0
        if (priced | opened) & bit and call:
            into["part_inferences"][place] += count
    if not priced | opened and flags & 4:
        into["bare_rows"] += count
        into["bare_inferences"] += count if call else 0
    return known and not alone


def _figure(row: Mapping[str, Any], of: str = "") -> dict[str, Any]:
    """One figure: a cost, what it is the cost of, and what it leaves out."""
    priced, cost = row.get(f"{of}priced", 0), _cost(row, of)
    return {
        "cost": cost,
        "inferences": row.get(f"{of}inferences", 0),
        "priced": priced,
        "unpriced": row.get(f"{of}unpriced", 0),
        "partial": row.get(f"{of}partial", 0),
        "rows": row.get(f"{of}rows", 0),
        "unpriced_rows": row.get(f"{of}unpriced_rows", 0),
        "cost_per_inference": _quotient(cost, priced),
    }


def _cost(row: Mapping[str, Any], of: str = "") -> Decimal | None:
    """The sum of what has a price; None where something has none and nothing has one, 0 of nothing."""
    if row.get(f"{of}known", 0):
        cost: Decimal = row[f"{of}cost"]
        return cost
    return None if row.get(f"{of}unpriced_rows", 0) else Decimal(0)


def _quotient(cost: Decimal | None, count: int, places: int = 18) -> Decimal | None:
    """As `divideDecimal` of the named queries: cut off, not rounded."""
    if cost is None or not count:
        return None
    scaled = int(cost.scaleb(places))
    quotient = abs(scaled) // count
    return Decimal(-quotient if scaled < 0 else quotient).scaleb(-places)


def _change(now: Decimal | None, before: Decimal | None) -> dict[str, Any]:
    if now is None or before is None:
        return {"cost": None, "share": None}
    return {"cost": now - before, "share": float((now - before) / before) if before else None}


def _breakdown(rows: Sequence[Mapping[str, Any]], all_: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The dearest values, and all others in one row, so that the rows add up."""
    total = _cost(all_)
    now = [row for row in rows if row["rows"]]
    now.sort(key=lambda row: (_cost(row) is None, -(_cost(row) or 0), -row["rows"], row["value"]))
    shown = [{"value": row["value"] or None, "rest": False, **_beside(row, total)} for row in now[:TOP]]
    if len(now) > TOP:
        rest = {
            name: _less(all_.get(name), [row.get(name) for row in now[:TOP]])
            for name in all_
            if name not in ("level", "bucket", "value")
        }
        shown.append({"value": len(now) - TOP, "rest": True, **_beside(rest, total)})
    return shown


def _beside(row: Mapping[str, Any], total: Decimal | None) -> dict[str, Any]:
    figure = _figure(row)
    cost, before = figure["cost"], _cost(row, "before_")
    return {
        **figure,
        "share": float(cost / total) if cost is not None and total else None,
        "before": before,
        "change": None if cost is None or before is None else cost - before,
    }


def _less(whole: Any, parts: Iterable[Any]) -> Any:
    """A sum without some of its parts, None counting as nothing."""
    return None if whole is None else whole - sum(each for each in parts if each is not None)


def _drivers(values: Mapping[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What changed most since the window before, whatever it is a value of."""
    found = []
    for name, rows in values.items():
        for row in rows:
            cost, before = _cost(row), _cost(row, "before_")
            if cost is not None and before is not None and cost != before:
                found.append((abs(cost - before), name, row["value"] or None, cost, before))
    found.sort(key=lambda each: (-each[0], each[1], each[2] or ""))
    return [
        {"dimension": name, "value": value, "cost": cost, "before": before, "change": cost - before}
        for _, name, value, cost, before in found[:DRIVERS]
    ]


_PARTS: Final = ("known", "cost", "unpriced_rows", "inferences", "unpriced")


def _part(row: Mapping[str, Any], place: int) -> dict[str, Any]:
    return {name: row[f"part_{name}"][place] for name in _PARTS}


def _parts(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The components that occur, dearest first."""
    rows = list(rows)
    found = []
    for place, component in enumerate(COMPONENTS):
        summed = {name: sum(row[f"part_{name}"][place] for row in rows) for name in _PARTS}
        if summed["known"] or summed["unpriced_rows"]:
            found.append({"component": component, "cost": _cost(summed), **_only(summed, ("inferences", "unpriced"))})
    if any(row["bare_rows"] for row in rows):
        count = sum(row["bare_inferences"] for row in rows)
        found.append({"component": "unpriced", "cost": None, "inferences": count, "unpriced": count})
    found.sort(key=lambda each: (each["cost"] is None, -(each["cost"] or 0), each["component"]))
    return found


def _only(row: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: row[name] for name in names}


def _trend(
    reader: Rows,
    window: Window,
    where: Sequence[str],
    by: str,
    cube: _Cube,
    breakdowns: Mapping[str, list[dict[str, Any]]],
) -> dict[str, Any]:
    """Cost by step, stacked."""
    stacked: dict[int, list[Decimal | None]]
    rest = False
    if by == COMPONENT:
        shown = [name for name in (each["component"] for each in _parts(cube.steps.values())) if name != "unpriced"]
        places = [COMPONENTS.index(name) for name in shown]
        values: list[str | None] = [*shown]
        stacked = {step: [_cost(_part(row, place)) for place in places] for step, row in cube.steps.items()}
    else:
        rows = [row for row in breakdowns[by] if not row["rest"]][:STACKED]
        values, rest = [row["value"] for row in rows], len(breakdowns[by]) > len(rows)
        free = slices.alone(reader, window.since, window.until)
        sql, bind = statement("trend", where, free, dimension=DIMENSIONS[by].sql)
        nothing: list[Decimal | None] = [Decimal(0)] * (len(values) + rest)
        stacked = {}
        for row in reader.rows(sql, {**window.values(), **bind, "top": [value or "" for value in values]}):
            parts = stacked.setdefault(row["bucket"], list(nothing))
            if row["place"] or rest:
                parts[row["place"] - 1] = _cost(row)
    empty: list[Decimal | None] = [Decimal(0)] * (len(values) + rest)
    points = []
    for place, at in enumerate(window.steps):
        figure = _figure(cube.steps.get(place, {}))
        points.append(
            {
                "at": at,
                "cost": figure["cost"],
                "inferences": figure["inferences"],
                "unpriced": figure["unpriced"],
                "parts": stacked.get(place, empty),
            }
        )
    # What is behind the values is the last part.
    return {"by": by, "values": [*values, *([None] if rest else [])], "rest": rest, "points": points}


def month(reader: Rows, until: datetime, where: Sequence[str]) -> dict[str, Any] | None:
    """The forecast of the month in which the window ends; None where the ledger has nothing to go by."""
    rows = run(reader, "forecast", until=until, where=where)
    return rows[0] if rows else None


DAYS: Final = re.compile(r"SELECT\s+toDate\(ledger\.start_time\) AS day_of,.*?GROUP BY day_of", re.DOTALL)
"""Where the query ``forecast`` reads the ledger."""
_KNOWN_DAYS: Final = """SELECT each.1 AS day_of, each.2 AS usd, each.3 AS unpriced FROM (SELECT arrayJoin(arrayZip(
    {days:Array(Date)}, {costs:Array(Nullable(Decimal(38, 12)))}, {unpriced:Array(UInt64)})) AS each)"""


def _forecast_of(reader: Rows, window: Window, where: Sequence[str], cube: _Cube) -> dict[str, Any] | None:
    """`month`, from the days that are known already; those before the window are asked for."""
    today = window.until.date()
    back = min(today.replace(day=1), today - timedelta(days=28))
    sql, values = find("forecast").text((), filters(where))
    known, places = DAYS.subn(_KNOWN_DAYS, sql)
    if window.step_s != 86_400 or not places or window.until > datetime.now(UTC):
        return month(reader, window.until, where)
    days: dict[date, tuple[Decimal | None, int]] = {}
    began = datetime(back.year, back.month, back.day, tzinfo=UTC)
    if began < window.since:
        text, bind = statement("days", where)
        earlier = {**window.values(began), "until": bound(window.since, window.since)}
        days = {row["day_of"]: (row["usd"], row["unpriced"]) for row in reader.rows(text, {**earlier, **bind})}
    for place, at in enumerate(window.steps):
        # Days before `back` are no part of it.
        if place in cube.steps and at.date() >= back:
            row, (usd, unpriced) = cube.steps[place], days.get(at.date(), (None, 0))
            if row["known"]:
                usd = (usd or Decimal(0)) + row["cost"]
            days[at.date()] = usd, unpriced + row["unpriced"]
    rows = reader.rows(
        known,
        {
            **values,
            **find("forecast").given(()),
            "until": bound(window.until, window.until),
            "days": list(days),
            "costs": [usd for usd, _ in days.values()],
            "unpriced": [unpriced for _, unpriced in days.values()],
            "limit": 1,
        },
    )
    return rows[0] if rows else None


# -- on call -----------------------------------------------------------------------------------------------------------


def oncall(
    reader: Rows,
    window: Window,
    where: Sequence[str] = (),
    budget: Decimal | None = None,
    forecast: Callable[[], dict[str, Any] | None] | None = None,
) -> dict[str, Any]:
    """What happens: rates, errors, latencies, who causes them, and how fast a budget is spent.

    Args:
        reader, window, where: as of `executive`.
        budget: USD that a calendar month may cost; None for none.
        forecast: gives `month`, where somebody remembers it.
    """
    free = slices.alone(reader, window.before, window.until)
    sql, values = statement("oncall", where, free, **_sets(ALARMS, "earlier"))
    levels, whole = _levels(ALARMS), 2 ** (len(ALARMS) + 1) - 1
    now: Mapping[str, Any] = {}
    before: Mapping[str, Any] = {}
    steps: dict[int, Mapping[str, Any]] = {}
    found: dict[str, list[dict[str, Any]]] = {each: [] for each in ALARMS}
    for row in reader.rows(sql, {**window.values(window.before), **values}):
        if row["level"] == whole:
            now, before = (now, row) if row["earlier"] else (row, before)
        elif row["earlier"]:
            continue
        elif row["level"] in levels:
            found[levels[row["level"]]].append(row)
        else:
            steps[row["bucket"]] = row
    held = extent(reader)
    return {
        "step_s": window.step_s,
        "rate": [{"at": at, **_pace(steps.get(place, {}))} for place, at in enumerate(window.steps)],
        "now": _state(now, window),
        "before": _state(before, window) if before else None,
        "by": {
            name: [
                {"value": row["value"] or None, **_pace(row), "cost_per_h": _per_hour(_cost(row), window)}
                for row in rows
                # Most rows have no error, and that is no kind of error.
                if name != "error_type" or row["value"] or row["errors"]
            ][:TOP]
            for name, rows in found.items()
        },
        "last": held[1] if held else None,
        "budget": _budget(
            forecast() if forecast is not None else month(reader, window.until, where), window, budget, _cost(now)
        ),
        "figures": {
            "inferences": why("cost", only="inferences"),
            "cost": why("total"),
            "errors": why("retries", only="errors"),
            "retries": why("retry-inflation", only="retries"),
            "cold_starts": why("cold-start-rate", only="cold_starts"),
            "latency": why("cost-by-latency", only="inferences"),
            "unpriced": why("unpriced", only="unpriced"),
            "budget": why("forecast"),
            **{f"by.{name}": why("cost", by=(name,)) for name in ALARMS},
        },
    }


def _pace(row: Mapping[str, Any]) -> dict[str, Any]:
    """Counts, cost and latencies of a row."""
    counted = ("inferences", "calls", "unpriced", "partial", "errors", "cold_starts")
    times = row.get("times_ns") or [None] * 3
    return {
        **{name: row.get(name, 0) for name in counted},
        "cost": _cost(row),
        "retries": row.get("retries") if row else 0,
        **{f"{name}_ms": _ms(each) for name, each in zip(("p50", "p95", "p99"), times, strict=True)},
    }


def _state(row: Mapping[str, Any], window: Window) -> dict[str, Any]:
    pace = _pace(row)
    arrival = row.get("arrival_p95_ms")
    return {
        **pace,
        "inferences_per_s": float(pace["inferences"] / window.seconds),
        "cost_per_h": _per_hour(pace["cost"], window),
        "error_share": pace["errors"] / pace["calls"] if pace["calls"] else None,
        "arrival_p95_s": None if arrival is None or arrival != arrival else arrival / 1e3,
    }


def _per_hour(cost: Decimal | None, window: Window) -> Decimal | None:
    return None if cost is None else round(cost * 3600 / window.seconds, 12)


def _ms(ns: float | None) -> float | None:
    """Milliseconds; None of nothing, which percentiles of no calls are."""
    return None if ns is None or ns != ns else round(ns / 1e6, 3)


def _budget(
    forecast: Mapping[str, Any] | None, window: Window, budget: Decimal | None, cost: Decimal | None
) -> dict[str, Any] | None:
    """The month beside its budget, and how many times too fast (above 1) the window spends."""
    if forecast is None:
        return None
    of: date = forecast["month"]
    found = {
        "budget": budget,
        **_only(forecast, ("month", "spent", "forecast", "forecast_from", "forecast_to", "unpriced_inferences")),
        "share": None,
        "burn_rate": None,
        "exhausted_at": None,
    }
    if budget is None or forecast["spent"] is None:
        return found
    first = datetime(of.year, of.month, 1, tzinfo=UTC)
    ends = datetime(of.year + of.month // 12, of.month % 12 + 1, 1, tzinfo=UTC)
    a_second = budget / Decimal(int((ends - first).total_seconds()))
    found["share"] = float(forecast["spent"] / budget)
    if cost is not None:
        rate = cost / window.seconds
        found["burn_rate"] = float(rate / a_second)
        left = budget - forecast["spent"]
        # At the window's pace; what is far behind the month's end is no news.
        if rate > 0 and left / rate < 366 * 86_400:
            found["exhausted_at"] = window.until + timedelta(seconds=max(0.0, float(left / rate)))
    return found


# -- debug -------------------------------------------------------------------------------------------------------------


def debug(reader: Rows, window: Window, where: Sequence[str] = (), limit: int = 20) -> dict[str, Any]:
    """Where to look: the dearest traces, models, batches, feature reads, and agents that go round in circles.

    Args:
        reader, window, where: as of `executive`. Feature reads are told for all rows, whatever the filters.
        limit: rows of each.
    """

    def told(name: str, filtered: bool = True) -> list[dict[str, Any]]:
        return run(reader, name, window.since, window.until, limit, where=where if filtered else ())

    sql, values = statement("models", where, slices.alone(reader, window.since, window.until))
    models = []
    for row in reader.rows(sql, {**window.values(), **values, "limit": limit}):
        times = row.pop("times_ns")
        models.append(
            {**row, **{f"{name}_ms": _ms(each) for name, each in zip(("p50", "p95", "p99"), times, strict=True)}}
        )
    return {
        "traces": told("traces"),
        "batches": told("batches"),
        "features": told("chattiness", filtered=False),
        "models": models,
        "loops": told("runaway-loops"),
        "figures": {
            "traces": why("traces"),
            "batches": why("batches", only="batches"),
            "features": why("chattiness", only="reads"),
            "models": why("by-model", only="inferences"),
            "loops": why("runaway-loops"),
        },
    }
