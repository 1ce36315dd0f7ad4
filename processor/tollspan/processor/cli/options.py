"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

Store: TypeAlias = Annotated[
    str,
    typer.Option(envvar="TOLLSPAN_STORE", help="chdb:// (embedded), chdb:///DIR or clickhouse://user:pass@host/db."),
]
Since: TypeAlias = Annotated[
    str | None, typer.Option(help="Only what started from here on: 2026-11-01, an ISO instant, or an age (24h, 7d).")
]
Until: TypeAlias = Annotated[str | None, typer.Option(help="Only what started before this; written as --since.")]
