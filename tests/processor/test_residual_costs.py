"""What is stored of a charge's cost is by how much it differs from quantity times unit price; what is read is the cost
to the last digit, through the migration, whatever breaks off, and beside processes of an older version."""

from __future__ import annotations

import random
import sys
import threading
import time
from decimal import Context, Decimal, localcontext
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from tollspan.pricing import METERS, money
from tollspan.processor.errors import StoreError, StoreUnavailable, StoreUnfit
from tollspan.processor.schema import LEDGER, migrate, migrations
from tollspan.processor.store import Store, clickhouse, open_store

from .old_inserts import as_then

BEFORE = [each for each in migrations() if each.version < 16]
OURS = [each for each in migrations() if each.version in (16, 17)]
MOST = Decimal("99999999999999999999999999.999999999999")
ASKED = (
    "SELECT span_id, charges.cost, charges.quantity, charges.unit_price, machines.cost, compute_cost, priced_parts,"
    " open_parts FROM ledger FINAL ORDER BY span_id, trace_id"
)


def odd_rows(many: int) -> pa.Table:
    """Charges of all kinds, most of which no price book could make."""
    chance = random.Random(16)

    def digits(most: int, places: int) -> Decimal:
        return Decimal(chance.randrange(-most, most)).scaleb(-places)

    def charge() -> dict[str, Any]:
        return {
            "meter": "tokens.output",
            "component": chance.choice(["model", "compute", "network"]),
            "quantity": chance.choice(
                [Decimal(0), Decimal(8000), Decimal("1e-9"), Decimal(10) ** 29 - 1, digits(10**12, 9)]
            ),
            "unit": "token",
            "unit_price": chance.choice(
                [None, Decimal(0), Decimal("2.5"), Decimal("1e-18"), Decimal(10) ** 20 - 1, digits(10**20, 18)]
            ),
            "per": chance.choice(["", "1000000 token", "1 GiB-month", "8 hour", "0 token", "€ per x"]),
            # Those of a component have to add up within 38 digits.
            "cost": chance.choice([None, Decimal(0), Decimal("0.02"), digits(10**30, 12)]),
            "negotiated": None,
            "committed": Decimal(0),
            "price_id": "",
            "matched_by": "",
            "status": "priced",
        }

    with localcontext(Context(prec=60)):
        lists = [[charge() for _ in range(chance.randrange(4))] for _ in range(many)]
        lists += [
            [charge() | {"cost": cost, "unit_price": price, "quantity": digits(10**38, 9)}]
            for cost in (MOST, -MOST, Decimal("1e-12"), Decimal("-1e-12"), None)
            for price in (Decimal(10) ** 20 - 1, 1 - Decimal(10) ** 20, None)
        ]
        plain = {field.name: "" for field in LEDGER if field.type == pa.string()}
        rows = [
            plain
            | {
                "start_time": 0,
                "trace_id": bytes(16),
                "span_id": number.to_bytes(8, "big"),
                "parent_span_id": bytes(8),
                "duration_ns": 0,
                "cost": Decimal(1),
                "revision": 1,
                "revised": False,
                "batch": 0,
                **{f"charges.{name}": [each[name] for each in charges] for name in charge()},
            }
            for number, charges in enumerate(lists, 1)
        ]
        return pa.Table.from_pylist(rows, schema=LEDGER)


@pytest.fixture(scope="module")
def odd() -> pa.Table:
    return odd_rows(1000)


