"""What the engine of sampling stands on: the index of open traces, remembered decisions, bodies on disk."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from load import requests

from tollspan.processor.bodies import bodies
from tollspan.processor.counters import Counters
from tollspan.processor.decode import decode, fused
from tollspan.processor.sample import REASONS, RULES, Memory, Spill
from tollspan.processor.sample import memory as memory_module
from tollspan.processor.sample.names import ground
from tollspan.processor.sample.open_traces import OpenTraces, Pool, ranges
from tollspan.processor.summarize import Facts, Held

U64 = np.uint64


# -- open traces -------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.booleans(), st.sets(st.integers(0, 60), min_size=1, max_size=30)), max_size=40))
@settings(max_examples=200, deadline=None)
def test_the_index_is_a_dictionary(steps: list[tuple[bool, set[int]]]) -> None:
    """Keys that collide on purpose: all in the same few places of the table."""
    traces, known = OpenTraces(), dict[int, int]()
    for adding, some in steps:
        keys = [number << 40 | number % 3 for number in some]
        found = traces.index.find(np.array(keys, U64))
        assert found.tolist() == [known.get(key, -1) for key in keys]
        if adding:
            new = [key for key in keys if key not in known]
            made = traces.open(np.array(new, U64), np.zeros((len(new), 2), U64), 0, 0)
            known |= dict(zip(new, made.tolist(), strict=True))
        else:
            gone = [key for key in keys if key in known]
            traces.close(np.array([known.pop(key) for key in gone], np.int32))
        assert sorted(traces.index.slots().tolist()) == sorted(known.values())
        assert len(traces) == len(known)


def test_the_index_grows_and_is_cleared_of_what_is_gone() -> None:
    traces, rng = OpenTraces(), np.random.default_rng(1)
    slots = np.zeros(0, np.int32)
    for _ in range(60):
        keys = rng.integers(0, 2**64, 5000, dtype=U64)
        made = traces.open(keys, np.zeros((5000, 2), U64), 0, 0)
        assert (traces.index.find(keys) == made).all()
        traces.close(slots)
        slots = made
    assert len(traces.index._table) <= 1 << 17
    assert (traces.index.find(traces.slots["key"][slots]) == slots).all()


@given(st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 40)), max_size=6), max_size=12))
@settings(max_examples=200, deadline=None)
def test_every_slot_comes_up_once_at_its_last_time(moves: list[list[tuple[int, int]]]) -> None:
    traces = OpenTraces()
    slots = traces.open(np.arange(10, dtype=U64), np.zeros((10, 2), U64), 0, 0)
    due: dict[int, int] = {}
    for now, some in enumerate(moves):
        last = dict(some)
        if last:
            at = np.array([max(tick, now) for tick in last.values()])
            traces.set_due(slots[list(last)], at)
            due |= dict(zip(last, at.tolist(), strict=True))
        came = {int(np.flatnonzero(slots == slot)[0]) for slot in traces.come_up(now)}
        assert came == {number for number, tick in due.items() if tick <= now}
        for number in came:
            del due[number]


def test_runs_are_found_by_trace() -> None:
    traces = OpenTraces()
    slots = traces.open(np.arange(3, dtype=U64), np.zeros((3, 2), U64), 0, 0)
    traces.add_runs(0, slots, np.array([0, 5, 9]), np.array([5, 4, 1]))
    traces.add_runs(1, slots[[2, 0]], np.array([0, 1]), np.array([1, 7]))
    runs, owner = traces.runs_of(slots[[0, 2]])
    got = sorted(
        zip(owner.tolist(), traces.runs["batch"][runs].tolist(), traces.runs["start"][runs].tolist(), strict=True)
    )
    assert got == [(0, 0, 0), (0, 1, 1), (1, 0, 9), (1, 1, 0)]
    assert ranges(np.array([3, 10]), np.array([2, 3])).tolist() == [3, 4, 10, 11, 12]
    assert ranges(np.zeros(0), np.zeros(0)).tolist() == []


def test_a_pool_hands_each_row_out_once() -> None:
    pool = Pool({"a": np.int32}, room=4)
    first = pool.take(3)
    pool["a"][first] = 7
    more = pool.take(100)
    assert len({*first.tolist(), *more.tolist()}) == 103
    assert pool["a"][first].tolist() == [7, 7, 7]
    pool.give(first)
    assert sorted(pool.take(3).tolist()) == sorted(first.tolist())


# -- remembered decisions ----------------------------------------------------------------------------------------------


def remember(memory: Memory, keys: list[int], reason: str = "error", rule: str = "errors", limit: int = 5) -> None:
    count = len(keys)
    memory.add(
        np.array(keys, U64),
        np.full(count, ground(reason, rule), np.int16),
        np.full(count, limit, U64),
        np.ones(count, np.int8),
    )


def opened(folder: Path, limit: int = 1_000_000) -> Memory:
    memory = Memory(limit, Counters())
    memory.open(folder)
    return memory


def test_decisions_are_known_in_a_later_process_by_their_names(tmp_path: Path) -> None:
    first = opened(tmp_path)
    remember(first, [7, 3, 5])
    remember(first, [3], "probability", "rest", 9)
    # Killed: nothing is closed.
    second = opened(tmp_path)
    known = second.recall(np.array([3, 4, 5], U64))
    assert second.seed == first.seed
    assert [RULES[n] if n >= 0 else None for n in known.ground.tolist()] == ["rest", None, "errors"]
    assert [REASONS[n] if n >= 0 else None for n in known.ground.tolist()] == ["probability", None, "error"]
    assert known.threshold.tolist() == [9, 0, 5]
    assert known.content.tolist() == [1, 0, 1]
    third = opened(tmp_path)
    remember(third, [4])
    assert opened(tmp_path).recall(np.array([3, 4, 5, 7], U64)).ground.min() > 0


def test_memory_of_decisions_is_bounded_in_memory_and_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "FILE_BYTES", 2000)
    memory = opened(tmp_path, limit=1000)
    for number in range(200):
        remember(memory, list(range(100 * number, 100 * number + 100)))
    assert 1000 <= len(memory) < 1000 + 100
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 1000 * 19 * 2 + 4 * 2000
    again = opened(tmp_path, limit=1000)
    newest = np.arange(200 * 100 - 900, 200 * 100, dtype=U64)
    assert (again.recall(newest).ground > 0).all()
    assert (memory.recall(newest).ground > 0).all()
    assert (memory.recall(np.arange(100, dtype=U64)).ground < 0).all()


def test_many_short_processes_leave_few_files(tmp_path: Path) -> None:
    for number in range(50):
        memory = opened(tmp_path)
        remember(memory, [number, 1000], limit=number)
        memory.close()
    assert len(list(tmp_path.iterdir())) <= memory_module.MOST_FILES + 2
    known = opened(tmp_path).recall(np.array([*range(50), 1000], U64))
    assert known.threshold.tolist() == [*range(50), 49]


def test_a_damaged_or_torn_file_costs_no_more_than_what_is_behind_it(tmp_path: Path) -> None:
    memory = opened(tmp_path)
    remember(memory, [1, 2])
    remember(memory, [3])
    memory.close()
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        again = opened(tmp_path)
        found = set(np.flatnonzero(again.recall(np.arange(5, dtype=U64)).ground > 0).tolist())
        assert found in (set(), {1, 2})
        path.write_bytes(whole)
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :])
        found = set(np.flatnonzero(opened(tmp_path).recall(np.arange(5, dtype=U64)).ground > 0).tolist())
        # A flipped bit is noticed everywhere but in the bytes of the header that say nothing.
        assert found in (set(), {1, 2}, {1, 2, 3})
        assert found != {1, 2, 3} or 24 <= at < 32 or at < 16
        path.write_bytes(whole)


def test_a_disk_that_takes_nothing_holds_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = opened(tmp_path)
    remember(memory, [1])

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patched:
        patched.setattr(memory_module, "write_all", full)
        remember(memory, [2])
        remember(memory, [3])
    assert memory.counters.get("sampling.memory_failures") == 2
    remember(memory, [4])
    memory.sync()
    assert (memory.recall(np.array([1, 2, 3, 4], U64)).ground > 0).all()
    assert (opened(tmp_path).recall(np.array([1, 2, 3, 4], U64)).ground > 0).tolist() == [True, False, False, True]


# -- bodies on disk ----------------------------------------------------------------------------------------------------


def held(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> Held:
    if compiled:
        fused.prepare(wait=True)
        assert fused.ready()
    else:
        monkeypatch.setattr(fused, "_walk", None)
    decoded = decode(requests(4))
    count = len(decoded)
    root = np.arange(count) % 8 == 0
    table = pa.table(
        {
            "start_ns": np.arange(count),
            "end_ns": np.arange(count) + 1,
            "name": decoded.spans["name"],
            "service": pa.array(["bench"] * count).dictionary_encode(),
            "tenant": pa.array([None] * count, pa.string()),
        }
    )
    return Held(decoded.waiting(), Facts.of(table, ~root, root, np.arange(count).astype(U64)), None, None)


@pytest.mark.parametrize("compiled", [False, True], ids=["ptars", "compiled"])
def test_bodies_come_back_from_disk_as_they_were(
    compiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = held(compiled, monkeypatch)
    spill = Spill(tmp_path / "s", 1 << 30, Counters())
    spilled = spill.put((before, np.arange(5)))
    assert spilled is not None
    assert spilled.nbytes > 0.9 * before.nbytes
    assert len(spilled._skeleton) < 64 << 10, "all that is large is on disk"
    (path,) = (tmp_path / "s").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    rows = np.array([700, 3, 4, 5, 1999])
    for _ in range(2):
        after = spilled.load()[0]
        assert bodies(after.decoded.select(rows), {}).equals(bodies(before.decoded.select(rows), {}))
        assert bodies(after.select(rows).decoded.select(np.arange(2)), {}).equals(
            bodies(before.decoded.select(rows[:2]), {})
        )
        facts, same = after.facts.select(rows), before.facts.select(rows)
        assert facts.roots.equals(same.roots)
        assert (facts.start == same.start).all()
        assert (facts.incoming == same.incoming).all()
    spill.remove(spilled)
    assert spill.nbytes == 0
    assert after.decoded.select(rows) is not None, "what is read of it can still be used"


class Shared:
    stays_in_memory = True


def test_what_is_no_data_is_the_same_object_again(tmp_path: Path) -> None:
    shared, numbers = Shared(), np.arange(10_000)
    spilled = Spill(tmp_path, 1 << 30, Counters()).put([shared, shared, os, numbers, numbers[::2], None, "text"])
    assert spilled is not None
    first, second, module, same, other, *rest = spilled.load()
    assert first is second is shared
    assert module is os
    assert (same == numbers).all()
    assert (other == numbers[::2]).all()
    assert rest == [None, "text"]


def test_a_full_disk_and_a_bound_are_refused_in_silence_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counters = Counters()
    spill = Spill(tmp_path, 100_000, counters)
    assert spill.put(np.zeros(8_000)) is not None
    assert spill.put(np.zeros(8_000)) is None, "beyond the bound"
    assert counters.get("sampling.spill_failures") == 0

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "full")

    spill.max_bytes = 1 << 30
    monkeypatch.setattr("tollspan.processor.sample.spill.write_all", full)
    assert spill.put(np.zeros(8_000)) is None
    assert counters.get("sampling.spill_failures") == 1
    assert len(list(tmp_path.iterdir())) == 1
    Spill(tmp_path, 1, counters)
    assert not list(tmp_path.iterdir()), "what an earlier process left is removed"
