"""``tollspan sql`` asks anything and changes nothing; ``tollspan top`` shows what happens now."""

from __future__ import annotations

import io
import json
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

sys.path.insert(0, str(Path(__file__).parents[1] / "end_to_end"))
from service import Service, tollspan

from tollspan.processor.cli.app import app
from tollspan.processor.cli.top import _drawn, _figure
from tollspan.processor.errors import ConfigError, StoreError
from tollspan.processor.store import Store
from tollspan.processor.top import BUCKETS, dimensions, look

Make = Callable[[list[dict[str, Any]]], pa.Table]
MODEL = ("tokens.output", "model", "0.25", "priced")
NO_PRICE = ("gpu.seconds", "compute", None, "unpriced")
NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)


def run(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, arguments, input=stdin)


@pytest.fixture
def asked(store: Store, store_url: str) -> Callable[..., Result]:
    return lambda *arguments, stdin=None: run("sql", *arguments, "--store", store_url, stdin=stdin)


# -- sql ---------------------------------------------------------------------------------------------------------------


def test_money_stays_exact_in_every_format_of_ours(
    store: Store, asked: Callable[..., Result], ledger_rows: Make
) -> None:
    store.insert("ledger", ledger_rows([{"charges": [MODEL], "tenant": "acme"}, {"charges": [NO_PRICE]}]), "t")
    statement = "SELECT tenant, cost FROM ledger FINAL ORDER BY tenant DESC"
    rows = json.loads(asked(statement, "--format", "json").stdout)
    assert rows == [{"tenant": "acme", "cost": "0.250000000000"}, {"tenant": "", "cost": None}]
    assert asked(statement, "--format", "csv").stdout == "tenant,cost\nacme,0.250000000000\n,\n"
    assert "| acme | 0.25 |" in asked(statement, "--format", "markdown").stdout
    assert "acme" in asked(statement).stdout


def test_any_format_of_clickhouse_and_a_clause_in_the_statement(asked: Callable[..., Result]) -> None:
    assert asked("SELECT 1 AS a", "--format", "JSONEachRow").stdout == '{"a":1}\n'
    assert "Row 1" in asked("SELECT 1 AS a FORMAT Vertical", "--format", "json").stdout
    parquet = asked("SELECT toDecimal128('0.1', 12) AS cost", "--format", "Parquet")
    assert pq.read_table(io.BytesIO(parquet.stdout_bytes)).to_pylist() == [{"cost": Decimal("0.1")}]
    assert "ledger" in asked("SHOW TABLES", "--format", "csv").stdout


def test_a_statement_comes_from_stdin_and_values_are_bound(asked: Callable[..., Result]) -> None:
    assert json.loads(asked("--format", "json", stdin="SELECT 1 AS a;\n").stdout) == [{"a": 1}]
    assert json.loads(asked("-", "--format", "json", stdin="SELECT ';' AS a").stdout) == [{"a": ";"}]
    bound = asked("SELECT {who:String} AS who", "--param", "who=x' OR 1=1 --", "--format", "json")
    assert json.loads(bound.stdout) == [{"who": "x' OR 1=1 --"}]


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE ledger",
        "INSERT INTO closed_periods (note) VALUES ('x')",
        "ALTER TABLE ledger DELETE WHERE 1",
        "TRUNCATE TABLE ledger",
        "SELECT 1; DROP TABLE ledger",
        "SELECT * FROM file('/etc/passwd', 'LineAsString')",
        "SELECT file('/etc/passwd')",
        "SELECT 1 INTO OUTFILE '/tmp/x'",
        "SET readonly = 0",
        "SYSTEM STOP MERGES",
        "SELECT * FROM url('http://127.0.0.1/', 'LineAsString')",
    ],
)
def test_nothing_is_changed_or_read_elsewhere(store: Store, asked: Callable[..., Result], statement: str) -> None:
    before = store.rows("SELECT name FROM system.tables WHERE database = currentDatabase()")
    assert isinstance(asked(statement, "--format", "csv").exception, StoreError)
    assert store.rows("SELECT name FROM system.tables WHERE database = currentDatabase()") == before


