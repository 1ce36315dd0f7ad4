"""The schema in operation: one migrates at a time, one source serves a cluster, rows go when they are told to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tollspan.processor.cli.app import app
from tollspan.processor.errors import ConfigError, StoreError, StoreUnavailable
from tollspan.processor.schema import Migration, ddl, migrate, migrations, plan
from tollspan.processor.schema import ttl as times
from tollspan.processor.schema.cluster import LOCAL, SHARDED, clustered
from tollspan.processor.schema.lock import STALE_S, TABLE, held, locked, unlock
from tollspan.processor.schema.reference import markdown, tables
from tollspan.processor.schema.roles import reader_rights, roles, writer_rights
from tollspan.processor.store import Store, locate, open_store

TABLES_DOCUMENT = Path(__file__).parents[2] / "deploy" / "TABLES.md"
HEAD = """# Tables and columns

What SQL can ask. Empty text is "not given"; NULL is unknown and never zero; money is USD, exact. Tables that say so are
read with `FINAL`, or rows that were replaced would count twice. The same in a terminal: `tollspan schema columns`.
Made from the tables' own comments by `tests/processor/test_schema_operation.py` with `TOLLSPAN_WRITE_DOCS=1`.

"""


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["schema", *arguments])


# -- migrating ---------------------------------------------------------------------------------------------------------


def test_an_up_to_date_store_is_only_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "execute", lambda *_: pytest.fail("a statement that changes something"))
    assert store.migrate() == []


def test_what_is_missing_is_told_without_doing_it(store_url: str) -> None:
    with open_store(store_url) as store:
        assert all(each.applied_at is None for each in plan(store))
        migrate(store, migrations()[:3])
        assert [str(each.migration) for each in plan(store) if each.applied_at is None] == [
            str(each) for each in migrations()[3:]
        ]
        shown = run("migrate", "--store", store_url, "--dry-run")
        assert shown.exit_code == 0
        assert "-- 0004_trace_costs" in shown.output
        assert "CREATE VIEW IF NOT EXISTS trace_costs" in shown.output
        assert "0003_spans" not in shown.output
        assert [row["name"] for row in store.rows("SHOW TABLES")] == ["ledger", "schema_migrations", "spans", "traces"]
        assert run("status", "--store", store_url).exit_code == 1
        assert run("migrate", "--store", store_url).exit_code == 0
        done = run("status", "--store", store_url, "--format", "json")
        assert done.exit_code == 0
        assert {row["state"] for row in json.loads(done.output)} == {"applied"}


def test_the_lock_is_free_after_a_migration_also_one_that_fails(store_url: str) -> None:
    with open_store(store_url) as store:
        with pytest.raises(StoreError):
            migrate(store, [Migration(1, "m", "ALTER TABLE nothing ADD COLUMN x UInt8;\n")])
        assert held(store) is None
        migrate(store, [Migration(1, "m", "CREATE TABLE IF NOT EXISTS a (x UInt8) ENGINE = MergeTree ORDER BY x;\n")])
        assert held(store) is None


def test_two_that_migrate_at_once_do_it_once(store_url: str) -> None:
    # Not idempotent: whoever did it a second time would fail.
    wanted = [
        Migration(1, "a", "CREATE TABLE a (x UInt8) ENGINE = MergeTree ORDER BY x;\n"),
        *(Migration(n, f"m{n}", f"ALTER TABLE a ADD COLUMN y{n} UInt8;\n") for n in range(2, 8)),
    ]
    done: list[Any] = []
    with open_store(store_url) as first, open_store(store_url) as second:

        def go(store: Store) -> None:
            try:
                done.append(migrate(store, wanted))
            except BaseException as error:
                done.append(error)

        threads = [threading.Thread(target=go, args=(store,)) for store in (first, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(done, key=len) == [[], [str(each) for each in wanted]]
        assert len(first.rows("DESCRIBE TABLE a")) == 7


def test_who_waits_for_the_lock_is_told_who_has_it(store_url: str) -> None:
    with open_store(store_url) as store, locked(store, every_s=0) as alive:
        alive()
        with pytest.raises(StoreUnavailable, match=rf"{os.getpid()}.*schema unlock"), locked(store, wait_s=0):
            pass
        told = run("unlock", "--store", store_url)
        assert str(os.getpid()) in told.output
        # Who lost it does not go on.
        with pytest.raises(StoreUnavailable, match="taken over"):
            alive()


def test_a_lock_of_a_process_that_is_gone_is_broken(store_url: str) -> None:
    with open_store(store_url) as store:
        store.execute(f"CREATE TABLE {TABLE} (none UInt8) ENGINE = Memory COMMENT 'elsewhere 0 abc'")
        # An embedded store has one process, which is ours.
        with locked(store, wait_s=0) as alive:
            alive()
        assert held(store) is None


def test_on_a_server_a_lock_is_broken_when_it_gives_no_sign_of_life(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tollspan.processor.schema import lock

    with open_store(store_url) as store:
        store.execute(f"CREATE TABLE {TABLE} (none UInt8) ENGINE = Memory COMMENT 'elsewhere 0 abc'")
        monkeypatch.setattr(store, "embedded", False)
        with pytest.raises(StoreUnavailable), locked(store, wait_s=0):
            pass
        idle = lock.held
        monkeypatch.setattr(lock, "held", lambda s: (found := idle(s)) and (found[0], found[1] + STALE_S))
        with locked(store, wait_s=0):
            assert idle(store) is not None
        unlock(store)


# -- a cluster ---------------------------------------------------------------------------------------------------------


def test_every_statement_has_its_form_on_a_cluster_and_the_engine_can_read_it(store: Store) -> None:
    for statement in ddl(cluster="main", database="tollspan"):
        (row,) = store.rows("SELECT formatQuery({s:String}) AS q", {"s": statement})
        assert "ON CLUSTER main" in row["q"], statement
        assert "non_replicated" not in row["q"]
    assert [s for each in [ddl()] for s in each if "CLUSTER" in s or "Distributed" in s] == []


def test_what_nobody_has_said_how_to_spread_is_an_error() -> None:
    with pytest.raises(ValueError, match="how does this go on a cluster"):
        clustered("RENAME TABLE a TO b", "c", "d")
    with pytest.raises(ValueError, match="cannot be the name"):
        ddl(cluster="a b")
    assert run("--cluster", "a b").exit_code == 1


def test_a_store_url_says_on_which_cluster_it_is() -> None:
    where = locate("clickhouse://ch/tollspan?cluster=main")
    assert getattr(where, "cluster", None) == "main"
    assert where.url == "clickhouse://ch:8123/tollspan?cluster=main"
    with pytest.raises(ConfigError, match="cluster"):
        locate("clickhouse://ch/tollspan?cluster=a-b")


def in_an_engine(tmp_path: Path, script: str, users: str = "") -> Any:
    """Run a script with ``q(sql)`` on an engine of its own that has a cluster ``one`` (itself), and users."""
    (tmp_path / "users.xml").write_text(
        "<clickhouse><profiles><default/><reader><readonly>1</readonly></reader></profiles><quotas><default/></quotas>"
        "<users><default><password></password><networks><ip>::/0</ip></networks><profile>default</profile>"
        f"<quota>default</quota></default>{users}</users></clickhouse>"
    )
    (tmp_path / "config.xml").write_text(
        f"<clickhouse><tcp_port>9000</tcp_port><users_config>{tmp_path}/users.xml</users_config><remote_servers><one>"
        "<shard><replica><host>localhost</host><port>9000</port></replica></shard></one></remote_servers></clickhouse>"
    )
    prelude = f"""
        import json, re, chdb
        from tollspan.processor.schema import ddl, SCHEMAS
        connection = chdb.connect({str(tmp_path / "engine")!r} + "?config-file=" + {str(tmp_path / "config.xml")!r})
        def q(sql):
            return connection.query(sql, "TSVRaw").bytes().decode().rstrip("\\n")
        def fails(sql):
            try:
                q(sql)
            except Exception as error:
                return re.findall(r"[A-Z]+_[A-Z_]+", str(error))[-1]
            return ""
        q("CREATE DATABASE tollspan"); q("USE tollspan")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(prelude) + textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_distributed_tables_have_their_shards_columns_and_rows_go_through_them(tmp_path: Path) -> None:
    # An embedded engine has no Keeper: all but the queue and the replication is real.
    found = in_an_engine(
        tmp_path,
        """
        for statement in ddl(cluster="one", database="tollspan"):
            plain = statement.replace(" ON CLUSTER one", "")
            plain = re.sub(r"Replicated(\\w*MergeTree)\\('[^']*', '[^']*'(?:, )?", r"\\1(", plain)
            q(re.sub(r"Replicated(?=\\w*MergeTree)", "", plain).replace("replicated_dedup", "non_replicated_dedup"))
        columns = lambda t: q(f"SELECT name, type, default_expression, comment FROM system.columns WHERE table = '{t}'"
                              " AND database = 'tollspan' ORDER BY position")
        local = [t[:-6] for t in q("SELECT name FROM system.tables WHERE name LIKE '%\\\\_local'").split()]
        q("INSERT INTO ledger (start_time, trace_id, span_id, kind, cost, cost_status) SETTINGS"
          " distributed_foreground_insert = 1 VALUES ('2026-11-01', 'a', 'b', 'inference', '0.25', 'priced')")
        q("INSERT INTO traces (trace_id, start_time, root_name) SETTINGS distributed_foreground_insert = 1"
          " SELECT 'a', now(), 'ask'")
        print(json.dumps({
            "differ": [t for t in local if columns(t) != columns(t + "_local")],
            "local": sorted(local),
            "rows": q("SELECT count() FROM ledger_local"),
            "cost": q("SELECT total_cost FROM trace_costs"),
            "by_view": q("SELECT root_name FROM sampling_traces"),
        }))
        """,
    )
    assert found == {"differ": [], "local": sorted(SHARDED), "rows": "1", "cost": "0.25", "by_view": "ask"}


