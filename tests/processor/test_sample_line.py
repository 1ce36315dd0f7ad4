"""Sampling in the line, on a real store: it decides the fate of bodies, alike after a kill, and never touches cost."""

from __future__ import annotations

import errno
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "end_to_end"))
sys.path.insert(0, str(Path(__file__).parent))
from service import chat
from test_pipeline import CALL, Line, total

from tollspan.processor import pipeline, summarize
from tollspan.processor.decode import fused
from tollspan.processor.pipeline import Settings
from tollspan.processor.sample import Plain
from tollspan.processor.store import Store

KEEP, SLIM = "tollspan.sampling.keep", "tollspan.slim"


def trace(number: int) -> int:
    """A trace id whose low bytes are spread evenly."""
    return (number * 0x9E3779B97F4A7C15F39CC0605CEDC835) % 2**128


def hexed(number: int) -> str:
    return f"{trace(number):032x}"


def virtual(line: Line, **settings: Any) -> list[float]:
    """Have the line go by a clock that a test sets."""
    now = [0.0]
    line.pipeline.clock = lambda: now[0]
    sampler = line.pipeline.sampler
    for name, value in settings.items():
        setattr(sampler.waiting if name == "max_bytes" else sampler, name, value)
    return now


def spans_of(number: int, count: int = 3, **more: Any) -> list[Any]:
    """A trace: a root that calls nothing and calls beneath it."""
    root = chat(100 * number, trace=trace(number), tokens=None, **{"gen_ai.operation.name": "invoke_agent"}, **more)
    return [root, *(chat(100 * number + n, trace=trace(number), parent=100 * number) for n in range(1, count))]


def kept(line: Line) -> dict[str, tuple[str, str, str, float]]:
    rows = line.rows("SELECT DISTINCT TraceId, KeepReason, KeepRule, Content, AdjustedCount FROM spans FINAL")
    assert len({r["TraceId"] for r in rows}) == len(rows)
    return {r["TraceId"]: (r["KeepReason"], r["KeepRule"], r["Content"], r["AdjustedCount"]) for r in rows}


@pytest.fixture
def line(store: Store, tmp_path: Path) -> Any:
    made = Line(store, tmp_path / "journal", keep=0.5)
    yield made
    made.journal.close()


def test_a_kill_between_the_decision_and_the_release_changes_no_decision(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(line.journal), "release", lambda *_: None)
    now = virtual(line)
    for number in range(1, 60):
        line.send(*spans_of(number)[:2])
    line.work()
    now[0] += 10
    line.work()
    before = kept(line)
    assert 10 < len(before) < 50
    assert {each[:2] for each in before.values()} == {("probability", "probability")}
    monkeypatch.undo()
    line.crash()
    line.keep = 0.0
    line.open()
    for number in range(1, 60):
        line.send(spans_of(number)[2])
    for number in range(60, 70):
        line.send(*spans_of(number))
    line.drain()
    assert line.counters.get("sampling.memory_recalled") == 59
    assert kept(line) == before, "late spans follow, and nobody is decided again"
    assert line.rows("SELECT DISTINCT c FROM (SELECT count() AS c FROM spans FINAL GROUP BY TraceId)") == [{"c": 3}]
    summaries = line.rows("SELECT trace_id_hex AS t, kept, keep_rule, content, stored_bytes FROM traces FINAL")
    assert {r["t"] for r in summaries if r["kept"]} == set(before)
    assert all((r["keep_rule"], r["content"]) == ("probability", "full") for r in summaries if r["kept"])
    assert all((r["stored_bytes"] > 300) == bool(r["kept"]) for r in summaries)
    assert total(line)[1] == (59 * 2 + 10 * 2) * CALL


def test_an_open_trace_is_decided_after_a_kill_as_if_nothing_had_been(line: Line) -> None:
    now = virtual(line, wait_s=5.0)
    for number in range(1, 40):
        line.send(*spans_of(number)[:2])
        now[0] += 0.01
        line.work()
    line.crash()
    line.open()
    now = virtual(line, wait_s=5.0)
    for number in range(1, 40):
        line.send(spans_of(number)[2])
    line.work()
    now[0] += 10
    line.work()
    assert {t for t, _ in ((hexed(n), n) for n in range(1, 40) if trace(n) % 2**56 >= 2**55)} == set(kept(line))
    counted = line.rows("SELECT DISTINCT c FROM (SELECT count() AS c FROM spans FINAL GROUP BY TraceId)")
    assert counted == [{"c": 3}]


