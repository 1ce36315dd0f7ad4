"""The writer puts a batch into the store once, however often that has to be tried, and drops nothing for it."""

from __future__ import annotations

import threading
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from tollspan.processor.counters import Counters
from tollspan.processor.errors import StoreError, StoreUnavailable
from tollspan.processor.schema import LEDGER, SCHEMAS, SPANS, TRACES
from tollspan.processor.sqlfront import Asked, Fault, SqlFront
from tollspan.processor.store import Store, clickhouse, open_store
from tollspan.processor.write import LONGEST_PAUSE_S, Writer, conform


class Flaky:
    """A store that is away for the first so many inserts."""

    def __init__(self, failures: int, error: type[StoreError] = StoreUnavailable) -> None:
        self.failures, self.error = failures, error
        self.inserts: list[tuple[str, str, int]] = []

    def insert(self, table: str, rows: pa.Table, token: str) -> None:
        if self.failures:
            self.failures -= 1
            raise self.error("away")
        self.inserts.append((table, token, rows.num_rows))


@pytest.fixture
def ledger(ledger_rows: Any) -> pa.Table:
    return ledger_rows([{"charges": [("tokens.output", "model", "0.25", "priced")]}, {"charges": []}])


def body() -> pa.Table:
    row = dict.fromkeys(SPANS.names, "") | {
        "Timestamp": 1_700_000_000_123_456_789,
        "TraceId": "ab" * 16,
        "SpanName": "ask",
        "ResourceAttributes": [("service.name", "shop")],
        "SpanAttributes": [("a", "1"), ("b", "2")],
        "Duration": 5,
        "Events.Timestamp": [1_700_000_000_000_000_001],
        "Events.Name": ["exception"],
        "Events.Attributes": [[("exception.type", "E")]],
        "Links.TraceId": [],
        "Links.SpanId": [],
        "Links.TraceState": [],
        "Links.Attributes": [],
        "AdjustedCount": 10.0,
        "Cost": Decimal("0.1"),
    }
    return pa.Table.from_pylist([row], schema=SPANS)


def test_each_table_is_one_insert_with_the_token_of_the_batch(ledger: pa.Table) -> None:
    store, counters = Flaky(0), Counters()
    Writer(store, threading.Event(), counters).write("batch-1", ledger, body(), None)
    assert store.inserts == [("ledger", "batch-1:ledger", 2), ("spans", "batch-1:spans", 1)]
    assert counters.get("write.rows.ledger") == 2
    assert counters.get("write.retries") == 0


def test_empty_tables_are_no_inserts(ledger: pa.Table) -> None:
    store = Flaky(0)
    Writer(store, threading.Event()).write("b", ledger.slice(0, 0), None, None)
    assert store.inserts == []


def test_a_store_that_is_away_is_tried_until_it_is_back_with_growing_pauses(ledger: pa.Table) -> None:
    store, counters, pauses = Flaky(40), Counters(), list[float]()
    Writer(store, threading.Event(), counters, pause=pauses.append).write("b", ledger, None, None)
    assert store.inserts == [("ledger", "b:ledger", 2)]
    assert counters.get("write.retries") == len(pauses) == 40
    assert pauses[0] <= 0.1
    assert LONGEST_PAUSE_S / 2 <= pauses[-1] <= LONGEST_PAUSE_S
    assert max(pauses) <= LONGEST_PAUSE_S


def test_only_a_stop_ends_the_waiting_and_the_batch_is_handed_back(ledger: pa.Table) -> None:
    stop = threading.Event()
    store = Flaky(10**9)
    tries = 0

    def pause(seconds: float) -> None:
        nonlocal tries
        tries += 1
        if tries == 5:
            stop.set()

    with pytest.raises(StoreUnavailable):
        Writer(store, stop, pause=pause).write("b", ledger, None, None)
    assert tries == 5


def test_a_stop_wakes_a_writer_that_waits(ledger: pa.Table) -> None:
    stop = threading.Event()
    outcome: list[BaseException] = []

    def work() -> None:
        try:
            Writer(Flaky(10**9), stop).write("b", ledger, None, None)
        except StoreUnavailable as error:
            outcome.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    stop.set()
    thread.join(timeout=LONGEST_PAUSE_S / 2)
    assert not thread.is_alive()
    assert len(outcome) == 1


def test_an_error_that_stays_is_not_tried_again(ledger: pa.Table) -> None:
    store = Flaky(1, StoreError)
    with pytest.raises(StoreError):
        Writer(store, threading.Event()).write("b", ledger, None, None)
    assert store.failures == 0
    assert store.inserts == []


def test_rows_come_back_as_they_were_written(store: Store, ledger: pa.Table) -> None:
    Writer(store, threading.Event()).write("b", ledger, body(), None)
    columns = ", ".join(f"`{name}`" for name in LEDGER.names)
    back = store.query(f"SELECT {columns} FROM ledger FINAL ORDER BY trace_id").cast(LEDGER)
    assert back.equals(ledger)
    span = store.rows("SELECT * FROM spans FINAL")[0]
    assert (span["SpanName"], span["Duration"], span["AdjustedCount"], span["Cost"]) == ("ask", 5, 10.0, Decimal("0.1"))
    assert dict(span["SpanAttributes"]) == {"a": "1", "b": "2"}
    assert [dict(attributes) for attributes in span["Events.Attributes"]] == [{"exception.type": "E"}]