# -- roles -------------------------------------------------------------------------------------------------------------


def test_a_writer_only_writes_and_a_reader_only_reads(tmp_path: Path) -> None:
    def user(name: str, profile: str, rights: list[str]) -> str:
        grants = "".join(f"<query>GRANT {right}</query>" for right in [*rights, "SELECT ON probe.*"])
        return (
            f"<{name}><password></password><networks><ip>::/0</ip></networks><profile>{profile}</profile>"
            f"<quota>default</quota><grants>{grants}</grants></{name}>"
        )

    # The engine has one login; a view that is run as its definer asks for the definer's rights.
    found = in_an_engine(
        tmp_path,
        """
        for statement in ddl():
            q(statement)
        q("CREATE DATABASE probe")
        names = q("SELECT name FROM system.tables WHERE database = 'tollspan' AND engine LIKE '%MergeTree'").split()
        said = {"writer": {"insert": [], "select": []}, "reader": {"insert": [], "select": []}}
        for name in names:
            column, kind = q(f"SELECT name, type FROM system.columns WHERE table = '{name}' AND database = 'tollspan'"
                             " AND default_kind = '' ORDER BY position LIMIT 1").split("\\t")
            for role in said:
                q(f"CREATE TABLE probe.{role}_{name} ENGINE = Null AS SELECT {column} FROM {name}")
                q(f"CREATE MATERIALIZED VIEW probe.w_{role}_{name} TO {name} DEFINER = {role} SQL SECURITY DEFINER AS"
                  f" SELECT {column} FROM probe.{role}_{name}")
                if not fails(f"INSERT INTO probe.{role}_{name} SELECT {column} FROM values('{column} UInt8', 0)"
                             if kind == "UInt8" else f"INSERT INTO probe.{role}_{name} SELECT"
                             f" defaultValueOfTypeName('{kind.replace(chr(39), chr(92) + chr(39))}')"):
                    said[role]["insert"].append(name)
                q(f"CREATE VIEW probe.r_{role}_{name} DEFINER = {role} SQL SECURITY DEFINER AS SELECT count() FROM"
                  f" (SELECT {column} FROM {name})")
                if not fails(f"SELECT * FROM probe.r_{role}_{name}"):
                    said[role]["select"].append(name)
        said["all"] = names
        print(json.dumps(said))
        """,
        user("writer", "default", writer_rights("tollspan")) + user("reader", "default", reader_rights("tollspan")),
    )
    assert found["reader"]["insert"] == []
    assert found["reader"]["select"] == found["all"]
    assert set(found["writer"]["insert"]) == {
        right.split(".")[1] for right in writer_rights("tollspan") if "INS" in right
    }
    assert set(found["writer"]["select"]) == {
        right.split(".")[1] for right in writer_rights("tollspan") if "SEL" in right
    }
    assert not {"repricings", "closed_periods", "schema_migrations"} & set(found["writer"]["insert"])


