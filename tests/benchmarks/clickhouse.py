"""Questions to a large ledger: how long each takes, how it grows, and what a row takes on disk.

    python tests/benchmarks/clickhouse.py [--rows 1 5] [--twenty] [--keys] [--repeat 20] [--store DIR]

Makes ledgers of so many million rows over 30 days (0.9 inferences a row, three charges each, three rows a trace, 200
tenants, 12 models), inserted in the order of their arrival as the service does, in batches, and asks every measure by
one dimension over the whole 30 days, warm. Prints the median and the 95th percentile of each and its CPU time, how that
grows from the smallest to the largest ledger, and this drawn out to a billion rows in 30 days. Lines that begin with
``view`` are the page's views, each over the window that it has unless asked otherwise, and ``more`` are questions with
no promise about their time, asked five times. Memory is that of this process, engine and all. ``--store`` keeps the
ledgers in a directory and asks those that are there already. ``--keys`` makes the smallest ledger again with other keys
and codecs, beside the shipped ones. Exits 1 when a measure needs more than 1 s at p95 on the largest ledger asked, a
view more than 2 s, or a row more than 45 bytes. Other programs on the machine make the clock's times much worse, and
CPU times somewhat.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

from tollspan.processor.errors import StoreError
from tollspan.processor.page import views
from tollspan.processor.queries import named_queries, run
from tollspan.processor.store import Store, open_store

LIMIT_S, VIEW_LIMIT_S, LIMIT_BYTES = 1.0, 2.0, 45.0
SELDOM: Final = 5
"""Times at the most that a question is asked of which nothing is promised."""
DAYS = 30
SINCE = datetime(2026, 10, 1, tzinfo=UTC)
CHUNK = 250_000
MILLION = 10**6

KEYS: dict[str, dict[str, str]] = {
    "as shipped": {},
    "hour, tenant, model first": {
        r"ORDER BY \(start_time, trace_id, span_id\)": (
            "ORDER BY (toStartOfHour(start_time), tenant, model, start_time, trace_id, span_id)"
        )
    },
    "trace first": {r"ORDER BY \(start_time, trace_id, span_id\)": "ORDER BY (trace_id, start_time, span_id)"},
    "a part for each day": {r"PARTITION BY toYYYYMM\(start_time\)": "PARTITION BY toDate(start_time)"},
    "trace_id as it is": {r"(`trace_id` FixedString\(16\)[^,]*?)CODEC\(ZSTD\(1\)\)": r"\1CODEC(NONE)"},
    "costs ZSTD(3)": {r"CODEC\(GCD, ZSTD\(1\)\)": "CODEC(GCD, ZSTD(3))"},
    "default codecs": {r" CODEC\((?:[^()]|\([^()]*\))*\)": ""},
    "ZSTD(3) for all": {r"ZSTD\(1\)": "ZSTD(3)"},
}
"""Ledgers to compare → what is replaced in the shipped DDL."""

FILL = """
INSERT INTO ledger
(
    start_time, trace_id, span_id, parent_span_id, duration_ns, service, environment, region, tenant, team, feature,
    workflow, variant, provider, model, request_model, operation, kind, span_status, retries, cold_start, batch_size,
    convention, cost_status, cost, `charges.meter`, `charges.component`, `charges.quantity`, `charges.unit`,
    `charges.unit_price`, `charges.per`, `charges.given_cost`, `charges.negotiated`, `charges.committed`,
    `charges.price_id`, `charges.matched_by`, `charges.status`, book_version, revision, batch
)
WITH
    cityHash64(number, 1) AS r1, cityHash64(number, 2) AS r2, cityHash64(number, 3) AS r3, cityHash64(number, 4) AS r4,
    intDiv(number, 3) AS trace,
    cityHash64(trace, 5) AS t1,
    multiIf(number % 50 = 7, 'capacity', number % 12 = 5, 'feature_read', 'inference') AS what,
    toUInt32(12 * pow(t1 % 1000003 / 1000003, 2)) AS m,
    concat('model-', toString(m)) AS model_,
    concat('maker-', toString(m % 4)) AS maker,
    if(what = 'inference',
       [50 + r1 % 8000, if(r2 % 2 = 0, 0, 64 * (1 + r2 % 60)), 1 + toUInt64(400 * pow(r3 % 1000003 / 1000003, 3))],
       [1 + r1 % 60]) AS counts,
    if(what = 'inference', [toDecimal64(m + 1, 6) / 8, toDecimal64(m + 1, 6) / 80, toDecimal64(m + 1, 6)],
       [toDecimal64(0.36, 6)]) AS prices,
    arrayMap((c, p) -> toDecimal128(c, 0) * toDecimal128(p, 6) / 1000000, counts, prices) AS quotients,
    arrayMap(q -> toDecimal128(q, 12), arrayMap(
        (c, p) -> toDecimal128(c, 0) * toDecimal128(p, 12) / 1000000, counts, prices)) AS costs,
    r4 % 500 = 3 AND what = 'inference' AS unknown,
    toDateTime64({since:DateTime64(9, 'UTC')}, 9, 'UTC') AS began,
    addNanoseconds(began, toInt64(number * {step:UInt64} + r2 % 20000000000)) AS at
