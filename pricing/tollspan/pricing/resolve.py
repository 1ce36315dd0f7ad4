"""Resolution: which price row applies to a meter of a span, or why none does. Both faces of the engine stand on it.

In: a book, normalized selectors, an instant. Out: a `Quote` for each meter. A `Situation` is everything that stays the
same for spans with equal selectors; between two of its cuts (instants at which some price begins or ends), and as long
as the same schedules hold, every quote is constant, so each is found once and kept on a `Card`.

Rules, in order: the matches of the book front to back (`book.PriceBook.matches`); among the rows of one match those in
force at the instant, whose conditions the selectors meet, the higher level first (`rows.LEVELS`), then more conditions
before fewer, then hours before none. A meter with no price of its own at that instant is charged as the meter that
includes it (`INCLUDED_IN`).

Every quote has three prices. The list price is found among the rows of list level alone, times the book's factors. The
contracted price is found among those and contracts; where it is a list price still, the contract's percentage applies.
The effective price, which is what is charged, is found among all rows.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_HALF_EVEN, Context, Decimal
from fractions import Fraction
from math import gcd
from typing import Final, Literal

from tollspan.pricing.book import Match, PriceBook, is_known
from tollspan.pricing.meters import METERS, Axis
from tollspan.pricing.money import UNIT_PRICE_DECIMALS, Rate, divide_half_even
from tollspan.pricing.rows import CONTRACT_LEVEL, EFFECTIVE_LEVEL, LIST_LEVEL, WHOLE, Factor, PriceRow
from tollspan.pricing.schedule import Schedule
from tollspan.pricing.selectors import SKU_SELECTORS, STANDARD, Selectors, tier_of

INCLUDED_IN: Final[dict[str, tuple[str, ...]]] = {
    "tokens.input.cache_read": ("tokens.input.uncached",),
    "tokens.input.cache_write": ("tokens.input.uncached",),
    "tokens.input.cache_write.5m": ("tokens.input.cache_write", "tokens.input.uncached"),
    "tokens.input.cache_write.30m": ("tokens.input.cache_write", "tokens.input.uncached"),
    "tokens.input.audio": ("tokens.input.uncached",),
    "tokens.input.audio.cache_read": ("tokens.input.audio", "tokens.input.cache_read", "tokens.input.uncached"),
    "tokens.input.image": ("tokens.input.uncached",),
    "tokens.input.image.cache_read": ("tokens.input.image", "tokens.input.cache_read", "tokens.input.uncached"),
    "tokens.input.video": ("tokens.input.uncached",),
    "tokens.output.reasoning": ("tokens.output",),
    "tokens.output.audio": ("tokens.output",),
    "tokens.output.image": ("tokens.output",),
    "tokens.output.video": ("tokens.output",),
    "tokens.output.citation": ("tokens.output",),
    "gpu.idle_seconds": ("gpu.seconds",),
    "cpu.idle_seconds": ("cpu.seconds",),
}
"""Meter → meters whose price it is charged at when it has none, nearest first. For tokens this is the unit lattice of
genai-prices (``decompose.py``: usage without a price of its own stays in the nearest unit that has one); its
``cache_write`` unit is the provider's default lifetime (30 minutes at OpenAI, 5 at Anthropic). Cache writes for an hour
and for twelve cost more than that: they stay unpriced without a price of their own. An idle second of a GPU or
a CPU costs what a busy one does."""

UNCACHED: Final = "tokens.input.uncached"
_CACHED: Final = ("tokens.input.cache_read", "tokens.input.cache_write")

INPUT_TOKENS: Final = tuple(name for name in METERS if name.startswith("tokens.input."))
"""Meters whose sum is the request's input, the basis of cliff tiers."""

TIER_UNKNOWN: Final = "tier_unknown"
TIER_ASSUMED: Final = "tier_assumed"
MODEL_ASSUMED: Final = "model_assumed"
METER_ASSUMED: Final = "meter_assumed"
PRICE_ANNOUNCED: Final = "price_announced"
PROVIDER_MISSING: Final = "provider_missing"
PROVIDER_AMBIGUOUS: Final = "provider_ambiguous"
USAGE_MISSING: Final = "usage_missing"

