"""The journal keeps what it acknowledged, in order, under names that stay; and says what it could not keep."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import os
import shutil
import struct
import tarfile
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tollspan.processor.counters import Counters
from tollspan.processor.errors import ConfigError, JournalError, JournalFull
from tollspan.processor.journal import Batch, Journal
from tollspan.processor.journal.inspection import inspect, payload_of, records
from tollspan.processor.journal.segment import HEADER_BYTES, RECORD_BYTES, segment_numbers, segment_path

MANY = 1 << 30
"""A batch size that takes everything."""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def journal(place: Path) -> Iterator[Journal]:
    opened = Journal(place)
    yield opened
    opened.close()


class Disk:
    """Makes system calls of `os` fail while a fault is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch

    def fail(self, call: str, error: int, *, after_bytes: int | None = None, times: int | None = None) -> None:
        original: Callable[..., object] = getattr(os, call)
        left = [times]

        def failing(*args: object, **kwargs: object) -> object:
            if left[0] == 0:
                return original(*args, **kwargs)
            if left[0] is not None:
                left[0] -= 1
            if after_bytes is not None:
                fd, buffers, offset = args
                os.pwrite(fd, b"".join(buffers)[:after_bytes], offset)  # type: ignore[arg-type]
            raise OSError(error, os.strerror(error))

        self._patch.setattr(os, call, failing)

    def heal(self) -> None:
        self._patch.undo()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def keep(journal: Journal, *payloads: bytes) -> None:
    """Append and wait for all."""
    for ticket in [journal.append(payload) for payload in payloads]:
        ticket.wait(10)


def take(journal: Journal, max_bytes: int = MANY) -> Batch:
    batch = journal.next_batch(max_bytes, timeout=10)
    assert batch is not None
    return batch


def drain(journal: Journal, max_bytes: int = MANY) -> list[Batch]:
    """All batches that are there now."""
    batches = []
    while (batch := journal.next_batch(max_bytes, timeout=0)) is not None:
        batches.append(batch)
    return batches


def payloads(batches: list[Batch]) -> list[bytes]:
    return [payload for batch in batches for payload in batch.payloads]


def crash_copy(journal: Journal, to: Path) -> Path:
    """The directory as a crash at this moment would leave it."""
    shutil.copytree(journal.directory, to)
    return to


# -- order, identity, release -----------------------------------------------------------------------------------------


def test_payloads_come_out_in_the_order_in_which_they_went_in(journal: Journal) -> None:
    sent = [b"a", b"", b"\x00" * 1000, bytes(range(256))]
    keep(journal, *sent)
    assert payloads([take(journal)]) == sent
    assert journal.stats()["appended"] == 4
    assert journal.stats()["appended_bytes"] == sum(map(len, sent))


def test_a_batch_holds_at_least_one_payload_and_no_more_bytes_than_asked_for(journal: Journal) -> None:
    keep(journal, b"x" * 100, b"y" * 40, b"z" * 40, b"w" * 40)
    assert [len(batch.payloads) for batch in drain(journal, 80)] == [1, 2, 1]


def test_everything_comes_again_until_released_with_the_same_tokens(place: Path) -> None:
    sent = [b"%d" % i * 50 for i in range(10)]
    first = Journal(place)
    keep(first, *sent[:6])
    before = [take(first, 150), take(first, 150)]
    keep(first, *sent[6:])
    first.close()

    again = Journal(place)
    after = drain(again)
    again.close()
    assert [(b.token, b.payloads) for b in after[:2]] == [(b.token, b.payloads) for b in before]
    assert payloads(after) == sent
    assert all(batch.replayed for batch in after)
    assert again.stats()["replayed"] == 10


def test_released_batches_do_not_come_again_and_their_segments_go(place: Path) -> None:
    first = Journal(place, segment_bytes=1000)
    for i in range(10):
        keep(first, b"%d" % i * 600)
    for batch in drain(first, 1):
        first.release(batch)
        first.release(batch)
    assert len(segment_numbers(place)) == 1, "the newest segment stays"
    assert first.stats()["disk_bytes"] <= 1000 + 600 + 2 * RECORD_BYTES
    first.close()

    again = Journal(place)
    assert drain(again) == []
    again.close()


def test_the_cursor_moves_over_the_released_prefix_only(place: Path) -> None:
    first = Journal(place)
    keep(first, b"a", b"b", b"c", b"d")
    a, b, c, d = drain(first, 1)
    for batch in (c, a):
        first.release(batch)
    assert first.stats()["outstanding"] == 2
    first.close()

    again = Journal(place)
    assert [batch.token for batch in drain(again)] == [b.token, c.token, d.token]
    again.close()


def test_no_token_is_given_twice_over_restarts(place: Path) -> None:
    tokens: list[str] = []
    for _ in range(5):
        journal = Journal(place, segment_bytes=200)
        keep(journal, b"same" * 20, b"same" * 20, b"same" * 20)
        for batch in drain(journal, 1):
            tokens.append(batch.token)
            journal.release(batch)
        journal.close()
    assert len(set(tokens)) == len(tokens) == 15


