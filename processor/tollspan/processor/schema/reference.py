"""The reference of tables and columns, read from the comments that the tables themselves have (`0012_comments.sql`)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from tollspan.processor.errors import ConfigError
from tollspan.processor.schema.cluster import LOCAL
from tollspan.processor.schema.migrate import Rows

FIRST: Final = ("ledger", "traces", "spans", "trace_costs")
"""What people ask most stands first; the rest follows by name."""

INNER: Final = ("schema_lock", "sampling_traces_of")
"""Not for readers."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column.

    Attributes:
        name, type, comment: as the table says.
        computed: it is computed when it is asked for (ALIAS) or when its row is written (MATERIALIZED); else ''.
    """

    name: str
    type: str
    comment: str
    computed: str


@dataclass(frozen=True, slots=True)
class Table:
    """A table or view.

    Attributes:
        name, engine, comment: as the store says.
        columns: in order.
        order, partition: its keys, '' of a view.
    """

    name: str
    engine: str
    comment: str
    order: str
    partition: str
    columns: tuple[Column, ...]


def tables(reader: Rows, name: str | None = None) -> list[Table]:
    """Tables and views of a store.

    Raises:
        ConfigError: there is none of that name; says which there are.
    """
    columns: dict[str, list[Column]] = {}
    for row in reader.rows(
        "SELECT table, name, type, comment, transform(default_kind, ['ALIAS', 'MATERIALIZED'],"
        " ['when asked for', 'when the row is written'], '') AS computed FROM system.columns"
        " WHERE database = currentDatabase() AND default_kind != 'EPHEMERAL' ORDER BY table, position"
    ):
        made = Column(row["name"], row["type"], row["comment"], row["computed"])
        columns.setdefault(row["table"], []).append(made)
    found = [
        Table(
            row["name"],
            row["engine"],
            row["comment"],
            row["sorting_key"],
            row["partition_key"],
            tuple(columns.get(row["name"], ())),
        )
        for row in reader.rows(
            "SELECT name, engine, comment, sorting_key, partition_key FROM system.tables"
            " WHERE database = currentDatabase() AND NOT startsWith(name, '.')"
        )
        if row["name"] not in INNER and not row["name"].endswith(LOCAL)
    ]
    found.sort(key=lambda table: (FIRST.index(table.name) if table.name in FIRST else len(FIRST), table.name))
    if name is None:
        return found
    chosen = [table for table in found if table.name == name]
    if not chosen:
        raise ConfigError(f"There is no table {name!r}.", f"One of: {', '.join(table.name for table in found)}.")
    return chosen


def markdown(found: Iterable[Table]) -> str:
    """The reference as a document."""
    parts = []
    for table in found:
        keys = [f"ordered by `{table.order}`"] if table.order else []
        keys += [f"a part for each `{table.partition}`"] if table.partition else []
        lines = [f"## {table.name}", "", table.comment, "", f"{table.engine}{''.join(f', {key}' for key in keys)}.", ""]
        lines += ["| column | type | what |", "|--|--|--|"]
        for column in table.columns:
            what = f"{column.comment}{f' (computed {column.computed})' if column.computed else ''}"
            lines.append(f"| `{column.name}` | `{column.type}` | {what.replace('|', chr(92) + '|')} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"
