"""``tollspan trace``: what one trace cost, call by call."""

from __future__ import annotations

from typing import Annotated

import typer

from tollspan.processor.cli.options import Store
from tollspan.processor.cli.output import Format, print_rows, text
from tollspan.processor.errors import ConfigError
from tollspan.processor.queries import find, run
from tollspan.processor.trace_tree import tree


def trace(
    trace_id: Annotated[str, typer.Argument(help="Id of the trace, 32 hexadecimal digits; `tollspan query traces`.")],
    store: Store = "chdb://",
    format: Annotated[Format, typer.Option(help="How to print the rows.")] = Format.table,
) -> None:
    """Show a trace as the tree of its calls, with what each cost and each branch with all that is beneath it.

    Spans are those that cost something, kept or not, and all others that sampling kept. Exit code 1: no such trace.

    Example: tollspan trace 4bf92f3577b34da6a3ce929d0e0e4736
    """
    asked = f"trace={trace_id.strip().lower()}"
    try:
        find("trace").given([asked])
    except ConfigError:
        typer.echo(f"error: {trace_id!r} is no trace id: 32 hexadecimal digits. See `tollspan query traces`.", err=True)
        raise typer.Exit(2) from None
    # Here, so that the other commands do not wait for the store's libraries.
    from tollspan.processor.store import connect_for_query

    with connect_for_query(store) as reader:
        rows = tree(run(reader, "trace", parameters=[asked]))
    if not rows:
        typer.echo(f"error: no span of trace {trace_id} is here. `tollspan query traces` lists traces.", err=True)
        raise typer.Exit(1)
    if format not in (Format.table, Format.markdown):
        print_rows(rows, format)
        return
    roots = [row for row in rows if row["depth"] == 0]
    known = [row["branch_cost"] for row in roots if row["branch_cost"] is not None]
    unpriced = sum(row["branch_unpriced"] for row in roots)
    left_out = f", {text(unpriced)} of its calls without a price" if unpriced else ""
    inferences = sum(row["branch_inferences"] for row in roots)
    typer.echo(
        f"{text(sum(known)) if known else 'unknown'} USD for {text(inferences)} "
        f"inference{'' if inferences == 1 else 's'}{left_out}"
    )
    if format is Format.markdown:
        typer.echo()
    step = "  " if format is Format.table else "\u2003"  # Markdown swallows leading spaces
    print_rows(
        [
            {
                "span": f"{step * row['depth']}{row['name']}{' ✗' if row['failed'] else ''}",
                "service": row["service"] or "",
                "model": row["model"] or "",
                "ms": round(row["duration_ns"] / 1e6, 3),
                "input": row["input_tokens"],
                "output": row["output_tokens"],
                "cost": row["cost"],
                "branch_cost": row["branch_cost"],
                "status": row["cost_status"] or "",
            }
            for row in rows
        ],
        format,
    )