def test_roles_on_a_cluster_reach_the_shards_own_tables() -> None:
    assert f"INSERT ON tollspan.ledger{LOCAL}" in writer_rights("tollspan", "main")
    assert all(" ON CLUSTER main" in each for each in roles(cluster="main"))
    with pytest.raises(ConfigError, match="cannot be used as a name"):
        roles(writer="a; DROP")


def test_roles_are_printed_and_an_embedded_store_has_none(store_url: str) -> None:
    shown = run("roles", "--store", store_url, "--database", "tollspan", "--reader-user", "grafana")
    assert shown.exit_code == 0
    assert "GRANT SELECT ON tollspan.* TO tollspan_reader;" in shown.output
    assert "GRANT tollspan_reader TO grafana;" in shown.output
    refused = run("roles", "--store", store_url, "--apply")
    assert isinstance(refused.exception, ConfigError)


def test_on_a_server_the_roles_hold(clickhouse_url: str) -> None:
    database = f"roles_{os.getpid()}"
    where = locate(clickhouse_url.rstrip("/"))
    with open_store(f"{clickhouse_url.split('?')[0].rsplit('/', 1)[0]}/{database}") as store:
        try:
            store.migrate()
            for name in ("w", "r"):
                store.execute(f"CREATE USER {database}_{name} IDENTIFIED BY 'Secret_1'")
            users = [(f"{database}_writer", f"{database}_w"), (f"{database}_reader", f"{database}_r")]
            for statement in roles(database, f"{database}_writer", f"{database}_reader", users=users):
                store.execute(statement)
            address = f"{getattr(where, 'address', '')}/{database}"
            with open_store(f"clickhouse://{database}_w:Secret_1@{address}") as writer:
                assert writer.migrate() == []
                with pytest.raises(StoreError, match="ACCESS_DENIED"):
                    writer.rows("SELECT * FROM spans")
            with open_store(f"clickhouse://{database}_r:Secret_1@{address}", create=False) as reader:
                assert reader.rows("SELECT count() AS n FROM ledger FINAL") == [{"n": 0}]
                with pytest.raises(StoreError):
                    reader.execute("INSERT INTO closed_periods (note) VALUES ('x')")
        finally:
            for name in ("w", "r"):
                store.execute(f"DROP USER IF EXISTS {database}_{name}")
            store.execute(f"DROP ROLE IF EXISTS {database}_writer, {database}_reader")
            store.execute(f"DROP SETTINGS PROFILE IF EXISTS {database}_reader")
            store.execute(f"DROP DATABASE {database}")


