"""The engine of sampling: a decision depends on the trace alone, in whatever order it comes, and nothing is lost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tollspan.processor.counters import Counters
from tollspan.processor.identity import find
from tollspan.processor.sample import (
    DROPPED,
    NEVER,
    REASONS,
    STRIPPED,
    Due,
    Memory,
    Pending,
    Round,
    Signs,
    Spill,
    TailSampler,
    Verdicts,
    adjusted_count,
    encode_threshold,
    explicit,
    threshold,
)


@dataclass
class Bodies:
    """Stands for span bodies: numbers of spans."""

    ids: np.ndarray
    weight: int = 100

    @property
    def nbytes(self) -> int:
        return self.weight

    def select(self, rows: np.ndarray) -> Bodies:
        return Bodies(self.ids[rows], self.weight)


@dataclass(frozen=True)
class Span:
    trace: int
    number: int
    root: bool = False
    error: bool = False
    cost: int = 0


class Rules:
    """Errors always; traces that cost 100 or more always; a share of the rest."""

    names = ("", "errors", "dear", "rest")
    reasons = ("", "error", "expensive", "probability")
    certain = np.array([False, True, True, False])
    steered = np.array([False, False, False, True])

    def __init__(self, keep: float, content: int = 0) -> None:
        self.threshold, self.content = threshold(keep), content

    def look(self, batch: Any) -> Signs:
        columns = {
            "error": np.array([s.error for s in batch.spans]),
            "cost": np.array([s.cost for s in batch.spans], np.int64),
        }
        return Signs(columns, len(batch.spans))

    def _sums(self, due: Due) -> tuple[np.ndarray, np.ndarray]:
        assert set(due.group.tolist()) == set(range(due.traces))
        error, cost = np.zeros(due.traces, bool), np.zeros(due.traces, np.int64)
        np.logical_or.at(error, due.group, due.signs["error"])
        np.add.at(cost, due.group, due.signs["cost"])
        return error, cost

    def decide(self, due: Due) -> Verdicts:
        error, cost = self._sums(due)
        matched = np.select([error, cost >= 100], [1, 2], 3).astype(np.int16)
        limits = np.where(matched == 3, np.uint64(self.threshold), np.uint64(0)).astype(np.uint64)
        rule = np.where(due.randomness >= limits, matched, 0).astype(np.int16)
        return Verdicts(rule, matched, limits, limits, np.full(due.traces, self.content, np.int8))

    def fold(self, due: Due) -> Signs:
        error, cost = self._sums(due)
        return Signs({"error": error, "cost": cost}, due.traces)


@dataclass
class Batch:
    spans: list[Span]

    def __len__(self) -> int:
        return len(self.spans)


def randomness(trace: int) -> int:
    """Spread over the 56 bits by the trace's number."""
    return (trace * 0x9E3779B97F4A7C15 % 2**64) >> 8


def offer(
    sampler: TailSampler, spans: Iterable[Span], arrived: float, source: object = None, nbytes: int = 100
) -> None:
    spans = list(spans)
    trace = np.array([s.trace for s in spans], np.uint64)
    ids = np.column_stack([trace, np.array([randomness(s.trace) for s in spans], np.uint64)])
    sampler.offer(
        Pending(
            source=source,
            bodies=Bodies(np.array([s.number for s in spans]), nbytes),
            trace=trace,
            ids=ids,
            span=np.array([s.number for s in spans], np.uint64),
            randomness=explicit(ids[:, 1].copy(), ids),
            root=np.array([s.root for s in spans], bool),
            signs=sampler.look(Batch(spans)),  # type: ignore[arg-type]
            arrived=arrived,
            nbytes=nbytes,
        )
    )


def fates(rounds: Iterable[Round]) -> dict[int, str]:
    """Span → why it is kept, '' for dropped; each exactly once."""
    out: dict[int, str] = {}
    for one in rounds:
        for d in one.decisions:
            assert (np.diff(d.group) == 0).sum() == len(d.group) - len(set(d.group.tolist())), "a trace's rows adjoin"
            for number, reason in zip(d.bodies.ids[d.rows].tolist(), d.reason.tolist(), strict=True):
                assert number not in out, "decided twice"
                out[number] = REASONS[reason]
    return out


def drained(sampler: TailSampler, now: float) -> list[Round]:
    rounds = [sampler.tick(now, everything=True)]
    while rounds[-1].more:
        rounds.append(sampler.tick(now, everything=True))
    return rounds


