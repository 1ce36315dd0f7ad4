"""Settlement: what a contract's terms are worth over a period, from the period's totals.

In: the terms of a book (`book.Term`) and what was used in one period, one `Line` for each SKU and meter. Out: one
`Settlement` for each term: a credit, or a shortfall that is owed. Nothing is read or written. It stands apart from the
price of a span, because that may not depend on the order in which spans arrive, and these terms depend on the sum of
them.

Order of settlement, as an invoice has it:

1. Allotments. The first ``amount`` units are free. They are taken at the average contracted price of the period, in
   proportion from every line that counts, so that the order of calls does not matter. Several allotments that cover one
   line are used up one after the other, the most specific first.
2. Volume discounts, on what is left. The step is found by the list cost, or the quantity, that counts; the factor
   applies to the contracted cost. ``graduated``: each stretch of the basis has its own factor, and the contracted cost
   is charged at their average. A line counts towards the most specific discount that covers it, and towards no other.
3. Commitments. What counts is the contracted cost that is left; what is missing to the amount is owed. A cost may count
   towards several commitments.

Credits are divided among their lines by largest remainder, in proportion to cost, so that they add up to the last
10⁻¹² USD. What has no price cannot be counted: it is left out, and the settlement says how many lines were.

A term is settled over the period that it is for, and over no other (`other_period`): an allotment over a calendar month
in UTC; a volume or a commitment over its own interval where it has both ends, else over a calendar month in which it
holds throughout. Of a commitment for a year, a month is no part: what is missing is known when the year is over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Final

from tollspan.pricing.meters import METERS
from tollspan.pricing.money import PICO, QUANTITY_DECIMALS, decimal_of, usd
from tollspan.pricing.overlaps import covers_name, patterns_meet, scope_of
from tollspan.pricing.rows import Interval, Term
from tollspan.pricing.schedule import instant_text
from tollspan.pricing.selectors import owner_of, provider_of

ORDER: Final = ("allotment", "volume", "commitment")
"""Kinds of terms in the order in which they are settled."""

_ONE: Final = Fraction(1)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Line:
    """What was used of one meter of one SKU in the period.

    Attributes:
        provider: model or cloud provider, by the meter's axis; None = not told.
        sku: as its prices spell it, in lower case.
        meter: a name from `METERS`.
        quantity: in the meter's unit, 0 or more.
        list_cost: USD at list prices; None = no list price.
        contracted_cost: USD at contracted prices; None = no price. What is priced and what is not are two lines.
    """

    provider: str | None
    sku: str
    meter: str
    quantity: Decimal
    list_cost: Decimal | None
    contracted_cost: Decimal | None


@dataclass(frozen=True, slots=True)
class Settlement:
    """What one term comes to.

    Attributes:
        term: what was settled.
        cost: USD that count towards it, at contracted prices, after the terms settled before it.
        quantity: that counts towards it, in the meter's unit; None where the meters have several units.
        worth: USD, twelve decimals: a credit (0 or less; a volume discount with a factor above 1 charges more) or the
            shortfall of a commitment (0 or more).
        shares: the credit by line, in the order of the lines, with sum ``worth``; empty for a commitment, whose
            shortfall belongs to no line.
        unpriced: lines that the term covers and that have no price to count.
        reason: how it came about, for people.
        coverage: commitment: part of the eligible cost that it covers; None where nothing is eligible.
        utilisation: commitment: part of it that is used.
        ineligible: commitment: USD that do not count towards it.
    """

    term: Term
    cost: Decimal
    quantity: Decimal | None
    worth: Decimal
    shares: tuple[Decimal, ...]
    unpriced: int
    reason: str
    coverage: Fraction | None = None
    utilisation: Fraction | None = None
    ineligible: Decimal = Decimal(0)


def other_period(term: Term, period: Interval) -> str:
    """For which period a term is, for people, where that is not the one given; empty where it is.

    Args:
        term: one that holds at some instant of the period.
        period: with both ends.
    """
    start, end = term.effective.start, term.effective.end
    if term.kind != "allotment" and start is not None and end is not None:
        if term.effective == period:
            return ""
        bounds = f"--since {instant_text(start)} --until {instant_text(end)}"
        return f"it is for {instant_text(start)} until {instant_text(end)}, as a whole: settle it with {bounds}"
    if not _is_month(period):
        return "it is for a calendar month: settle it with --month"
    if any(period.holds(cut) and cut != period.start for cut in term.effective.cuts):
        return "it is for a calendar month, and holds in a part of this one: let it begin and end with a month"
    return ""


def _is_month(period: Interval) -> bool:
    """Whether it is a calendar month in UTC."""
    assert period.start is not None
    assert period.end is not None
    first, after = (_EPOCH + timedelta(microseconds=at // 1000) for at in (period.start, period.end))
    months = (after.year - first.year) * 12 + after.month - first.month
    return months == 1 and all(
        at % (86_400 * 10**9) == 0 and day.day == 1 for at, day in ((period.start, first), (period.end, after))
    )


def follows(term: Term, other: Term) -> bool:
    """Whether what counts towards a term may be less by the credits of another, which is settled before it."""
    return (
        ORDER.index(other.kind) < ORDER.index(term.kind)
        and (
            None in (term.provider, other.provider)
            or term.provider == other.provider
            or provider_of(term.provider) == provider_of(other.provider)
        )
        and patterns_meet(term.sku, other.sku)
        and patterns_meet(term.meter, other.meter)
    )


def months_of(period: Interval) -> list[Interval]:
    """The calendar months in UTC that a period with both ends is made of; none where it is not made of whole ones."""
    assert period.start is not None
    assert period.end is not None
    found: list[Interval] = []
    start = period.start
    while start < period.end:
        first = _EPOCH + timedelta(microseconds=start // 1000)
        after = (first.replace(day=1) + timedelta(days=31)).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        month = Interval(start, (after - _EPOCH) // timedelta(microseconds=1) * 1000)
        if not _is_month(month):
            return []
        found.append(month)
        start = month.end or period.end
    return found if start == period.end else []


def settle(
    terms: Sequence[Term], lines: Sequence[Line], *, months: Sequence[tuple[Sequence[Term], int]] = ()
) -> list[Settlement]:
    """Settlement of each term, in the order of the terms.

    Args:
        terms: those that are for one period (`other_period`).
        lines: of that period. No two of them are about the same usage.
        months: of a longer period, the terms of each month in it, and how many of the lines are that month's, in the
            order of the lines. They are settled first, for what they leave.

    Raises:
        ValueError: a quantity or a cost is below 0.
    """
    left = [_Left(line) for line in lines]
    discounted: set[int] = set()
    begin = 0
    for monthly, count in months:
        _settle(monthly, left[begin : begin + count], discounted)
        begin += count
    return _settle(terms, left, discounted)


def _settle(terms: Sequence[Term], left: Sequence[_Left], discounted: set[int]) -> list[Settlement]:
    settled: dict[int, Settlement] = {}
    by_rank = sorted(terms, key=lambda term: scope_of(term).specificity, reverse=True)
    for kind in ORDER:
        for term in (term for term in by_rank if term.kind == kind):
            own = [item for item in left if item.counts_towards(term)]
            if kind == "volume":
                own = [item for item in own if id(item) not in discounted]
                discounted.update(map(id, own))
            settled[id(term)] = _SETTLED[kind](term, own, left)
    return [settled[id(term)] for term in terms]


class _Left:
    """What is left of a line, as terms are settled one after the other.

    Attributes:
        quantity: exact, in the meter's unit.
        listed: exact, in pico-dollars; None = no list price.
        cost: contracted, pico-dollars; None = no price.
    """

    __slots__ = ("cost", "line", "listed", "quantity")

    def __init__(self, line: Line) -> None:
        if line.quantity < 0 or (line.list_cost or 0) < 0 or (line.contracted_cost or 0) < 0:
            raise ValueError(f"{line} is below 0")
        self.line = line
        self.quantity = Fraction(line.quantity)
        self.listed = None if line.list_cost is None else Fraction(_pico(line.list_cost))
        self.cost = None if line.contracted_cost is None else _pico(line.contracted_cost)

    def counts_towards(self, term: Term) -> bool:
        axis = METERS[self.line.meter].axis
        return (
            (term.provider is None or owner_of(axis, term.provider) == owner_of(axis, self.line.provider))
            and covers_name(term.meter, self.line.meter)
            and covers_name(term.sku, self.line.sku)
        )


def _allotment(term: Term, own: Sequence[_Left], lines: Sequence[_Left]) -> Settlement:
    used = sum((item.quantity for item in own), Fraction(0))
    free = min(Fraction(term.amount), used)
    part = free / used if used else Fraction(0)
    cost = _cost_of(own)
    shares = _divided(round(cost * part), own)
    reason = f"{_plain(free)} of {_plain(used)} {_unit_of(own)} are free, at the period's average contracted price"
    settlement = _settlement(term, own, lines, used, cost, -1, shares, reason)
    for item in own:
        item.quantity *= 1 - part
        if item.listed is not None:
            item.listed *= 1 - part
        if item.cost is not None:
            item.cost -= shares.get(id(item), 0)
    return settlement


def _volume(term: Term, own: Sequence[_Left], lines: Sequence[_Left]) -> Settlement:
    priced = [item for item in own if item.cost is not None and (term.basis == "quantity" or item.listed is not None)]
    used = sum((item.quantity for item in own), Fraction(0))
    if term.basis == "cost":
        basis = sum((item.listed for item in priced if item.listed is not None), Fraction(0)) / 10**PICO
        told = f"{_plain(basis)} USD of list cost"
    else:
        basis = used
        told = f"{_plain(basis)} {_unit_of(own)}"
    factor = _factor_at(term, basis)
    cost = _cost_of(priced)
    change = round(cost * factor) - cost
    shares = _divided(abs(change), priced)
    reached = max((above for above, _ in term.steps if basis > above), default=None)
    step = "reach no step" if reached is None else f"reach the step above {reached:f}"
    reason = f"{told} {step}: {_percent(factor)} of the contracted cost is charged"
    settlement = _settlement(term, own, lines, used, cost, -1 if change < 0 else 1, shares, reason)
    for item in priced:
        if item.cost is not None:
            item.cost += shares.get(id(item), 0) * (-1 if change < 0 else 1)
    return settlement


def _factor_at(term: Term, basis: Fraction) -> Fraction:
    """What a volume's contracted cost is multiplied by."""
    bounds = [Fraction(0), *(Fraction(above) for above, _ in term.steps)]
    factors = [_ONE, *(factor for _, factor in term.steps)]
    if not term.graduated:
        return [factor for bound, factor in zip(bounds, factors, strict=True) if bound == 0 or basis > bound][-1]
    if not basis:
        return _ONE
    ends = [*bounds[1:], basis]
    stretches = (max(min(end, basis) - start, Fraction(0)) for start, end in zip(bounds, ends, strict=True))
    charged = sum((part * factor for part, factor in zip(stretches, factors, strict=True)), Fraction(0))
    return charged / basis


