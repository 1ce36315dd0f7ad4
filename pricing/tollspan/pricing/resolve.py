"""Resolution: which price row applies to a meter of a span, or why none does. Both faces of the engine stand on it.

In: a book, normalized selectors, an instant. Out: a `Quote` for each meter. A `Situation` is everything that stays the
same for spans with equal selectors; between two of its cuts (instants, and times of the week, at which some price
begins or ends) every quote is constant, so each is found once and kept.

Rules, in order: the matches of the book front to back (`book.PriceBook.matches`); among the rows of one match those in
force at the instant, whose conditions the selectors meet, more conditions before fewer, a window before none. A meter
with no price of its own at that instant is charged as the meter that includes it (`INCLUDED_IN`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, Literal

from tollspan.pricing.book import Match, PriceBook, PriceRow, week_time
from tollspan.pricing.meters import METERS, Axis
from tollspan.pricing.money import Rate
from tollspan.pricing.selectors import STANDARD, Selectors, tier_of

INCLUDED_IN: Final[dict[str, tuple[str, ...]]] = {
    "tokens.input.cache_read": ("tokens.input.uncached",),
    "tokens.input.cache_write": ("tokens.input.uncached",),
    "tokens.input.cache_write.5m": ("tokens.input.cache_write", "tokens.input.uncached"),
    "tokens.input.cache_write.30m": ("tokens.input.cache_write", "tokens.input.uncached"),
    "tokens.input.cache_write.1h": ("tokens.input.cache_write", "tokens.input.uncached"),
    "tokens.input.audio": ("tokens.input.uncached",),
    "tokens.input.audio.cache_read": ("tokens.input.audio", "tokens.input.cache_read", "tokens.input.uncached"),
    "tokens.input.image": ("tokens.input.uncached",),
    "tokens.input.video": ("tokens.input.uncached",),
    "tokens.output.reasoning": ("tokens.output",),
    "tokens.output.audio": ("tokens.output",),
    "tokens.output.image": ("tokens.output",),
    "gpu.idle_seconds": ("gpu.seconds",),
}
"""Meter → meters whose price it is charged at when it has none, nearest first. For tokens this is the unit lattice of
genai-prices (``decompose.py``: usage without a price of its own stays in the nearest unit that has one); its
``cache_write`` unit is the provider's default lifetime (30 minutes at OpenAI, 5 at Anthropic). Twelve-hour cache writes
are not in the lattice and stay unpriced without a price of their own. An idle GPU second costs what a busy one does."""

INPUT_TOKENS: Final = tuple(name for name in METERS if name.startswith("tokens.input."))
"""Meters whose sum is the request's input, the basis of cliff tiers."""

TIER_UNKNOWN: Final = "tier_unknown"
TIER_ASSUMED: Final = "tier_assumed"
USAGE_MISSING: Final = "usage_missing"

REASONS: Final = (
    USAGE_MISSING,
    "unknown_model",
    "unknown_device",
    "unknown_host",
    "unknown_platform",
    "no_meter_price",
    "no_price_at_time",
    "no_price_for_region",
    "no_price_for_cloud_provider",
    "no_price_for_host_type",
    "no_price_for_device",
    TIER_UNKNOWN,
    TIER_ASSUMED,
)
"""Every reason that pricing gives, in the order in which a row lists them. Of the ``unknown_...`` and ``no_...`` ones a
charge has the last that applies, the one nearest to a price:

- ``usage_missing``: the span gives no quantity at all;
- ``unknown_model`` (device, host, platform): no book knows the SKU;
- ``no_meter_price``: the SKU is known, this meter of it has no price;
- ``no_price_at_time``: it has one, but not at that instant;
- ``no_price_for_region`` (and other selectors), ``tier_unknown``: it has one, but not under these conditions;
- ``tier_assumed``: priced, at the standard tier or the lowest step, because the span does not say which applies."""

REASON_ORDER: Final = {reason: position for position, reason in enumerate(REASONS)}

QuoteStatus = Literal["priced", "free", "unpriced"]


