"""Usage counts: the token counts of a batch, each span's in its own dialect, as disjoint meters.

In: a batch by key (`Pivot`), its scopes, and the provider of each span. Out: `Counts`, quantities by meter and what is
wrong with them. Used by `normalize`; the dialects are the tables of `usage_dialects`.

Work goes by place and by convention, never by span.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tollspan.pricing.conventions import disjoint_columns
from tollspan.processor.decode.arrow_bytes import Mask
from tollspan.processor.pivot import GOOD, NOT_A_NUMBER, Codes, Pivot, Scopes, Shapes, Steps, from_texts
from tollspan.processor.usage_dialects import COUNTING, TOTALS, USAGE, Counting, Member, Place, Usage, key_of

Found: TypeAlias = tuple[Steps, Mask, Codes]
"""A count of n spans: its value (0 unless good), whether the span gives it, and what it is (`pivot.GOOD` ...)."""

LONGEST_OBJECT: Final = 1 << 18
"""Bytes of an attribute that counts are looked for in; usage objects have some hundred."""

CONVENTION_NAMES: Final = tuple(
    dict.fromkeys([*(usage.convention for usage in USAGE), *(rule.convention for rule in COUNTING)])
)

KEYS: Final = frozenset(
    key_of(place)
    for usage in USAGE
    for table in (usage.counts, usage.parts)
    for places in table.values()
    for place in places
) | frozenset({*TOTALS, *(key for rule in COUNTING for key in rule.unless)})
"""Every key that is asked for here."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Token counts of n spans.

    Attributes:
        meters: meter → values (int64) and whether the span has them.
        counted: which spans gave any count, right or wrong.
        wrong: for each span what is wrong with the first bad value of it, `pivot.GOOD` if nothing.
        inconsistent: for each span the index in `conventions.INVALID_REASONS`.
        convention: index in `CONVENTION_NAMES` of how each span counts, -1 where it counts nothing.
        short: spans whose total is more than what they tell the parts of.
    """

    meters: dict[str, tuple[Steps, Mask]]
    counted: Mask
    wrong: Codes
    inconsistent: Codes
    convention: npt.NDArray[np.int32]
    short: Mask


def counts_of(pivot: Pivot, shapes: Shapes, provider: Any, *models: Any) -> Counts:
    """Token counts of a batch.

    Args:
        pivot: its attributes, `KEYS` among the wanted ones.
        shapes: of the spans.
        provider: dictionary column of canonical names by shape, null = not known.
        models: dictionary columns of names of models by shape.
    """
    length = pivot.length
    out = Counts(
        {},
        np.zeros(length, np.bool_),
        np.zeros(length, np.uint8),
        np.zeros(length, np.uint8),
        np.full(length, -1, np.int32),
        np.zeros(length, np.bool_),
    )
    objects = _Objects(pivot)
    taken = np.zeros(length, np.bool_)
    present = pivot.present
    for usage in USAGE:
        if usage.keys.isdisjoint(present):
            continue
        free = ~taken
        if usage.scope:
            speak = np.array([_begins(name, usage.scope) for name in pivot.scopes.names], np.bool_)
            if not speak.any():
                continue
            free &= speak[pivot.scopes.of]
        found = _found(pivot, objects, usage, free)
        if found is None:
            continue
        counts, mine = found
        taken |= mine
        if usage.nan:
            # Nothing was told to the library, which says so in its way: the span is its, and has no counts.
            counts = {
                name: (values, given & (codes != NOT_A_NUMBER), codes)
                for name, (values, given, codes) in counts.items()
            }
            mine = np.logical_or.reduce([given for _, given, _ in counts.values()])
        out.counted[mine] = True
        for _, given, codes in counts.values():
            if codes.any():
                np.copyto(out.wrong, np.where(given, codes, GOOD), where=out.wrong == GOOD)
        for convention, rows in _conventions(pivot, usage, mine, shapes, provider, models):
            out.convention[rows] = CONVENTION_NAMES.index(convention)
            columns = {
                name: (values, given & (codes == GOOD) & rows) for name, (values, given, codes) in counts.items()
            }
            converted, reasons = disjoint_columns(convention, columns)
            if reasons.any():
                np.copyto(out.inconsistent, reasons, where=rows)
            for meter, (values, valid) in converted.items():
                before = out.meters.get(meter)
                out.meters[meter] = (
                    (values, valid) if before is None else (np.where(valid, values, before[0]), valid | before[1])
                )
    _shorten(pivot, out)
    return out


def _found(pivot: Pivot, objects: _Objects, usage: Usage, free: Mask) -> tuple[dict[str, Found], Mask] | None:
    """Counts of those of the given spans that speak a dialect, and which these are; None where none is."""
    counts: dict[str, Found] = {}
    mine = np.zeros(pivot.length, np.bool_)
    present = pivot.present
    for table, whose in ((usage.counts, free), (usage.parts, mine)):
        for count, places in table.items():
            here = [place for place in places if (place if type(place) is str else key_of(place)) in present]
            found = _count(pivot, objects, here) if here else None
            if found is None:
                continue
            values, given, codes = found
            given = given & whose
            if (before := counts.get(count)) is not None:
                more = given & ~before[1]
                values, given, codes = (
                    np.where(more, values, before[0]),
                    more | before[1],
                    np.where(more, codes, before[2]),
                )
            counts[count] = (values, given, codes)
            if table is usage.counts:
                mine |= given
        if not mine.any():
            return None
    return counts, mine


def _count(pivot: Pivot, objects: _Objects, places: Sequence[Place]) -> Found | None:
    """A count in the most preferred of its places; None where no span gives it."""
    keys = [place for place in places if isinstance(place, str)]
    found = pivot.quantity(keys, 1) if keys else None
    for place in places:
        if isinstance(place, str) or (inside := objects.count(place)) is None:
            continue
        if found is None:
            found = inside
            continue
        more = inside[1] & ~found[1]
        found = (
            np.where(more, inside[0], found[0]),
            found[1] | more,
            np.where(more, inside[2], found[2]),
        )
    return found


class _Objects:
    """Numbers inside of attributes whose values are objects written as text."""

    def __init__(self, pivot: Pivot) -> None:
        self._pivot = pivot
        self._texts: dict[str, tuple[Any, Any]] = {}

    def count(self, member: Member) -> Found | None:
        """A member's number of each span; None where no span has it."""
        owners, texts = self._written(member.key)
        if not len(owners):
            return None
        numbers = pc.struct_field(pc.extract_regex(texts, _pattern(member)), "number")
        said = np.asarray(pc.is_valid(numbers))
        if not said.any():
            return None
        steps, codes = from_texts(numbers.filter(pa.array(said)), 1)
        owners = owners[said]
        if not member.zero:
            counts = (steps != 0) | (codes != GOOD)
            owners, steps, codes = owners[counts], steps[counts], codes[counts]
        length = self._pivot.length
        values, given, wrong = np.zeros(length, np.int64), np.zeros(length, np.bool_), np.zeros(length, np.uint8)
        values[owners], given[owners], wrong[owners] = steps, True, codes
        return values, given, wrong

    def _written(self, key: str) -> tuple[Any, Any]:
        if key not in self._texts:
            owners, texts = self._pivot.written(key)
            if len(owners):
                short = np.asarray(pc.less_equal(pc.binary_length(texts), LONGEST_OBJECT))
                if not short.all():
                    owners, texts = owners[short], texts.filter(pa.array(short))
            self._texts[key] = owners, texts
        return self._texts[key]