SELECT
    at, reinterpretAsFixedString(sipHash128(trace)), reinterpretAsFixedString(r1),
    if(number % 3 = 0, toFixedString('', 8), reinterpretAsFixedString(cityHash64(trace * 3, 1))),
    toUInt64(exp(20 + (r3 % 1000 + r4 % 1000 + r1 % 1000 - 1500) / 500)),
    concat('service-', toString(t1 % 8)), if(t1 % 10 = 0, 'staging', 'production'),
    concat('region-', toString(t1 % 3)),
    concat('tenant-', toString(toUInt32(200 * pow(cityHash64(trace, 6) % 1000003 / 1000003, 3)))),
    concat('team-', toString(t1 % 10)), concat('feature-', toString(cityHash64(trace, 7) % 20)),
    concat('workflow-', toString(t1 % 5)), if(t1 % 2 = 0, 'a', 'b'),
    maker, model_, model_, if(what = 'inference', 'chat', ''), what,
    if(r4 % 50 = 1, 'error', 'ok'), if(what = 'inference', toUInt32(r4 % 40 = 2), NULL),
    if(what = 'inference', r4 % 200 = 0, NULL), if(m = 0, toUInt32(1 + r1 % 8), NULL),
    'gen_ai', if(unknown, 'unpriced', 'priced'), if(unknown, NULL, arraySum(costs)),
    if(what = 'inference', ['tokens.input.uncached', 'tokens.input.cache_read', 'tokens.output'],
       if(what = 'capacity', ['gpu.idle_seconds'], ['feature.reads'])),
    if(what = 'inference', ['model', 'model', 'model'], if(what = 'capacity', ['compute'], ['storage'])),
    arrayMap(c -> toDecimal128(c, 9), counts),
    if(what = 'inference', ['token', 'token', 'token'], if(what = 'capacity', ['second'], ['read'])),
    arrayMap(p -> if(unknown, NULL, toDecimal128(p, 18)), prices), arrayMap(c -> '1000000 token', counts),
    arrayMap(c -> if(unknown, NULL, c), costs), arrayMap(c -> if(unknown, NULL, toDecimal128(0, 12)), costs),
    arrayMap(c -> if(unknown, NULL, toDecimal128(0, 12)), costs),
    arrayMap((c, n) -> concat(model_, '/', toString(n)), counts, arrayEnumerate(counts)),
    arrayMap(c -> 'exact model', counts), arrayMap(c -> if(unknown, 'unpriced', 'priced'), counts),
    '0123456789abcdef',
    toUInt64(70368744177663 + 1577836800000 - 25000 - toUnixTimestamp64Milli(began)
        - intDiv(intDiv(number, 500) * 500 * {step:UInt64}, 1000000)),
    cityHash64(intDiv(number, 500), 9)