def test_time_memory_and_size_are_limited(asked: Callable[..., Result]) -> None:
    began = time.monotonic()
    slow = asked("SELECT count() FROM numbers(1e12) WHERE sipHash64(number) = 7", "--timeout", "1")
    assert "TIMEOUT_EXCEEDED" in str(slow.exception)
    assert time.monotonic() - began < 30
    large = asked("SELECT groupArray(number) FROM numbers(1e8)", "--memory", "50")
    assert "MEMORY_LIMIT_EXCEEDED" in str(large.exception)
    many = asked("SELECT repeat(toString(number), 1000) FROM numbers(1e5)", "--result", "1", "--format", "TSV")
    assert "TOO_MANY_ROWS_OR_BYTES" in str(many.exception)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((" ; ",), "empty"),
        (("SELECT 1", "--param", "tenant"), "NAME=VALUE"),
        (("SELECT 1", "--format", "a b"), "is no format"),
        (("SELECT 1", "--timeout", "0"), "timeout"),
    ],
)
def test_wrong_use_is_exit_code_2(asked: Callable[..., Result], arguments: tuple[str, ...], says: str) -> None:
    result = asked(*arguments)
    assert result.exit_code == 2
    assert says in result.stderr


def test_a_statement_that_is_wrong_says_what(asked: Callable[..., Result]) -> None:
    assert "UNKNOWN_IDENTIFIER" in str(asked("SELECT nothing FROM ledger").exception)
    assert "UNKNOWN_FORMAT" in str(asked("SELECT 1", "--format", "Jason").exception)
    assert "SYNTAX_ERROR" in str(asked("SELEC 1").exception)


def test_no_rows_are_said_and_are_no_error(asked: Callable[..., Result]) -> None:
    none = asked("SELECT * FROM ledger FINAL")
    assert (none.exit_code, none.stderr) == (0, "No rows.\n")
    assert asked("SELECT tenant FROM ledger", "--format", "json").stdout == "[]\n"


# -- top ---------------------------------------------------------------------------------------------------------------


def filled(store: Store, ledger_rows: Make) -> None:
    def at(minutes: float, **more: Any) -> dict[str, Any]:
        return {"start_time": NOW - timedelta(minutes=minutes), "charges": [MODEL], **more}

    rows = [
        *(at(1, tenant="acme", feature="search") for _ in range(6)),
        *(at(4, tenant="bolt", model="gpt-5") for _ in range(3)),
        at(2, tenant="bolt", charges=[NO_PRICE], model="new"),
        at(2, tenant="bolt", span_status="error", error_type="429", charges=[], cost=None, cost_status="not_billed"),
        at(2, tenant="acme", charges=[], cost=None, cost_status="rollup"),
        at(60, tenant="long ago"),
    ]
    store.insert("ledger", ledger_rows(rows), "t")


