"""``tollspan prices breakeven``: from which use on owned GPUs cost less than rented ones."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Final

import typer

from tollspan.pricing import PriceEngine, Selectors
from tollspan.pricing.engine import instant_of as ns_of
from tollspan.pricing.explain import explain
from tollspan.pricing.money import decimal_of, units_of
from tollspan.pricing.onprem import MONTH_HOURS, read_tco
from tollspan.pricing.onprem import breakeven as break_even
from tollspan.processor.cli.inputs import EXIT_UNPRICED, At, Book, amount_of, book_of, fail, instant_of
from tollspan.processor.cli.output import Format, print_rows, text

GPU: Final = "gpu.seconds"


def breakeven(
    tco: Annotated[Path, typer.Argument(help="What the machines cost (YAML).")],
    cloud_price: Annotated[str | None, typer.Option(help="USD for an hour of one GPU in the cloud.")] = None,
    device: Annotated[str | None, typer.Option(help="Or the price of this device, from the books.")] = None,
    cloud_provider: Annotated[str | None, typer.Option(help="With --device: aws, gcp, azure ...")] = None,
    host_type: Annotated[str | None, typer.Option(help="With --device: instance type.")] = None,
    region: Annotated[str | None, typer.Option(help="With --device: cloud region.")] = None,
    purchase: Annotated[str | None, typer.Option(help="With --device: on_demand, spot, reserved_1y ...")] = None,
    hours: Annotated[
        str | None, typer.Option(help="Busy hours a month of one GPU, for the payback; left out = by utilisation.")
    ] = None,
    at: At = None,
    book: Book = None,
    fmt: Annotated[Format, typer.Option("--format", help="How to print the answer.")] = Format.table,
) -> None:
    """Compare GPUs that you own with GPUs that you rent.

    Break-even are the busy hours a month from which owning one costs less, capex spread over its months. Payback is the
    time in which the cash that is saved returns what was invested: it counts capex once.

    Exit codes: 0 answered; 1 the file is broken; 2 wrong usage; 3 the device has no price.

    Example: tollspan prices breakeven hall-2.yaml --cloud-price 2.99
    """
    if (cloud_price is None) == (device is None):
        fail("Give the cloud's price: --cloud-price USD for a GPU's hour, or --device with where it runs.")
    owned = read_tco(tco)
    if cloud_price is not None:
        price, of = Fraction(amount_of(cloud_price, "--cloud-price")), "as given"
    else:
        selectors = Selectors(
            cloud_provider=cloud_provider, device=device, host_type=host_type, region=region, purchase=purchase
        )
        price, of = _listed(PriceEngine(book_of(book)), ns_of(instant_of(at)), selectors)
    used = amount_of(hours, "--hours") if hours is not None else None
    try:
        found = break_even(owned, price, hours=used)
    except ValueError as error:
        fail(f"--hours {hours}: {error}.")
    if fmt is not Format.table:
        print_rows(
            [
                {
                    "cloud_hour": _rounded(price, 6),
                    "cloud_price_id": of,
                    "owned_hour": _rounded(owned.hour, 6),
                    "owned_useful_hour": _rounded(owned.useful_hour, 6),
                    "breakeven_hours": _rounded(found.hours, 2),
                    "breakeven_utilisation_percent": _rounded(found.utilisation, 2, 100),
                    "used_hours": _rounded(found.used_hours, 2),
                    "payback_months": _rounded(found.payback_months, 2),
                    "cloud_month": _rounded(found.cloud_month, 2),
                    "owned_month": _rounded(found.owned_month, 2),
                    "cash_month": _rounded(found.cash_month, 2),
                }
            ],
            fmt,
            single=True,
        )
        return
    for line in (
        f"owned, {owned.gpus} × {owned.device}: {_usd(owned.hour, 6)} for an hour of one GPU, "
        f"{_usd(owned.useful_hour, 6)} for a useful one ({_text(owned.utilisation, 1, 100)} %)",
        f"cloud: {_usd(price, 6)} ({of})",
        _even(found.hours, found.utilisation),
        f"at {_text(found.used_hours, 1)} busy hours a month: cloud {_usd(found.cloud_month, 2)}, "
        f"owned {_usd(found.owned_month, 2)}, of which cash {_usd(found.cash_month, 2)} a month",
        f"payback: {_text(found.payback_months, 1)} months"
        if found.payback_months is not None
        else "payback: never, owning saves no cash at that use",
    ):
        typer.echo(line)


def _even(hours: Fraction | None, utilisation: Fraction | None) -> str:
    if hours is None or utilisation is None:
        return "break-even: never, the cloud's hour costs no more than the power of an owned one"
    reach = "" if utilisation <= 1 else f"; a month has {MONTH_HOURS}, so never"
    return f"break-even: {_text(hours, 1)} busy hours a month of one GPU, {_text(utilisation, 1, 100)} % of them{reach}"


def _listed(engine: PriceEngine, at: int, selectors: Selectors) -> tuple[Fraction, str]:
    """USD for an hour of a device by the books, and the price's id."""
    explained = explain(engine, {GPU: Decimal(1)}, at=at, selectors=selectors)
    quote = engine.quote(GPU, at=at, selectors=selectors)
    rate = quote.steps[0][2]
    if quote.row is None or rate is None:
        hints = " ".join(suggestion.text for suggestion in explained.suggestions)
        typer.echo(f"error: {selectors.device}: no price ({', '.join(quote.reasons)}). {hints}".strip(), err=True)
        raise typer.Exit(EXIT_UNPRICED)
    hour = units_of(GPU)["hour"] * 10**9
    return Fraction(rate.num * hour, rate.den * 10**12), quote.row.id


def _rounded(value: Fraction | None, decimals: int, times: int = 1) -> Decimal | None:
    """Half to even; only what is shown is rounded."""
    return None if value is None else decimal_of(round(value * times * 10**decimals), decimals)


def _text(value: Fraction | None, decimals: int, times: int = 1) -> str:
    return text(_rounded(value, decimals, times))


def _usd(value: Fraction, decimals: int) -> str:
    return f"{_text(value, decimals)} USD"
