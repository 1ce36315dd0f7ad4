"""Telemetry's own cost: every byte received is somebody's, what is stored is counted once, whatever goes wrong."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "end_to_end"))
from service import chat

from tollspan.pricing import PriceEngine, load_book, shipped_book
from tollspan.processor.bodies import bodies
from tollspan.processor.counters import Counters
from tollspan.processor.decode import decode
from tollspan.processor.errors import StoreError
from tollspan.processor.identity import U64
from tollspan.processor.journal import Journal
from tollspan.processor.normalize import normalize
from tollspan.processor.pipeline import Pipeline, Settings
from tollspan.processor.queries import run
from tollspan.processor.reconcile import reconcile
from tollspan.processor.sample.names import ERROR, PROBABILITY
from tollspan.processor.sample.telemetry_cost import (
    MINUTE_NS,
    RETENTION_S,
    Part,
    Rules,
    Shares,
    arrived,
    row_bytes,
    span_sizes,
    unclaimed,
)
from tollspan.processor.sample.thresholds import NEVER
from tollspan.processor.store import Store
from tollspan.processor.write import Writer

from .otlp_factory import START, request, span
from .test_decode import reading

__all__ = ["reading"]  # everything here holds for both readings of the wire

BOOK = """
price_book: {id: mine, version: "1", currency: USD}
prices:
  - {id: telemetry/received, meter: telemetry.bytes, amount: "0.50", unit: GB}
  - {id: telemetry/stored, meter: telemetry.stored.byte_seconds, amount: "0.08", unit: GB-month}