def test_writing_a_batch_again_changes_nothing(store: Store, ledger: pa.Table) -> None:
    for _ in range(3):
        Writer(store, threading.Event()).write("b", ledger, body(), None)
    for table, rows in (("ledger", 2), ("spans", 1)):
        assert store.rows(f"SELECT count() AS n FROM {table}") == [{"n": rows}]


def test_a_span_sent_again_in_another_batch_replaces_itself(store: Store, ledger: pa.Table) -> None:
    writer = Writer(store, threading.Event())
    writer.write("first", ledger, None, None)
    writer.write("regrouped", ledger.slice(1), None, None)
    assert store.rows("SELECT count() AS n, sum(cost) AS cost FROM ledger FINAL") == [{"n": 2, "cost": Decimal("0.25")}]


def test_what_no_row_says_is_not_sent_and_reads_as_not_given(store: Store, ledger: pa.Table) -> None:
    at = ledger.column_names.index("tenant")
    quiet = ledger.set_column(at, "tenant", pa.array(["", ""]).dictionary_encode())
    sent: list[pa.Table] = []

    class Watched:
        def insert(self, table: str, rows: pa.Table, token: str) -> None:
            sent.append(rows)
            store.insert(table, rows, token)

        def query(self, sql: str) -> pa.Table:
            return store.query(sql)

    query = "SELECT * FROM ledger FINAL ORDER BY start_time, trace_id, span_id"
    Writer(Watched(), threading.Event()).write("t", quiet, None, None)
    assert {"tenant", "reported_cost"}.isdisjoint(sent[0].column_names)
    assert "cost" in sent[0].column_names
    read = store.query(query)
    store.execute("TRUNCATE TABLE ledger")
    store.insert("ledger", conform(quiet, "ledger"), "whole")
    assert read.to_pylist() == store.query(query).to_pylist()
    assert read["tenant"].to_pylist() == ["", ""]


def test_no_column_has_a_default_of_its_own(store: Store) -> None:
    query = "SELECT table, name FROM system.columns WHERE database = currentDatabase() AND default_kind = 'DEFAULT'"
    found = [(row["table"], row["name"]) for row in store.rows(query) if row["table"] in SCHEMAS]
    assert found == [("ledger", "charges.residual")], "which is made of what is always sent"


@pytest.mark.parametrize(
    "charges", [[], [("tokens.output", "model", "0.25", "priced"), ("requests", "model", None, "unpriced")]]
)
def test_lists_of_one_length_are_sent_with_their_offsets_once(
    store: Store, ledger_rows: Any, monkeypatch: pytest.MonkeyPatch, charges: list[Any]
) -> None:
    rows = ledger_rows([{"charges": charges}, {"charges": []}, {"charges": charges[:1]}])
    families: list[list[str]] = []
    nested = clickhouse._nested
    monkeypatch.setattr(
        clickhouse, "_nested", lambda table: families.append(nested(table).column_names) or nested(table)
    )
    query = "SELECT * FROM ledger FINAL ORDER BY start_time, trace_id, span_id"
    store.insert("ledger", rows, "once")
    once = store.query(query)
    assert "charges" in families[0]
    assert not any(name.startswith("charges.") for name in families[0])
    store.execute("TRUNCATE TABLE ledger")
    monkeypatch.setattr(clickhouse, "_nested", lambda table: table)
    store.insert("ledger", rows, "each")
    assert once.to_pylist() == store.query(query).to_pylist()
    assert once.num_rows == 3