def test_every_cost_stays_what_it_was_to_the_last_digit(
    store_url: str, odd: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(store_url) as store:
        migrate(store, BEFORE)
        store.execute("ALTER TABLE ledger MODIFY SETTING min_bytes_for_wide_part = 0")  # as in large parts
        with as_then():
            store.insert("ledger", odd, "then")
        before = store.rows(ASKED)
        assert [row["charges.cost"] for row in before] == odd["charges.cost"].to_pylist()
        assert migrate(store) == [str(each) for each in migrations() if each.version > 15]
        assert store.rows(ASKED) == before
        columns = store.rows("SELECT DISTINCT column FROM system.parts_columns WHERE table = 'ledger' AND active"
                             " AND database = currentDatabase() AND column LIKE 'charges.%'")  # fmt: skip
        assert {"column": "charges.residual"} in columns
        assert {"column": "charges.cost"} not in columns, "its room is free"
        store.execute("OPTIMIZE TABLE ledger FINAL")
        assert store.rows(ASKED) == before, "when parts are merged"
        store.execute("TRUNCATE TABLE ledger")
        store.insert("ledger", odd, "now")
        assert store.rows(ASKED) == before, "when they are written"
        store.execute("CREATE TABLE copied AS ledger")
        store.execute("INSERT INTO copied SELECT * FROM ledger")
        assert store.rows(ASKED.replace("ledger", "copied")) == before
        monkeypatch.setattr(clickhouse, "_nested", lambda table: table)
        store.execute("TRUNCATE TABLE ledger")
        store.insert("ledger", odd, "flat")
        assert store.rows(ASKED) == before, "when every list is sent by itself"


class Killed(BaseException):
    """Nothing catches it, as nothing catches a kill."""


BREAKS = sum(len(each.statements) + 1 for each in OURS)
"""Statements of the migrations, and the word that each is done."""


@pytest.mark.parametrize("last", range(BREAKS))
def test_a_migration_that_breaks_off_anywhere_is_completed(store_url: str, odd: pa.Table, last: int) -> None:
    rows = odd.slice(0, 100)
    later = pa.array([bytes([1]) * 16] * len(rows), rows.schema.field("trace_id").type)
    more = rows.set_column(rows.column_names.index("trace_id"), rows.schema.field("trace_id"), later)
    with open_store(store_url) as store:
        migrate(store, BEFORE)
        with as_then():
            store.insert("ledger", rows, "then")
        before = store.rows(ASKED)
        with pytest.MonkeyPatch.context() as patch:
            done, execute = 0, store.execute

            def until_killed(sql: str, parameters: Any = None) -> None:
                nonlocal done
                if sql.startswith("INSERT INTO schema_migrations") or "ledger" in sql:
                    if done == last:
                        raise Killed
                    done += 1
                execute(sql, parameters)

            patch.setattr(store, "execute", until_killed)
            with pytest.raises(Killed):
                migrate(store)
        assert store.rows(ASKED) == before
        # Who is of the old version writes on, or is told to wait.
        try:
            with as_then():
                store.insert("ledger", more, "between")
            before = store.rows(ASKED)
            assert [row["charges.cost"] for row in before][::2] == rows["charges.cost"].to_pylist()
        except StoreUnfit:
            assert last >= BREAKS - 2, "only when costs are computed"
        migrate(store)
        assert store.rows(ASKED) == before
        store.execute("OPTIMIZE TABLE ledger FINAL")
        assert store.rows(ASKED) == before


def test_an_insert_of_an_older_version_is_refused_until_it_is_upgraded_and_loses_nothing(
    store: Store, ledger_rows: Any
) -> None:
    rows = ledger_rows([{"charges": [("tokens.output", "model", "0.25", "priced")]}])
    with as_then(), pytest.raises(StoreUnfit, match=r"charges\.cost"):
        store.insert("ledger", rows, "t")
    store.insert("ledger", rows, "t")
    assert store.rows("SELECT charges.cost FROM ledger FINAL") == [{"charges.cost": [Decimal("0.25")]}]


def test_charges_without_a_cost_of_any_kind_are_refused(store: Store) -> None:
    with pytest.raises(StoreError, match="equal size"):
        store.execute("INSERT INTO ledger (`charges.meter`, `charges.quantity`) VALUES (['requests'], [1])")


def test_an_insert_that_began_before_is_ended_and_comes_again(store_url: str, ledger_rows: Any) -> None:
    """Its rows would have neither column."""
    rows = ledger_rows([{"charges": [("tokens.output", "model", "0.25", "priced")]}] * 2)
    with open_store(store_url) as store, open_store(store_url) as other:
        migrate(store, BEFORE)
        with as_then():
            store.insert("ledger", rows.slice(0, 1), "first")
        before = store.rows(ASKED)
        ended: list[Exception] = []

        def slow() -> None:
            try:
                other.execute(
                    "INSERT INTO ledger SELECT ledger.* REPLACE (toFixedString(toString(number), 8) AS span_id) FROM"
                    " ledger, (SELECT number FROM numbers(200) WHERE NOT sleepEachRow(0.1)) AS slow"
                    " SETTINGS max_block_size = 1"
                )
            except Exception as error:
                ended.append(error)

        thread = threading.Thread(target=slow, daemon=True)
        thread.start()
        inserts = "SELECT count() AS n FROM system.processes WHERE query_kind = 'Insert'"
        while thread.is_alive() and not store.rows(inserts)[0]["n"]:
            time.sleep(0.02)
        migrate(store)
        thread.join()
        assert [type(each) for each in ended] == [StoreUnavailable], f"not to be tried again: {ended}"
        assert store.rows(ASKED) == before


def test_an_insert_into_a_ledger_of_another_database_is_left_alone(store_url: str, ledger_rows: Any) -> None:
    rows = ledger_rows([{"charges": [("tokens.output", "model", "0.25", "priced")]}])
    with open_store(store_url) as store, open_store(store_url + "_of_others") as other:
        migrate(store, BEFORE)
        with as_then():
            store.insert("ledger", rows, "first")
        other.execute("CREATE TABLE general_ledger (n UInt8) ENGINE = MergeTree ORDER BY n")
        slow = threading.Thread(
            target=other.execute,
            args=("INSERT INTO general_ledger SELECT number FROM numbers(20) WHERE NOT sleepEachRow(0.1)",),
        )
        slow.start()
        inserts = "SELECT count() AS n FROM system.processes WHERE query_kind = 'Insert'"
        while slow.is_alive() and not store.rows(inserts)[0]["n"]:
            time.sleep(0.02)
        for statement in OURS[0].statements[:3]:
            store.execute(statement)
        assert slow.is_alive(), "the insert was to be under way"
        slow.join()
        assert other.rows("SELECT count() AS n FROM general_ledger") == [{"n": 20}]


def test_rows_that_are_being_rewritten_are_waited_for_and_not_rewritten_twice(
    store_url: str, odd: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = threading.Event()

    def sleep(seconds: float) -> None:
        waits.set()
        time.sleep(seconds)

    monkeypatch.setattr(sys.modules[migrate.__module__], "time", SimpleNamespace(sleep=sleep))
    with open_store(store_url) as store, open_store(store_url) as other:
        migrate(store, BEFORE)
        with as_then():
            store.insert("ledger", odd, "then")
        before = store.rows(ASKED)
        for statement in OURS[0].statements[:3]:
            store.execute(statement)
        # A run that broke off while rows were rewritten.
        store.execute("SYSTEM STOP MERGES ledger")
        store.execute(OURS[0].statements[3])
        thread = threading.Thread(target=lambda: migrate(other), daemon=True)
        thread.start()
        assert waits.wait(60)
        assert thread.is_alive()
        assert store.rows("SELECT count() AS n FROM schema_migrations FINAL WHERE version = 16") == [{"n": 0}]
        store.execute("SYSTEM START MERGES ledger")
        thread.join(60)
        assert not thread.is_alive()
        mutations = (
            "SELECT count() AS n FROM system.mutations WHERE table = 'ledger' AND database = currentDatabase()"
            " AND command LIKE '%MATERIALIZE COLUMN%residual%'"
        )
        assert store.rows(mutations) == [{"n": len(OURS)}]
        assert store.rows(ASKED) == before


def test_what_prices_are_stated_in_leaves_no_residual(store: Store) -> None:
    """Or every charge of such a price would take a cost's room."""
    chance = random.Random(3)
    stated: list[tuple[Decimal, Decimal, str, Decimal]] = []
    for meter in METERS.values():
        for unit, size in money.units_of(meter.name).items():
            for per in [1] if size > 1 else [1, 1000, 1_000_000]:
                amount = Decimal(chance.randrange(1, 10**4)).scaleb(-2)
                steps = chance.randrange(1, 10**6) * meter.scale
                cost = money.rate(meter.name, amount, per, unit).cost(steps)
                stated.append((money.quantity(meter.name, steps), amount, f"{per} {unit}", money.usd(cost)))
    values = ", ".join(f"(['{q}'], ['{price}'], ['{per}'], ['{usd}'])" for q, price, per, usd in stated)
    names = ", ".join(f"`charges.{name}`" for name in ("quantity", "unit_price", "per", "given_cost"))
    store.execute(f"INSERT INTO ledger (span_id, {names}) SELECT toFixedString(toString(rowNumberInAllBlocks()), 8), *"
                  f" FROM values('q Array(Decimal(38, 9)), p Array(Decimal(38, 18)), u Array(String),"
                  f" c Array(Decimal(38, 12))', {values})")  # fmt: skip
    left = store.rows("SELECT charges.per[1] AS per, charges.residual[1] AS left FROM ledger WHERE left != 0")
    # A half that is rounded to even is one step off.
    assert [row for row in left if abs(row["left"]) > Decimal("1e-12")] == []
    assert len(left) < len(stated) / 10
