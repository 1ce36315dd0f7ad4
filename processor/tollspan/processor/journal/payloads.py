"""Payloads of a batch on disk: parts of them are read again, long after the batch was handed out.

In: where a batch's payloads stand in their segment. Out: any stretches of them, for spans that wait for a sampling
decision: the journal holds their batch until they are decided, so memory need not.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tollspan.processor.journal.segment import RECORD_BYTES, Record

Rows = npt.NDArray[np.int64]

_GAP: Final = 8 << 10
"""Bytes between two stretches that are read along with them: it costs as much as to ask a second time."""
_SLACK: Final = 8
"""Bytes behind the last stretch, for readers that take eight at once."""


class OnDisk:
    """The payloads of one batch that is not released, one behind the other.

    Args:
        path: of the segment that they stand in.
        records: theirs.
    """

    __slots__ = ("_begins", "_firsts", "_path")

    stays_in_memory: Final = True
    """For `tollspan.processor.sample.spill`: there is nothing in it that could go to disk."""

    nbytes: Final = 0
    """In memory."""

    def __init__(self, path: Path, records: Sequence[Record]) -> None:
        self._path = path
        self._begins = np.array([record.start + RECORD_BYTES for record in records], np.int64)
        ends = np.cumsum([len(record.payload) for record in records])
        self._firsts = np.concatenate((np.zeros(1, np.int64), ends[:-1]))

    def read(self, starts: Rows, sizes: Rows) -> tuple[npt.NDArray[np.uint8], Rows]:
        """Some stretches.

        Args:
            starts, sizes: of each, shape (n,); counted over all payloads, and each within one of them.

        Returns:
            Bytes, read-only, and where in them each stretch begins, shape (n,). There are eight more behind the last.

        Raises:
            OSError: they are not to be had.
        """
        of = np.searchsorted(self._firsts, starts, side="right") - 1
        at = starts - self._firsts[of] + self._begins[of]
        order = np.argsort(at, kind="stable")
        begins = at[order]
        ends = np.maximum.accumulate(begins + sizes[order])
        # Neighbours are read at once.
        new = np.ones(len(at), np.bool_)
        np.greater(begins[1:], ends[:-1] + _GAP, out=new[1:])
        heads = np.flatnonzero(new)
        reads, ends = begins[heads], ends[np.append(heads[1:] - 1, len(at) - 1)] if len(at) else ends
        places = np.concatenate((np.zeros(1, np.int64), np.cumsum(ends - reads)))
        out = np.empty(int(places[-1]) + _SLACK, np.uint8)
        out[-_SLACK:] = 0
        view = memoryview(out.data)
        # Not kept open: spans of very many segments may wait.
        fd = os.open(self._path, os.O_RDONLY)
        try:
            for offset, start, end in zip(reads.tolist(), places[:-1].tolist(), places[1:].tolist(), strict=True):
                _fill(fd, offset, view[start:end])
        finally:
            os.close(fd)
        found = np.empty(len(at), np.int64)
        found[order] = begins + (places[:-1] - reads)[np.cumsum(new) - 1]
        out.flags.writeable = False
        return out, found


def _fill(fd: int, offset: int, into: Any) -> None:
    """Read as many bytes as there is room for."""
    while into:
        got = os.preadv(fd, [into], offset)
        if not got:
            raise OSError(errno.EIO, "the file is shorter than it was")
        offset, into = offset + got, into[got:]
