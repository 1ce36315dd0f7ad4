"""The promise that a payload will be durable."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TypeAlias

from tollspan.processor.errors import JournalError

log = logging.getLogger(__name__)

OnDone: TypeAlias = Callable[[JournalError | None], None]
"""Called once with None when the payload is durable, or with the reason why it is not stored."""


class Ticket:
    """What `Journal.append` returns: done when the payload is on disk, or refused."""

    __slots__ = ("_error", "_gate", "_on_done", "payload", "received_ns")

    def __init__(self, payload: bytes, received_ns: int, on_done: OnDone | None = None) -> None:
        self.payload, self.received_ns = payload, received_ns
        self._on_done = on_done
        self._error: JournalError | None = None
        self._gate = threading.Lock()
        self._gate.acquire()

    def wait(self, timeout: float | None = None) -> None:
        """Return when the payload is durable.

        Args:
            timeout: seconds to wait at the most; None for no limit.

        Raises:
            JournalError: it is not stored (`JournalFull`: for want of room); the same append may succeed later.
            TimeoutError: not decided yet.
        """
        if not self._gate.acquire(timeout=-1 if timeout is None else timeout):
            raise TimeoutError("the journal has not finished this append yet")
        self._gate.release()
        if self._error is not None:
            # One failed sync refuses many tickets; each waiter raises an exception of its own.
            raise type(self._error)(self._error.message, self._error.hint) from self._error

    def done(self) -> bool:
        """Whether the outcome is known."""
        return not self._gate.locked()

    def settle(self, error: JournalError | None) -> None:
        """Record the outcome and tell who waits; called once, by the journal."""
        self._error = error
        self._gate.release()
        if self._on_done is not None:
            try:
                self._on_done(error)
            except Exception:
                log.exception("a callback of the journal failed")
