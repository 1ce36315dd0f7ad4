"""Bytes that a ledger row takes on disk.

    python tests/benchmarks/ledger_bytes.py [AZURE_LLM_CODE_2023.csv]

The rows are those of a replayed usage trace: one inference a row, two charges (uncached input, output), random ids.
Without a file, a synthetic trace of the same shape and length stands in. Beside the shipped table, in the same run: the
same columns with ClickHouse's default codec (LZ4). Exits 1 when the shipped table needs more than 60 bytes a row.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import random
import re
import sys
import tempfile
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa

from tollspan.processor.accounts import batch_number
from tollspan.processor.revisions import arrived
from tollspan.processor.schema import LEDGER
from tollspan.processor.schema.tables import INSERTED_AS
from tollspan.processor.store import Store, open_store

LIMIT = 60.0
ROWS = 8819
EPOCH = datetime(1970, 1, 1)

INPUT_PICO, OUTPUT_PICO = 250_000, 2_000_000
"""gpt-5-mini, 10⁻¹² USD a token: any two rates give the same size, as codecs divide them out."""


def read(path: Path) -> list[tuple[int, int, int]]:
    """Start (ns since the epoch), input tokens and output tokens of each row."""
    rows = []
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            whole, _, fraction = row["TIMESTAMP"].partition(".")
            seconds = int((datetime.fromisoformat(whole) - EPOCH).total_seconds())
            start = seconds * 10**9 + int(fraction[:9].ljust(9, "0") or 0)
            rows.append((start, int(row["ContextTokens"]), int(row["GeneratedTokens"])))
    return rows


def synthesize() -> list[tuple[int, int, int]]:
    """A trace like a coding assistant's: bursts, long prompts, short answers; the clock ticks in 100 ns."""
    dice = random.Random(2023)
    clock, rows = 1_700_158_623 * 10**9, []
    for _ in range(ROWS):
        clock += int(dice.expovariate(1) * 390_000_000) // 100 * 100
        rows.append((clock, int(dice.triangular(3, 7437, 1500)), 1 + int(dice.expovariate(1 / 27))))
    return rows


def table(rows: list[tuple[int, int, int]], durations: bool) -> pa.Table:
    """The rows as the pipeline writes them; without ``durations`` a span ends when it starts, as the trace has none."""
    dice = random.Random(7)
    count = len(rows)
    money = pa.decimal128(38, 12)
    cost = [(Decimal(i * INPUT_PICO).scaleb(-12), Decimal(o * OUTPUT_PICO).scaleb(-12)) for _, i, o in rows]
    arrivals = revisions(count, dice)
    given = {
        "start_time": pa.array([start for start, _, _ in rows], pa.int64()).cast(pa.timestamp("ns", "UTC")),
        "trace_id": pa.array([hashlib.sha256(b"trace%d" % n).digest()[:16] for n in range(count)], pa.binary(16)),
        "span_id": pa.array([hashlib.sha256(b"span%d" % n).digest()[:8] for n in range(count)], pa.binary(8)),
        "parent_span_id": pa.array([bytes(8)] * count, pa.binary(8)),
        "duration_ns": pa.array(
            [int(dice.lognormvariate(20, 1)) if durations else 0 for _ in range(count)], pa.uint64()
        ),
        "cost": pa.array([a + b for a, b in cost], money),
        "charges.quantity": pa.array([[Decimal(i), Decimal(o)] for _, i, o in rows], pa.list_(pa.decimal128(38, 9))),
        "charges.unit_price": pa.array([[Decimal("0.25"), Decimal(2)]] * count, pa.list_(pa.decimal128(38, 18))),
        "charges.cost": pa.array([list(pair) for pair in cost], pa.list_(money)),
        "charges.negotiated": pa.array([[Decimal(0)] * 2] * count, pa.list_(money)),
        "charges.committed": pa.array([[Decimal(0)] * 2] * count, pa.list_(money)),
        "revision": arrivals,
        "revised": pa.array([False] * count),
        "batch": pa.array([batch_number(str(each)) for each in arrivals.to_pylist()], pa.uint64()),
    }
    texts = {
        "service": "replay",
        "provider": "openai",
        "model": "gpt-5-mini",
        "request_model": "gpt-5-mini",
        "operation": "chat",
        "kind": "inference",
        "span_status": "unset",
        "convention": "gen_ai",
        "cost_status": "priced",
        "book_version": "0123456789abcdef",
    }
    lists = {
        "charges.meter": ["tokens.input.uncached", "tokens.output"],
        "charges.component": ["model", "model"],
        "charges.unit": ["token", "token"],
        "charges.per": ["1000000 token", "1000000 token"],
        "charges.price_id": ["openai/gpt-5-mini/input", "openai/gpt-5-mini/output"],
        "charges.matched_by": ["model", "model"],
        "charges.status": ["priced", "priced"],
    }
    columns = []
    for field in LEDGER:
        if field.name in given:
            columns.append(given[field.name])
        elif field.name in lists:
            columns.append(pa.array([lists[field.name]] * count))
        elif field.nullable:
            columns.append(pa.nulls(count, field.type))
        else:
            columns.append(pa.array([texts.get(field.name, "")] * count))
    return pa.Table.from_arrays(columns, schema=LEDGER)


