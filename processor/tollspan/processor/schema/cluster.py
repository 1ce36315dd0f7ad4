"""The same statements for a cluster: one source of DDL, written for a single node.

In: a statement of a migration. Out: the statements that do the same on a cluster. A table of `SHARDED` becomes a
``Replicated…`` table ``<name>_local`` on each shard and a ``Distributed`` one under its own name; any other table is
whole on every node, so that nothing has to be known about it. Rows that replace each other are on one shard: the
sharding key is made of the table's own key.

The cluster needs Keeper and the macros ``shard`` and ``replica``, as every replicated ClickHouse has them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

SHARDED: Final[dict[str, str]] = {
    "ledger": "cityHash64(trace_id)",
    "traces": "cityHash64(trace_id)",
    "late_rows": "cityHash64(trace_id)",
    "sampling_traces": "cityHash64(trace_id)",
    # The same bytes as in trace_id, so that a trace is on one shard.
    "spans": "cityHash64(unhex(TraceId))",
    "batches": "cityHash64(token)",
    "telemetry": "cityHash64(token)",
}
"""Large tables, and by what their rows are spread."""

LOCAL: Final = "_local"

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_COMMENTS: Final = re.compile(r"(?:[ \t]*(?:--[^\n]*)?\n)*")
_TABLE: Final = re.compile(r"CREATE TABLE IF NOT EXISTS (\w+)")
_ENGINE: Final = re.compile(r"^ENGINE = (\w*MergeTree)(?:\(([^)]*)\))?", re.MULTILINE)
_VIEW: Final = re.compile(r"CREATE VIEW IF NOT EXISTS (\w+)")
_FILLED_VIEW: Final = re.compile(r"CREATE MATERIALIZED VIEW IF NOT EXISTS (\w+) TO (\w+)")
_DROP: Final = re.compile(r"DROP (?:VIEW|TABLE) IF EXISTS (\w+)")
_ALTER: Final = re.compile(r"ALTER TABLE (\w+)")
_INSERT: Final = re.compile(r"INSERT INTO \w+")
_KILL: Final = re.compile(r"KILL QUERY")
_FROM: Final = re.compile(r"\bFROM (\w+)")
_ONLY_LOCAL: Final = re.compile(
    r"(?:MODIFY|RESET) SETTING|MODIFY TTL|REMOVE TTL|(?:ADD|DROP|MATERIALIZE|CLEAR) (?:INDEX|PROJECTION)"
    r"|MATERIALIZE|MODIFY ORDER BY|DELETE|UPDATE"
)
"""Of an ALTER what a Distributed table does not have."""


def clustered(statement: str, cluster: str, database: str) -> list[str]:
    """The statements for a cluster that do what one does on a single node.

    Args:
        statement: DDL as the migrations write it; comments in front of it are kept.
        cluster: its name in ``remote_servers``.
        database: that holds the tables.

    Raises:
        ValueError: the statement has a form that nobody has said how to spread, or a name cannot be used.
    """
    for name in (cluster, database):
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot be the name of a cluster or database: letters, digits and underscores")
    head = _COMMENTS.match(statement)
    comments = head.group() if head else ""
    body = statement[len(comments) :]
    for pattern, spread in _FORMS:
        if match := pattern.match(body):
            first, *rest = spread(body, match, cluster, database)
            return [comments + first, *rest]
    raise ValueError(f"how does this go on a cluster? {body[:80]!r}")


def _table(body: str, match: re.Match[str], cluster: str, database: str) -> list[str]:
    name = match[1]
    local = name + LOCAL if name in SHARDED else name

    def replicated(engine: re.Match[str]) -> str:
        # Without arguments of its own the server's path has the shard in it; a whole copy is the same on all shards.
        where = [] if name in SHARDED else [f"'/clickhouse/tables/{database}/{name}'", "'{shard}-{replica}'"]
        given = [engine[2]] if engine[2] else []
        return f"ENGINE = Replicated{engine[1]}({', '.join(where + given)})"

    made, engines = _ENGINE.subn(replicated, body, count=1)
    if not engines:
        raise ValueError(f"table {name} has no MergeTree engine")
    made = made.replace("non_replicated_deduplication_window", "replicated_deduplication_window")
    made = made.replace(match[0], f"CREATE TABLE IF NOT EXISTS {local} ON CLUSTER {cluster}", 1)
    if name not in SHARDED:
        return [made]
    over = f"Distributed({cluster}, {database}, {local}, {SHARDED[name]})"
    return [made, f"CREATE TABLE IF NOT EXISTS {name} ON CLUSTER {cluster} AS {local}\nENGINE = {over}"]


def _alter(body: str, match: re.Match[str], cluster: str, database: str) -> list[str]:
    name = match[1]

    def on(table: str) -> str:
        return body.replace(match[0], f"ALTER TABLE {table} ON CLUSTER {cluster}", 1).replace(
            "non_replicated_deduplication_window", "replicated_deduplication_window"
        )

    if name not in SHARDED:
        return [on(name)]
    only_local = _ONLY_LOCAL.match(body[match.end() :].lstrip()) is not None
    return [on(name + LOCAL)] if only_local else [on(name + LOCAL), on(name)]


def _filled_view(body: str, match: re.Match[str], cluster: str, database: str) -> list[str]:
    def local(name: str) -> str:
        return name + LOCAL if name in SHARDED else name

    rest = _FROM.sub(lambda found: f"FROM {local(found[1])}", body[match.end() :])
    return [f"CREATE MATERIALIZED VIEW IF NOT EXISTS {match[1]} ON CLUSTER {cluster} TO {local(match[2])}{rest}"]


def _everywhere(body: str, match: re.Match[str], cluster: str, database: str) -> list[str]:
    return [f"{match[0]} ON CLUSTER {cluster}{body[match.end() :]}"]


def _kill(body: str, match: re.Match[str], cluster: str, database: str) -> list[str]:
    # What is spread is run in no database of ours.
    return _everywhere(body.replace("currentDatabase()", f"'{database}'"), match, cluster, database)


def _once(body: str, match: re.Match[str], cluster: str, database: str) -> list[str]:
    return [body]


_FORMS: Final[tuple[tuple[re.Pattern[str], Callable[[str, re.Match[str], str, str], list[str]]], ...]] = (
    (_TABLE, _table),
    (_ALTER, _alter),
    (_FILLED_VIEW, _filled_view),
    (_VIEW, _everywhere),
    (_DROP, _everywhere),
    (_KILL, _kill),
    (_INSERT, _once),
)
