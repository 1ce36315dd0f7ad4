"""Migrations run once, in order, and notice rewritten history; the tables are what the code builds rows for."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tollspan.processor.errors import StoreError
from tollspan.processor.revisions import arrived, repriced, rolled_up
from tollspan.processor.schema import SCHEMAS, Migration, migrate, migrations
from tollspan.processor.schema.migrate import together
from tollspan.processor.schema.tables import INSERTED_AS
from tollspan.processor.store import Store, open_store

from .old_inserts import as_then

ARROW: dict[str, str] = {
    "DateTime64(9, 'UTC')": "timestamp[ns, tz=UTC]",
    "DateTime64(3, 'UTC')": "timestamp[ms, tz=UTC]",
    "DateTime('UTC')": "timestamp[s, tz=UTC]",
    "Date": "date32[day]",
    "Int32": "int32",
    "FixedString(16)": "fixed_size_binary[16]",
    "FixedString(8)": "fixed_size_binary[8]",
    "String": "string",
    "LowCardinality(String)": "string",
    "UInt8": "uint8",
    "UInt32": "uint32",
    "UInt64": "uint64",
    "Float64": "double",
    "Bool": "bool",
    "Decimal(38, 9)": "decimal128(38, 9)",
    "Decimal(38, 12)": "decimal128(38, 12)",
    "Decimal(38, 18)": "decimal128(38, 18)",
    "Map(LowCardinality(String), String)": "map<string, string>",
}


def arrow_name(clickhouse: str) -> str:
    if clickhouse.startswith("SimpleAggregateFunction("):
        return arrow_name(clickhouse.split(", ", 1)[1][:-1])
    if clickhouse.startswith("Nullable("):
        return arrow_name(clickhouse[9:-1])
    if clickhouse.startswith("Array("):
        return f"list<item: {arrow_name(clickhouse[6:-1])}>"
    return ARROW[clickhouse]


def nullable(clickhouse: str) -> bool:
    return "Nullable(" in clickhouse and not clickhouse.startswith("Array(")


@pytest.mark.parametrize("table", sorted(SCHEMAS))
def test_the_arrow_schema_is_the_table(store: Store, table: str) -> None:
    columns = [row for row in store.rows(f"DESCRIBE TABLE {table}") if row["default_type"] in ("", "EPHEMERAL")]
    sent = INSERTED_AS.get(table, {})
    assert [row["name"] for row in columns] == [sent.get(name, name) for name in SCHEMAS[table].names]
    assert {row["name"] for row in columns if row["default_type"]} == set(sent.values())
    for row, field in zip(columns, SCHEMAS[table], strict=True):
        assert str(field.type).replace(" ('entries')", "") == arrow_name(row["type"]), row["name"]
        assert field.nullable == nullable(row["type"]), row["name"]


@pytest.mark.parametrize("table", sorted(SCHEMAS))
def test_every_table_remembers_the_tokens_of_inserts(store: Store, table: str) -> None:
    (row,) = store.rows(
        "SELECT create_table_query AS q FROM system.tables WHERE name = {t:String} AND database = currentDatabase()",
        {"t": table},
    )
    assert "non_replicated_deduplication_window = 1000" in row["q"]


@pytest.mark.parametrize("table", ["ledger", "traces", "spans", "batches", "late_rows"])
def test_every_insert_is_on_disk_when_it_is_answered(store: Store, table: str) -> None:
    (row,) = store.rows(
        "SELECT create_table_query AS q FROM system.tables WHERE name = {t:String} AND database = currentDatabase()",
        {"t": table},
    )
    assert "fsync_after_insert = 1, fsync_part_directory = 1" in row["q"]


def test_the_ledger_key_and_partition_come_from_the_span_alone(store: Store) -> None:
    (row,) = store.rows(
        "SELECT sorting_key, partition_key, engine_full FROM system.tables WHERE name = 'ledger'"
        " AND database = currentDatabase()"
    )
    assert row["sorting_key"] == "start_time, trace_id, span_id"
    assert row["partition_key"] == "toYYYYMM(start_time)"
    assert row["engine_full"].startswith("ReplacingMergeTree(revision)")


def test_migrating_again_changes_nothing(store: Store) -> None:
    book = "SELECT * FROM schema_migrations ORDER BY version"
    before = store.rows(book)
    assert store.migrate() == []
    assert store.rows(book) == before
    assert [row["version"] for row in before] == [m.version for m in migrations()]


def test_columns_that_are_added_together_are_the_same_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(name: str) -> list[dict[str, Any]]:
        with open_store(f"chdb://{tmp_path}/{name}") as store:
            migrate(store)
            return store.rows(
                "SELECT name, create_table_query FROM system.tables WHERE database = currentDatabase() ORDER BY name"
            )

    statements = [statement for each in migrations() for statement in each.statements]
    assert len(together(statements)) < len(statements) - 10
    quickly = made("together")
    monkeypatch.setattr(import_module("tollspan.processor.schema.migrate"), "together", list)
    assert made("one by one") == quickly


def test_only_neighbours_of_one_table_are_put_together() -> None:
    apart = ["ALTER TABLE a ADD COLUMN x Int8", "-- why\nALTER TABLE a ADD COLUMN y Int8 AFTER x", "SELECT 1"]
    apart += [
        "ALTER TABLE a ADD COLUMN z Int8",
        "ALTER TABLE b ADD COLUMN x Int8",
        "ALTER TABLE b MODIFY COLUMN x Int16",
    ]
    assert together(apart) == [
        "ALTER TABLE a ADD COLUMN x Int8,\nADD COLUMN y Int8 AFTER x",
        *apart[2:],
    ]


def test_migrations_are_applied_in_order_and_only_once(store_url: str) -> None:
    first = Migration(1, "first", "CREATE TABLE a (x UInt8) ENGINE = MergeTree ORDER BY x;\n")
    second = Migration(2, "second", "ALTER TABLE a ADD COLUMN y UInt8;\nALTER TABLE a ADD COLUMN z UInt8;\n")
    with open_store(store_url) as store:
        assert migrate(store, [first]) == ["0001_first"]
        # Not idempotent by itself: a second application would fail.
        assert migrate(store, [first, second]) == ["0002_second"]
        assert migrate(store, [first, second]) == []
        assert [row["name"] for row in store.rows("DESCRIBE TABLE a")] == ["x", "y", "z"]


def test_a_migration_that_broke_off_is_applied_again(store_url: str) -> None:
    broken = Migration(
        1, "m", "CREATE TABLE IF NOT EXISTS a (x UInt8) ENGINE = MergeTree ORDER BY x;\nALTER TABLE no ADD;"
    )
    whole = Migration(1, "m", "CREATE TABLE IF NOT EXISTS a (x UInt8) ENGINE = MergeTree ORDER BY x;\n")
    with open_store(store_url) as store:
        with pytest.raises(StoreError):
            migrate(store, [broken])
        assert migrate(store, [whole]) == ["0001_m"]


def test_an_edited_migration_is_an_error(store: Store) -> None:
    shipped = migrations()
    edited = [Migration(1, "ledger", shipped[0].sql + "-- changed\n"), *shipped[1:]]
    with pytest.raises(StoreError, match="another text of migration 0001_ledger"):
        migrate(store, edited)


def test_a_store_of_a_newer_version_is_refused(store: Store) -> None:
    with pytest.raises(StoreError, match="newer Tollspan"):
        migrate(store, migrations()[:-1])


def test_a_store_that_an_earlier_text_made_the_same_is_taken(store: Store) -> None:
    """Such as stores migrated while 0016 ended inserts into all databases."""
    earlier = "560a406b4bc386f3b1e71a573bbf8cee5abb3439c2c483fb7d510e5e9463f78d"
    store.execute("ALTER TABLE schema_migrations DELETE WHERE version = 16 SETTINGS mutations_sync = 2")
    store.execute(f"INSERT INTO schema_migrations (version, name, checksum) VALUES (16, 'residual_costs', '{earlier}')")
    assert migrate(store) == []
    store.execute("ALTER TABLE schema_migrations DELETE WHERE version = 15 SETTINGS mutations_sync = 2")
    store.execute(f"INSERT INTO schema_migrations (version, name, checksum) VALUES (15, 'components', '{earlier}')")
    with pytest.raises(StoreError, match="another text of migration 0015_components"):
        migrate(store)


def test_line_ends_do_not_change_a_checksum() -> None:
    assert Migration(1, "m", "a;\nb;\n").checksum == Migration(1, "m", "a;\r\nb;\r\n").checksum
    assert Migration(1, "m", "a;\n").checksum != Migration(1, "m", "b;\n").checksum


def test_files_are_found_by_number_and_two_of_one_number_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "0002_b.sql").write_text("SELECT 2;")
    (tmp_path / "0001_a.sql").write_text("SELECT 1;")
    (tmp_path / "notes.txt").write_text("")
    assert [str(m) for m in migrations(tmp_path)] == ["0001_a", "0002_b"]
    (tmp_path / "0002_c.sql").write_text("SELECT 3;")
    with pytest.raises(ValueError, match="same number"):
        migrations(tmp_path)


def test_a_semicolon_inside_a_line_does_not_end_a_statement() -> None:
    assert Migration(1, "m", "SELECT 'a;b';\nSELECT 2;\n").statements == ["SELECT 'a;b'", "SELECT 2"]


def test_people_read_ids_in_hex_and_tokens_as_numbers(store: Store, ledger_rows: Any) -> None:
    rows = ledger_rows([{"charges": [("tokens.output", "model", "1", "priced")], "trace_id": b"\xab" * 16}])
    store.insert("ledger", rows, "t")
    (row,) = store.rows("SELECT trace_id_hex, span_id_hex, parent_id_hex, input_tokens, output_tokens FROM ledger")
    assert row["trace_id_hex"] == "ab" * 16
    assert row["parent_id_hex"] == ""
    assert (row["input_tokens"], row["output_tokens"]) == (None, 1), "tokens that nobody gave are unknown, not 0"


def test_summaries_of_one_trace_merge_and_a_resend_counts_nothing_twice(store: Store) -> None:
    early = {
        "trace_id": b"a" * 16,
        "day": date(2026, 11, 1),
        "start_time": datetime(2026, 11, 1, 23, tzinfo=UTC),
        "end_time": datetime(2026, 11, 2, 1, tzinfo=UTC),
        "root_name": "",
        "root_service": "",
        "tenant": "",
        "error": 0,
        "spans": 3,
        "telemetry_bytes": 300,
        "telemetry_cost": None,
        "kept": 0,
        "kept_spans": 0,
        "keep_reason": "",
        "threshold": "",
        "keep_rule": "",
        "content": "",
        "stored_bytes": 0,
    }
    late = early | {
        "day": date(2026, 11, 2),
        "start_time": datetime(2026, 11, 2, tzinfo=UTC),
        "root_name": "ask",
        "spans": 5,
        "error": 1,
        "telemetry_cost": Decimal("0.5"),
    }
    for number, row in enumerate([late, early, late]):
        store.insert("traces", pa.Table.from_pylist([row], schema=SCHEMAS["traces"]), str(number))
    (merged,) = store.rows("SELECT * FROM traces FINAL")
    assert (merged["spans"], merged["error"], merged["root_name"]) == (5, 1, "ask")
    assert (merged["day"], merged["start_time"]) == (early["day"], early["start_time"])
    assert merged["telemetry_cost"] == Decimal("0.5")


def test_a_store_of_the_first_version_migrates_with_its_rows(store_url: str, ledger_rows: Any) -> None:
    old = [m for m in migrations() if m.version <= 4]
    rows = ledger_rows(
        [
            {"charges": [("tokens.output", "model", "1", "priced"), ("requests", "model", None, "unpriced")]},
            {"charges": [], "cost_status": "rollup"},
        ]
    )
    revision = rows.column_names.index("revision")
    rows = rows.set_column(revision, "revision", pa.array([0, 1], pa.uint32()))
    with open_store(store_url) as store:
        migrate(store, old)
        known = [r["name"] for r in store.rows("DESCRIBE TABLE ledger") if r["default_type"] != "ALIAS"]
        with as_then():
            store.insert("ledger", rows.select(known), "old")
        before = store.rows("SELECT * FROM ledger FINAL ORDER BY span_id")
        assert migrate(store) == [str(m) for m in migrations() if m.version > 4]
        after = store.rows("SELECT *, charges.cost FROM ledger FINAL ORDER BY span_id")
        assert [{name: row[name] for name in before[0]} for row in after] == before
        # What nobody knew then is unknown and not 0, in lists as long as the charges.
        assert [row["charges.negotiated"] for row in after] == [[None, None], []]
        assert store.rows("SELECT list_cost, rolled_up, repriced, arrived_at FROM ledger FINAL ORDER BY span_id") == [
            {"list_cost": None, "rolled_up": False, "repriced": 0, "arrived_at": None},
            {"list_cost": None, "rolled_up": True, "repriced": 0, "arrived_at": None},
        ]
        # Rows of today replace them, and merging parts of both kinds goes well.
        new = rows.set_column(revision, "revision", pa.array([arrived(), rolled_up(arrived())], pa.uint64()))
        store.insert("ledger", new, "new")
        store.execute("OPTIMIZE TABLE ledger FINAL")
        assert store.rows("SELECT count() AS n, min(revision) > 2 AS replaced FROM ledger") == [{"n": 2, "replaced": 1}]


def test_a_revision_reads_as_its_parts(store: Store, ledger_rows: Any) -> None:
    at = datetime(2026, 11, 21, 9, 0, 0, 123000, tzinfo=UTC)
    first = arrived(int(at.timestamp() * 1000))
    last = int(repriced(np.array([rolled_up(first)], np.uint64), 65535)[0])
    store.insert("ledger", ledger_rows([{"revision": first}, {"revision": last}]), "t")
    assert store.rows("SELECT rolled_up, repriced, arrived_at FROM ledger FINAL ORDER BY span_id") == [
        {"rolled_up": False, "repriced": 0, "arrived_at": at},
        {"rolled_up": True, "repriced": 65535, "arrived_at": at},
    ]


@pytest.mark.parametrize(
    ("negotiated", "committed", "contracted", "listed"),
    [
        (["0.5", "0"], ["0", "2"], "5", "5.5"),
        ([None, "0"], ["0", "2"], "5", None),
        (["0", "0"], [None, "2"], None, None),
    ],
)
def test_list_and_contracted_cost_are_what_was_taken_off_on_top(
    store: Store,
    ledger_rows: Any,
    negotiated: list[str | None],
    committed: list[str | None],
    contracted: Any,
    listed: Any,
) -> None:
    row = {
        "charges": [("tokens.output", "model", "1", "priced"), ("requests", "model", "2", "priced")],
        "charges.negotiated": [None if x is None else Decimal(x) for x in negotiated],
        "charges.committed": [None if x is None else Decimal(x) for x in committed],
    }
    store.insert("ledger", ledger_rows([row]), "t")
    (found,) = store.rows("SELECT contracted_cost, list_cost FROM ledger FINAL")
    assert found["contracted_cost"] == (None if contracted is None else Decimal(contracted))
    assert found["list_cost"] == (None if listed is None else Decimal(listed))


def test_traces_cost_by_every_part_of_the_bill(store: Store, ledger_rows: Any) -> None:
    parts = ["model", "compute", "network", "storage", "telemetry", "overhead"]
    store.insert(
        "ledger", ledger_rows([{"charges": [("requests", p, str(n), "priced") for n, p in enumerate(parts)]}]), "t"
    )
    (row,) = store.rows("SELECT * FROM trace_costs")
    assert [row[f"{part}_cost"] for part in parts] == [Decimal(n) for n in range(6)]
    assert row["total_cost"] == 15


PARTS = ("model", "compute", "network", "storage", "telemetry", "overhead")
PART_COLUMNS = (
    ", ".join(f"{part}_cost" for part in PARTS)
    + ", priced_parts, open_parts, machines.meter, machines.quantity, machines.cost"
)


def parts_of(row: dict[str, Any]) -> dict[str, Any]:
    """What the columns of a row's parts have to say, from its charges."""
    charges = list(zip(*(row[f"charges.{name}"] for name in ("component", "meter", "quantity", "cost")), strict=True))
    costed = row["cost"] is not None

    def bits(price: bool) -> int:
        return sum(
            1 << place
            for place, part in enumerate(PARTS)
            if any(each == part and (usd is not None) is price for each, _, _, usd in charges)
        )

    machines = [charge for charge in charges if charge[0] == "compute"]
    return {
        **{
            f"{part}_cost": sum(
                (usd for each, _, _, usd in charges if each == part and usd is not None and costed), Decimal(0)
            )
            for part in PARTS
        },
        "priced_parts": bits(True),
        "open_parts": bits(False),
        **{
            f"machines.{name}": [each[place] for each in machines]
            for place, name in enumerate(("meter", "quantity", "cost"), 1)
        },
    }


