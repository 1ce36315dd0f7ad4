"""Explanations as people and programs read them: lines of text, or objects for JSON.

In: an `Explanation` of `tollspan.pricing.explain`. Out: lines without markup, but for the meters' names.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction

from rich.console import Console
from rich.markup import escape

from tollspan.pricing import Charge, PriceRow
from tollspan.pricing.explain import Explanation, Level, MeterExplanation, Part, Times
from tollspan.pricing.meters import METERS
from tollspan.pricing.said import holding, interval_text, verdict_text
from tollspan.processor.cli.output import text


def print_explanation(explanation: Explanation) -> None:
    """Every meter: the arithmetic, the price, where it was read, and what else was looked at."""
    console = Console(highlight=False, soft_wrap=True)
    for meter in explanation.meters:
        console.print(f"\n[bold]{escape(meter.charge.meter)}[/bold]")
        for line in lines_of(meter, explanation):
            console.print(f"  {line}", markup=False)


def lines_of(meter: MeterExplanation, explanation: Explanation) -> Iterator[str]:
    """The explanation of one meter."""
    charge = meter.charge
    if charge.status == "invalid":
        yield f"not priced, the usage cannot be right: {', '.join(charge.reasons)}"
        return
    if not meter.levels:
        yield f"no price: {', '.join(charge.reasons)}"
    shown: list[PriceRow] = []
    for level in meter.levels:
        label = "" if len(meter.levels) == 1 else f"{level.name}: "
        yield f"{label}{_arithmetic(charge, level)}"
        if all(level.row is not row for row in shown):  # a lower level is often the same price, less multiplied
            yield from (f"  {line}" if label else line for line in _about(charge, level, explanation))
            shown.append(level.row)
    if meter.levels and charge.reasons:
        yield f"assumed: {', '.join(charge.reasons)}"
    yield f"looked at, in order ({len(meter.considered)}):"
    for item in meter.considered:
        what = f"{item.row.id}, {_price(item.row)}: " if item.row is not None else ""
        yield f"  {item.layer}, {item.matched_by}: {what}{verdict_text(item, explanation.at)}"
    if not meter.considered:
        yield "  no book knows what was asked for"


def _arithmetic(charge: Charge, level: Level) -> str:
    row = level.row
    if row.kind == "included":
        return f"{quantity(charge)}: included, paid for elsewhere = 0 USD"
    sums = " + ".join(f"{_quantity(part.quantity)} {charge.unit} × {text(part.amount)}" for part in level.parts)
    if len(level.parts) > 1:
        sums = f"({sums})"
    times = "".join(f" × {_times(item)}" for item in level.times)
    return f"{sums} USD per {row.per_unit}{times} = {text(level.cost)} USD"


def _about(charge: Charge, level: Level, explanation: Explanation) -> Iterator[str]:
    row = level.row
    yield f"price {row.id}, found by: {level.matched_by}"
    yield f"{row.kind} price of book {level.layer}, in force {holding(row)}"
    if row.status == "announced":
        yield "it was only announced when the book was written"
    if row.when:
        yield "for " + ", ".join(f"{key} = {value}" for key, value in row.when.items())
    if row.steps:
        yield f"tiers: {tiers_text(row)}{_reached(level.parts, row, explanation)}"
    if row.minimum is not None:
        raised = f"; {_quantity(charge.quantity)} used" if level.raised else ""
        yield f"least quantity charged: {text(row.minimum)} {charge.unit}{raised}"
    if row.stated:
        yield f"stated as {row.stated}"
    for item in level.times:
        where = f": {item.source.url}{_read(item.source)}" if item.source.url else ""
        yield f"× {_times(item)}{where}"
    yield f"source: {row.source.url or 'not given'}{_read(row.source)}"
    if row.source.note:
        yield f"note: {row.source.note}"


def _reached(parts: tuple[Part, ...], row: PriceRow, explanation: Explanation) -> str:
    if row.graduated:
        return ""
    if explanation.input_tokens is None:
        return "; the request's input is not known, so the first applies"
    return f"; this request has {explanation.input_tokens:,} input tokens"


def _times(item: Times) -> str:
    return f"{exact_text(item.factor)} ({item.name})"


def exact_text(value: Fraction) -> str:
    """A fraction as a decimal where it ends, else as it is: ``1.1``, ``1/7``."""
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    if rest != 1:
        return str(value)
    return text(Decimal(value.numerator) / Decimal(value.denominator))


def tiers_text(row: PriceRow) -> str:
    """The steps of a price: ``0.25 at first; above 200,000 input tokens 0.5``."""
    return f"{text(row.amount)} at first; {steps_text(row)}"


def steps_text(row: PriceRow) -> str:
    """What comes after the first step: ``above 200,000 input tokens 0.5``."""
    of = f"{METERS[row.meter].unit} of a call" if row.graduated else "input tokens"
    return "; ".join(f"above {step.above:,} {of} {text(step.amount)}" for step in row.steps)


def _read(source: object) -> str:
    """When, from what and as which document a source was read."""
    labels = (("retrieved", "retrieved_at"), ("via", "via"), ("sha256", "sha256"))
    parts = [f"{label} {value}" for label, name in labels if (value := getattr(source, name))]
    return f" ({', '.join(parts)})" if parts else ""


def _price(row: PriceRow) -> str:
    return f"{text(row.amount)} USD per {row.per_unit}"


def quantity(charge: Charge) -> str:
    """What was used, in its unit."""
    return f"{_quantity(charge.quantity)} {charge.unit}"


def _quantity(value: Decimal) -> str:
    whole = value == value.to_integral_value()
    return text(int(value)) if whole else text(value)


def objects_of(explanation: Explanation) -> dict[str, object]:
    """The explanation by meter, for JSON."""
    return {
        meter.charge.meter: {
            "levels": [_level_object(level) for level in meter.levels],
            "considered": considered_rows(meter),
            "suggestions": [
                {"reason": item.reason, "text": item.text, "values": list(item.values)} for item in meter.suggestions
            ],
        }
        for meter in explanation.meters
    }


def considered_rows(meter: MeterExplanation) -> list[dict[str, object]]:
    """What was looked at for a meter, as rows."""
    return [
        {
            "meter": meter.charge.meter,
            "book": item.layer,
            "price_id": item.row.id if item.row is not None else None,
            "amount": item.row.amount if item.row is not None else None,
            "per": item.row.per_unit if item.row is not None else None,
            "matched_by": item.matched_by,
            "verdict": item.verdict,
            "source": item.row.source.url if item.row is not None else None,
        }
        for item in meter.considered
    ]


def _level_object(level: Level) -> dict[str, object]:
    row = level.row
    return {
        "level": level.name,
        "cost": level.cost,
        "price_id": row.id,
        "kind": row.kind,
        "status": row.status,
        "book": level.layer,
        "matched_by": level.matched_by,
        "parts": [{"quantity": p.quantity, "amount": p.amount, "above": p.above} for p in level.parts],
        "per": row.per_unit,
        "times": [
            {"name": item.name, "factor": exact_text(item.factor), "source": item.source.url} for item in level.times
        ],
        "raised_to_minimum": level.raised,
        "in_force": interval_text(row.effective),
        "when": dict(row.when),
        "source": {name: getattr(row.source, name) for name in ("url", "retrieved_at", "via", "note", "sha256")},
    }
