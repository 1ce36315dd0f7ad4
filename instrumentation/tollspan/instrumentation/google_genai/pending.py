"""Work that was asked for in one call and is told of by a later one: remembered until its end was seen.

In: the provider's id of the work, when this process asks for it. Out: what was known then, to the first call that finds
it done, and to no other: what was used is billed once. Work that another process asked for is not known here.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final, Generic, TypeVar

MOST: Final = 10_000
"""Remembered at most; the oldest is forgotten first."""

T = TypeVar("T")


class Pending(Generic[T]):
    """Ids of pending work, and what is known of each. Safe in threads."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, T] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._known)

    def add(self, key: str, asked: T) -> None:
        """Remember work that was asked for."""
        with self._lock:
            self._known[key] = asked
            while len(self._known) > MOST:
                self._known.popitem(last=False)

    def get(self, key: object) -> T | None:
        """What was asked for; None where it is not known, or its end was seen."""
        return self._known.get(key) if isinstance(key, str) else None

    def end(self, key: object) -> T | None:
        """The end was seen: what was asked for, to the first who says so."""
        if not isinstance(key, str):
            return None
        with self._lock:
            return self._known.pop(key, None)
