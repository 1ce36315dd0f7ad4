"""What the page asks, as functions: a path and a query string in, JSON-ready data out.

Everything here is a function of a handle and an `Asked`; `server` speaks HTTP around it. Answers have their window, the
instant at which they were made, and ``nothing`` where there is nothing to show: why, and what to do.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import partial
from importlib import metadata
from typing import Any, Final

from tollspan.pricing import PriceEngine
from tollspan.processor.errors import ConfigError
from tollspan.processor.page import details, views
from tollspan.processor.page.asked import Asked, read
from tollspan.processor.page.details import ONLY, Missing
from tollspan.processor.page.source import REUSE_S, Checked
from tollspan.processor.page.views import COMPONENT, Window
from tollspan.processor.queries import (
    DIMENSIONS,
    NamedQuery,
    Rows,
    dimensions,
    dimensions_of,
    extent,
    filters,
    find,
    named_queries,
    run,
)
from tollspan.processor.queries.window import EARLIEST, LATEST, bound

VIEWS: Final[dict[str, str]] = {"executive": "30d", "oncall": "1h", "debug": "24h"}
"""View → the window that it has unless another is asked for."""

_WINDOW: Final = ("since", "until", "where")
_QUERY: Final = (*_WINDOW, "by", "limit", "set")
TAKES: Final[dict[str, tuple[str, ...]]] = {
    "about": (),
    "query": _QUERY,
    "explain": _QUERY,
    "values": (*_WINDOW, "contains", "limit"),
    "executive": (*_WINDOW, "by"),
    "oncall": (*_WINDOW, "budget"),
    "state": (),
    "debug": (*_WINDOW, "limit"),
    "calls": (*_WINDOW, "limit", "order", "only"),
    "trace": (),
    "charge": (),
}
"""Endpoint → the parameters that it takes."""
PARTS: Final = {"query": 1, "explain": 1, "values": 1, "trace": 1, "charge": 2}
"""Endpoint → how many parts follow it in the path."""
_LAG: Final = {
    "seconds": "lag.seconds",
    "spans": "lag.spans",
    "bytes": "lag.bytes",
    "journal_bytes": "journal.disk_bytes",
    "journal_cap_bytes": "journal.cap_bytes",
    "quarantine_bytes": "quarantine.bytes",
    "waiting_spans": "sampling.waiting_spans",
}
MONTH_S: Final = 60.0
"""Seconds for which a forecast is given again on the on-call view."""
_EMPTY: Final = {
    "text": "The ledger is empty: no span has come yet.",
    "hint": "`tollspan demo` fills a store of its own with real calls; `tollspan doctor` sends a test span and says "
    "what is in the way.",
}


@dataclass(frozen=True, slots=True)
class Live:
    """What a running service tells besides its ledger; each is None where there is no service.

    Attributes:
        engine: the prices in use.
        readiness: whether spans are taken, and lines of trouble.
        gauges: counters and gauges by name.
        telemetry: what telemetry may take, and why that is not held.
    """

    engine: Callable[[], PriceEngine] | None = None
    readiness: Callable[[], tuple[int, str]] | None = None
    gauges: Callable[[], Mapping[str, float]] | None = None
    telemetry: Callable[[], tuple[str | None, str]] | None = None


@dataclass(frozen=True, slots=True)
class Api:
    """The endpoints.

    Attributes:
        store: what the store is called, without a password.
        live: of the service around it.
    """

    store: str
    live: Live = field(default_factory=Live)
    _months: dict[Any, tuple[float, dict[str, Any] | None]] = field(default_factory=dict, repr=False)

    def prepare(
        self, name: str, rest: tuple[str, ...], pairs: Iterable[tuple[str, str]]
    ) -> Callable[[Checked], dict[str, Any]] | dict[str, Any]:
        """Check a request; what is left to do with a handle, or the answer where none is needed.

        Raises:
            Missing: there is no such endpoint.
            ConfigError: something is not as it has to be.
        """
        if name not in TAKES or len(rest) != PARTS.get(name, 0):
            raise Missing(f"There is nothing at /api/{'/'.join((name, *rest))}.", f"There is {_endpoints()}.")
        asked = read(pairs, TAKES[name], VIEWS.get(name))
        if name == "state":
            return self._state()
        if name == "explain":
            return _explain(rest[0], asked)
        if name == "about":
            return self._about
        if name == "trace":
            return partial(details.trace, trace_id=rest[0])
        if name == "charge":
            engine = self.live.engine() if self.live.engine is not None else None
            return partial(details.charge, engine=engine, trace_id=rest[0], span_id=rest[1])
        make: Callable[[Checked], dict[str, Any]]
        if name == "query":
            make = partial(_rows, query=_query(rest[0], asked), asked=asked)
        elif name == "values":
            dimensions(rest)
            make = partial(details.values, name=rest[0], asked=asked)
        elif name == "calls":
            details.check_only(asked.only)
            make = partial(details.calls, asked=asked)
        elif name == "executive":
            make = partial(_executive, asked=asked, by=_by(asked))
        elif name == "debug":
            make = partial(_debug, asked=asked)
        else:
            make = partial(self._oncall, asked=asked)
        return lambda reader: _with_window(reader, asked, make(reader))

    def _about(self, reader: Checked) -> dict[str, Any]:
        held = extent(reader)
        return {
            "version": metadata.version("tollspan"),
            "store": self.store,
            "currency": "USD",
            "now": datetime.now(UTC),
            "live": self.live.readiness is not None,
            "extent": None if held is None else {"first": held[0], "last": held[1]},
            "nothing": _EMPTY if held is None else None,
            "views": VIEWS,
            "reuse_s": REUSE_S,
            "only": [{"name": name, "about": about} for name, (about, _) in ONLY.items()],
            "dimensions": [{"name": each.name, "about": each.about, "time": each.time} for each in DIMENSIONS.values()],
            "queries": [_described(each) for each in named_queries().values()],
        }

    def _oncall(self, reader: Checked, asked: Asked) -> dict[str, Any]:
        window = _window(reader, asked)
        forecast = partial(self._month, reader, window, asked)
        return {**views.oncall(reader, window, asked.where, asked.budget, forecast), **self._state()}

    def _month(self, reader: Checked, window: Window, asked: Asked) -> dict[str, Any] | None:
        """The month's forecast, which is no less true after a minute: the view asks for it every few seconds."""
        if asked.until is not None:
            return views.month(reader, window.until, asked.where)
        key, now = (asked.where, window.until.month), time.monotonic()
        found = self._months.get(key)
        if found is None or now - found[0] >= MONTH_S:
            found = now, views.month(reader, window.until, asked.where)
            if len(self._months) >= 64:
                self._months.clear()
            self._months[key] = found
        return found[1]

    def _state(self) -> dict[str, Any]:
        """What the service around the page tells without its store."""
        live = self.live
        gauges = live.gauges() if live.gauges is not None else None
        status, said = live.readiness() if live.readiness is not None else (None, "")
        budget, trouble = live.telemetry() if live.telemetry is not None else (None, "")
        return {
            "lag": None if gauges is None else {name: gauges.get(gauge) for name, gauge in _LAG.items()},
            "ready": None if status is None else status == 200,
            "trouble": [line for line in said.splitlines() if line and line != "ok"],
            "telemetry": {"budget": budget, "held": None if budget is None else not trouble, "trouble": trouble},
        }