class TestConform:
    def test_columns_are_put_in_the_order_of_the_table(self, ledger: pa.Table) -> None:
        mixed = ledger.select(list(reversed(ledger.column_names)))
        assert conform(mixed, "ledger").column_names == LEDGER.names

    def test_not_given_is_an_empty_string_and_a_missing_cost_stays_null(self, ledger: pa.Table) -> None:
        at = ledger.column_names.index("tenant")
        rows = conform(ledger.set_column(at, "tenant", pa.nulls(2, pa.string())), "ledger")
        assert rows["tenant"].to_pylist() == ["", ""]
        assert rows["cost"].to_pylist() == [Decimal("0.25"), None]

    def test_dictionaries_are_kept_and_those_with_nulls_are_filled(self, ledger: pa.Table) -> None:
        at = ledger.column_names.index("tenant")
        full = pa.array(["a", "b"]).dictionary_encode()
        assert pa.types.is_dictionary(conform(ledger.set_column(at, "tenant", full), "ledger")["tenant"].type)
        holed = pa.array(["a", None]).dictionary_encode()
        assert conform(ledger.set_column(at, "tenant", holed), "ledger")["tenant"].to_pylist() == ["a", ""]

    def test_wider_numbers_are_cast_and_lists_of_dictionaries_go_as_they_are(
        self, ledger: pa.Table, store: Store
    ) -> None:
        coded = pa.list_(pa.dictionary(pa.int32(), pa.string()))
        meters = pa.array([["tokens.output"], []], coded)
        rows = ledger.set_column(ledger.column_names.index("charges.meter"), "charges.meter", meters)
        rows = rows.set_column(rows.column_names.index("revision"), "revision", pa.array([1, 2], pa.int64()))
        made = conform(rows, "ledger")
        assert made["charges.meter"].type == coded
        assert made["revision"].type == pa.uint64()
        # Chunks with dictionaries of their own, as corrections bring them.
        rows = rows.set_column(rows.column_names.index("span_id"), "span_id", pa.array([b"x" * 8, b"y" * 8]))
        meters = pa.array([["requests"], []], coded)
        other = conform(rows.set_column(rows.column_names.index("charges.meter"), "charges.meter", meters), "ledger")
        store.insert("ledger", pa.concat_tables([made, other]), "t")
        read = store.query("SELECT DISTINCT arrayJoin(`charges.meter`) AS m FROM ledger").column("m").to_pylist()
        assert {"requests", "tokens.output"} <= set(read)

    @pytest.mark.parametrize(
        ("column", "values", "says"),
        [
            ("revision", pa.array([-1, 2], pa.int64()), "revision does not fit"),
            ("cost", pa.array([Decimal("0.0000000000001"), None], pa.decimal128(38, 13)), "cost does not fit"),
            ("trace_id", pa.array([None, b"a" * 16], pa.binary(16)), "trace_id has 1 nulls"),
        ],
    )
    def test_what_does_not_fit_is_refused_and_never_bent(
        self, ledger: pa.Table, column: str, values: pa.Array, says: str
    ) -> None:
        with pytest.raises(StoreError, match=says):
            conform(ledger.set_column(ledger.column_names.index(column), column, values), "ledger")

    def test_a_wrong_set_of_columns_is_named(self, ledger: pa.Table) -> None:
        with pytest.raises(StoreError, match=r"no cost, unknown coast"):
            conform(ledger.rename_columns(["coast" if n == "cost" else n for n in ledger.column_names]), "ledger")

    def test_all_tables_have_a_schema(self) -> None:
        assert conform(body(), "spans").schema.names == SPANS.names
        assert conform(TRACES.empty_table(), "traces").num_rows == 0


class TestOverTheWire:
    """The same code against ClickHouse's HTTP interface, with a server that misbehaves."""

    def write_through(self, store: Store, faults: list[Fault | None], ledger: pa.Table) -> list[Asked]:
        inserts: list[Asked] = []

        def fault(asked: Asked) -> Fault | None:
            if not asked.insert:
                return None
            inserts.append(asked)
            return faults.pop(0) if faults else None

        front = SqlFront(store, "127.0.0.1:0", writable=True, fault=fault)
        address = front.start()
        try:
            with open_store(f"clickhouse://{address}/{store.database}") as remote:
                assert not remote.embedded
                Writer(remote, threading.Event(), pause=lambda seconds: None).write("b", ledger, body(), None)
        finally:
            front.stop()
        return inserts

    def check(self, store: Store) -> None:
        found = store.rows("SELECT count() AS n, sum(cost) AS cost FROM ledger")
        assert found == [{"n": 2, "cost": Decimal("0.25")}]
        assert store.rows("SELECT count() AS n FROM spans") == [{"n": 1}]

    def test_a_server_takes_the_same_rows(self, store: Store, ledger: pa.Table) -> None:
        inserts = self.write_through(store, [], ledger)
        assert [asked.params["insert_deduplication_token"] for asked in inserts] == ["b:ledger", "b:spans"]
        assert inserts[0].params["async_insert"] == "0"
        self.check(store)

    def test_a_server_that_dies_after_the_commit_and_before_the_reply_counts_once(
        self, store: Store, ledger: pa.Table
    ) -> None:
        inserts = self.write_through(store, [Fault(drop="after"), Fault(drop="after"), Fault(drop="after")], ledger)
        assert len(inserts) > 3
        self.check(store)

    def test_a_server_that_drops_connections_and_is_overloaded_gets_everything_in_the_end(
        self, store: Store, ledger: pa.Table
    ) -> None:
        faults = [Fault(drop="before"), Fault(code=252, message="Too many parts"), Fault(code=241), Fault(code=202)]
        self.write_through(store, list(faults), ledger)
        self.check(store)

    def test_a_server_that_refuses_for_good_is_not_asked_again(self, store: Store, ledger: pa.Table) -> None:
        with pytest.raises(StoreError, match="insert into ledger") as caught:
            self.write_through(store, [Fault(code=117, message="incorrect data")], ledger)
        assert not isinstance(caught.value, StoreUnavailable)

    def test_a_server_whose_tables_or_rights_are_amiss_is_asked_until_it_is_mended(
        self, store: Store, ledger: pa.Table
    ) -> None:
        amiss = [Fault(code=60, message="no such table"), Fault(code=497, message="no rights")]
        self.write_through(store, [*amiss, Fault(code=16, message="no such column")], ledger)
        self.check(store)