# -- retention ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kept"), [("7d", "7d"), (" 5Y", "5y"), ("18m", "18m"), ("2w", "2w"), ("never", "never")]
)
def test_a_retention_is_read(text: str, kept: str) -> None:
    assert times.retention(text, "--spans") == kept


@pytest.mark.parametrize("text", ["", "7", "0d", "5 years", "-1d", "d"])
def test_what_is_no_retention_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no retention"):
        times.retention(text, "--spans")


def test_a_change_is_shown_first_and_made_only_when_told(
    store: Store, store_url: str, ledger_rows: Callable[..., Any]
) -> None:
    now = datetime.now(UTC)
    store.insert("ledger", ledger_rows([{"start_time": now - timedelta(days=days)} for days in (1, 800, 4000)]), "t")
    shown = run("ttl", "--store", store_url, "--ledger", "5y", "--spans", "7d", "--format", "json")
    assert shown.exit_code == 0, shown.output
    rows = {row["table"]: row for row in json.loads(shown.stdout)}
    assert (rows["ledger"]["kept"], rows["ledger"]["will_be_kept"]) == ("never", "5y")
    assert (rows["ledger"]["rows"], rows["ledger"]["rows_too_old"]) == (3, 1)
    assert (rows["traces"]["kept"], rows["traces"]["will_be_kept"]) == ("never", "never")
    assert "add --apply" in shown.stderr
    assert "ALTER TABLE spans MODIFY TTL" in shown.stderr
    assert {each.now for each in times.changes(store, {})} == {"never"}

    assert run("ttl", "--store", store_url, "--ledger", "5y", "--spans", "7d", "--apply").exit_code == 0
    kept = {each.table: each.now for each in times.changes(store, {})}
    assert kept == {
        "spans": "7d", "traces": "never", "ledger": "5y", "batches": "5y", "late_rows": "5y", "telemetry": "5y",
    }  # fmt: skip
    until = time.monotonic() + 20
    while store.rows("SELECT count() AS n FROM ledger FINAL") != [{"n": 2}]:
        assert time.monotonic() < until, "the row that is too old goes"
        store.execute("OPTIMIZE TABLE ledger FINAL")

    # Again changes nothing; and it can be taken back.
    assert all(not each.statements for each in times.changes(store, {"ledger": "5y"}))
    for tier in times.TIERS:
        for change in times.changes(store, {tier: "never"}):
            times.apply(store, change)
    assert {each.now for each in times.changes(store, {})} == {"never"}
    assert store.migrate() == []


