"""The incident day through the real line under a budget, and beside it through two other samplers: runs, and the table.

What it costs to receive and to store telemetry stands in the day's own price book: so much that a whole day without
sampling takes about a fifth of what the inference costs, as hosted products for traces of LLMs do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from incident_day import (
    BEGAN,
    Collector,
    Day,
    Judged,
    book_yaml,
    collector_policies,
    judge,
    probabilistic,
    sizes,
)
from virtual_line import VirtualLine

from tollspan.pricing import PriceBook, load_book
from tollspan.processor.sample.rules import read_sampling
from tollspan.processor.store import Store

BUDGET: Final = "2%"
RECEIVED_GB: Final = Decimal("0.05")
STORED_GB: Final = Decimal("25")
"""USD; stored for 30 days, which the book says by the month."""
PRICES: Final = (
    f"{{id: t/received, meter: telemetry.bytes, amount: '{RECEIVED_GB}', unit: GB}}",
    f"{{id: t/stored, meter: telemetry.stored.byte_seconds, amount: '{STORED_GB}', unit: GB-month}}",
)
RULES: Final = """
rules:
  - {name: errors, when: {error: true}, keep: always}
  - {name: runaways, when: {loop: {growing: 20}}, keep: always}
  - {name: storms, when: {loop: {same_request: 4}}, keep: 20%, content: remove}
  - {name: new models, when: {rare: {of: model, fewer_than: 20}}, keep: always}
  - {name: dear, when: {expensive: {top: 1}}, keep: 20%}
  - {name: slow, when: {slow: {above: p95, of: route, window: 6h, least: 50}}, keep: 25%}
base: {keep: 30%, by: cost}
"""
WITHOUT_RULES: Final = 20
"""Minutes that run as without a sampling file: where there is no past at all, everything would be new."""
NUM_TRACES: Final = 500
"""Of the Collector: its default of 50,000 for a day of a hundred times as many traces."""


def book_in(folder: Path) -> PriceBook:
    """The day's price book."""
    path = folder / "prices.yaml"
    path.write_text(book_yaml(*PRICES))
    return load_book(path)


def sampled(store: Store, folder: Path, day: Day, levels_every: int = 1) -> VirtualLine:
    """The day, minute by minute; the rules and the budget are put in place while it runs."""
    rules = folder / "sampling.yaml"
    rules.write_text(RULES)
    line = VirtualLine(store, folder / "sampled", book_in(folder))
    for number, payload in enumerate(day.payloads()):
        if number == WITHOUT_RULES:
            line.sample_by(read_sampling(rules), BUDGET)
        line.minute(number, payload, renew=number % levels_every == 0)
    line.end()
    line.close()
    return line


def unsampled(store: Store, folder: Path, day: Day) -> VirtualLine:
    """The day in a few large batches, everything kept."""
    line = VirtualLine(store, folder / "unsampled", book_in(folder), keep=1.0)
    for payload in filter(None, day.payloads()):
        line.send(payload)
    line.at(day.hours * 3600)
    line.work()
    line.end()
    line.close()
    return line


def price(received: int, stored: int) -> Decimal:
    """By the day's book."""
    return (RECEIVED_GB * received + STORED_GB * stored) / 10**9


def rows_of(store: Store, sql: str) -> list[dict[str, Any]]:
    with store.reader() as reader:
        return reader.rows(sql)


def judged(store: Store, day: Day, stored: Mapping[int, int]) -> Judged:
    """What the store kept of the day, and what its table of telemetry says that this cost.

    Args:
        stored: bytes of each span's row with its content, by position in ``Day.sent``.
    """
    place = {(one.trace.hex(), one.span.span_id.hex()): n for n, one in enumerate(day.sent)}
    kept = [place[row["t"], row["s"]] for row in rows_of(store, "SELECT TraceId AS t, SpanId AS s FROM spans FINAL")]
    found = judge(day, {n: stored[n] for n in kept}, price)
    hours = {
        row["hour"]: row
        for row in rows_of(
            store,
            f"SELECT toInt64(intDiv(toUnixTimestamp64Nano(minute) - {BEGAN}, 3600000000000)) AS hour,"
            " sum(telemetry.cost) AS usd, sum(telemetry.stored_bytes) AS bytes FROM telemetry FINAL GROUP BY hour",
        )
    }
    spent = {
        row["hour"]: row["usd"]
        for row in rows_of(
            store,
            f"SELECT toInt64(intDiv(toUnixTimestamp64Nano(start_time) - {BEGAN}, 3600000000000)) AS hour,"
            " sum(ledger.cost) AS usd FROM ledger FINAL GROUP BY hour",
        )
    }
    telemetry = sum((row["usd"] for row in hours.values()), Decimal(0))
    return replace(
        found,
        nbytes=sum(row["bytes"] for row in hours.values()),
        telemetry=telemetry,
        share=float(telemetry / day.bill),
        by_hour=[
            float(hours[hour]["usd"] / spent[hour]) if spent.get(hour) and hour in hours else None
            for hour in range(day.hours)
        ],
    )


def others(day: Day, stored: Mapping[int, int]) -> list[tuple[str, Judged]]:
    """The baselines."""
    collector = Collector(collector_policies(), num_traces=NUM_TRACES)
    choices = {
        "keep everything": set(range(len(day.sent))),
        "probabilistic 10 %": probabilistic(day, 10),
        "Collector tail_sampling": collector.choose(day),
    }
    return [(name, judge(day, {n: stored[n] for n in choice}, price)) for name, choice in choices.items()]


def stored_of(day: Day) -> dict[int, int]:
    """Bytes of each span's row, by position."""
    return dict(enumerate(sizes(day)))
