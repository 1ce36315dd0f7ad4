"""The policy without a file of rules: traces that the program marked, errors always, and a share of the rest.

Also what of a span every policy asks: the marks that a program sets (`keep_trace()`), and whether it is slim.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tollspan.pricing.attributes import SAMPLING_KEEP, SLIM
from tollspan.processor.decode.anyvalue import BOOL
from tollspan.processor.identity import U64, Mask
from tollspan.processor.sample.thresholds import ALWAYS, NEVER, threshold
from tollspan.processor.sample.types import FULL, Arrived, Due, Signs, Verdicts

if TYPE_CHECKING:
    from tollspan.processor.decode import Attributes

KEEP, DROP, ERROR = 1, 2, 4
"""Marks of a span."""

_NAMES: Final = ("", "keep", "drop", "error", "probability")


def flagged(attributes: Attributes, key: str) -> tuple[Mask, Mask] | None:
    """Owners of a boolean attribute, (true, false), each of shape (n,); None where nobody has it."""
    code = pc.index(attributes.keys, pa.scalar(key, attributes.keys.type)).as_py()
    if code < 0:
        return None
    (rows,) = attributes.by_key(np.array([code]))
    rows = rows[attributes.kinds[rows] == BOOL]
    values = np.asarray(attributes.booleans(rows), np.bool_)
    owners = attributes.owners_of(rows)
    found = np.zeros((2, len(attributes.offsets) - 1), np.bool_)
    found[0, owners[values]] = found[1, owners[~values]] = True
    return found[0], found[1]


def slim(attributes: Attributes) -> Mask | None:
    """Spans that have no body to keep, shape (n,); None where there are none."""
    found = flagged(attributes, SLIM)
    return found[0] if found is not None and found[0].any() else None


def failed(spans: Any) -> Mask:
    """Spans whose status is error, shape (n,).

    Args:
        spans: ``Decoded.spans``.
    """
    found: Mask = np.asarray(spans["status_code"]) == 2
    return found


class Plain:
    """Keeps marked traces and errors with certainty, and of the rest a share.

    Args:
        keep: the share, 0 to 1.
    """

    names = _NAMES
    reasons = _NAMES
    certain: Mask = np.array([False, True, False, True, False])
    steered: Mask = np.array([False, False, False, False, True])

    def __init__(self, keep: float) -> None:
        if not 0.0 <= keep <= 1.0:
            raise ValueError(f"keep must be between 0 and 1, not {keep}")
        self.threshold = threshold(keep)

    def look(self, batch: Arrived) -> Signs:
        """One byte a span."""
        marks = np.where(failed(batch.decoded.spans), ERROR, 0).astype(np.uint8)
        asked = flagged(batch.decoded.attributes, SAMPLING_KEEP)
        if asked is not None:
            marks |= np.where(asked[0], KEEP, np.where(asked[1], DROP, 0)).astype(np.uint8)
        return Signs({"marks": marks}, len(marks))

    def decide(self, due: Due) -> Verdicts:
        marks = _together(due)
        share = np.uint64(self.threshold)
        # The first that holds: asked for, asked against, an error; the last number is that of the share.
        matched = np.select([marks & KEEP != 0, marks & DROP != 0, marks & ERROR != 0], [1, 2, 3], 4).astype(np.int16)
        limits: U64 = np.array([0, ALWAYS, NEVER, ALWAYS, share], np.uint64)[matched]
        rule = np.where(due.randomness >= limits, matched, 0).astype(np.int16)
        content: npt.NDArray[np.int8] = np.full(due.traces, FULL, np.int8)
        return Verdicts(rule, matched, limits, limits, content)

    def fold(self, due: Due) -> Signs:
        return Signs({"marks": _together(due)}, due.traces)


def _together(due: Due) -> npt.NDArray[np.uint8]:
    """All marks of each trace."""
    marks = np.zeros(due.traces, np.uint8)
    some = np.flatnonzero(due.signs["marks"])
    if len(some):
        np.bitwise_or.at(marks, due.group[some], due.signs["marks"][some])
    return marks
