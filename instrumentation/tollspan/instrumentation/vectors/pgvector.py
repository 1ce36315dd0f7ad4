"""pgvector: nearest neighbours in PostgreSQL, through psycopg, psycopg2 and asyncpg, and what stands on them.

In: statements that a program runs; `statements` says which of them ask for neighbours, and all others pass. Out: spans,
see `tollspan.instrumentation.vectors`; the collection is the table. SQLAlchemy, LangChain and the like run theirs
through one of these drivers, so each is counted once. A statement with many sets of parameters is as many queries. Rows
are told where the driver has them when the statement has run: not of cursors on the server's side. Bytes are not told.

psycopg2's cursors are of C and cannot be wrapped: a connection that has no factory of its own gets one that makes
cursors of a subclass, which says that it is the plain class. psycopg2 has to be instrumented before it connects, and a
program's own class of cursors, other than those of ``psycopg2.extras``, is not seen.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Iterator
from importlib import import_module
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.instrumentation.dependencies import get_dependency_conflicts

from tollspan.instrumentation.calls import Call, CallInstrumentor, Opening, WrapPoint, wrap
from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.vectors import LAYER, Asked, answered, apart, query
from tollspan.instrumentation.vectors.statements import nearest
from tollspan.instrumentation.wrapping import Patches

PROVIDER: Final = "pgvector"

_CONNECT: Final = guard("pgvector.connect")
_ROWS: Final = guard("pgvector.rows")


class Ran(Asked):
    """State of a statement that was run through a cursor.

    Attributes:
        cursor: it was run through; None where the answer is what the call returns.
    """

    __slots__ = ("cursor",)

    def __init__(self, queries: int | None, cursor: Any) -> None:
        super().__init__(queries)
        self.cursor = cursor


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], position: int, name: str) -> Any:
    return args[position] if len(args) > position else kwargs.get(name)


def _asked(text: Any, parameters: Any, host: Any, *, many: bool = False, cursor: Any = None) -> Opening | None:
    """The opening of a statement; None where it asks for no neighbours.

    Args:
        text: of the statement; what is none is not read.
        parameters: of it; of one that runs many times the sequence of them.
        host: of the database, as the driver tells it.
    """
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    if not isinstance(text, str):
        return None
    queries: int | None = 1
    if many:
        # What can be read once only is the driver's to read.
        queries, parameters = (len(parameters), parameters[:1]) if isinstance(parameters, (list, tuple)) else (None, ())
        parameters = parameters[0] if parameters else None
    found = nearest(text, parameters)
    if found is None:
        return None
    # A path is a socket on this machine.
    server = host() if callable(host) else host
    opening = query(PROVIDER, found.table, found.top_k, server=None if str(server).startswith("/") else server)
    return opening._replace(state=Ran(queries, cursor))


# -- psycopg and psycopg2 ----------------------------------------------------------------------------------------------


def _statement(many: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening | None:
    """``execute(self, query, params=None, ...)``, ``executemany(self, query, params_seq, ...)``"""
    cursor = args[0]
    asked = _argument(args, kwargs, 1, "query")
    if not isinstance(asked, (str, bytes)) and hasattr(asked, "as_string"):
        asked = asked.as_string(cursor)  # of psycopg.sql
    parameters = args[2] if len(args) > 2 else _given(kwargs)
    return _asked(asked, parameters, lambda: _host(cursor), many=many, cursor=cursor)


def _given(kwargs: dict[str, Any]) -> Any:
    for name in ("params", "params_seq", "vars", "vars_list"):
        if name in kwargs:
            return kwargs[name]
    return None


def _host(cursor: Any) -> Any:
    return cursor.connection.info.host


def _ran(call: Call, result: Any) -> None:
    """The cursor knows how many rows it got."""
    asked: Ran = call.state
    cursor, asked.cursor = asked.cursor, None
    rows = cursor.rowcount if cursor.description is not None else None
    answered(call, rows if type(rows) is int and rows >= 0 else None)


def _streamed(call: Call, rows: Any) -> Any:
    """Rows that come one by one; the span lasts until the last of them or until nobody wants more."""
    if hasattr(rows, "__anext__"):
        return _rows_async(call, rows)
    return _rows(call, rows)


def _rows(call: Call, rows: Any) -> Iterator[Any]:
    number = 0
    try:
        for row in rows:
            number += 1
            yield row
    except BaseException as error:
        _stopped(call, error)
        raise
    finally:
        rows.close()
        _ended(call, number)


async def _rows_async(call: Call, rows: Any) -> AsyncIterator[Any]:
    number = 0
    try:
        async for row in rows:
            number += 1
            yield row
    except BaseException as error:
        _stopped(call, error)
        raise
    finally:
        await rows.aclose()
        _ended(call, number)


def _stopped(call: Call, error: BaseException) -> None:
    if not isinstance(error, GeneratorExit):
        call.note_error(error)


def _ended(call: Call, number: int) -> None:
    if call.recording:
        with _ROWS:
            answered(call, number)
    call.end()


def _psycopg(target: str, asynchronous: bool, many: bool = False) -> WrapPoint:
    return WrapPoint(
        target=target,
        request=functools.partial(_statement, many),
        response=_ran,
        asynchronous=asynchronous,
        apart=apart,
        layer=LAYER,
    )


def _stream(target: str) -> WrapPoint:
    return WrapPoint(
        target=target, request=functools.partial(_statement, False), outlives=_streamed, apart=apart, layer=LAYER
    )


_PSYCOPG: Final = (
    ("psycopg.cursor:Cursor", False),
    ("psycopg.cursor_async:AsyncCursor", True),
    ("psycopg._server_cursor:ServerCursor", False),
    ("psycopg._server_cursor_async:AsyncServerCursor", True),
    ("psycopg.server_cursor:ServerCursor", False),
    ("psycopg.server_cursor:AsyncServerCursor", True),
)
"""The last two where the two before them were until 3.3."""
_EXTRAS: Final = ("DictCursor", "RealDictCursor", "NamedTupleCursor", "LoggingCursor")
"""Cursors of psycopg2 that are written in Python."""

_METHODS: Final = (("execute", False), ("executemany", True))


def _connect(patches: Patches, tracer: trace.Tracer, original: Callable[..., Any]) -> Callable[..., Any]:
    """psycopg2's ``connect``, whose plain connections make cursors that are seen."""

    @functools.wraps(original)
    def connect(*args: Any, **kwargs: Any) -> Any:
        connection = original(*args, **kwargs)
        if patches.active:
            with _CONNECT:
                extensions = import_module("psycopg2.extensions")
                # A class of connections of the program's own may decide on its cursors itself.
                if type(connection) is extensions.connection and connection.cursor_factory is None:
                    connection.cursor_factory = seen()
        return connection

    @functools.cache
    def seen() -> type:
        plain = import_module("psycopg2.extensions").cursor
        methods = {
            name: wrap(_psycopg("", False, many), tracer, patches, getattr(plain, name)) for name, many in _METHODS
        }
        namespace = {"__doc__": plain.__doc__, "__module__": plain.__module__, "__slots__": (), **methods}
        namespace["__class__"] = property(lambda self: plain)
        return type(plain.__name__, (plain,), namespace)

    return connect


