"""A ClickHouse server on the wire whose faults a scenario decides: the writable SQL front on this process's engine."""

from __future__ import annotations

import hashlib
import itertools
import re
import socket
import threading
from collections.abc import Callable
from typing import Any, Final

from tollspan.processor.sqlfront import Asked, Fault, SqlFront
from tollspan.processor.sqlfront.statement import Refused
from tollspan.processor.sqlfront.wire import Answer, Request
from tollspan.processor.store import Store, open_store

CANNOT_PARSE: Final = 27
"""ClickHouse's code for rows that it cannot read."""

_numbers = itertools.count(1)
_OURS: Final = re.compile(r"\b(ledger|traces|spans|batches)\b")


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class _Front(SqlFront):
    """Remembers what came under which token, and refuses what its database cannot bear."""

    database: Database

    def _faulty(self, request: Request) -> Answer:
        token = request.params.get("insert_deduplication_token")
        if token is not None:
            content = hashlib.sha256(request.body).hexdigest()
            self.database.bodies.setdefault(token, set()).add(content)
            if self.database.poison and self.database.poison in request.body:
                raise Refused(CANNOT_PARSE, "INJECTED", "these rows cannot be read")
        return super()._faulty(request)


class Database:
    """A database of its own on a server that can go away, refuse and fall silent.

    Args:
        store: this process's embedded engine.

    Attributes:
        url: for ``--store``.
        fault: asked before each insert of spans' rows (and, with ``everything``, before each statement).
        bodies: hashes of what was inserted, by token.
        refused: statements that met a fault.
        poison: inserts with these bytes in them are refused for good; None for none.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.name = f"{store.database}_wire{next(_numbers)}"
        self.address = f"127.0.0.1:{free_port()}"
        self.url = f"clickhouse://{self.address}/{self.name}"
        self.fault: Callable[[Asked], Fault | None] | None = None
        self.everything = False
        self.bodies: dict[str, set[str]] = {}
        self.refused = 0
        self.poison: bytes | None = None
        self._lock = threading.Lock()
        self._front: SqlFront | None = None
        self.up()

    def up(self) -> None:
        """Listen, at the address of always."""
        if self._front is None:
            front = _Front(self.store, self.address, writable=True, fault=self._decide)
            front.database = self
            front.start()
            self._front = front

    def down(self) -> None:
        """Go away; requests that run are cut off."""
        front, self._front = self._front, None
        if front is not None:
            front.stop(timeout_s=0.2)

    def fails(self, fault: Fault, times: int | None = None) -> None:
        """Meet the next ``times`` inserts with a fault; all until `heals` where it is None."""
        left = itertools.count() if times is None else iter(range(times))
        self.fault = lambda asked: fault if next(left, None) is not None else None

    def heals(self) -> None:
        """No more faults."""
        self.fault, self.everything = None, False

    def rows(self, sql: str) -> list[dict[str, Any]]:
        """Rows of a SELECT, past the wire and its faults; ``{db}`` is the database."""
        return self.store.rows(sql.replace("{db}", self.name))

    def execute(self, sql: str) -> None:
        """Change something behind the service's back."""
        self.store.execute(sql.replace("{db}", self.name))

    def opened(self) -> Store:
        """The store as the service sees it."""
        return open_store(self.url, create=False)

    def close(self) -> None:
        """Go away for good."""
        self.down()
        self.store.execute(f"DROP DATABASE IF EXISTS {self.name}")

    def _decide(self, asked: Asked) -> Fault | None:
        fault = self.fault
        ours = asked.insert and _OURS.search(asked.sql) and "schema_migrations" not in asked.sql
        if fault is None or not (ours or self.everything):
            return None
        with self._lock:
            met = fault(asked)
            self.refused += met is not None
        return met
