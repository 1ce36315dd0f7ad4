"""ClickHouse's HTTP interface on an embedded store, read-only: the way in while a service owns the store.

In: requests of any ClickHouse client (``tollspan query``, curl, Grafana, clickhouse_connect). Out: the engine's own
answers. Each request has an engine session of its own, made read-only before the client's text reaches it; what a
session keeps (USE, SET, temporary tables) is therefore gone with the request, whatever ``session_id`` says.

A port beyond loopback needs TLS and a login (`senders.Readers`), or the word of who runs it that its network is
trusted. With ``writable=True`` the same front is a small ClickHouse server for tests: it takes inserts and DDL, and a
fault hook makes it refuse, wait, or fall silent after the commit.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from typing import Any, Final

from tollspan.processor.addresses import is_loopback, parse_address, require_loopback, shown
from tollspan.processor.errors import ConfigError, StoreError
from tollspan.processor.senders import Readers
from tollspan.processor.sqlfront import statement as sql
from tollspan.processor.sqlfront.statement import Refused
from tollspan.processor.sqlfront.wire import Answer, Handler, Request
from tollspan.processor.store import LOCAL_USER, Store
from tollspan.processor.tls import Tls

log = logging.getLogger(__name__)

LIMITS: Final[dict[str, int]] = {
    "max_execution_time": 60,
    "max_result_bytes": 256 * 2**20,
    "max_memory_usage": 2 * 2**30,
}
"""Seconds and bytes that one query of a read-only port may take. A client may ask for less."""

_FIXED: Final = {"result_overflow_mode": "throw", "allow_introspection_functions": "0"}

MAX_QUERIES: Final = 8
"""Queries that run at once; one more is answered with TOO_MANY_SIMULTANEOUS_QUERIES."""

MAX_CONNECTIONS: Final = 128
"""Connections at once; one more is hung up on."""

READ_S: Final = 75.0
"""Seconds for a request to come whole, counted from the answer to the one before it."""

HANDSHAKE_S: Final = 10.0

MAX_QUERY_BYTES: Final = 2**20
"""Length of a statement; the engine's own limit is lower, and says so better where it is reached first."""

_TRANSPORT: Final = frozenset(
    {
        "query",
        "database",
        "default_format",
        "user",
        "password",
        "quota_key",
        "role",
        "session_id",
        "session_timeout",
        "session_check",
        "query_id",
        "stacktrace",
        "wait_end_of_query",
        "buffer_size",
        "compress",
        "decompress",
        "enable_http_compression",
        "http_zlib_compression_level",
        "add_http_cors_header",
        "send_progress_in_http_headers",
        "http_headers_progress_interval_ms",
        "client_protocol_version",
        "cancel_http_readonly_queries_on_client_close",
        "readonly",
    }
)
"""URL parameters that are not settings of the query, or that the port decides itself."""

_ALLOWED_SETTING: Final = re.compile(
    r"max_\w+|limit|offset|extremes|final|session_timezone|join_\w+|any_join_\w+|cast_\w+|optimize_\w+"
    r"|group_by_\w+|distinct_overflow_mode|(?:read|timeout|sort)_overflow_mode|totals_\w+|prefer_\w+|describe_\w+"
    r"|date_time_(?:input|output)_format|log_comment|priority|use_\w+"
    r"|aggregate_functions_null_for_empty|transform_null_in|data_type_default_nullable|union_default_mode"
    r"|output_format_(?!schema$)\w+|format_csv_\w+|format_tsv_\w+|input_format_null_as_default"
)
"""Settings that a client of a read-only port may send.

Others may name files (``output_format_schema`` writes one) or hold SQL that nobody checks (``additional_*_filter``).
"""