def _executive(reader: Rows, asked: Asked, by: str) -> dict[str, Any]:
    return views.executive(reader, _window(reader, asked), asked.where, by)


def _debug(reader: Rows, asked: Asked) -> dict[str, Any]:
    return views.debug(reader, _window(reader, asked), asked.where, min(asked.limit or 20, 200))


def plain(value: Any) -> Any:
    """JSON-ready: money as exact strings, instants in ISO 8601, what is no number as null."""
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value


def _window(reader: Rows, asked: Asked) -> Window:
    return Window.of(reader, asked.since, asked.until)


def _with_window(reader: Rows, asked: Asked, made: dict[str, Any]) -> dict[str, Any]:
    """An answer with its window, and why there is nothing in it."""
    empty = not any(made.get(name) for name in ("rows", "by", "traces", "models", "batches", "features", "rate"))
    if "spend" in made:
        empty = not made["spend"]["rows"]
    elif "now" in made:
        empty = not made["now"]["calls"]
    return {
        "since": asked.since,
        "until": asked.until,
        **made,
        "nothing": _nothing(reader) if empty else None,
    }


def _nothing(reader: Rows) -> dict[str, str]:
    held = extent(reader)
    if held is None:
        return _EMPTY
    first, last = (f"{each:%Y-%m-%d %H:%M} UTC" for each in held)
    return {
        "text": "Nothing in this window, with these filters.",
        "hint": f"The ledger goes from {first} to {last}: widen the window, or take filters away.",
    }