REASONS: Final = (
    USAGE_MISSING,
    "unknown_model",
    "unknown_device",
    "unknown_host",
    "unknown_platform",
    PROVIDER_MISSING,
    PROVIDER_AMBIGUOUS,
    "no_meter_price",
    "no_price_at_time",
    "no_price_for_region",
    "no_price_for_cloud_provider",
    "no_price_for_host_type",
    "no_price_for_device",
    "no_price_for_purchase",
    "no_price_for_residency",
    TIER_UNKNOWN,
    TIER_ASSUMED,
    MODEL_ASSUMED,
    METER_ASSUMED,
    PRICE_ANNOUNCED,
)
"""Every reason that pricing gives, in the order in which a row lists them. Of the ``unknown_...`` and ``no_...`` ones a
charge has the last that applies, the one nearest to a price:

- ``usage_missing``: the span gives no quantity at all;
- ``unknown_model`` (device, host, platform): no book knows the SKU;
- ``provider_missing``: the span names a model and no provider, and one provider lists it;
- ``provider_ambiguous``: likewise, and several providers list it;
- ``no_meter_price``: the SKU is known, this meter of it has no price;
- ``no_price_at_time``: it has one, but not at that instant;
- ``no_price_for_region`` (and other selectors), ``tier_unknown``: it has one, but not under these conditions;
- ``tier_assumed``: priced, at the standard tier or the lowest step, because the span does not say which applies;
- ``model_assumed``: priced as the requested model, because no book knows the one that was served;
- ``meter_assumed``: priced as uncached input, because no book has a price for reading or writing its cache;
- ``price_announced``: priced, by a row that was only announced when its book was written."""

IMPLIED_MARK: Final = ", implied"
"""End of ``matched_by`` on a charge for what the span did not count (`engine.IMPLIED`)."""

REASON_ORDER: Final = {reason: position for position, reason in enumerate(REASONS)}

QuoteStatus = Literal["priced", "free", "included", "unpriced", "ambiguous"]
Step = tuple[QuoteStatus, Decimal | None, Rate | None]

UNPRICED: Final[tuple[Step, ...]] = (("unpriced", None, None),)

_UNIT_PRICE: Final = Context(prec=60, rounding=ROUND_HALF_EVEN)
_FINEST: Final = Decimal(1).scaleb(-UNIT_PRICE_DECIMALS)


@dataclass(frozen=True, slots=True, eq=False)
class Quote:
    """What one meter costs in a situation, as long as no cut is crossed.

    Attributes:
        row: the price, None when there is none.
        matched_by: how it was found, and what it was multiplied by: ``exact model``, ``pattern device``, ``exact model
            as tokens.output``, ``exact model × eu-uplift``.
        reasons: why there is none, or what was assumed.
        steps: status, amount and rate below the first bound, then of each step; unpriced: one step.
        bounds: step k applies above ``bounds[k - 1]``: input tokens of the request, or base steps of the meter's own
            quantity where it is graduated.
        minimum: least quantity charged when any was used, base steps; 0 = none.
        graduated: each step is for the part of the quantity above its bound.
        layer: name of the layer that holds the row.
        factors: what the row's price was multiplied by, besides ``share``.
        share: the part of a device that is priced.
        contracted: the contracted price; None = the same as this, the effective one.
        listed: the list price; None = likewise.
    """

    row: PriceRow | None
    matched_by: str
    reasons: tuple[str, ...]
    steps: tuple[Step, ...]
    bounds: tuple[int, ...] = ()
    minimum: int = 0
    graduated: bool = False
    layer: str = ""
    factors: tuple[Factor, ...] = ()
    share: Fraction = WHOLE
    contracted: Quote | None = None
    listed: Quote | None = None

    def step(self, input_tokens: int | None) -> int:
        """Which step a request with so many input tokens is at; unknown input is at the first, graduated prices too."""
        if self.graduated or input_tokens is None:
            return 0
        return sum(1 for above in self.bounds if input_tokens > above)

    def cost(self, steps: int, step: int) -> int | None:
        """Whole pico-dollars for so many base steps at a step of the price; None when it is unpriced."""
        rate = self.steps[step][2]
        if rate is None:
            return None
        billed = max(steps, self.minimum) if steps else 0
        return rate.cost(billed) if not self.graduated else self._graduated(billed)

    def _graduated(self, steps: int) -> int:
        total = Fraction(0)
        below = 0
        for (_, _, rate), bound in zip(self.steps, (*self.bounds, None), strict=True):
            assert rate is not None  # a graduated price has one at each step
            upper = steps if bound is None else min(steps, bound)
            if upper > below:
                total += Fraction((upper - below) * rate.num, rate.den)
                below = upper
        return divide_half_even(total.numerator, total.denominator)


