"""Nearest names: what a person who mistyped a meter, a field or a model may have meant."""

from __future__ import annotations

from collections.abc import Iterable


def close(name: str, known: Iterable[str], limit: int = 3) -> list[str]:
    """Up to ``limit`` of the known names that look like ``name``, the likeliest first."""
    from difflib import get_close_matches

    return get_close_matches(name.lower(), list(known), n=limit, cutoff=0.5)


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for an error: the nearest names, or all of them when none is near and they are few."""
    names = list(known)
    found = close(name, names)
    if found:
        return f"Did you mean {', '.join(found)}?"
    return f"Known: {', '.join(names)}." if len(names) <= 15 else ""