def _commitment(term: Term, own: Sequence[_Left], lines: Sequence[_Left]) -> Settlement:
    amount, eligible = _pico(term.amount), _cost_of(own)
    covered = min(amount, eligible)
    ineligible = _cost_of(lines) - eligible
    coverage = Fraction(covered, eligible) if eligible else None
    utilisation = Fraction(covered, amount) if amount else None
    told = f"{_money(covered)} of {_money(eligible)} USD eligible cost are covered"
    reason = (
        f"{told}{'' if coverage is None else f' ({_percent(coverage)})'}, "
        f"{'' if utilisation is None else f'{_percent(utilisation)} of the commitment is used, '}"
        f"{_money(ineligible)} USD are not eligible"
    )
    if covered < amount:
        reason += f"; {_money(amount - covered)} USD are owed for what was not used"
    unpriced = sum(item.cost is None for item in own)
    return Settlement(
        term=term,
        cost=usd(eligible),
        quantity=_quantity(own, sum((item.quantity for item in own), Fraction(0))),
        worth=usd(amount - covered),
        shares=(),
        unpriced=unpriced,
        reason=reason + _left_out(unpriced),
        coverage=coverage,
        utilisation=utilisation,
        ineligible=usd(ineligible),
    )


_SETTLED: Final = {"allotment": _allotment, "volume": _volume, "commitment": _commitment}