FROM numbers({first:UInt64}, {many:UInt64})
"""

TRACES = """
INSERT INTO traces (trace_id, day, start_time, end_time, root_name, root_service, tenant, spans, telemetry_bytes,
                    telemetry_cost, kept, kept_spans)
SELECT trace_id, toDate(min(l.start_time)), min(l.start_time) AS s, s, 'ask', any(l.service), any(l.tenant),
       toUInt64(count() * 3), toUInt64(count() * 2000), toDecimal128(0.000001, 12), toUInt8(0), toUInt64(0)
FROM ledger AS l
WHERE l.start_time >= toDateTime64({since:DateTime64(9, 'UTC')}, 9, 'UTC') + toIntervalHour(12 * {turn:UInt32})
    AND l.start_time < toDateTime64({since:DateTime64(9, 'UTC')}, 9, 'UTC') + toIntervalHour(12 * {turn:UInt32} + 12)
GROUP BY trace_id
"""
"""Of half a day, so that memory is bounded; a trace over both sides has a row on each, as one that grows has."""

TELEMETRY = """
INSERT INTO telemetry
    (minute, tenant, service, token, spans, bytes, kept_spans, stored_bytes, received_cost, stored_cost)
SELECT toDateTime64({since:DateTime64(9, 'UTC')}, 9, 'UTC') + toIntervalMinute(number % 43200),
       concat('tenant-', toString(number % 200)), concat('service-', toString(number % 8)), toString(number),
       1000, 600000, 100, 60000, toDecimal128(0.0003, 12), toDecimal128(0.0001, 12)
FROM numbers(216000)
"""


def fill(store: Store, rows: int) -> float:
    """Fill a migrated store; seconds that it took."""
    began = time.perf_counter()
    step = int(timedelta(days=DAYS).total_seconds() * 10**9) // rows
    since = SINCE.strftime("%Y-%m-%d %H:%M:%S")
    for first in range(0, rows, CHUNK):
        parameters = {"since": since, "step": step, "first": first, "many": min(CHUNK, rows - first)}
        store.execute(FILL, parameters)
    for turn in range(2 * DAYS + 1):
        store.execute(TRACES, {"since": since, "turn": turn})
    store.execute(TELEMETRY, {"since": since})
    settle(store)
    return time.perf_counter() - began


def settle(store: Store, limit_s: float = 60.0) -> None:
    """Wait until background merges have done what they mean to do."""
    until = time.monotonic() + limit_s
    quiet = 0
    while quiet < 5 and time.monotonic() < until:
        (row,) = store.rows("SELECT count() AS n FROM system.merges WHERE database = currentDatabase()")
        quiet = 0 if row["n"] else quiet + 1
        time.sleep(0.2)


def parts(store: Store) -> tuple[int, int, float]:
    """Parts, rows and bytes a row of the ledger."""
    (row,) = store.rows(
        "SELECT count() AS parts, sum(rows) AS n, sum(bytes_on_disk) AS bytes FROM system.parts"
        " WHERE active AND database = currentDatabase() AND table = 'ledger'"
    )
    return row["parts"], row["n"], row["bytes"] / max(row["n"], 1)


def columns(store: Store) -> list[dict[str, object]]:
    """Bytes a row of the columns that take most."""
    return store.rows(
        "SELECT column, sum(column_data_compressed_bytes) / sum(rows) AS bytes FROM system.parts_columns"
        " WHERE active AND database = currentDatabase() AND table = 'ledger' AND part_type = 'Wide'"
        " GROUP BY column ORDER BY bytes DESC LIMIT 12"
    )


Question = Callable[[Store], object]


def questions(only: str) -> dict[str, Question]:
    """What is asked, by name: every measure by one dimension that it has, the page's views, and some more."""
    until = SINCE + timedelta(days=DAYS)
    asked: dict[str, Question] = {}

    def named(title: str, name: str, by: list[str] | None = None) -> None:
        asked[title] = lambda store: run(store, name, SINCE, until, by=by)

    def seen(name: str, view: Callable[..., object], back: timedelta) -> None:
        asked[f"view: {name}"] = lambda store: view(store, views.Window.of(store, until - back, until))

    for name, query in named_queries().items():
        if query.measure:
            allowed = query.allowed or ("tenant",)
            named(name, name, ["tenant"] if "tenant" in allowed else [allowed[0]])
    named("total", "total")
    seen("executive", views.executive, timedelta(days=DAYS))
    seen("oncall", views.oncall, timedelta(hours=1))
    seen("debug", views.debug, timedelta(days=1))
    for name in ("by-component", "fully-loaded", "bills-reconcile", "bills-attribution"):
        named(f"more: {name}", name)
    return {name: question for name, question in asked.items() if re.search(only, name)}


