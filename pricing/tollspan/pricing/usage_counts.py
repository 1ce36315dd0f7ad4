"""Counts of a usage object: which names hold them, and what is right as one.

In: scalars by flat name (`usage_fields`) and the tables of `usage_shapes`. Out: quantities in base steps, or the reason
why a value cannot be one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final

from tollspan.pricing.conventions import LARGEST_COUNT
from tollspan.pricing.meters import METERS
from tollspan.pricing.usage_fields import is_number, several
from tollspan.pricing.usage_shapes import BARE, METER_PATHS, METERS_WITHOUT_TOKENS, NO_COUNTS, SHAPES, Shape

NOT_A_NUMBER: Final = "usage_not_a_number"
FRACTIONAL: Final = "usage_fractional"
NEGATIVE: Final = "usage_negative"
TOO_LARGE: Final = "usage_too_large"

LARGEST_STEPS: Final = 2**63 - 1
_NO_COUNT: Final = re.compile(NO_COUNTS)

SCALES: Final = {name: meter.scale for name, meter in METERS.items()}


class Wrong(Exception):
    """A value that cannot be a quantity; its argument is the reason."""


class Reader:
    """Reads quantities by path, and remembers the first reason why one cannot be right.

    Attributes:
        invalid: that reason.
    """

    __slots__ = ("_flat", "invalid")

    def __init__(self, flat: Mapping[str, Any]) -> None:
        self._flat = flat
        self.invalid: str | None = None

    def all(self, scales: Mapping[str, int], table: Mapping[str, tuple[str, ...]]) -> dict[str, int]:
        """Quantities in base steps by name, only what is given and right."""
        found = ((name, self.first(paths, scales[name])) for name, paths in table.items())
        return {name: steps for name, steps in found if steps is not None}

    def first(self, paths: Iterable[str], scale: int) -> int | None:
        """Quantity at the first path of which anything is given."""
        for path in paths:
            if given := [self._flat[name] for name in summands(path) if name in self._flat]:
                return self.steps([value for some in given for value in several(some)], scale)
        return None

    def steps(self, values: list[Any], scale: int) -> int | None:
        """Sum of values in base steps; None, and a reason, where it cannot be right."""
        try:
            return steps_of(values, scale)
        except Wrong as wrong:
            self.invalid = self.invalid or str(wrong)
            return None


def steps_of(values: Iterable[Any], scale: int) -> int:
    """Sum of values in base steps. Raises `Wrong` where it cannot be right."""
    total = sum(_steps(value, scale) for value in values)
    if total > (LARGEST_COUNT if scale == 1 else LARGEST_STEPS):
        raise Wrong(TOO_LARGE)
    return total


def _steps(value: Any, scale: int) -> int:
    """A value in base steps, rounded half to even below a step; a count has to be whole."""
    if type(value) is int:
        if value < 0:
            raise Wrong(NEGATIVE)
        return value * scale
    if type(value) is float and 0 <= value <= LARGEST_COUNT and value.is_integer():
        return int(value) * scale  # what the exact way below gives, sooner
    if not is_number(value) or exact(value).is_nan():
        raise Wrong(NOT_A_NUMBER)
    if value < 0:
        raise Wrong(NEGATIVE)
    if value > LARGEST_STEPS:
        raise Wrong(TOO_LARGE)
    if scale == 1 and value != int(value):
        raise Wrong(FRACTIONAL)
    return round(exact(value) * scale)


def exact(value: Any) -> Decimal:
    """A number as it was written: a float by its shortest form."""
    return Decimal(float.__repr__(value) if isinstance(value, float) else value)


@lru_cache(maxsize=1024)
def summands(path: str) -> tuple[str, ...]:
    """Names of which a path is the sum."""
    return tuple(path.split(" + "))


def shape_of(flat: Mapping[str, Any], owner: str | None) -> Shape | None:
    """The first shape of which the object has a mark; the barest have that of their provider. None: no tokens."""
    there = {name.partition(".")[0] for name in flat} | flat.keys()
    for shape in SHAPES:
        if not there.isdisjoint(shape.marks):
            return shape
    if there.isdisjoint(("input_tokens", "output_tokens")):
        return None
    return next((shape for shape in SHAPES if owner in shape.bare), BARE)


@lru_cache(maxsize=4096)
def is_no_count(name: str) -> bool:
    """Whether a number of this name measures nothing of its own."""
    return _NO_COUNT.search(name) is not None


@lru_cache(maxsize=64)
def known_names(shape: Shape | None) -> frozenset[str]:
    """Every name that is looked at in an object of this shape."""
    tables = (*((shape.counts,) if shape else ()), METER_PATHS, METERS_WITHOUT_TOKENS)
    return frozenset(n for table in tables for paths in table.values() for path in paths for n in summands(path))
