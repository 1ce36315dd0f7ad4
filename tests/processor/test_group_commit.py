"""Appenders share syncs: a sync waits a moment for those that the one before set free, and for nobody else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tollspan.processor.journal import Journal, Ticket, committer
from tollspan.processor.journal.segment import Segment

LONG_S = 60.0
"""A wait that no test lives to see the end of."""


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal(tmp_path / "journal")
    yield opened
    opened.close()


def shared(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> list[Ticket]:
    """One that was synced alone and two that came while it was: three are expected for the next sync."""
    begun, go_on, sync = threading.Event(), threading.Event(), Segment.sync

    def slow(segment: Segment) -> None:
        begun.set()
        assert go_on.wait(LONG_S)
        sync(segment)

    with monkeypatch.context() as patched:
        patched.setattr(Segment, "sync", slow)
        first = journal.append(b"first")
        assert begun.wait(LONG_S)
        others = [journal.append(b"second"), journal.append(b"third")]
        go_on.set()
        first.wait(LONG_S)
    return others


def test_a_sync_waits_for_whom_the_one_before_set_free(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committer, "GATHER_S", LONG_S)
    others = shared(journal, monkeypatch)
    assert not any(ticket.done() for ticket in others)
    again = journal.append(b"first again")
    for ticket in (*others, again):
        ticket.wait(LONG_S / 2)
    assert journal.counters.get("journal.syncs") == 2


def test_who_does_not_come_again_is_not_waited_for_twice(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committer, "GATHER_S", 0.01)
    for ticket in shared(journal, monkeypatch):
        ticket.wait(LONG_S)
    journal.append(b"one of two").wait(LONG_S)
    monkeypatch.setattr(committer, "GATHER_S", LONG_S)
    for _ in range(5):
        journal.append(b"alone").wait(LONG_S / 2)


def test_what_was_in_vain_is_tried_less_and_less(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committer, "GATHER_S", 0.01)
    for _ in range(4):
        for ticket in shared(journal, monkeypatch):
            ticket.wait(LONG_S)
    monkeypatch.setattr(committer, "GATHER_S", LONG_S)
    for ticket in shared(journal, monkeypatch):
        ticket.wait(LONG_S / 2)


def test_much_is_written_at_once(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committer, "GATHER_S", LONG_S)
    monkeypatch.setattr(committer, "COMMIT_BYTES", 1000)
    others = shared(journal, monkeypatch)
    more = journal.append(bytes(1000))
    for ticket in (*others, more):
        ticket.wait(LONG_S / 2)


def test_a_journal_that_is_closed_waits_for_nobody(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committer, "GATHER_S", LONG_S)
    others = shared(journal, monkeypatch)
    journal.close()
    for ticket in others:
        ticket.wait(0)
