"""Attributes that no dialect knows are counted and listed by name, in bounds, and never by value."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tollspan.pricing import PriceEngine, shipped_book
from tollspan.processor.counters import Counters
from tollspan.processor.decode import decode
from tollspan.processor.journal import Journal
from tollspan.processor.normalize import normalize
from tollspan.processor.pipeline import Pipeline, Settings
from tollspan.processor.queries import run
from tollspan.processor.store import Store
from tollspan.processor.unknown import LONGEST, Unknown
from tollspan.processor.write import Writer

from .dialect_bill import cases, request
from .otlp_factory import START

CASES = cases()
ACME = {"acme.llm.model_name": "acme-1", "acme.llm.prompt_tokens": 12, "acme.llm.completion_tokens": 3}


def one(attributes: Mapping[str, object], scope: str = "acme.tracer") -> dict[str, Any]:
    return {"name": "call", "scope": scope, "scope_version": "1.0", "parent": None, "attributes": attributes}


def seen(*spans: Mapping[str, Any], most: int = 1000) -> tuple[dict[tuple[str, bool], int], Counters]:
    """Names that are listed and whether usage stood beside them → spans."""
    counters = Counters()
    unknown = Unknown(counters, most)
    decoded = decode([request(0, spans)])
    unknown.see(decoded, normalize(decoded, received_ns=START), START)
    return {(name[2], name[3]): entry.spans for name, entry in unknown._seen.items()}, counters


def test_a_dialect_that_nobody_knows_is_listed_by_its_names(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found, counters = seen(one(ACME), one(ACME), one({"http.route": "/"}))
    assert found == {(name, False): 2 for name in ACME}
    assert counters.get("dialects.unknown.spans") == 2
    assert counters.get("dialects.unknown.names") == 3
    assert len(caplog.records) == 3, "once a name"
    assert "acme-1" not in caplog.text, "no values"


@pytest.mark.parametrize("name", CASES)
def test_the_dialects_that_are_known_are_not_listed(name: str) -> None:
    found, _ = seen(*CASES[name]["spans"])
    assert found == {}


@pytest.mark.parametrize(
    "key",
    [
        *("auth.token", "csrf_token", "gen_ai.request.max_tokens", "memory.usage", "car.model", "device.model.name"),
        *("user.id", "llm.usage.total_tokens", "tokenizer", "gen_ai.token.type", "process.cpu.usage"),
        *("llm.max_tokens_per_minute", "gen_ai.server.time_per_output_token", "gen_ai.aggregated_usage.input_tokens"),
    ],
)
def test_what_only_sounds_like_it_is_not_listed(key: str) -> None:
    assert seen(one({key: 5}))[0] == {}


def test_an_unknown_part_beside_known_usage_is_told_apart() -> None:
    found, counters = seen(one({"gen_ai.usage.input_tokens": 5, "gen_ai.usage.holographic.input_tokens": 2}))
    assert found == {("gen_ai.usage.holographic.input_tokens", True): 1}
    assert counters.get("dialects.unknown.spans") == 0


def test_names_are_bounded_in_number_and_length() -> None:
    found, counters = seen(*(one({f"acme.{number}.tokens": 1}) for number in range(50)), most=10)
    assert len(found) == 10
    assert counters.get("dialects.unknown.overflow") == 40
    ((name, _),), _ = seen(one({"tokens" * 100: 1}))
    assert len(name) == LONGEST


def test_a_hundred_thousand_names_are_no_burden() -> None:
    found, _ = seen(one({f"a{number}.tokens": 1 for number in range(100_000)}))
    assert 0 < len(found) <= 256


def test_the_list_is_in_the_store_and_outlives_the_process(store: Store, tmp_path: Path) -> None:
    def process(number: int) -> None:
        counters = Counters()
        journal = Journal(tmp_path / f"journal-{number}", counters=counters)
        line = Pipeline(
            journal,
            Writer(store, threading.Event(), counters, pause=lambda _: None),
            PriceEngine(shipped_book()),
            Settings(keep=0.0, decision_wait_s=0.0, linger_s=0.0),
            counters,
        )
        line.unknown._process = number
        journal.append(
            request(number, [one(ACME), one({"gen_ai.usage.input_tokens": 1, "x.tokens": 1}, "other")])
        ).wait()
        stop = threading.Event()
        stop.set()
        line.run(stop)
        journal.close()

    process(1)
    process(2)
    reader = store.reader()
    try:
        rows = run(reader, "unknown-attributes")
    finally:
        reader.close()
    told = [(row["scope"], row["version"], row["attribute"], row["usage_told"], row["spans"]) for row in rows]
    assert told == [
        *(("acme.tracer", "1.0", name, False, 2) for name in sorted(ACME)),
        ("other", "1.0", "x.tokens", True, 2),
    ]
