"""The sampler decides by trace, on the trace's content alone, and loses nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tollspan.processor.identity import find
from tollspan.processor.sample import (
    DROPPED,
    ERROR,
    PROBABILITY,
    Pending,
    TailSampler,
    adjusted_count,
    encode_threshold,
    threshold,
)


@dataclass
class Bodies:
    ids: np.ndarray
    nbytes: int = 100

    def select(self, rows: np.ndarray) -> Bodies:
        return Bodies(self.ids[rows], self.nbytes)


Row = tuple[int, int, bool, bool]


def pending(spans: list[Row], arrived: float, source: object = None, nbytes: int = 100) -> Pending:
    """Spans as (trace, span id, root, error); a trace's randomness is spread over the 56 bits by its number."""
    trace = np.array([s[0] for s in spans], np.uint64)
    return Pending(
        source=source,
        bodies=Bodies(np.array([s[1] for s in spans])),
        rows=np.arange(len(spans)),
        trace=trace,
        span=np.array([s[1] for s in spans], np.uint64),
        randomness=(trace * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(8),
        incoming=np.zeros(len(spans), np.uint64),
        root=np.array([s[2] for s in spans], bool),
        error=np.array([s[3] for s in spans], bool),
        arrived=arrived,
        nbytes=nbytes,
    )


def fates(rounds: list) -> dict[int, int]:
    """Span id → reason code, each exactly once."""
    out: dict[int, int] = {}
    for one in rounds:
        for d in one.decisions:
            for row, reason in zip(d.rows, d.reason, strict=True):
                span = int(d.bodies.ids[row])
                assert span not in out, "decided twice"
                out[span] = int(reason)
    return out


@st.composite
def traffic(draw: st.DrawFn) -> tuple[list[tuple[int, int, bool, bool]], list[int]]:
    spans, number = [], 0
    for trace in range(1, draw(st.integers(1, 12)) + 1):
        for position in range(draw(st.integers(1, 5))):
            number += 1
            spans.append((trace, number, position == 0, draw(st.integers(0, 9)) == 0))
    return list(draw(st.permutations(spans))), sorted(draw(st.lists(st.integers(0, number), max_size=3)))


@given(traffic(), st.sampled_from([0.0, 0.1, 0.5, 1.0]))
@settings(max_examples=200, deadline=None)
def test_the_decision_depends_only_on_the_trace(data: tuple, keep: float) -> None:
    spans, cuts = data
    results = []
    for batches in ([spans], [spans[a:b] for a, b in zip([0, *cuts], [*cuts, len(spans)], strict=True)]):
        sampler = TailSampler(keep, wait_s=100.0, timeout_s=100.0)
        rounds = []
        for batch in batches:
            if batch:
                sampler.offer(pending(batch, 0.0))
                rounds.append(sampler.tick(0.0))
        rounds.append(sampler.tick(200.0))
        results.append(fates(rounds))
    assert results[0] == results[1]
    assert set(results[0]) == {s[1] for s in spans}, "every span is decided"
    failed = {s[0] for s in spans if s[3]}
    for trace, span, _, _ in spans:
        assert (results[0][span] == ERROR) == (trace in failed), "errors are always kept, with all of their trace"


def test_a_trace_waits_for_its_root_and_then_a_little() -> None:
    sampler = TailSampler(1.0, wait_s=1.0, timeout_s=30.0)
    sampler.offer(pending([(1, 10, False, False)], arrived=0.0, source="a"))
    assert not sampler.tick(5.0).decisions
    sampler.offer(pending([(1, 11, True, False)], arrived=5.0, source="b"))
    assert not sampler.tick(5.5).decisions
    done = sampler.tick(6.0)
    assert fates([done]) == {10: PROBABILITY, 11: PROBABILITY}
    assert sorted(done.finished) == ["a", "b"]
    assert done.traces == 1


def test_a_trace_without_a_root_is_decided_at_the_timeout() -> None:
    sampler = TailSampler(1.0, wait_s=1.0, timeout_s=30.0)
    sampler.offer(pending([(1, 10, False, False)], arrived=0.0))
    assert not sampler.tick(29.0).decisions
    assert fates([sampler.tick(30.0)]) == {10: PROBABILITY}


def test_late_spans_follow_their_trace_but_a_late_error_is_kept() -> None:
    sampler = TailSampler(0.0, wait_s=0.0)
    sampler.offer(pending([(1, 10, True, False), (2, 20, True, True)], arrived=0.0))
    assert fates([sampler.tick(1.0)]) == {10: DROPPED, 20: ERROR}
    sampler.offer(pending([(1, 11, False, False), (2, 21, False, False)], arrived=2.0))
    assert fates([sampler.tick(2.0)]) == {11: DROPPED, 21: ERROR}
    sampler.offer(pending([(1, 12, False, True)], arrived=3.0))
    assert fates([sampler.tick(3.0)]) == {12: ERROR}
    sampler.offer(pending([(1, 13, False, False)], arrived=4.0))
    assert fates([sampler.tick(4.0)]) == {13: ERROR}, "what comes after the late error follows it"


def test_memory_pressure_decides_the_oldest_early_and_counts_it() -> None:
    sampler = TailSampler(0.0, wait_s=100.0, timeout_s=100.0, max_bytes=150)
    sampler.offer(pending([(1, 10, True, False)], arrived=0.0))
    sampler.offer(pending([(2, 20, True, False)], arrived=1.0))
    assert fates([sampler.tick(1.0)]) == {10: DROPPED}
    assert sampler.forced == 1
    assert sampler.waiting_spans == 1


def test_a_span_delivered_twice_is_marked_once() -> None:
    sampler = TailSampler(1.0)
    sampler.offer(pending([(1, 10, True, False)], arrived=0.0))
    sampler.offer(pending([(1, 10, True, False)], arrived=0.1))
    decided = sampler.tick(10.0, everything=True)
    assert sum(int(d.duplicate.sum()) for d in decided.decisions) == 1


def test_an_incoming_threshold_is_honoured() -> None:
    sampler = TailSampler(1.0, wait_s=0.0)
    one = pending([(1, 10, True, False), (2, 20, True, True)], arrived=0.0)
    one.incoming[:] = np.uint64(2**55)
    one.randomness[:] = np.uint64(2**55 + 1)
    sampler.offer(one)
    decided = sampler.tick(1.0)
    assert {int(t) for d in decided.decisions for t in d.threshold} == {2**55}
    assert adjusted_count(2**55) == 2.0


def test_the_share_kept_is_the_share_asked_for() -> None:
    sampler = TailSampler(0.1, wait_s=0.0)
    rng = np.random.default_rng(7)
    one = pending([(t, t, True, False) for t in range(20_000)], arrived=0.0)
    one.randomness = rng.integers(0, 2**56, 20_000, dtype=np.uint64)
    sampler.offer(one)
    kept = sum(int((d.reason == PROBABILITY).sum()) for d in sampler.tick(1.0).decisions)
    assert 1800 < kept < 2200
    assert kept * adjusted_count(threshold(0.1)) == pytest.approx(20_000, rel=0.1)


@pytest.mark.parametrize(("keep", "th"), [(1.0, "0"), (0.5, "8"), (0.25, "c")])
def test_thresholds_are_written_as_the_specification_shows(keep: float, th: str) -> None:
    assert encode_threshold(threshold(keep)) == th


def test_find_says_minus_one_for_what_is_not_there() -> None:
    keys = np.array([1, 5, 9], np.uint64)
    assert find(np.array([5, 4, 10, 0], np.uint64), keys).tolist() == [1, -1, -1, -1]
    assert find(np.array([5], np.uint64), np.zeros(0, np.uint64)).tolist() == [-1]
