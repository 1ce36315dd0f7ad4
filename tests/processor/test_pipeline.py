"""The line behind the journal, on a real store: exact rows, nothing lost and nothing twice whatever goes wrong."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "end_to_end"))
from service import chat, payload

from tollspan.pricing import PriceEngine, shipped_book
from tollspan.processor.counters import Counters
from tollspan.processor.errors import StoreError, StoreUnavailable
from tollspan.processor.journal import Journal
from tollspan.processor.pipeline import Pipeline, Settings
from tollspan.processor.store import Store
from tollspan.processor.write import Writer

CALL = 1000 * Decimal("0.25") / 1_000_000 + 100 * Decimal("2") / 1_000_000


class Line:
    """A pipeline driven step by step; ``crash`` and ``open`` stand for a process that dies and comes back."""

    def __init__(self, store: Any, folder: Path, keep: float = 1.0) -> None:
        self.store, self.folder, self.keep = store, folder, keep
        self.open()

    def open(self) -> None:
        self.counters = Counters()
        self.journal = Journal(self.folder, counters=self.counters)
        self.give_up = threading.Event()
        self.pipeline = Pipeline(
            self.journal,
            Writer(self.store, self.give_up, self.counters, pause=lambda _: None),
            PriceEngine(shipped_book()),
            Settings(keep=self.keep, decision_wait_s=0.0, linger_s=0.0),
            self.counters,
        )
        self.pipeline.recall(self.folder / "recent", "store")

    def crash(self) -> None:
        """Close the files without releasing anything."""
        self.journal.close()

    def send(self, *spans: Any) -> None:
        self.journal.append(payload(spans)).wait()

    def work(self) -> None:
        while self.pipeline.step(0.0):
            pass

    def drain(self) -> None:
        stop = threading.Event()
        stop.set()
        self.pipeline.run(stop)

    def rows(self, sql: str) -> list[dict[str, Any]]:
        reader = self.store.reader()
        try:
            return list(reader.query(sql).to_pylist())
        finally:
            reader.close()


@pytest.fixture
def line(store: Store, tmp_path: Path) -> Iterator[Line]:
    line = Line(store, tmp_path / "journal")
    yield line
    line.journal.close()


def total(line: Line) -> tuple[int, Decimal | None]:
    row = line.rows("SELECT count() AS n, sum(cost) AS cost FROM ledger FINAL")[0]
    return row["n"], row["cost"]


def test_spans_become_priced_rows_and_kept_bodies(line: Line) -> None:
    line.send(*(chat(n) for n in range(1, 11)))
    line.drain()
    assert total(line) == (10, 10 * CALL)
    assert line.rows("SELECT count() AS n, sum(Cost) AS c FROM spans FINAL") == [{"n": 10, "c": 10 * CALL}]
    assert line.journal.stats()["outstanding"] == 0, "everything is released"


def test_a_child_that_comes_late_takes_the_bill_off_its_parent(line: Line) -> None:
    line.send(chat(1, tokens=(5000, 500)))
    line.work()
    before = total(line)
    line.send(chat(2, trace=1, parent=1))
    line.drain()
    assert before[1] == 5 * CALL
    assert total(line) == (2, CALL)
    statuses = line.rows("SELECT cost_status, revision FROM ledger FINAL ORDER BY revision")
    assert [r["cost_status"] for r in statuses] == ["priced", "rollup"]


def test_a_crash_before_release_replays_onto_the_same_rows(line: Line) -> None:
    line.send(chat(1), chat(2))
    line.work()
    line.crash()
    line.open()
    line.send(chat(3))
    line.drain()
    assert total(line) == (3, 3 * CALL)
    assert line.rows("SELECT count() AS n FROM spans FINAL")[0]["n"] == 3
    assert {r["spans"] for r in line.rows("SELECT spans FROM traces FINAL")} == {1}


def test_a_call_that_tells_only_its_bytes_above_one_that_tells_its_usage_is_the_same_call(line: Line) -> None:
    bytes_sent = {"tollspan.usage.network.egress.internet.bytes": 1000}
    line.send(chat(1, tokens=None, **bytes_sent), chat(2, trace=1, parent=1))
    line.drain()
    assert total(line) == (2, CALL)
    statuses = line.rows("SELECT cost_status FROM ledger FINAL ORDER BY start_time")
    assert [row["cost_status"] for row in statuses] == ["rollup", "priced"]


def restart(line: Line) -> None:
    """The process ends as it should, and another takes over."""
    line.drain()
    line.journal.close()
    line.open()


@pytest.mark.parametrize("restarts", [1, 2])
def test_a_call_and_its_parent_on_two_sides_of_a_restart_are_billed_once(line: Line, restarts: int) -> None:
    line.send(chat(2, trace=1, parent=9), chat(12, trace=11, parent=11), chat(21, tokens=(5000, 500)))
    # Between the agent and its call stands a span of the program's own, which has no row in the ledger.
    line.send(chat(9, trace=1, parent=1, tokens=None, **{"gen_ai.operation.name": "execute_tool"}))
    for _ in range(restarts):
        restart(line)
    line.send(chat(1, tokens=(5000, 500)), chat(11, tokens=(5000, 500)), chat(22, trace=21, parent=21))
    line.drain()
    assert total(line)[1] == 3 * CALL
    rollups = line.rows("SELECT span_id FROM ledger FINAL WHERE cost_status = 'rollup' ORDER BY span_id")
    assert [int.from_bytes(row["span_id"], "big") for row in rollups] == [1, 11, 21]


def test_a_correction_that_the_store_did_not_take_is_not_forgotten(line: Line) -> None:
    flaky = Flaky(line.store)
    line.store = flaky
    line.journal.close()
    line.open()
    line.send(chat(1, tokens=(5000, 500)))
    line.work()
    line.send(chat(2, trace=1, parent=1))
    line.give_up.set()
    flaky.faults = [StoreUnavailable("away")]
    line.work()
    assert flaky.faults == []
    restart(line)
    line.drain()
    line.store = flaky.store
    assert total(line) == (2, CALL)


def test_a_resend_in_other_batches_changes_nothing(line: Line) -> None:
    line.send(chat(1), chat(2, trace=1, parent=1), chat(3))
    line.drain()
    before = total(line), line.rows("SELECT * FROM traces FINAL ORDER BY trace_id")
    line.send(chat(3))
    line.work()
    line.send(chat(2, trace=1, parent=1))
    line.work()
    line.send(chat(1))
    line.drain()
    assert before[0] == total(line) == (3, 2 * CALL)
    after = line.rows("SELECT * FROM traces FINAL ORDER BY trace_id")
    assert [(r["spans"], r["error"]) for r in after] == [(r["spans"], r["error"]) for r in before[1]]


class Flaky:
    """A store that fails as told before it does what the real one does."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.faults: list[Exception] = []
        self.lose_replies = 0

    def insert(self, table: str, rows: pa.Table, token: str) -> None:
        if self.faults:
            raise self.faults.pop(0)
        self.store.insert(table, rows, token)
        if self.lose_replies:
            self.lose_replies -= 1
            raise StoreUnavailable("connection reset after the insert")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


