"""Numbered SQL migrations: applied in order, once, and checked against what was applied before.

In: the ``NNNN_name.sql`` files of this folder and an open store. Out: up-to-date tables and a row for each file in
``schema_migrations``. A file that was applied is never edited: its checksum is on record, and a difference is an error.
Statements are idempotent (``IF NOT EXISTS``), so a run that broke off half-way is completed by the next one; one
process migrates at a time (`lock`). A store that is up to date is only read, so a writer needs no right to create
anything. On a cluster the same files are applied as `cluster` spreads them. What rewrites the rows of a table is
started and then waited for, so that no time limit of a connection bounds it.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING, Any, Final, Protocol

from tollspan.processor.errors import StoreError, StoreUnavailable
from tollspan.processor.schema.cluster import LOCAL, clustered
from tollspan.processor.schema.lock import locked
from tollspan.processor.store.faults import code_of

if TYPE_CHECKING:
    from tollspan.processor.store import Store

_FILE: Final = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")

BOOK: Final = """
CREATE TABLE IF NOT EXISTS schema_migrations
(
    version    UInt32,
    name       String,
    checksum   String,
    applied_at DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree
ORDER BY (version, checksum)
"""
"""Where is written what was applied."""

_FORMER: Final = {16: ("560a406b4bc386f3b1e71a573bbf8cee5abb3439c2c483fb7d510e5e9463f78d",)}
"""Migration → checksums of earlier texts that made the same tables.

That of 16 also ended inserts into other databases.
"""

_COLUMN: Final = re.compile(r"(?:[ \t]*(?:--[^\n]*)?\n)*ALTER TABLE (\w+)\s+(ADD COLUMN .*)", re.DOTALL)

_REWRITE: Final = re.compile(
    r"(?:[ \t]*(?:--[^\n]*)?\n)*ALTER TABLE (\w+) (MATERIALIZE COLUMN \S+) SETTINGS mutations_sync = 0"
)
"""Starts to rewrite rows of a table, and says that nobody waits for it on the connection."""
LONGEST_PAUSE_S: Final = 2.0
"""Between two looks at rows that are being rewritten."""

_NO_RIGHT: Final = (164, 291, 497)
"""READONLY, DATABASE_ACCESS_DENIED, ACCESS_DENIED."""


class Rows(Protocol):
    """What can be asked: a store or a reader."""

    def rows(self, sql: str, parameters: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """Rows of a SELECT."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file.

    Attributes:
        version: its number.
        name: the rest of its file name.
        sql: its text.
    """

    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the text, line ends apart."""
        return hashlib.sha256("\n".join(self.sql.splitlines()).encode()).hexdigest()

    @property
    def statements(self) -> list[str]:
        """The statements in order; one ends with a semicolon at the end of a line."""
        return [part.strip() for part in re.split(r";[ \t]*$", self.sql, flags=re.MULTILINE) if part.strip()]

    def __str__(self) -> str:
        return f"{self.version:04d}_{self.name}"


def migrations(folder: Traversable | None = None) -> list[Migration]:
    """The migrations of a folder, by default the shipped ones, in order.

    Raises:
        ValueError: two have the same number.
    """
    root = folder or resources.files(__package__)
    found = [
        Migration(int(match[1]), match[2], item.read_text(encoding="utf-8"))
        for item in root.iterdir()
        if (match := _FILE.fullmatch(item.name))
    ]
    found.sort(key=lambda migration: migration.version)
    if len({migration.version for migration in found}) < len(found):
        raise ValueError(f"two migrations have the same number: {', '.join(map(str, found))}")
    return found


def ddl(wanted: Sequence[Migration] | None = None, cluster: str = "", database: str = "tollspan") -> list[str]:
    """All statements in order, for a single node or, with the name of one, for a cluster.

    Raises:
        ValueError: the name of the cluster or database cannot be used.
    """
    book = [BOOK.strip(), *(s for m in (migrations() if wanted is None else wanted) for s in m.statements)]
    return [each for one in book for each in spread(one, cluster, database)]


def together(statements: Sequence[str]) -> list[str]:
    """The same statements, with neighbouring new columns of a table in one: each ALTER writes down the whole table
    anew, which is most of what a new store takes."""
    made: list[str] = []
    table = ""
    for statement in statements:
        column = _COLUMN.fullmatch(statement)
        if column and column[1] == table:
            made[-1] += f",\n{column[2]}"
        else:
            made.append(statement)
        table = column[1] if column else ""
    return made


def spread(statement: str, cluster: str, database: str) -> list[str]:
    """The statement itself for a single node (cluster ''), else see `clustered`."""
    return clustered(statement, cluster, database) if cluster else [statement]


@dataclass(frozen=True, slots=True)
class Applied:
    """A migration and what a store has of it.

    Attributes:
        migration: the file.
        applied_at: when; None where it is still to be done.
    """

    migration: Migration
    applied_at: datetime | None


def plan(store: Rows, wanted: Sequence[Migration] | None = None) -> list[Applied]:
    """What is done and what is to be done; only reads.

    Args:
        store: a store or a reader.
        wanted: as in `migrate`.

    Raises:
        StoreError: an applied migration differs from the file, or the store has one that this program does not know.
    """
    wanted = migrations() if wanted is None else wanted
    rows = []
    if store.rows("SELECT 1 FROM system.tables WHERE database = currentDatabase() AND name = 'schema_migrations'"):
        rows = store.rows(
            "SELECT version, name, checksum, applied_at FROM schema_migrations FINAL ORDER BY version, applied_at"
        )
    applied = {row["version"]: row for row in rows}
    _check(wanted, applied)
    return [Applied(each, applied.get(each.version, {}).get("applied_at")) for each in wanted]


def migrate(store: Store, wanted: Sequence[Migration] | None = None, wait_s: float = 30.0) -> list[str]:
    """Apply what is missing.

    Args:
        store: open; where something is missing, with the right to create tables.
        wanted: the migrations, in order; None for the shipped ones.
        wait_s: how long to wait for another process that migrates.

    Returns:
        Names of those applied now.

    Raises:
        StoreError: an applied migration differs from the file, the store has one that this program does not know, or
            the account has not the rights.
        StoreUnavailable: the store went away, or another process migrates; call again.
    """
    wanted = migrations() if wanted is None else wanted
    if all(each.applied_at is not None for each in plan(store, wanted)):
        return []
    try:
        return _apply(store, wanted, wait_s)
    except StoreError as error:
        if not isinstance(error, StoreUnavailable) and code_of(error.__cause__ or error) in _NO_RIGHT:
            raise StoreError(
                f"Store {store.url} needs migrations that this account may not make. {error.message}",
                "Run `tollspan schema migrate` with an account that may create and alter tables.",
            ) from error
        raise


def _apply(store: Store, wanted: Sequence[Migration], wait_s: float) -> list[str]:
    def run(statement: str) -> None:
        if rewrite := _REWRITE.fullmatch(statement):
            _rewrite(store, rewrite[1], rewrite[2], lambda: do(statement), alive)
        else:
            do(statement)

    def do(statement: str) -> None:
        for each in spread(statement, store.cluster, store.database):
            alive()
            store.execute(each)

    names = []
    with locked(store, wait_s) as alive:
        run(BOOK.strip())
        # Somebody may have done it while we waited.
        for migration in [each.migration for each in plan(store, wanted) if each.applied_at is None]:
            for statement in together(migration.statements):
                run(statement)
            store.execute(
                "INSERT INTO schema_migrations (version, name, checksum)"
                " SELECT {version:UInt32}, {name:String}, {checksum:String}",
                {"version": migration.version, "name": migration.name, "checksum": migration.checksum},
            )
            names.append(str(migration))
    return names


def _rewrite(store: Store, table: str, command: str, start: Callable[[], None], alive: Callable[[], None]) -> None:
    """Start to rewrite rows of a table, unless a run that broke off did so and it goes on; return when it is done. In a
    new store there is nothing to do, and no need to look long."""
    if not store.rows(f"SELECT 1 FROM {table} LIMIT 1"):
        return
    everywhere = f"clusterAllReplicas('{store.cluster}', system.mutations)" if store.cluster else "system.mutations"
    names = {"table": table, "local": table + LOCAL, "command": command}
    going = (
        f"SELECT max(latest_fail_reason) AS why FROM {everywhere} WHERE database = {{database:String}}"
        " AND table IN ({table:String}, {local:String}) AND NOT is_done"
        " AND replaceRegexpAll(command, '[`()]', '') = replaceAll({command:String}, '`', '') HAVING count() > 0"
    )
    pause, parameters = 0.01, {**names, "database": store.database}
    if not store.rows(going, parameters):
        start()
    while found := store.rows(going, parameters):
        if found[0]["why"]:
            raise StoreError(
                f"Rows of {table} cannot be rewritten: {found[0]['why']}",
                "ClickHouse tries again by itself: mend the cause and run the same again. To end the attempt:"
                f" KILL MUTATION WHERE table = '{table}' AND NOT is_done.",
            )
        time.sleep(pause)
        pause = min(pause * 2, LONGEST_PAUSE_S)
        alive()


def _check(wanted: Sequence[Migration], applied: dict[int, dict[str, object]]) -> None:
    known = {migration.version: migration for migration in wanted}
    for version, row in applied.items():
        migration = known.get(version)
        if migration is None:
            raise StoreError(
                f"The store has migration {version:04d}_{row['name']}, which this version does not know.",
                "It was written by a newer Tollspan: upgrade this one.",
            )
        if row["checksum"] not in (migration.checksum, *_FORMER.get(version, ())):
            raise StoreError(
                f"The store was made by another text of migration {migration}.",
                "A migration is never edited: put its old text back and add the change as a new one.",
            )