# -- laws --------------------------------------------------------------------------------------------------------------


@st.composite
def traffic(draw: st.DrawFn) -> tuple[list[Span], list[int]]:
    spans, number = [], 0
    for trace in range(1, draw(st.integers(1, 12)) + 1):
        for position in range(draw(st.integers(1, 5))):
            number += 1
            error, cost = draw(st.integers(0, 9)) == 0, draw(st.sampled_from([0, 0, 30, 60]))
            spans.append(Span(trace, number, position == 0, error, cost))
    return list(draw(st.permutations(spans))), sorted(draw(st.lists(st.integers(0, number), max_size=4)))


def expected(spans: list[Span], keep: float) -> dict[int, str]:
    out = {}
    for trace in {s.trace for s in spans}:
        mine = [s for s in spans if s.trace == trace]
        if any(s.error for s in mine):
            reason = "error"
        elif sum(s.cost for s in mine) >= 100:
            reason = "expensive"
        else:
            reason = "probability" if randomness(trace) >= threshold(keep) else ""
        out |= {s.number: reason for s in mine}
    return out


@given(traffic(), st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.sampled_from([10**9, 150, 0]))
@settings(max_examples=200, deadline=None)
def test_the_decision_depends_only_on_the_trace(
    tmp_path_factory: pytest.TempPathFactory, data: tuple[list[Span], list[int]], keep: float, memory: int
) -> None:
    spans, cuts = data
    spill = Spill(tmp_path_factory.getbasetemp() / "spilled", 1 << 30, Counters())
    sampler = TailSampler(Rules(keep), wait_s=100.0, timeout_s=100.0, max_bytes=memory, spill=spill)
    rounds = []
    for a, b in zip([0, *cuts], [*cuts, len(spans)], strict=True):
        offer(sampler, spans[a:b], 0.0)
        rounds.append(sampler.tick(0.0))
    assert not fates(rounds)
    last = sampler.tick(200.0)
    assert fates([last]) == expected(spans, keep), "every span is decided, once, by its whole trace"
    assert (sampler.waiting_spans, sampler.waiting.nbytes, len(sampler.open)) == (0, 0, 0)
    sampler.tick(201.0)
    assert spill.nbytes == 0
    assert not list(spill.folder.glob("*"))


@given(
    traffic(),
    st.sampled_from([0.0, 0.5]),
    st.lists(st.sampled_from(["tick", "early", "restart", "swap"]), min_size=5, max_size=5),
)
@settings(max_examples=200, deadline=None)
def test_nothing_is_lost_or_decided_twice_whatever_happens_on_the_way(
    tmp_path_factory: pytest.TempPathFactory, data: tuple[list[Span], list[int]], keep: float, events: list[str]
) -> None:
    """Decided early, in steps and with a restart in between: each span once, an error always, its followers with it."""
    spans, cuts = data
    folder = tmp_path_factory.mktemp("m")
    now, rounds = 0.0, []
    waiting: list[tuple[int, list[Span]]] = []

    def opened() -> TailSampler:
        memory = Memory(counters=Counters())
        memory.open(folder)
        return TailSampler(Rules(keep), wait_s=2.0, timeout_s=8.0, memory=memory)

    sampler = opened()
    for number, (a, b) in enumerate(zip([0, *cuts], [*cuts, len(spans)], strict=True)):
        batch = spans[a:b]
        offer(sampler, batch, now, source=number)
        waiting.append((number, batch))
        event = events[number]
        if event == "restart":
            # What was not released comes again; here whole batches that were decided in part are not tried, see below.
            done = {s.number for r in rounds for d in r.decisions for s in spans if s.number in d.bodies.ids[d.rows]}
            sampler.memory.close()
            sampler = opened()
            for source, old in waiting:
                offer(sampler, [s for s in old if s.number not in done], now, source=source)
        elif event == "swap":
            sampler.use(Rules(keep, STRIPPED))
        elif event == "early":
            sampler.max_spans = 1
            rounds.append(sampler.tick(now))
            sampler.max_spans = 10**6
        now += 3.0
        rounds.append(sampler.tick(now))
    rounds += drained(sampler, now)
    found = fates(rounds)
    assert set(found) == {s.number for s in spans}
    for span in spans:
        if span.error:
            assert found[span.number] in ("error", "expensive"), "it is kept with certainty"
    if keep == 0.0:
        plain = expected(spans, keep)
        assert all(plain[number] for number, reason in found.items() if reason)
    assert sampler.waiting_spans == 0
    sampler.memory.close()


