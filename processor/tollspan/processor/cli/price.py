"""``tollspan price``: what one call costs, and why.

In: usage and selectors from the command line, or a provider's own usage object; the shipped price book and the user's
own in front of it. Out: the charges as rows or one JSON object; with ``--explain`` every price that was looked at and
the arithmetic at every level.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from tollspan.pricing import Charge, Charges, PriceEngine, Selectors
from tollspan.pricing.explain import Explanation, explain
from tollspan.pricing.money import decimal_of
from tollspan.pricing.usage_objects import UsageReading, read_usage
from tollspan.processor.cli.explained import considered_rows, objects_of, print_explanation, quantity
from tollspan.processor.cli.inputs import EXIT_UNPRICED, At, Book, book_of, fail, instant_of, quantities_of
from tollspan.processor.cli.output import Format, print_rows, text

USAGE_FIELDS: Final = ("usage", "usageMetadata", "usage_metadata", "usage_info", "meta")
"""Where a whole response has its usage object."""
_ANSWER_FIELDS: Final = ("data", "output", "outputs", "candidates", "choices", "content")
"""Lists that a response has and no usage object: where there is no usage beside them, the response itself tells it."""
_MODEL_FIELDS: Final = ("model", "modelVersion", "model_version")
_LONGEST_RAW: Final = 16 * 2**20


def price(
    usage: Annotated[
        list[str] | None,
        typer.Option("--usage", help="METER=QUANTITY in the meter's unit; give it once for each meter.", metavar="M=Q"),
    ] = None,
    raw: Annotated[
        Path | None,
        typer.Option(help="A provider's own usage object or whole response, as JSON in a file; - reads stdin."),
    ] = None,
    provider: Annotated[str | None, typer.Option(help="GenAI provider, as in gen_ai.provider.name.")] = None,
    model: Annotated[str | None, typer.Option(help="Model as served.")] = None,
    request_model: Annotated[str | None, typer.Option(help="Model as asked for, where it differs.")] = None,
    at: At = None,
    service_tier: Annotated[str | None, typer.Option(help="As served: default, flex, priority ...")] = None,
    processing: Annotated[str | None, typer.Option(help="online or batch.")] = None,
    region: Annotated[str | None, typer.Option(help="Cloud region.")] = None,
    residency: Annotated[str | None, typer.Option(help="Where the provider was told to process: us, eu ...")] = None,
    cloud_provider: Annotated[str | None, typer.Option(help="aws, gcp, azure ...")] = None,
    host_type: Annotated[str | None, typer.Option(help="Instance type, e.g. m7i.xlarge.")] = None,
    device: Annotated[str | None, typer.Option(help="Device name as the driver gives it.")] = None,
    purchase: Annotated[
        str | None, typer.Option(help="How the machine is paid for: on_demand, spot, reserved_1y ...")
    ] = None,
    book: Book = None,
    fmt: Annotated[Format, typer.Option("--format", help="How to print the charges.")] = Format.table,
    explain_: Annotated[bool, typer.Option("--explain", help="Say which prices were looked at, and why.")] = False,
) -> None:
    """Price one call exactly, at an instant, by the shipped prices and your own.

    Exit codes: 0 priced (or free, or included); 1 a price book is broken; 2 wrong usage; 3 something has no price: then
    the cost is missing, or a lower bound when the status is partial.

    Example: tollspan price --provider openai --model gpt-5-mini --usage tokens.input.uncached=1200
    --usage tokens.output=100 --at 2026-11-20T12:00:00Z --explain
    """
    if bool(usage) == (raw is not None):
        fail("Give what was used: --usage METER=QUANTITY for each meter, or --raw FILE with a provider's usage object.")
    quantities: Mapping[str, int | Decimal] = quantities_of(usage or [])
    instant = instant_of(at)
    reading = None
    if raw is not None:
        body = _json(raw)
        found, response = _usage_in(body)
        model = model or _text(response, _MODEL_FIELDS)
        reading = read_usage(provider, found, model=model, response=response)
        quantities = reading.quantities
        service_tier, residency = service_tier or reading.service_tier, residency or reading.residency
    engine = PriceEngine(book_of(book))
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
        purchase=purchase,
        residency=residency,
    )
    explained = explain(
        engine, quantities, at=instant, selectors=selectors, invalid=reading.invalid if reading is not None else None
    )
    _print(explained, instant, reading, fmt, in_full=explain_)
    if explained.charges.status in ("unpriced", "partial", "invalid"):
        raise typer.Exit(EXIT_UNPRICED)


def _print(explained: Explanation, at: datetime, reading: UsageReading | None, fmt: Format, *, in_full: bool) -> None:
    charges = explained.charges
    if fmt is Format.json:
        print_rows([_object(explained, at, reading, in_full=in_full)], fmt, single=True)
    elif fmt is Format.table:
        if charges.charges:
            print_rows([_brief_row(charge, _levelled(charges)) for charge in charges.charges], fmt)
        _print_summary(explained, reading)
        if in_full:
            print_explanation(explained)
    elif in_full:
        print_rows([row for meter in explained.meters for row in considered_rows(meter)], fmt)
    else:
        print_rows([_row(charge) for charge in charges.charges], fmt)


def _json(path: Path) -> Any:
    """A JSON document, its numbers exact."""
    try:
        raw = sys.stdin.read(_LONGEST_RAW) if str(path) == "-" else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        fail(f"--raw {path}: cannot read it: {getattr(error, 'strerror', None) or error}.")
    try:
        body = json.loads(raw, parse_float=Decimal)
    except (ValueError, RecursionError) as error:
        fail(f"--raw {path}: not JSON: {error}.")
    if not isinstance(body, dict):
        fail(f"--raw {path}: expected a JSON object, the usage of a response or the whole response.")
    return body


def _usage_in(body: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The usage object of a document, and the response around it if the document is one."""
    for field in USAGE_FIELDS:
        if isinstance(body.get(field), dict):
            return body[field], body
    if any(isinstance(body.get(field), list) for field in _ANSWER_FIELDS):
        return {}, body
    return body, None