def _settlement(
    term: Term,
    own: Sequence[_Left],
    lines: Sequence[_Left],
    used: Fraction,
    cost: int,
    sign: int,
    shares: dict[int, int],
    reason: str,
) -> Settlement:
    unpriced = len(own) - len(shares)
    return Settlement(
        term=term,
        cost=usd(cost),
        quantity=_quantity(own, used),
        worth=usd(sign * sum(shares.values())),
        shares=tuple(usd(sign * shares.get(id(item), 0)) for item in lines),
        unpriced=unpriced,
        reason=reason + _left_out(unpriced),
    )


def _divided(total: int, among: Sequence[_Left]) -> dict[int, int]:
    """A whole number of pico-dollars in proportion to cost, by largest remainder: share by the line's identity."""
    priced = [(item, item.cost) for item in among if item.cost is not None]
    whole = sum(cost for _, cost in priced)
    if not whole:
        return {id(item): 0 for item, _ in priced}
    shares = {id(item): total * cost // whole for item, cost in priced}
    missing = total - sum(shares.values())
    for item, _ in sorted(priced, key=lambda entry: total * entry[1] % whole, reverse=True)[:missing]:
        shares[id(item)] += 1
    return shares


def _cost_of(lines: Sequence[_Left]) -> int:
    return sum(item.cost for item in lines if item.cost is not None)


def _pico(amount: Decimal) -> int:
    return round(Fraction(amount) * 10**PICO)


def _unit_of(lines: Sequence[_Left]) -> str:
    """Unit of what counts, for people; the meters of an allotment have one (`yamlterms`)."""
    units = sorted({METERS[item.line.meter].unit for item in lines})
    return units[0] if len(units) == 1 else "units"


def _quantity(lines: Sequence[_Left], used: Fraction) -> Decimal | None:
    one_unit = len({METERS[item.line.meter].unit for item in lines}) == 1
    return _rounded(used) if one_unit else None


def _rounded(value: Fraction) -> Decimal:
    return decimal_of(round(value * 10**QUANTITY_DECIMALS), QUANTITY_DECIMALS)


def _plain(value: Fraction) -> str:
    """A number for people, without zeros at its end."""
    text = f"{_rounded(value):f}"
    return text.rstrip("0").rstrip(".")


def _money(pico: int) -> str:
    return f"{usd(pico):f}".rstrip("0").rstrip(".")


def _percent(ratio: Fraction) -> str:
    return f"{decimal_of(round(ratio * 1000), 1):f} %"


def _left_out(unpriced: int) -> str:
    if not unpriced:
        return ""
    return f"; {unpriced} {'total' if unpriced == 1 else 'totals'} without a price could not be counted"
