"""Rows to a terminal or a pipe: one function for every command that prints a table.

``table`` is for people, ``json`` for programs (Decimal as string, so that no reader turns money into a float), ``csv``
and ``markdown`` for documents.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

_UNSEEN: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""What would steer a terminal, or turn the direction of what follows; a span's text may hold it."""
_MARKS: Final = re.compile(r"[|<\[]")
"""What would end a cell of Markdown, or begin HTML or a link in it."""


class Format(StrEnum):
    """Output formats every row-printing command takes as ``--format``."""

    table = "table"
    json = "json"
    csv = "csv"
    markdown = "markdown"


def plain(value: object) -> object:
    """A JSON-ready form of a cell: Decimal in fixed notation as string, instants in ISO 8601, bytes as hex."""
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


def text(value: object) -> str:
    """A cell for people: an em dash for an unknown, thousands separated for counts, money without trailing zeros.

    Control characters are shown as ``\\x1b``.
    """
    if value is None:
        return "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Decimal):
        shown = format(value, "f")
        return shown.rstrip("0").rstrip(".") if "." in shown else shown
    if isinstance(value, float):
        return f"{value:,.6g}"
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), str(plain(value)))


def print_rows(
    rows: Sequence[Mapping[str, object]], fmt: Format, *, title: str | None = None, single: bool = False
) -> None:
    """Print rows that share their keys.

    Args:
        rows: the rows; their first defines the columns. An empty list prints an empty table, ``[]`` or nothing.
        fmt: see `Format`.
        title: heading of the table form.
        single: the answer is one object: JSON prints it bare instead of in a list.
    """
    if not rows and fmt in (Format.csv, Format.markdown):
        return  # without rows nobody knows the columns, and an empty line would be a row to a reader of CSV
    columns = list(rows[0]) if rows else []
    if fmt is Format.json:
        body: object = [{k: plain(v) for k, v in row.items()} for row in rows]
        if single:
            body = {k: plain(v) for k, v in rows[0].items()} if rows else {}
        print(json.dumps(body, ensure_ascii=False, indent=2 if single else None))
    elif fmt is Format.csv:
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([["" if row[c] is None else plain(row[c]) for c in columns] for row in rows])
        print(out.getvalue(), end="")
    elif fmt is Format.markdown:
        print("| " + " | ".join(columns) + " |")
        print("|" + "|".join(" --- " for _ in columns) + "|")
        for row in rows:
            print("| " + " | ".join(_MARKS.sub(r"\\\g<0>", text(row[c])) for c in columns) + " |")
    else:
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        for column in columns:
            numeric = any(isinstance(row[column], int | float | Decimal) for row in rows)
            # A number is never broken over two lines; words are, where the terminal is narrow.
            widest = max(10, *(len(text(row[column])) for row in rows))
            heading = "\n".join(textwrap.wrap(column.replace("_", " "), widest, break_long_words=False))
            table.add_column(heading, justify="right" if numeric else "left", overflow="fold", no_wrap=numeric)
        for row in rows:
            table.add_row(*(text(row[c]) for c in columns))
        # Into a pipe or a file there is no edge to fold at; a table takes only the width that it needs.
        # What spans say is no markup of ours.
        Console(width=None if sys.stdout.isatty() else 250, markup=False, emoji=False).print(table)