def revisions(count: int, dice: random.Random) -> pa.Array:
    """Of rows that arrived in batches of some hundreds, whose start times overlap."""
    made, at = [], 1_780_000_000_000
    while len(made) < count:
        at += dice.randrange(100, 5000)
        made += [arrived(at)] * dice.randrange(1, 600)
    for n in range(0, count - 40, 7):  # a span that took long comes with a later batch
        made[n] = made[n + 40]
    return pa.array(made[:count], pa.uint64())


def measure(store: Store, name: str, rows: pa.Table) -> float:
    """Bytes a row on disk after everything is merged into one part."""
    # The store does that for the ledger itself.
    given = {} if name == "ledger" else INSERTED_AS["ledger"]
    store.insert(name, rows.rename_columns([given.get(each, each) for each in rows.column_names]), name)
    store.execute(f"OPTIMIZE TABLE {name} FINAL")
    (part,) = store.rows(
        "SELECT sum(rows) AS n, sum(bytes_on_disk) AS bytes FROM system.parts"
        " WHERE active AND database = currentDatabase() AND table = {name:String}",
        {"name": name},
    )
    assert part["n"] == rows.num_rows, "the table is to hold each row once"
    return part["bytes"] / part["n"]


def columns(store: Store, name: str) -> list[dict[str, object]]:
    """Compressed bytes a row of each column, largest first; needs a part of the wide kind."""
    return store.rows(
        "SELECT column, sum(column_bytes_on_disk) / any(rows) AS bytes FROM system.parts_columns"
        " WHERE active AND database = currentDatabase() AND table = {name:String} GROUP BY column"
        " ORDER BY bytes DESC LIMIT 16",
        {"name": name},
    )


def main() -> int:
    """Print the figures; 1 if the promise is not kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", nargs="?", type=Path, help="TIMESTAMP,ContextTokens,GeneratedTokens")
    path = parser.parse_args().csv
    trace = read(path) if path else synthesize()
    with tempfile.TemporaryDirectory() as directory, open_store(f"chdb://{directory}/store") as store:
        store.migrate()
        (made,) = store.rows("SELECT create_table_query AS ddl FROM system.tables WHERE name = 'ledger'")
        ddl = re.sub(r"^CREATE TABLE \S+", "CREATE TABLE NAME", made["ddl"])
        store.execute(ddl.replace("NAME", "wide", 1).replace("SETTINGS", "SETTINGS min_bytes_for_wide_part = 0,"))
        store.execute(re.sub(r" CODEC\((?:[^()]|\([^()]*\))*\)", "", ddl).replace("NAME", "plain", 1))
        store.execute(ddl.replace("NAME", "timed", 1))
        rows = table(trace, durations=False)
        size = measure(store, "ledger", rows)
        default = measure(store, "plain", rows)
        timed = measure(store, "timed", table(trace, durations=True))
        in_columns = measure(store, "wide", rows)
        print(f"{len(trace)} rows of {path.name if path else 'a synthetic trace'}, 24 of their bytes random ids")
        print(f"ledger                     {size:6.2f} bytes a row (limit {LIMIT:.0f})")
        print(f"  with random durations    {timed:6.2f}")
        print(f"  with the default codec   {default:6.2f}, {default / size:.2f} times as much")
        print(f"  as a part in columns     {in_columns:6.2f}, of which")
        for column in columns(store, "wide"):
            print(f"    {column['column']:<22} {column['bytes']:6.2f}")
    return 0 if max(size, timed) <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