def test_a_store_that_is_away_or_loses_its_reply_costs_nothing(store: Store, tmp_path: Path) -> None:
    flaky = Flaky(store)
    line = Line(flaky, tmp_path / "journal")
    flaky.faults = [StoreUnavailable("away")] * 20
    flaky.lose_replies = 3
    line.send(chat(1), chat(2))
    line.drain()
    assert total(line) == (2, 2 * CALL)
    assert line.rows("SELECT count() AS n FROM ledger")[0]["n"] == 2, "the token stops the second insert"
    line.journal.close()


def test_a_refused_request_is_set_aside_and_tried_again_at_the_next_start(store: Store, tmp_path: Path) -> None:
    flaky = Flaky(store)
    line = Line(flaky, tmp_path / "journal")
    flaky.faults = [StoreError("no")] * 3
    line.send(chat(1))
    line.work()
    line.send(chat(2))
    line.drain()
    assert line.counters.snapshot()["pipeline.set_aside"] == 1
    assert total(line) == (1, CALL)
    assert line.journal.stats()["outstanding"] == 0, "it does not hold the journal's cursor back"
    line.crash()
    line.open()
    line.pipeline.take_back()
    line.drain()
    assert total(line) == (2, 2 * CALL), "the next start brings it"
    line.journal.close()


