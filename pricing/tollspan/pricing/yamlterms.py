"""Factors, adjustments and exchange rates of a YAML book.

In: `Field`s of entries. Out: a `Factor` for each value of a condition that lists several, a `Term`, an `ExchangeRate`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from decimal import Context, Decimal, Inexact
from fractions import Fraction
from typing import Any, Final, Literal, cast

from tollspan.pricing.currencies import USD, ExchangeRate
from tollspan.pricing.meters import METERS
from tollspan.pricing.money import units_of
from tollspan.pricing.names import nearest
from tollspan.pricing.overlaps import covers_name
from tollspan.pricing.patterns import ANY
from tollspan.pricing.rows import ALWAYS, Factor, Source, Term
from tollspan.pricing.yamlfield import Field
from tollspan.pricing.yamlrows import METERS_HINT, Book, combined, conditions, read_source, unit_of

FACTOR_FIELDS: Final = ("id", "match", "when", "percent", "factor", "effective", "source")
ADJUSTMENT_FIELDS: Final = (*FACTOR_FIELDS, "volume", "commitment", "allotment", "currency", "unit")
MATCH_FIELDS: Final = ("provider", "sku", "meter")
VOLUME_FIELDS: Final = ("basis", "mode", "steps")
VOLUME_STEP_FIELDS: Final = ("above", "percent", "factor")
RATE_FIELDS: Final = ("currency", "usd", "effective", "source")

BASES: Final = ("cost", "quantity")
VOLUME_MODES: Final = ("graduated", "cliff")
GRANTS: Final = ("volume", "commitment", "allotment")

_LARGEST_FACTOR: Final = 100
_EXACT: Final = Context(prec=100, traps=[Inexact])


def factors(item: Field, book: Book, position: int) -> Iterator[Factor]:
    """An entry under ``factors:``; ``position`` is its place in the list."""
    yield from _factors(item, item.mapping(*FACTOR_FIELDS), f"{book.name}/factor#{position + 1}")


def adjustments(item: Field, book: Book, position: int) -> Iterator[Factor | Term]:
    """An entry under ``adjustments:``: a percentage, or what is settled over a period."""
    fields = item.mapping(*ADJUSTMENT_FIELDS)
    name = f"{book.name}/adjustment#{position + 1}"
    granted = [grant for grant in (*GRANTS, "percent", "factor") if grant in fields]
    if len(granted) != 1:
        raise item.error(
            f"expected one of percent, factor, {', '.join(GRANTS)}", "Write an adjustment for each." if granted else ""
        )
    if granted[0] not in GRANTS:
        for extra in ("currency", "unit"):
            if extra in fields:
                raise fields[extra].error("a percentage has none", "Leave the field out.")
        yield from _factors(item, fields, name)
        return
    if "when" in fields:
        raise fields["when"].error("what is settled over a period has no conditions", "Leave the field out.")
    if "source" in fields:
        read_source(fields["source"])
    scope = _match(fields)
    term = Term(
        id=fields["id"].text() if "id" in fields else name,
        kind=granted[0],
        effective=fields["effective"].interval() if "effective" in fields else ALWAYS,
        **scope,
    )
    field = fields[granted[0]]
    if granted[0] == "volume":
        yield _volume(term, field, fields, book)
    elif granted[0] == "commitment":
        _refuse(fields, "unit", "a commitment is an amount of money")
        _in_dollars(field, fields, book)
        yield replace(term, amount=_positive(field))
    else:
        _refuse(fields, "currency", "an allotment is a quantity")
        yield replace(term, amount=_EXACT.multiply(_positive(field), _unit(term, field, fields)))


def exchange_rate(item: Field) -> ExchangeRate:
    """An entry under ``exchange_rates:``."""
    fields = item.mapping(*RATE_FIELDS, required=("currency", "usd"))
    currency = fields["currency"].text()
    if len(currency) != 3 or not (currency.isascii() and currency.isalpha() and currency.isupper()):
        raise fields["currency"].error(f"{currency!r} is not a currency", "Write its ISO 4217 code, like EUR.")
    if currency == USD:
        raise fields["currency"].error("USD is what prices are kept in", "Leave the rate out.")
    return ExchangeRate(
        currency=currency,
        usd=_positive(fields["usd"]),
        effective=fields["effective"].interval() if "effective" in fields else ALWAYS,
        source=read_source(fields["source"]) if "source" in fields else Source(),
    )


def _factors(item: Field, fields: Mapping[str, Field], name: str) -> Iterator[Factor]:
    factor = Factor(
        id=fields["id"].text() if "id" in fields else name,
        factor=_factor(item, fields),
        effective=fields["effective"].interval() if "effective" in fields else ALWAYS,
        source=read_source(fields["source"]) if "source" in fields else Source(),
        **_match(fields),
    )
    choices = conditions(fields["when"]) if "when" in fields else []
    for suffix, when in combined(choices, fields.get("when", item)):
        yield replace(factor, id=factor.id + suffix, when=when)


def _match(fields: Mapping[str, Field]) -> dict[str, Any]:
    """Provider, SKU and meter that an entry is about; those left out are any."""
    matched = fields["match"].mapping(*MATCH_FIELDS) if "match" in fields else {}
    scope: dict[str, Any] = {name: field.name() for name, field in matched.items()}
    if scope.get("provider") == ANY:
        del scope["provider"]
    if "meter" in scope and not any(covers_name(scope["meter"], meter) for meter in METERS):
        raise matched["meter"].error(
            f"no meter is called {scope['meter']!r}", nearest(scope["meter"], METERS) or METERS_HINT
        )
    return scope


def _factor(item: Field, fields: Mapping[str, Field]) -> Fraction:
    given = [name for name in ("percent", "factor") if name in fields]
    if len(given) != 1:
        raise item.error("expected one of percent, factor")
    field = fields[given[0]]
    value = Fraction(field.decimal())
    factor = 1 + value / 100 if given[0] == "percent" else value
    if not 0 <= factor <= _LARGEST_FACTOR:
        hint = "percent: -10 takes a tenth off." if given[0] == "percent" else "factor: 0.90 takes a tenth off."
        raise field.error(f"{field.text()!r} is out of range", hint)
    return factor


def _volume(term: Term, field: Field, fields: Mapping[str, Field], book: Book) -> Term:
    volume = field.mapping(*VOLUME_FIELDS, required=("steps",))
    basis = volume["basis"].choice(*BASES) if "basis" in volume else "cost"
    mode = volume["mode"].choice(*VOLUME_MODES) if "mode" in volume else "graduated"
    if basis == "cost":
        _refuse(fields, "unit", "the steps are amounts of money")
        _in_dollars(field, fields, book)
        unit = Decimal(1)
    else:
        _refuse(fields, "currency", "the steps are quantities")
        unit = _unit(term, field, fields)
    steps: list[tuple[Decimal, Fraction]] = []
    for item in volume["steps"].some():
        step = item.mapping(*VOLUME_STEP_FIELDS, required=("above",))
        above = _EXACT.multiply(_positive(step["above"]), unit)
        if steps and above <= steps[-1][0]:
            raise step["above"].error("steps must ascend", "Sort them by 'above'.")
        steps.append((above, _factor(item, step)))
    return replace(
        term,
        basis=cast(Literal["cost", "quantity"], basis),
        graduated=mode == "graduated",
        steps=tuple(steps),
    )


def _unit(term: Term, field: Field, fields: Mapping[str, Field]) -> Decimal:
    """How many of the meter's units the stated unit is; the meters have one unit."""
    meters = [meter for meter in METERS if covers_name(term.meter, meter)]
    units = sorted({METERS[meter].unit for meter in meters})
    if len(units) > 1:
        raise field.error(
            f"the meters that match have different units: {', '.join(units)}", "Name one meter under 'match:'."
        )
    stated = unit_of(fields["unit"], meters[0]) if "unit" in fields else METERS[meters[0]].unit
    return Decimal(units_of(meters[0])[stated])


def _in_dollars(field: Field, fields: Mapping[str, Field], book: Book) -> None:
    currency = fields["currency"].text() if "currency" in fields else book.currency
    if currency != USD:
        raise fields.get("currency", field).error(
            f"what is settled over a period is stated in USD, not in {currency}",
            "State the amount in USD and write currency: USD beside it.",
        )


def _refuse(fields: Mapping[str, Field], name: str, reason: str) -> None:
    if name in fields:
        raise fields[name].error(reason, "Leave the field out.")


def _positive(field: Field) -> Decimal:
    value = field.amount()
    if not value:
        raise field.error(f"{field.text()!r} is not more than 0")
    return value
