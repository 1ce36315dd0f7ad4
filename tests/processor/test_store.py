"""Stores open where the URL says, one process at a time, and say in one line what is wrong."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from clickhouse_connect.driver.exceptions import DatabaseError, OperationalError, ProgrammingError

from tollspan.processor.errors import ConfigError, StoreError, StoreUnavailable
from tollspan.processor.schema import migrations
from tollspan.processor.store import (
    Embedded,
    Server,
    Store,
    StoreInUse,
    connect_for_query,
    locate,
    lock,
    open_store,
    remove_service_file,
    write_service_file,
)
from tollspan.processor.store.faults import RETRYABLE, is_transient, one_line, translate
from tollspan.processor.store.location import default_directory


class TestLocations:
    def test_a_bare_url_is_the_default_directory(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("TOLLSPAN_DATA_DIR", str(tmp_path))
        monkeypatch.delenv("TOLLSPAN_STORE", raising=False)
        for url in ("chdb://", "", None):
            assert locate(url) == Embedded(default_directory(), "tollspan")
        assert default_directory() == tmp_path.resolve() / "store"

    def test_the_environment_names_the_store_where_no_url_does(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TOLLSPAN_STORE", "clickhouse://elsewhere/db")
        assert locate(None) == locate("clickhouse://elsewhere/db")
        assert isinstance(locate("chdb://"), Embedded)

    def test_a_directory_and_a_database(self, tmp_path: Path) -> None:
        location = locate(f"chdb://{tmp_path}/a%20b?database=x_1")
        assert location == Embedded(tmp_path.resolve() / "a b", "x_1")
        assert locate(location.url) == location

    def test_a_server_with_everything(self) -> None:
        location = locate("clickhouse://me:p%40ss@ch.example/db?secure=true&verify=false&connect_timeout=3")
        assert location == Server(
            "ch.example", 8443, "me", "p@ss", "db", True, {"verify": "false", "connect_timeout": "3"}
        )

    def test_a_server_with_nothing_but_its_name(self) -> None:
        assert locate("clickhouse://ch") == Server("ch", 8123, None, None, "tollspan", False, {})

    def test_no_message_or_url_shows_a_password(self) -> None:
        location = locate("clickhouse://me:s3cret@ch/db")
        assert "s3cret" not in location.url
        assert "s3cret" not in repr(location)
        with pytest.raises(ConfigError) as caught:
            locate("mysql://me:s3cret@ch/db")
        assert "s3cret" not in str(caught.value)

    @pytest.mark.parametrize(
        ("url", "says"),
        [
            ("http://localhost:8123", "unknown scheme 'http'"),
            ("/var/lib/store", "no scheme"),
            ("chdb://relative/dir", "Three slashes"),
            ("chdb:///dir?databse=x", "Did you mean 'database'"),
            ("chdb:///dir?database=a-b", "Database name 'a-b'"),
            ("clickhouse:///db", "names no host"),
            ("clickhouse://h:99999/db", "no number from 0 to 65535"),
            ("clickhouse://h/db?secur=true", "Did you mean 'secure'"),
            ("clickhouse://h/db?connect_timeout=soon", "whole number of seconds"),
            ("clickhouse://h/a/b", "Database name 'a/b'"),
        ],
    )
    def test_what_is_wrong_with_a_url_is_said_in_one_line(self, url: str, says: str) -> None:
        with pytest.raises(ConfigError, match=says) as caught:
            locate(url)
        assert "\n" not in str(caught.value)


class TestRows:
    ROWS = pa.table(
        {"x": pa.array([1, 2], pa.int64()), "cost": pa.array([Decimal("0.1"), None], pa.decimal128(38, 12))}
    )

    @pytest.fixture
    def table(self, store: Store) -> str:
        store.execute(
            "CREATE TABLE t (x Int64, cost Nullable(Decimal(38, 12)), s LowCardinality(String)) ENGINE = MergeTree"
            " ORDER BY x PARTITION BY x SETTINGS non_replicated_deduplication_window = 1000"
        )
        return "t"

    def test_an_insert_is_there_when_it_returns(self, store: Store, table: str) -> None:
        store.insert(table, self.ROWS, "a")
        assert store.rows("SELECT x, cost FROM t ORDER BY x") == [
            {"x": 1, "cost": Decimal("0.1")},
            {"x": 2, "cost": None},
        ]

    def test_the_same_token_counts_once_over_several_partitions(self, store: Store, table: str) -> None:
        for _ in range(3):
            store.insert(table, self.ROWS, "a")
        assert store.rows("SELECT count() AS n FROM t") == [{"n": 2}]

    def test_another_token_is_another_insert_even_of_equal_rows(self, store: Store, table: str) -> None:
        store.insert(table, self.ROWS, "a")
        store.insert(table, self.ROWS, "b")
        assert store.rows("SELECT count() AS n FROM t") == [{"n": 4}]

    def test_a_token_outlives_a_restart(self, store: Store, table: str) -> None:
        store.insert(table, self.ROWS, "a")
        url = f"chdb://{store.directory}?database={store.database}"
        store.close()
        with open_store(url) as again:
            again.insert(table, self.ROWS, "a")
            assert again.rows("SELECT count() AS n FROM t") == [{"n": 2}]

    def test_dictionaries_of_several_chunks_are_one_column(self, store: Store, table: str) -> None:
        chunks = [pa.array([word]).dictionary_encode() for word in ("a", "b")]
        rows = pa.table({"x": pa.array([1, 2], pa.int64()), "s": pa.chunked_array(chunks)})
        store.insert(table, rows, "a")
        assert [row["s"] for row in store.rows("SELECT s FROM t ORDER BY x")] == ["a", "b"]

    def test_a_hundred_and_one_partitions_go_in_one_insert(self, store: Store, table: str) -> None:
        store.insert(table, pa.table({"x": pa.array(range(101), pa.int64())}), "a")
        assert store.rows("SELECT count() AS n FROM t") == [{"n": 101}]

    def test_no_rows_are_no_insert(self, store: Store) -> None:
        store.insert("no_such_table", self.ROWS.slice(0, 0), "a")
        with pytest.raises(StoreError):
            store.insert("no_such_table", self.ROWS, "a")

    def test_a_missing_table_is_an_error_that_stays(self, store: Store) -> None:
        with pytest.raises(StoreError, match="insert into nowhere") as caught:
            store.insert("nowhere", self.ROWS, "a")
        assert not isinstance(caught.value, StoreUnavailable)
        assert "\n" not in str(caught.value)

    def test_parameters_are_bound_and_not_pasted(self, store: Store) -> None:
        evil = "it's'; DROP TABLE ledger; --\n\\"
        assert store.rows("SELECT {x:String} AS x", {"x": evil}) == [{"x": evil}]

    def test_an_empty_result_has_columns(self, store: Store) -> None:
        assert store.query("SELECT cost FROM ledger").schema.field("cost").type == pa.decimal128(38, 12)


class TestReading:
    @pytest.mark.parametrize(
        "statement",
        [
            "INSERT INTO schema_migrations (version) SELECT 9",
            "DROP TABLE ledger",
            "CREATE TABLE x (a UInt8) ENGINE = Memory",
            "SET readonly = 0",
            "ALTER TABLE ledger DELETE WHERE 1",
        ],
    )
    def test_a_query_never_writes(self, store: Store, statement: str) -> None:
        with pytest.raises(StoreError):
            store.query(statement)
        with store.reader() as reader, pytest.raises(StoreError):
            reader.query(statement)
        assert store.rows("SELECT count() AS n FROM schema_migrations")[0]["n"] == len(migrations())

    def test_a_reader_answers_while_an_insert_is_under_way_elsewhere(self, store: Store, ledger_rows: Any) -> None:
        rows = ledger_rows([{"charges": [("tokens.output", "model", "1", "priced")]}] * 500)
        failures: list[BaseException] = []

        def write() -> None:
            try:
                for number in range(10):
                    store.insert("ledger", rows.slice(50 * number, 50), str(number))
            except BaseException as error:
                failures.append(error)

        writer = threading.Thread(target=write)
        writer.start()
        with store.reader() as reader:
            counts = [reader.rows("SELECT count() AS n FROM ledger")[0]["n"] for _ in range(20)]
        writer.join()
        assert failures == []
        assert counts == sorted(counts)
        assert store.rows("SELECT count() AS n FROM ledger")[0]["n"] == 500

    def test_a_closed_store_says_so(self, store: Store) -> None:
        store.close()
        store.close()
        for call in (lambda: store.query("SELECT 1"), lambda: store.insert("ledger", TestRows.ROWS, "a"), store.reader):
            with pytest.raises(StoreError, match="is closed"):
                call()
        assert not store.ping()


OPEN_AND_HOLD = """
import os, sys
from tollspan.processor.store import open_store, write_service_file
store = open_store(sys.argv[1])
store.migrate()
if len(sys.argv) > 2:
    from tollspan.processor.sqlfront import SqlFront
    front = SqlFront(store, "127.0.0.1:0")
    write_service_file(store, {"pid": os.getpid(), "grpc": "127.0.0.1:4317", "sql": front.start()})