def test_one_bad_span_does_not_hold_its_batch(line: Line) -> None:
    bad = chat(2)
    bad.trace_id = b"short"
    negative = chat(3, tokens=(-5, 1))
    backwards = chat(4)
    backwards.end_time_unix_nano = 1
    late = chat(5)
    late.start_time_unix_nano = 2**64 - 1
    line.send(chat(1), bad, negative, backwards, late)
    line.drain()
    n, cost = total(line)
    assert (n, cost) == (4, CALL)
    reasons = line.rows("SELECT cost_status, cost_reasons FROM ledger FINAL WHERE cost IS NULL ORDER BY cost_reasons")
    assert {r["cost_status"] for r in reasons} == {"invalid"}
    assert line.counters.snapshot()["rejected.bad_trace_id"] == 1


def test_without_keeping_only_errors_have_bodies_and_the_ledger_is_the_same(store: Store, tmp_path: Path) -> None:
    line = Line(store, tmp_path / "journal", keep=0.0)
    line.send(*(chat(n) for n in range(1, 20)), chat(20, error=True))
    line.drain()
    assert total(line) == (20, 20 * CALL)
    kept = line.rows("SELECT SpanId, KeepReason, TraceState, AdjustedCount FROM spans FINAL")
    assert kept == [{"SpanId": f"{20:016x}", "KeepReason": "error", "TraceState": "ot=th:0", "AdjustedCount": 1.0}]
    assert line.rows("SELECT sum(kept) AS k, count() AS n FROM traces FINAL") == [{"k": 1, "n": 20}]
    line.journal.close()


def test_a_refused_call_is_not_billed_and_one_without_usage_is_unknown(line: Line) -> None:
    line.send(
        chat(1, tokens=None, error=True, **{"http.response.status_code": 429}),
        chat(2, tokens=None),
        chat(3, tokens=None, error=True, **{"error.type": "APITimeoutError"}),
        chat(4, tokens=None, error=True, **{"error.type": "TypeError", "tollspan.call.sent": False}),
        chat(5, tokens=None, **{"gen_ai.usage.output_tokens": 100}),
    )
    line.drain()
    rows = line.rows("SELECT cost_status AS s, cost_reasons AS r, cost AS c FROM ledger FINAL ORDER BY start_time")
    assert [(r["s"], r["r"], r["c"]) for r in rows] == [
        ("not_billed", "refused_by_provider", None),
        ("unpriced", "usage_missing", None),
        ("unpriced", "usage_missing", None),
        ("not_billed", "not_sent", None),
        ("partial", "usage_incomplete", Decimal("0.0002")),
    ]


class Picky(Flaky):
    """Refuses every insert that contains one certain span."""

    def insert(self, table: str, rows: pa.Table, token: str) -> None:
        if table == "ledger" and (3).to_bytes(8, "big") in rows["span_id"].to_pylist():
            raise StoreError("refused")
        super().insert(table, rows, token)


def test_one_poisonous_request_does_not_keep_its_batch_out_of_the_ledger(store: Store, tmp_path: Path) -> None:
    line = Line(Picky(store), tmp_path / "journal")
    for n in range(1, 8):
        line.send(chat(n))
    line.drain()
    assert total(line) == (6, 6 * CALL)
    assert line.counters.snapshot()["decoded.spans"] == 6, "dividing a batch counts no span twice"
    (kept,) = line.pipeline.quarantine.entries()
    assert line.pipeline.quarantine.payload(kept) == payload([chat(3)])
    line.journal.close()


