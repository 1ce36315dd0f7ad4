"""Spans of traces that were not sampled at their head: priced like any, and no bodies; what came whole stands for
nobody."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tollspan.pricing.attributes import SAMPLING_KEEP, SLIM
from tollspan.processor.store import Store

from .test_pipeline import CALL, Line, chat, total

AT_A_TENTH = "ot=th:e6666666666668"


@pytest.fixture
def line(store: Store, tmp_path: Path) -> Iterator[Line]:
    line = Line(store, tmp_path / "journal")
    yield line
    line.journal.close()


def slim(number: int, **more: Any) -> Any:
    return chat(number, **{SLIM: True, **more})


def whole(number: int, **more: Any) -> Any:
    """Sent as it is although its trace was not sampled."""
    return chat(number, **{SLIM: False, **more})


def sampled(number: int, **more: Any) -> Any:
    """Of a trace that a head sampler chose, one of ten."""
    # Its randomness is in the low 56 bits of its trace id, and has to be above the threshold.
    span = chat(number, trace=0xFFFFFFFFFFFFFF, **more)
    span.trace_state = AT_A_TENTH
    return span


def bodies(line: Line) -> list[dict[str, Any]]:
    return line.rows("SELECT SpanId, AdjustedCount, SamplingThreshold, KeepReason, TraceState FROM spans FINAL")


def test_a_slim_span_is_priced_and_is_no_body(line: Line) -> None:
    line.send(*(slim(n) for n in range(1, 11)))
    line.drain()
    assert total(line) == (10, 10 * CALL)
    assert bodies(line) == []
    (summed,) = line.rows(
        "SELECT count() AS n, sum(spans) AS s, sum(kept) AS k, sum(kept_spans) AS b FROM traces FINAL"
    )
    assert summed == {"n": 10, "s": 10, "k": 0, "b": 0}
    assert line.journal.stats()["outstanding"] == 0, "everything is released"
    assert line.counters.snapshot()["sampled.slim_spans"] == 10


def test_what_stands_in_what_is_seen_though_the_root_never_comes(line: Line) -> None:
    """An agent's span beneath a dropped root, and the call beneath it."""
    line.send(slim(2, trace=1, parent=99, tokens=(5000, 500)), slim(3, trace=1, parent=2))
    line.drain()
    assert total(line) == (2, CALL)
    assert {row["cost_status"] for row in line.rows("SELECT cost_status FROM ledger FINAL")} == {"priced", "rollup"}


def test_a_call_that_came_whole_is_kept_beside_slim_ones_and_stands_for_nobody(line: Line) -> None:
    line.send(slim(1), slim(2, trace=1), whole(3, trace=1, error=True, tokens=None))
    line.drain()
    (body,) = bodies(line)
    assert body["SpanId"] == f"{3:016x}"
    assert body["KeepReason"] == "error"
    assert (body["AdjustedCount"], body["SamplingThreshold"], body["TraceState"]) == (0.0, "", "")
    (summed,) = line.rows("SELECT spans, kept, kept_spans, keep_reason FROM traces FINAL")
    assert summed == {"spans": 3, "kept": 1, "kept_spans": 1, "keep_reason": "error"}


def test_a_trace_that_was_asked_for_is_kept_from_where_it_was(store: Store, tmp_path: Path) -> None:
    line = Line(store, tmp_path / "journal", keep=0.0)
    try:
        line.send(slim(1), whole(2, trace=1, **{SAMPLING_KEEP: True}), whole(3, trace=1), slim(4), chat(5))
        line.drain()
        found = bodies(line)
    finally:
        line.journal.close()
    assert {body["SpanId"] for body in found} == {f"{2:016x}", f"{3:016x}"}
    assert {(body["AdjustedCount"], body["KeepReason"]) for body in found} == {(0.0, "keep")}


def test_estimates_count_a_failure_once_however_it_came(line: Line) -> None:
    """Ten failed calls, of which a head sampler at a tenth chose one: the chosen one stands for all."""
    line.send(sampled(1, error=True), *(whole(n, error=True) for n in range(2, 11)))
    line.drain()
    counts = sorted(body["AdjustedCount"] for body in bodies(line))
    assert counts[:9] == [0.0] * 9
    assert counts[9] == pytest.approx(10)
    assert total(line) == (10, 10 * CALL)


def test_the_threshold_of_the_head_is_honoured_by_the_tail(store: Store, tmp_path: Path) -> None:
    line = Line(store, tmp_path / "journal", keep=0.5)
    try:
        line.send(sampled(1))
        line.drain()
        (body,) = bodies(line)
    finally:
        line.journal.close()
    assert body["AdjustedCount"] == pytest.approx(10), "the stricter of the two"
    assert body["TraceState"] == AT_A_TENTH


def test_a_resend_of_slim_spans_counts_nothing_twice(line: Line) -> None:
    for _ in range(3):
        line.send(slim(1), slim(2))
        line.work()
    line.crash()
    line.open()
    line.send(slim(2))
    line.drain()
    assert total(line) == (2, 2 * CALL)
    assert isinstance(total(line)[1], Decimal)
