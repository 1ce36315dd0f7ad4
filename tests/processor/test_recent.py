"""A span that comes again is counted and not billed again; what is known of recent spans outlives the process."""

from __future__ import annotations

import logging
import random
import sys
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "end_to_end"))
from service import Service, chat, payload

from tollspan.processor.counters import Counters
from tollspan.processor.decode import decode, fused
from tollspan.processor.journal.files import Position, Range
from tollspan.processor.journal.inspection import inspect
from tollspan.processor.recent import (
    UNKNOWN,
    ConflictLog,
    Generations,
    Index,
    Keys,
    Known,
    contents,
    faster,
    in_order,
    sift,
)
from tollspan.processor.recent_log import RecentLog, Record
from tollspan.processor.reconcile import reconcile
from tollspan.processor.store import open_store

from .otlp_factory import request, span

INPUT, OUTPUT = Decimal("0.25") / 1_000_000, Decimal(2) / 1_000_000
MINUTE = 60 * 10**9

# -- the filter ------------------------------------------------------------------------------------------------------


def index(width: int) -> Known:
    """One that has to grow soon."""
    fused.prepare(wait=True)
    return Index(width, fused.kernels(), 2)


KNOWN = pytest.mark.parametrize("of_width", [Generations, index])

BATCHES = st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2)), min_size=1, max_size=12), max_size=6)


@KNOWN
@given(batches=BATCHES)
@settings(deadline=None)
def test_law_the_first_of_each_span_is_new_and_no_other(
    of_width: Callable[[int], Known], batches: list[list[tuple[int, int]]]
) -> None:
    known, first = of_width(2), dict[int, int]()
    for now, batch in enumerate(batches):
        keys, values = (np.array(column, np.uint64) for column in zip(*batch, strict=True))
        sifted = sift(known, 1, keys, values)
        fresh, duplicates, conflicts = [], 0, []
        for row, (key, content) in enumerate(batch):
            if key not in first:
                first[key] = content
                fresh.append(row)
            elif first[key] == content:
                duplicates += 1
            else:
                conflicts.append(row)
        assert (sifted.fresh.tolist(), sifted.duplicates, sifted.conflicts.tolist()) == (fresh, duplicates, conflicts)
        rows = sifted.fresh[np.argsort(keys[sifted.fresh])]
        known.add(keys[rows], np.column_stack([keys[rows], values[rows]]), float(now))


@KNOWN
@given(sizes=st.lists(st.integers(1, 400), min_size=1, max_size=60), seed=st.integers(0, 2**32), crowded=st.booleans())
@settings(max_examples=30, deadline=None)
def test_law_what_was_put_in_is_found_until_it_is_forgotten(
    of_width: Callable[[int], Known], sizes: list[int], seed: int, crowded: bool
) -> None:
    rng = np.random.default_rng(seed)
    known, everything = of_width(2), dict[int, tuple[int, int]]()
    for now, size in enumerate(sizes):
        # Crowded keys have few upper halves, so that they stand in each other's way.
        keys = rng.integers(0, 2**64, size, dtype=np.uint64)
        keys = np.unique(keys & np.uint64(0xC0000000FFFFFFFF) if crowded else keys)
        known.add(keys, np.column_stack([keys + np.uint64(1), np.full(len(keys), now, np.uint64)]), float(now))
        everything |= {key: (key + 1, now) for key in keys.tolist()}
        known.expire(-np.inf, 2000)
    asked = rng.permutation(np.array([*everything, 3, 5], np.uint64))
    rows, values = known.find(asked)
    assert rows.tolist() == sorted(rows.tolist())
    for row, value in zip(rows.tolist(), values.tolist(), strict=True):
        assert everything[int(asked[row])] == tuple(value)
    assert np.flatnonzero(known.member(asked)).tolist() == rows.tolist()
    missing = set(asked.tolist()) - set(asked[rows].tolist()) - {3, 5}
    assert all(everything[key][1] <= known.forgotten for key in missing)
    assert sum(sizes) > 2000 or not missing
    assert len(known) == sum(len(keys) for _, keys, _ in known.batches())
    for _, keys, values in known.batches():
        assert all(everything[key] == tuple(value) for key, value in zip(keys.tolist(), values.tolist(), strict=True))