_SETTING_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_INSERT: Final = re.compile(r"\s*INSERT\s+INTO\b", re.IGNORECASE)
_INSERT_FORMAT: Final = re.compile(
    rb"\s*(INSERT\s+INTO\b(?:(?!\b(?:SELECT|WITH)\b).)*?)\s+(?:FORMAT\s+(\w+)[ \t]*(?:\r?\n|;|\Z)|(VALUES)\s*)",
    re.IGNORECASE | re.DOTALL,
)
"""An insert whose rows follow it; one that selects them is a statement like any other."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What a test makes of a request.

    Attributes:
        code: answer with this ClickHouse error instead of executing; 0 for none.
        message: its text.
        until: wait for this event (or the front's stop) before anything else.
        drop: close the connection without an answer: ``before`` or ``after`` the statement was executed.
    """

    code: int = 0
    message: str = "injected fault"
    until: threading.Event | None = None
    drop: str = ""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a fault hook decides by.

    Attributes:
        sql: the statement's text; of an insert, without its data.
        insert: whether it is one.
        params: URL parameters, settings such as ``insert_deduplication_token`` among them.
    """

    sql: str
    insert: bool
    params: dict[str, str]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(
        self, family: socket.AddressFamily, address: tuple[str, int], handler: type[Handler], tls: Tls | None
    ) -> None:
        self.address_family = family
        self.connections: set[socket.socket] = set()
        self._tls, self._context, self._version = tls, tls.context(ask_clients=False) if tls else None, 0
        self._waiting: dict[socket.socket, float] = {}
        super().__init__(address, handler)

    def wait(self, connection: socket.socket) -> None:
        """A request is waited for on this connection, for `READ_S` at the most."""
        self._waiting[connection] = time.monotonic()

    def read(self, connection: socket.socket) -> None:
        """It has come whole."""
        self._waiting.pop(connection, None)

    def service_actions(self) -> None:
        """Hang up on clients who send a byte now and then; called ten times a second."""
        too_long = time.monotonic() - READ_S
        for connection in [each for each, since in list(self._waiting.items()) if since < too_long]:
            self.read(connection)
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Remember the connection, so that stopping can end an idle one."""
        if len(self.connections) >= MAX_CONNECTIONS:
            self.shutdown_request(request)
            return
        self.connections.add(request)
        self.wait(request)
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection, on a thread of its own, which also shakes hands."""
        if self._tls is not None:
            try:
                request = self._secured(request)
            except OSError as error:
                log.debug("no TLS with %s: %s", client_address, error)
                self.shutdown_request(request)
                return
        super().process_request_thread(request, client_address)

    def _secured(self, plain: Any) -> Any:
        """The connection under TLS, with the certificate of now.

        Raises:
            OSError: the client speaks no TLS, or wants another.
        """
        assert self._tls is not None
        self._tls.reload()
        if self._tls.version != self._version:
            self._version, self._context = self._tls.version, self._tls.context(ask_clients=False)
        assert self._context is not None
        plain.settimeout(HANDSHAKE_S)
        secure = self._context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
        # From here on the plain one is an empty shell.
        self.read(plain)
        self.connections.discard(plain)
        self.connections.add(secure)
        try:
            secure.do_handshake()
        except BaseException:
            self.shutdown_request(secure)
            raise
        self.wait(secure)
        return secure

    def shutdown_request(self, request: Any) -> None:
        """Forget it again."""
        self.connections.discard(request)
        self.read(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news; anything else is a fault of ours."""
        log.debug("connection from %s ended", client_address, exc_info=True)


