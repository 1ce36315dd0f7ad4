"""Reconcile: what was acknowledged is what the ledger bills, whatever happened on the way; what differs is named."""

from __future__ import annotations

import itertools
import json
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "end_to_end"))
from service import Service, chat, payload, tollspan

from tollspan.pricing import PriceEngine, load_book, shipped_book
from tollspan.processor.counters import Counters
from tollspan.processor.errors import StoreError, StoreUnavailable
from tollspan.processor.journal import Journal
from tollspan.processor.missing import missing_rollups, roll_up
from tollspan.processor.periods import close, month
from tollspan.processor.pipeline import Pipeline, Settings
from tollspan.processor.recent import RecentSettings
from tollspan.processor.reconcile import Report, reconcile
from tollspan.processor.store import Store
from tollspan.processor.write import Writer

CALL = 1000 * Decimal("0.25") / 1_000_000 + 100 * Decimal("2") / 1_000_000


class Line:
    """A pipeline driven step by step; ``crash`` and ``open`` stand for a process that dies and comes back."""

    def __init__(self, store: Any, folder: Path, **recent: Any) -> None:
        self.store, self.folder, self.recent = store, folder, RecentSettings(**recent)
        self.engine = PriceEngine(shipped_book())
        self.open()

    def open(self) -> None:
        self.counters = Counters()
        self.journal = Journal(self.folder, counters=self.counters)
        self.give_up = threading.Event()
        self.pipeline = Pipeline(
            self.journal,
            Writer(self.store, self.give_up, self.counters, pause=lambda _: None),
            self.engine,
            Settings(keep=1.0, decision_wait_s=0.0, linger_s=0.0),
            self.counters,
            recent=self.recent,
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

    def restart(self) -> None:
        self.drain()
        self.journal.close()
        self.open()

    def report(self) -> Report:
        return reconcile(self.store, self.folder)


@pytest.fixture
def line(store: Store, tmp_path: Path) -> Iterator[Line]:
    line = Line(store, tmp_path / "journal")
    yield line
    line.journal.close()


def counted(report: Report, *names: str) -> list[Any]:
    return [report.totals[name] for name in names]


def test_everything_agrees_after_duplicates_conflicts_late_children_and_rejects(line: Line) -> None:
    bad = chat(90)
    bad.trace_id = b"short"
    line.send(chat(1), chat(2, trace=1, parent=1), chat(3), bad)
    line.work()
    line.send(chat(3), chat(1), chat(4, tokens=(5000, 500)))
    line.work()
    line.send(chat(4, tokens=(1, 1)), chat(5, trace=4, parent=4))
    line.drain()
    report = line.report()
    assert report.agrees, str(report)
    assert counted(report, "spans", "rejected", "duplicates", "conflicts") == [9, 1, 2, 1]
    assert counted(report, "rows", "ledger_rows", "corrections", "revised_rows") == [5, 5, 1, 1]
    assert report.totals["first_cost"] == 8 * CALL
    assert report.totals["cost"] == 3 * CALL
    assert report.totals["waiting_requests"] == 0
    assert json.loads(json.dumps(report.as_dict()))["totals"]["cost"] == format(report.totals["cost"], "f")


def test_an_empty_store_agrees(line: Line) -> None:
    report = line.report()
    assert report.agrees
    assert report.totals["cost"] == 0


class Flaky:
    """A store that fails as told before or after it does what the real one does.

    Attributes:
        before: errors for the next inserts into the ledger, which are not done.
        after: errors for the next ones after that, which are.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.before: list[Exception] = []
        self.after: list[Exception] = []

    def insert(self, table: str, rows: pa.Table, token: str) -> None:
        if table == "ledger" and self.before:
            raise self.before.pop(0)
        self.store.insert(table, rows, token)
        if table == "ledger" and self.after:
            raise self.after.pop(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


class Power(BaseException):
    """Ends the process, as nothing else does."""


def dearer(folder: Path) -> PriceEngine:
    """Prices of another book."""
    path = folder / "book.yaml"
    path.write_text(
        "price_book: {id: test, version: 2, currency: USD}\nprices:\n"
        "  - {id: in, provider: openai, sku: gpt-5-mini, meter: tokens.input.uncached, amount: '9', per: 1000000}\n"
        "  - {id: out, provider: openai, sku: gpt-5-mini, meter: tokens.output, amount: '99', per: 1000000}\n"
    )
    return PriceEngine(load_book(path))


@pytest.mark.parametrize("dies", ["before", "after"])
@pytest.mark.parametrize("book", ["same", "another"])
def test_a_process_that_dies_at_the_insert_leaves_nothing_unaccounted(
    store: Store, tmp_path: Path, dies: str, book: str
) -> None:
    flaky = Flaky(store)
    line = Line(flaky, tmp_path / "journal")
    line.send(chat(1), chat(2, trace=1, parent=1), chat(3), chat(3))
    getattr(flaky, dies).append(Power())
    with pytest.raises(Power):
        line.work()
    line.crash()
    before = reconcile(store, line.folder)
    assert before.agrees, str(before)
    assert before.totals["waiting_requests"] == 1
    if book == "another":
        line.engine = dearer(tmp_path)
    line.open()
    line.send(chat(4))
    line.drain()
    report = line.report()
    assert report.agrees, str(report)
    assert counted(report, "spans", "duplicates", "ledger_rows") == [5, 1, 4]
    line.journal.close()


def test_a_reply_that_is_lost_leaves_nothing_unaccounted(store: Store, tmp_path: Path) -> None:
    flaky = Flaky(store)
    line = Line(flaky, tmp_path / "journal")
    flaky.after = [StoreUnavailable("reset"), StoreUnavailable("reset")]
    line.send(chat(1), chat(2))
    line.drain()
    report = line.report()
    assert report.agrees, str(report)
    line.journal.close()


def test_a_batch_that_has_to_be_divided_is_accounted_in_its_parts(store: Store, tmp_path: Path) -> None:
    class Picky(Flaky):
        def insert(self, table: str, rows: pa.Table, token: str) -> None:
            if table == "ledger" and (3).to_bytes(8, "big") in rows["span_id"].to_pylist():
                raise StoreError("refused")
            super().insert(table, rows, token)

    line = Line(Picky(store), tmp_path / "journal")
    for number in range(1, 8):
        line.send(chat(number))
    line.drain()
    report = line.report()
    assert report.agrees, str(report)
    assert counted(report, "batches", "spans", "set_aside", "rows") == [1, 7, 1, 6]
    line.restart()
    again = line.report()
    assert again.agrees, "a divided batch is known in its parts after a restart: " + str(again)
    line.send(chat(2), chat(5))
    line.drain()
    assert counted(line.report(), "duplicates") == [2]
    line.journal.close()


def test_spans_that_come_again_after_they_were_forgotten_are_told_from_lost_ones(store: Store, tmp_path: Path) -> None:
    line = Line(store, tmp_path / "journal", max_spans=1, window_s=0.0)
    line.send(chat(1), chat(2))
    line.work()
    for number in range(10, 30):
        line.send(chat(number))
        line.work()
    line.send(chat(1), chat(50))
    line.drain()
    report = line.report()
    assert report.agrees, str(report)
    assert counted(report, "duplicates", "rows", "ledger_rows") == [0, 24, 23]
    line.journal.close()


def test_a_repricing_changes_nothing_of_what_was_acknowledged(line: Line, tmp_path: Path) -> None:
    from tollspan.processor.periods import Period
    from tollspan.processor.reprice import reprice
    from tollspan.processor.repricings import Selection

    line.send(chat(1), chat(2, trace=1, parent=1), chat(3))
    line.drain()
    period = Period(datetime(2025, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC))
    reprice(line.store, dearer(tmp_path), Selection(period))
    line.send(chat(4, trace=3, parent=3))
    line.drain()
    report = line.report()
    assert report.agrees, str(report)
    assert report.totals["first_cost"] == 3 * CALL
    dear = 1000 * Decimal(9) / 1_000_000 + 100 * Decimal(99) / 1_000_000
    assert report.totals["cost"] == dear + CALL, "the roll-up's bill is gone, at the price of the repricing"
    assert report.totals["revised_rows"] == 2


COPIES = {
    "a row that is gone": ("ALTER TABLE ledger DELETE WHERE span_id = unhex('0000000000000003')", {"rows"}),
    "a row that costs something else": (
        "ALTER TABLE ledger UPDATE cost = 7 WHERE span_id = unhex('0000000000000003')",
        {"cost", "charges"},
    ),
    "a charge that is something else": (
        "ALTER TABLE ledger UPDATE `charges.residual` = arrayMap(x -> x + toDecimal128(1, 12), `charges.residual`)"
        " WHERE span_id = unhex('0000000000000003')",
        {"charges"},
    ),
    "a row of no batch that is known": (
        "ALTER TABLE ledger UPDATE batch = 5 WHERE span_id = unhex('0000000000000003')",
        {"account"},
    ),
    "a batch without an account": (
        "ALTER TABLE batches DELETE WHERE first_byte != 48 AND rows = 2",
        {"account", "gap"},
    ),
    "a trace without a summary": ("ALTER TABLE traces DELETE WHERE 1", {"traces"}),
}


@pytest.mark.parametrize("what", COPIES)
def test_what_differs_is_named(line: Line, what: str) -> None:
    for spans in ([chat(1)], [chat(2), chat(3)], [chat(4)]):
        line.send(*spans)
        line.work()
    line.drain()
    assert line.report().agrees
    sql, kinds = COPIES[what]
    line.store.execute(sql + " SETTINGS mutations_sync = 2")
    report = line.report()
    assert {difference.kind for difference in report.differences} == kinds, str(report)


def test_a_child_that_comes_after_the_window_is_found_and_repaired(store: Store, tmp_path: Path) -> None:
    line = Line(store, tmp_path / "journal", max_spans=1, window_s=0.0)
    line.send(chat(1, tokens=(5000, 500)), chat(6, tokens=(5000, 500)))
    line.work()
    for number in range(10, 30):
        line.send(chat(number))
        line.work()
    # Between one agent and its call stands a span without a row, which was kept.
    tool = chat(3, trace=6, parent=6, tokens=None, **{"gen_ai.operation.name": "execute_tool"})
    line.send(chat(2, trace=1, parent=1), tool, chat(4, trace=6, parent=3))
    line.drain()
    report = line.report()
    assert [difference.kind for difference in report.differences] == ["rollup", "rollup"]
    written, left = roll_up(store, missing_rollups(store))
    assert (written, left) == (2, 0)
    report = line.report()
    assert report.agrees, str(report)
    assert report.totals["cost"] == 22 * CALL
    line.journal.close()


def test_a_closed_month_is_not_repaired(store: Store, tmp_path: Path) -> None:
    line = Line(store, tmp_path / "journal", max_spans=1, window_s=0.0)
    for number in range(10, 30):
        line.send(chat(number))
        line.work()
    line.send(chat(2, trace=10, parent=10))
    line.drain()
    close(store, month("2025-11"))
    assert roll_up(store, missing_rollups(store)) == (0, 1)
    assert [difference.kind for difference in line.report().differences] == ["rollup"]
    line.journal.close()


def test_one_id_in_two_rows_is_named(store: Store, tmp_path: Path) -> None:
    line = Line(store, tmp_path / "journal", max_spans=1, window_s=0.0)
    for number in range(10, 30):
        line.send(chat(number))
        line.work()
    other = chat(10)
    other.start_time_unix_nano += 1
    line.send(other)
    line.drain()
    assert [difference.kind for difference in line.report().differences] == ["same_id"]
    line.journal.close()


def test_a_window_looks_at_whole_batches(line: Line) -> None:
    instants = []
    for number in (1, 2, 3):
        instants.append(datetime.now(UTC))
        line.send(chat(number))
        line.work()
    line.drain()
    for since, until in itertools.combinations([*instants, datetime.now(UTC)], 2):
        report = reconcile(line.store, line.folder, since=since, until=until)
        assert report.agrees, str(report)
        assert report.totals["rows"] == sum(since <= instant < until for instant in instants)


def test_the_command_proves_repairs_and_tells_by_its_exit_code(tmp_path: Path) -> None:
    service = Service(tmp_path / "store", ["--decision-wait", "0", "--recent-window", "0s", "--recent-max-spans", "1"])
    with service:
        service.export(payload([chat(1, tokens=(5000, 500))]))
        for number in range(10, 30):
            service.export(payload([chat(number)]))
            time.sleep(0.02)
        running = tollspan("reconcile", "--store", service.url, "--format", "json")
        assert running.returncode == 0, running.stdout + running.stderr
        assert tollspan("reconcile", "--store", service.url, "--repair").returncode == 2
        # Enough batches that the first is forgotten, however the others were put together.
        for number in range(30, 34):
            service.export(payload([chat(number)]))
            time.sleep(0.6)
        service.export(payload([chat(2, trace=1, parent=1)]))
        service.stop()
    done = tollspan("reconcile", "--store", service.url, "--format", "json")
    found = json.loads(done.stdout)
    assert done.returncode == 1, done.stderr
    assert [each["kind"] for each in found["differences"]] == ["rollup"]
    done = tollspan("reconcile", "--store", service.url, "--repair", "--format", "json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["repaired_rows"] == 1
    assert Decimal(found["totals"]["cost"]) == 25 * CALL
    done = tollspan("reconcile", "--store", service.url)
    assert (done.returncode, "everything agrees" in done.stdout) == (0, True)
    assert tollspan("reconcile", "--store", f"chdb://{tmp_path}/none").returncode == 2
    assert tollspan("reconcile", "--store", service.url, "--journal", str(tmp_path)).returncode == 2


def test_a_correction_that_was_refused_when_the_process_died_is_made_by_the_next(store: Store, tmp_path: Path) -> None:
    class Strict(Flaky):
        def insert(self, table: str, rows: pa.Table, token: str) -> None:
            if table == "ledger" and self.before and any(rows["revised"].to_pylist()):
                raise self.before[0]
            self.store.insert(table, rows, token)

    strict = Strict(store)
    line = Line(strict, tmp_path / "journal")
    line.send(chat(1, tokens=(5000, 500)))
    line.work()
    strict.before = [StoreError("no corrections today")]
    line.send(chat(2, trace=1, parent=1))
    line.drain()
    assert [difference.kind for difference in line.report().differences] == ["rollup"]
    line.journal.close()
    strict.before = []
    line.open()
    line.send(chat(3))
    line.drain()
    report = line.report()
    assert report.agrees, str(report)
    assert report.totals["cost"] == 2 * CALL
    line.journal.close()


def test_requests_without_a_span_are_accounted_too(line: Line) -> None:
    bad = chat(1)
    bad.trace_id = b"short"
    for spans in ([], [bad], [chat(2)]):
        line.send(*spans)
        line.work()
    line.drain()
    report = line.report()
    assert report.agrees, str(report)
    assert counted(report, "batches", "requests", "spans", "rejected", "ledger_rows") == [3, 3, 2, 1, 1]


def test_payloads_that_come_again_in_other_batches_are_told_from_lost_ones(store: Store, tmp_path: Path) -> None:
    flaky = Flaky(store)
    line = Line(flaky, tmp_path / "journal")
    now = time.time_ns()
    spans = [chat(1), chat(2), chat(3)]
    for each in spans:
        each.start_time_unix_nano, each.end_time_unix_nano = now, now + 10**9
    line.send(spans[0])
    flaky.after.append(Power())
    with pytest.raises(Power):
        line.work()
    line.send(spans[1])
    line.crash()
    # Nobody knows any more how the batches were cut.
    (line.folder / "batches.log").unlink()
    line.open()
    line.send(spans[2])
    line.drain()
    report = line.report()
    assert report.agrees, str(report)
    assert report.totals["ledger_rows"] == 3
    assert report.totals["cost"] == 3 * CALL
    line.journal.close()
