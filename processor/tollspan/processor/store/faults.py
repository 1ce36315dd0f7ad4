"""Errors of clickhouse_connect and chdb, sorted into those that pass and those that stay.

In: whatever a client raised. Out: `StoreUnavailable` when the same call may succeed later (network, overload, memory,
disk space), else `StoreError`; both one line long.
"""

from __future__ import annotations

import re
from typing import Final

from clickhouse_connect.driver.exceptions import ClickHouseError, Error, OperationalError, ProgrammingError

from tollspan.processor.errors import StoreError, StoreUnavailable, StoreUnfit

RETRYABLE: Final[dict[int, str]] = {
    3: "UNEXPECTED_END_OF_FILE",
    74: "CANNOT_READ_FROM_FILE_DESCRIPTOR",
    75: "CANNOT_WRITE_TO_FILE_DESCRIPTOR",
    76: "CANNOT_OPEN_FILE",
    95: "CANNOT_READ_FROM_SOCKET",
    96: "CANNOT_WRITE_TO_SOCKET",
    159: "TIMEOUT_EXCEEDED",
    160: "TOO_SLOW",
    173: "CANNOT_ALLOCATE_MEMORY",
    201: "QUOTA_EXCEEDED",
    202: "TOO_MANY_SIMULTANEOUS_QUERIES",
    203: "NO_FREE_CONNECTION",
    204: "CANNOT_FSYNC",
    209: "SOCKET_TIMEOUT",
    210: "NETWORK_ERROR",
    225: "NO_ZOOKEEPER",
    236: "ABORTED",
    241: "MEMORY_LIMIT_EXCEEDED",
    242: "TABLE_IS_READ_ONLY",
    243: "NOT_ENOUGH_SPACE",
    252: "TOO_MANY_PARTS",
    279: "ALL_CONNECTION_TRIES_FAILED",
    285: "TOO_FEW_LIVE_REPLICAS",
    286: "UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE",
    289: "REPLICA_IS_NOT_IN_QUORUM",
    297: "SHARD_HAS_NO_CONNECTIONS",
    319: "UNKNOWN_STATUS_OF_INSERT",
    364: "RECEIVED_ERROR_TOO_MANY_REQUESTS",
    373: "SESSION_IS_LOCKED",
    394: "QUERY_WAS_CANCELLED",
    439: "CANNOT_SCHEDULE_TASK",
    473: "DEADLOCK_AVOIDED",
    499: "S3_ERROR",
    574: "DISTRIBUTED_TOO_MANY_PENDING_BYTES",
    586: "CANNOT_CREATE_FILE",
    722: "ASYNC_LOAD_WAIT_FAILED",
    745: "SERVER_OVERLOADED",
    762: "HTTP_CONNECTION_LIMIT_REACHED",
    999: "KEEPER_EXCEPTION",
    1000: "POCO_EXCEPTION",
}
"""ClickHouse error codes after which the same call may succeed. A test compares the names with the engine's own."""

MENDABLE: Final[dict[int, str]] = {
    10: "NOT_FOUND_COLUMN_IN_BLOCK",
    16: "NO_SUCH_COLUMN_IN_TABLE",
    20: "NUMBER_OF_COLUMNS_DOESNT_MATCH",
    47: "UNKNOWN_IDENTIFIER",
    60: "UNKNOWN_TABLE",
    81: "UNKNOWN_DATABASE",
    115: "UNKNOWN_SETTING",
    164: "READONLY",
    192: "UNKNOWN_USER",
    193: "WRONG_PASSWORD",
    194: "REQUIRED_PASSWORD",
    218: "TABLE_IS_DROPPED",
    291: "DATABASE_ACCESS_DENIED",
    452: "SETTING_CONSTRAINT_VIOLATION",
    497: "ACCESS_DENIED",
    516: "AUTHENTICATION_FAILED",
}
"""Codes by which an insert is refused whatever its rows are: tables, rights or settings are not as they should be.

Rows refused so are not at fault: `write` has them wait until somebody has mended the store.
"""

REFUSED_LOGIN: Final = frozenset({192, 193, 194, 516})
"""UNKNOWN_USER, WRONG_PASSWORD, REQUIRED_PASSWORD, AUTHENTICATION_FAILED."""

_HTTP_STATUS: Final = re.compile(r"HTTP status (\d{3})")
_PREFIX: Final = re.compile(r"^(Received ClickHouse exception, code: \d+, server response: )+")


def code_of(error: BaseException) -> int | None:
    """ClickHouse's numeric error code, where the error carries one."""
    return error.code if isinstance(error, Error) else None


def one_line(error: BaseException, limit: int = 300) -> str:
    """What went wrong, in one line and without transport wrapping."""
    text = _PREFIX.sub("", " ".join(str(error).split()))
    return text if len(text) <= limit else text[: limit - 1] + "…"


_NOT_THERE: Final = frozenset({16, 47, 60})
"""A column, an identifier or a table that is not there."""


def translate(error: Exception, doing: str, *, insert: bool = False) -> StoreError:
    """The error to raise instead of ``error``.

    Args:
        error: from clickhouse_connect, urllib3 or chdb.
        doing: what was tried, e.g. ``insert into ledger``; begins the message.
        insert: rows of ours were offered; what is `MENDABLE` is `StoreUnfit` then.
    """
    message = f"Store: {doing} failed: {one_line(error)}"
    if insert and code_of(error) in MENDABLE:
        return StoreUnfit(message, "Mend the store's tables, rights or settings.")
    if is_transient(error):
        return StoreUnavailable(message)
    if not insert and code_of(error) in _NOT_THERE:
        return StoreError(
            message, "If an older version wrote this store: `tollspan schema migrate`, or start `tollspan serve` once."
        )
    return StoreError(message)


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed later."""
    code = code_of(error)
    if code is not None:
        return code in RETRYABLE
    if isinstance(error, ProgrammingError):
        return False
    if isinstance(error, OperationalError):
        # clickhouse_connect raises it without a code when no answer came.
        return True
    if isinstance(error, ClickHouseError):
        status = _HTTP_STATUS.search(str(error))
        return status is not None and (status[1] in ("408", "429") or status[1].startswith("5"))
    return isinstance(error, OSError)


def root_cause(error: BaseException) -> str:
    """The operating system's reason under an HTTP client's chain of wrappers (``Connection refused``)."""
    seen: BaseException | None = error
    reason = ""
    while seen is not None:
        if isinstance(seen, OSError) and seen.strerror:
            reason = seen.strerror
        inner = getattr(seen, "reason", None)
        seen = inner if isinstance(inner, BaseException) else seen.__cause__ or seen.__context__
    return reason or one_line(error, 160)