def test_rates_are_those_of_the_window(store: Store, ledger_rows: Make) -> None:
    filled(store, ledger_rows)
    frame = look(store, timedelta(minutes=5), at=NOW)
    assert frame.total["inferences"] == 10, "a roll-up and a call that was not billed are none"
    assert frame.total["cost"] == Decimal("2.25")
    assert (frame.total["unpriced"], frame.total["errors"], frame.total["calls"]) == (1, 1, 11)
    assert frame.rate(frame.total["cost"], 3600) == Decimal(27)
    assert frame.rate(frame.total["inferences"], 1) == Decimal(10) / 300
    assert [(row["name"], row["cost"]) for row in frame.tops["tenant"]] == [
        ("acme", Decimal("1.5")),
        ("bolt", Decimal("0.75")),
    ]
    models = {row["name"]: row for row in frame.tops["model"]}
    assert (models["new"]["cost"], models["new"]["unpriced"]) == (None, 1), "unknown is not zero"
    assert sum(frame.inferences) == 10
    assert sum(frame.cost) == Decimal("2.25")
    assert frame.inferences[BUCKETS * 4 // 5] == 6
    assert frame.inferences[BUCKETS // 5] == 3


def test_every_dimension_can_be_asked(store: Store, ledger_rows: Make) -> None:
    from tollspan.processor.top import DIMENSIONS

    filled(store, ledger_rows)
    frame = look(store, timedelta(minutes=5), list(DIMENSIONS), at=NOW)
    for rows in frame.tops.values():
        assert sum(row["cost"] or 0 for row in rows) == Decimal("2.25")
    with pytest.raises(ConfigError, match="no dimension"):
        dimensions("tenant,colour")


def test_one_look_for_a_script_and_for_a_person(store: Store, store_url: str, ledger_rows: Make) -> None:
    filled(store, ledger_rows)
    at = ("--store", store_url, "--at", NOW.isoformat())
    told = json.loads(run("top", *at, "--format", "json").stdout)
    assert (told["cost_per_h"], told["cost"], told["unpriced"]) == ("27.000000000000", "2.250000000000", 1)
    assert told["top"]["feature"][0] == {
        "name": "search", "cost": "1.500000000000", "inferences": 6, "unpriced": 0, "errors": 0,
    }  # fmt: skip
    shown = run("top", *at, "--once").stdout
    assert "27.0" in shown
    assert "1 inferences have no price and are in no cost" in shown
    assert "acme" in shown


def test_a_window_without_anything_says_when_the_last_was(store: Store, store_url: str, ledger_rows: Make) -> None:
    assert "The ledger is empty." in run("top", "--store", store_url, "--once").stdout
    filled(store, ledger_rows)
    shown = run("top", "--store", store_url, "--once", "--at", "2026-11-05").stdout
    assert "Nothing in this window. The newest span started at" in shown
    assert "2026-11-01T11:59:00Z" in shown
    told = json.loads(run("top", "--store", store_url, "--at", "2026-11-05", "--format", "json").stdout)
    assert (told["inferences"], told["cost"], told["p95_s"]) == (0, "0.000000000000", None)


@pytest.mark.parametrize("given", [("--window", "2026-11-01"), ("--by", "colour"), ("--format", "csv"), ("--at", "x")])
def test_wrong_use_of_top_is_exit_code_2(given: tuple[str, str]) -> None:
    result = run("top", *given)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")


def test_figures_keep_what_counts_and_show_what_is_unknown() -> None:
    assert [_figure(None if v is None else Decimal(v)) for v in (None, "0", "27", "1234.5", "0.000012345")] == [
        "—", "0", "27.0", "1,234", "0.0000123",
    ]  # fmt: skip


# -- a running service -------------------------------------------------------------------------------------------------


def test_both_ask_a_running_service(tmp_path: Path) -> None:
    with Service(tmp_path) as service:
        store = ("--store", service.url)
        done = tollspan("sql", "SELECT count() AS n FROM ledger FINAL", "--format", "json", *store)
        assert (done.returncode, done.stdout) == (0, '[{"n": 0}]\n'), done.stderr
        bound = tollspan("sql", "SELECT {a:UInt8} + 1 AS n FORMAT CSV", "--param", "a=1", *store)
        assert (bound.returncode, bound.stdout) == (0, "2\n"), bound.stderr
        refused = tollspan("sql", "DROP TABLE ledger", *store)
        assert refused.returncode == 1
        assert "read-only" in refused.stderr
        slow = tollspan(
            "sql", "SELECT count() FROM numbers(1e12) WHERE sipHash64(number) = 7", "--timeout", "1", *store
        )
        assert "maximum: 1000" in slow.stderr, "the limit that was asked for, not the port's own"
        told = json.loads(tollspan("top", "--format", "json", *store).stdout)
        assert told["lag_s"] == 0.0
        assert told["inferences"] == 0


def test_live_it_looks_again_until_it_is_ended(
    store: Store, ledger_rows: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tollspan.processor.cli import top as module

    seen: list[Any] = []
    enough = threading.Event()

    def pause(_: float) -> None:
        if len(seen) == 3:
            enough.set()
            raise KeyboardInterrupt

    monkeypatch.setattr(module.time, "sleep", pause)
    monkeypatch.setattr(module, "_drawn", lambda frame: seen.append(frame) or _drawn(frame))
    result = run("top", "--store", f"chdb://{store.directory}?database={store.database}")
    assert (result.exit_code, enough.is_set()) == (0, True)
