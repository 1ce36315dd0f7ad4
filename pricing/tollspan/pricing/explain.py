"""Explanations: which prices were looked at for a call, why one was chosen, and the arithmetic of every charge.

In: an engine, and the call as `PriceEngine.price` takes it. Out: an `Explanation`, which says nothing that the engine
did not do: its costs are the charges' own, its rows those of `PriceEngine.explain`. Where something has no price it
holds `suggestions`. Nothing is printed here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Final, Literal

from tollspan.pricing import money
from tollspan.pricing.charges import Charge, Charges
from tollspan.pricing.engine import PriceEngine, instant_of
from tollspan.pricing.meters import METERS
from tollspan.pricing.resolve import INPUT_TOKENS, Considered, Quote
from tollspan.pricing.rows import WHOLE, PriceRow, Source
from tollspan.pricing.selectors import Selectors
from tollspan.pricing.suggestions import Suggestion, suggestions

LevelName = Literal["effective", "contracted", "list"]

_UNTOLD: Final = Source()


@dataclass(frozen=True, slots=True)
class Times:
    """Something that a price was multiplied by.

    Attributes:
        name: id of the factor or adjustment, or ``share of the device``.
        factor: exact.
        source: where it was read.
    """

    name: str
    factor: Fraction
    source: Source = _UNTOLD


@dataclass(frozen=True, slots=True)
class Part:
    """A quantity at one unit price: the whole charge, or what falls into one step of a graduated price.

    Attributes:
        quantity: billed, in the meter's unit, nine decimals.
        amount: USD for the row's pricing unit, before it is multiplied by anything.
        above: where the step begins, None for the first one: input tokens of the request, or the meter's units where
            the price is graduated.
    """

    quantity: Decimal
    amount: Decimal
    above: Decimal | None = None


@dataclass(frozen=True, slots=True)
class Level:
    """The arithmetic of a charge at one level.

    Attributes:
        name: ``effective`` (what is charged), ``contracted`` or ``list``.
        row: the price.
        layer: book that it is from.
        matched_by: how it was found.
        parts: what was multiplied with which amount; the exact sum, times `times`, is rounded once to `cost`.
        times: what the price was multiplied by.
        cost: USD, twelve decimals.
        raised: the least quantity was charged, since fewer were used.
    """

    name: LevelName
    row: PriceRow
    layer: str
    matched_by: str
    parts: tuple[Part, ...]
    times: tuple[Times, ...]
    cost: Decimal
    raised: bool = False


@dataclass(frozen=True, slots=True)
class MeterExplanation:
    """Why one meter cost what it cost.

    Attributes:
        charge: as the engine made it.
        levels: effective first, then those of the lower levels that differ from the one before; empty when unpriced.
        considered: every price that was looked at, in order.
        suggestions: where it is unpriced.
    """

    charge: Charge
    levels: tuple[Level, ...]
    considered: tuple[Considered, ...]
    suggestions: tuple[Suggestion, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why one call cost what it cost.

    Attributes:
        charges: as the engine made them.
        at: ns since the epoch.
        selectors: in the spelling that books are matched in.
        input_tokens: what cliff tiers go by; None when no input was told.
        meters: one for each charge, in their order.
        suggestions: of all meters, each once.
    """

    charges: Charges
    at: int
    selectors: Selectors
    input_tokens: int | None
    meters: tuple[MeterExplanation, ...]
    suggestions: tuple[Suggestion, ...]


def explain(
    engine: PriceEngine,
    usage: Mapping[str, int | Decimal],
    *,
    at: datetime | int,
    selectors: Selectors,
    invalid: str | None = None,
) -> Explanation:
    """Price a call and say why it costs that. Arguments and errors are those of `PriceEngine.price`."""
    instant = at if isinstance(at, int) else instant_of(at)
    charges = engine.price(usage, at=instant, selectors=selectors, invalid=invalid)
    counted = [_steps(meter, value) for meter, value in usage.items() if meter in INPUT_TOKENS]
    input_tokens = sum(counted) if counted else None
    meters: list[MeterExplanation] = []
    for charge in charges.charges:
        if charge.status == "invalid":
            meters.append(MeterExplanation(charge, (), (), ()))
            continue
        situation = engine.situation(METERS[charge.meter].axis, selectors)
        levels = tuple(_levels(charge, situation.quote(charge.meter, instant), input_tokens))
        considered = tuple(engine.explain(charge.meter, at=instant, selectors=selectors))
        helpful = tuple(suggestions(engine.book, charge, instant, situation))
        meters.append(MeterExplanation(charge, levels, considered, helpful))
    once = tuple(dict.fromkeys(suggestion for meter in meters for suggestion in meter.suggestions))
    return Explanation(charges, instant, selectors.normalized(), input_tokens, tuple(meters), once)


def _steps(meter: str, value: int | Decimal) -> int:
    return value if isinstance(value, int) else money.steps_of(meter, value)


def _levels(charge: Charge, quote: Quote, input_tokens: int | None) -> Iterator[Level]:
    contracted = quote.contracted or quote
    listed = quote.listed or quote
    seen: list[Quote] = []
    named: tuple[tuple[LevelName, Quote, Decimal | None], ...] = (
        ("effective", quote, charge.cost),
        ("contracted", contracted, charge.contracted_cost),
        ("list", listed, charge.list_cost),
    )
    for name, of_level, cost in named:
        if of_level.row is None or cost is None or any(of_level is earlier for earlier in seen):
            continue
        seen.append(of_level)
        steps = money.steps_of(charge.meter, charge.quantity)
        billed = max(steps, of_level.minimum) if steps else 0
        yield Level(
            name,
            of_level.row,
            of_level.layer,
            of_level.matched_by,
            tuple(_parts(charge.meter, of_level, billed, input_tokens)),
            _times(of_level),
            cost,
            raised=billed > steps,
        )


def _parts(meter: str, quote: Quote, billed: int, input_tokens: int | None) -> Iterator[Part]:
    assert quote.row is not None
    amounts = [amount for amount, _ in quote.row.rates]
    if not quote.graduated:
        step = quote.step(input_tokens)
        above = Decimal(quote.bounds[step - 1]) if step else None
        yield Part(money.quantity(meter, billed), amounts[step], above)
        return
    below = 0
    for amount, bound in zip(amounts, (*quote.bounds, None), strict=True):
        upper = billed if bound is None else min(billed, bound)
        if upper > below or not billed:
            yield Part(money.quantity(meter, upper - below), amount, money.quantity(meter, below) if below else None)
            below = upper
        if not billed:
            return


def _times(quote: Quote) -> tuple[Times, ...]:
    """What the row's price was multiplied by."""
    if quote.row is None or quote.row.kind == "included":
        return ()
    times = [Times(factor.id, factor.factor, factor.source) for factor in quote.factors]
    return (Times("share of the device", quote.share), *times) if quote.share != WHOLE else tuple(times)
