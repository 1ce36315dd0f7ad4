"""The SQL port answers as ClickHouse does, and cannot be made to write, read files or reach out."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import clickhouse_connect
import lz4.frame
import pyarrow as pa
import pytest
from clickhouse_connect.driver.exceptions import DatabaseError

from tollspan.processor.errors import ConfigError
from tollspan.processor.sqlfront import Asked, Fault, SqlFront
from tollspan.processor.sqlfront.front import MAX_QUERIES
from tollspan.processor.store import Store, open_store


class Reply:
    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.headers, self.body = response.status, response.headers, response.read()

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def code(self) -> str | None:
        return self.headers.get("X-ClickHouse-Exception-Code")


class Port:
    """Plain HTTP to a front, nothing added."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.host, _, port = address.rpartition(":")
        self.port = int(port)

    def ask(
        self, sql: str | None = None, body: bytes | None = None, headers: dict[str, str] | None = None, **params: str
    ) -> Reply:
        query = {"query": sql, **params} if sql is not None else params
        path = "/?" + urlencode(query) if query else "/"
        return self.raw("GET" if body is None else "POST", path, body, headers)

    def raw(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Reply:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=20)
        try:
            connection.request(method, path, body, headers or {}, encode_chunked=isinstance(body, list))
            return Reply(connection.getresponse())
        finally:
            connection.close()

    def client(self, **options: Any) -> Any:
        return clickhouse_connect.get_client(host=self.host, port=self.port, **options)


@pytest.fixture(scope="module")
def rows(store_directory: Path) -> Iterator[Store]:
    """A store that all tests of the read-only port share: none of them can change it."""
    with open_store(f"chdb://{store_directory}?database=shared") as store:
        store.migrate()
        store.execute(
            "INSERT INTO ledger (span_id, tenant, cost) SELECT toString(number), 'acme', 0.25 FROM numbers(3)"
        )
        yield store
        store.execute("DROP DATABASE shared")


@pytest.fixture(scope="module")
def port(rows: Store) -> Iterator[Port]:
    front = SqlFront(rows, "127.0.0.1:0")
    yield Port(front.start())
    front.stop()


@pytest.fixture
def writable(store: Store) -> Iterator[Port]:
    front = SqlFront(store, "127.0.0.1:0", writable=True)
    yield Port(front.start())
    front.stop()