"""


@pytest.fixture
def engine(tmp_path: Path) -> PriceEngine:
    path = tmp_path / "prices.yaml"
    path.write_text(BOOK, encoding="utf-8")
    return PriceEngine(load_book(path))


def rules(ground: list[int], steered: list[bool], full: list[int] | None = None) -> Rules:
    n = len(ground)
    thresholds: U64 = np.array(full if full is not None else [0] * n, np.uint64)
    return Rules(np.array(ground, np.int16), np.array(steered, np.bool_), thresholds)


def taken(payloads: list[bytes], received_ns: int = START) -> tuple[Part, Shares]:
    decoded = decode(payloads)
    table = normalize(decoded, received_ns=received_ns).table
    return arrived("token", "", 7, received_ns, sum(map(len, payloads)), decoded, decoded, table)


# -- what was received -------------------------------------------------------------------------------------------------

tenants = st.sampled_from(["", "acme", "globex", None])
services = st.sampled_from(["", "web", None])


@st.composite
def batches(draw: st.DrawFn) -> list[bytes]:
    payloads = []
    for _ in range(draw(st.integers(1, 3))):
        spans = []
        for _ in range(draw(st.integers(0, 5))):
            tenant = draw(tenants)
            given_: dict[str, object] = {"text": "x" * draw(st.integers(0, 300))}
            if tenant is not None:
                given_["tollspan.tenant"] = tenant
            number = draw(st.integers(1, 10**6))
            start = START + draw(
                st.sampled_from(
                    [0, MINUTE_NS, 90 * MINUTE_NS, -121 * MINUTE_NS, -3001 * MINUTE_NS, -START, 2**63 - START + 5]
                )
            )
            spans.append(span(given_, number=number, start_time_unix_nano=start, end_time_unix_nano=start))
        service = draw(services)
        payloads.append(request(spans, {} if service is None else {"service.name": service}))
    return payloads


def minute_of(start: int) -> int:
    """By hand: the minute, far from the receipt the hour, and further away the day."""
    start = min(start, (2**63 - 1) // MINUTE_NS * MINUTE_NS)
    away = abs(start // MINUTE_NS - START // MINUTE_NS)
    step = MINUTE_NS * (1 if away <= 120 else 60 if away <= 2880 else 1440)
    return start // step * step


@settings(max_examples=150, deadline=None)
@given(batches())
def test_every_byte_is_somebodys(payloads: list[bytes]) -> None:
    received = sum(map(len, payloads))
    decoded = decode(payloads)
    if not len(decoded):
        made = unclaimed("token", "", 7, START, received)
        assert (made.received.tolist(), made.spans.tolist()) == ([received], [0])
        return
    made, shares = taken(payloads)
    assert int(made.received.sum()) == received == int(shares.sizes.sum())
    assert int(made.spans.sum()) == len(decoded)
    groups = list(zip(made.minutes.tolist(), made.tenants.to_pylist(), made.services.to_pylist(), strict=True))
    assert len(set(groups)) == len(groups), "one row for each minute, tenant and service"
    table = normalize(decoded, received_ns=START).table
    minutes = [minute_of(start) for start in decoded.spans["start_ns"].to_pylist()]
    expected = Counter(
        zip(
            minutes,
            (tenant or "" for tenant in table["tenant"].to_pylist()),
            (service or "" for service in table["service"].to_pylist()),
            strict=True,
        )
    )
    assert dict(zip(groups, made.spans.tolist(), strict=True)) == dict(expected)


def test_a_span_has_bytes_by_its_size_and_what_is_no_new_spans_is_nobodys() -> None:
    payload = request(
        [span({"tollspan.tenant": "small"}), span({"tollspan.tenant": "large", "t": "x" * 9000}, number=2)]
    )
    decoded = decode([payload])
    made, _ = taken([payload])
    of = dict(zip(made.tenants.to_pylist(), made.received.tolist(), strict=True))
    assert of["large"] > 9000 > 40 * of["small"] > 0
    # The second is known from before: its bytes are nobody's.
    new = decoded.select(np.array([0]))
    table = normalize(new, received_ns=START).table
    made, _ = arrived("token", "", 7, START, len(payload), decoded, new, table)
    of = dict(zip(made.tenants.to_pylist(), made.received.tolist(), strict=True))
    assert of["small"] + of[""] == len(payload)
    assert of[""] > 9000
    assert made.spans.tolist() == [1, 0]
    # Nobody has a row already where a new span has neither tenant nor service.
    bare = request([span({}), span({"t": "x" * 9000}, number=2)])
    decoded = decode([bare])
    new = decoded.select(np.array([0]))
    made, _ = arrived("t", "", 7, START, len(bare), decoded, new, normalize(new, received_ns=START).table)
    assert (made.received.tolist(), made.spans.tolist()) == ([len(bare)], [1])


def test_sizes_are_those_on_the_wire() -> None:
    spans = [span({"text": "x" * n}, number=n) for n in (10, 1000, 100_000)]
    sizes = span_sizes(decode([request(spans)]))
    actual = np.array([len(each.SerializeToString()) for each in spans])
    assert (np.abs(sizes - actual) <= 100).all()


def test_the_size_of_a_row_is_that_of_its_texts_and_numbers() -> None:
    table = pa.table(
        {
            "number": pa.array([1, 2], pa.uint64()),
            "text": pa.array(["äb", None]),
            "coded": pa.array(["xyz", None]).dictionary_encode(),
            "map": pa.array([[("k", "value")], []], pa.map_(pa.string(), pa.string())),
            "texts": pa.array([["a", "bc"], []]),
            "maps": pa.array([[[("k", "v")], []], []], pa.list_(pa.map_(pa.string(), pa.string()))),
            "money": pa.array([Decimal(1), None], pa.decimal128(38, 12)),
        }
    )
    assert row_bytes(table).tolist() == [8 + 3 + 3 + 14 + 11 + (8 + 2 * 8 + 2) + 16, 8 + 0 + 0 + 8 + 8 + 8 + 16]
    assert row_bytes(table.slice(1)).tolist() == row_bytes(table).tolist()[1:]
    assert row_bytes(pa.concat_tables([table, table])).tolist() == row_bytes(table).tolist() * 2
    assert row_bytes(table.slice(0, 0)).tolist() == []
    made = row_bytes(bodies(decode([request([span({"text": "x" * 5000}), span({}, number=2)])]), {}))
    assert 5000 + len("text") == made[0] - made[1] - len("span 1") + len("span 2")


# -- what became of it -------------------------------------------------------------------------------------------------


def test_rows_say_by_rule_what_was_kept_and_what_it_costs(engine: PriceEngine) -> None:
    payload = request([span({"tollspan.tenant": "acme"}, number=n) for n in range(4)], {"service.name": "web"})
    made, shares = taken([payload])
    everything = np.arange(4)
    half = 2**55
    full = [0, half, half, NEVER]
    shares.decided(everything, rules([ERROR, PROBABILITY, PROBABILITY, 0], [False, True, True, False], full))
    first = shares.select(np.array([0, 1]))
    first.kept(
        np.array([0, 1]),
        rules([ERROR, PROBABILITY], [False, True], full[:2]),
        np.array([1000, 10**6]),
        np.array([10, 0]),
        np.array([0, 500]),
    )
    (row,) = made.rows(engine, RETENTION_S).to_pylist()
    assert (row["tenant"], row["service"], row["spans"], row["bytes"]) == ("acme", "web", 4, len(payload))
    assert (row["kept_spans"], row["stored_bytes"], row["removed_bytes"]) == (2, 1_001_000, 500)
    assert row["received_cost"] == len(payload) * Decimal("0.0000000005")
    by = {rule: place for place, rule in enumerate(row["rules.rule"])}
    assert set(by) == {"error", "probability", ""}
    sizes = shares.sizes.tolist()
    for name, expected in {
        "steered": [False, True, False],
        "spans": [1, 2, 1],
        "bytes": [sizes[0], sizes[1] + sizes[2], sizes[3]],
        "wanted_bytes": [sizes[0], round((sizes[1] + sizes[2]) / 2), 0],
        "kept_spans": [1, 1, 0],
        "kept_bytes": [sizes[0], sizes[1], 0],
        "stored_bytes": [1000, 10**6, 0],
        "content_bytes": [10, 0, 0],
        "removed_bytes": [0, 500, 0],
    }.items():
        found = row[f"rules.{name}"]
        assert [found[by[rule]] for rule in ("error", "probability", "")] == expected, name
    # 30 days of 730-hour months at 0.08 USD for 10⁹ bytes.
    month = Decimal("0.08") / 10**9 * 30 * 24 / 730
    assert row["stored_cost"] == sum(row["rules.stored_cost"])
    assert abs(row["stored_cost"] - 1_001_000 * month) < Decimal("1e-11")
    assert (row["retention_s"], row["book_version"], row["attempt"]) == (RETENTION_S, engine.book_version, 7)


def test_unknown_prices_are_no_zero() -> None:
    made, shares = taken([request([span({})])])
    shares.decided(np.array([0]), rules([ERROR], [False]))
    shares.kept(np.array([0]), rules([ERROR], [False]), np.array([99]), np.array([0]), np.array([0]))
    (row,) = made.rows(PriceEngine(shipped_book()), RETENTION_S).to_pylist()
    assert (row["received_cost"], row["stored_cost"], row["rules.stored_cost"]) == (None, None, [None])
    # Of nothing the price is known without a book.
    made, _ = taken([request([span({})])])
    (row,) = made.rows(PriceEngine(shipped_book()), RETENTION_S).to_pylist()
    assert (row["stored_bytes"], row["stored_cost"], row["rules.rule"]) == (0, 0, [])


@settings(max_examples=60, deadline=None)
@given(batches(), st.data())
def test_however_spans_are_decided_the_sums_are_the_same(payloads: list[bytes], data: st.DataObject) -> None:
    if not len(decode(payloads)):
        return
    sums = []
    for _ in range(2):
        made, shares = taken(payloads)
        left = np.arange(len(shares.sizes))
        while len(left):
            some = left[: data.draw(st.integers(1, len(left)))]
            left = left[len(some) :]
            of = rules([ERROR if n % 3 else PROBABILITY for n in some], [n % 3 == 0 for n in some])
            cut = shares.select(some)
            cut.decided(np.arange(len(some)), of)
            keep = np.flatnonzero(some % 2)
            part = rules(of.ground[keep].tolist(), of.steered[keep].tolist())
            cut.kept(keep, part, some[keep] * 10, some[keep], some[keep])
        rows = made.rows(PriceEngine(shipped_book()), 60).to_pylist()
        for row in rows:
            assert sum(row["rules.spans"]) == row["spans"]
            assert sum(row["rules.bytes"]) == row["bytes"]
            order = sorted(range(len(row["rules.rule"])), key=row["rules.rule"].__getitem__)
            for name in row:
                if name.startswith("rules."):
                    row[name] = [row[name][place] for place in order]
        sums.append(rows)
    assert sums[0] == sums[1]


# -- through the whole line --------------------------------------------------------------------------------------------


class Line:
    """A pipeline on a real store that can crash."""

    def __init__(self, store: Store, folder: Path, engine: PriceEngine, keep: float, wait_s: float = 0.0) -> None:
        self.store, self.folder, self.engine, self.keep, self.wait_s = store, folder, engine, keep, wait_s
        self.sent = 0
        self.open()

    def open(self) -> None:
        self.counters = Counters()
        self.journal = Journal(self.folder, counters=self.counters)
        self.line = Pipeline(
            self.journal,
            Writer(self.store, threading.Event(), self.counters, pause=lambda _: None),
            self.engine,
            Settings(keep=self.keep, decision_wait_s=self.wait_s, linger_s=0.0),
            self.counters,
        )
        self.line.recall(self.folder / "recent", "store")

    def send(self, payload: bytes) -> None:
        self.sent += len(payload)
        self.journal.append(payload).wait()

    def work(self) -> None:
        while self.line.step(0.0):
            pass

    def drain(self) -> None:
        stop = threading.Event()
        stop.set()
        self.line.run(stop)

    def rows(self, sql: str) -> list[dict[str, Any]]:
        reader = self.store.reader()
        try:
            return reader.rows(sql)
        finally:
            reader.close()

    def totals(self) -> dict[str, Any]:
        (row,) = self.rows(
            "SELECT sum(spans) AS spans, sum(bytes) AS bytes, sum(kept_spans) AS kept, sum(stored_bytes) AS stored,"
            " sum(cost) AS cost, uniqExact(token) AS batches FROM telemetry FINAL"
        )
        return row


def calls(first: int, count: int, tenant: str = "acme", **more: Any) -> bytes:
    spans = [
        chat(n, **{"tollspan.tenant": tenant, "gen_ai.input.messages": "hello " * 100, **more}) for n in range(count)
    ]
    for number, each in enumerate(spans):
        each.trace_id = sha256(str(first + number).encode()).digest()[:16]
        each.span_id = (first + number + 1).to_bytes(8, "big")
    return request(spans, {"service.name": "web"})


def test_what_the_line_takes_is_counted_once(store: Store, tmp_path: Path, engine: PriceEngine) -> None:
    line = Line(store, tmp_path / "journal", engine, keep=0.5)
    line.send(calls(1, 40))
    line.send(calls(1000, 20, "globex"))
    line.drain()
    totals = line.totals()
    assert (totals["spans"], totals["bytes"]) == (60, line.sent)
    (stored,) = line.rows("SELECT count() AS n FROM spans FINAL")
    assert 0 < totals["kept"] == stored["n"] < 60
    # The traces' own figures are of the same bytes, and so are those of the named queries.
    (traces,) = line.rows("SELECT sum(telemetry_bytes) AS bytes, sum(stored_bytes) AS stored FROM traces FINAL")
    assert (traces["bytes"], traces["stored"]) == (line.sent, totals["stored"])
    reader = store.reader()
    by_tenant = run(reader, "telemetry-by-tenant")
    by_rule = run(reader, "telemetry-by-rule")
    reader.close()
    assert [(row["tenant"], row["service"], row["spans"]) for row in by_tenant] == [
        ("acme", "web", 40),
        ("globex", "web", 20),
    ]
    assert sum(row["cost"] for row in by_tenant) == totals["cost"]
    assert {row["rule"]: row["spans"] for row in by_rule} == {"probability": 60}
    assert sum(row["stored_cost"] for row in by_rule) == sum(row["stored_cost"] for row in by_tenant)
    line.journal.close()


def test_a_crash_counts_nothing_twice(store: Store, tmp_path: Path, engine: PriceEngine) -> None:
    line = Line(store, tmp_path / "journal", engine, keep=0.5)
    for crash in range(3):
        line.send(calls(100 * crash + 1, 10))
        line.work()
        # All is written, and the journal does not know.
        line.line.accounts.flush(line.line.engine, RETENTION_S)
        line.journal.close()
        line.open()
    line.drain()
    totals = line.totals()
    assert (totals["spans"], totals["bytes"]) == (30, line.sent)
    (stored,) = line.rows("SELECT count() AS n FROM spans FINAL")
    assert totals["kept"] == stored["n"]
    line.journal.close()


def test_a_batch_that_waits_is_counted_when_all_of_it_is_decided(
    store: Store, tmp_path: Path, engine: PriceEngine
) -> None:
    line = Line(store, tmp_path / "journal", engine, keep=1.0, wait_s=600.0)
    line.send(calls(1, 10))
    line.work()
    line.line.accounts.flush(line.line.engine, RETENTION_S)
    assert line.totals()["spans"] == 0
    line.journal.close()
    line.open()
    line.drain()
    assert (line.totals()["spans"], line.totals()["kept"]) == (10, 10)
    line.journal.close()


def test_spans_that_come_again_cost_what_they_take_and_are_no_spans(
    store: Store, tmp_path: Path, engine: PriceEngine
) -> None:
    line = Line(store, tmp_path / "journal", engine, keep=1.0)
    payload = calls(1, 10)
    line.send(payload)
    line.work()
    line.send(payload)
    line.drain()
    assert (line.totals()["spans"], line.totals()["bytes"]) == (10, 2 * len(payload))
    assert line.rows("SELECT sum(bytes) AS n FROM telemetry FINAL WHERE tenant = ''") == [{"n": len(payload)}]
    line.journal.close()


def test_parts_of_a_batch_that_had_to_be_divided_add_up(
    store: Store, tmp_path: Path, engine: PriceEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = Line(store, tmp_path / "journal", engine, keep=1.0)
    whole = line.line.writer.write

    def refuse(token: str, ledger: Any, spans: Any, traces: Any) -> None:
        if ledger is not None and ledger.num_rows > 6:
            raise StoreError("too many rows")
        whole(token, ledger, spans, traces)

    monkeypatch.setattr(line.line.writer, "write", refuse)
    for n in range(4):
        line.send(calls(100 * n + 1, 5))
    line.drain()
    assert (line.totals()["spans"], line.totals()["bytes"], line.totals()["batches"]) == (20, line.sent, 1)
    assert {row["part"] for row in line.rows("SELECT part FROM telemetry FINAL")} != {""}
    line.journal.close()


def test_a_store_that_refuses_them_holds_nothing_up(
    store: Store, tmp_path: Path, engine: PriceEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = Line(store, tmp_path / "journal", engine, keep=1.0)
    whole = line.line.writer.put
    broken = True

    def refuse(table: str, rows: Any, token: str) -> None:
        if broken and table == "telemetry":
            raise StoreError("no")
        whole(table, rows, token)

    monkeypatch.setattr(line.line.writer, "put", refuse)
    line.send(calls(1, 5))
    line.work()
    line.line._decide(everything=True)
    line.line._let_go(everything=True)
    assert line.journal.stats()["outstanding"] == 0
    assert line.counters.get("accounts.telemetry_refused") >= 1
    assert line.rows("SELECT count() AS n FROM batches") == [{"n": 1}], "the accounts are written all the same"
    broken = False
    line.drain()
    assert line.totals()["spans"] == 5
    line.journal.close()


def test_reconcile_holds_it_against_the_accounts(store: Store, tmp_path: Path, engine: PriceEngine) -> None:
    line = Line(store, tmp_path / "journal", engine, keep=0.5)
    for n in range(3):
        line.send(calls(100 * n + 1, 10))
        line.work()
        if n == 1:
            line.journal.close()
            line.open()
    line.send(calls(1, 10))
    line.drain()
    line.journal.close()

    def kinds() -> set[tuple[str, int, int]]:
        reader = store.reader()
        report = reconcile(reader, tmp_path / "journal")
        reader.close()
        return {(each.kind, each.expected, each.found) for each in report.differences}

    assert kinds() == set()
    store.execute("ALTER TABLE telemetry UPDATE spans = 7 WHERE spans = 10 SETTINGS mutations_sync = 2")
    assert ("telemetry", 10, 7) in kinds()