def test_a_round_of_large_bodies_is_written_piece_by_piece(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = "SELECT * EXCEPT (Timestamp) FROM spans FINAL ORDER BY TraceId, SpanId"
    summary = "SELECT * EXCEPT (start_time, end_time) FROM traces FINAL ORDER BY trace_id"
    told = "SELECT sum(spans) AS n, sum(kept_spans) AS k, sum(stored_bytes) AS s FROM telemetry FINAL"
    found, inserts = [], []
    for name, piece in (("whole", summarize.PIECE_BYTES), ("pieces", 3000)):
        for module in (summarize, pipeline):
            monkeypatch.setattr(module, "PIECE_BYTES", piece)
        line = Line(store, tmp_path / name, keep=1.0)
        virtual(line, wait_s=5.0)
        line.pipeline.settings = Settings(keep=1.0, linger_s=0.0, batch_bytes=1500)
        for number in range(1, 20):
            line.send(*spans_of(number, 3))
        line.work()
        before = line.counters.get("write.inserts")
        line.drain()
        inserts.append(line.counters.get("write.inserts") - before)
        assert line.counters.get("sampled.kept_spans") == 57
        found.append((line.rows(every), line.rows(summary), line.rows(told), total(line)))
        for table in ("spans", "traces", "ledger", "telemetry"):
            store.execute(f"TRUNCATE TABLE {table}")
        line.journal.close()
    assert found[0] == found[1]
    assert len(found[0][0]) == 57
    assert inserts[1] > inserts[0] + 3


def test_bodies_that_waited_on_disk_are_the_same_rows(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = "SELECT * EXCEPT (Timestamp) FROM spans FINAL ORDER BY TraceId, SpanId"
    summary = "SELECT * EXCEPT (start_time, end_time) FROM traces FINAL ORDER BY trace_id"
    found = []
    fused.prepare(wait=True)
    for name, room, walk in (("memory", 1 << 30, None), ("disk", 0, None), ("journal", 1 << 30, fused.kernels())):
        monkeypatch.setattr(fused, "_walk", walk)
        line = Line(store, tmp_path / name, keep=0.5)
        now = virtual(line, wait_s=5.0, max_bytes=room)
        line.pipeline.settings = Settings(keep=0.5, linger_s=0.0, batch_bytes=4000)
        for number in range(1, 30):
            line.send(*spans_of(number, 8))
        line.work()
        waiting = line.pipeline.sampler.waiting
        assert (line.counters.get("sampling.spilled") > 5) == (name == "disk")
        assert bool(list((tmp_path / name / "sampling").glob("*.spilled"))) == (name == "disk")
        if name == "disk":
            assert waiting.nbytes == 0
        if name == "journal":
            assert all(batch.place[0].decoded.stored.nbytes == 0 for batch in waiting)
        now[0] += 10
        line.work()
        line.drain()
        assert not list((tmp_path / name / "sampling").glob("*.spilled"))
        received = line.rows("SELECT sum(spans) AS n, sum(bytes) AS b, sum(stored_bytes) AS s FROM telemetry FINAL")
        found.append((line.rows(every), line.rows(summary), total(line), received))
        for table in ("spans", "traces", "ledger", "telemetry"):
            store.execute(f"TRUNCATE TABLE {table}")
        line.journal.close()
    assert found[0] == found[1]
    assert len(found[0][0]) > 50
    # What is received of a span is its own bytes there, and a share of its request by its attributes elsewhere.
    assert [found[2][0], found[2][2]] == [found[0][0], found[0][2]]


def test_bodies_that_cannot_be_read_again_come_from_the_journal_after_a_start(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused.prepare(wait=True)
    now = virtual(line, wait_s=5.0)
    for number in range(1, 30):
        line.send(*spans_of(number))
    line.work()
    now[0] += 10

    def broken(*_: Any) -> Any:
        raise OSError(errno.EIO, "no such sector")

    with monkeypatch.context() as patch:
        patch.setattr("tollspan.processor.journal.payloads.os.preadv", broken)
        line.drain()
    assert line.counters.get("pipeline.unwritten_rounds") == 1
    assert line.counters.get("pipeline.faults") == 0
    assert not kept(line)
    assert total(line)[1] == 29 * 2 * CALL
    assert line.journal.stats()["outstanding"] > 0
    line.crash()
    line.open()
    line.drain()
    assert 5 < len(kept(line)) < 25
    assert total(line)[1] == 29 * 2 * CALL
    assert line.journal.stats()["outstanding"] == 0


def test_where_there_is_no_disk_content_goes_first(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the compiled decoder has read stays in the journal.
    monkeypatch.setattr(fused, "_walk", None)
    line = Line(store, tmp_path / "journal", keep=1.0)
    now = virtual(line, wait_s=5.0)
    line.pipeline.sampler.waiting._spill = None
    line.pipeline.sampler.waiting.max_bytes = 50_000
    said = {"gen_ai.input.messages": "x" * 20_000}
    for number in range(1, 8):
        line.send(*spans_of(number, 2, **said))
        line.work()
    assert line.counters.get("sampling.content_shed") > 0
    assert line.pipeline.sampler.forced == 0
    now[0] += 10
    line.work()
    content = line.rows("SELECT content, sum(spans) AS n FROM traces FINAL GROUP BY content ORDER BY content")
    assert [r["content"] for r in content] == ["full", "removed"]
    assert sum(r["n"] for r in content) == 14
    told = line.rows(
        "SELECT DISTINCT Content, mapContains(SpanAttributes, 'gen_ai.input.messages') AS said FROM spans FINAL"
        " WHERE ParentSpanId = '' ORDER BY Content"
    )
    assert told == [{"Content": "full", "said": 1}, {"Content": "removed", "said": 0}]
    assert total(line)[1] == 7 * CALL
    line.drain()
    line.journal.close()


def test_the_program_can_ask_for_a_trace_and_against_it(line: Line) -> None:
    line.pipeline.sampler.use(Plain(0.0))
    for number, marks in enumerate(({}, {KEEP: True}, {KEEP: False}), 1):
        line.send(*spans_of(number, **marks))
    line.pipeline.sampler.use(Plain(1.0))
    line.send(*spans_of(4, **{KEEP: False}), chat(499, trace=trace(4), parent=400, error=True))
    line.send(*spans_of(5, **{KEEP: False}), chat(599, trace=trace(5), parent=500, **{KEEP: True}))
    line.drain()
    assert {t: each[0] for t, each in kept(line).items()} == {
        hexed(1): "probability",
        hexed(2): "keep",
        hexed(5): "keep",
    }
    assert line.counters.get("sampled.rule.keep") == 2
    assert line.counters.get("sampled.dropped_by.drop") == 2


def test_a_slim_span_is_priced_and_is_no_body(line: Line) -> None:
    line.pipeline.sampler.use(Plain(1.0))
    line.send(chat(1, trace=trace(1), **{SLIM: True}), chat(2, trace=trace(1), parent=1, **{SLIM: True}))
    # Whole, though its trace was rejected where it began: a body that stands for nobody.
    line.send(chat(3, trace=trace(2), error=True, **{SLIM: False}), chat(4, trace=trace(2), parent=3, **{SLIM: True}))
    line.send(chat(5, trace=trace(3)))
    line.drain()
    rows = line.rows("SELECT SpanId, AdjustedCount, SamplingThreshold, TraceState FROM spans FINAL ORDER BY SpanId")
    assert [tuple(r.values()) for r in rows] == [
        (f"{3:016x}", 0.0, "", ""),
        (f"{5:016x}", 1.0, "0", "ot=th:0"),
    ]
    summaries = line.rows("SELECT trace_id_hex AS t, spans, kept, kept_spans, keep_rule FROM traces FINAL")
    assert {r["t"]: (r["spans"], r["kept"], r["kept_spans"], r["keep_rule"]) for r in summaries} == {
        hexed(1): (2, 0, 0, ""),
        hexed(2): (2, 1, 1, "error"),
        hexed(3): (1, 1, 1, "probability"),
    }
    assert total(line)[0] == 5


def test_what_samplers_before_us_did_holds_for_each_span_by_itself(line: Line) -> None:
    def sent(number: int, of: int, state: str, **more: Any) -> Any:
        made = chat(number, trace=of, **more)
        made.trace_state = state
        return made

    line.pipeline.sampler.use(Plain(0.5))
    high = 2**128 - 1
    line.send(sent(1, high, "ot=th:c"), sent(2, high, "", parent=1), sent(3, high, "ot=th:4", parent=1))
    # Of an error's trace too: that it is kept for certain does not undo that three of four never came.
    line.send(sent(4, high - 2**64, "ot=th:c", error=True))
    # By its own randomness this one would have been rejected: whatever th:c means, it is not by what it was chosen.
    line.send(sent(5, 2**55 + 2**64, "ot=th:c;rv:80000000000000"))
    line.drain()
    rows = line.rows("SELECT SpanId, AdjustedCount, TraceState FROM spans FINAL ORDER BY SpanId")
    assert [(int(r["SpanId"], 16), r["AdjustedCount"], r["TraceState"]) for r in rows] == [
        (1, 4.0, "ot=th:c"),
        (2, 2.0, "ot=th:8"),
        (3, 2.0, "ot=th:8"),
        (4, 4.0, "ot=th:c"),
        (5, 2.0, "ot=th:8;rv:80000000000000"),
    ]
    assert line.counters.get("sampling.inconsistent_th") == 1


def test_no_decision_touches_the_ledger(store: Store, tmp_path: Path) -> None:
    found = []
    for number, keep in enumerate((0.0, 0.3, 1.0)):
        line = Line(store, tmp_path / str(number), keep=keep)
        virtual(line, max_bytes=0 if keep == 0.3 else 10_000, max_spans=20, max_trace_spans=4)
        for trace_number in range(1, 30):
            line.send(*spans_of(trace_number, 6, **({KEEP: False} if trace_number % 3 else {})))
            line.work()
        line.drain()
        found.append(line.rows("SELECT * EXCEPT (revision, batch) FROM ledger FINAL ORDER BY trace_id, span_id"))
        store.execute("TRUNCATE TABLE ledger")
        line.journal.close()
    assert found[0] == found[1] == found[2]
    assert sum(Decimal(r["cost"] or 0) for r in found[0]) == 29 * 5 * CALL


def test_a_trace_in_steps_has_one_summary_of_all_of_it(store: Store, tmp_path: Path) -> None:
    """Decided twice before its root came, and once after it: what its summary says is what it says of a whole trace."""
    columns = "spans, telemetry_bytes, kept_spans, stored_bytes, root_name, kept, keep_rule, content, error"
    root, *calls = spans_of(1, 9)
    found = []
    for number, steps in enumerate(([calls[:3], calls[3:6], [root, *calls[6:]]], [[*calls, root]])):
        line = Line(store, tmp_path / str(number), keep=1.0)
        now = virtual(line, wait_s=1.0, timeout_s=10.0)
        for spans in steps:
            for span in spans:
                line.send(span)
            line.work()
            now[0] += 60.0
            line.work()
        assert line.counters.get("sampling.steps") == len(steps) - 1
        assert line.pipeline.sampler.open_traces == 0
        found.append(line.rows(f"SELECT {columns} FROM traces FINAL"))
        line.drain()
        assert line.journal.stats()["outstanding"] == 0
        line.journal.close()
        for table in ("spans", "traces", "ledger"):
            store.execute(f"TRUNCATE TABLE {table}")
    assert found[0] == found[1]
    assert (found[0][0]["spans"], found[0][0]["kept_spans"]) == (9, 9)


def test_late_children_alone_make_a_row_without_a_root(line: Line) -> None:
    line.pipeline.sampler.use(Plain(1.0))
    line.send(*spans_of(1)[:2])
    line.work()
    line.work()
    line.send(spans_of(1)[2])
    line.work()
    line.drain()
    rows = line.rows("SELECT root_name, root_service, max(kept_spans) AS k FROM traces FINAL GROUP BY ALL")
    assert rows == [{"root_name": "chat gpt-5-mini", "root_service": "test", "k": 2}]
    assert line.rows("SELECT count() AS n FROM spans FINAL") == [{"n": 3}]