@cache
def _pattern(member: Member) -> str:
    """Regular expression of a member: names in quotes, each directly inside the one before, and a number.

    It begins with a literal, which the engine finds fast. A quote inside of a text is escaped, so that what somebody
    wrote into a prompt looks like no name.
    """
    quote = re.escape(member.quote)
    opened = r"\s*:\s*\{(?:[^{}]|\{[^{}]*\})*?"
    return opened.join(f"{quote}{re.escape(name)}{quote}" for name in member.path) + (
        rf"\s*:\s*{quote}?(?P<number>-?[0-9][0-9.eE+-]*)"
    )


def _conventions(
    pivot: Pivot, usage: Usage, mine: Mask, shapes: Shapes, provider: Any, models: tuple[Any, ...]
) -> list[tuple[str, Mask]]:
    """How the spans of a dialect count, as conventions and the spans that count by each."""
    rest = mine
    out = []
    for rule in COUNTING:
        if usage.name not in rule.usage:
            continue
        scopes = _scopes(rule, pivot.scopes)
        if not scopes.any():
            continue
        rows = rest & scopes[pivot.scopes.of]
        if (rule.providers or rule.models) and rows.any():
            named = _any(provider, rule.providers.__contains__)
            for column in models:
                named |= _any(column, rule.sells)
            rows &= shapes.spread(named)
        for key in rule.unless:
            if rows.any() and (other := pivot.quantity((key,), 1)) is not None:
                rows &= ~other[1]
        if rows.any():
            out.append((rule.convention, rows))
            rest = rest & ~rows
    if rest.any():
        out.append((usage.convention, rest))
    return out


def _any(column: Any, fits: Callable[[str], bool]) -> Mask:
    """Which rows of a dictionary column have a value that fits."""
    known = np.array([*map(fits, column.dictionary.to_pylist()), False], np.bool_)
    chosen: Mask = known[np.asarray(pc.fill_null(column.indices, -1))]
    return chosen


def _scopes(rule: Counting, scopes: Scopes) -> Mask:
    """Which scopes a rule is about."""
    return np.array(
        [
            _begins(name, rule.scope) and _within(version, rule)
            for name, version in zip(scopes.names, scopes.versions, strict=True)
        ],
        np.bool_,
    )


def _begins(name: str, start: str) -> bool:
    """Whether a scope is the given one or inside it: ``ai`` is not ``airflow``."""
    return name.startswith(start) and (start.endswith(".") or name[len(start) :][:1] in ("", ".", "-", "_", "/"))


def _within(version: str, rule: Counting) -> bool:
    if not version:
        return True
    parts = _numbers(version)
    return not (rule.since and parts < _numbers(rule.since)) and not (rule.before and parts >= _numbers(rule.before))


def _numbers(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with: ``1.45.0b1`` is (1, 45, 0)."""
    begun = re.match(r"v?(\d{1,9}(?:\.\d{1,9})*)", version)
    return tuple(int(part) for part in begun[1].split(".")) if begun else ()


def _shorten(pivot: Pivot, out: Counts) -> None:
    """Mark the spans whose total is more than all that they tell."""
    found = pivot.quantity(TOTALS, 1)
    if found is None:
        return
    total, given, codes = found
    told = np.zeros(pivot.length, np.int64)
    for values, valid in out.meters.values():
        told += np.where(valid, values, 0)
    out.short[:] = given & (codes == GOOD) & out.counted & (told < total)