print("open", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Any]:
    """Starts another process that has a store of its own open; gives its URL and process."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> tuple[str, subprocess.Popen[str]]:
        url = f"chdb://{tmp_path}/theirs"
        process = subprocess.Popen(
            [sys.executable, "-c", OPEN_AND_HOLD, url, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        return url, process

    yield start
    for process in started:
        process.kill()
        process.communicate()


class TestOwnership:
    def test_one_process_may_open_a_store_twice(self, store: Store) -> None:
        url = f"chdb://{store.directory}?database={store.database}"
        with open_store(url) as second:
            assert second.rows("SELECT count() AS n FROM ledger") == [{"n": 0}]
        assert store.rows("SELECT 1 AS one") == [{"one": 1}]

    def test_a_second_directory_beside_an_open_one_is_refused(self, store: Store, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match="one directory a process"):
            open_store(f"chdb://{tmp_path}/second")

    def test_a_store_of_another_process_names_its_owner(self, other: Any) -> None:
        url, process = other()
        with pytest.raises(StoreInUse, match=rf"in use by process {process.pid}") as caught:
            open_store(url)
        assert "\n" not in str(caught.value)
        with pytest.raises(StoreInUse, match="no SQL port"):
            connect_for_query(url)

    def test_a_killed_owner_leaves_a_store_that_opens(self, other: Any) -> None:
        url, process = other("serve")
        process.kill()
        process.wait()
        # Its serve.json is still there and must not lead anybody to a port that is gone.
        with connect_for_query(url) as reader:
            assert reader.rows("SELECT count() AS n FROM ledger") == [{"n": 0}]
        with open_store(url) as mine:
            assert mine.rows("SELECT count() AS n FROM ledger") == [{"n": 0}]

    def test_a_service_file_of_somebody_else_is_not_followed(self, other: Any, tmp_path: Path) -> None:
        url, _ = other()
        (tmp_path / "theirs" / "serve.json").write_text('{"pid": 1, "sql": "127.0.0.1:9"}')
        with pytest.raises(StoreInUse, match="no SQL port"):
            connect_for_query(url)

    def test_a_forked_child_does_not_take_its_parents_hold_along(self, store: Store) -> None:
        pid = os.fork()
        if pid == 0:
            # No engine call here: its threads stayed with the parent.
            assert store.directory is not None
            os._exit(0 if lock.holder(store.directory) is not None else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert store.directory is not None
        assert lock.holder(store.directory) is None

    def test_queries_go_through_the_port_of_a_running_service(self, other: Any) -> None:
        url, _ = other("serve")
        with connect_for_query(url) as reader:
            assert reader.rows("SELECT count() AS n FROM ledger") == [{"n": 0}]
            with pytest.raises(StoreError):
                reader.query("DROP TABLE ledger")

    def test_the_service_file_comes_and_goes(self, store: Store) -> None:
        assert store.directory is not None
        write_service_file(store, {"pid": 7, "grpc": "127.0.0.1:1", "sql": None})
        assert json.loads((store.directory / "serve.json").read_text())["pid"] == 7
        remove_service_file(store)
        remove_service_file(store)
        assert not (store.directory / "serve.json").exists()

    def test_a_store_that_is_not_there_is_not_made_by_a_query(self, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match="There is no store at"):
            connect_for_query(f"chdb://{tmp_path}/nothing")
        assert not (tmp_path / "nothing").exists()

    def test_a_database_that_is_not_there_is_not_made_by_a_query(self, store: Store) -> None:
        with pytest.raises(StoreError, match="no database 'absent'"):
            connect_for_query(f"chdb://{store.directory}?database=absent")

    def test_a_directory_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(ConfigError, match="cannot be used"):
            open_store(f"chdb://{tmp_path}/file")


class TestServers:
    def test_a_server_that_is_not_there_may_come_back(self) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1]
            with pytest.raises(
                StoreUnavailable, match=rf"127.0.0.1:{port} does not answer: Connection refused"
            ) as caught:
                open_store(f"clickhouse://127.0.0.1:{port}/db")
        assert "\n" not in str(caught.value)

    def test_a_refused_login_says_whose(self) -> None:
        with pytest.raises(StoreError, match="refuses user 'me'") as caught, answering(403, 516) as port:
            open_store(f"clickhouse://me:wrong@127.0.0.1:{port}/db")
        assert not isinstance(caught.value, StoreUnavailable)
        assert "wrong" not in str(caught.value)

    def test_a_server_with_errors_of_its_own_may_recover(self) -> None:
        with pytest.raises(StoreUnavailable), answering(500, 241) as port:
            open_store(f"clickhouse://127.0.0.1:{port}/db")

    def test_a_real_server_takes_the_same_code(self, clickhouse_url: str, ledger_rows: Any) -> None:
        with open_store(clickhouse_url) as store:
            store.migrate()
            assert store.migrate() == []
            store.execute("TRUNCATE TABLE ledger")
            rows = ledger_rows([{"charges": [("tokens.output", "model", "1", "priced")]}])
            for _ in range(2):
                store.insert("ledger", rows, "same")
            assert store.rows("SELECT count() AS n FROM ledger") == [{"n": 1}]


class TestFaults:
    def test_codes_have_the_names_that_the_engine_gives_them(self, store: Store) -> None:
        rows = store.rows("SELECT number AS code, errorCodeToName(number) AS name FROM numbers(1101)")
        engine = {row["code"]: row["name"] for row in rows}
        assert {code: engine[code] for code in RETRYABLE} == RETRYABLE

    @pytest.mark.parametrize(
        ("error", "transient"),
        [
            (OperationalError("Error ConnectionResetError executing HTTP request attempt 1"), True),
            (DatabaseError("too many parts", code=252), True),
            (DatabaseError("memory", code=241), True),
            (DatabaseError("no table", code=60), False),
            (DatabaseError("read-only", code=164), False),
            (DatabaseError("HTTP driver received HTTP status 502"), True),
            (DatabaseError("HTTP driver received HTTP status 404"), False),
            (ProgrammingError("The client has been closed"), False),
            (ConnectionResetError("reset"), True),
        ],
    )
    def test_what_passes_is_told_from_what_stays(self, error: Exception, transient: bool) -> None:
        assert is_transient(error) is transient
        assert isinstance(translate(error, "insert"), StoreUnavailable) is transient

    def test_a_long_error_is_one_line(self) -> None:
        assert one_line(DatabaseError("Code: 1.\n  DB::Exception:\n" + "x" * 900)).startswith(
            "Code: 1. DB::Exception: x"
        )
        assert len(one_line(DatabaseError("x" * 900))) == 300


class answering:
    """A server that gives every request the same error."""

    def __init__(self, status: int, code: int) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = f"Code: {code}. DB::Exception: no. (NO)".encode()
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.send_response(status)
                self.send_header("X-ClickHouse-Exception-Code", str(code))
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))

    def __enter__(self) -> int:
        self.thread.start()
        return int(self.server.server_address[1])

    def __exit__(self, *exc: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
