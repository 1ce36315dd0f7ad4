"""Histograms of costs and durations, and the figures that rules compare with.

A value falls into a bucket of a geometric scale: bucket b holds [1.02ᵇ, 1.02ᵇ⁺¹), so that whatever is read off is off
by 2 % at most, histograms of minutes add up to that of a window whatever their order, and every processor that has the
same counts has the same figure. Zero has a bucket of its own. These are bounds to compare with, and no sums of money.

Percentiles are by nearest rank. `anomaly` is a robust bound: the median and the median absolute deviation from it (MAD;
times 1.4826 it is the standard deviation of normal data: Rousseeuw and Croux 1993), which a few outliers do not move.
`scale` is the C of sampling with probability proportional to size, p = min(1, cost / C), which gives sums of cost the
least variance at a given mean share (Horvitz and Thompson 1952).
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Mapping
from typing import Final

import numpy as np

GROWTH: Final = 1.02
ZERO: Final = -1
"""Bucket of what is not above zero."""

BUCKET_SQL: Final = f"if(x <= 0, toInt32({ZERO}), toInt32(floor(log(toFloat64(x)) / log({GROWTH}))))"
"""Bucket of ``x``, in ClickHouse."""

NORMAL: Final = 1.4826

Histogram = Mapping[int, int]
"""Bucket → how many."""
State = dict[str, dict[int, int]]
"""Key → histogram, of one minute."""


def bucket(value: int) -> int:
    """The bucket of a value."""
    return ZERO if value <= 0 else math.floor(math.log(value) / math.log(GROWTH))


def upper(number: int) -> int:
    """Nothing in a bucket is above this."""
    return 0 if number <= ZERO else math.ceil(GROWTH ** (number + 1))


def lower(number: int) -> int:
    """Everything in a bucket is above this."""
    return -1 if number <= ZERO else math.ceil(GROWTH**number) - 1


def middle(number: int) -> float:
    """What a bucket's values are about."""
    return 0.0 if number <= ZERO else GROWTH ** (number + 0.5)


def total(histogram: Histogram) -> int:
    """How many there are."""
    return sum(histogram.values())


def quantile(histogram: Histogram, share: float) -> int:
    """A bound that at least ``share`` of the values do not exceed."""
    rank = math.ceil(round(share * total(histogram), 6))
    seen = 0
    for number in sorted(histogram):
        seen += histogram[number]
        if seen >= rank:
            return upper(number)
    return 0


def top(histogram: Histogram, count: int) -> int:
    """A bound that the ``count`` highest values exceed, and nobody else but for those in the bucket of the last of
    them; 0 where there are fewer."""
    seen = 0
    for number in sorted(histogram, reverse=True):
        seen += histogram[number]
        if seen >= count:
            return max(lower(number), 0)
    return 0


def _median(weighted: list[tuple[float, int]]) -> float:
    half = (sum(weight for _, weight in weighted) + 1) // 2
    seen = 0
    for value, weight in sorted(weighted):
        seen += weight
        if seen >= half:
            return value
    return 0.0


def anomaly(histogram: Histogram, deviations: float, times: float) -> int:
    """max(times × median, median + deviations × 1.4826 × MAD)."""
    values = [(middle(number), count) for number, count in histogram.items()]
    median = _median(values)
    spread = _median([(abs(value - median), count) for value, count in values])
    return math.ceil(max(times * median, median + deviations * NORMAL * spread))


def scale(histogram: Histogram, share: float, floor: float) -> int:
    """C such that the mean of min(1, max(floor, value / C)) is ``share``; at least 1."""
    values = np.array([middle(number) for number in histogram])
    weights = np.array(list(histogram.values()), np.float64)
    low, high = 0.0, math.log(max(values.max(initial=1.0), 1.0) / floor) + 1.0
    for _ in range(60):
        middle_ = (low + high) / 2
        mean = float(np.average(np.clip(values / math.exp(middle_), floor, 1.0), weights=weights))
        low, high = (middle_, high) if mean > share else (low, middle_)
    return max(1, round(math.exp((low + high) / 2)))


def figure(statistic: str, histogram: Histogram, parameters: tuple[float, ...]) -> int:
    """A figure of a histogram that is not empty."""
    if statistic == "quantile":
        return quantile(histogram, parameters[0])
    if statistic == "top":
        return top(histogram, int(parameters[0]))
    if statistic == "anomaly":
        return anomaly(histogram, parameters[0], parameters[1])
    if statistic == "scale":
        return scale(histogram, parameters[0], parameters[1])
    return total(histogram)


FINE: Final = 120
"""Windows up to so many minutes move by the minute; longer ones by the hour, the hour that runs with them."""


class Window:
    """Histograms by key over the last so many minutes.

    Args:
        minutes: how far it looks back. Up to `FINE`, at minute m, it has (m - minutes, m]; beyond it has the hour that
            m is in, as far as it has passed, and as many whole hours before it.
    """

    def __init__(self, minutes: int) -> None:
        self.minutes = minutes
        self._grain = 1 if minutes <= FINE else 60
        self._kept: deque[tuple[int, State]] = deque()
        self.totals: dict[str, Counter[int]] = {}
        self.last: int | None = None

    def first(self, minute: int) -> int:
        """The first minute that belongs to the window at ``minute``."""
        if self._grain == 1:
            return minute - self.minutes + 1
        return (minute // 60) * 60 - self.minutes

    def push(self, minute: int, state: State) -> None:
        """Take a minute in; minutes come in order."""
        self.last = minute
        self._expire(minute)
        unit = minute // self._grain
        if not self._kept or self._kept[-1][0] != unit:
            self._kept.append((unit, {}))
        mine = self._kept[-1][1]
        for key, histogram in state.items():
            here = mine.setdefault(key, {})
            counter = self.totals.setdefault(key, Counter())
            for number, count in histogram.items():
                here[number] = here.get(number, 0) + count
                counter[number] += count

    def _expire(self, minute: int) -> None:
        horizon = self.first(minute) // self._grain
        while self._kept and self._kept[0][0] < horizon:
            _, state = self._kept.popleft()
            for key, histogram in state.items():
                counter = self.totals[key]
                for number, count in histogram.items():
                    counter[number] -= count
                    if not counter[number]:
                        del counter[number]
                if not counter:
                    del self.totals[key]
