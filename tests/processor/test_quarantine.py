"""The quarantine: of what a store refuses only the spans at fault stay out, and a person brings them back."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1] / "end_to_end"))
from service import Service, chat, payload

from tollspan.pricing import PriceEngine, shipped_book
from tollspan.processor.cli.app import app
from tollspan.processor.counters import Counters
from tollspan.processor.errors import ConfigError, StoreError, StoreUnavailable
from tollspan.processor.inbox import Collection, Inbox, InboxWriter
from tollspan.processor.journal import Journal
from tollspan.processor.pipeline import Pipeline
from tollspan.processor.pipeline import Settings as PipelineSettings
from tollspan.processor.quarantine import Quarantine, QuarantineLimits, describe, halves, identify
from tollspan.processor.reconcile import reconcile
from tollspan.processor.store import Store
from tollspan.processor.store.faults import MENDABLE, RETRYABLE
from tollspan.processor.write import Writer

CALL = 1000 * Decimal("0.25") / 1_000_000 + 100 * Decimal("2") / 1_000_000


class Picky:
    """A store that refuses every insert into the ledger with one of certain spans in it, or any while told so."""

    def __init__(self, store: Store, refused: set[int]) -> None:
        self.store, self.refused = store, {n.to_bytes(8, "big") for n in refused}
        self.everything: list[Exception] = []
        self.offers = 0

    def insert(self, table: str, rows: pa.Table, token: str) -> None:
        self.offers += 1
        if self.everything:
            raise self.everything.pop()
        if table == "ledger" and self.refused & set(rows["span_id"].to_pylist()):
            raise StoreError("Store: insert into ledger failed: a value of these rows")
        self.store.insert(table, rows, token)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


class Line:
    """A pipeline over a picky store."""

    def __init__(self, store: Picky, folder: Path, limits: QuarantineLimits | None = None) -> None:
        self.store, self.folder, self.limits = store, folder, limits
        self.pauses = 0
        self.open()

    def open(self) -> None:
        self.counters = Counters()
        self.journal = Journal(self.folder, counters=self.counters)
        self.give_up = threading.Event()
        self.quarantine = Quarantine(self.folder / "quarantine", self.counters, self.limits)
        self.pipeline = Pipeline(
            self.journal,
            Writer(self.store, self.give_up, self.counters, pause=self.paused),
            PriceEngine(shipped_book()),
            PipelineSettings(keep=1.0, decision_wait_s=0.0, linger_s=0.0),
            self.counters,
            self.quarantine,
        )

    def paused(self, _: float) -> None:
        self.pauses += 1

    def send(self, *spans: Any) -> None:
        self.journal.append(payload(spans)).wait()

    def drain(self) -> None:
        stop = threading.Event()
        stop.set()
        self.pipeline.run(stop)

    def agree(self) -> None:
        """Journal, accounts and ledger say the same."""
        report = reconcile(self.store.store, self.folder)
        assert report.agrees, str(report)

    def rows_written(self) -> int:
        (row,) = self.store.store.query("SELECT count() AS n FROM ledger").to_pylist()
        return int(row["n"])

    def total(self) -> tuple[int, Decimal]:
        (row,) = self.store.store.query("SELECT count() AS n, sum(cost) AS cost FROM ledger FINAL").to_pylist()
        return row["n"], row["cost"]


@pytest.fixture
def picky(store: Store) -> Picky:
    return Picky(store, set())


@pytest.fixture
def line(picky: Picky, tmp_path: Path) -> Iterator[Line]:
    line = Line(picky, tmp_path / "journal")
    yield line
    line.journal.close()


# -- down to the span -----------------------------------------------------------------------------------------------


def test_a_request_of_a_thousand_spans_with_one_that_is_refused_loses_only_that_one(line: Line, picky: Picky) -> None:
    picky.refused = {(617).to_bytes(8, "big")}
    line.send(*(chat(n) for n in range(1, 1001)))
    line.drain()
    assert line.total() == (999, 999 * CALL)
    line.agree()
    (entry,) = line.quarantine.entries()
    assert (entry.spans, entry.reason, entry.retry) == (1, "store_refused", True)
    assert "a value of these rows" in entry.detail
    assert line.quarantine.payload(entry) == payload([chat(617)])
    assert line.counters.get("quarantine.spans") == 1
    assert line.counters.get("decoded.spans") == 999, "dividing counts no span twice"
    assert line.journal.stats()["outstanding"] == 0
    assert picky.offers < 60


def test_what_is_refused_among_many_requests_is_found_in_each(line: Line, picky: Picky) -> None:
    picky.refused = {n.to_bytes(8, "big") for n in (3, 4, 77, 120)}
    for first in range(1, 121, 10):
        line.send(*(chat(n) for n in range(first, first + 10)))
    line.drain()
    assert line.total() == (116, 116 * CALL)
    kept = b"".join(line.quarantine.payload(entry) for entry in line.quarantine.entries())
    request = ExportTraceServiceRequest.FromString(kept)
    ids = {int.from_bytes(s.span_id, "big") for g in request.resource_spans for c in g.scope_spans for s in c.spans}
    assert ids == {3, 4, 77, 120}


def test_a_crash_in_the_middle_of_dividing_counts_nothing_twice(line: Line, picky: Picky) -> None:
    picky.refused = {(5).to_bytes(8, "big")}
    line.send(*(chat(n) for n in range(1, 21)))
    original = line.quarantine.put
    line.quarantine.put = lambda *_, **__: None  # type: ignore[method-assign,assignment]
    line.drain()
    assert line.counters.get("pipeline.left_in_journal") == 1, "no room in quarantine: the batch stays in the journal"
    assert line.quarantine.entries() == []
    assert original is not None
    line.journal.close()
    line.open()
    line.drain()
    assert line.total() == (19, 19 * CALL)
    assert line.rows_written() == 19, "parts have the same names again, so that the store knows them"
    line.agree()
    assert len(line.quarantine.entries()) == 1


def test_a_fault_of_ours_is_set_aside_by_the_span_too(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    from tollspan.processor import pipeline

    original = pipeline.normalize

    def faulty(decoded: Any, **rest: Any) -> Any:
        if "bad" in decoded.spans["name"].to_pylist():
            raise ZeroDivisionError("ours")
        return original(decoded, **rest)

    monkeypatch.setattr(pipeline, "normalize", faulty)
    bad = chat(5)
    bad.name = "bad"
    line.send(*(chat(n) for n in range(1, 5)), bad, *(chat(n) for n in range(6, 10)))
    line.drain()
    assert line.total() == (8, 8 * CALL)
    (entry,) = line.quarantine.entries()
    assert (entry.reason, entry.detail) == ("fault", "ours")
    monkeypatch.undo()
    line.journal.close()
    line.open()
    line.pipeline.take_back()
    line.drain()
    assert line.total() == (9, 9 * CALL), "the next start, which may be a mended version's, tries it again"
    assert line.quarantine.entries() == []


def test_a_replay_in_the_same_process_is_no_resend_of_what_was_seen(line: Line, picky: Picky) -> None:
    picky.refused = {(5).to_bytes(8, "big")}
    line.send(*(chat(n) for n in range(1, 10)))
    line.drain()
    assert line.total() == (8, 8 * CALL)
    picky.refused = set()
    (entry,) = line.quarantine.entries()
    line.quarantine.replay(entry)
    assert line.quarantine.entries() == []
    collect(Inbox(line.folder / "inbox"), line.journal, line.counters).sweep()
    line.drain()
    assert line.total() == (9, 9 * CALL)
    assert line.rows_written() == 9
    line.agree()


# -- it is not the spans' fault --------------------------------------------------------------------------------------


def test_a_store_that_suddenly_refuses_everything_puts_nothing_into_quarantine(line: Line, picky: Picky) -> None:
    line.send(chat(1))
    line.drain()
    picky.everything = [StoreError("of a kind that nobody has heard of")] * 40
    line.send(*(chat(n) for n in range(2, 6)))
    line.drain()
    assert picky.everything == []
    assert line.total() == (5, 5 * CALL)
    assert line.quarantine.entries() == []
    assert line.counters.get("pipeline.held") > 0
    assert line.pauses > 0


def test_a_store_that_refuses_everything_does_not_hold_the_end(line: Line, picky: Picky) -> None:
    line.send(chat(1))
    line.drain()
    picky.everything = [StoreError("refused")] * 10_000
    line.send(chat(2), chat(3))
    line.give_up.set()
    line.drain()
    assert line.counters.get("pipeline.left_in_journal") == 1
    assert line.quarantine.entries() == []
    picky.everything = []
    line.journal.close()
    line.open()
    line.drain()
    assert line.total() == (3, 3 * CALL)


def test_codes_of_a_store_that_has_to_be_mended_are_the_engines_own(store: Store) -> None:
    names = store.query(
        "SELECT toInt32(number) AS code, errorCodeToName(number) AS name FROM numbers(1100)"
    ).to_pylist()
    engine = {row["code"]: row["name"] for row in names}
    assert {code: engine[code] for code in MENDABLE} == MENDABLE
    assert not MENDABLE.keys() & RETRYABLE.keys()


@pytest.mark.parametrize(
    ("spoil", "mend"),
    [
        ("ALTER TABLE ledger DROP COLUMN operation", "ALTER TABLE ledger ADD COLUMN operation {type} AFTER retries"),
        ("RENAME TABLE ledger TO ledger_away", "RENAME TABLE ledger_away TO ledger"),
    ],
    ids=["column dropped", "table renamed"],
)
def test_rows_wait_for_a_store_whose_tables_somebody_has_changed(
    line: Line, picky: Picky, spoil: str, mend: str
) -> None:
    store = picky.store
    (column,) = store.query(
        "SELECT type FROM system.columns WHERE database = currentDatabase() AND table = 'ledger' AND name = 'operation'"
    ).to_pylist()
    store.execute(spoil)

    def paused(_: float) -> None:
        line.pauses += 1
        if line.pauses == 3:
            store.execute(mend.format(type=column["type"]))

    line.pipeline.writer._pause = paused
    line.send(chat(1), chat(2))
    line.drain()
    assert line.total() == (2, 2 * CALL)
    assert line.pauses >= 3
    assert line.quarantine.entries() == []


# -- the folder ------------------------------------------------------------------------------------------------------


def test_the_same_spans_are_one_entry_and_a_full_folder_takes_no_more(tmp_path: Path) -> None:
    counters = Counters()
    quarantine = Quarantine(tmp_path / "q", counters, QuarantineLimits(max_bytes=2500))
    first = payload([chat(1, **{"tollspan.tenant": "acme"})])
    entry = quarantine.put(first, "store_refused", detail="no\nroom  for it")
    assert entry is not None
    assert (entry.tenant, entry.service, entry.spans, entry.detail) == ("acme", entry.service, 1, "no room for it")
    assert quarantine.put(first, "store_refused") is not None
    assert len(quarantine.entries()) == 1
    taken = [quarantine.put(payload([chat(n)]), "x") for n in range(2, 9)]
    assert None in taken
    assert quarantine.size() <= 2500
    assert counters.get("quarantine.full") == taken.count(None)
    assert counters.get("quarantine.reason.x") == len(taken) - taken.count(None)


def test_a_disk_that_refuses_raises_nothing(tmp_path: Path) -> None:
    (tmp_path / "q").write_text("a file in the way")
    counters = Counters()
    assert Quarantine(tmp_path / "q", counters).put(b"x", "reason") is None
    assert counters.get("quarantine.failures") == 1


def test_half_an_entry_is_none_and_a_damaged_one_is_said(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "q")
    entry = quarantine.put(payload([chat(1)]), "x")
    assert entry is not None
    (tmp_path / "q" / f"{'0' * 16}.otlp").write_bytes(b"died in between")
    (tmp_path / "q" / f"{'1' * 16}.json").write_text('{"format": 7}')
    assert quarantine.entries() == [entry]
    (tmp_path / "q" / f"{entry.id}.otlp").write_bytes(b"flipped")
    with pytest.raises(ConfigError, match="damaged"):
        quarantine.payload(entry)
    with pytest.raises(ConfigError, match="Nothing in quarantine"):
        quarantine.entry("")
    quarantine.put(payload([chat(2)]), "x")
    assert quarantine.entry(entry.id[:8]) == entry


def test_what_an_earlier_version_set_aside_is_taken_up(line: Line) -> None:
    old = line.folder / "set-aside"
    old.mkdir()
    (old / "token.otlp").write_bytes(payload([chat(1)]))
    line.pipeline.take_back()
    line.drain()
    assert line.total() == (1, CALL)
    assert list(old.iterdir()) == []


def test_a_start_tries_some_again_and_those_that_were_refused_at_the_door_never(line: Line) -> None:
    line.quarantine.limits = QuarantineLimits(retry_at_start=2)
    for number in range(1, 5):
        line.quarantine.put(payload([chat(number)]), "store_refused")
    line.quarantine.put(payload([chat(9)]), "rejected", retry=False)
    line.pipeline.take_back()
    line.drain()
    assert line.total()[0] == 2
    assert len(line.quarantine.entries()) == 3


span_lists = st.lists(st.lists(st.lists(st.integers(1, 2**60), max_size=4), max_size=3), max_size=4)


@settings(max_examples=150, deadline=None)
@given(span_lists)
def test_law_two_halves_are_the_whole(groups: list[list[list[int]]]) -> None:
    request = ExportTraceServiceRequest()
    for number, scopes in enumerate(groups):
        group = request.resource_spans.add(schema_url=f"r{number}")
        group.resource.attributes.add(key="service.name").value.string_value = f"s{number}"
        for spans in scopes:
            scope = group.scope_spans.add(schema_url="s")
            for span in spans:
                scope.spans.add(span_id=span.to_bytes(8, "big"), name=str(number))

    def flat(payload: bytes) -> list[tuple[str, bytes]]:
        parsed = ExportTraceServiceRequest.FromString(payload)
        return [
            (g.schema_url + g.resource.attributes[0].value.string_value + c.schema_url, s.SerializeToString())
            for g in parsed.resource_spans
            for c in g.scope_spans
            for s in c.spans
        ]

    whole = request.SerializeToString()
    both = halves(whole)
    if both is None:
        assert len(flat(whole)) < 2
    else:
        assert flat(both[0]) + flat(both[1]) == flat(whole)
        assert abs(len(flat(both[0])) - len(flat(both[1]))) <= 1


def test_halves_of_what_is_no_request_are_none() -> None:
    assert halves(b"\xff\xff\xff") is None
    assert describe(b"\xff\xff\xff") == {"spans": None, "tenant": None, "service": None}


# -- the inbox -------------------------------------------------------------------------------------------------------


def collect(inbox: Inbox, journal: Journal, counters: Counters) -> Collection:
    from tollspan.processor.decode import validate

    return Collection([inbox], journal, validate, counters)


def test_what_lies_in_the_inbox_comes_into_the_journal_in_order_and_once(tmp_path: Path) -> None:
    counters = Counters()
    inbox = Inbox(tmp_path / "inbox")
    sent = [payload([chat(n)]) for n in range(1, 6)]
    for each in sent:
        inbox.put(each)
    with_journal = Journal(tmp_path / "journal", counters=counters)
    collection = collect(inbox, with_journal, counters)
    assert collection.sweep() == 5
    assert collection.sweep() == 0
    batch = with_journal.next_batch(1 << 20, 0)
    assert batch is not None
    assert batch.payloads == sent
    assert counters.get("inbox.taken") == 5
    with_journal.close()


def test_damaged_and_foreign_files_are_left_out_kept_and_counted(tmp_path: Path) -> None:
    counters = Counters()
    inbox = Inbox(tmp_path / "inbox")
    flipped = inbox.put(payload([chat(1)]))
    data = bytearray(flipped.read_bytes())
    data[5] ^= 4
    flipped.write_bytes(data)
    inbox.put(b"\xff\xff no request")
    (tmp_path / "inbox" / "notes.txt").write_text("somebody's")
    inbox.put(payload([chat(2)]))
    journal = Journal(tmp_path / "journal", counters=counters)
    collect(inbox, journal, counters).sweep()
    batch = journal.next_batch(1 << 20, 0)
    assert batch is not None
    assert batch.payloads == [payload([chat(2)])]
    assert counters.get("inbox.damaged") == 2
    assert len(list((tmp_path / "inbox").glob("*.damaged"))) == 2
    assert (tmp_path / "inbox" / "notes.txt").exists()
    journal.close()


def test_an_inbox_waits_while_the_journal_has_no_room(tmp_path: Path) -> None:
    counters = Counters()
    inbox = Inbox(tmp_path / "inbox")
    for number in range(1, 5):
        inbox.put(payload([chat(number)]))
    journal = Journal(tmp_path / "journal", max_bytes=600, counters=counters)
    collection = collect(inbox, journal, counters)
    collection.sweep()
    left = len(inbox.waiting())
    assert left > 0
    while (batch := journal.next_batch(1 << 20, 0)) is not None:
        journal.release(batch)
    collection.sweep()
    assert len(inbox.waiting()) < left
    assert counters.get("inbox.deferred") > 0
    journal.close()


def test_requests_that_come_together_share_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    entered, goes_on = threading.Event(), threading.Event()
    original = os.fsync

    def slow(fd: int) -> None:
        entered.set()
        goes_on.wait(20)
        original(fd)

    monkeypatch.setattr(os, "fsync", slow)
    writer = InboxWriter(Inbox(tmp_path / "inbox"))
    tickets = [writer.append(payload([chat(1)]))]
    assert entered.wait(10)
    tickets += [writer.append(payload([chat(n)])) for n in range(2, 30)]
    goes_on.set()
    for ticket in tickets:
        ticket.wait(10)
    first, rest = writer.inbox.waiting()
    assert describe(first.read_bytes())["spans"] == 1
    assert describe(rest.read_bytes())["spans"] == 28
    assert writer.close(10)


# -- the command ------------------------------------------------------------------------------------------------------


def run(*arguments: str, answer: str = "") -> tuple[int, str]:
    done = CliRunner().invoke(app, ["quarantine", *arguments], input=answer)
    return done.exit_code, done.output + (str(done.exception) if done.exception else "")


def test_a_running_service_takes_a_replayed_entry_up_without_a_restart(tmp_path: Path) -> None:
    with Service(tmp_path / "store") as service:
        journal = tmp_path / "store" / "journal"
        quarantine = Quarantine(journal / "quarantine")
        for number in range(1, 4):
            quarantine.put(payload([chat(number)]), "store_refused", detail="too big", retry=False)
        code, text = run("list", "--journal", str(journal), "--format", "json")
        assert code == 0
        listed = json.loads(text)
        assert [(row["reason"], row["spans"], row["detail"]) for row in listed] == [("store_refused", 1, "too big")] * 3
        code, text = run("show", listed[0]["id"][:10], "--journal", str(journal), "--format", "json")
        shown = json.loads(text)
        span = shown["request"]["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
        assert code == 0
        assert span["name"]
        assert identify(quarantine.payload(quarantine.entry(shown["id"]))) == shown["id"]
        done = subprocess.run(
            [sys.executable, "-m", "tollspan.processor.main", "quarantine", "replay", listed[0]["id"], "--store",
             service.url], capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (0, "replayed 1\n"), done.stderr
        assert run("replay", "--all", "--journal", str(journal))[0] == 0
        stats = service.stop()
        service.process = None
    assert stats["inbox.taken"] == 3
    assert stats["ledger.rows"] == 3
    assert quarantine.entries() == []


def test_the_command_drops_after_asking_and_uses_exit_codes(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "quarantine")
    for number in range(1, 4):
        quarantine.put(payload([chat(number)]), "x")
    place = ("--journal", str(tmp_path))
    ids = [entry.id for entry in quarantine.entries()]
    assert run("drop", ids[0], *place, answer="n\n")[0] == 1
    assert len(quarantine.entries()) == 3
    assert run("drop", ids[0], *place, answer="y\n")[0] == 0
    assert run("drop", ids[1], "--yes", *place)[0] == 0
    assert run("show", ids[2], *place)[0] == 0
    assert run("drop", *place)[0] == 2
    assert run("drop", "--all", ids[2], *place)[0] == 2
    (tmp_path / "quarantine" / f"{ids[2]}.otlp").write_bytes(b"")
    code, text = run("replay", "--all", *place)
    assert (code, "damaged" in text) == (1, True)
    assert run("drop", "--all", "--yes", *place)[0] == 0
    code, text = run("list", *place, "--format", "json")
    assert (code, json.loads(text)) == (0, [])
    code, text = run("show", "beef", *place)
    assert code == 1
    assert "Nothing in quarantine" in text


def test_a_store_that_is_away_is_no_reason_for_quarantine(line: Line, picky: Picky) -> None:
    picky.everything = [StoreUnavailable("away")] * 5
    line.send(chat(1))
    line.drain()
    assert line.quarantine.entries() == []
    assert line.total() == (1, CALL)