def _by(asked: Asked) -> str:
    """What the trend is stacked by.

    Raises:
        ConfigError: several, or none that there is.
    """
    if asked.by is None or asked.by == (COMPONENT,):
        return COMPONENT
    if len(asked.by) > 1:
        raise ConfigError("The trend is stacked by one dimension.", "Give one, or component.")
    (dimension,) = dimensions(asked.by)
    if dimension.time:
        raise ConfigError(f"The trend goes over time already; {dimension.name} is no stack.", "Give tenant, model …")
    return dimension.name


def _query(name: str, asked: Asked) -> NamedQuery:
    """The query, with everything about it checked."""
    query = find(name)
    query.text(None if asked.by is None else dimensions(asked.by, query.allowed), filters(asked.where, query.allowed))
    query.given(asked.set)
    return query


def _rows(reader: Rows, query: NamedQuery, asked: Asked) -> dict[str, Any]:
    rows = run(reader, query.name, asked.since, asked.until, asked.limit, asked.by, asked.where, asked.set)
    return {
        "query": query.name,
        "title": query.title,
        "unit": query.unit,
        "single": query.single,
        "columns": list(rows[0]) if rows else [],
        "rows": rows,
    }


def _explain(name: str, asked: Asked) -> dict[str, Any]:
    query = find(name)
    sql, values = query.text(
        None if asked.by is None else dimensions(asked.by, query.allowed), filters(asked.where, query.allowed)
    )
    given = {name: value for name, value in _given(query, asked).items() if f"{{{name}:" in sql}
    ends = {"since": bound(asked.since, EARLIEST), "until": bound(asked.until, LATEST)}
    return {
        "query": query.name,
        "title": query.title,
        "definition": query.definition,
        "formula": query.formula,
        "unit": query.unit,
        "pitfalls": list(query.pitfalls),
        "notes": query.notes,
        "sql": sql,
        "parameters": {**{name: ends[name] for name in ends if f"{{{name}:" in sql}, **given, **values},
        "command": _command(query, asked),
    }


def _given(query: NamedQuery, asked: Asked) -> dict[str, str]:
    limit = {} if query.single else {"limit": str(asked.limit or query.limit)}
    if any("=" not in text for text in asked.set) or query.needs:
        return limit
    return {**query.given(asked.set), **limit}


def _command(query: NamedQuery, asked: Asked) -> str:
    """The same at the command line."""
    words = ["tollspan", "query", query.name]
    for option, value in (("--since", asked.since), ("--until", asked.until)):
        if value is not None:
            words += [option, value.strftime("%Y-%m-%dT%H:%M:%SZ")]
    words += ["--by", ",".join(asked.by)] if asked.by else []
    for option, texts in (("--where", asked.where), ("--set", asked.set)):
        words += [word for text in texts for word in (option, text)]
    return shlex.join(words)


def _described(query: NamedQuery) -> dict[str, Any]:
    return {
        "name": query.name,
        "title": query.title,
        "measure": query.measure,
        "definition": query.definition,
        "formula": query.formula,
        "unit": query.unit,
        "pitfalls": list(query.pitfalls),
        "notes": query.notes,
        "by": list(query.by),
        "dimensions": list(dimensions_of(query)),
        "filters": query.filterable,
        "single": query.single,
        "asks": {name: {"default": default or None, "about": about} for name, (default, about) in query.asks.items()},
    }


def _endpoints() -> str:
    return ", ".join(f"/api/{name}" for name in TAKES)
