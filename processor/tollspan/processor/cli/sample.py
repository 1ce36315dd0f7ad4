"""``tollspan sample``: what a sampling file says, and what it would have kept."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tollspan.processor.cli.options import Store, Until
from tollspan.processor.cli.output import Format, plain, print_rows
from tollspan.processor.errors import ConfigError, TollspanError
from tollspan.processor.queries import window

if TYPE_CHECKING:
    from tollspan.processor.sample.budget import Limit
    from tollspan.processor.sample.dry_run import DryRun
    from tollspan.processor.sample.rules import Sampling

WRONG = 1
"""Exit code of a file with mistakes (with --strict, of one with warnings too)."""
CANNOT_TELL = 2


def sample(
    file: Annotated[Path, typer.Argument(help="The sampling file (YAML), as --sampling-file of `tollspan serve`.")],
    check: Annotated[bool, typer.Option("--check", help="Read the file and say what is wrong with it.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Ask it of the last hours: what would be kept, at what cost, and missed.")
    ] = False,
    since: Annotated[
        str, typer.Option(help="With --dry-run, traces from here on: an age (6h, 2d), 2026-11-01 or an ISO instant.")
    ] = "6h",
    until: Until = None,
    store: Store = "chdb://",
    prices: Annotated[
        Path | None,
        typer.Option(
            "--prices", "--book", envvar="TOLLSPAN_PRICES", help="Your price book: what telemetry costs stands there."
        ),
    ] = None,
    keep: Annotated[
        float, typer.Option(envvar="TOLLSPAN_SAMPLING_KEEP", help="Base share where the file says none.")
    ] = 0.1,
    budget: Annotated[
        str,
        typer.Option(envvar="TOLLSPAN_SAMPLING_BUDGET", help="What telemetry may take: 2%, 5 USD/day, 10 GB/day."),
    ] = "",
    strict: Annotated[bool, typer.Option("--strict", help="With --check, warnings count as mistakes.")] = False,
    format: Annotated[Format, typer.Option(help="How to print what was found.")] = Format.table,
) -> None:
    """Check a sampling file, or try it on what is in the store; nothing is changed by either.

    Exit code 0: the file can be used; 1: it has mistakes; 2: something could not be read.

    Example: tollspan sample --check sampling.yaml && tollspan sample --dry-run sampling.yaml --since 6h
    """
    if check == dry_run:
        typer.echo("error: say what to do with the file: --check or --dry-run", err=True)
        raise typer.Exit(CANNOT_TELL)
    sampling = _read(file, keep)
    if check:
        _checked(sampling, strict, format)
        return
    try:
        found = _tried(sampling, store, prices, window(since, until), _limit(budget))
    except TollspanError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(CANNOT_TELL) from None
    _print(found, format)


def _read(file: Path, keep: float) -> Sampling:
    from tollspan.processor.sample.rules import SamplingError, read_sampling

    try:
        return read_sampling(file, keep)
    except SamplingError as error:
        for problem in error.problems:
            typer.echo(f"error: {problem}", err=True)
        raise typer.Exit(WRONG) from None


def _checked(sampling: Sampling, strict: bool, format: Format) -> None:
    rows = [
        {
            "rule": rule.name,
            "reason": rule.reason,
            "keeps": _rate(rule.rate),
            "content": "keep" if rule.content else "remove",
            "line": rule.line or None,
        }
        for rule in (*sampling.rules,)
    ]
    base = sampling.base
    share = _rate(base.share) + (f" on average, by cost, at least {_rate(base.floor)}" if base.scale else "")
    rows.append(
        {
            "rule": base.name,
            "reason": "probability",
            "keeps": share,
            "content": "keep" if base.content else "remove",
            "line": None,
        }
    )
    print_rows(rows, format, title=f"{sampling.file}: the first rule that matches a trace decides it")
    for warning in sampling.warnings:
        typer.echo(f"warning: {warning}", err=True)
    if sampling.warnings and strict:
        raise typer.Exit(WRONG)


def _rate(rate: float) -> str:
    return {1.0: "always", 0.0: "never"}.get(rate, f"{rate:.6%}".rstrip("0%").rstrip(".") + "%")


def _limit(text: str) -> Limit | None:
    """A budget; None where there is none."""
    from tollspan.processor.sample.budget import read_limit

    try:
        return read_limit(text) if text else None
    except ValueError as error:
        raise ConfigError(f"--budget {error}") from None


def _tried(
    sampling: Sampling,
    store: str,
    prices: Path | None,
    asked: tuple[datetime | None, datetime | None],
    budget: Limit | None,
) -> DryRun:
    # Here, so that the other commands do not wait for the store's libraries.
    from tollspan.pricing import PriceEngine, load_book, shipped_book
    from tollspan.processor.queries.window import EARLIEST
    from tollspan.processor.sample.dry_run import blind, dry_run, telemetry_price
    from tollspan.processor.sample.past import first_and_last, past
    from tollspan.processor.sample.past_levels import PastLevels
    from tollspan.processor.sample.policy import RulePolicy
    from tollspan.processor.store import connect_for_query

    engine = PriceEngine(shipped_book() if prices is None else load_book(prices))
    since, until = asked[0] or EARLIEST, asked[1] or datetime.now(UTC)
    with connect_for_query(store) as reader:
        bounds = (int(instant.timestamp()) // 60 for instant in first_and_last(reader, since, until))
        levels = PastLevels(reader, RulePolicy(sampling).levels_needed, *bounds)
        policy = RulePolicy(sampling, levels)
        price = telemetry_price(engine, reader)
        found = dry_run(past(reader, since, until, time.time_ns()), policy, price, budget, blind(sampling))
    found.notes += [f"how often each {level.dimension} came is in no table" for level in levels.unknown]
    return found


def _short(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """For people: fractions of a cent to six places, bytes and counts as they are."""
    return [{k: round(v, 6) if isinstance(v, Decimal) else v for k, v in row.items()} for row in rows]


def _print(found: DryRun, format: Format) -> None:
    if format is Format.json:
        print(json.dumps(plain(found.as_dict()), ensure_ascii=False, indent=2))
        return
    if format is Format.csv:
        print_rows(found.rules, format)
        return
    for title, rows in (
        ("By rule: what it matches, and what it would keep", found.rules),
        ("All together", found.beside),
        ("What must not be missed", found.incidents),
        ("Kept until now, and not by this file", found.missed),
        ("By hour", found.hours),
        ("Budget: what the base rate would have to be", found.budget),
    ):
        if rows:
            if format is Format.markdown:
                print(f"\n{title}\n")
            print_rows(rows if format is Format.markdown else _short(rows), format, title=title)
    for note in found.notes:
        typer.echo(f"note: {note}")
    if not found.traces:
        typer.echo("no traces began in this time; give another --since")