@KNOWN
def test_keys_with_nothing_beside_them_are_a_set(of_width: Callable[[int], Known]) -> None:
    known, asked = of_width(0), np.arange(1, 9, dtype=np.uint64)
    assert not known.member(asked).any()
    for now, keys in enumerate(([2, 5], [], [1, 5, 7])):
        known.add(np.array(keys, np.uint64), np.empty((len(keys), 0), np.uint64), float(now))
    assert asked[known.member(asked[::-1])[::-1]].tolist() == [1, 2, 5, 7]
    assert [(now, keys.tolist()) for now, keys, _ in known.batches()] == [(0.0, [2, 5]), (2.0, [1, 5, 7])]
    known.expire(1.0, 100)
    assert asked[known.member(asked)].tolist() == [1, 5, 7]


@KNOWN
def test_a_key_that_is_put_in_again_is_found_with_what_came_last(of_width: Callable[[int], Known]) -> None:
    known = of_width(1)
    key = np.array([7], np.uint64)
    for now in range(3):
        known.add(key, np.array([[now]], np.uint64), float(now))
        known.expire(now - 1.0, 100)
        assert known.find(key)[1].tolist() == [[now]]
    known.add(np.array([8], np.uint64), np.array([[9]], np.uint64), 9.0)
    known.expire(9.0, 100)
    assert known.find(key)[0].tolist() == []
    assert known.forgotten == 2.0


def test_what_was_known_before_the_kernels_were_there_stays_known() -> None:
    before = Generations(1)
    for now in range(3):
        before.add(np.array([now, now + 10], np.uint64), np.array([[now], [now]], np.uint64), float(now))
    before.expire(1.0, 100)
    with patch.object(fused, "_walk", None):
        assert faster(before) is before
    after = faster(before)
    assert isinstance(after, Index)
    assert after.forgotten == before.forgotten == 0.0
    asked = np.arange(20, dtype=np.uint64)
    for one, other in zip(before.find(asked), after.find(asked), strict=True):
        assert one.tolist() == other.tolist()


@given(
    st.lists(st.integers(0, 2**64 - 1) | st.sampled_from([0, 7, 2**33, 2**64 - 1]), max_size=60),
    st.integers(0, 63),
    st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_law_rows_are_in_the_order_of_their_keys(many: list[int], shift: int, compiled: bool) -> None:
    # Shifted far they all begin alike, and the kernel leaves them to the other sort.
    fused.prepare(wait=True)
    keys = np.array(many, np.uint64) >> np.uint64(shift)
    with patch.object(fused, "_walk", fused.kernels() if compiled else None):
        order = in_order(keys)
    assert sorted(order.tolist()) == list(range(len(keys)))
    assert keys[order].tolist() == sorted(keys.tolist())


def test_many_mixed_keys_are_put_in_order_by_the_kernel() -> None:
    keys = np.random.default_rng(1).integers(0, 2**64, 50_000, np.uint64)
    keys[::7] = keys[0]
    fused.prepare(wait=True)
    walk = fused.kernels()
    counts, rows = np.zeros((walk.SORTED_BY, walk.DIGITS), np.int64), np.empty((2, len(keys)), np.int64)
    assert walk.order(keys, counts, *rows)
    assert rows[1].tolist() == np.argsort(keys, kind="stable").tolist()


# -- content ---------------------------------------------------------------------------------------------------------

NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False)
VALUES = st.text(max_size=40) | NUMBERS | st.booleans() | st.binary(max_size=9)
ATTRIBUTES = st.dictionaries(st.sampled_from([f"key{n}" for n in range(9)]), VALUES, max_size=6)


@given(st.lists(ATTRIBUTES, min_size=2, max_size=6), st.randoms())
@settings(max_examples=60, deadline=None)
def test_law_content_is_the_spans_own_in_any_company(attributes: list[dict[str, Any]], chance: random.Random) -> None:
    spans = [span(each, number=number) for number, each in enumerate(attributes)]
    resource = {"service.name": "a"}
    alone = [int(contents(decode([request([each], resource)]))[0]) for each in spans]
    order = list(range(len(spans)))
    chance.shuffle(order)
    several = [request([spans[n]], resource) for n in order[:2]] + [request([spans[n] for n in order[2:]], resource)]
    one = [request([spans[n] for n in order], resource)]
    for payloads in (several, one):
        assert contents(decode(payloads)).tolist() == [alone[n] for n in order]


