"""Who may do what on a server: a role that only writes what the line writes, and one that only reads.

In: names. Out: the statements that make the roles, for an account that may make roles to run. Who owns the tables
migrates them (`tollspan schema migrate`); a service whose account has the writer's role finds them up to date and needs
no more. An embedded store has no accounts: its SQL port is read-only by itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from tollspan.processor.errors import ConfigError
from tollspan.processor.schema.cluster import LOCAL, SHARDED
from tollspan.processor.schema.tables import SCHEMAS

WRITES: Final = (*SCHEMAS, "sampling_traces")
"""Tables that the line fills; the last one through a view."""

READS: Final = ("ledger", "traces", "telemetry", "sampling_levels", "sampling_traces", "schema_migrations")
"""What the line reads: rows that turn out to be roll-ups, levels of sampling, and whether the schema is up to date."""

READER_SETTINGS: Final[dict[str, str]] = {
    "readonly": "1",
    # ClickHouse's own clients, Grafana's among them, send this one with every query.
    "max_execution_time": "60 CHANGEABLE_IN_READONLY",
    "max_memory_usage": "2147483648",
    "max_result_bytes": "268435456",
    "result_overflow_mode": "'throw'",
}
"""Limits of what a reader may ask, the same as those of the SQL port of an embedded store."""

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")


def roles(
    database: str = "tollspan",
    writer: str = "tollspan_writer",
    reader: str = "tollspan_reader",
    cluster: str = "",
    users: Sequence[tuple[str, str]] = (),
) -> list[str]:
    """The statements that make both roles; again is harmless.

    Args:
        database: that holds the tables.
        writer, reader: names of the roles.
        cluster: name of the cluster; '' for a single node.
        users: (role, user): users that exist and get a role.

    Raises:
        ConfigError: a name cannot be used.
    """
    for name in (database, writer, reader, *([cluster] if cluster else []), *(n for pair in users for n in pair)):
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{name!r} cannot be used as a name.", "Letters, digits and underscores, no digit first.")
    on = f" ON CLUSTER {cluster}" if cluster else ""
    settings = ", ".join(f"{name} = {value}" for name, value in READER_SETTINGS.items())
    statements = [
        f"CREATE ROLE IF NOT EXISTS {writer}{on}",
        *(f"GRANT{on} {right} TO {writer}" for right in writer_rights(database, cluster)),
        f"CREATE ROLE IF NOT EXISTS {reader}{on}",
        *(f"GRANT{on} {right} TO {reader}" for right in reader_rights(database)),
        f"CREATE SETTINGS PROFILE IF NOT EXISTS {reader}{on} SETTINGS {settings} TO {reader}",
    ]
    return statements + [f"GRANT{on} {role} TO {user}" for role, user in users]


def writer_rights(database: str, cluster: str = "") -> list[str]:
    """``INSERT ON …`` and ``SELECT ON …`` of the writer."""

    def named(tables: Sequence[str]) -> list[str]:
        # A Distributed table writes to the shards' own tables, as the same account.
        return [each for t in tables for each in ([t, t + LOCAL] if cluster and t in SHARDED else [t])]

    return [
        *(f"INSERT ON {database}.{table}" for table in named(WRITES)),
        *(f"SELECT ON {database}.{table}" for table in named(READS)),
    ]


def reader_rights(database: str) -> list[str]:
    """``SELECT ON …`` of the reader."""
    return [f"SELECT ON {database}.*"]