class TestAsClickHouse:
    def test_what_curl_asks_first(self, port: Port) -> None:
        reply = port.raw("GET", "/?query=SELECT%201")
        assert (reply.status, reply.text, reply.headers["X-ClickHouse-Format"]) == (200, "1\n", "TabSeparated")

    def test_health_checks(self, port: Port) -> None:
        for path in ("/ping", "/replicas_status", "/"):
            assert port.raw("GET", path).text == "Ok.\n"
        assert port.raw("GET", "/play").status == 404

    def test_a_fault_of_ours_is_answered_and_logged(
        self, rows: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        front = SqlFront(rows, "127.0.0.1:0")
        monkeypatch.setattr(front, "_execute", lambda *_: 1 // 0)
        try:
            reply = Port(front.start()).ask("SELECT 1")
        finally:
            front.stop()
        assert (reply.status, reply.headers["X-ClickHouse-Exception-Code"]) == (500, "1002")
        assert "UNKNOWN_EXCEPTION" in reply.text
        assert "ZeroDivisionError" in caplog.text
        assert "Division" not in reply.text

    def test_the_query_may_be_in_the_url_the_body_or_both(self, port: Port) -> None:
        assert port.ask("SELECT 2").text == "2\n"
        assert port.ask(body=b"SELECT 3").text == "3\n"
        assert port.ask("SELECT", body=b"4").text == "4\n"
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        assert port.ask(body=b"SELECT 5", headers=form).text == "5\n", "curl --data says form and means SQL"

    def test_the_format_is_the_clause_or_the_parameter_or_the_header(self, port: Port) -> None:
        assert port.ask("SELECT 1 AS a FORMAT JSONEachRow", default_format="CSV").text == '{"a":1}\n'
        assert port.ask("SELECT 'x'", default_format="CSV").text == '"x"\n'
        reply = port.ask("SELECT 'x'", headers={"X-ClickHouse-Format": "JSONCompactEachRow"})
        assert reply.text == '["x"]\n'
        assert reply.headers["X-ClickHouse-Format"] == "JSONCompactEachRow"
        assert port.ask("SELECT 'a FORMAT CSV'").text == "a FORMAT CSV\n"

    def test_unqualified_tables_are_those_of_the_store_or_of_the_database_asked_for(self, port: Port) -> None:
        assert port.ask("SELECT count() FROM ledger").text == "3\n"
        assert port.ask("SELECT count() FROM one", database="system").text == "1\n"
        assert port.ask("SELECT count() FROM one", headers={"X-ClickHouse-Database": "system"}).text == "1\n"
        reply = port.ask("SELECT 1", database="absent")
        assert (reply.status, reply.code) == (404, "81")

    def test_parameters_and_settings_of_the_url(self, port: Port) -> None:
        assert port.ask("SELECT {x:UInt8} + 1", param_x="4").text == "5\n"
        assert port.ask("SELECT {s:String}", param_s="a\\tb'c").text == "a\\tb\\'c\n"
        assert port.ask("SELECT 1 AS a", default_format="JSONEachRow", output_format_json_quote_64bit_integers="0").text
        assert port.ask("SELECT getSetting('max_threads')", max_threads="3").text == "3\n"

    @pytest.mark.parametrize(
        ("sql", "status", "code", "name"),
        [
            ("SELECT FROM WHERE", 400, "62", "SYNTAX_ERROR"),
            ("SELECT * FROM absent", 404, "60", "UNKNOWN_TABLE"),
            ("SELECT absent FROM ledger", 404, "47", "UNKNOWN_IDENTIFIER"),
            ("SELECT 1; SELECT 2", 400, "62", "SYNTAX_ERROR"),
            ("SELECT throwIf(1)", 500, "395", "FUNCTION_THROW_IF_VALUE_IS_NON_ZERO"),
            ("  ", 400, "62", "SYNTAX_ERROR"),
        ],
    )
    def test_errors_have_the_code_the_text_and_the_status(
        self, port: Port, sql: str, status: int, code: str, name: str
    ) -> None:
        reply = port.ask(sql)
        assert (reply.status, reply.code) == (status, code)
        assert reply.text.startswith(f"Code: {code}. DB::Exception: ")
        assert f"({name})" in reply.text
        assert "formatQuery" not in reply.text

    @pytest.mark.parametrize("coding", ["gzip", "lz4", "zstd"])
    def test_answers_are_compressed_as_asked(self, port: Port, coding: str) -> None:
        sql = "SELECT 'the same' FROM numbers(1000)"
        reply = port.ask(sql, enable_http_compression="1", headers={"Accept-Encoding": coding})
        assert reply.headers["Content-Encoding"] == coding
        assert len(reply.body) < len(port.ask(sql).body)
        plain = pa.CompressedInputStream(pa.BufferReader(reply.body), coding).read()
        assert bytes(plain) == port.ask(sql).body
        assert port.ask(sql, headers={"Accept-Encoding": coding}).headers["Content-Encoding"] is None

    def test_requests_are_decompressed(self, port: Port) -> None:
        assert port.ask(body=gzip.compress(b"SELECT 6"), headers={"Content-Encoding": "gzip"}).text == "6\n"
        assert port.ask(body=lz4.frame.compress(b"SELECT 7"), headers={"Content-Encoding": "lz4"}).text == "7\n"
        assert port.ask(body=b"SELECT 8", headers={"Content-Encoding": "gzip"}).status == 400
        assert port.ask(body=b"SELECT 8", headers={"Content-Encoding": "rot13"}).status == 415

    def test_chunked_requests_are_read(self, port: Port) -> None:
        reply = port.raw("POST", "/", [b"SELECT ", b"9"], {"Transfer-Encoding": "chunked"})
        assert reply.text == "9\n"

    def test_a_connection_serves_several_requests(self, port: Port) -> None:
        connection = http.client.HTTPConnection(port.host, port.port, timeout=20)
        for number in range(3):
            connection.request("GET", f"/?query=SELECT%20{number}")
            assert connection.getresponse().read() == b"%d\n" % number
        connection.close()


class TestClients:
    def test_clickhouse_connect_reads_rows_frames_and_arrow(self, port: Port, rows: Store) -> None:
        client = port.client(database=rows.database)
        assert client.query("SELECT tenant, sum(cost) FROM ledger GROUP BY tenant").result_rows == [
            ("acme", Decimal("0.75"))
        ]
        assert client.query("SELECT {a:Array(String)} AS a", {"a": ["x", "it's\n"]}).first_row == (["x", "it's\n"],)
        assert client.query_arrow("SELECT cost FROM ledger").schema.field("cost").type == pa.decimal128(38, 12)
        assert list(client.query_df("SELECT number AS n FROM numbers(3)")["n"]) == [0, 1, 2]
        assert client.command("SELECT count() FROM ledger") == 3
        assert client.ping()
        client.close()

    def test_an_empty_result_has_its_columns(self, port: Port, rows: Store) -> None:
        client = port.client(database=rows.database)
        result = client.query("SELECT tenant, cost FROM ledger WHERE tenant = {t:String}", {"t": "nobody"})
        assert result.column_names == ("tenant", "cost")
        assert result.result_rows == []
        client.close()

    def test_a_query_too_long_for_a_url_comes_as_a_form(self, port: Port) -> None:
        client = port.client(form_encode_query_params=True)
        assert client.query("SELECT length({x:String})", {"x": "a" * 100_000}).first_row == (100_000,)
        client.close()

    def test_clients_get_clickhouse_errors(self, port: Port) -> None:
        client = port.client()
        with pytest.raises(DatabaseError) as caught:
            client.query("SELECT * FROM absent")
        assert caught.value.code == 60
        client.close()


class TestReadOnly:
    WRITES = (
        "INSERT INTO ledger (tenant) VALUES ('x')",
        "INSERT INTO ledger SELECT * FROM ledger",
        "INSERT INTO FUNCTION file('{outside}', 'CSV', 'a String') SELECT 'x'",
        "DROP TABLE ledger",
        "TRUNCATE TABLE ledger",
        "DETACH TABLE ledger",
        "RENAME TABLE ledger TO lost",
        "CREATE TABLE x (a UInt8) ENGINE = Memory",
        "CREATE TEMPORARY TABLE x (a UInt8)",
        "CREATE DATABASE x",
        "CREATE FUNCTION x AS (a) -> a",
        "CREATE USER x",
        "ALTER TABLE ledger DELETE WHERE 1",
        "DELETE FROM ledger WHERE 1",
        "OPTIMIZE TABLE ledger FINAL",
        "SYSTEM FLUSH LOGS",
        "SYSTEM SHUTDOWN",
        "KILL QUERY WHERE 1",
        "BACKUP TABLE ledger TO File('{outside}')",
        "SELECT 1 INTO OUTFILE '{outside}'",
        "SELECT 1 into /* a comment */ outfile '{outside}' FORMAT CSV",
        "EXPLAIN SELECT 1 INTO OUTFILE '{outside}'",
        "SHOW TABLES INTO OUTFILE '{outside}'",
        "SELECT 1; DROP TABLE ledger",
        "SELECT 1 PARALLEL WITH DROP TABLE ledger",
        "EXECUTE AS x SELECT 1",
    )

    REACHES = (
        "SELECT file('{secret}')",
        "SELECT `file`('{secret}')",
        "SELECT \"file\" /* gap */ ('{secret}')",
        "SELECT arrayMap(x -> file(x), ['{secret}'])",
        "SELECT arrayMap(file, ['{secret}'])",
        "SELECT arrayMap(`file`, ['{secret}'])",
        "SELECT arrayMap(\"fi\\x6ce\", ['{secret}'])",
        "SELECT arrayExists(file, ['{secret}'])",
        "WITH file AS f SELECT arrayMap(f, ['{secret}'])",
        "WITH arrayMap(file, ['{secret}']) AS x SELECT x[1]",
        "SELECT * FROM numbers(1) WHERE arrayMap(file, ['{secret}'])[1] LIKE 'the%'",
        "SHOW COLUMNS FROM ledger WHERE arrayMap(file, ['{secret}'])[1] LIKE 'the%'",
        "EXPLAIN SELECT arrayMap(file, ['{secret}'])",
        "SELECT * FROM viewExplain('EXPLAIN', '', (SELECT arrayMap(file, ['{secret}'])))",
        "SELECT b FROM values('a String, b String ALIAS file(''{secret}'')', ('x'))",
        "SELECT b FROM generateRandom('a UInt8, b String ALIAS file(''{secret}'')') LIMIT 1",
        "SELECT b FROM generateRandom(concat('a UInt8, b String ALIAS fi', 'le(''{secret}'')')) LIMIT 1",
        "SELECT b FROM format('JSONEachRow', 'a UInt8, b String ALIAS file(''{secret}'')', '{{\"a\":1}}')",
        "SELECT COLUMNS('a') APPLY(file) FROM (SELECT '{secret}' AS a)",
        "SELECT * APPLY file FROM (SELECT '{secret}')",
        "SELECT * APPLY(x -> file(x)) FROM (SELECT '{secret}')",
        "WITH file('{secret}') AS x SELECT x",
        "EXPLAIN SELECT file('{secret}')",
        "SELECT * FROM file('{secret}', 'LineAsString')",
        "SELECT * FROM '{secret}'",
        "SELECT * FROM `{secret}`",
        "DESCRIBE TABLE file('{secret}')",
        "SELECT * FROM url('http://127.0.0.1:{listener}/x', 'CSV', 'a String')",
        "SELECT * FROM remote('127.0.0.1:{listener}', 'system', 'one')",
        "SELECT * FROM s3('http://127.0.0.1:{listener}/bucket/key', 'CSV', 'a String')",
        "SELECT * FROM mysql('127.0.0.1:{listener}', 'a', 'b', 'c', 'd')",
        "SELECT * FROM executable('cat {secret}', 'CSV', 'a String')",
        "SELECT * FROM sqlite('{outside}', 't')",
        "SELECT * FROM python(secret)",
        "SELECT * FROM Python(secret)",
        "SELECT * FROM eval('SELECT file(''{secret}'')')",
        "SELECT * FROM view(SELECT file('{secret}'))",
        "SELECT * FROM merge(currentDatabase(), file('{secret}'))",
        "SELECT aiGenerate('x')",
    )

    UNLOCKS = (
        "SET readonly = 0",
        "SET max_execution_time = 0",
        "SELECT 1 SETTINGS readonly = 0",
        "SELECT 1 SETTINGS max_execution_time = 0",
        "SELECT 1 FORMAT Protobuf SETTINGS output_format_schema = '{outside}'",
    )

    @pytest.fixture
    def places(self, tmp_path: Path) -> Iterator[dict[str, Any]]:
        (tmp_path / "secret").write_text("the secret\n")
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            number = listener.getsockname()[1]
            yield {"secret": tmp_path / "secret", "outside": tmp_path / "outside", "listener": number}
            with pytest.raises(BlockingIOError):
                listener.accept()

    @pytest.mark.parametrize("sql", WRITES + REACHES + UNLOCKS)
    def test_nothing_gets_out_of_the_store_or_into_it(
        self, port: Port, rows: Store, places: dict[str, Any], sql: str
    ) -> None:
        text = sql.format(**places)
        for reply in (port.ask(text), port.ask(body=text.encode())):
            assert reply.status >= 400, reply.text
            assert reply.code is not None
            assert b"the secret" not in reply.body
            assert not places["outside"].exists()
        assert rows.rows("SELECT count() AS n FROM ledger") == [{"n": 3}]

    @pytest.mark.parametrize(
        "settings",
        [
            {"readonly": "0"},
            {"readonly": "2"},
            {"allow_ddl": "1"},
            {"dialect": "prql"},
            {"session_id": "s", "readonly": "0"},
            {"http_method": "x"},
        ],
    )
    def test_no_url_parameter_makes_it_writable(self, port: Port, rows: Store, settings: dict[str, str]) -> None:
        assert port.ask("DROP TABLE ledger", **settings).status >= 400
        assert rows.rows("SELECT count() AS n FROM ledger") == [{"n": 3}]

    @pytest.mark.parametrize(
        ("sql", "value"),
        [
            ("SELECT arrayMap({f:Identifier}, ['%s'])", "file"),
            ("SELECT arrayMap({f : Identifier}, ['%s'])", "FILE"),
            ("SELECT arrayMap({f:Identifier}, ['%s'])", "\\x66ile"),
            ("SELECT arrayMap({f:Identifier}, ['%s'])", "`file`"),
            ("SELECT arrayMap({f:Identifier}, ['%s']) SETTINGS param_f = 'file'", "length"),
        ],
    )
    def test_a_parameter_is_no_way_to_name_a_function(
        self, port: Port, places: dict[str, Any], sql: str, value: str
    ) -> None:
        reply = port.ask(sql % places["secret"], param_f=value)
        assert reply.code == "164", reply.text

    def test_parameters_may_name_what_is_in_the_store(self, port: Port) -> None:
        sql = "SELECT max({c:Identifier}) FROM {t:Identifier} WHERE tenant = {who:String}"
        assert port.ask(sql, param_c="tenant", param_t="ledger", param_who="acme").text == "acme\n"
        assert port.ask("SELECT {s:String}", param_s="file").text == "file\n"

    @pytest.mark.parametrize("filtered", ["result", "table"])
    def test_no_setting_holds_sql(self, port: Port, places: dict[str, Any], filtered: str) -> None:
        leak = f"throwIf(1, file('{places['secret']}'))"
        settings = {
            "result": {"additional_result_filter": leak},
            "table": {"additional_table_filters": str({"ledger": leak})},
        }
        reply = port.ask("SELECT count() FROM ledger", **settings[filtered])
        assert reply.code == "164"
        assert "the secret" not in reply.text

    @pytest.mark.parametrize(
        ("sql", "params"),
        [
            ("SELECT query FROM system.processes", {}),
            ("SELECT query FROM `system`.`processes`", {}),
            ("SELECT query FROM processes", {"database": "system"}),
            ("SELECT query FROM {t:Identifier}", {"param_t": "system.processes"}),
            ("SELECT query FROM {d:Identifier}.processes", {"param_d": "system"}),
            ("SELECT query FROM system.{t:Identifier}", {"param_t": "processes"}),
            ("SELECT query FROM merge('system', '^proc')", {}),
            ("SELECT query FROM merge('^proc')", {"database": "system"}),
            ("SELECT query FROM merge(currentDatabase(), '^proc')", {"database": "system"}),
            ("SHOW PROCESSLIST", {}),
            ("SELECT last_error_message FROM system.errors", {}),
            ("SELECT count() FROM system.stack_trace", {}),
        ],
    )
    def test_what_others_ask_is_their_business(self, port: Port, sql: str, params: dict[str, str]) -> None:
        assert port.ask(sql, **params).code == "164"

    def test_a_user_defined_function_is_refused_for_its_body_is_not_checked(self, store: Store) -> None:
        store.execute("CREATE FUNCTION opens AS (path) -> file(path)")
        front = SqlFront(store, "127.0.0.1:0")
        try:
            port = Port(front.start())
            for sql in ("SELECT opens('x')", "SELECT arrayMap(opens, ['x'])"):
                assert port.ask(sql).code == "164"
        finally:
            front.stop()
            store.execute("DROP FUNCTION opens")

    @pytest.mark.parametrize("name", ["output_format_schema", "format_schema", "dialect", "x) , readonly = (0"])
    def test_settings_that_could_name_files_or_break_out_are_refused(
        self, port: Port, tmp_path: Path, name: str
    ) -> None:
        reply = port.ask("SELECT 1 AS a FORMAT CSV", **{name: str(tmp_path / "schema")})
        assert reply.code == "164"
        assert list(tmp_path.iterdir()) == []

    def test_a_quote_in_a_setting_stays_inside_it(self, port: Port) -> None:
        reply = port.ask("SELECT 1", log_comment="a', readonly = 0, log_comment = '")
        assert reply.text == "1\n"

    @pytest.mark.parametrize(
        "sql",
        [
            "SELECT count() FROM numbers(3)",
            "SELECT count() FROM merge(currentDatabase(), '^ledger$')",
            "SELECT * FROM (VALUES (1, 'a'), (2, 'b')) AS t",
            "SELECT 1 AS url, 2 AS input, 3 AS errors",
            "SELECT count() AS processes FROM ledger",
            "SELECT name FROM system.tables WHERE database = currentDatabase()",
            "SELECT 'INTO OUTFILE ''x''', 'file(x)'",
            "SELECT 1 -- file('x')",
            "(SELECT 1) UNION ALL (SELECT 2)",
            "SHOW TABLES",
            "SHOW CREATE TABLE ledger",
            "DESCRIBE TABLE ledger",
            "EXISTS TABLE ledger",
            "EXPLAIN SELECT 1",
            "USE system",
            "SELECT length(replaceRegexpAll('a', 'b', 'c'))",
        ],
    )
    def test_what_reads_the_store_is_answered(self, port: Port, sql: str) -> None:
        reply = port.ask(sql)
        assert reply.status == 200, reply.text

    def test_what_a_request_sets_ends_with_it(self, port: Port) -> None:
        assert port.ask("USE system").status == 200
        assert port.ask("SELECT count() FROM ledger").text == "3\n"
        assert port.ask("SELECT getSetting('max_threads')", max_threads="3").text == "3\n"
        assert port.ask("SELECT getSetting('max_threads') = 3").text == "0\n"

    def test_a_query_has_limits_that_it_cannot_raise(self, port: Port) -> None:
        for asked, given in (("0", "60"), ("7", "7"), ("100000", "60"), ("x", "60")):
            reply = port.ask("SELECT getSetting('max_execution_time')", max_execution_time=asked)
            assert float(reply.text) == float(given)
        reply = port.ask("SELECT number FROM numbers(1000000)", max_result_bytes="1000")
        assert reply.code == "396"


class TestOutsiders:
    def test_other_names_of_this_machine_are_not_answered(self, port: Port) -> None:
        for host in ("attacker.example", "attacker.example:8123", "127.0.0.1.attacker.example"):
            assert port.raw("GET", "/?query=SELECT%201", headers={"Host": host}).status == 403
        for host in ("localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:80"):
            assert port.raw("GET", "/?query=SELECT%201", headers={"Host": host}).status == 200

    def test_web_pages_are_not_answered_and_no_header_invites_them(self, port: Port) -> None:
        for origin in ("https://attacker.example", "null"):
            reply = port.raw("POST", "/", b"SELECT 1", {"Origin": origin})
            assert reply.status == 403
        reply = port.ask("SELECT 1", add_http_cors_header="1")
        assert not any(name.lower().startswith("access-control") for name in reply.headers)

    def test_a_query_id_cannot_add_headers(self, port: Port) -> None:
        reply = port.ask("SELECT 1", query_id="a\r\nX-Evil: 1")
        assert reply.headers["X-Evil"] is None
        assert port.ask("SELECT 1", query_id="mine").headers["X-ClickHouse-Query-Id"] == "mine"

    def test_a_small_body_that_unfolds_into_a_large_one_is_refused(self, port: Port) -> None:
        bomb = gzip.compress(b" " * (64 * 2**20))
        assert port.ask(body=bomb, headers={"Content-Encoding": "gzip"}).status == 413
        assert port.raw("POST", "/", b"", {"Content-Length": str(2**40)}).status == 413

    def test_only_loopback_unless_asked(self, rows: Store) -> None:
        for address in ("0.0.0.0:0", "192.0.2.1:8123", "[::]:0"):
            with pytest.raises(ConfigError, match="open to other machines"):
                SqlFront(rows, address)
        SqlFront(rows, "0.0.0.0:0", insecure_listen=True)

    @pytest.mark.parametrize("address", ["8123", "localhost", "localhost:http", "127.0.0.1:99999", ":1"])
    def test_an_address_that_is_none(self, rows: Store, address: str) -> None:
        with pytest.raises(ConfigError, match="no address to listen on"):
            SqlFront(rows, address)

    def test_a_port_that_is_taken_is_named(self, rows: Store, port: Port) -> None:
        with pytest.raises(ConfigError, match=rf"SQL port {port.address} cannot be used: Address already in use"):
            SqlFront(rows, port.address).start()


class TestUnderLoad:
    def test_one_query_too_many_is_told_so_and_the_rest_are_answered(self, rows: Store) -> None:
        front = SqlFront(rows, "127.0.0.1:0")
        port = Port(front.start())
        answers: list[Reply] = []
        busy = [
            threading.Thread(target=lambda: answers.append(port.ask("SELECT sleep(1.5) FORMAT Null")))
            for _ in range(MAX_QUERIES)
        ]
        for thread in busy:
            thread.start()
        while front._slots._value:  # all places taken
            threading.Event().wait(0.005)
        refused = port.ask("SELECT 1")
        assert (refused.status, refused.code) == (503, "202")
        for thread in busy:
            thread.join()
        assert [reply.status for reply in answers] == [200] * MAX_QUERIES
        front.stop()

    def test_stopping_hangs_up_on_idle_clients_and_frees_the_port(self, rows: Store) -> None:
        front = SqlFront(rows, "127.0.0.1:0")
        address = front.start()
        port = Port(address)
        idle = http.client.HTTPConnection(port.host, port.port, timeout=20)
        idle.request("GET", "/ping")
        assert idle.getresponse().read() == b"Ok.\n"
        front.stop()
        front.stop()
        assert idle.sock is not None
        assert idle.sock.recv(1) == b""
        idle.close()
        again = SqlFront(rows, address)
        assert again.start() == address
        again.stop()


class TestWritable:
    """The test double of a server."""

    def test_a_client_creates_inserts_and_reads(self, writable: Port, store: Store) -> None:
        client = writable.client(database=store.database)
        client.command("CREATE TABLE t (a UInt32, `n.b` Array(String)) ENGINE = MergeTree ORDER BY a")
        client.insert("t", [[1, ["x"]], [2, []]], column_names=["a", "n.b"])
        client.insert_arrow("t", pa.table({"a": pa.array([3], pa.uint32()), "n.b": pa.array([["y", "z"]])}))
        assert client.query("SELECT a, `n.b` FROM t ORDER BY a").result_rows == [(1, ["x"]), (2, []), (3, ["y", "z"])]
        client.command("INSERT INTO t (a) VALUES (4)")
        client.command("INSERT INTO t (a) SELECT 5")
        assert client.command("SELECT sum(a) FROM t") == 15
        client.close()

    def test_inserts_take_parameters(self, writable: Port, store: Store) -> None:
        client = writable.client(database=store.database)
        client.command("CREATE TABLE t (a UInt32, b String) ENGINE = MergeTree ORDER BY a")
        client.command("INSERT INTO t (a, b) SELECT {a:UInt32}, {b:String}", {"a": 1, "b": "it's"})
        client.command("INSERT INTO t (a, b) VALUES ({a:UInt32}, {b:String})", {"a": 2, "b": "x"})
        client.command("INSERT INTO t SELECT * FROM values('a UInt32, b String', (3, 'y'))")
        assert client.query("SELECT a, b FROM t ORDER BY a").result_rows == [(1, "it's"), (2, "x"), (3, "y")]
        client.close()

    def test_a_store_is_migrated_over_the_wire(self, writable: Port, store: Store) -> None:
        with open_store(f"clickhouse://{writable.address}/{store.database}_wire") as wired:
            assert wired.migrate()
            assert wired.migrate() == []
            assert wired.rows("SELECT count() AS n FROM ledger") == [{"n": 0}]
            wired.execute(f"DROP DATABASE {wired.database}")

    def test_inserts_may_be_lines_of_the_body(self, writable: Port, store: Store) -> None:
        assert writable.ask("CREATE TABLE t (a UInt32) ENGINE = MergeTree ORDER BY a", body=b"").status == 200
        reply = writable.ask("INSERT INTO t FORMAT CSV", body=b"1\n2\n")
        assert json.loads(reply.headers["X-ClickHouse-Summary"])["written_rows"] == "2"
        assert writable.ask(body=b"INSERT INTO t FORMAT JSONEachRow\n" + b'{"a":3}').status == 200
        assert writable.ask("INSERT INTO t FORMAT CSV", body=b"not a number").status == 400
        assert store.rows("SELECT sum(a) AS s FROM t") == [{"s": 6}]

    def test_get_does_not_write_even_here(self, writable: Port) -> None:
        assert writable.ask("DROP TABLE ledger").code == "164"

    def test_faults_happen_before_or_after_the_commit(self, store: Store) -> None:
        faults: list[Fault | None] = [Fault(code=242, message="gone"), Fault(drop="before"), Fault(drop="after"), None]
        seen: list[Asked] = []

        def fault(asked: Asked) -> Fault | None:
            seen.append(asked)
            return faults.pop(0)

        store.execute("CREATE TABLE t (a UInt32) ENGINE = MergeTree ORDER BY a")
        front = SqlFront(store, "127.0.0.1:0", writable=True, fault=fault)
        port = Port(front.start())
        refused = port.ask("INSERT INTO t FORMAT CSV", body=b"1\n")
        assert (refused.code, refused.text) == ("242", "Code: 242. DB::Exception: gone (INJECTED)\n")
        for rows in (0, 1):
            with pytest.raises(http.client.RemoteDisconnected):
                port.ask("INSERT INTO t FORMAT CSV", body=b"1\n")
            assert store.rows("SELECT count() AS n FROM t") == [{"n": rows}]
        assert port.ask("INSERT INTO t FORMAT CSV", body=b"1\n").status == 200
        assert [asked.insert for asked in seen] == [True] * 4
        assert seen[0].sql.strip() == "INSERT INTO t FORMAT CSV"
        front.stop()

    def test_a_server_may_be_slow_until_it_is_told_otherwise(self, store: Store) -> None:
        go = threading.Event()
        front = SqlFront(store, "127.0.0.1:0", writable=True, fault=lambda asked: Fault(until=go))
        port = Port(front.start())
        answers: list[str] = []
        waiting = threading.Thread(target=lambda: answers.append(port.ask("SELECT 1").text))
        waiting.start()
        waiting.join(0.2)
        assert answers == []
        go.set()
        waiting.join()
        assert answers == ["1\n"]
        front.stop()
