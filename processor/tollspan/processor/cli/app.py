"""The ``tollspan`` application: its commands, and errors as one line and an exit code.

Exit codes: 0 done; 1 the command failed (the line says why and what to do); 2 the command was used wrongly.
"""

from __future__ import annotations

import os
import sys
from typing import Final

import typer

from tollspan.pricing import BookError
from tollspan.processor.cli.bills import bills
from tollspan.processor.cli.demo import demo
from tollspan.processor.cli.doctor import doctor
from tollspan.processor.cli.export import export
from tollspan.processor.cli.journal import journal
from tollspan.processor.cli.loaded import loaded
from tollspan.processor.cli.page import page
from tollspan.processor.cli.price import price
from tollspan.processor.cli.prices import prices
from tollspan.processor.cli.quarantine import quarantine
from tollspan.processor.cli.query import query
from tollspan.processor.cli.reconcile import reconcile
from tollspan.processor.cli.replay import replay
from tollspan.processor.cli.report import report
from tollspan.processor.cli.reprice import close, reprice
from tollspan.processor.cli.sample import sample
from tollspan.processor.cli.schema import schema
from tollspan.processor.cli.serve import EXTRA, serve
from tollspan.processor.cli.sql import sql
from tollspan.processor.cli.token import token
from tollspan.processor.cli.top import top
from tollspan.processor.cli.trace import trace
from tollspan.processor.errors import TollspanError

PLACES: Final = {"store": ("store",), "prices": ("prices", "book"), "journal.directory": ("journal", "directory")}
"""Setting → what the commands call it."""
GROUPED: Final = (
    *("inspect", "list", "show", "replay", "drop"),
    *("status", "migrate", "ttl", "roles", "columns", "unlock"),
)

app = typer.Typer(
    help="What every inference costs, and who caused it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command(context_settings=EXTRA)(serve)
app.command(context_settings=EXTRA)(doctor)
for command in (
    *(demo, page, price, query, report, loaded, replay, reprice, close, reconcile, sample, token, sql, top, trace),
):
    app.command()(command)
app.add_typer(prices, name="prices")
app.add_typer(schema, name="schema")
app.add_typer(journal, name="journal")
app.add_typer(quarantine, name="quarantine")
app.add_typer(export, name="export")
app.add_typer(bills, name="bills")


@app.callback()
def configured(context: typer.Context) -> None:
    """What every inference costs, and who caused it."""
    if context.invoked_subcommand in ("serve", "doctor", "demo", None):
        return  # the first two read the whole configuration themselves, and the demo has a store of its own
    if not any(os.environ.get(name) for name in ("TOLLSPAN_CONFIG", "TOLLSPAN_STORE_FILE")):
        return
    # Imported where there is something to read.
    from tollspan.processor.config import DEFAULT, load

    loaded = load(sections=("",))
    given = {
        option: str(loaded.values[name].value)
        for name, options in PLACES.items()
        if loaded.where(name) != DEFAULT
        for option in options
    }
    # Behind options and variables, before defaults; a group of commands has one more level.
    context.default_map = {context.invoked_subcommand: {**given, **dict.fromkeys(GROUPED, given)}}


def run() -> None:
    """Run the command line; exceptions made for people are printed as one line."""
    try:
        app()
    except (TollspanError, BookError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:
        # The reader of our output went away (`| head`): nothing is wrong.
        sys.stderr.close()
        sys.exit(0)
