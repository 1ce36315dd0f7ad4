"""Matchers: what a text or a number has to be. Rules ask them of the distinct values of a batch, never span by span.

Between the rules' file (`rules`), which makes them, and `conditions`, which say of what they are asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tollspan.processor.identity import Mask


class Matcher:
    """What a value has to be; frozen and compared by value."""

    numeric: bool = False
    """Whether `numbers` is to be asked, and not `texts`."""

    def texts(self, values: Any) -> Mask:
        """Which texts of a string array without nulls match."""
        raise NotImplementedError

    def numbers(self, values: npt.NDArray[np.float64]) -> Mask:
        """Which numbers match."""
        raise NotImplementedError

    def within(self, other: Matcher) -> bool:
        """Whether everything that matches this matches the other too, as far as that can be told."""
        return self == other or isinstance(other, Present)

    def apart(self, other: Matcher) -> bool:
        """Whether nothing matches both, as far as that can be told."""
        return False


@dataclass(frozen=True, slots=True)
class OneOf(Matcher):
    """Equal to one of some texts. Numbers and booleans are compared as they are written: ``5``, ``0.25``, ``true``."""

    values: frozenset[str]

    def texts(self, values: Any) -> Mask:
        return np.asarray(pc.is_in(values, value_set=pa.array(sorted(self.values), pa.string())))

    def within(self, other: Matcher) -> bool:
        if isinstance(other, OneOf):
            return self.values <= other.values
        if isinstance(other, Pattern):
            return bool(other.texts(pa.array(sorted(self.values), pa.string())).all())
        return isinstance(other, Present)

    def apart(self, other: Matcher) -> bool:
        if isinstance(other, OneOf):
            return not self.values & other.values
        return isinstance(other, Pattern) and not other.texts(pa.array(sorted(self.values), pa.string())).any()


@dataclass(frozen=True, slots=True)
class Pattern(Matcher):
    """Contains what a regular expression (RE2: its time is linear, whatever a sender writes) describes."""

    regex: str

    def texts(self, values: Any) -> Mask:
        return np.asarray(pc.match_substring_regex(values, self.regex))

    def apart(self, other: Matcher) -> bool:
        return isinstance(other, OneOf) and other.apart(self)


@dataclass(frozen=True, slots=True)
class Range(Matcher):
    """A number from ``low`` to ``high``, both with it; None = open. Texts are no numbers."""

    low: float | None
    high: float | None
    numeric = True

    def numbers(self, values: npt.NDArray[np.float64]) -> Mask:
        found = ~np.isnan(values)
        if self.low is not None:
            found &= values >= self.low
        if self.high is not None:
            found &= values <= self.high
        return found

    def within(self, other: Matcher) -> bool:
        if not isinstance(other, Range):
            return isinstance(other, Present)
        low = other.low is None or (self.low is not None and self.low >= other.low)
        return low and (other.high is None or (self.high is not None and self.high <= other.high))

    def apart(self, other: Matcher) -> bool:
        if not isinstance(other, Range):
            return False
        return any(
            first.high is not None and second.low is not None and first.high < second.low
            for first, second in ((self, other), (other, self))
        )


@dataclass(frozen=True, slots=True)
class Present(Matcher):
    """Any value at all."""

    def texts(self, values: Any) -> Mask:
        return np.ones(len(values), np.bool_)


PRESENT: Final = Present()


def regex_fault(regex: str) -> str:
    """Why a regular expression cannot be used; '' where it can."""
    try:
        pc.match_substring_regex(pa.array([""]), regex)
    except pa.ArrowInvalid as error:
        return str(error).removeprefix("Invalid regular expression: ").strip()
    return ""