# -- asyncpg -----------------------------------------------------------------------------------------------------------


def _of_connection(many: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening | None:
    """``fetch(self, query, *args, timeout=None, ...)``, ``executemany(self, command, args, ...)``"""
    text = args[1] if len(args) > 1 else kwargs.get("query", kwargs.get("command"))
    parameters = _argument(args, kwargs, 2, "args") if many else args[2:]
    return _asked(text, parameters, lambda: _address(args[0]), many=many)


def _of_prepared(many: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening | None:
    """``fetch(self, *args, timeout=None)``, ``executemany(self, args, ...)`` of a statement that was prepared."""
    statement = args[0]
    parameters = _argument(args, kwargs, 1, "args") if many else args[1:]
    return _asked(statement._query, parameters, lambda: _address(statement._connection), many=many)


def _of_cursor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening | None:
    """The first page of a cursor, which holds its statement."""
    cursor = args[0]
    return _asked(cursor._query, cursor._args, lambda: _address(cursor._connection))


def _address(connection: Any) -> Any:
    address = getattr(connection, "_addr", None)
    return address[0] if isinstance(address, tuple) else None  # a path stands alone


def _fetched(call: Call, result: Any) -> None:
    """A list of records, or of those for each set of parameters; a record; or the server's word: ``SELECT 5``."""
    if isinstance(result, list):
        answered(call, len(result))
    elif isinstance(result, str):
        number = result.rpartition(" ")[2]
        answered(call, int(number) if number.isdigit() else None)
    else:
        answered(call, None)


def _row(call: Call, result: Any) -> None:
    answered(call, 0 if result is None else 1)


def _unknown(call: Call, result: Any) -> None:
    answered(call, None)


_ANSWERS: Final[tuple[tuple[str, Callable[[Call, Any], None], bool], ...]] = (
    ("fetch", _fetched, False),
    ("fetchrow", _row, False),
    ("fetchval", _unknown, False),
    ("execute", _fetched, False),
    ("fetchmany", _fetched, True),
    ("executemany", _unknown, True),
)
"""Method of a connection of asyncpg, what reads its answer, whether it takes many sets of parameters. A prepared
statement has all but ``execute``."""


def _asyncpg(target: str, request: Any, response: Any) -> WrapPoint:
    return WrapPoint(
        target=f"asyncpg.{target}", request=request, response=response, asynchronous=True, apart=apart, layer=LAYER
    )


class PgVectorInstrumentor(CallInstrumentor):
    """Spans for pgvector. Imports no driver: it waits until the program does."""

    scope = __name__
    requires = ("psycopg >= 3.1", "psycopg2 >= 2.9", "asyncpg >= 0.29")
    points = (
        *(
            _psycopg(f"{cursor}.{method}", asynchronous, many)
            for cursor, asynchronous in _PSYCOPG
            for method, many in _METHODS
        ),
        *(_stream(f"{cursor}.stream") for cursor, _ in _PSYCOPG[:2]),
        *(_psycopg(f"psycopg2.extras:{cursor}.execute", False) for cursor in _EXTRAS),
        *(
            _asyncpg(f"connection:Connection.{method}", functools.partial(_of_connection, many), answer)
            for method, answer, many in _ANSWERS
        ),
        *(
            _asyncpg(f"prepared_stmt:PreparedStatement.{method}", functools.partial(_of_prepared, many), answer)
            for method, answer, many in _ANSWERS
            if method != "execute"
        ),
        *(_asyncpg(f"cursor:BaseCursor.{method}", _of_cursor, _unknown) for method in ("_bind", "_bind_exec")),
    )

    def _check_dependency_conflicts(self) -> Any:
        # Any of the drivers is enough, and one that is not installed is none.
        conflicts = [get_dependency_conflicts([required]) for required in self.requires]
        unfit = [conflict for conflict in conflicts if conflict is not None and conflict.found is not None]
        return unfit[0] if unfit and None not in conflicts else None

    def _instrument(self, **kwargs: Any) -> None:
        self._tracer = trace.get_tracer(self.scope, tracer_provider=kwargs.get("tracer_provider"))
        super()._instrument(**kwargs)

    def patch(self, patches: Patches) -> None:
        patches.add("psycopg2:connect", functools.partial(_connect, patches, self._tracer))
