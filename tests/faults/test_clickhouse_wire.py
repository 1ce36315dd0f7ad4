"""A ClickHouse server that refuses, and loses replies: the ledger has every span exactly once all the same.

The server is the writable SQL front on this process's embedded engine; the service is a process of its own.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "end_to_end"))
from service import METHOD, TOLLSPAN, chat, payload

from tollspan.processor.sqlfront import Asked, Fault, SqlFront
from tollspan.processor.store import Store

TOO_MANY_PARTS = 252
PATIENCE_S = 60.0


@dataclass
class Wire:
    """What the server makes of inserts into spans' tables, and what it saw of them.

    Attributes:
        faults: for the next inserts, one after the other; then they succeed.
        spent: set by the first insert after which none is left.
        tokens: of every insert, refused or not, by table.
    """

    faults: list[Fault] = field(default_factory=list)
    spent: threading.Event = field(default_factory=threading.Event)
    tokens: dict[str, list[str]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, asked: Asked) -> Fault | None:
        table = re.search(r"\b(ledger|traces|spans)\b", asked.sql) if asked.insert else None
        if table is None or "schema_migrations" in asked.sql:
            return None
        with self.lock:
            self.tokens.setdefault(table[1], []).append(asked.params["insert_deduplication_token"])
            fault = self.faults.pop(0) if self.faults else None
            if not self.faults:
                self.spent.set()
        return fault


@contextmanager
def served(url: str, journal: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A ``tollspan serve`` on a server's store, and where it takes spans."""
    command = [*TOLLSPAN, "serve", "--store", url, "--journal", str(journal), "--listen", "127.0.0.1:0"]
    command += ["--http", "off"]
    process = subprocess.Popen(
        [*command, "--sql", "off", "--keep", "1", "--decision-wait", "0"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "NO_COLOR": "1", "TERM": "dumb"},
    )
    assert process.stderr is not None
    lines: list[str] = []
    address = ""
    for line in process.stderr:
        lines.append(line)
        ready = re.search(r"spans in at (\S+:\d+)", line)
        if ready:
            address = ready[1]
            break
    # Read on, so that a full pipe never holds the service up.
    rest = threading.Thread(target=lambda: lines.extend(process.stderr or ()), daemon=True)
    rest.start()
    try:
        assert address, "".join(lines)
        yield process, address
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) == 0, "".join(lines)
        assert process.returncode in (0, -signal.SIGKILL), "".join(lines)
        rest.join(PATIENCE_S)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def export(address: str, body: bytes) -> None:
    with grpc.insecure_channel(address) as channel:
        channel.unary_unary(METHOD)(body, timeout=PATIENCE_S)


@pytest.fixture
def wire(store: Store) -> Iterator[tuple[Wire, str]]:
    wire = Wire()
    front = SqlFront(store, "127.0.0.1:0", writable=True, fault=wire)
    database = f"{store.database}_wire"
    yield wire, f"clickhouse://{front.start()}/{database}"
    front.stop()
    store.execute(f"DROP DATABASE IF EXISTS {database}")


REFUSED = [Fault(code=TOO_MANY_PARTS, message="Too many parts")] * 3
LOST = [Fault(drop="after")]
"""Committed, and the reply never comes."""


@pytest.mark.parametrize(
    "faults", [[], REFUSED, LOST * 2, [*REFUSED, *LOST]], ids=["none", "refused", "lost", "refused then lost"]
)
def test_every_span_is_in_the_ledger_exactly_once(
    wire: tuple[Wire, str], store: Store, tmp_path: Path, faults: list[Fault]
) -> None:
    server, url = wire
    server.faults = list(faults)
    numbers = range(1, 401)
    with served(url, tmp_path / "journal") as (_, address):
        for start in range(0, len(numbers), 100):
            export(address, payload([chat(number) for number in numbers[start : start + 100]]))
        assert server.spent.wait(PATIENCE_S), "no insert came"
    database = url.rpartition("/")[2]
    # Without FINAL: an insert that lands twice would be two rows until the parts merge.
    rows = store.rows(f"SELECT span_id, cost_status FROM {database}.ledger ORDER BY span_id")
    assert [int.from_bytes(row["span_id"], "big") for row in rows] == list(numbers)
    assert {row["cost_status"] for row in rows} == {"priced"}
    assert store.rows(f"SELECT uniqExact(SpanId) AS n FROM {database}.spans") == [{"n": len(numbers)}]
    attempts = server.tokens["ledger"]
    # A repeated insert is the same insert: it carries the token of the first.
    assert attempts[: len(faults) + 1] == [attempts[0]] * (len(faults) + 1)


def test_a_server_that_is_away_at_the_start_holds_nobody_up(store: Store, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    database = f"{store.database}_late"
    url = f"clickhouse://{address}/{database}"
    with served(url, tmp_path / "journal") as (process, taking):
        export(taking, payload([chat(number) for number in range(1, 51)]))
        process.kill()
        process.wait()
    wire = Wire()
    front = SqlFront(store, address, writable=True, fault=wire)
    with served(url, tmp_path / "journal") as (_, taking):
        export(taking, payload([chat(number) for number in range(51, 101)]))
        front.start()
        assert wire.spent.wait(PATIENCE_S), "no insert came"
    rows = store.rows(f"SELECT span_id FROM {database}.ledger ORDER BY span_id")
    assert [int.from_bytes(row["span_id"], "big") for row in rows] == list(range(1, 101))
    front.stop()
    store.execute(f"DROP DATABASE IF EXISTS {database}")


def test_what_was_acknowledged_while_the_server_refuses_outlives_the_service(
    wire: tuple[Wire, str], store: Store, tmp_path: Path
) -> None:
    server, url = wire
    server.faults = [Fault(code=TOO_MANY_PARTS)] * 10_000
    with served(url, tmp_path / "journal") as (process, address):
        export(address, payload([chat(number) for number in range(1, 51)]))
        process.kill()
        process.wait()
    database = url.rpartition("/")[2]
    assert store.rows(f"SELECT count() AS n FROM {database}.ledger") == [{"n": 0}]
    server.faults = [Fault(drop="after")]
    with served(url, tmp_path / "journal"):
        assert server.spent.wait(PATIENCE_S)
    rows = store.rows(f"SELECT span_id FROM {database}.ledger ORDER BY span_id")
    assert [int.from_bytes(row["span_id"], "big") for row in rows] == list(range(1, 51))