@given(st.lists(ATTRIBUTES, min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_law_content_does_not_depend_on_who_decodes(attributes: list[dict[str, Any]]) -> None:
    body = request([span(each, number=number) for number, each in enumerate(attributes)], {"service.name": "a"})
    fused.prepare(wait=True)
    with patch.object(fused, "_walk", None):
        by_ptars = contents(decode([body]))
        slowly = Keys(decode([body]), np.uint64(77))
    decoded = decode([body])
    assert contents(decoded).tolist() == by_ptars.tolist()
    quickly = Keys(decoded, np.uint64(77))
    for name in Keys.__slots__:
        assert getattr(quickly, name).tolist() == getattr(slowly, name).tolist()


def told(each: Any, resource: dict[str, object] | None = None) -> int:
    """Content of one span."""
    return int(contents(decode([request([each], resource)]))[0])


def changed(**fields: Any) -> Any:
    usual: dict[str, Any] = {"a": "one", "b": 2, "c": 2}
    return span({**usual, **fields.pop("attributes", {})}, number=1, **fields)


OTHERS = {
    "a text": changed(attributes={"a": "two"}),
    "a number of the same length": changed(attributes={"b": 3}),
    "numbers that changed places": changed(attributes={"b": 2, "c": 2, "a": "one", "d": 1}),
    "a key": span({"a": "one", "b": 2, "d": 2}, number=1),
    "values swapped": changed(attributes={"b": 1, "c": 3}),
    "a value less": span({"a": "one", "b": 2}, number=1),
    "the name": changed(name="x"),
    "the end": changed(end_time_unix_nano=5),
    "the parent": changed(parent_span_id=b"12345678"),
    "the kind": changed(kind=5),
}


@pytest.mark.parametrize("what", OTHERS)
def test_other_content_is_told(what: str) -> None:
    assert told(changed()) != told(OTHERS[what])


def test_two_values_that_changed_places_are_other_content() -> None:
    assert told(span({"in": 1, "out": 3}, number=1)) != told(span({"in": 3, "out": 1}, number=1))
    assert told(span({"in": 1, "out": 3}, number=1)) != told(span({"out": 1, "in": 3}, number=1))


def test_another_sender_is_other_content() -> None:
    mine, theirs = (told(changed(), {"tollspan.sender.tenant": who}) for who in ("a", "b"))
    assert mine != theirs


def test_a_long_text_is_told_by_all_of_it_and_status_events_and_links_too() -> None:
    long = "x" * 300_000
    texts = (long, long[:-1] + "y", "y" + long[1:], long[:150_000] + "y" + long[150_001:])
    made = [changed(attributes={"a": text}) for text in texts]
    status, event, link = changed(), changed(), changed()
    status.status.message = "m"
    event.events.add(name="e")
    link.links.add(span_id=b"12345678")
    assert len({told(each) for each in (*made, changed(), status, event, link)}) == 8


def test_conflicts_are_named_once_a_while(caplog: pytest.LogCaptureFixture) -> None:
    log = ConflictLog()
    with caplog.at_level(logging.WARNING):
        for _ in range(100):
            log.tell(pa.array([b"t" * 16], pa.binary(16)), pa.array([b"s" * 8], pa.binary(8)))
    assert len(caplog.records) == 1
    assert f"{'74' * 16}/{'73' * 8}" in caplog.text


# -- on disk ---------------------------------------------------------------------------------------------------------


def record(number: int, part: str = "", at: int | None = None, received: int | None = None, rows: int = 5) -> Record:
    keys = np.arange(rows, dtype=np.uint64) + np.uint64(1000 * number)
    place = Range(1, 100 * number, 100 * number + 100) if at is None else Range(1, 100 * at, 100 * at + 100)
    two = np.column_stack([keys, keys + np.uint64(1)])
    four = np.column_stack([keys, keys, keys, keys])[:2]
    time_ns = number * 10**9 if received is None else received
    return Record(place, part, time_ns, 7, {"token": str(number)}, keys, two, keys[:1], keys[:2], four)


class Disk:
    """A folder, and the processes that come to it one after the other."""

    def __init__(self, folder: Path, store: str = "store", **limits: Any) -> None:
        self.folder, self.store, self.counters = folder, store, Counters()
        self.limits = {"window_s": 900.0, "max_bytes": 1 << 30, **limits}

    def open(self, cursor: int = 10**6, store: str = "store", journal: bytes = b"j" * 16) -> tuple[RecentLog, Any]:
        log = RecentLog(self.folder, journal, store, counters=self.counters, **self.limits)
        return log, log.open(Position(1, cursor))

    def names(self, cursor: int = 10**6) -> list[str]:
        log, known = self.open(cursor)
        log.close()
        return [each.account["token"] + each.part for each in known.records]


def test_what_is_put_down_is_read_back(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "recent")
    log, known = disk.open()
    seed = known.seed
    assert known.records == []
    for number in range(3):
        log.append(record(number))
    log.close()
    _, known = disk.open()
    assert known.seed == seed
    for number, (found, expected) in enumerate(zip(known.records, map(record, range(3)), strict=True)):
        for name in Record.__dataclass_fields__:
            assert np.array_equal(getattr(found, name), getattr(expected, name)), (number, name)


def test_batches_that_come_again_are_left_out_and_their_accounts_are_told(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "recent")
    log, _ = disk.open()
    for number in range(4):
        log.append(record(number))
    log.close()
    assert disk.names(cursor=200) == ["0", "1"]
    _, known = disk.open(cursor=200)
    assert [each["token"] for each in known.attempts] == ["2", "3"]


def test_what_came_again_is_known_as_it_came_last(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "recent")
    for process in (10, 20):
        log, _ = disk.open(cursor=100)
        for at in range(0 if process == 10 else 1, 4):
            log.append(record(process + at, at=at))
        log.close()
    assert disk.names() == ["10", "21", "22", "23"]


def test_a_part_that_was_refused_is_not_known(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "recent")
    log, _ = disk.open()
    log.append(record(0))
    log.append(record(1))
    log.void(Range(1, 100, 200), "", 10**9)
    log.append(record(1, part=".0"))
    log.append(record(1, part=".1"))
    log.void(Range(1, 100, 200), ".1", 10**9)
    log.close()
    assert disk.names() == ["0", "1.0"]


@pytest.mark.parametrize("cut", [1, 40, 100, 300])
def test_a_record_that_was_cut_short_ends_what_is_known_and_is_counted(tmp_path: Path, cut: int) -> None:
    disk = Disk(tmp_path / "recent")
    log, _ = disk.open()
    for number in range(3):
        log.append(record(number))
    log.close()
    (path,) = (tmp_path / "recent").iterdir()
    path.write_bytes(path.read_bytes()[:-cut])
    assert disk.names() == ["0", "1"]
    assert disk.counters.get("recent.log_damaged") == 1
    log, _ = disk.open()
    log.append(record(7))
    log.close()
    assert disk.names() == ["0", "1", "7"], "the next process goes on in a file of its own"


def test_a_flipped_bit_anywhere_is_noticed(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "recent")
    log, _ = disk.open()
    for number in range(3):
        log.append(record(number, rows=2))
    log.close()
    (path,) = (tmp_path / "recent").iterdir()
    whole = path.read_bytes()
    names = ["0", "1", "2"]
    for at in range(0, len(whole), 3):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
        found = disk.names()
        assert found == names[: len(found)], at
        assert len(found) < 3 or 64 <= at < 72, at
        path.write_bytes(whole)


def test_a_log_of_another_store_or_journal_is_left_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for other in ({"store": "other"}, {"journal": b"k" * 16}):
        disk = Disk(tmp_path / "recent")
        log, _ = disk.open()
        log.append(record(0))
        log.close()
        _, known = disk.open(**other)
        assert known.records == []
        assert "another" in caplog.text
        assert not list((tmp_path / "recent").iterdir())


def test_contents_that_an_older_version_put_down_are_not_known(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "recent")
    log, _ = disk.open()
    log.append(record(0))
    log.close()
    (path,) = (tmp_path / "recent").iterdir()
    written = path.read_bytes()
    path.write_bytes(written[:8] + (1).to_bytes(4, "little") + written[12:])
    _, known = disk.open()
    (found,) = known.records
    assert found.spans[:, 1].tolist() == [UNKNOWN] * 5
    assert found.spans[:, 0].tolist() == record(0).spans[:, 0].tolist()
    for of_width in (Generations, index):
        recent = of_width(2)
        recent.add(found.keys, found.spans, 1.0)
        sifted = sift(recent, 1, found.keys, found.keys + np.uint64(7))
        assert (len(sifted.fresh), sifted.duplicates, len(sifted.conflicts)) == (0, 5, 0)


def test_files_are_removed_when_the_window_is_over_or_they_are_too_large(tmp_path: Path) -> None:
    folder = tmp_path / "recent"
    disk = Disk(folder, window_s=120.0)
    log, _ = disk.open()
    for minute in range(10):
        log.append(record(minute, received=minute * MINUTE))
    log.close()
    assert len(list(folder.iterdir())) <= 4
    assert disk.names()[-3:] == ["7", "8", "9"]
    disk = Disk(folder, max_bytes=5000)
    log, _ = disk.open()
    for minute in range(10, 30):
        log.append(record(minute, received=minute * MINUTE, rows=50))
    log.close()
    assert sum(path.stat().st_size for path in folder.iterdir()) < 10_000


def test_a_disk_that_takes_nothing_holds_nobody_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    disk = Disk(tmp_path / "file" / "recent")
    log, known = disk.open()
    assert known.records == []
    log.append(record(0))
    log.append(record(1))
    log.sync()
    log.close()
    assert disk.counters.get("recent.log_failures") == 3
    assert caplog.text.count("not kept") == 1


def test_what_was_not_put_down_is_known_to_be_missing(tmp_path: Path) -> None:
    folder = tmp_path / "recent"
    disk = Disk(folder)
    log, _ = disk.open()
    log.append(record(1))
    folder.rename(tmp_path / "away")
    log.append(record(2, received=2 * MINUTE))
    (tmp_path / "away").rename(folder)
    log.append(record(3, received=3 * MINUTE))
    log.close()
    _, known = disk.open()
    assert [each.since_ns for each in known.records] == [7, 2 * MINUTE], "everything after this is known"


# -- the whole -------------------------------------------------------------------------------------------------------


def released(service: Service) -> None:
    """Wait until nothing in the journal would come again."""
    deadline = time.monotonic() + 60
    while sum(each.waiting_records for each in inspect(service.folder / "journal").segments):
        assert time.monotonic() < deadline, "the journal does not empty"
        time.sleep(0.05)


def test_a_parent_and_its_child_on_two_sides_of_a_kill_are_billed_once(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    service = Service(folder, ["--keep", "1", "--decision-wait", "0"])
    tool = {"gen_ai.operation.name": "execute_tool"}
    before = [chat(2, trace=1, parent=9), chat(9, trace=1, parent=1, tokens=None, **tool), chat(11, tokens=(5000, 500))]
    after = [chat(1, tokens=(5000, 500)), chat(12, trace=11, parent=11)]
    service.start()
    service.export(payload(before))
    released(service)
    service.kill()
    service.start()
    service.export(payload(after))
    # At once: this request may be in the journal alone.
    service.kill()
    service.start()
    service.export(payload([*after, *before]))
    stats = service.stop()
    assert stats["recent.recalled"] >= 3
    assert stats["recent.duplicates"] == 5
    with open_store(service.url, create=False) as store:
        rows = store.rows("SELECT span_id, cost, cost_status FROM ledger FINAL ORDER BY span_id")
        report = reconcile(store, folder / "journal")
    assert {int.from_bytes(row["span_id"], "big"): row["cost_status"] for row in rows} == {
        1: "rollup",
        2: "priced",
        11: "rollup",
        12: "priced",
    }
    assert sum(row["cost"] or 0 for row in rows) == 2 * (1000 * INPUT + 100 * OUTPUT)
    assert report.agrees, str(report)
    assert report.totals["spans"] == 10


def test_kills_at_any_moment_bill_each_call_once(tmp_path: Path) -> None:
    """Calls, their agents and resends of both, over five kills at random moments."""
    chance = random.Random(20261121)
    folder = tmp_path / "store"
    service = Service(folder, ["--keep", "0", "--decision-wait", "0.2"])
    spans = []
    for trace in range(1, 61):
        number = 10 * trace
        spans += [chat(number, tokens=(5000, 500)), chat(number + 1, trace=number, parent=number)]
    chance.shuffle(spans)
    requests = [spans[at : at + 6] for at in range(0, len(spans), 6)]
    service.start()
    for number, each in enumerate(requests):
        service.export(payload(each))
        if chance.random() < 0.3:
            service.export(payload(chance.sample(spans[: 6 * number + 6], 5)))
        if number % 4 == 3:
            time.sleep(chance.random())
            service.kill()
            service.start()
    released(service)
    service.stop()
    with open_store(service.url, create=False) as store:
        report = reconcile(store, folder / "journal")
        rolled = store.rows("SELECT count() AS n FROM ledger FINAL WHERE cost_status = 'rollup'")
    assert report.agrees, str(report)
    assert (report.totals["ledger_rows"], rolled[0]["n"]) == (120, 60)
    assert report.totals["cost"] == 60 * (1000 * INPUT + 100 * OUTPUT)
