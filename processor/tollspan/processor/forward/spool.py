"""What waits for one endpoint: a journal of its own, so that nothing in front of it ever waits for the endpoint.

In: OTLP requests with their signal. Out: batches of requests of one signal, in the order in which they came, to be
released when the endpoint has taken them. Durable as the journal is: after fdatasync, over kill -9 and power cuts.

A record of the journal is one request behind a head of six bytes: format (1), the signal's place in
`endpoint.SIGNALS`, and spans in it (u32, little endian; 0 for logs and metrics, which nobody counts).
"""

from __future__ import annotations

import itertools
import logging
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from tollspan.processor.counters import Counters
from tollspan.processor.forward.settings import SIGNALS, Signal
from tollspan.processor.journal import Batch, Journal, Ticket

log = logging.getLogger(__name__)

_HEAD: Final = struct.Struct("<BBI")
_FORMAT: Final = 1

HEADROOM: Final = 0.1
"""Share of the cap that logs and metrics leave to spans: they can be refused, kept spans cannot."""


class Waiting(NamedTuple):
    """A request that waits.

    Attributes:
        signal: which.
        payload: in protobuf form.
        spans: how many, 0 for the other signals.
    """

    signal: Signal
    payload: bytes
    spans: int


class Spool:
    """Requests on disk, until they are released.

    Args:
        directory: of this endpoint alone; made if it is not there.
        max_bytes: cap on disk.

    Raises:
        ConfigError: the directory cannot be used, or is another process's.
    """

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self.directory, self.max_bytes = directory, max_bytes
        directory.parent.mkdir(parents=True, exist_ok=True)
        self._in_hand = 0
        # Counters of its own: the processor's ``journal.`` counts what was received.
        self._journal = Journal(
            directory,
            segment_bytes=min(64 << 20, max_bytes // 4),
            max_bytes=max_bytes,
            memory_bytes=16 << 20,
            counters=Counters(),
        )

    def append(self, request: Waiting) -> Ticket:
        """Hand a request to the disk; failures are the ticket's."""
        head = _HEAD.pack(_FORMAT, SIGNALS.index(request.signal), request.spans)
        return self._journal.append(head + request.payload)

    def has_room(self, size: int) -> bool:
        """Whether logs or metrics of so many bytes may come in; see `HEADROOM`."""
        # Files that are sent in part count: room comes back by whole ones.
        return self._journal.state().disk_bytes + size < self.max_bytes * (1 - HEADROOM)

    @property
    def waiting(self) -> int:
        """Bytes that wait to be taken."""
        return self._journal.state().waiting_bytes + self._in_hand

    @property
    def oldest_s(self) -> float:
        """Age in seconds of the oldest request that waits; 0 where that is not known."""
        oldest = self._journal.state().oldest_ns
        return 0.0 if oldest is None else max(0.0, round((time.time_ns() - oldest) / 1e9, 3))

    def next(self, max_bytes: int, timeout_s: float, linger_s: float) -> Batch | None:
        """What comes next, about ``max_bytes`` of it; None where nothing comes in time.

        Raises:
            JournalError: the disk does not let us read; the same comes again with the next call.
        """
        batch = self._journal.next_batch(max_bytes, timeout_s, linger=linger_s)
        if batch is not None:
            self._in_hand += batch.position.end - batch.position.start
        return batch

    @staticmethod
    def requests(batch: Batch) -> Iterator[list[Waiting]]:
        """The requests of a batch, those of one signal that follow each other together."""
        read = [one for record in batch.payloads if (one := _read(record)) is not None]
        for _, same in itertools.groupby(read, key=lambda one: one.signal):
            yield list(same)

    def release(self, batch: Batch) -> None:
        """Forget a batch."""
        self._journal.release(batch)
        self._in_hand -= batch.position.end - batch.position.start

    def close(self) -> None:
        """Let go of the directory; what waits stays."""
        self._journal.close()


def _read(record: bytes) -> Waiting | None:
    version, signal, spans = _HEAD.unpack_from(record) if len(record) >= _HEAD.size else (0, 0, 0)
    if version != _FORMAT or signal >= len(SIGNALS):
        # The journal's CRC held, so another version of this program wrote it.
        log.error("a request that waits to be sent on has a format that is not known (%d)", version)
        return None
    return Waiting(SIGNALS[signal], record[_HEAD.size :], spans)
