"""Numbered SQL migrations: applied in order, once, and checked against what was applied before.

In: the ``NNNN_name.sql`` files of this folder and an open store. Out: up-to-date tables and a row for each file in
``schema_migrations``. A file that was applied is never edited: its checksum is on record, and a difference is an error.
Statements are idempotent (``IF NOT EXISTS``), so a run that broke off half-way, or two services that start at once, are
harmless.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING, Final

from tollspan.processor.errors import StoreError

if TYPE_CHECKING:
    from tollspan.processor.store import Store

_FILE: Final = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")

_BOOK: Final = """
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


def migrate(store: Store, wanted: Sequence[Migration] | None = None) -> list[str]:
    """Apply what is missing.

    Args:
        store: open, with the right to create tables.
        wanted: the migrations, in order; None for the shipped ones.

    Returns:
        Names of those applied now.

    Raises:
        StoreError: an applied migration differs from the file, or the store has one that this program does not know.
        StoreUnavailable: the store went away; call again.
    """
    wanted = migrations() if wanted is None else wanted
    store.execute(_BOOK)
    rows = store.rows("SELECT version, name, checksum FROM schema_migrations FINAL ORDER BY version, applied_at")
    applied = {row["version"]: row for row in rows}
    _check(store, wanted, applied)
    names = []
    for migration in wanted:
        if migration.version in applied:
            continue
        for statement in migration.statements:
            store.execute(statement)
        store.execute(
            "INSERT INTO schema_migrations (version, name, checksum)"
            " SELECT {version:UInt32}, {name:String}, {checksum:String}",
            {"version": migration.version, "name": migration.name, "checksum": migration.checksum},
        )
        names.append(str(migration))
    return names


def _check(store: Store, wanted: Sequence[Migration], applied: dict[int, dict[str, object]]) -> None:
    known = {migration.version: migration for migration in wanted}
    for version, row in applied.items():
        migration = known.get(version)
        if migration is None:
            raise StoreError(
                f"Store {store.url} has migration {version:04d}_{row['name']}, which this version does not know.",
                "It was written by a newer Tollspan: upgrade this one.",
            )
        if migration.checksum != row["checksum"]:
            raise StoreError(
                f"Store {store.url} was made by another text of migration {migration}.",
                "A migration is never edited: put its old text back and add the change as a new one.",
            )
