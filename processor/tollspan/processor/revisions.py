"""Revisions: which of several ledger rows of one span counts.

The ledger keeps, for each span, the row with the highest ``revision``, an unsigned 64-bit number made of three parts:

    bit 62          rolled up: what the model charges is billed on the span's descendants
    bits 46 … 61    number of the repricing that wrote the row; 0: priced on arrival
    bits 0 … 45     2⁴⁶ − 1 − milliseconds from 2020-01-01 (UTC) to the batch's processing: when the span arrived

So a roll-up counts over a billed row, whenever it is found; a later repricing over an earlier one and over every price
of an arrival; and among rows of equal rank the first: a span that is sent again, also after a restart with another
price book, never replaces its row. A repricing and a late roll-up keep the instant of the arrival. (It is the
clock's: one that was set back in between makes the later arrival the first.)

Rows from before this scheme bear 0 (billed), 1 or 2 (rolled up), which is below everything that it gives.
"""

from __future__ import annotations

import threading
import time
from typing import Final

import numpy as np

from tollspan.processor.identity import U64, Mask

ARRIVAL_BITS: Final = 46
MAX_REPRICING: Final = (1 << 16) - 1
"""The highest number of a repricing."""

_ROLLED_UP: Final = 1 << 62
_LATEST: Final = (1 << ARRIVAL_BITS) - 1
_EPOCH_MS: Final = 1_577_836_800_000
"""2020-01-01T00:00:00Z in Unix milliseconds."""

_clock = threading.Lock()
_last = 0


def arrived(at_ms: int | None = None) -> int:
    """Revision of rows that are priced on arrival and billed.

    Args:
        at_ms: when their batch is processed, Unix milliseconds; None for now. Now never repeats and never goes back
            within a process, so two batches never have the same revision.
    """
    ms = _now_ms() if at_ms is None else at_ms
    return _LATEST - min(max(ms - _EPOCH_MS, 0), _LATEST // 2)


def rolled_up(revision: int) -> int:
    """The revision of the same row as a roll-up."""
    return revision | _ROLLED_UP


def is_rolled_up(revision: U64) -> Mask:
    """Which rows are roll-ups."""
    found: Mask = (revision & np.uint64(_ROLLED_UP) > 0) | np.isin(revision, (1, 2))
    return found


def repriced(revision: U64, number: int) -> U64:
    """Revisions of the same rows as a repricing writes them again.

    Raises:
        ValueError: ``number`` is not from 1 to `MAX_REPRICING`.
    """
    if not 1 <= number <= MAX_REPRICING:
        raise ValueError(f"repricing number {number} is not from 1 to {MAX_REPRICING}")
    changed: U64 = (revision & np.uint64(_ROLLED_UP | _LATEST)) | np.uint64(number << ARRIVAL_BITS)
    return changed


def _now_ms() -> int:
    global _last
    with _clock:
        _last = max(time.time_ns() // 1_000_000, _last + 1)
        return _last
