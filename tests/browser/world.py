"""A service with the small world in it, moved to the last hours, and a day with hostile names; figures are known."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.end_to_end.service import Service
from tests.processor.small_world import BOOK, NOON_NS, RANKER, SHOP, asked, made, ranker, request_of, shop, tags
from tollspan.processor import queries
from tollspan.processor.store import Reader, connect_for_query

TOTAL: Final = Decimal("0.14714")
"""What the small world costs, on paper."""
ROWS: Final = 20
BEGAN: Final = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=3)
"""The small world's noon, moved."""
SHOWN: Final = (BEGAN - timedelta(hours=1), BEGAN + timedelta(hours=2))
"""A window that has all of it."""
HOSTILE_DAY: Final = BEGAN - timedelta(days=10)
EMPTY_DAY: Final = BEGAN - timedelta(days=20)

HOSTILE: Final = {
    "markup": "<img src=x onerror=alert(1)>",
    "script": "</script><script>alert(2)</script>",
    "quotes": 'it\'s "quoted" `and` \\ more & <b>',
    "template": "${alert(3)}{{7*7}}%3Cimg%3E",
    "formula": '=HYPERLINK("javascript:alert(4)")',
    "right to left": "‮שלום العربية",
    "emoji": "🧾🏳️‍🌈 e\u0301",
    "long": "x" * 10_000,
    "newline": "two\nlines\tand a tab",
    "comma": "a,b=c&d#e?f",
    "null": "null",
}
"""Tenants that nobody would have, except to see what happens."""
HOSTILE_COST: Final = Decimal("0.000005")
"""Of each of them: one input token and one output token of the small model."""


def moved(spans: Iterable[Span], noon: datetime = BEGAN) -> list[Span]:
    """The spans, as far from ``noon`` as they were from the small world's."""
    by = int(noon.timestamp()) * 10**9 - NOON_NS
    result = []
    for each in spans:
        copy = Span()
        copy.CopyFrom(each)
        copy.start_time_unix_nano += by
        copy.end_time_unix_nano += by
        result.append(copy)
    return result


def hostile() -> list[Span]:
    """A call for each of the hostile tenants."""
    return [
        made(1000 + number, 1000 + number, asked("small", (1, 1)) | tags(name, name, route=name), ms=10)
        for number, name in enumerate(HOSTILE.values())
    ]


@dataclass
class World:
    """A running service and what is in it.

    Attributes:
        service: the process.
        reader: asks its SQL port.
    """

    service: Service
    reader: Reader

    @property
    def page(self) -> str:
        """Where the page is, without a slash at its end."""
        return str(self.service.info["page"]).rstrip("/")

    def rows(self, sql: str, parameters: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        return self.reader.rows(sql, parameters)

    def query(self, name: str, by: Sequence[str] | None = None, where: Sequence[str] = (), **more: Any) -> list[Any]:
        """Rows of a named query over the window that has the small world."""
        return queries.run(self.reader, name, *SHOWN, by=by, where=where, **more)


def served(folder: Path, *options: str, page: str = "127.0.0.1:0") -> Service:
    """A service with a page, not started."""
    folder.mkdir(parents=True, exist_ok=True)
    book = folder / "prices.yaml"
    book.write_text(BOOK, encoding="utf-8")
    return Service(folder / "store", ["--prices", str(book), "--page", page, *options])


def filled(service: Service) -> World:
    """Send everything to a service that runs, and wait until it is in the ledger."""
    service.export(request_of((SHOP, moved(shop())), (RANKER, moved(ranker()))))
    service.export(request_of((SHOP, moved(hostile(), HOSTILE_DAY))))
    world = World(service, connect_for_query(service.url))
    await_rows(world, ROWS + len(HOSTILE))
    return world


def await_rows(world: World, count: int, seconds: float = 60.0) -> None:
    """Wait until the ledger has so many rows."""
    deadline = time.monotonic() + seconds
    while (found := world.rows("SELECT count() AS n FROM ledger FINAL")[0]["n"]) < count:
        assert time.monotonic() < deadline, f"{found} of {count} rows"
        time.sleep(0.05)