@dataclass(frozen=True, slots=True, eq=False)
class Quote:
    """What one meter costs in a situation, as long as no cut is crossed.

    Attributes:
        row: the price, None when there is none.
        matched_by: how it was found: ``exact model``, ``pattern device``, ``exact model as tokens.output``.
        reasons: why there is none, or what was assumed.
        steps: status, amount and rate below the first cliff, then of each step; unpriced: one step.
        bounds: the cliffs: step k applies above ``bounds[k - 1]`` input tokens.
        minimum: least quantity charged when any was used, base steps; 0 = none.
    """

    row: PriceRow | None
    matched_by: str
    reasons: tuple[str, ...]
    steps: tuple[tuple[QuoteStatus, Decimal | None, Rate | None], ...]
    bounds: tuple[int, ...] = ()
    minimum: int = 0

    def step(self, input_tokens: int | None) -> int:
        """Which step a request with so many input tokens is at; unknown input is at the first."""
        return sum(1 for above in self.bounds if input_tokens is not None and input_tokens > above)


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

    __slots__ = ("_cards", "axis", "cuts", "matches", "selectors", "week_cuts")

    def __init__(self, book: PriceBook, axis: Axis, selectors: Selectors) -> None:
        self.axis = axis
        self.selectors = selectors
        self.matches: list[Match] = book.matches(axis, selectors)
        self.cuts: list[int] = sorted({cut for m in self.matches for cut in (*m.sku.cuts, *m.effective.cuts)})
        self.week_cuts: list[int] = sorted({cut for m in self.matches for cut in m.sku.week_cuts})
        self._cards: dict[tuple[int, int], dict[str, Quote]] = {}

    def quote(self, meter: str, at: int) -> Quote:
        """What ``meter`` costs at the instant ``at`` (ns since the epoch)."""
        phase = bisect_right(self.week_cuts, week_time(at)) if self.week_cuts else 0
        key = (bisect_right(self.cuts, at), phase)
        card = self._cards.get(key)
        if card is None:
            card = self._cards[key] = {}
        quote = card.get(meter)
        if quote is None:
            quote = card[meter] = resolve(meter, at, self.selectors, self.matches)
        return quote


def resolve(
    meter: str, at: int, selectors: Selectors, matches: Sequence[Match], trace: list[Considered] | None = None
) -> Quote:
    """The price of a meter at an instant, from the SKUs that the selectors stand for.

    Args:
        meter: a name from `METERS`.
        at: ns since the epoch.
        selectors: normalized.
        matches: as `PriceBook.matches` gives them for the meter's axis.
        trace: takes everything that was looked at, in order.
    """
    failure = f"unknown_{METERS[meter].axis}"

    def note(row: PriceRow | None, match: Match, verdict: str, reason: str = "") -> None:
        nonlocal failure
        if reason and REASON_ORDER[reason] > REASON_ORDER[failure]:
            failure = reason
        if trace is not None:
            trace.append(Considered(row, match.layer, match.by, verdict))

    for candidate in (meter, *INCLUDED_IN.get(meter, ())):
        in_force = False
        for match in matches:
            if not match.effective.holds(at):
                note(None, match, "the alias does not hold at that time", "no_price_at_time")
                continue
            rows = match.sku.rows.get(candidate, ())
            if not rows:
                reason = "" if match.sku.anything else "no_meter_price"
                note(None, match, f"{match.sku.name} has no price for {candidate}", reason)
            best: PriceRow | None = None
            for row in rows:
                unmet = _unmet(row, selectors)
                if not row.effective.holds(at):
                    note(row, match, "not in force at that time", "no_price_at_time")
                elif unmet is not None:
                    in_force = True
                    note(row, match, f"asks for {unmet} = {row.when[unmet]}", _unmet_reason(unmet))
                elif not row.in_window(at):
                    note(row, match, "outside its hours", "no_price_at_time")
                elif best is None or _specificity(row) > _specificity(best):
                    if best is not None:
                        note(best, match, f"less specific than {row.id}")
                    best = row
                else:
                    note(row, match, f"less specific than {best.id}")
            if best is not None:
                note(best, match, "chosen")
                matched_by = match.by if candidate == meter else f"{match.by} as {candidate}"
                assumed = selectors.service_tier is None and any(
                    row.when.get("service_tier", STANDARD) != STANDARD and row.effective.holds(at) for row in rows
                )
                return _quote(best, matched_by, (TIER_ASSUMED,) if assumed else ())
        if in_force:
            break  # it has a price of its own, for other conditions: the price of another meter would be a guess
    return Quote(None, "", (failure,), (("unpriced", None, None),))


def _quote(row: PriceRow, matched_by: str, reasons: tuple[str, ...]) -> Quote:
    steps: list[tuple[QuoteStatus, Decimal | None, Rate | None]] = [
        ("priced" if rate.num else "free", amount, rate) for amount, rate in row.rates
    ]
    return Quote(row, matched_by, reasons, tuple(steps), tuple(step.above for step in row.steps), row.minimum_steps)


def _unmet(row: PriceRow, selectors: Selectors) -> str | None:
    """First condition of the row that the selectors do not meet."""
    for key, wanted in row.when.items():
        given = tier_of(selectors) if key == "service_tier" else getattr(selectors, key)
        if given != wanted:
            return key
    return None


def _unmet_reason(key: str) -> str:
    return TIER_UNKNOWN if key in ("service_tier", "processing") else f"no_price_for_{key}"


def _specificity(row: PriceRow) -> tuple[int, bool]:
    return len(row.when), bool(row.windows)