def test_the_parts_of_a_cost_are_what_its_charges_say_also_in_rows_from_before(
    store_url: str, ledger_rows: Any
) -> None:
    rows = ledger_rows(
        [
            {"charges": [(f"{part}.x", part, str(place + 1), "priced") for place, part in enumerate(PARTS)]},
            {
                "charges": [
                    ("tokens.output", "model", "0.5", "priced"),
                    ("requests", "model", None, "unpriced"),
                    ("gpu.seconds", "compute", "0.000000000001", "priced"),
                    ("cpu.seconds", "compute", None, "unpriced"),
                    ("network.egress.bytes", "network", None, "ambiguous"),
                ],
                "cost_status": "partial",
            },
            {"charges": [("gpu.seconds", "compute", "0", "free"), ("storage.read.bytes", "storage", "0", "included")]},
            {"charges": [("tokens.output", "model", None, "unpriced")]},
            # No total has a part of it, whatever its charges say.
            {
                "charges": [("tokens.output", "model", "1", "priced"), ("gpu.seconds", "compute", "2", "priced")],
                "cost": None,
            },
            {"charges": [], "cost_status": "rollup"},
        ]
    )
    expected = [parts_of(row) for row in rows.to_pylist()]
    with open_store(store_url) as store:
        migrate(store, [each for each in migrations() if each.version < 15])
        with as_then():
            store.insert("ledger", rows, "before")
        migrate(store)
        asked = f"SELECT {PART_COLUMNS} FROM ledger FINAL ORDER BY span_id"
        assert store.rows(asked) == expected, "computed when they are read"
        store.execute("OPTIMIZE TABLE ledger FINAL")
        assert store.rows(asked) == expected, "computed when parts are merged"
        store.execute("TRUNCATE TABLE ledger")
        store.insert("ledger", rows, "now")
        assert store.rows(asked) == expected, "computed when they are written"
        assert not set(store.rows("SELECT * FROM ledger LIMIT 1")[0]) & set(expected[0]), "no part of what is written"


def test_numbers_of_the_shipped_migrations_have_no_gap() -> None:
    assert [m.version for m in migrations()] == list(range(1, len(migrations()) + 1))