def test_each_tier_can_have_each_unit(store: Store) -> None:
    for wanted in ("3d", "2w", "18m", "7y"):
        for change in times.changes(store, dict.fromkeys(times.TIERS, wanted)):
            times.apply(store, change)
        assert {each.now for each in times.changes(store, {})} == {wanted}


def test_an_unknown_tier_or_a_wrong_retention_is_said(store_url: str, store: Store) -> None:
    with pytest.raises(ConfigError, match="no tier"):
        times.changes(store, {"bodies": "7d"})
    assert run("ttl", "--store", store_url, "--spans", "soon").exit_code == 2


# -- reference ---------------------------------------------------------------------------------------------------------


ELSEWHERE = {"focus": "its columns are those of a public specification", "billed": "as in billed_lines"}
"""View → why its columns have no words of their own."""


def test_every_table_and_column_says_what_it_is(store: Store) -> None:
    found = tables(store)
    assert [table.name for table in found if not table.comment] == []
    silent = [f"{t.name}.{c.name}" for t in found for c in t.columns if not c.comment and t.name not in ELSEWHERE]
    assert silent == [], "COMMENT in the migration that brings the column"


def test_the_document_is_the_tables(store: Store) -> None:
    made = HEAD + markdown(tables(store))
    if os.environ.get("TOLLSPAN_WRITE_DOCS"):
        TABLES_DOCUMENT.write_text(made)
    assert TABLES_DOCUMENT.read_text() == made, "run this test with TOLLSPAN_WRITE_DOCS=1"


def test_columns_are_printed_by_table(store: Store, store_url: str) -> None:
    shown = run("columns", "ledger", "--store", store_url, "--format", "json")
    rows = {row["column"]: row for row in json.loads(shown.output)}
    assert "never zero" in rows["cost"]["what"]
    with pytest.raises(ConfigError, match="no table 'legder'"):
        tables(store, "legder")
