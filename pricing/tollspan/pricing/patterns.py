"""Patterns: names with wildcards, as price rows, factors and terms have them.

In: ``*`` any characters, ``?`` one, everything else itself. Out: whether a name is one of them.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Final

ANY: Final = "*"
"""The SKU of rows that apply to whatever the span names."""


def is_pattern(sku: str) -> bool:
    return "*" in sku or "?" in sku


def literal_length(pattern: str) -> int:
    """How specific a pattern is: its characters that stand for themselves."""
    return len(pattern) - pattern.count("*") - pattern.count("?")


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern (``*`` any characters, ``?`` one), or a name, is that of the name."""
    return compile_pattern(pattern).fullmatch(name) if is_pattern(pattern) else pattern == name


class Pattern:
    """A compiled pattern. Names come from spans, so a match takes time in proportion to the name, whatever it holds:
    the pieces between the stars are looked for one after the other, and what is found first is never given up again.

    Args:
        text: ``*`` any characters, ``?`` one, everything else itself.
    """

    __slots__ = ("_first", "_last", "_middle")

    def __init__(self, text: str) -> None:
        first, *rest = text.split(ANY)
        self._first = _piece(first)
        self._middle = [_piece(piece) for piece in rest[:-1] if piece]
        self._last = (_piece(rest[-1]), len(rest[-1])) if rest else None

    def fullmatch(self, name: str) -> bool:
        """Whether all of the name matches."""
        if self._last is None:
            return self._first.fullmatch(name) is not None
        begun = self._first.match(name)
        if begun is None:
            return False
        last, length = self._last
        end = len(name) - length
        if end < begun.end() or last.fullmatch(name, end) is None:
            return False
        at = begun.end()
        for piece in self._middle:
            found = piece.search(name, at, end)
            if found is None:
                return False
            at = found.end()
        return True


def _piece(text: str) -> re.Pattern[str]:
    return re.compile("".join("." if char == "?" else re.escape(char) for char in text), re.DOTALL)


compile_pattern = cache(Pattern)
