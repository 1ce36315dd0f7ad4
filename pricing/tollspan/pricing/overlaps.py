"""Ambiguity of a book, found when it loads: rows, patterns and aliases that would tie for some span.

In: the rows and aliases of one layer. Out: the first pair that ties and why. Resolution (`resolve`) can then take the
one row that is left without a rule for ties.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import combinations

from tollspan.pricing.book import Alias, Interval, PriceRow, is_pattern, literal_length


def tied_rows(rows: Sequence[PriceRow]) -> tuple[int, int, str] | None:
    """First two rows of a layer that could both be chosen for one span.

    Returns:
        Their positions and the reason, or None.
    """
    seen: dict[str, int] = {}
    for position, row in enumerate(rows):
        if row.id in seen:
            return seen[row.id], position, f"the id {row.id!r} is used twice"
        seen[row.id] = position
    positions = {id(row): position for position, row in enumerate(rows)}
    for first, second, siblings in _rivals(rows):
        if not first.effective.meets(second.effective) or not _windows_meet(first, second):
            continue
        if any(first.when[key] != second.when[key] for key in first.when.keys() & second.when.keys()):
            continue
        if first.sku == second.sku:
            if len(first.when) != len(second.when) or bool(first.windows) != bool(second.windows):
                continue  # the more specific one wins
            if first.when != second.when and _decided(first, second, siblings):
                continue
        reason = f"it ties with {first.id!r}: same meter, SKU, time and conditions"
        if first.sku != second.sku:
            reason = f"it ties with {first.id!r}: the patterns {first.sku!r} and {second.sku!r} can match one name"
        elif first.when != second.when:
            both = ", ".join(f"{key}: {value}" for key, value in sorted({**first.when, **second.when}.items()))
            reason = f"it ties with {first.id!r} for a span with {both}"
        return positions[id(first)], positions[id(second)], reason
    return None


def tied_aliases(aliases: Sequence[Alias]) -> tuple[int, int, str] | None:
    """First two aliases of a layer that give one name two meanings at one time; as `tied_rows`."""
    by_name: dict[tuple[str | None, str], list[int]] = {}
    for position, alias in enumerate(aliases):
        for earlier in by_name.setdefault((alias.provider, alias.ref), []):
            if aliases[earlier].effective.meets(alias.effective):
                return (
                    earlier,
                    position,
                    f"{alias.ref!r} already stands for {aliases[earlier].target_sku!r} at that time",
                )
        by_name[alias.provider, alias.ref].append(position)
    return None


def _rivals(rows: Sequence[PriceRow]) -> Iterator[tuple[PriceRow, PriceRow, Sequence[PriceRow]]]:
    """Pairs of rows of one meter and provider that have the same SKU, or patterns of one rank that can match one name;
    with all rows of the same SKU as the first."""
    by_meter: dict[tuple[str, str | None], dict[str, list[PriceRow]]] = {}
    for row in rows:
        by_meter.setdefault((row.meter, row.provider), {}).setdefault(row.sku, []).append(row)
    for skus in by_meter.values():
        for siblings in skus.values():
            for first, second in combinations(siblings, 2):
                yield first, second, siblings
        by_rank: dict[int, list[str]] = {}
        for sku in filter(is_pattern, skus):
            by_rank.setdefault(literal_length(sku), []).append(sku)
        for peers in by_rank.values():
            for one, other in combinations(peers, 2):
                if patterns_meet(one, other):
                    for first in skus[one]:
                        for second in skus[other]:
                            yield first, second, skus[one]


def _windows_meet(first: PriceRow, second: PriceRow) -> bool:
    if not first.windows or not second.windows:
        return True
    return any(a < d and c < b for a, b in first.windows for c, d in second.windows)


def _decided(first: PriceRow, second: PriceRow, siblings: Iterable[PriceRow]) -> bool:
    """Whether a third row, for both conditions at once, wins wherever the two tie."""
    both = {**first.when, **second.when}
    common = Interval(
        _latest(first.effective.start, second.effective.start), _earliest(first.effective.end, second.effective.end)
    )
    return any(
        row.when == both
        and bool(row.windows) == bool(first.windows)
        and (not row.windows or row.windows == first.windows)
        and (row.effective.start is None or (common.start is not None and row.effective.start <= common.start))
        and (row.effective.end is None or (common.end is not None and row.effective.end >= common.end))
        for row in siblings
    )


def _latest(one: int | None, other: int | None) -> int | None:
    return max((bound for bound in (one, other) if bound is not None), default=None)


def _earliest(one: int | None, other: int | None) -> int | None:
    return min((bound for bound in (one, other) if bound is not None), default=None)


def patterns_meet(first: str, second: str) -> bool:
    """Whether some name matches both patterns (``*`` any characters, ``?`` one)."""

    @cache
    def meet(i: int, j: int) -> bool:
        if i == len(first) and j == len(second):
            return True
        if i < len(first) and first[i] == "*":
            return meet(i + 1, j) or (j < len(second) and meet(i, j + 1))
        if j < len(second) and second[j] == "*":
            return meet(i, j + 1) or (i < len(first) and meet(i + 1, j))
        if i == len(first) or j == len(second):
            return False
        return (first[i] == second[j] or "?" in (first[i], second[j])) and meet(i + 1, j + 1)

    return meet(0, 0)