def has_fee(quote: Quote) -> bool:
    """Whether something is charged for the meter, at whatever step."""
    return any(rate is not None and rate.num for _, _, rate in quote.steps)


@dataclass(frozen=True, slots=True)
class Considered:
    """A price that was looked at for a meter, and what became of it: for explanations."""

    row: PriceRow | None
    layer: str
    matched_by: str
    verdict: str


class Situation:
    """Prices on one axis for spans with equal normalized selectors.

    Args:
        book: where prices come from.
        axis: of the meters that are asked for.
        selectors: normalized.
    """

    __slots__ = (
        *("_cards", "adjustments", "axis", "cuts", "factors", "matches", "owners", "schedules", "selectors"),
        "served_known",
    )

    def __init__(self, book: PriceBook, axis: Axis, selectors: Selectors) -> None:
        self.axis = axis
        self.selectors = selectors
        self.matches: list[Match] = book.matches(axis, selectors)
        self.served_known = selectors.model is None or is_known(m for m in self.matches if m.selector == "model")
        self.factors = _relevant(book.factors, axis, selectors)
        self.adjustments = _relevant(book.adjustments, axis, selectors)
        self.owners = _owners(book, selectors) if axis == "model" and not is_known(self.matches) else 0
        cuts = {cut for match in self.matches for cut in (*match.sku.cuts, *match.effective.cuts)}
        cuts.update(cut for factor in (*self.factors, *self.adjustments) for cut in factor.effective.cuts)
        self.cuts: list[int] = sorted(cuts)
        self.schedules: tuple[Schedule, ...] = tuple({s: None for match in self.matches for s in match.sku.schedules})
        self._cards: dict[tuple[int, int], Card] = {}

    def card(self, at: int) -> Card:
        """Quotes by meter at the instant ``at`` (ns since the epoch)."""
        open_hours = 0
        for position, schedule in enumerate(self.schedules):
            open_hours |= schedule.holds(at) << position
        key = (bisect_right(self.cuts, at), open_hours)
        card = self._cards.get(key)
        if card is None:
            card = self._cards[key] = Card(self, at)
        return card

    def quote(self, meter: str, at: int) -> Quote:
        """What ``meter`` costs at the instant ``at`` (ns since the epoch)."""
        return self.card(at)[meter]


class Card(dict[str, Quote]):
    """Quotes of a situation by meter, found when first asked for; ``at`` is any instant for which they hold."""

    __slots__ = ("at", "situation")

    def __init__(self, situation: Situation, at: int) -> None:
        super().__init__()
        self.situation = situation
        self.at = at

    def __missing__(self, meter: str) -> Quote:
        quote = self[meter] = resolve(meter, self.at, self.situation)
        return quote


def _relevant(factors: Iterable[Factor], axis: Axis, selectors: Selectors) -> tuple[Factor, ...]:
    """Factors that can apply to some price of a span, whatever its time."""
    owner: str | None = getattr(selectors, SKU_SELECTORS[axis][0])
    return tuple(f for f in factors if f.sold_by(axis, owner) and not _unmet(f.when, selectors))


def _owners(book: PriceBook, selectors: Selectors) -> int:
    """How many providers list the model of a span that names no provider."""
    if selectors.provider is not None:
        return 0
    names = filter(None, (selectors.model, selectors.request_model))
    return next((count for name in names if (count := len(book.owners(name)))), 0)