Times = tuple[float, float, float]
"""Median and 95th percentile of the seconds on the clock, and the least seconds of CPU."""


def timed(store: Store, question: Question, repeat: int) -> Times:
    """What a question takes, warm."""
    taken, work = [], []
    for turn in range(repeat + 1):
        began, worked = time.perf_counter(), time.process_time()
        question(store)
        if turn:
            taken.append(time.perf_counter() - began)
            work.append(time.process_time() - worked)
    taken.sort()
    return statistics.median(taken), taken[min(len(taken) - 1, math.ceil(0.95 * len(taken)) - 1)], min(work)


def asked(store: Store, repeat: int, only: str = "") -> dict[str, Times]:
    """Every question that the store can answer → its times."""
    found = {}
    for name, question in questions(only).items():
        try:
            found[name] = timed(store, question, repeat if math.isfinite(limit(name)) else min(repeat, SELDOM))
        except StoreError as error:
            print(f"  {name}: {error}", file=sys.stderr)
    return found


def variant(store: Store, changes: dict[str, str]) -> None:
    """Make the ledger again with other DDL; nothing is in it yet."""
    (made,) = store.rows(
        "SELECT create_table_query AS ddl FROM system.tables WHERE name = 'ledger' AND database = currentDatabase()"
    )
    ddl = made["ddl"]
    for pattern, text in changes.items():
        ddl, count = re.subn(pattern, text, ddl)
        assert count, f"nothing to replace: {pattern}"
    store.execute("DROP TABLE ledger SYNC")
    store.execute(ddl)


