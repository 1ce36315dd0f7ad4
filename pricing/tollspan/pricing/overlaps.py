"""Ambiguity and gaps of a book, found when it loads: prices, aliases and percentages that would tie for some span.

In: what one layer lists. Out: the first pair that ties and why. Resolution (`resolve`) can then take the one row that
is left without a rule for ties.

Two prices of one meter, SKU and provider tie when nothing that resolution looks at puts one before the other: they are
of one level (`rows.LEVELS`), ask for as many selectors, both keep hours or neither does, and some span can meet both. A
cancelled price ties with nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import combinations, combinations_with_replacement
from typing import Final, TypeVar

from tollspan.pricing.meters import METERS
from tollspan.pricing.patterns import is_pattern, literal_length, matches
from tollspan.pricing.rows import WHOLE, Alias, Factor, Interval, PriceRow, Term
from tollspan.pricing.schedule import DAY, Schedule
from tollspan.pricing.selectors import provider_of

_T = TypeVar("_T")

Tie = tuple[int, int, str]
"""Positions of the earlier and the later one, and the reason, for people."""

_COMPARED_DAYS: Final = 3 * 366
"""Hours in two time zones are compared day by day for so long from when both prices hold: offsets repeat each year."""
_COMPARED_FROM: Final = 20454 * DAY
"""... and from 2026 on where neither has a beginning."""


def tied_rows(rows: Sequence[PriceRow]) -> Tie | None:
    """First two rows of a layer that could both be chosen for one span."""
    positions = {id(row): position for position, row in enumerate(rows)}
    for first, second, siblings in _rivals([row for row in rows if row.status != "cancelled"]):
        if not _agree(first.when, second.when) or not first.effective.meets(second.effective):
            continue
        if positions[id(first)] > positions[id(second)]:
            first, second = second, first
        if first.sku == second.sku and first.when != second.when and _decided(first, second, siblings):
            continue
        if not _hours_meet(first, second):
            continue
        reason = f"it ties with {first.id!r}: same meter, SKU, time and conditions"
        if first.sku != second.sku:
            reason = f"it ties with {first.id!r}: the patterns {first.sku!r} and {second.sku!r} can match one name"
        elif first.when != second.when:
            reason = f"it ties with {first.id!r} for a span with {_told(first.when, second.when)}"
        return positions[id(first)], positions[id(second)], reason
    return None


def tied_aliases(aliases: Sequence[Alias]) -> Tie | None:
    """First two aliases of a layer that give one name two meanings at one time."""
    by_name: dict[tuple[str | None, str], list[int]] = {}
    for position, alias in enumerate(aliases):
        named = by_name.setdefault((provider_of(alias.provider), alias.ref), [])
        for earlier in named:
            if aliases[earlier].effective.meets(alias.effective):
                meaning = aliases[earlier].target_sku
                return earlier, position, f"{alias.ref!r} already stands for {meaning!r} at that time"
        named.append(position)
    return None


def tied_adjustments(adjustments: Sequence[Factor]) -> Tie | None:
    """First two percentages of a layer of which neither is more specific, for some price."""
    rivals: dict[tuple[object, ...], dict[str, list[int]]] = {}
    for position, one in enumerate(adjustments):
        key = (*one.specificity, provider_of(one.provider))
        rivals.setdefault(key, {}).setdefault(one.sku, []).append(position)
    pairs = (
        pair
        for by_sku in rivals.values()
        for pair in _pairs(by_sku, adjustments)
        if _agree(adjustments[pair[0]].when, adjustments[pair[1]].when)
        and adjustments[pair[0]].effective.meets(adjustments[pair[1]].effective)
        and not _covered(adjustments[pair[0]].meter).isdisjoint(_covered(adjustments[pair[1]].meter))
    )
    first = min(pairs, default=None)
    if first is None:
        return None
    return *first, f"it ties with {adjustments[first[0]].id!r}: neither is more specific where both apply"


def _pairs(by_sku: Mapping[str, Sequence[int]], entries: Sequence[Factor]) -> Iterator[tuple[int, int]]:
    """Positions, the earlier first, of two entries whose SKUs one name can match; only patterns are compared."""
    for positions in by_sku.values():
        for mine, theirs in _agreeing(positions, [entries[position].when for position in positions]):
            yield min(mine, theirs), max(mine, theirs)
    patterns = [sku for sku in by_sku if is_pattern(sku)]
    exact = [sku for sku in by_sku if not is_pattern(sku)]
    meeting = [pair for pair in combinations(patterns, 2) if patterns_meet(*pair)]
    meeting.extend((pattern, name) for pattern in patterns for name in exact if covers_name(pattern, name))
    for one, other in meeting:
        for mine in by_sku[one]:
            for theirs in by_sku[other]:
                yield min(mine, theirs), max(mine, theirs)


@lru_cache(1024)
def _covered(pattern: str) -> frozenset[str]:
    """Meters that are matched."""
    return frozenset(meter for meter in METERS if covers_name(pattern, meter))


def tied_terms(terms: Sequence[Term]) -> Tie | None:
    """First two volume discounts of a layer of which neither is more specific, for some cost."""
    positions = [position for position, term in enumerate(terms) if term.kind == "volume"]
    tie = tied_adjustments([scope_of(terms[position]) for position in positions])
    return None if tie is None else (positions[tie[0]], positions[tie[1]], tie[2])


def scope_of(term: Term) -> Factor:
    """What counts towards a term, as a factor that changes nothing."""
    return Factor(term.id, WHOLE, term.provider, term.sku, term.meter, effective=term.effective)


def tied_intervals(intervals: Sequence[Interval]) -> tuple[int, int] | None:
    """First two that have an instant in common."""
    for earlier, later in combinations(range(len(intervals)), 2):
        if intervals[earlier].meets(intervals[later]):
            return earlier, later
    return None


def common(first: Interval, second: Interval) -> Interval:
    """What two intervals that meet have in common."""
    starts = [bound for bound in (first.start, second.start) if bound is not None]
    ends = [bound for bound in (first.end, second.end) if bound is not None]
    return Interval(max(starts, default=None), min(ends, default=None))


def uncovered(whole: Interval, parts: Iterable[Interval]) -> Iterator[Interval]:
    """Stretches of an interval that none of the parts holds, in order."""
    since = whole.start
    for part in sorted(filter(whole.meets, parts), key=lambda part: (part.start is not None, part.start or 0)):
        if part.start is not None and (since is None or part.start > since):
            yield Interval(since, part.start)
        if part.end is None or (whole.end is not None and part.end >= whole.end):
            return
        since = part.end if since is None else max(since, part.end)
    yield Interval(since, whole.end)


def covers_name(pattern: str, name: str) -> bool:
    """Whether a name is matched (``*`` any characters, ``?`` one)."""
    return matches(pattern, name)


def _rivals(rows: Iterable[PriceRow]) -> Iterator[tuple[PriceRow, PriceRow, Sequence[PriceRow]]]:
    """Pairs of rows of one meter and provider of which neither is more specific, with all rows of the first one's SKU
    and level: of one SKU, level and number of conditions, both with hours or both without; or of two patterns of one
    rank that can match one name, whatever else they say, because resolution is done with one SKU before the next.
    """
    by_meter: dict[tuple[str, str | None], dict[str, list[PriceRow]]] = {}
    for row in rows:
        by_meter.setdefault((row.meter, row.provider), {}).setdefault(row.sku, []).append(row)
    for skus in by_meter.values():
        for of_sku in skus.values():
            if len(of_sku) == 1:
                continue
            levels: dict[int, list[PriceRow]] = {}
            alike: dict[tuple[int, int, bool], list[PriceRow]] = {}
            for row in of_sku:
                levels.setdefault(row.level, []).append(row)
                alike.setdefault((row.level, len(row.when), row.schedule is None), []).append(row)
            for (level, _, _), peers in alike.items():
                for first, second in _agreeing(peers, [row.when for row in peers]):
                    yield first, second, levels[level]
        by_rank: dict[int, list[str]] = {}
        for sku in filter(is_pattern, skus):
            by_rank.setdefault(literal_length(sku), []).append(sku)
        for patterns in by_rank.values():
            for one, other in combinations(patterns, 2):
                if patterns_meet(one, other):
                    for first in skus[one]:
                        for second in skus[other]:
                            yield first, second, skus[one]


def _agreeing(entries: Sequence[_T], whens: Sequence[Mapping[str, str]]) -> Iterator[tuple[_T, _T]]:
    """Pairs of which one span can meet the conditions of both, found by the values of the selectors that both ask for:
    a book may have thousands of rows for one device.

    Args:
        entries: prices, or whatever has conditions.
        whens: the conditions of each.
    """
    by_keys: dict[frozenset[str], list[int]] = {}
    for position, when in enumerate(whens):
        by_keys.setdefault(frozenset(when), []).append(position)
    for mine, others in combinations_with_replacement(by_keys, 2):
        shared = sorted(mine & others)
        by_values: dict[tuple[str, ...], list[int]] = {}
        for position in by_keys[mine]:
            by_values.setdefault(tuple(whens[position][key] for key in shared), []).append(position)
        if mine == others:
            for alike in by_values.values():
                for one, other in combinations(alike, 2):
                    yield entries[one], entries[other]
        else:
            for position in by_keys[others]:
                for other in by_values.get(tuple(whens[position][key] for key in shared), ()):
                    yield entries[other], entries[position]


def _agree(first: Mapping[str, str], second: Mapping[str, str]) -> bool:
    """Whether one span can meet the conditions of both."""
    return all(first[key] == second[key] for key in first.keys() & second.keys())


def _told(first: Mapping[str, str], second: Mapping[str, str]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in sorted({**first, **second}.items()))


def _decided(first: PriceRow, second: PriceRow, siblings: Iterable[PriceRow]) -> bool:
    """Whether rows for both conditions at once win wherever the two tie."""
    both = {**first.when, **second.when}
    covering = (row.effective for row in siblings if row.when == both and row.schedule in (None, first.schedule))
    return not any(uncovered(common(first.effective, second.effective), covering))


def _hours_meet(first: PriceRow, second: PriceRow) -> bool:
    if first.schedule is None or second.schedule is None:
        return True
    return schedules_meet(first.schedule, second.schedule, common(first.effective, second.effective))


@lru_cache(1024)
def schedules_meet(first: Schedule, second: Schedule, during: Interval) -> bool:
    """Whether two schedules hold at one instant.

    In one time zone their weeks are compared, and exceptions are left aside: they end, the hours do not. In two, every
    UTC day of the first three years in which both prices hold, by the clocks' own edges.
    """
    if first.tz == second.tz:
        return any(a < d and c < b for a, b in first.stretches for c, d in second.stretches)
    since = during.start
    if since is None:
        since = _COMPARED_FROM if during.end is None else min(_COMPARED_FROM, during.end - _COMPARED_DAYS * DAY)
    until = since + _COMPARED_DAYS * DAY if during.end is None else min(during.end, since + _COMPARED_DAYS * DAY)
    for day in range(since // DAY, -(-until // DAY)):
        low, high = max(since - day * DAY, 0), min(until - day * DAY, DAY)
        mine, others = first.stretches_of(day), second.stretches_of(day)
        if any(max(a, c, low) < min(b, d, high) for a, b in mine for c, d in others):
            return True
    return False


def patterns_meet(first: str, second: str) -> bool:
    """Whether some name matches both patterns (``*`` any characters, ``?`` one)."""
    if first == second or not (_may_begin(first, second) and _may_begin(first[::-1], second[::-1])):
        return first == second
    # Row by row from the ends: below[j] tells whether what follows first[i] and second[j] can match one name.
    below: list[bool] = []
    for i in range(len(first), -1, -1):
        row = [False] * (len(second) + 1)
        for j in range(len(second), -1, -1):
            mine, other = first[i : i + 1], second[j : j + 1]
            if not mine and not other:
                row[j] = True
            elif mine == "*":
                row[j] = below[j] or (bool(other) and row[j + 1])
            elif other == "*":
                row[j] = row[j + 1] or (bool(mine) and below[j])
            elif mine and other and (mine == other or "?" in (mine, other)):
                row[j] = below[j + 1]
        below = row
    return below[0]


def _may_begin(first: str, second: str) -> bool:
    """Whether two patterns agree up to the first ``*`` of either: most that do not meet differ there."""
    for mine, other in zip(first, second, strict=False):
        if "*" in (mine, other):
            return True
        if mine != other and "?" not in (mine, other):
            return False
    return True
