"""The control law of a budget: from the last hour's minutes to the share of base traces that is kept.

In: `Hour`, what each minute allowed, what telemetry took in it and what it would have taken unsteered. Out: `Rates`,
which hold from some minutes later on, for traces that start then. A pure function: every processor that looks at the
same figures says the same. It knows neither a store nor a clock, and not what its unit is (10⁻¹² USD, or bytes); these
are estimates to steer by, and no bill.

Two limits, and the lower one holds:

*Forward.* What comes is measured also where it is dropped, so the rate that fits is computed, not found by trial: what
the budget leaves after what is received and what is kept with certainty, by what the base rule would take. There is
nothing to swing. Of the budget only a part is planned for, so that a surge of as many times as `Plan.surge` says, which
is not answered before `Plan.delay` minutes have gone by, still fits into the hour:

    part = window / (window - delay + delay · surge)

What comes is the mean of the hour, unless its last minutes differ from that by more than chance (`SURE` standard
deviations): few traces with long tails of size and cost are noisy, and a rate that followed their noise would be at its
least most of the time.

*Window.* Any window of an hour that ends within the next minutes has to fit too. With s(k) what the last 60-k minutes
have left of their budget, minutes whose traces are still on their way counted by what is expected of them, telemetry
may take (income + s(k) / k) a minute for the next k minutes. It makes up for what was not foreseen.

Content goes first: of what may be spent, structure is served before content, and only where structure alone does not
fit are traces dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

WINDOW: Final = 60
"""Minutes."""
SHORT: Final = 5
"""Minutes that tell what comes now."""
LONG: Final = 20
"""Minutes that tell what comes on average, where it comes in lumps."""
AHEAD: Final = 59
"""Minutes that the window's limit looks ahead; after each of them it is computed anew."""
LEAST: Final = 0.002
"""Base rates are never lower: traces without any chance would be represented by nobody, and every estimate from kept
bodies would leave them out. What this keeps costs next to nothing."""
MARGIN: Final = 0.03
"""Part of a window that is not handed out: what is kept is drawn by lot, and may be a little more than expected."""
STEADY: Final = 0.02
"""Changes below this share of a rate are not made."""
RISE: Final = 1.5
"""A rate rises by no more than this factor a minute."""
LEAST_RISE: Final = 0.02
RECENT: Final = 10
"""Minutes whose highest rate may be come back to faster, by half."""
JUMP: Final = 2.0
"""Minutes that are not complete yet count when they already show so many times what was usual, and more than chance."""
SURE: Final = 2.0
"""Standard deviations that a mean of minutes is off by when it is no chance."""
ALONE: Final = 8.0
"""The same for a single minute: sizes and costs of traces have long tails."""

Series = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Plan:
    """How a budget is held.

    Attributes:
        surge: how many times as much telemetry may come from one minute to the next without breaking the hour.
        lag: minutes from the newest one that figures are of to the first whose traces they decide.
        settle: newest minutes that may still be incomplete.
    """

    surge: float = 10.0
    lag: int = 2
    settle: int = 2

    @property
    def delay(self) -> int:
        """Minutes in which a surge runs freely: it shows in the first, and is answered ``lag`` minutes later."""
        return self.lag + 1

    @property
    def part(self) -> float:
        """How much of the budget is planned for."""
        return WINDOW / (WINDOW - self.delay + self.delay * self.surge)


@dataclass(frozen=True, slots=True)
class Hour:
    """The last `WINDOW` minutes, oldest first, shape (60,) each, and the rates since the first of them.

    Attributes:
        income: what the budget allows.
        received: what receiving took.
        certain: what storing took by rules that no budget steers.
        steered: what storing took by those that it does.
        full: what these would have taken unsteered; ``content``: the part of it that is content.
        base, contents: rates in force in each minute, and in those to come that are decided already, shape (60+lag-1,).
        since: place of the first minute from which on anything is known.
        held: place of the first minute for which rates were published; what came before is not made up for.
    """

    income: Series
    received: Series
    certain: Series
    steered: Series
    full: Series
    content: Series
    base: Series
    contents: Series
    since: int = 0
    held: int = 0


@dataclass(frozen=True, slots=True)
class Rates:
    """What holds from now on.

    Attributes:
        base: of the traces that the base rules would keep, the share that is kept, 0 to 1.
        content: of those the share that keeps its content.
        spent: what the window took of its income, 1 = all; NaN without income.
        unmet: what the window took beyond its income by receiving and by rules that are not steered; 0: it fits.
    """

    base: float
    content: float
    spent: float
    unmet: float


