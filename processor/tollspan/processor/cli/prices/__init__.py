"""``tollspan prices``: look at price books, check and compare them, make them from what others publish.

One module for each thing that is done with a book: `browse` (list, show), `checking` (check), `comparing` (diff),
`making` (import, schema), `owning` (breakeven), `settling` (settle). `rows` is how they all see a price.
"""

from __future__ import annotations

import typer

from tollspan.processor.cli.prices.browse import list_, show
from tollspan.processor.cli.prices.checking import check
from tollspan.processor.cli.prices.comparing import diff
from tollspan.processor.cli.prices.making import schema, skypilot, tco
from tollspan.processor.cli.prices.owning import breakeven
from tollspan.processor.cli.prices.settling import settle

prices = typer.Typer(help="Look at price books, check and compare them, make them.", no_args_is_help=True)
prices.command("list")(list_)
for command in (show, check, diff, breakeven, settle, schema):
    prices.command()(command)

importing = typer.Typer(help="Make a price book from what others publish, or from what you own.", no_args_is_help=True)
for importer in (skypilot, tco):
    importing.command()(importer)
prices.add_typer(importing, name="import")