def _text(response: Mapping[str, Any] | None, fields: tuple[str, ...]) -> str | None:
    given = (response[field] for field in fields if response and isinstance(response.get(field), str))
    return next(given, None)


def _levelled(charges: Charges) -> bool:
    """Whether some charge costs something else at list or contracted prices."""
    return any(c.cost != c.list_cost or c.cost != c.contracted_cost for c in charges.charges if c.cost is not None)


def _row(charge: Charge) -> dict[str, object]:
    return {
        "meter": charge.meter,
        "quantity": _exact(charge.quantity),
        "unit": charge.unit,
        "unit_price": charge.unit_price,
        "per": charge.per,
        "cost": charge.cost,
        "contracted_cost": charge.contracted_cost,
        "list_cost": charge.list_cost,
        "status": charge.status,
        "reasons": ",".join(charge.reasons),
        "price_id": charge.price_id,
        "matched_by": charge.matched_by,
    }


def _brief_row(charge: Charge, levelled: bool) -> dict[str, object]:
    """What a terminal has room for; the rest is told by --explain."""
    row: dict[str, object] = {
        "meter": charge.meter,
        "quantity": quantity(charge),
        "price": "—" if charge.unit_price is None else f"{text(charge.unit_price)} / {charge.per}",
        "cost": charge.status if charge.cost is None else charge.cost,
    }
    return row | {"contracted": charge.contracted_cost, "list": charge.list_cost} if levelled else row


def _exact(value: Decimal) -> Decimal | int:
    """A whole quantity as an int, so that it reads as one."""
    return int(value) if value == value.to_integral_value() else value


def _object(explained: Explanation, at: datetime, reading: UsageReading | None, *, in_full: bool) -> dict[str, object]:
    charges = explained.charges
    body: dict[str, object] = {
        "cost": charges.cost,
        "contracted_cost": charges.contracted_cost,
        "list_cost": charges.list_cost,
        "currency": charges.currency,
        "status": charges.status,
        "reasons": list(charges.reasons),
        "at": at,
        "book_version": charges.book_version,
        "charges": [{**_row(charge), "reasons": list(charge.reasons)} for charge in charges.charges],
    }
    if reading is not None:
        body |= {
            "convention": reading.convention,
            "reported_cost": reading.reported_cost,
            "unknown_counts": list(reading.unknown),
        }
    if explained.suggestions:
        body["suggestion"] = " ".join(suggestion.text for suggestion in explained.suggestions)
    if in_full:
        body["explanation"] = objects_of(explained)
    return body


def _print_summary(explained: Explanation, reading: UsageReading | None) -> None:
    charges = explained.charges
    console = Console(highlight=False, soft_wrap=True)
    lines = [f"{_cost(charges)}: {charges.status}{_reasons(charges)}"]
    if _levelled(charges):
        levels = (("contracted", charges.contracted_cost), ("list", charges.list_cost))
        lines.append(", ".join(f"{name} {_usd(cost)}" for name, cost in levels))
    if reading is not None:
        lines.extend(_reading_lines(reading, charges))
    lines.append(f"prices: {charges.book_version}")
    lines.extend(suggestion.text for suggestion in explained.suggestions)
    for line in lines:
        console.print(line, markup=False)


def _reading_lines(reading: UsageReading, charges: Charges) -> list[str]:
    lines = [f"counted as: {reading.convention}"] if reading.convention is not None else []
    if reading.reported_cost is not None:
        line = f"reported by the provider: {_usd(reading.reported_cost)}"
        if charges.cost is not None and reading.reported_cost:
            # The provider's own figure is the whole: how far ours is from it, in percent.
            away = Fraction(charges.cost - reading.reported_cost) / Fraction(reading.reported_cost)
            line += f"; ours is {text(decimal_of(round(away * 10**4), 2))} % away"
        lines.append(line)
    if reading.unknown:
        lines.append(f"not read, and may be billed: {', '.join(reading.unknown)}")
    return lines


def _cost(charges: Charges) -> str:
    if charges.cost is None:
        return "no cost"
    return ("at least " if charges.status == "partial" else "") + _usd(charges.cost)


def _usd(amount: Decimal | None) -> str:
    return "unknown" if amount is None else f"{text(amount)} USD"


def _reasons(charges: Charges) -> str:
    return f" ({', '.join(charges.reasons)})" if charges.reasons else ""
