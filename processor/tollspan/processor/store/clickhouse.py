"""The store: one class over clickhouse_connect, whatever is behind it (embedded chdb or a server).

In: Arrow tables with a token, and read-only SQL. Out: rows in ClickHouse, Arrow tables. It stands at the end of the
line (`write` puts tables into it) and behind the SQL front and every query. Writing and reading use separate clients,
so that a long query does not hold up the line, and a reader cannot write: its client has ``readonly = 1``, which the
engine enforces.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import clickhouse_connect
import pyarrow as pa
from clickhouse_connect.driver.binding import quote_identifier
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError
from clickhouse_connect.driver.httputil import get_pool_manager

from tollspan.processor.errors import ConfigError, StoreError, StoreUnavailable
from tollspan.processor.store import forks, lock
from tollspan.processor.store.faults import REFUSED_LOGIN, code_of, one_line, root_cause, translate
from tollspan.processor.store.location import Embedded, Location, Server

# The client warns about every failed request; we raise an error that says the same.
logging.getLogger("clickhouse_connect").addHandler(logging.NullHandler())

INSERT_SETTINGS: Final[dict[str, str]] = {
    # The reply is to mean that the rows are there, not that they are in a buffer.
    "async_insert": "0",
    # Deduplicate by token. The first name is the one from 26.2 on; both are on by default, and a profile may differ.
    "deduplicate_insert": "enable",
    "insert_deduplicate": "1",
    # Spans of any age come in one batch, and a batch must not be refused for it.
    "max_partitions_per_insert_block": "0",
    # On a cluster too the reply is to mean that the rows are in their shards.
    "distributed_foreground_insert": "1",
    # Lists of structs are the columns of a Nested; servers of today need not be told.
    "input_format_arrow_import_nested": "1",
}
"""Sent with every insert, as far as the server knows the setting."""

_UNKNOWN_DATABASE: Final = 81
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

Connect = Callable[[bool, Mapping[str, str]], Client]
"""Takes whether the session is to be read-only, and settings of its own."""


class Reader:
    """A read-only handle of its own: use it from one thread at a time, close it after.

    Args:
        client: a clickhouse_connect client whose session is read-only.
        database: where its unqualified table names point.
    """

    def __init__(self, client: Client, database: str, on_close: Callable[[], None] | None = None) -> None:
        self._client, self._on_close = client, on_close
        self.database = database

    def query(self, sql: str, parameters: Mapping[str, Any] | None = None) -> pa.Table:
        """Run a SELECT.

        Args:
            sql: without FORMAT; parameters as ``{name:Type}``, bound by the server.
            parameters: their values.

        Returns:
            Its rows; Decimal columns as decimal128/256, instants as ``timestamp[ns, UTC]``.

        Raises:
            StoreUnavailable, StoreError: see `translate`.
        """
        try:
            # Not query_arrow: it sends settings, which a read-only session refuses; the defaults are the same.
            body = self._client.raw_query(sql, dict(parameters or {}), fmt="Arrow")
        except (ClickHouseError, OSError) as error:
            raise translate(error, "query") from error
        return pa.ipc.open_file(pa.py_buffer(body)).read_all()

    def rows(self, sql: str, parameters: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """The rows of `query` as Python values, instants to the microsecond."""
        return as_rows(self.query(sql, parameters))

    def raw(
        self, sql: str, form: str | None, settings: Mapping[str, str], parameters: Mapping[str, Any] | None = None
    ) -> bytes:
        """The answer of a server to a statement, as it comes.

        Args:
            sql: one statement.
            form: ClickHouse format; None where the statement names one.
            settings: limits for this query; an account that may not set any has its own.
            parameters: as in `query`.

        Raises:
            StoreUnavailable, StoreError: see `translate`.
        """
        known = self._client.server_settings
        ours = {name: value for name, value in settings.items() if name in known}
        for name in ours:
            # The client keeps back what is read-only for this account. Our own port takes lower limits all the same,
            # and another server says what it does not take.
            known[name] = known[name]._replace(readonly=0)
        try:
            return bytes(self._client.raw_query(sql, dict(parameters or {}), settings=ours, fmt=form))
        except (ClickHouseError, OSError) as error:
            raise translate(error, "query") from error

    def close(self) -> None:
        """Free the handle."""
        with contextlib.suppress(ClickHouseError):
            self._client.close()
        if self._on_close is not None:
            self._on_close()
            self._on_close = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Store:
    """An open store; made by `open_store`.

    Attributes:
        url: what it is, without a password.
        embedded: whether this process runs the engine itself.
        directory: of an embedded store, else None.
        database: where the tables are.
        cluster: over which they are spread; '' for a single node.

    `insert` and `query` may be called from several threads; each kind is served one call at a time.
    """

    def __init__(self, location: Location, connect: Connect, release: Callable[[], None]) -> None:
        self.url = location.url
        self.embedded = isinstance(location, Embedded)
        self.directory: Path | None = location.directory if isinstance(location, Embedded) else None
        self.engine_path: Path | None = location.engine if isinstance(location, Embedded) else None
        self.database = location.database
        self.cluster = "" if isinstance(location, Embedded) else location.cluster
        self._connect, self._release = connect, release
        self._guard = threading.Lock()
        self._closed = False
        self._writer = connect(False, {})
        self._reader: Reader | None = None
        known = self._writer.server_settings
        self._insert_settings = {name: value for name, value in INSERT_SETTINGS.items() if name in known}

    def migrate(self) -> list[str]:
        """Bring the tables up to date; the names of the migrations that were applied now.

        Raises:
            StoreError: an applied migration differs from the shipped one, or is newer than this program.
        """
        from tollspan.processor.schema import migrate

        return migrate(self)

    def insert(self, table: str, rows: pa.Table, token: str) -> None:
        """Insert rows, synchronously; return when they are in the table.

        Args:
            table: name of a table of the store.
            rows: columns by name, of types that ClickHouse reads from Arrow; absent columns take their default.
            token: the insert's identity. A second insert with the same token into the same table within the table's
                deduplication window changes nothing, whatever its rows are.

        Raises:
            StoreUnavailable: the same call may succeed later; whether the rows are there is not known.
            StoreError: the rows or the table are not as they should be.
        """
        if not rows.num_rows:
            return
        self._guarded()
        from tollspan.processor.schema.tables import INSERTED_AS

        if renamed := INSERTED_AS.get(table):
            rows = rows.rename_columns([renamed.get(name, name) for name in rows.column_names])
        try:
            body = _arrow_file(rows, self._writer.write_compression)
            settings = {**self._insert_settings, "insert_deduplication_token": token}
            if self.directory is not None:
                self._writer.raw_insert(table, rows.column_names, body, settings=settings, fmt="Arrow")
                return
            # Ahead of the rows and not in the URL, of which every character is looked at in Python, several times.
            statement = f"INSERT INTO {table} ({', '.join(map(quote_identifier, rows.column_names))}) FORMAT Arrow\n"
            parts: Any = [statement.encode(), body]
            length = {"Content-Length": str(sum(map(len, parts)))}
            self._writer.raw_insert("", None, parts, settings=settings, fmt="Arrow", transport_settings=length)
        except (ClickHouseError, OSError) as error:
            raise translate(error, f"insert into {table}", insert=True) from error

    def query(self, sql: str, parameters: Mapping[str, Any] | None = None) -> pa.Table:
        """Run a SELECT on the store's own reading handle; see `Reader.query`. Never writes."""
        return self._own_reader().query(sql, parameters)

    def rows(self, sql: str, parameters: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """The rows of `query` as Python values; see `Reader.rows`."""
        return self._own_reader().rows(sql, parameters)

    def execute(self, sql: str, parameters: Mapping[str, Any] | None = None) -> None:
        """Run one statement that changes the store (DDL, maintenance)."""
        self._guarded()
        try:
            self._writer.command(sql, dict(parameters or {}))
        except (ClickHouseError, OSError) as error:
            raise translate(error, "statement") from error

    def reader(self, settings: Mapping[str, str] | None = None) -> Reader:
        """A new read-only handle, independent of the store's other work.

        Args:
            settings: of all its queries, such as limits; an account that may not set them has its own.
        """
        self._guarded()
        return Reader(self._connect(True, settings or {}), self.database)

    def detached_reader(self, settings: Mapping[str, str] | None = None) -> Reader:
        """A `reader` that closes the whole store with itself, for a caller that wants nothing but to read."""
        try:
            return Reader(self._connect(True, settings or {}), self.database, on_close=self.close)
        except BaseException:
            self.close()
            raise

    def ping(self) -> bool:
        """Whether the engine answers."""
        return not self._closed and bool(self._writer.ping())

    def close(self) -> None:
        """Close all handles and free the store for other processes; again is harmless."""
        with self._guard:
            if self._closed:
                return
            self._closed = True
            if self._reader is not None:
                self._reader.close()
            with contextlib.suppress(ClickHouseError):
                self._writer.close()
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _guarded(self) -> None:
        if self._closed:
            raise StoreError(f"Store {self.url} is closed.")

    def _own_reader(self) -> Reader:
        with self._guard:
            self._guarded()
            if self._reader is None:
                self._reader = Reader(self._connect(True, {}), self.database)
            return self._reader


def open_embedded(location: Embedded, create: bool) -> Store:
    """Open an embedded store; see `open_store`."""
    try:
        import chdb  # noqa: F401  (only whether it is there: clickhouse_connect uses it)
    except ImportError as error:
        # Also raised, with another message, where its shared library does not load.
        reason = "is not installed" if isinstance(error, ModuleNotFoundError) else f"does not load: {one_line(error)}"
        raise ConfigError(
            f"An embedded store needs chdb, which {reason}.",
            "Run: pip install 'tollspan[embedded]', or use a server: clickhouse://host:8123/db.",
        ) from None
    if not create and not location.engine.is_dir():
        raise StoreError(f"There is no store at {location.directory}.", "`tollspan serve` makes one; or check --store.")
    if forks.inherited():
        raise StoreError(
            f"Store {location.directory} cannot be opened in a process that was forked from one which had it open.",
            "Open it before any fork or only after, or run `tollspan serve` and use its ports.",
        )
    lock.acquire(location.directory)
    forks.opened()

    def connect(read_only: bool, settings: Mapping[str, str]) -> Client:
        try:
            client = clickhouse_connect.get_client(
                interface="chdb", path=str(location.engine), show_clickhouse_errors="scrub", tz_source="server"
            )
        except (ClickHouseError, RuntimeError, OSError) as error:
            raise StoreError(
                f"Store {location.directory} cannot be opened: {one_line(error)}",
                "Check that the directory is writable and was written by this or an older version.",
            ) from error
        _stay_open_at_exit(client)
        return _enter(client, location, create and not read_only, read_only, settings)

    try:
        return Store(location, connect, lambda: lock.release(location.directory))
    except BaseException:
        lock.release(location.directory)
        raise


def _stay_open_at_exit(client: Client) -> None:
    """Let an embedded client live until `Store.close`, the interpreter's exit included.

    clickhouse_connect closes the engine in an exit hook that runs before a TracerProvider's, which still has spans to
    export and then closes the store itself. There is no public switch; without the attribute the last batches stay in
    the journal for the next start.
    """
    release = getattr(getattr(client, "_backend", None), "_release", None)
    if release is not None:
        release.atexit = False


def open_server(location: Server, create: bool) -> Store:
    """Open a store on a ClickHouse server; see `open_store`."""

    def connect(read_only: bool, settings: Mapping[str, str]) -> Client:
        return _enter(server_client(location), location, create and not read_only, read_only, settings)

    return Store(location, connect, lambda: None)


def _arrow_file(rows: pa.Table, compression: str | None) -> Any:
    """Rows as ``insert_arrow`` of the client would send them, in a third of its time: columns are compressed on this
    thread and not on Arrow's, which costs more than it wins, and lists of one length have their offsets once."""
    options = pa.ipc.IpcWriteOptions(
        compression=compression if compression in ("zstd", "lz4") else None, use_threads=False
    )
    sink = pa.BufferOutputStream()
    rows = _nested(rows)
    # Arrow's file format has one dictionary for each column.
    with pa.ipc.new_file(sink, rows.schema, options=options) as writer:
        writer.write(rows.unify_dictionaries())
    return sink.getvalue()


def _nested(rows: pa.Table) -> pa.Table:
    """Rows with lists ``a.b`` and ``a.c``, whose lengths are the same, as one list ``a`` of structs.

    Such are the columns of a Nested, and offsets hardly compress: written a dozen times they were four fifths of what
    was sent.
    """
    families: dict[str, list[str]] = {}
    for field in rows.schema:
        outer, dot, _ = field.name.partition(".")
        if dot:
            families.setdefault(outer, []).append(field.name)
    for outer, names in families.items():
        columns = [rows[name] for name in names]
        if not all(each.num_chunks == 1 and _is_flat_list(each) for each in columns):
            continue
        first, *others = lists = [each.chunk(0) for each in columns]
        if first.offset or not all(_as_long(first, each) for each in others):
            continue
        structs = pa.StructArray.from_arrays(
            [each.values for each in lists], names=[name.removeprefix(f"{outer}.") for name in names]
        )
        values = pa.Array.from_buffers(pa.list_(structs.type), len(first), first.buffers()[:2], children=[structs])
        rows = rows.drop_columns(names).append_column(outer, values)
    return rows


def _is_flat_list(column: pa.ChunkedArray) -> bool:
    return bool(
        pa.types.is_list(column.type) and not pa.types.is_nested(column.type.value_type) and not column.null_count
    )


def _as_long(first: Any, other: Any) -> bool:
    """Whether two list arrays without nulls have the same offsets and as many values; the first is no slice."""
    mine, theirs = first.buffers()[1], other.buffers()[1]
    if other.offset or mine is None or theirs is None or len(first.values) != len(other.values):
        return False
    return bool(mine.address == theirs.address or first.offsets.equals(other.offsets))


def server_client(location: Server) -> Client:
    """A client of a server, before a database is chosen.

    Raises:
        StoreUnavailable: no answer.
        StoreError: the login is refused, or TLS or the answer is not what it should be.
    """
    options: dict[str, Any] = dict(location.options)
    if _loopback(location.host):
        # A proxy from the environment is for the world outside, not for this machine.
        # With a pool of our own, what the URL says of TLS has to be told to the pool.
        given: dict[str, Any] = {
            name: options[name] for name in ("ca_cert", "client_cert", "client_cert_key") if name in options
        }
        verify = options.get("verify", "true").lower() not in ("false", "0", "no", "off")
        if verify and (name := options.get("server_host_name")):
            given |= {"assert_hostname": name, "server_hostname": name}
        options["pool_mgr"] = get_pool_manager(verify=verify, **given)
    try:
        return clickhouse_connect.get_client(
            host=location.host,
            port=location.port,
            username=location.user,
            password=location.password or "",
            interface="https" if location.secure else "http",
            show_clickhouse_errors="scrub",
            # A session allows one query at a time, and nothing here needs what it keeps.
            autogenerate_session_id=False,
            tz_source="server",
            **options,
        )
    except (ClickHouseError, OSError, ValueError) as error:
        code = code_of(error)
        if code in REFUSED_LOGIN:
            raise StoreError(
                f"ClickHouse at {location.address} refuses user {location.user or 'default'!r}.",
                "Check user and password in the store URL.",
            ) from error
        if code is not None:
            raise translate(error, f"connect to {location.address}") from error
        raise StoreUnavailable(
            f"ClickHouse at {location.address} does not answer: {root_cause(error)}.",
            "Check host and port (HTTP interface, 8123 or 8443 with ?secure=true) and that it runs.",
        ) from error


def _enter(client: Client, location: Location, create: bool, read_only: bool, settings: Mapping[str, str]) -> Client:
    """Make the client's session one on the store's database, with settings, and read-only if asked."""
    try:
        asked = "SELECT count() FROM system.databases WHERE name = {name:String}", {"name": location.database}
        exists = client.command(*asked)
        if create and not exists:
            # Only where it is missing: an account that only writes may not make databases.
            on = f" ON CLUSTER {location.cluster}" if isinstance(location, Server) and location.cluster else ""
            client.command(f"CREATE DATABASE IF NOT EXISTS `{location.database}`{on}")
            exists = client.command(*asked)
        if not exists:
            raise StoreError(
                f"There is no database {location.database!r} in {location.url}.", "`tollspan serve` makes it."
            )
        client.database = location.database
        for name, value in settings.items():
            if (known := client.server_settings.get(name)) is not None and not known.readonly:
                client.set_client_setting(name, value)
        if read_only:
            setting = client.server_settings.get("readonly")
            # An account that is read-only already cannot be told so again.
            if setting is None or (setting.value == "0" and not setting.readonly):
                client.set_client_setting("readonly", 1)
    except StoreError:
        client.close()
        raise
    except (ClickHouseError, OSError) as error:
        client.close()
        raise translate(error, f"open {location.url}") from error
    return client


def _loopback(host: str) -> bool:
    return host == "localhost" or host == "::1" or host.startswith("127.")


def as_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Rows of a table as Python values: Decimal, datetime (UTC, microseconds), str, int, None."""
    columns: dict[str, list[Any]] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_timestamp(column.type):
            # Python's datetime has no nanoseconds, and pyarrow would need pandas for them.
            micros = column.cast(pa.timestamp("us", column.type.tz), safe=False).cast(pa.int64())
            columns[name] = [None if v is None else _EPOCH + timedelta(microseconds=v) for v in micros.to_pylist()]
        else:
            columns[name] = column.to_pylist()
    names = list(columns)
    return [dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)]
