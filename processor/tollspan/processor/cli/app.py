"""The ``tollspan`` application: its commands, and errors as one line and an exit code.

Exit codes: 0 done; 1 the command failed (the line says why and what to do); 2 the command was used wrongly.
"""

from __future__ import annotations

import sys

import typer

from tollspan.pricing import BookError
from tollspan.processor.cli.demo import demo
from tollspan.processor.cli.price import price
from tollspan.processor.cli.prices import prices
from tollspan.processor.cli.query import query
from tollspan.processor.cli.replay import replay
from tollspan.processor.cli.report import report
from tollspan.processor.cli.reprice import close, reprice
from tollspan.processor.cli.serve import serve
from tollspan.processor.cli.token import token
from tollspan.processor.errors import TollspanError

app = typer.Typer(
    help="What every inference costs, and who caused it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (serve, demo, price, query, report, replay, reprice, close, token):
    app.command()(command)
app.add_typer(prices, name="prices")


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
