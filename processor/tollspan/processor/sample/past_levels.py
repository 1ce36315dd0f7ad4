"""Levels of the past: what rules would have compared with, made from the store for a dry run and written nowhere.

In: the levels that a policy needs, a reader and a window. Out: figures for every minute of it, by the same queries,
histograms and windows as `levels` uses, whether anybody wanted them at that time or not.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from typing import Final

from tollspan.processor.sample.conditions import Level
from tollspan.processor.sample.figures import Window
from tollspan.processor.sample.levels import CHUNK, LAG, table_of
from tollspan.processor.sample.states import Reads, query_of, states
from tollspan.processor.sample.traces_seen import Table

COARSEST: Final = 5
"""Minutes at the most between two figures; those of short windows are made for each minute."""


class PastLevels:
    """Figures in force in a window that has passed; a `traces_seen.InForce`.

    Args:
        reader: of the store.
        needed: what the policy asks for.
        since, until: minutes since 1970 of the first and the last traces.

    Attributes:
        unknown: levels that nobody can make from the store.
    """

    def __init__(self, reader: Reads, needed: Iterable[Level], since: int, until: int) -> None:
        self.unknown: list[Level] = []
        self._figures: dict[Level, tuple[list[int], list[Table]]] = {}
        by_series: dict[tuple[str, str], list[Level]] = {}
        for level in needed:
            if query_of(level.metric, [level.dimension]) is None:
                self.unknown.append(level)
            else:
                by_series.setdefault((level.metric, level.dimension), []).append(level)
        for series, levels in by_series.items():
            self._follow(reader, series, levels, since - LAG, until - LAG)

    def _follow(self, reader: Reads, series: tuple[str, str], levels: list[Level], since: int, until: int) -> None:
        windows = {level: Window(level.window) for level in levels}
        begin = min(window.first(since) for window in windows.values())
        for chunk in range(begin, until + 1, CHUNK):
            found = states(reader, *series, chunk, min(chunk + CHUNK, until + 1))
            for minute, state in sorted(found.items()):
                for level, window in windows.items():
                    window.push(minute, state)
                    if minute >= since and (minute == since or minute % _step(level) == 0):
                        minutes, tables = self._figures.setdefault(level, ([], []))
                        minutes.append(minute)
                        tables.append(table_of(level, window))

    def table(self, level: Level, minute: int) -> Table | None:
        """Keys and figures of a level for traces that start in a minute."""
        minutes, tables = self._figures.get(level, ([], []))
        return tables[max(bisect_right(minutes, minute - LAG) - 1, 0)] if minutes else None

    def known(self) -> tuple[int, int]:
        """The first and the last minute with figures of their own."""
        everything = [minute + LAG for minutes, _ in self._figures.values() for minute in minutes] or [0]
        return min(everything), max(everything)

    def rates(self, metric: str, minute: int) -> Mapping[str, Table]:
        """None: a dry run says what a budget would have to do, and does not do it."""
        return {}


def _step(level: Level) -> int:
    return min(max(level.window // 12, 1), COARSEST)