def steer(hour: Hour, plan: Plan) -> Rates | None:
    """The rates that fit; None where nothing is known yet, and what holds stays."""
    last = WINDOW - plan.settle
    if last - hour.since < 1 or not (hour.received.any() or hour.full.any() or hour.certain.any()):
        return None
    received, certain, full = (
        _expected(values, hour.since, last) for values in (hour.received, hour.certain, hour.full)
    )
    content = _content(hour) * full
    fixed = received + certain
    usual, least = _income(hour.income, hour.since, last)

    forward = plan.part * usual - fixed
    took, allowed = _window(hour, plan, fixed, full, content, least)
    free = max(0.0, min(forward, _ahead(allowed - took, least * (1 - MARGIN)) - fixed))

    base, kept = _shared(free, full - content, content)
    spent, income = float((hour.received + hour.certain + hour.steered).sum()), float(hour.income.sum())
    unavoidable = float((hour.received + hour.certain).sum())
    return Rates(
        max(LEAST, _moved(hour.base, base)),
        _moved(hour.contents, kept),
        spent / income if income > 0 else float("nan"),
        max(0.0, unavoidable - income),
    )


def _mean(values: Series, start: int, end: int) -> float:
    return float(values[start:end].mean()) if end > start else 0.0


def _level(values: Series, since: int, last: int) -> tuple[float, float]:
    """What a minute comes to now, and by how much minutes differ (a standard deviation).

    The mean of the hour, or of its last minutes where these differ from it by more than chance.
    """
    hour = values[since:last]
    usual, spread = _mean(values, since, last), float(hour.std()) if len(hour) else 0.0
    level = usual
    for minutes in (LONG, SHORT):
        recent = _mean(values, max(since, last - minutes), last)
        if abs(recent - usual) > SURE * spread / minutes**0.5:
            level = recent
    return level, spread


def _expected(values: Series, since: int, last: int) -> float:
    """What a minute to come will take: what the hour says, or more where its last minutes do."""
    level, spread = _level(values, since, last)
    usual = max(level, _mean(values, since, last))
    # Minutes that are not complete count when they show more than chance explains: one alone, or two together.
    first, second = np.sort(values[last - 1 :])[:-3:-1].tolist()
    spread = float(values[since : max(since, last - 1)].std()) if last - 1 > since else spread
    if first > JUMP * usual + ALONE * spread:
        return float(first)
    return float(second) if second > JUMP * usual + SURE * spread else usual


def _income(values: Series, since: int, last: int) -> tuple[float, float]:
    """What a minute to come will allow: as it is, and where less is to be feared."""
    level, spread = _level(values, since, last)
    # Where it comes in lumps, the next hour may have fewer of them.
    level = max(0.0, level - SURE * spread / WINDOW**0.5)
    # Calls are priced when they arrive, so the newest minutes tell of less income as soon as there is less.
    newest = _mean(values, WINDOW - 2, WINDOW)
    return level, newest if newest < level - SURE * spread / 2**0.5 else level


def _content(hour: Hour) -> float:
    """Which part of a body is content."""
    full = float(hour.full.sum())
    return min(1.0, float(hour.content.sum()) / full) if full > 0 else 0.0


def _window(hour: Hour, plan: Plan, fixed: float, full: float, content: float, income: float) -> tuple[Series, Series]:
    """What each minute took or will take, and what it allows: up to the last whose rates are decided."""
    ahead = len(hour.base) - WINDOW
    took = np.concatenate([hour.received + hour.certain + hour.steered, np.zeros(ahead)])
    allowed = np.concatenate([hour.income, np.full(ahead, income)]) * (1 - MARGIN)
    open_ = slice(WINDOW - plan.settle, None)
    foreseen = fixed + hour.base[open_] * (full - content + hour.contents[open_] * content)
    took[open_] = np.maximum(took[open_], foreseen)
    took[: hour.held] = np.minimum(took[: hour.held], allowed[: hour.held])
    return took, allowed


def _ahead(left: Series, income: float) -> float:
    """What may be taken in each of the next minutes so that no window of an hour which ends in one of them breaks."""
    ends = np.cumsum(left[::-1])
    sizes = np.arange(1, AHEAD + 1)
    # The window that ends k minutes ahead has the last WINDOW-k of those behind us.
    return float((income + ends[WINDOW - sizes - 1] / sizes).min())


def _shared(free: float, structure: float, content: float) -> tuple[float, float]:
    """Rates of bases and of contents that ``free`` pays for."""
    if free >= structure + content:
        return 1.0, 1.0
    if free >= structure:
        return 1.0, (free - structure) / content
    return (free / structure if structure > 0 else 0.0), 0.0


def _moved(rates: Series, wanted: float) -> float:
    """A rate near the wanted one: downwards at once, upwards by steps, and not for next to nothing."""
    before = float(rates[-1])
    if abs(wanted - before) <= STEADY * before:
        return before
    # After a false alarm it is soon where it was.
    highest = max(before * RISE, before + LEAST_RISE, float(rates[-RECENT:].max()) / 2)
    return round(min(wanted, highest), 9)
