"""Calls that wait are given up by age, and sooner the more there are; the newest are left alone."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

import pytest

from tollspan.processor.counters import Counters
from tollspan.processor.patience import Patience


class Call:
    """Stands in for gRPC's context."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()

    def cancel(self) -> None:
        self.cancelled.set()


@contextlib.contextmanager
def waiting(patience: Patience, ages: list[float]) -> Iterator[list[Call]]:
    """So many calls that have waited for so long, the oldest first."""
    with contextlib.ExitStack() as stack:
        calls = [Call() for _ in ages]
        for call, age in zip(calls, ages, strict=True):
            stack.enter_context(patience.watch(call))
            patience._waiting[call] = time.monotonic() - age
        patience.start()
        stack.callback(patience.stop)
        yield calls


def given_up(calls: list[Call]) -> list[bool]:
    time.sleep(0.5)
    return [call.cancelled.is_set() for call in calls]


@pytest.mark.parametrize(
    ("ages", "behind", "ended"),
    [
        ([9.0, 9.0], 0, [False, False]),  # few of them: they have ten seconds
        ([11.0, 1.0], 0, [True, False]),
        ([6.0] * 4 + [1.0] * 4, 0, [True] * 4 + [False] * 4),  # twice as many as few: five seconds
        ([6.0] * 8, 0, [True] * 4 + [False] * 4),  # no more of them than are too many
        ([2.0] * 3, 2, [True, True, False]),  # two wait for a thread, and get one
        ([0.1] * 3, 2, [False] * 3),  # each has its second
        ([2.0] * 3, 1000, [True] * 3),
    ],
)
def test_who_is_given_up(ages: list[float], behind: int, ended: list[bool]) -> None:
    counters = Counters()
    # Each call that is ended lets one in that waited for its thread.
    patience = Patience(10.0, 1.0, 4, counters, lambda: max(0, behind - counters.get("receive.stalled")))
    with waiting(patience, ages) as calls:
        assert given_up(calls) == ended
    assert counters.get("receive.stalled") == sum(ended)
    assert patience.waiting == 0


def test_what_has_come_is_watched_no_more() -> None:
    patience = Patience(0.1, 0.1, 4, Counters())
    patience.start()
    call = Call()
    with patience.watch(call):
        pass
    assert not call.cancelled.wait(0.4)
    patience.stop()
    patience.stop()
