"""``tollspan price``: what one call costs, and why.

In: usage and selectors from the command line, the shipped price book and the user's own in front of it. Out: the
charges as a table or one JSON object; with ``--explain`` every price that was looked at and the arithmetic.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Final, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from tollspan.pricing import METERS, Charge, Charges, PriceBook, PriceEngine, Selectors, load_book, shipped_book
from tollspan.pricing.money import steps_of
from tollspan.pricing.names import close, nearest
from tollspan.pricing.resolve import Considered
from tollspan.processor.cli.output import Format, plain, print_rows, text

EXIT_USAGE: Final = 2
EXIT_UNPRICED: Final = 3


def price(
    usage: Annotated[
        list[str],
        typer.Option("--usage", help="METER=QUANTITY in the meter's unit; give it once for each meter.", metavar="M=Q"),
    ],
    provider: Annotated[str | None, typer.Option(help="GenAI provider, as in gen_ai.provider.name.")] = None,
    model: Annotated[str | None, typer.Option(help="Model as served.")] = None,
    request_model: Annotated[str | None, typer.Option(help="Model as asked for, where it differs.")] = None,
    at: Annotated[str | None, typer.Option(help="Instant, e.g. 2026-11-20T12:00:00Z; left out = now.")] = None,
    service_tier: Annotated[str | None, typer.Option(help="As served: default, flex, priority ...")] = None,
    processing: Annotated[str | None, typer.Option(help="online or batch.")] = None,
    region: Annotated[str | None, typer.Option(help="Cloud region.")] = None,
    cloud_provider: Annotated[str | None, typer.Option(help="aws, gcp, azure ...")] = None,
    host_type: Annotated[str | None, typer.Option(help="Instance type, e.g. m7i.xlarge.")] = None,
    device: Annotated[str | None, typer.Option(help="Device name as the driver gives it.")] = None,
    book: Annotated[
        Path | None, typer.Option("--book", "--prices", help="Your own price book (YAML), in front of the shipped one.")
    ] = None,
    fmt: Annotated[Format, typer.Option("--format", help="How to print the charges.")] = Format.table,
    explain: Annotated[bool, typer.Option("--explain", help="Say which prices were looked at, and why.")] = False,
) -> None:
    """Price one call exactly, at an instant, by the shipped prices and your own.

    Exit codes: 0 priced (or free); 2 wrong usage; 3 something has no price: then the cost is missing, or a lower bound
    when the status is partial.

    Example: tollspan price --provider openai --model gpt-5-mini --usage tokens.input.uncached=1200
    --usage tokens.output=100 --at 2026-11-20T12:00:00Z --explain
    """
    quantities = _quantities(usage)
    instant = _instant(at)
    engine = PriceEngine(load_book(book) if book is not None else shipped_book())
    selectors = Selectors(
        provider=provider,
        model=model,
        request_model=request_model,
        service_tier=service_tier,
        processing=processing,
        region=region,
        cloud_provider=cloud_provider,
        host_type=host_type,
        device=device,
    )
    charges = engine.price(quantities, at=instant, selectors=selectors)
    considered = (
        {c.meter: engine.explain(c.meter, at=instant, selectors=selectors) for c in charges.charges} if explain else {}
    )
    suggestion = _suggestion(engine.book, selectors, charges)
    if fmt is Format.json:
        print_rows([_object(charges, instant, considered, suggestion)], fmt, single=True)
    else:
        print_rows([(_brief_row if fmt is Format.table else _row)(charge) for charge in charges.charges], fmt)
        if fmt is Format.table:
            _print_summary(charges, suggestion)
            for meter, looked_at in considered.items():
                _print_explanation(next(c for c in charges.charges if c.meter == meter), looked_at)
    if charges.status in ("unpriced", "partial", "invalid"):
        raise typer.Exit(EXIT_UNPRICED)


def _fail(message: str) -> NoReturn:
    print(f"error: {message.strip()}", file=sys.stderr)
    raise typer.Exit(EXIT_USAGE)


def _quantities(usage: Sequence[str]) -> dict[str, Decimal]:
    quantities: dict[str, Decimal] = {}
    for item in usage:
        meter, equals, number = item.partition("=")
        meter = meter.strip()
        if not equals:
            _fail(f"--usage {item}: expected METER=QUANTITY, like tokens.output=100.")
        if meter not in METERS:
            _fail(f"--usage {item}: {meter!r} is not a meter. {nearest(meter, METERS)}")
        if meter in quantities:
            _fail(f"--usage {item}: {meter} is given twice.")
        try:
            quantity = Decimal(number.strip())
            steps_of(meter, quantity)
        except InvalidOperation:
            _fail(f"--usage {item}: {number!r} is not a number.")
        except ValueError as error:
            _fail(f"--usage {item}: {error}.")
        if quantity < 0:
            _fail(f"--usage {item}: a quantity is 0 or more.")
        quantities[meter] = quantity
    return quantities


def _instant(at: str | None) -> datetime:
    if at is None:
        return datetime.now(UTC)
    try:
        moment = datetime.fromisoformat(at)
    except ValueError:
        _fail(f"--at {at}: not an instant. Write it like 2026-11-20T12:00:00Z.")
    if moment.tzinfo is None and len(at) > len("2026-11-20"):
        _fail(f"--at {at}: no time zone. End it with Z or an offset.")
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _suggestion(book: PriceBook, selectors: Selectors, charges: Charges) -> str:
    """Names that an unknown one may have meant."""
    if "unknown_model" not in charges.reasons:
        return ""
    if selectors.provider is None:
        return "No provider is given; prices are found by provider and model."
    name = selectors.model or selectors.request_model or ""
    names = close(name, book.names("model", selectors.normalized()))
    return f"Did you mean {', '.join(names)}?" if names else ""


def _row(charge: Charge) -> dict[str, object]:
    return {
        "meter": charge.meter,
        "quantity": _exact(charge.quantity),
        "unit": charge.unit,
        "unit_price": charge.unit_price,
        "per": charge.per,
        "cost": charge.cost,
        "status": charge.status,
        "reasons": ",".join(charge.reasons),
        "price_id": charge.price_id,
        "matched_by": charge.matched_by,
    }


def _brief_row(charge: Charge) -> dict[str, object]:
    """What a terminal has room for; the rest is told by --explain."""
    return {
        "meter": charge.meter,
        "quantity": f"{text(_exact(charge.quantity))} {charge.unit}",
        "price": "—" if charge.unit_price is None else f"{text(charge.unit_price)} / {charge.per}",
        "cost": charge.status if charge.cost is None else charge.cost,
    }


def _exact(quantity: Decimal) -> Decimal | int:
    """A whole quantity as an int, so that it reads as one."""
    return int(quantity) if quantity == quantity.to_integral_value() else quantity


def _object(
    charges: Charges, at: datetime, considered: dict[str, list[Considered]], suggestion: str
) -> dict[str, object]:
    body: dict[str, object] = {
        "cost": charges.cost,
        "currency": charges.currency,
        "status": charges.status,
        "reasons": list(charges.reasons),
        "at": at,
        "book_version": charges.book_version,
        "charges": [{**_row(charge), "reasons": list(charge.reasons)} for charge in charges.charges],
    }
    if suggestion:
        body["suggestion"] = suggestion
    if considered:
        body["explanation"] = {
            meter: [
                {
                    "price_id": item.row.id if item.row is not None else None,
                    "book": item.layer,
                    "matched_by": item.matched_by,
                    "verdict": item.verdict,
                    "amount": item.row.amount if item.row is not None else None,
                    "per": item.row.per_unit if item.row is not None else None,
                    "source": item.row.source.url if item.row is not None else None,
                }
                for item in items
            ]
            for meter, items in considered.items()
        }
    return body


def _print_summary(charges: Charges, suggestion: str) -> None:
    console = Console(highlight=False, soft_wrap=True)
    cost = "no cost" if charges.cost is None else f"{text(charges.cost)} {charges.currency}"
    if charges.status == "partial":
        cost = f"at least {cost}"
    reasons = f" ({', '.join(charges.reasons)})" if charges.reasons else ""
    console.print(f"{cost}: {charges.status}{reasons}", markup=False)
    console.print(f"prices: {charges.book_version}", markup=False)
    if suggestion:
        console.print(suggestion, markup=False)


def _print_explanation(charge: Charge, considered: Sequence[Considered]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"\n[bold]{escape(charge.meter)}[/bold]")
    if charge.cost is not None and charge.unit_price is not None:
        quantity = f"{text(_exact(charge.quantity))} {charge.unit}"
        console.print(
            f"  {quantity} × {text(charge.unit_price)} USD per {charge.per} = {text(charge.cost)} USD", markup=False
        )
        console.print(f"  price {charge.price_id}, found by: {charge.matched_by}", markup=False)
    else:
        console.print(f"  no price: {', '.join(charge.reasons)}", markup=False)
    for item in considered:
        if item.verdict == "chosen" and item.row is not None:
            row = item.row
            console.print(f"  source: {row.source.url or 'not given'}{_provenance(row.source)}", markup=False)
            if row.steps:
                steps = "; ".join(f"above {s.above:,} input tokens {text(s.amount)}" for s in row.steps)
                console.print(f"  tiers: {text(row.amount)} at first; {steps}", markup=False)
            if row.minimum is not None:
                console.print(f"  least quantity charged: {text(row.minimum)} {charge.unit}", markup=False)
            if row.source.note:
                console.print(f"  note: {row.source.note}", markup=False)
    console.print(f"  looked at, in order ({len(considered)}):", markup=False)
    for item in considered:
        what = f"{item.row.id}, {text(item.row.amount)} USD per {item.row.per_unit}: " if item.row is not None else ""
        console.print(f"    {item.layer}, {item.matched_by}: {what}{item.verdict}", markup=False)
    if not considered:
        console.print("    no book knows what was asked for", markup=False)


def _provenance(source: object) -> str:
    parts = [
        f"{label} {value}"
        for label, name in (("retrieved", "retrieved_at"), ("via", "via"))
        if (value := plain(getattr(source, name)))
    ]
    return f" ({', '.join(parts)})" if parts else ""
