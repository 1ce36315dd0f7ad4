"""A service that is killed: what it decided on a trace holds for the spans that come after the next start."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from service import Service, chat, payload

from tollspan.processor.store import connect_for_query


def trace(number: int) -> int:
    """A trace id whose low bytes are spread evenly."""
    return (number * 0x9E3779B97F4A7C15F39CC0605CEDC835) % 2**128


def rows(service: Service, sql: str) -> list[dict[str, Any]]:
    reader = connect_for_query(service.url)
    try:
        return list(reader.query(sql).to_pylist())
    finally:
        reader.close()


KEPT = "SELECT TraceId AS t, count() AS n, any(SamplingThreshold) AS th FROM spans FINAL GROUP BY t ORDER BY t"


def test_decisions_outlive_the_process_that_made_them(tmp_path: Path) -> None:
    folder, numbers = tmp_path / "store", range(1, 61)
    roots = [chat(10 * n, trace=trace(n)) for n in numbers]
    children = [chat(10 * n + 1, trace=trace(n), parent=10 * n) for n in numbers]
    late = [chat(10 * n + 2, trace=trace(n), parent=10 * n) for n in numbers]
    with Service(folder, ["--keep", "0.5", "--decision-wait", "100ms"]) as service:
        service.export(payload([*roots, *children]))
        until = time.monotonic() + 60
        while rows(service, "SELECT count() AS n FROM traces FINAL") != [{"n": 60}]:
            assert time.monotonic() < until
            time.sleep(0.1)
        before = rows(service, KEPT)
        service.kill()
    assert 10 < len(before) < 50
    assert {(r["n"], r["th"]) for r in before} == {(2, "8")}
    with Service(folder, ["--keep", "0", "--decision-wait", "100ms"]) as service:
        service.export(payload(late))
        stats = service.stop()
    assert stats["sampling.memory_recalled"] == 60
    after = rows(service, KEPT)
    assert after == [r | {"n": 3} for r in before], "late spans follow, with the threshold of their trace"