def test_a_batch_frozen_but_not_handed_out_before_a_crash_is_handed_out_as_it_was_frozen(
    journal: Journal, tmp_path: Path
) -> None:
    keep(journal, b"a" * 10, b"b" * 10)
    frozen = take(journal)
    keep(journal, b"c" * 10)
    crashed = crash_copy(journal, tmp_path / "crashed")
    again = Journal(crashed)
    after = drain(again)
    again.close()
    assert (after[0].token, after[0].payloads) == (frozen.token, frozen.payloads)
    assert payloads(after[1:]) == [b"c" * 10]


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("append"), st.binary(max_size=300)),
            st.tuples(st.just("full"), st.binary(max_size=300)),
            st.tuples(st.just("batch"), st.integers(1, 600)),
            st.tuples(st.just("release"), st.integers(0, 20)),
            st.tuples(st.just("crash"), st.just(0)),
        ),
        max_size=50,
    ),
    memory=st.sampled_from([0, 200, 1 << 20]),
)
def test_law_unreleased_payloads_survive_any_history_once_each_and_in_order(
    steps: list[tuple[str, object]], memory: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("law")
    sent: list[bytes] = []
    open_batches: dict[str, Batch] = {}
    known: dict[str, list[bytes]] = {}
    released: set[str] = set()
    crashes = 0
    journal = Journal(place / "0", segment_bytes=400, memory_bytes=memory)

    def receive(batch: Batch) -> None:
        # A token names the same payloads for ever.
        assert known.setdefault(batch.token, batch.payloads) == batch.payloads
        open_batches[batch.token] = batch

    for kind, value in steps:
        if kind == "append":
            sent.append(b"%06d" % len(sent) + value)  # type: ignore[operator]
            keep(journal, sent[-1])
        elif kind == "full":
            sent.append(b"%06d" % len(sent) + value)  # type: ignore[operator]
            try:
                with pytest.MonkeyPatch.context() as patch:
                    Disk(patch).fail("pwritev", errno.ENOSPC, times=1)
                    keep(journal, sent[-1])
            except JournalFull:
                sent.pop()
            assert journal.stats()["disk_bytes"] == sum(s.end for s in journal._segments.values())
        elif kind == "batch":
            batch = journal.next_batch(value, timeout=0)  # type: ignore[arg-type]
            if batch is not None:
                receive(batch)
        elif kind == "release" and open_batches:
            token = list(open_batches)[value % len(open_batches)]  # type: ignore[operator]
            journal.release(open_batches.pop(token))
            released.add(token)
        elif kind == "crash":
            crashes += 1
            crash_copy(journal, place / str(crashes))
            journal.close()
            journal = Journal(place / str(crashes), segment_bytes=400, memory_bytes=memory)
            open_batches.clear()
    for batch in drain(journal, 500):
        receive(batch)
    journal.close()
    # What came out last, with what was released for good, is everything; and nothing stands in two batches.
    assert journal.stats()["unread_bytes"] == journal.stats()["memory_bytes"] == 0
    assert sorted(p for ps in known.values() for p in ps) == sent
    missing = {p for t, ps in known.items() if t not in open_batches for p in ps}
    assert missing <= {p for t in released for p in known[t]}


# -- waiting ----------------------------------------------------------------------------------------------------------


def test_next_batch_wakes_up_for_a_payload(journal: Journal) -> None:
    got: list[Batch | None] = []
    reader = threading.Thread(target=lambda: got.append(journal.next_batch(MANY, timeout=30)))
    reader.start()
    keep(journal, b"now")
    reader.join(10)
    assert [batch and batch.payloads for batch in got] == [[b"now"]]


def test_small_payloads_that_come_while_it_lingers_share_a_batch(journal: Journal) -> None:
    got: list[Batch | None] = []
    keep(journal, b"1")
    reader = threading.Thread(target=lambda: got.append(journal.next_batch(3 * (1 + RECORD_BYTES), 30, linger=30)))
    reader.start()
    keep(journal, b"2")
    keep(journal, b"3")
    # Ends because there is enough, long before the linger is over.
    reader.join(10)
    assert [batch and batch.payloads for batch in got] == [[b"1", b"2", b"3"]]


def test_nothing_to_do_is_none_and_so_is_a_closed_journal(journal: Journal) -> None:
    assert journal.next_batch(MANY, timeout=0.01) is None
    got: list[Batch | None] = [Batch("", [], None)]  # type: ignore[arg-type]
    reader = threading.Thread(target=lambda: got.append(journal.next_batch(MANY, timeout=60)))
    reader.start()
    journal.close()
    reader.join(10)
    assert got[1:] == [None]
    with pytest.raises(JournalError, match="closed"):
        journal.append(b"late").wait(1)


def test_close_makes_durable_what_was_appended(place: Path) -> None:
    first = Journal(place)
    tickets = [first.append(b"%d" % i) for i in range(100)]
    first.close()
    for ticket in tickets:
        ticket.wait(0)
    again = Journal(place)
    assert len(payloads(drain(again))) == 100
    again.close()


# -- group commit and memory ------------------------------------------------------------------------------------------


class Gate:
    """Holds the next fdatasync until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered, self.open = threading.Event(), threading.Event()
        original = os.fdatasync

        def fdatasync(fd: int) -> None:
            self.entered.set()
            assert self.open.wait(10)
            original(fd)

        monkeypatch.setattr(os, "fdatasync", fdatasync)


def test_appends_that_arrive_during_a_sync_share_the_next_one(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    tickets = [journal.append(b"first")]
    assert gate.entered.wait(10)
    tickets += [journal.append(b"more") for _ in range(200)]
    assert not any(ticket.done() for ticket in tickets), "nothing is acknowledged before its sync"
    gate.open.set()
    for ticket in tickets:
        ticket.wait(10)
    assert journal.stats()["syncs"] == 2


def test_a_payload_is_not_handed_out_before_it_is_durable(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    ticket = journal.append(b"not yet")
    assert gate.entered.wait(10)
    assert journal.next_batch(MANY, timeout=0) is None
    gate.open.set()
    ticket.wait(10)
    assert take(journal).payloads == [b"not yet"]


def test_fresh_payloads_are_handed_over_without_reading_the_disk(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "pread", lambda *_: pytest.fail("read from disk"))
    sent = b"z" * 100_000
    keep(journal, sent)
    assert take(journal).payloads[0] is sent


def test_a_worker_that_lags_costs_bounded_memory_and_loses_nothing(place: Path) -> None:
    journal = Journal(place, memory_bytes=5000, segment_bytes=20_000)
    sent = [b"%04d" % i * 100 for i in range(200)]
    for payload in sent[:150]:
        keep(journal, payload)
    assert 0 < journal.stats()["memory_bytes"] <= 5000
    got = [take(journal, 3000) for _ in range(10)]
    for payload in sent[150:]:
        keep(journal, payload)
    got += drain(journal, 3000)
    assert payloads(got) == sent
    # Caught up: the next one comes from memory again.
    keep(journal, b"fresh")
    assert journal.stats()["memory_bytes"] == RECORD_BYTES + 5
    journal.close()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 40_000), min_size=1, max_size=12), st.booleans(), st.data())
def test_law_any_stretch_of_a_batch_is_read_again_as_it_came(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], from_disk: bool, data: st.DataObject
) -> None:
    sent = [os.urandom(size) for size in sizes]
    with contextlib.closing(
        Journal(tmp_path_factory.mktemp("journal"), segment_bytes=60_000, memory_bytes=0 if from_disk else MANY)
    ) as journal:
        keep(journal, *sent)
        for batch in drain(journal, 50_000):
            assert batch.stored is not None
            assert batch.stored.nbytes == 0
            joined, bounds = b"".join(batch.payloads), [0, *itertools.accumulate(map(len, batch.payloads))]
            asked = []
            for number in data.draw(st.lists(st.integers(0, len(bounds) - 2), max_size=6)):
                start = data.draw(st.integers(bounds[number], bounds[number + 1]))
                asked.append((start, data.draw(st.integers(0, bounds[number + 1] - start))))
            starts, lengths = np.array(asked, np.int64).reshape(-1, 2).T
            found, at = batch.stored.read(starts, lengths)
            assert not found.flags.writeable
            for (start, length), place in zip(asked, at.tolist(), strict=True):
                assert found[place : place + length].tobytes() == joined[start : start + length]
                assert place + length + 8 <= len(found)


def test_what_cannot_be_read_again_is_an_error(place: Path) -> None:
    with contextlib.closing(Journal(place)) as journal:
        keep(journal, b"x" * 1000, b"y" * 1000)
        batch = take(journal)
        assert batch.stored is not None
        everything = np.array([0, 1000]), np.array([1000, 1000])
        found, at = batch.stored.read(*everything)
        # What lies between two stretches may be anything.
        assert [found[start : start + 1000].tobytes() for start in at] == [b"x" * 1000, b"y" * 1000]
        os.truncate(segment_path(place, 1), 1500)
        with pytest.raises(OSError, match="shorter"):
            batch.stored.read(*everything)
        segment_path(place, 1).unlink()
        with pytest.raises(FileNotFoundError):
            batch.stored.read(*everything)


def test_many_threads_append_at_once(journal: Journal) -> None:
    def work(name: int) -> None:
        for i in range(100):
            journal.append(b"%d:%d" % (name, i)).wait(10)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    got = payloads(drain(journal))
    assert sorted(got) == sorted(b"%d:%d" % (n, i) for n in range(8) for i in range(100))
    for name in range(8):
        mine = [int(p.split(b":")[1]) for p in got if p.startswith(b"%d:" % name)]
        assert mine == sorted(mine), "one thread's payloads keep their order"
    assert journal.stats()["syncs"] <= 800


# -- damage -----------------------------------------------------------------------------------------------------------


def written(place: Path, *sent: bytes) -> tuple[Path, list[int]]:
    """A closed journal that holds ``sent`` unread; its segment and where each record begins, and the end mark."""
    journal = Journal(place)
    keep(journal, *sent)
    journal.close()
    starts = [HEADER_BYTES]
    for payload in sent:
        starts.append(starts[-1] + RECORD_BYTES + len(payload))
    path = segment_path(place, 1)
    assert path.stat().st_size == starts[-1] + RECORD_BYTES
    return path, starts


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x10
    path.write_bytes(data)


@pytest.mark.parametrize("cut", range(1, RECORD_BYTES + 10))
def test_a_torn_tail_is_cut_off_and_counted(place: Path, cut: int) -> None:
    path, starts = written(place, b"whole", b"torn" * 3)
    os.truncate(path, starts[-1] - cut)
    journal = Journal(place)
    assert payloads(drain(journal)) == [b"whole"]
    assert journal.stats()["torn_bytes"] == starts[-1] - cut - starts[1]
    assert path.stat().st_size == starts[1]
    keep(journal, b"next")
    assert payloads(drain(journal)) == [b"next"]
    journal.close()


def test_law_a_write_that_stops_at_any_byte_leaves_whole_records_and_no_false_alarm(
    place: Path, tmp_path: Path
) -> None:
    journal = Journal(place)
    keep(journal, b"c" * 100)
    crashed = crash_copy(journal, tmp_path / "crashed")
    begin = take(journal).position.end
    keep(journal, b"d" * 60, b"e" * 60)
    journal.close()
    before, after = segment_path(crashed, 1).read_bytes(), segment_path(place, 1).read_bytes()
    for written in range(len(after) - begin + 1):
        here = shutil.copytree(crashed, tmp_path / f"crashed{written}")
        content = after[: begin + written] + before[begin + written :]
        segment_path(here, 1).write_bytes(content)
        again = Journal(here)
        whole = sum(written >= n * (RECORD_BYTES + 60) for n in (1, 2))
        assert payloads(drain(again)) == [b"c" * 100, b"d" * 60, b"e" * 60][: 1 + whole], written
        stats = again.stats()
        again.close()
        shutil.rmtree(here)
        assert stats["corrupt_records"] == 0
        # No alarm where nothing was begun, all was written, or the cut fell between two records.
        calm = content in (before, after) or written == whole * (RECORD_BYTES + 60)
        assert (stats["torn_bytes"] == 0) is calm, written


def test_a_tail_of_zeros_is_a_torn_tail(place: Path) -> None:
    path, starts = written(place, b"whole")
    path.write_bytes(path.read_bytes()[: starts[-1]] + bytes(5000))
    journal = Journal(place)
    assert payloads(drain(journal)) == [b"whole"]
    assert journal.stats()["torn_bytes"] == 5000
    journal.close()


@settings(max_examples=80, deadline=None)
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_law_a_flipped_bit_costs_at_most_its_own_record_and_is_counted(
    where: float, bit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("flip") / "journal"
    sent = [b"%d" % i * (i + 1) * 40 for i in range(5)]
    path, starts = written(place, *sent)
    data = bytearray(path.read_bytes())
    at = int(where * len(data))
    data[at] ^= 1 << bit
    path.write_bytes(data)

    journal = Journal(place)
    got = payloads(drain(journal))
    stats = journal.stats()
    journal.close()
    hit = [payload for payload, start, end in zip(sent, starts, starts[1:], strict=False) if start <= at < end]
    assert got == [payload for payload in sent if payload not in hit]
    if at < HEADER_BYTES:
        assert stats["damaged_files"] == 1
    elif at >= starts[-1]:
        assert stats["torn_bytes"] == RECORD_BYTES
    else:
        assert stats["corrupt_records"] == 1
        assert stats["corrupt_bytes"] == RECORD_BYTES + len(hit[0])


def test_a_segment_with_a_damaged_record_is_kept_aside(place: Path) -> None:
    path, starts = written(place, b"a" * 50, b"b" * 50, b"c" * 50)
    flip(path, starts[1] + RECORD_BYTES)
    journal = Journal(place)
    for batch in drain(journal):
        journal.release(batch)
    keep(journal, b"d")
    journal.release(take(journal))
    journal.close()
    assert not path.exists()
    assert path.with_suffix(".damaged").stat().st_size >= starts[-1]


def test_a_payload_cannot_pass_for_a_record_behind_damage(place: Path) -> None:
    inner_place = place.with_name("other")
    inner, _ = written(inner_place, b"not a payload")
    path, starts = written(place, inner.read_bytes(), b"real")
    flip(path, starts[0])  # the header of the record that holds the other segment's records
    journal = Journal(place)
    assert payloads(drain(journal)) == [b"real"]
    journal.close()


def test_a_record_header_across_a_reading_window_is_found(place: Path) -> None:
    for extra in range(RECORD_BYTES + 1):
        here = place.with_name(f"window{extra}")
        path, starts = written(here, b"x" * ((1 << 20) + 1 - RECORD_BYTES - extra), b"found")
        flip(path, starts[0])
        journal = Journal(here)
        assert payloads(drain(journal)) == [b"found"], extra
        journal.close()
        shutil.rmtree(here)


def test_a_damaged_cursor_means_that_all_comes_again_under_the_same_tokens(place: Path) -> None:
    first = Journal(place)
    keep(first, b"a", b"b")
    tokens = [batch.token for batch in drain(first, 1)]
    first.close()
    (place / "cursor.json").write_text("{}")
    again = Journal(place)
    assert [batch.token for batch in drain(again)] == tokens
    assert again.stats()["damaged_files"] == 1
    again.close()


def test_a_damaged_batch_log_is_counted_and_the_payloads_come(place: Path) -> None:
    first = Journal(place)
    keep(first, b"a", b"b")
    drain(first, 1)
    first.close()
    flip(place / "batches.log", 3)
    again = Journal(place)
    assert payloads(drain(again)) == [b"a", b"b"]
    assert again.stats()["damaged_files"] == 1
    again.close()


def test_a_damaged_entry_between_others_is_cut_again_with_the_same_token(place: Path) -> None:
    first = Journal(place)
    keep(first, b"a", b"b", b"c")
    tokens = [batch.token for batch in drain(first, 1)]
    first.close()
    flip(place / "batches.log", 32 + 28 + 5)
    again = Journal(place)
    assert [batch.token for batch in drain(again)] == tokens
    assert again.stats()["damaged_files"] == 1
    again.close()


def test_a_segment_whose_header_and_first_record_are_gone_is_set_aside_and_counted(place: Path) -> None:
    path, starts = written(place, b"a" * 50, b"b" * 50)
    path.write_bytes(b"\xee" * starts[1] + path.read_bytes()[starts[1] :])
    journal = Journal(place)
    assert drain(journal) == []
    assert path.with_suffix(".damaged").exists()
    assert journal.stats()["corrupt_bytes"] == starts[-1] + RECORD_BYTES
    keep(journal, b"c")
    assert payloads(drain(journal)) == [b"c"]
    journal.close()


def test_segments_that_somebody_removed_are_counted_and_their_numbers_not_given_again(place: Path) -> None:
    first = Journal(place, segment_bytes=100)
    keep(first, b"a" * 100)
    keep(first, b"b" * 100)
    tokens = [batch.token for batch in drain(first, 1)]
    first.close()
    segment_path(place, 1).unlink()
    second = Journal(place)
    assert [batch.token for batch in drain(second)] == tokens[1:]
    assert second.stats()["lost_batches"] == 0, "before the oldest segment nothing is expected"
    second.close()
    segment_path(place, 2).unlink()
    third = Journal(place)
    keep(third, b"c" * 100)
    assert not {batch.token for batch in drain(third)} & set(tokens)
    third.close()


def test_a_number_is_not_given_again_although_all_segments_were_removed(place: Path) -> None:
    numbers = []
    for _ in range(2):
        journal = Journal(place)
        keep(journal, b"same")
        batch = take(journal)
        numbers.append(batch.position.segment)
        journal.release(batch)
        journal.close()
        segment_path(place, numbers[-1]).unlink()
    assert numbers == [1, 2]


def test_a_frozen_batch_that_lost_its_end_is_counted(place: Path) -> None:
    first = Journal(place)
    keep(first, b"a" * 50, b"b" * 50)
    (batch,) = drain(first)
    first.close()
    os.truncate(segment_path(place, 1), batch.position.end - 1)
    again = Journal(place)
    (came,) = drain(again)
    assert (came.token, came.payloads) == (batch.token, [b"a" * 50])
    assert again.stats()["corrupt_records"] == 1
    again.close()


# -- the disk refuses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("partly", [0, 10, RECORD_BYTES + 3])
def test_a_full_disk_refuses_and_service_goes_on_when_there_is_room(
    journal: Journal, disk: Disk, tmp_path: Path, partly: int
) -> None:
    keep(journal, b"before")
    disk.fail("pwritev", errno.ENOSPC, after_bytes=partly)
    with pytest.raises(JournalFull, match="No space left"):
        journal.append(b"refused").wait(10)
    disk.heal()
    assert segment_path(journal.directory, 1).stat().st_size == HEADER_BYTES + RECORD_BYTES + 6
    keep(journal, b"after")
    assert journal.stats()["refused"] == 1
    crashed = Journal(crash_copy(journal, tmp_path / "crashed"))
    assert payloads(drain(journal)) == payloads(drain(crashed)) == [b"before", b"after"]
    crashed.close()


def test_after_a_failed_sync_the_segment_is_given_up(journal: Journal, disk: Disk, tmp_path: Path) -> None:
    keep(journal, b"before")
    disk.fail("fdatasync", errno.EIO, times=1)
    with pytest.raises(JournalError, match="Input/output error"):
        journal.append(b"refused").wait(10)
    keep(journal, b"after")
    assert segment_numbers(journal.directory) == [1, 2]
    crashed = Journal(crash_copy(journal, tmp_path / "crashed"))
    assert payloads(drain(journal)) == payloads(drain(crashed)) == [b"before", b"after"]
    crashed.close()
    for payload in (b"and", b"on"):
        keep(journal, payload)
    assert payloads(drain(journal)) == [b"and", b"on"]


def test_a_sync_is_not_believed_where_the_file_system_opens_nothing_any_more(journal: Journal, disk: Disk) -> None:
    keep(journal, b"before")
    # ext4 that is shut down while fdatasync runs: that says 0, and nothing is on disk.
    disk.fail("open", errno.EIO)
    with pytest.raises(JournalError, match="Input/output error"):
        journal.append(b"refused").wait(10)
    disk.heal()
    keep(journal, b"after")
    assert payloads(drain(journal)) == [b"before", b"after"]


def test_a_segment_that_cannot_be_cut_back_is_given_up(journal: Journal, disk: Disk) -> None:
    keep(journal, b"before")
    disk.fail("pwritev", errno.EIO, after_bytes=20)
    disk.fail("ftruncate", errno.EIO)
    with pytest.raises(JournalError):
        journal.append(b"refused").wait(10)
    disk.heal()
    keep(journal, b"after")
    assert segment_numbers(journal.directory) == [1, 2]
    assert payloads(drain(journal)) == [b"before", b"after"]


def test_a_segment_that_cannot_be_created_is_tried_again(place: Path, disk: Disk) -> None:
    journal = Journal(place)
    disk.fail("fsync", errno.EDQUOT)
    with pytest.raises(JournalFull):
        journal.append(b"refused").wait(10)
    disk.heal()
    keep(journal, b"after")
    assert len(segment_numbers(place)) == 1
    assert payloads(drain(journal)) == [b"after"]
    journal.close()


def test_a_batch_that_cannot_be_frozen_is_not_handed_out_and_comes_later(
    journal: Journal, disk: Disk, tmp_path: Path
) -> None:
    keep(journal, b"a")
    disk.fail("fdatasync", errno.EIO, times=1)
    with pytest.raises(JournalError, match="handing out"):
        journal.next_batch(MANY, timeout=0)
    keep(journal, b"b")
    batch = take(journal)
    assert batch.payloads == [b"a", b"b"]
    crashed = Journal(crash_copy(journal, tmp_path / "crashed"))
    assert [b.token for b in drain(crashed)] == [batch.token]
    crashed.close()


def test_a_full_disk_does_not_keep_the_journal_from_emptying(place: Path, disk: Disk) -> None:
    journal = Journal(place, segment_bytes=1000)
    for i in range(10):
        keep(journal, b"%d" % i * 600)
    # No new file can be written: neither a segment nor a cursor. What is written in place goes on.
    disk.fail("fsync", errno.ENOSPC)
    for batch in drain(journal, 1):
        journal.release(batch)
    assert len(segment_numbers(place)) == 1
    disk.heal()
    journal.close()


def test_the_cap_refuses_and_lets_in_again_after_release(place: Path) -> None:
    journal = Journal(place, max_bytes=10_000)
    keep(journal, *[b"x" * 500] * 17)
    with pytest.raises(JournalFull, match="cap of 10000 bytes"):
        journal.append(b"x" * 1000).wait(10)
    assert sum(segment_path(place, n).stat().st_size for n in segment_numbers(place)) <= 10_000
    for batch in drain(journal, 1):
        journal.release(batch)
    keep(journal, b"x" * 500)
    journal.close()


def test_room_returns_although_the_last_segment_alone_fills_the_cap(place: Path) -> None:
    journal = Journal(place, max_bytes=1000)
    for _ in range(5):
        keep(journal, b"x" * 700)
        with pytest.raises(JournalFull):
            journal.append(b"x" * 700).wait(10)
        for batch in drain(journal):
            journal.release(batch)
    assert len(segment_numbers(place)) == 1
    assert journal.stats()["disk_bytes"] <= 1000
    journal.close()


# -- opening ----------------------------------------------------------------------------------------------------------


def test_a_journal_belongs_to_one_process_and_the_message_names_it(journal: Journal) -> None:
    with pytest.raises(ConfigError, match=f"pid {os.getpid()}"):
        Journal(journal.directory)
    journal.close()
    Journal(journal.directory).close()


def test_a_directory_that_cannot_be_one_is_said_in_one_line(tmp_path: Path, disk: Disk) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"Not a directory|File exists"):
        Journal(tmp_path / "file")
    original = os.open

    def read_only(path: os.PathLike[str] | str, flags: int, *rest: int) -> int:
        if flags & (os.O_RDWR | os.O_WRONLY):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return original(path, flags, *rest)

    disk._patch.setattr(os, "open", read_only)
    with pytest.raises(ConfigError, match="Read-only file system"):
        Journal(tmp_path / "journal")


@pytest.mark.parametrize("damage", ["foreign", "newer"])
def test_files_of_another_journal_or_version_are_refused(place: Path, damage: str) -> None:
    path, _ = written(place, b"payload")
    if damage == "foreign":
        other, _ = written(place.with_name("other"), b"payload")
        shutil.copy(other, path)
        expected = "belongs to another journal"
    else:
        data = bytearray(path.read_bytes())
        struct.pack_into("<I", data, 8, 99)
        struct.pack_into("<I", data, HEADER_BYTES - 4, zlib.crc32(data[: HEADER_BYTES - 4]))
        path.write_bytes(data)
        expected = "has format 99"
    with pytest.raises(ConfigError, match=expected):
        Journal(place)


def test_a_segment_file_that_was_never_finished_is_no_loss(place: Path) -> None:
    written(place, b"payload")
    segment_path(place, 2).write_bytes(b"TOLL")
    journal = Journal(place)
    keep(journal, b"more")
    assert payloads(drain(journal)) == [b"payload", b"more"]
    assert segment_numbers(place) == [1, 3], "its number is not given again"
    journal.close()


def test_counters_are_shared_when_given(place: Path) -> None:
    counters = Counters()
    journal = Journal(place, counters=counters)
    keep(journal, b"1234")
    journal.close()
    assert counters.snapshot() == {"journal.appended": 1, "journal.appended_bytes": 4, "journal.syncs": 1}


def test_a_callback_learns_the_outcome_once(journal: Journal, disk: Disk) -> None:
    outcomes: list[object] = []
    journal.append(b"good", outcomes.append).wait(10)
    disk.fail("pwritev", errno.EIO)
    with pytest.raises(JournalError):
        journal.append(b"bad", outcomes.append).wait(10)
    disk.heal()
    journal.append(b"raises", lambda _: 1 / 0).wait(10)
    keep(journal, b"goes on")
    journal.close()
    journal.append(b"late", outcomes.append)
    assert [type(each) for each in outcomes] == [type(None), JournalError, JournalError]


# -- formats ----------------------------------------------------------------------------------------------------------

JOURNALS = Path(__file__).parent / "journals"


@pytest.mark.parametrize("name", sorted(path.name for path in JOURNALS.glob("*.tar.gz")))
def test_a_journal_of_every_format_there_was_is_replayed(name: str, place: Path) -> None:
    expected = json.loads((JOURNALS / name.replace(".tar.gz", ".json")).read_text())
    with tarfile.open(JOURNALS / name) as archive:
        # No argument of `extractall` before Python 3.11.4.
        archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
        archive.extractall(place)
    journal = Journal(place)
    batches = drain(journal)
    digests = {b.token: [hashlib.sha256(p).hexdigest() for p in b.payloads] for b in batches}
    assert {token: digests[token] for token in expected["batches"]} == expected["batches"]
    assert not digests.keys() & set(expected["released"])
    rest = [d for token, ds in digests.items() if token not in expected["batches"] for d in ds]
    assert rest == expected["rest"]
    keep(journal, b"and it goes on")
    assert payloads(drain(journal)) == [b"and it goes on"]
    stats = journal.stats()
    assert stats["corrupt_records"] == stats["torn_bytes"] == stats["damaged_files"] == 0
    journal.close()


@pytest.mark.parametrize("file", ["segment-0000000001.log", "batches.log", "cursor.json"])
def test_a_newer_journal_is_refused_in_words_and_left_as_it_is(place: Path, file: str) -> None:
    written(place, b"payload")
    (place / "segment-0000000002.log").write_bytes(b"TOLL")  # what is otherwise removed
    path = place / file
    if file == "cursor.json":
        body = {**json.loads(path.read_text()), "format": 2}
        del body["crc"]
        body["something"] = "new"
        crc = zlib.crc32(json.dumps(body, sort_keys=True).encode())
        path.write_text(json.dumps({**body, "crc": crc}))
    else:
        data = bytearray(path.read_bytes())
        size = 48 if file.startswith("segment") else 32
        struct.pack_into("<I", data, 8, 2)
        struct.pack_into("<I", data, size - 4, zlib.crc32(data[: size - 4]))
        path.write_bytes(data)
    before = {p.name: p.read_bytes() for p in place.iterdir() if p.name != "lock"}
    with pytest.raises(ConfigError, match="has format 2, a newer Tollspan's; this one reads formats up to 1"):
        Journal(place)
    assert {p.name: p.read_bytes() for p in place.iterdir() if p.name != "lock"} == before
    with pytest.raises(ConfigError, match="has format 2"):
        inspect(place)


@settings(max_examples=60, deadline=None)
@given(
    where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), file=st.sampled_from(["batches.log", "cursor.json"])
)
def test_law_a_flipped_bit_beside_the_segments_loses_nothing(
    where: float, bit: int, file: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("flip") / "journal"
    first = Journal(place)
    sent = [b"%d" % n * 30 for n in range(8)]
    keep(first, *sent)
    for batch in drain(first, 60)[:2]:
        first.release(batch)
    first.close()
    data = bytearray((place / file).read_bytes())
    used = len(data) if file == "cursor.json" else 32 + 28 * 4
    data[int(where * used)] ^= 1 << bit
    (place / file).write_bytes(data)
    again = Journal(place)
    got = payloads(drain(again))
    stats = again.stats()
    again.close()
    # Whether the released ones come again depends on the cursor; no others may be missing, and none comes twice.
    assert got[-4:] == sent[-4:]
    assert got == sent[len(sent) - len(got) :]
    if file == "cursor.json":
        assert stats["damaged_files"] == (1 if got == sent else 0)


# -- a look from outside ----------------------------------------------------------------------------------------------


def test_a_running_journal_is_looked_at_without_being_touched(place: Path) -> None:
    journal = Journal(place, segment_bytes=500)
    for number in range(6):
        keep(journal, b"%d" % number * 200)
    batches = drain(journal, 200)
    journal.release(batches[0])
    journal._save_cursor()
    before = {p.name: p.read_bytes() for p in place.iterdir()}
    seen = inspect(place)
    assert {p.name: p.read_bytes() for p in place.iterdir()} == before
    assert seen.owner == os.getpid()
    assert seen.wrong == []
    assert (seen.waiting_records, seen.waiting_bytes) == (5, 1000)
    assert [f"{seen.journal}-{b.segment}-{b.start}-{b.end}" for b in seen.batches] == [b.token for b in batches[1:]]
    assert [s.state for s in seen.segments][-1] == "open"
    assert sum(s.records for s in seen.segments) == 6
    listed = list(records(place))
    assert [payload for _, payload in listed] == [b"%d" % n * 200 for n in range(6)]
    assert [place_.released for place_, _ in listed] == [True] + [False] * 5
    assert payload_of(place, 3) == b"2" * 200
    with pytest.raises(ConfigError, match="no record 7"):
        payload_of(place, 7)
    keep(journal, b"on it goes")
    journal.close()
    assert inspect(place).owner is None


@pytest.mark.parametrize("cut", [1, 10, 31, 33, 90])
def test_a_look_tells_a_torn_tail_from_damage(place: Path, cut: int) -> None:
    path, starts = written(place, b"flipped", b"whole", b"torn" * 20)
    os.truncate(path, starts[-1] - cut)
    (torn,) = inspect(place).wrong
    assert (torn.kind, torn.start) == ("torn", starts[2])
    flip(path, starts[0] + RECORD_BYTES + 1)
    kinds = {wrong.kind: (wrong.start, wrong.end) for wrong in inspect(place).wrong}
    assert kinds["damaged"] == (starts[0], starts[1])


def test_a_look_finds_every_kind_of_damage(place: Path) -> None:
    path, starts = written(place, b"a" * 50, b"b" * 50, b"c" * 50)
    flip(path, 20)
    flip(path, starts[1] + 3)
    (place / "cursor.json").write_text("{}")
    flip(place / "batches.log", 3)
    (place / "segment-0000000002.log").write_bytes(b"TOLL")
    (place / "segment-0000000003.log").write_bytes(b"\xee" * 100)
    seen = inspect(place)
    assert {(w.file, w.kind) for w in seen.wrong} == {
        ("cursor.json", "cursor.json"),
        ("batches.log", "batches.log"),
        (path.name, "header"),
        (path.name, "damaged"),
        ("segment-0000000002.log", "torn"),
        ("segment-0000000003.log", "unreadable"),
    }
    assert sum(s.records for s in seen.segments) == 2


def test_what_is_no_journal_is_said(tmp_path: Path) -> None:
    for missing in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ConfigError, match=r"is no journal|cannot be read"):
            inspect(missing)


def test_the_command_shows_lists_and_dumps(place: Path) -> None:
    from typer.testing import CliRunner

    from tollspan.processor.cli.app import app

    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    scope.spans.add(trace_id=b"\x01" * 16, span_id=b"\x02" * 8, name="chat", kind=3)
    path, starts = written(place, request.SerializeToString(), b"\xff no request", request.SerializeToString())

    def run(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["journal", "inspect", str(place), *arguments])
        return done.exit_code, done.output

    code, text = run("--format", "json")
    body = json.loads(text)
    assert code == 0
    assert (body["waiting_records"], body["owner_pid"], body["wrong"]) == (3, None, [])
    assert body["lag_seconds"] < 60
    assert body["segments"][0]["format"] == 1
    assert run()[0] == 0
    code, text = run("--records", "--format", "json")
    assert [(r["number"], r["spans"], r["byte"]) for r in json.loads(text)] == [
        (1, 1, starts[0]), (2, None, starts[1]), (3, 1, starts[2])
    ]  # fmt: skip
    code, text = run("--dump", "1")
    span = json.loads(text)["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    assert (span["traceId"], span["spanId"], span["kind"]) == ("01" * 16, "02" * 8, 3)
    flip(path, starts[1] + RECORD_BYTES)
    code, text = run("--format", "json")
    assert code == 1
    assert json.loads(text)["wrong"] == [
        {"file": path.name, "wrong": "damaged", "from_byte": starts[1], "to_byte": starts[2]}
    ]