def test_a_batch_that_comes_again_after_a_kill_is_decided_as_it_was(tmp_path: Path) -> None:
    """Killed after the decision and before the release: the same spans, late ones among them, get the same answer."""
    spans = [Span(trace, trace * 10 + n, root=n == 0) for trace in range(1, 200) for n in range(3)]
    memory = Memory(counters=Counters())
    memory.open(tmp_path)
    first = TailSampler(Rules(0.5), wait_s=0.0, memory=memory)
    offer(first, spans[: len(spans) // 2], 0.0)
    before = fates([first.tick(1.0)])
    # No close: the process is killed. The one after it has other rules, and a share of nothing.
    again = Memory(counters=Counters())
    again.open(tmp_path)
    second = TailSampler(Rules(0.0), wait_s=0.0, memory=again)
    offer(second, spans, 0.0)
    after = fates([second.tick(1.0)])
    assert {number: after[number] for number in before} == before
    assert {r for number, r in after.items() if number not in before and number // 10 > 100} == {""}


# -- when --------------------------------------------------------------------------------------------------------------


def test_a_trace_waits_for_its_root_and_then_a_little() -> None:
    sampler = TailSampler(Rules(1.0), wait_s=1.0, timeout_s=30.0)
    offer(sampler, [Span(1, 10)], 0.0, source="a")
    assert not sampler.tick(5.0).decisions
    offer(sampler, [Span(1, 11, root=True)], 5.0, source="b")
    assert not sampler.tick(5.5).decisions
    done = sampler.tick(6.0)
    assert fates([done]) == {10: "probability", 11: "probability"}
    assert sorted(done.finished) == ["a", "b"]
    assert done.traces == 1
    assert done.ids.tolist() == [[1, randomness(1)]]


def test_a_trace_without_a_root_is_decided_at_the_timeout() -> None:
    sampler = TailSampler(Rules(1.0), wait_s=1.0, timeout_s=30.0)
    offer(sampler, [Span(1, 10)], 0.0)
    assert not sampler.tick(29.0).decisions
    assert fates([sampler.tick(30.0)]) == {10: "probability"}
    assert sampler.open_traces == 1, "it may go on"
    assert sampler.tick(929.0).traces == 0
    assert sampler.open_traces == 1
    assert sampler.tick(930.0).traces == 0
    assert (sampler.open_traces, len(sampler.waiting), sampler.waiting.folded) == (0, 0, 0)


def test_a_trace_that_goes_on_is_decided_in_steps_and_judged_by_all_of_them() -> None:
    sampler = TailSampler(Rules(0.0), wait_s=1.0, timeout_s=10.0)
    for second in range(10):
        offer(sampler, [Span(1, second, cost=9)], float(second))
    assert fates([sampler.tick(10.0)]) == dict.fromkeys(range(10), ""), "it has cost 90"
    offer(sampler, [Span(1, 10, cost=9)], 10.0)
    assert not sampler.tick(10.5).decisions
    assert fates([sampler.tick(11.0)]) == {10: ""}
    offer(sampler, [Span(1, 11, cost=9)], 11.0)
    assert fates([sampler.tick(12.0)]) == {11: "expensive"}, "of 108"
    offer(sampler, [Span(1, 12), Span(1, 13, root=True)], 12.0)
    last = sampler.tick(13.0)
    assert fates([last]) == {12: "expensive", 13: "expensive"}
    assert not len(sampler.open)
    offer(sampler, [Span(1, 14)], 14.0)
    assert fates([sampler.tick(14.0)]) == {14: "expensive"}, "and what is late follows"


def test_steps_that_are_not_followed_are_forgotten() -> None:
    sampler = TailSampler(Rules(0.0), wait_s=1.0, timeout_s=10.0, quiet_s=10.0)
    offer(sampler, [Span(1, 1, cost=60)], 0.0)
    offer(sampler, [Span(1, 2)], 9.0)
    assert sampler.tick(10.0).traces == 1
    assert len(sampler.open) == 1
    assert sampler.tick(20.0).traces == 0
    assert not len(sampler.open)
    assert not len(sampler.waiting)
    offer(sampler, [Span(1, 3, cost=60)], 21.0)
    assert fates([sampler.tick(21.0)]) == {3: ""}


def test_a_trace_that_pauses_for_minutes_is_still_judged_as_a_whole() -> None:
    sampler = TailSampler(Rules(0.0), wait_s=1.0, timeout_s=10.0)
    offer(sampler, [Span(1, 1, cost=60), Span(2, 2)], 0.0)
    assert fates([sampler.tick(10.0)]) == {1: "", 2: ""}
    offer(sampler, [Span(1, 3, cost=60)], 500.0)
    assert fates([sampler.tick(501.0)]) == {3: "expensive"}


def test_each_step_tells_what_all_steps_came_to() -> None:
    sampler = TailSampler(Rules(1.0), wait_s=1.0, timeout_s=10.0)
    offer(sampler, [Span(1, 1), Span(2, 2), Span(3, 3)], 0.0)
    first = sampler.tick(10.0)
    told = np.arange(12).reshape(3, 4)
    assert (first.add_up(told) == told).all()
    of = {int(trace): told[number] for number, trace in enumerate(first.ids[:, 0])}
    offer(sampler, [Span(3, 4), Span(1, 5)], 11.0)
    second = sampler.tick(12.0)
    so_far = second.add_up(np.ones((2, 4), np.int64))
    assert {int(trace): so_far[n].tolist() for n, trace in enumerate(second.ids[:, 0])} == {
        trace: (of[trace] + 1).tolist() for trace in (1, 3)
    }
    offer(sampler, [Span(1, 6, root=True)], 13.0)
    third = sampler.tick(14.0)
    assert (third.add_up(np.ones((1, 4), np.int64)) == of[1] + 2).all()


def test_folded_steps_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tollspan.processor.sample.sampler.MOST_FOLDED", 10)
    sampler = TailSampler(Rules(0.0), wait_s=1.0, timeout_s=1.0)
    for number in range(10):
        offer(sampler, [Span(trace, trace, cost=60) for trace in range(4 * number, 4 * number + 4)], 2.0 * number)
        sampler.tick(2.0 * number + 1.0)
    assert sampler.waiting.folded == sampler.open_traces == 8
    offer(sampler, [Span(2, 100, cost=60), Span(38, 101, cost=60)], 20.0)
    assert fates([sampler.tick(20.0), sampler.tick(21.0)]) == {100: "", 101: "expensive"}


def test_a_long_trace_does_not_wait_for_its_time() -> None:
    sampler = TailSampler(Rules(1.0), wait_s=100.0, timeout_s=100.0, max_trace_spans=5)
    offer(sampler, [Span(1, n) for n in range(4)], 0.0)
    assert not sampler.tick(1.0).decisions
    offer(sampler, [Span(1, n) for n in range(4, 8)], 1.0)
    assert len(fates([sampler.tick(1.0)])) == 8


def test_late_spans_follow_their_trace_but_a_late_error_is_kept() -> None:
    sampler = TailSampler(Rules(0.0), wait_s=0.0)
    offer(sampler, [Span(1, 10, root=True), Span(2, 20, root=True, error=True)], 0.0)
    assert fates([sampler.tick(1.0)]) == {10: "", 20: "error"}
    offer(sampler, [Span(1, 11), Span(2, 21)], 2.0)
    assert fates([sampler.tick(2.0)]) == {11: "", 21: "error"}
    offer(sampler, [Span(1, 12, error=True)], 3.0)
    assert fates([sampler.tick(3.0)]) == {12: "error"}
    offer(sampler, [Span(1, 13)], 4.0)
    assert fates([sampler.tick(4.0)]) == {13: "error"}, "what comes after the late error follows it"


def test_a_late_error_stands_for_itself_alone_also_where_chance_kept_its_trace() -> None:
    """It is kept either way, so counting it tenfold where the trace was kept by chance would be a bias."""
    sampler = TailSampler(Rules(0.5), wait_s=0.0)
    traces = range(1, 50)
    offer(sampler, [Span(t, t, root=True) for t in traces], 0.0)
    first = sampler.tick(1.0)
    assert {int(t) for t in first.fates.threshold[first.fates.reason != DROPPED]} == {2**55}
    offer(sampler, [Span(t, 100 + t, error=True) for t in traces], 2.0)
    late = sampler.tick(2.0)
    assert set(fates([late]).values()) == {"error"}
    assert set(late.fates.threshold.tolist()) == {0}


def test_a_trace_is_judged_by_the_rules_that_held_when_it_began() -> None:
    sampler = TailSampler(Rules(1.0), wait_s=1.0)
    offer(sampler, [Span(1, 10)], 0.0)
    sampler.use(Rules(0.0))
    offer(sampler, [Span(1, 11, root=True), Span(2, 20, root=True)], 1.0)
    assert len(sampler.policies) == 2
    assert fates([sampler.tick(2.0)]) == {10: "probability", 11: "probability", 20: ""}
    sampler.use(Rules(0.5))
    offer(sampler, [Span(3, 30, root=True)], 3.0)
    assert len(sampler.policies) == 1, "nobody needs the old ones any more"


class Broken(Rules):
    def __init__(self, *fails: str) -> None:
        super().__init__(0.0)
        self.fails = fails

    def look(self, batch: Any) -> Signs:
        if "look" in self.fails:
            raise RuntimeError("look")
        return super().look(batch)

    def decide(self, due: Due) -> Verdicts:
        if "decide" in self.fails:
            raise RuntimeError("decide")
        return super().decide(due)


def test_rules_that_fail_lose_nothing() -> None:
    sampler = TailSampler(Broken("decide"), wait_s=0.0)
    offer(sampler, [Span(1, 10, root=True)], 0.0)
    assert fates([sampler.tick(1.0)]) == {10: "fault"}
    assert sampler.counters.get("sampling.faults") == 1


# -- how much ----------------------------------------------------------------------------------------------------------


def test_memory_pressure_decides_the_oldest_early_and_counts_it() -> None:
    sampler = TailSampler(Rules(0.0), wait_s=100.0, timeout_s=100.0, max_bytes=150)
    offer(sampler, [Span(1, 10, root=True)], 0.0)
    offer(sampler, [Span(2, 20, root=True)], 1.0)
    assert fates([sampler.tick(1.0)]) == {10: ""}
    assert sampler.forced == 1
    assert sampler.waiting_spans == 1


def test_what_finds_no_room_waits_on_disk(tmp_path: Path) -> None:
    spill = Spill(tmp_path, 1 << 20, Counters())
    sampler = TailSampler(Rules(1.0), wait_s=100.0, timeout_s=100.0, max_bytes=150, spill=spill)
    for number in range(10):
        offer(sampler, [Span(number, 1000 * number + n, root=n == 0) for n in range(500)], 0.0, source=number)
    assert (sampler.tick(1.0).traces, sampler.forced) == (0, 0)
    assert len(list(tmp_path.iterdir())) == 9 or spill.nbytes
    done = sampler.tick(100.0)
    assert set(fates([done]).values()) == {"probability"}
    assert len(done.finished) == 10
    sampler.tick(101.0)
    assert not list(tmp_path.iterdir())


def test_content_goes_before_traces_are_decided_early() -> None:
    def strip(bodies: Bodies, rows: np.ndarray) -> Bodies:
        return replace(bodies.select(rows), weight=10)

    sampler = TailSampler(Rules(1.0), wait_s=100.0, timeout_s=100.0, max_bytes=300, strip=strip)
    for number in range(3):
        offer(sampler, [Span(number, number, root=True)], 0.0)
    assert sampler.tick(0.0).traces == 0
    assert sampler.counters.get("sampling.content_shed") == 1
    last = sampler.tick(100.0)
    assert sorted(d.stripped for d in last.decisions) == [False, False, True]


def test_a_bound_on_spans_holds_where_bodies_are_on_disk(tmp_path: Path) -> None:
    sampler = TailSampler(
        Rules(1.0), wait_s=100.0, max_bytes=0, max_spans=3, spill=Spill(tmp_path, 1 << 20, Counters())
    )
    for number in range(5):
        offer(sampler, [Span(number, number, root=True)], 0.0)
    assert sorted(fates([sampler.tick(0.0)])) == [0, 1]
    assert sampler.waiting_spans == 3


def test_the_last_spans_of_a_batch_do_not_hold_all_of_it() -> None:
    sampler = TailSampler(Rules(1.0), wait_s=1.0, timeout_s=50.0)
    batch = [Span(t, t, root=t != 7) for t in range(20)] + [Span(7, 100)]
    offer(sampler, batch, 0.0, nbytes=1000)
    assert len(fates([sampler.tick(1.0)])) == 19
    (held,) = sampler.waiting
    assert held.total == held.left == 2
    assert fates([sampler.tick(50.0)]) == {7: "probability", 100: "probability"}


def test_many_are_decided_in_several_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tollspan.processor.sample.sampler.MOST_AT_ONCE", 100)
    sampler = TailSampler(Rules(1.0), wait_s=0.0)
    offer(sampler, [Span(t // 2, t, root=t % 2 == 0) for t in range(1000)], 0.0)
    rounds = [sampler.tick(1.0)]
    while rounds[-1].more:
        rounds.append(sampler.tick(1.0))
    assert len(rounds) > 8
    assert len(fates(rounds)) == 1000


def test_a_tick_costs_what_it_decides_and_not_what_is_open() -> None:
    """Counted in rows that are touched: the runs that are walked, and the policy's rows."""
    seen: list[int] = []

    class Counting(Rules):
        def decide(self, due: Due) -> Verdicts:
            seen.append(len(due.group))
            return super().decide(due)

    sampler = TailSampler(Counting(1.0), wait_s=1.0, timeout_s=1000.0)
    for number in range(50):
        offer(sampler, [Span(1000 * number + t, 10_000 * number + t) for t in range(1000)], 0.0)
    offer(sampler, [Span(5, 1, root=True), Span(77_777, 2, root=True)], 1.0)
    assert sampler.tick(2.0).traces == 2
    assert seen == [3]
    assert sampler.waiting_spans == 50_000 - 1


# -- spans that come twice, thresholds ---------------------------------------------------------------------------------


def test_a_span_delivered_twice_is_marked_once() -> None:
    sampler = TailSampler(Rules(1.0))
    offer(sampler, [Span(1, 10, root=True)], 0.0)
    offer(sampler, [Span(1, 10, root=True)], 0.1)
    decided = sampler.tick(10.0, everything=True)
    assert sum(int(d.duplicate.sum()) for d in decided.decisions if d.duplicate is not None) == 1


def test_randomness_that_a_span_tells_holds_for_its_trace_in_any_order() -> None:
    for told_first in (True, False):
        sampler = TailSampler(Rules(0.5), wait_s=0.0)
        own = np.array([[1, 3 << 54]] * 2, np.uint64)
        told = np.array([0, 3 << 54] if told_first else [3 << 54, 0], np.uint64)
        pending = Pending(
            None, Bodies(np.array([1, 2])), np.ones(2, np.uint64), own, np.array([1, 2], np.uint64),
            explicit(told, own), np.ones(2, bool),
            sampler.look(Batch([Span(1, 1), Span(1, 2)])), 0.0, 100,  # type: ignore[arg-type]
        )  # fmt: skip
        sampler.offer(pending)
        # By its trace id alone it would be kept: the explicit 0 decides.
        assert set(fates([sampler.tick(1.0)]).values()) == {""}


def test_the_share_kept_is_the_share_asked_for() -> None:
    sampler = TailSampler(Rules(0.1), wait_s=0.0)
    offer(sampler, [Span(t, t, root=True) for t in range(20_000)], 0.0)
    kept = sum(1 for reason in fates([sampler.tick(1.0)]).values() if reason)
    assert 1800 < kept < 2200
    assert kept * adjusted_count(threshold(0.1)) == pytest.approx(20_000, rel=0.1)


@pytest.mark.parametrize(("keep", "th"), [(1.0, "0"), (0.5, "8"), (0.25, "c"), (0.0, "")])
def test_thresholds_are_written_as_the_specification_shows(keep: float, th: str) -> None:
    assert encode_threshold(threshold(keep)) == th
    assert adjusted_count(threshold(keep)) == (1 / keep if keep else 0.0)
    assert threshold(0.0) == NEVER


def test_find_says_minus_one_for_what_is_not_there() -> None:
    keys = np.array([1, 5, 9], np.uint64)
    assert find(np.array([5, 4, 10, 0], np.uint64), keys).tolist() == [1, -1, -1, -1]
    assert find(np.array([5], np.uint64), np.zeros(0, np.uint64)).tolist() == [-1]


def test_settings_can_change_at_any_time() -> None:
    sampler = TailSampler(Rules(1.0), wait_s=5.0)
    sampler.tune(0.5, 1.0, 2.0)
    assert (sampler.wait_s, sampler.timeout_s) == (1.0, 2.0)
    assert isinstance(sampler.policy, Rules), "a share is for those who have no rules"