def main() -> int:
    """Print the figures; 1 if a promise is not kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", type=float, default=[1, 5], help="million rows of each ledger")
    parser.add_argument("--twenty", action="store_true", help="and 20 million")
    parser.add_argument("--keys", action="store_true", help="compare keys and codecs on the smallest")
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--store", help="directory that keeps the ledgers")
    parser.add_argument("--only", default="", help="only measures whose name matches")
    given = parser.parse_args()
    sizes = sorted({int(each * MILLION) for each in [*given.rows, *([20] if given.twenty else [])]})
    found: dict[int, dict[str, Times]] = {}
    size = 0.0
    with tempfile.TemporaryDirectory() as passing:
        directory = given.store or passing
        for rows in sizes:
            with open_store(f"chdb://{directory}/store?database=rows_{rows}") as store:
                store.migrate()
                took = 0.0 if parts(store)[1] == rows else fill(store, rows)
                # Of a kept one: what a migration goes on with in the background.
                settle(store)
                many, there, size = parts(store)
                assert there == rows, f"{store.url} has {there} rows: remove it"
                how = f"filled in {took:.0f} s" if took else "as it was kept"
                print(f"\n{rows / MILLION:g} M rows, {many} parts, {size:.1f} bytes a row, {how}", flush=True)
                found[rows] = asked(store, given.repeat, given.only)
                if rows == sizes[-1]:
                    print("bytes a row: " + ", ".join(f"{c['column']} {c['bytes']:.2f}" for c in columns(store)))
                if not given.store:
                    store.execute(f"DROP DATABASE {store.database} SYNC")
        report(found)
        if given.keys:
            compare(directory, sizes[0], given.repeat, given.only)
    slow = {name: p95 for name, (_, p95, _) in found[sizes[-1]].items() if p95 > limit(name)}
    for name, p95 in slow.items():
        print(f"too slow: {name} {p95:.2f} s")
    if size > LIMIT_BYTES:
        print(f"too large: {size:.1f} bytes a row")
    return 1 if slow or size > LIMIT_BYTES else 0


def limit(name: str) -> float:
    """Seconds that a question may take."""
    return {"view": VIEW_LIMIT_S, "more": math.inf}.get(name.partition(":")[0], LIMIT_S)


def report(found: dict[int, dict[str, Times]]) -> None:
    """A line for each question: its times by size, its growth, and that drawn out to a billion rows."""
    sizes, cores = sorted(found), len(os.sched_getaffinity(0))
    heads = "".join(f"{f'{rows / MILLION:g} M p50':>11}{'p95':>7}{'CPU':>7}" for rows in sizes)
    print(f"\n{'ms':<34}{heads}{'growth':>9}{'10^9 rows':>11}")
    for name in found[sizes[0]]:
        times = [found[rows].get(name, (math.nan, math.nan, math.nan)) for rows in sizes]
        line = "".join(f"{1e3 * p50:11.0f}{1e3 * p95:7.0f}{1e3 * cpu:7.0f}" for p50, p95, cpu in times)
        if len(sizes) > 1:
            # CPU for another row, from the two largest: what does not grow with rows is left out.
            slope = (times[-1][2] - times[-2][2]) / (sizes[-1] - sizes[-2])
            line += f"{times[-1][2] / times[0][2]:8.1f}x{(times[-1][2] + slope * (10**9 - sizes[-1])) / cores:9.0f} s"
        print(f"{name:<34}{line}")
    print(f"growth and 10^9 rows are of CPU time, the latter over {cores} cores that have nothing else to do")
    print(f"memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB at the most")


def compare(directory: str, rows: int, repeat: int, only: str) -> None:
    """Other keys and codecs beside the shipped ones: bytes a row, and the CPU time of all measures together."""
    heads = f"{'parts':>6}{'bytes/row':>11}{'measures, CPU ms':>18}{'one hour':>10}{'a trace':>9}"
    print(f"\n{f'{rows / MILLION:g} million rows':<28}{heads}")
    for number, (name, changes) in enumerate(KEYS.items()):
        with open_store(f"chdb://{directory}/store?database=keys_{number}") as store:
            store.migrate()
            variant(store, changes)
            fill(store, rows)
            many, _, size = parts(store)
            times = asked(store, repeat, only)
            hour = best(store, "SELECT sum(cost) FROM ledger FINAL WHERE start_time >= '2026-10-20 10:00:00'"
                               " AND start_time < '2026-10-20 11:00:00'", repeat)  # fmt: skip
            trace = best(store, "SELECT sum(cost) FROM ledger FINAL WHERE trace_id ="
                                " reinterpretAsFixedString(sipHash128(toUInt64(1000)))", repeat)  # fmt: skip
            every = 1e3 * sum(cpu for _, _, cpu in times.values())
            print(f"{name:<28}{many:6}{size:11.1f}{every:18.0f}{1e3 * hour:10.1f}{1e3 * trace:9.1f}", flush=True)
            store.execute(f"DROP DATABASE {store.database} SYNC")


def best(store: Store, sql: str, repeat: int) -> float:
    """Best seconds of a statement."""
    taken = []
    for _ in range(repeat):
        began = time.perf_counter()
        store.rows(sql)
        taken.append(time.perf_counter() - began)
    return min(taken)


if __name__ == "__main__":
    sys.exit(main())