@dataclass(frozen=True, slots=True)
class _Choice:
    """A row that was chosen, and how it was found."""

    row: PriceRow
    match: Match
    meter: str
    reasons: tuple[str, ...]


def resolve(meter: str, at: int, situation: Situation, trace: list[Considered] | None = None) -> Quote:
    """The price of a meter at an instant, from the SKUs that the selectors stand for.

    Args:
        meter: a name from `METERS`, of the situation's axis.
        at: ns since the epoch.
        situation: matches, factors and selectors.
        trace: takes everything that was looked at, in order.
    """
    effective = _choose(meter, at, situation, EFFECTIVE_LEVEL, trace)
    if isinstance(effective, str):
        reason = effective
        status: QuoteStatus = "unpriced"
        if situation.owners:
            several = situation.owners > 1
            reason, status = (PROVIDER_AMBIGUOUS, "ambiguous") if several else (PROVIDER_MISSING, "unpriced")
        return Quote(None, "", (reason,), ((status, None, None),))
    contract = _lower(effective, meter, at, situation, CONTRACT_LEVEL)
    listed = _lower(contract, meter, at, situation, LIST_LEVEL)

    list_quote = _quote(listed, meter, _factors(listed, meter, at, situation)) if listed is not None else _NOTHING
    contracted = list_quote
    if contract is None:
        contracted = _NOTHING
    elif contract.row.level == LIST_LEVEL:
        agreed = next((f for f in situation.adjustments if _applies(f, contract, meter, at)), None)
        if agreed is not None:
            contracted = _quote(contract, meter, (*_factors(contract, meter, at, situation), agreed))
    else:
        contracted = _quote(contract, meter, ())
    charged = contracted if effective is contract else _quote(effective, meter, ())
    if charged is contracted is list_quote:
        return charged
    return replace(
        charged,
        contracted=None if contracted is charged else contracted,
        listed=None if list_quote is charged else list_quote,
    )


_NOTHING: Final = Quote(None, "", (), UNPRICED)


def _lower(choice: _Choice | None, meter: str, at: int, situation: Situation, level: int) -> _Choice | None:
    """The choice itself if it is of that level or below, else what is chosen among those."""
    if choice is None or choice.row.level <= level:
        return choice
    found = _choose(meter, at, situation, level, None)
    return None if isinstance(found, str) else found


def _factors(choice: _Choice, meter: str, at: int, situation: Situation) -> tuple[Factor, ...]:
    return tuple(factor for factor in situation.factors if _applies(factor, choice, meter, at))


def _applies(factor: Factor, choice: _Choice, meter: str, at: int) -> bool:
    return factor.effective.holds(at) and factor.covers(choice.row, meter, choice.match.names)


def _choose(meter: str, at: int, situation: Situation, level: int, trace: list[Considered] | None) -> _Choice | str:
    """The row that applies among those up to a level, or the reason why none does."""
    selectors = situation.selectors
    failure = f"unknown_{METERS[meter].axis}"
    nearest_reason = ""
    closest = len(METERS)  # conditions that the row nearest to a price does not meet

    def note(row: PriceRow | None, match: Match, verdict: str, reason: str = "") -> None:
        nonlocal failure
        if reason and REASON_ORDER[reason] > REASON_ORDER[failure]:
            failure = reason
        if trace is not None:
            trace.append(Considered(row, match.layer, match.by, verdict))

    for candidate in (meter, *INCLUDED_IN.get(meter, ())):
        in_force = False
        for match in situation.matches:
            if not match.effective.holds(at):
                note(None, match, "the alias does not hold at that time", "no_price_at_time")
                continue
            rows = match.sku.rows.get(candidate, ())
            if level < EFFECTIVE_LEVEL:
                rows = tuple(row for row in rows if row.level <= level)
            if not rows:
                reason = "" if match.sku.anything else "no_meter_price"
                note(None, match, f"{match.sku.name} has no price for {candidate}", reason)
            best: PriceRow | None = None
            for row in rows:
                unmet = _unmet(row.when, selectors)
                if row.status == "cancelled":
                    note(row, match, "cancelled", "no_price_at_time")
                elif not row.effective.holds(at):
                    note(row, match, "not in force at that time", "no_price_at_time")
                elif unmet:
                    # A contract for some calls says nothing about the list price of the others.
                    in_force = in_force or row.level == LIST_LEVEL
                    note(row, match, f"asks for {unmet[0]} = {row.when[unmet[0]]}")
                    if len(unmet) < closest:
                        closest, nearest_reason = len(unmet), _unmet_reason(unmet[0])
                elif not row.in_hours(at):
                    note(row, match, "outside its hours", "no_price_at_time")
                elif best is None or _rank(row) > _rank(best):
                    if best is not None:
                        note(best, match, f"less specific than {row.id}")
                    best = row
                else:
                    note(row, match, f"less specific than {best.id}")
            if best is not None:
                note(best, match, "chosen")
                if best.status == "withdrawn":
                    return "no_price_at_time"
                return _Choice(best, match, candidate, _assumptions(meter, candidate, best, match, rows, at, situation))
        if in_force:
            break  # it has a price of its own, for other conditions: the price of another meter would be a guess
    return nearest_reason or failure