class SqlFront:
    """The SQL port of an embedded store.

    Args:
        store: an open embedded store; the front opens sessions of its own beside it.
        address: ``host:port``; port 0 for any free one.
        writable: take inserts and DDL too. For tests.
        tls: certificate; None for no encryption. Client certificates are not asked for: readers log in.
        readers: who may ask; None: everybody who can connect.
        local_key: password of `LOCAL_USER` where there are readers: the store's owner need not be one of them.
        insecure_listen: allow an address beyond loopback, although there is no TLS or no login.
        fault: asked before each statement what is to go wrong; for tests.
        metrics: text that ``/metrics`` answers with; None for no such page.

    Raises:
        ConfigError: the address cannot be read, or is not loopback without TLS and readers.
        StoreError: the store is not embedded.
    """

    def __init__(
        self,
        store: Store,
        address: str = "127.0.0.1:8123",
        writable: bool = False,
        tls: Tls | None = None,
        readers: Readers | None = None,
        local_key: str = "",
        insecure_listen: bool = False,
        fault: Callable[[Asked], Fault | None] | None = None,
        metrics: Callable[[], str] | None = None,
    ) -> None:
        if store.engine_path is None:
            raise StoreError(f"Store {store.url} is a server and has its own SQL port.")
        self._path, self._database = str(store.engine_path), store.database
        self._host, self._port = parse_address(address, "127.0.0.1:8123")
        self._loopback = is_loopback(self._host)
        if not insecure_listen and (tls is None or readers is None):
            require_loopback(
                address,
                self._host,
                lacks="connections are not encrypted" if tls is None else "everybody there may ask it",
                needs="give --tls-cert and --tls-key, and --readers" if tls is None else "give --readers",
            )
        self._tls, self._readers, self._local_key = tls, readers, local_key
        self._writable, self._fault, self._metrics = writable, fault, metrics
        self._slots = threading.BoundedSemaphore(MAX_QUERIES)
        self._idle = threading.Condition()
        self._running = 0
        self._stopping = threading.Event()
        self._outside = sql.Outside()
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> str:
        """Listen; returns the bound ``host:port``.

        Raises:
            ConfigError: the port is taken, or the address is not this machine's.
        """
        self._outside, zone = self._facts()
        handler = type(
            "FrontHandler",
            (Handler,),
            {
                "answer": staticmethod(self._answer),
                "admits": staticmethod(self._admits) if self._readers is not None else None,
                "metrics": staticmethod(self._metrics) if self._metrics is not None else None,
                "allowed_hosts": self._hosts() if self._loopback else None,
                "max_body": (2**30 if self._writable else 16 * 2**20),
                "server_name": "tollspan",
                "timezone": zone,
            },
        )
        try:
            family, _, _, _, bind = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)[0]
            self._server = _Server(family, (str(bind[0]), int(bind[1])), handler, self._tls)
        except OSError as error:
            raise ConfigError(
                f"SQL port {shown(self._host, self._port)} cannot be used: {error.strerror or error}.",
                "Choose another with --sql HOST:PORT, or --sql off.",
            ) from None
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="tollspan-sql", daemon=True
        )
        self._thread.start()
        port = self._server.server_address[1]
        return shown(self._host, port)

    def stop(self, timeout_s: float = 5.0) -> None:
        """Stop listening, let running queries end for so many seconds, then hang up; again is harmless."""
        server, self._server = self._server, None
        if server is None:
            return
        self._stopping.set()
        server.shutdown()
        server.server_close()
        with self._idle:
            self._idle.wait_for(lambda: self._running == 0, timeout_s)
        for connection in list(server.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        if self._thread is not None:
            self._thread.join()

    def ask(self, text: str, form: str, given: Mapping[str, str] | None = None) -> bytes:
        """Answer a statement of this process, by the same rules and limits, without a port.

        Args:
            text: one statement that reads.
            form: ClickHouse format of the answer, where the statement names none.
            given: settings, and parameters as ``param_<name>``.

        Raises:
            StoreError: it is refused, or the engine cannot answer it.
        """
        if not self._outside.functions:
            self._outside, _ = self._facts()
        request = Request("POST", {**(given or {}), "default_format": form}, {}, b"")
        try:
            return self._execute(request, text.encode(), insert=False).body
        except Refused as error:
            raise StoreError(f"Store: query failed: {error}") from error

    def _admits(self, user: str, secret: str) -> bool:
        assert self._readers is not None
        if user == LOCAL_USER:
            return bool(self._local_key) and hmac.compare_digest(secret.encode(), self._local_key.encode())
        return self._readers.admits(user, secret)

    def _answer(self, request: Request) -> Answer:
        with self._idle:
            self._running += 1
        try:
            return self._faulty(request)
        finally:
            with self._idle:
                self._running -= 1
                self._idle.notify_all()

    def _faulty(self, request: Request) -> Answer:
        text = request.params.get("query", "").encode()
        whole = text + b"\n" + request.body if text and request.body else text or request.body
        head = whole[: 2**18].decode("utf-8", "replace")
        insert = _INSERT.match(head) is not None
        fault = None
        if self._fault is not None:
            match = _INSERT_FORMAT.match(whole) if insert else None
            shown = whole[: match.end()].decode("utf-8", "replace") if match else head
            fault = self._fault(Asked(shown, insert, dict(request.params)))
        if fault is not None:
            if fault.until is not None:
                while not fault.until.wait(0.05) and not self._stopping.is_set():
                    pass
            if fault.drop == "before":
                return Answer(drop=True)
            if fault.code:
                raise Refused(fault.code, "INJECTED", fault.message)
        if not self._slots.acquire(blocking=False):
            raise Refused(202, "TOO_MANY_SIMULTANEOUS_QUERIES", f"Too many simultaneous queries: {MAX_QUERIES} run.")
        try:
            answer = self._execute(request, whole, insert)
        finally:
            self._slots.release()
        if fault is not None and fault.drop == "after":
            return Answer(drop=True)
        return answer

    def _execute(self, request: Request, whole: bytes, insert: bool) -> Answer:
        if request.params.get("compress") == "1" or request.params.get("decompress") == "1":
            raise Refused(
                48, "NOT_IMPLEMENTED", "ClickHouse's block compression is not supported: use Accept-Encoding."
            )
        writable = self._writable and request.method == "POST"
        values = {name[6:]: value for name, value in request.params.items() if name.startswith("param_")}
        database = request.params.get("database") or request.headers.get("x-clickhouse-database") or self._database
        handle = _connect(self._path)
        try:
            self._prepare(handle, request, writable, database)
            if insert and writable:
                return _insert(handle, whole, values)
            if len(whole) > MAX_QUERY_BYTES:
                raise Refused(62, "SYNTAX_ERROR", f"Syntax error: the query is longer than {MAX_QUERY_BYTES} bytes.")
            try:
                text = whole.decode()
            except UnicodeDecodeError:
                raise Refused(62, "SYNTAX_ERROR", "Syntax error: the query is not UTF-8.") from None
            asked = sql.parse(handle, text)
            if not writable:
                sql.check_readable(asked, self._outside, values, database)
            form = asked.format or request.params.get("default_format") or request.headers.get("x-clickhouse-format")
            form = form or "TabSeparated"
            result = handle.query(asked.text, form, params=values)
            body = result.bytes() or b""
            if not body and form == "Native" and asked.kind in ("SELECT", "WITH", "("):
                body = _empty_block(handle, asked, values)
            summary = {"read_rows": str(result.rows_read()), "read_bytes": str(result.bytes_read())}
            return Answer(body, form if asked.answers else None, summary)
        except RuntimeError as error:
            raise sql.from_engine(error) from None
        finally:
            handle.close()

    def _prepare(self, handle: Any, request: Request, writable: bool, database: str) -> None:
        handle.query(f"USE {_quote(database, '`')}", "TabSeparated")
        settings = {
            name: value
            for name, value in request.params.items()
            if name not in _TRANSPORT and not name.startswith("param_")
        }
        for name in settings:
            allowed = _SETTING_NAME if writable else _ALLOWED_SETTING
            if not allowed.fullmatch(name):
                raise Refused(164, "READONLY", f"Cannot modify '{name[:100]}' setting in readonly mode.")
        if not writable:
            for name, most in LIMITS.items():
                given = settings.get(name, "")
                settings[name] = str(min(int(given), most) if given.isdecimal() and int(given) else most)
            settings.update(_FIXED)
            settings["readonly"] = "1"
        if settings:
            changes = ", ".join(f"{name} = {_quote(value, chr(39))}" for name, value in settings.items())
            handle.query(f"SET {changes}", "TabSeparated")

    def _facts(self) -> tuple[sql.Outside, str]:
        handle = _connect(self._path)
        try:
            zone = handle.query("SELECT timezone()", "TabSeparated").bytes().decode().strip()
            return sql.outside_functions(handle), zone
        finally:
            handle.close()

    def _hosts(self) -> frozenset[str]:
        name = f"[{self._host}]" if ":" in self._host else self._host.lower()
        return frozenset({"localhost", "127.0.0.1", "[::1]", name})


def _connect(path: str) -> Any:
    # The engine below clickhouse_connect: a server passes formats and errors on as they are, a client reads them.
    import chdb

    return chdb.connect(path)


def _insert(handle: Any, whole: bytes, values: dict[str, str]) -> Answer:
    match = _INSERT_FORMAT.match(whole)
    # Rows that are sent by themselves cannot name parameters; those of VALUES can.
    if match is None or (values and match[3]):
        result = handle.query(whole.decode(), "TabSeparated", params=values)
        return Answer(summary={"written_rows": str(result.rows_read())})
    inserter = handle.send_insert(match[1].decode(), match[2].decode() if match[2] else "Values")
    try:
        inserter.append(whole[match.end() :])
        written = inserter.finish()
    except BaseException:
        inserter.cancel()
        raise
    return Answer(summary={"written_rows": str(written.rows_written), "written_bytes": str(written.bytes_written)})


def _empty_block(handle: Any, asked: sql.Statement, values: dict[str, str]) -> bytes:
    """The header that a server sends for a result without rows, where chdb sends nothing: names and types, 0 rows."""
    described = handle.query(f"DESCRIBE TABLE ({asked.body})", "TSVRaw", params=values).bytes().decode()
    columns = [line.split("\t")[:2] for line in described.splitlines()]
    block = _varint(len(columns)) + _varint(0)
    for name, kind in columns:
        block += _varint(len(name.encode())) + name.encode() + _varint(len(kind.encode())) + kind.encode()
    return block


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _quote(text: str, mark: str) -> str:
    return mark + text.replace("\\", "\\\\").replace(mark, "\\" + mark) + mark
