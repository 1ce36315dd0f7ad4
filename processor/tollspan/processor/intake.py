"""The way into the journal, whatever a request came by: checked, made durable, and only then acknowledged.

In: OTLP trace requests in protobuf form. Out: payloads in the journal, and for each request None (it is durable) or a
`Refusal` that says whether to send it again. `receive` and `receive_http` put these into the words of their protocol;
both stand on one intake, so that a drain holds for both.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple, Protocol, TypeAlias

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from google.rpc.code_pb2 import INTERNAL, INVALID_ARGUMENT, UNAVAILABLE
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tollspan.processor.counters import Counters
from tollspan.processor.errors import JournalFull
from tollspan.processor.journal import Journal, JournalError

log = logging.getLogger(__name__)

Validate: TypeAlias = Callable[[bytes], str | None]
"""None when bytes can be acknowledged as an OTLP trace request, else the reason why not."""

RETRY_S: Final = 1.0
"""Delay asked of refused senders. Short, because the Python SDK tries again only within its deadline of 10 s."""
COMMIT_LIMIT_S: Final = 30.0
"""A disk that takes longer than this for a sync is treated as away."""


class Refusal(NamedTuple):
    """Why a request was not taken: counted under ``receive.refused.<reason>``.

    Attributes:
        reason: a word for counters.
        code: of ``google.rpc.Code``.
        message: for people.
        retry_s: seconds after which the same again may be taken; None: `RETRY_S` for UNAVAILABLE, never for others.
    """

    reason: str
    code: int
    message: str
    retry_s: float | None = None

    @property
    def delay_s(self) -> float | None:
        """Seconds after which it is worth trying again; None: it is not."""
        return RETRY_S if self.retry_s is None and self.code == UNAVAILABLE else self.retry_s

    def status(self) -> bytes:
        """A serialized ``google.rpc.Status``, with RetryInfo where it is worth trying again."""
        details = []
        if (delay_s := self.delay_s) is not None:
            detail = AnyMessage()
            delay = Duration(seconds=int(delay_s), nanos=int(delay_s % 1 * 1e9))
            detail.Pack(error_details_pb2.RetryInfo(retry_delay=delay))
            details.append(detail)
        return bytes(status_pb2.Status(code=self.code, message=self.message, details=details).SerializeToString())


SHUTTING_DOWN: Final = Refusal("draining", UNAVAILABLE, "The service is shutting down.")


class Identified(Protocol):
    """A sender that is logged in, see `tollspan.processor.senders`."""

    def over(self, size: int) -> Refusal | None:
        """The refusal for a request of so many bytes, where it is above the sender's limits."""

    def stamped(self, payload: bytes) -> bytes:
        """The request with the sender's tenant on it."""


class Intake:
    """Takes requests into the journal.

    Args:
        journal: where payloads are made durable.
        validate: check before the journal; a full parse by protobuf when None.
        counters: counts ``receive.*``: ``requests`` whose body arrived, ``accepted`` and ``bytes`` made durable,
            ``empty``, and ``refused.<reason>``.
    """

    def __init__(self, journal: Journal, *, validate: Validate | None = None, counters: Counters | None = None) -> None:
        self.journal = journal
        self.counters = counters or Counters()
        self._validate = validate or parses
        self._state = threading.Condition()
        self._draining = False
        self._in_flight = 0

    @property
    def draining(self) -> bool:
        """No new requests are taken any more."""
        return self._draining

    def take(
        self, payload: bytes, remaining_s: float | None = None, sender: Identified | None = None
    ) -> Refusal | None:
        """Make ``payload`` durable; None when it is.

        Args:
            remaining_s: for how long the sender still waits; None where it does not say.
            sender: who sends it, where senders log in: its limits hold, and its tenant is the payload's.
        """
        with self._flight() as open_for_requests:
            refusal = self._take(payload, remaining_s, sender) if open_for_requests else SHUTTING_DOWN
        if refusal is not None:
            self.refuse(refusal)
        return refusal

    def refuse(self, refusal: Refusal) -> None:
        """Count a request that was refused."""
        self.counters.add(f"receive.refused.{refusal.reason}")

    def drain(self, grace_s: float) -> bool:
        """Take no new requests, and let those in flight finish.

        Args:
            grace_s: seconds that they get.

        Returns:
            True if none is in flight any more.
        """
        with self._state:
            self._draining = True
            return self._state.wait_for(lambda: self._in_flight == 0, timeout=grace_s)

    def _take(self, payload: bytes, remaining_s: float | None, sender: Identified | None) -> Refusal | None:
        self.counters.add("receive.requests")
        if not payload:
            self.counters.add("receive.empty")
            return None
        try:
            reason = self._validate(payload)
            if reason is not None:
                log.debug("refused a request of %d bytes: %s", len(payload), reason)
                return Refusal("malformed", INVALID_ARGUMENT, reason)
            if sender is not None:
                over = sender.over(len(payload))
                if over is not None:
                    return over
                payload = sender.stamped(payload)
            wait_s = COMMIT_LIMIT_S if remaining_s is None else min(remaining_s, COMMIT_LIMIT_S)
            self.journal.append(payload).wait(wait_s)
        except JournalError as error:
            reason = "journal_full" if isinstance(error, JournalFull) else "journal_error"
            return Refusal(reason, UNAVAILABLE, error.message)
        except TimeoutError:
            # It may become durable yet: the sender sends again, and the rows land on themselves.
            return Refusal("slow_disk", UNAVAILABLE, "The disk did not finish in time.")
        except Exception:
            log.exception("a request of %d bytes met a fault of ours; it is not acknowledged", len(payload))
            return Refusal("fault", INTERNAL, "Internal error; the request was not stored.")
        self.counters.add_all({"receive.accepted": 1, "receive.bytes": len(payload)})
        return None

    @contextmanager
    def _flight(self) -> Iterator[bool]:
        """Count a request as in flight; yields False, and counts nothing, when no new ones are taken."""
        with self._state:
            taken = not self._draining
            self._in_flight += taken
        try:
            yield taken
        finally:
            with self._state:
                self._in_flight -= taken
                if self._draining and not self._in_flight:
                    self._state.notify_all()


def parses(payload: bytes) -> str | None:
    """The check of an intake that is given none: protobuf's own parser."""
    try:
        ExportTraceServiceRequest.FromString(payload)
    except DecodeError as error:
        return f"not an OTLP ExportTraceServiceRequest: {error}"
    return None