def test_odd_numbers_and_dates_on_one_span_leave_its_batch_alone(line: Line) -> None:
    late = chat(3)
    late.start_time_unix_nano = 7_300_000_000 * 10**9  # in the year 2201
    late.end_time_unix_nano = late.start_time_unix_nano + 1
    line.send(
        chat(1), chat(2, **{"tollspan.batch.size": 2**33, "tollspan.retries": -1}), late, chat(4, tenant="x" * 2000)
    )
    line.drain()
    assert total(line) == (4, 3 * CALL)
    assert line.rows("SELECT batch_size, retries FROM ledger FINAL WHERE span_id = unhex('0000000000000002')") == [
        {"batch_size": None, "retries": None}
    ]
    assert line.rows("SELECT count() AS n FROM traces FINAL") == [{"n": 4}]
    assert "pipeline.set_aside" not in line.counters.snapshot()


@pytest.mark.parametrize("tokens", [(0, 0), (-5, 1)])
def test_a_child_that_used_nothing_does_not_take_its_parents_bill(line: Line, tokens: tuple[int, int]) -> None:
    line.send(chat(1), chat(2, trace=1, parent=1, tokens=tokens))
    line.drain()
    statuses = line.rows(
        "SELECT cost_status AS s, cost AS c FROM ledger FINAL WHERE parent_span_id = unhex('0000000000000000')"
    )
    assert statuses == [{"s": "priced", "c": CALL}]


def test_an_embedding_inside_a_call_is_billed_beside_it_and_not_instead(line: Line) -> None:
    embedding = {"gen_ai.operation.name": "embeddings", "gen_ai.request.model": "text-embedding-3-small"}
    line.send(chat(1), chat(2, trace=1, parent=1, tokens=None, **embedding, **{"gen_ai.usage.input_tokens": 1000}))
    line.send(chat(4, trace=4, tokens=None, **embedding, **{"gen_ai.usage.input_tokens": 1000}))
    line.send(chat(5, trace=4, parent=4, tokens=None, **embedding, **{"gen_ai.usage.input_tokens": 1000}))
    line.drain()
    rows = line.rows("SELECT cost_status AS s FROM ledger FINAL ORDER BY start_time")
    assert [r["s"] for r in rows] == ["priced", "priced", "rollup", "priced"], "embeddings roll up embeddings"


@pytest.mark.parametrize("late", [False, True])
def test_a_call_without_usage_above_the_same_call_with_usage_is_no_second_call(line: Line, late: bool) -> None:
    line.send(chat(1, tokens=None), *(() if late else (chat(2, trace=1, parent=1),)), chat(3, tokens=None))
    line.drain()
    if late:
        line.send(chat(2, trace=1, parent=1))
        line.drain()
    rows = line.rows("SELECT cost_status AS s, cost AS c FROM ledger FINAL ORDER BY span_id")
    assert [(r["s"], r["c"]) for r in rows] == [("rollup", None), ("priced", CALL), ("unpriced", None)]
    assert total(line)[0] == 3


def test_a_call_that_tells_a_fee_and_no_tokens_keeps_its_fee_above_one_that_tells_tokens(line: Line) -> None:
    fee = {"tollspan.usage.web_searches": 2}
    line.send(chat(1, tokens=None, **fee), chat(2, trace=1, parent=1))
    line.drain()
    rows = line.rows("SELECT cost_status AS s, charges.meter AS m FROM ledger FINAL ORDER BY span_id")
    assert rows[0]["s"] != "rollup"
    assert "web_searches" in rows[0]["m"]
    assert rows[1]["s"] == "priced"


@pytest.mark.parametrize("below", [{}, {"parent": 1}])
def test_a_span_whose_usage_stands_on_another_is_not_billed(line: Line, below: dict[str, Any]) -> None:
    line.send(chat(1), chat(2, trace=1, **below, **{"tollspan.usage_elsewhere": True}))
    line.drain()
    rows = line.rows("SELECT cost_status AS s, cost AS c FROM ledger FINAL ORDER BY span_id")
    assert [(r["s"], r["c"]) for r in rows] == [("priced", CALL), ("rollup", None)]


def test_a_span_that_is_its_own_parent_is_billed(line: Line) -> None:
    line.send(chat(1, trace=1, parent=1))
    line.drain()
    assert total(line) == (1, CALL)