def _assumptions(
    meter: str, candidate: str, row: PriceRow, match: Match, rows: Sequence[PriceRow], at: int, situation: Situation
) -> tuple[str, ...]:
    reasons: list[str] = []
    if situation.selectors.service_tier is None and any(
        other.when.get("service_tier", STANDARD) != STANDARD and other.effective.holds(at) for other in rows
    ):
        reasons.append(TIER_ASSUMED)
    if match.selector == "request_model" and not situation.served_known:
        reasons.append(MODEL_ASSUMED)
    if candidate == UNCACHED and meter.startswith(_CACHED):
        reasons.append(METER_ASSUMED)
    if row.status == "announced":
        reasons.append(PRICE_ANNOUNCED)
    return tuple(reasons)


def _quote(choice: _Choice, meter: str, factors: Sequence[Factor]) -> Quote:
    row, match = choice.row, choice.match
    matched_by = match.by if choice.meter == meter else f"{match.by} as {choice.meter}"
    times = match.share
    if match.share != WHOLE:
        matched_by += f" × {match.share}"
    for factor in factors:
        times *= factor.factor
        matched_by += f" × {factor.id}"
    steps: list[Step] = []
    for amount, rate in row.rates:
        if row.kind == "included":
            amount, rate = Decimal(0), Rate(0, 1)
        elif times != WHOLE:
            amount, rate = _unit_price(amount, times), _times(rate, times)
        steps.append(("included" if row.kind == "included" else "priced" if rate.num else "free", amount, rate))
    scale = METERS[choice.meter].scale if row.graduated else 1
    return Quote(
        row,
        matched_by,
        choice.reasons,
        tuple(steps),
        tuple(step.above * scale for step in row.steps),
        row.minimum_steps,
        row.graduated,
        match.layer,
        tuple(factors),
        match.share,
    )


def _unit_price(amount: Decimal, times: Fraction) -> Decimal:
    """The price of a unit for people; what is charged is worked out from the exact rate."""
    exact = _UNIT_PRICE.divide(_UNIT_PRICE.multiply(amount, Decimal(times.numerator)), Decimal(times.denominator))
    rounded = exact.quantize(_FINEST, context=_UNIT_PRICE)
    return exact if rounded == exact else rounded


def _times(rate: Rate, times: Fraction) -> Rate:
    num, den = rate.num * times.numerator, rate.den * times.denominator
    common = gcd(num, den)
    return Rate(num // common, den // common)


def _unmet(when: Mapping[str, str], selectors: Selectors) -> list[str]:
    """Conditions that the selectors do not meet."""
    return [
        key
        for key, wanted in when.items()
        if (tier_of(selectors) if key == "service_tier" else getattr(selectors, key)) != wanted
    ]


def _unmet_reason(key: str) -> str:
    return TIER_UNKNOWN if key in ("service_tier", "processing") else f"no_price_for_{key}"


def _rank(row: PriceRow) -> tuple[int, int, bool]:
    return row.level, len(row.when), row.schedule is not None
