"""The thread that sends what waits for one endpoint, for as long as it takes.

In: batches of a `Spool`. Out: requests to the endpoint, one at a time, and counters. A request is sent until it is
taken, or refused for good; an endpoint that is away, slow or full is asked again with exponential backoff and jitter,
or when it says (RetryInfo, Retry-After), without end. What is refused for good is counted, logged and let go.

Requests are joined up to the endpoint's size (protobuf messages that stand one behind the other are one message), and
divided again where one is too large or the endpoint says that something in it is wrong: what is wrong goes, the others
stay.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.message import DecodeError

from tollspan.processor.counters import Counters
from tollspan.processor.errors import ConfigError, JournalError
from tollspan.processor.forward.client import LONGEST_WAIT_S, REQUESTS, Answer, Client, Outcome, connect
from tollspan.processor.forward.settings import Endpoint, Signal
from tollspan.processor.forward.spool import Spool, Waiting

log = logging.getLogger(__name__)

FIRST_DELAY_S: Final = 0.5
LONGEST_DELAY_S: Final = 30.0
"""Backoff doubles from the first to the longest; each wait is a random part of it, at least half."""

LINGER_S: Final = 0.2
"""How long the first of several small requests waits for others."""
TRIALS: Final[dict[Outcome, int]] = {Outcome.REFUSED: 40, Outcome.TOO_LARGE: 4000}
"""Refusals that dividing one request may take: an endpoint that refuses whatever comes is not asked for each span."""
RECONNECT_AFTER: Final = 3
"""Failures in a row after which the connection is made anew: certificates may have been renewed."""


_LEVELS: Final[dict[Signal, tuple[str, ...]]] = {
    "traces": ("resource_spans", "scope_spans", "spans"),
    "logs": ("resource_logs", "scope_logs", "log_records"),
    "metrics": ("resource_metrics", "scope_metrics", "metrics"),
}
"""Lists that a request can be divided at, from outside to inside."""


@dataclass(frozen=True, slots=True)
class State:
    """How things stand with an endpoint.

    Attributes:
        name: the endpoint's.
        waiting_bytes: what waits on disk; ``max_bytes``: the cap.
        failing_s: seconds since it last took something, while it takes nothing; 0 otherwise.
        trouble: what it says, '' where all is well.
    """

    name: str
    waiting_bytes: int
    max_bytes: int
    failing_s: float
    trouble: str


class _Stopped(Exception):
    """The time to send is over; what is not released stays."""


class Sender:
    """Sends what a spool holds; `start` before, `stop` once after.

    Args:
        endpoint: where to.
        spool: what; closed by `stop`.
        counters: counts ``forward.*``, see `tollspan.processor.forward`.
        client: makes the connection.
    """

    def __init__(
        self, endpoint: Endpoint, spool: Spool, counters: Counters, client: Callable[[Endpoint], Client] = connect
    ) -> None:
        self.endpoint, self.spool = endpoint, spool
        self._counters, self._connect = counters, client
        self._client = client(endpoint)
        self._most = endpoint.request_bytes  # what is joined at the most; less once the endpoint found it too much
        self._stopping = threading.Event()
        self._deadline = float("inf")
        self._given_up = False
        self._failing_since: float | None = None
        self._trouble = ""
        self._told = ""
        self._refusals_told = 0.0
        self._thread = threading.Thread(target=self._work, name=f"tollspan-forward-{endpoint.name}", daemon=True)

    def start(self) -> None:
        """Begin to send, what an earlier process left first."""
        self._thread.start()

    def show(self, counters: Counters) -> None:
        """Gauges of this endpoint."""
        counters.gauge(f"forward.up.{self.endpoint.name}", lambda: int(self._failing_since is None))
        counters.gauge(f"forward.waiting_bytes.{self.endpoint.name}", lambda: self.spool.waiting)
        counters.gauge(f"forward.waiting_seconds.{self.endpoint.name}", lambda: self.spool.oldest_s)

    def stop(self, deadline: float) -> bool:
        """Send what is left until ``deadline`` (monotonic seconds), then close; the rest stays for the next start.

        Returns:
            True if nothing is left.
        """
        self._deadline = deadline
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(max(deadline - time.monotonic(), 0.0))
            if self._thread.is_alive():
                # A request that was on its way before has its own, longer time. Over gRPC this ends it; over HTTP its
                # thread is left behind, and what it sends goes out again after the next start.
                self._given_up = True
                self._client.close()
                self._thread.join(1.0)
        left = self.spool.waiting
        if left:
            log.warning(
                "%s of spans and other telemetry for %s wait in %s for the next start",
                _size(left), self.endpoint.name, self.spool.directory,
            )  # fmt: skip
        self._client.close()
        self.spool.close()
        return not left

    @property
    def state(self) -> State:
        """How things stand."""
        since = self._failing_since
        failing = 0.0 if since is None else max(time.monotonic() - since, 0.001)
        trouble = self._trouble if since is not None else ""
        return State(self.endpoint.name, self.spool.waiting, self.endpoint.max_bytes, failing, trouble)

    # -- the thread ------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        # Our own requests must not become spans in the user's process.
        from opentelemetry.context import Context, attach
        from opentelemetry.instrumentation.utils import suppress_instrumentation

        attach(Context())
        with suppress_instrumentation():
            while True:
                try:
                    if not self._step():
                        return
                except _Stopped:
                    return
                except Exception:
                    # A fault of ours: the batch stays, and comes again with the next start.
                    log.exception("sending to %s met a fault of its own", self.endpoint.name)
                    self._counters.add("forward.faults")
                    if self._stopping.wait(1.0):
                        return

    def _step(self) -> bool:
        """Send one batch; False when it is time to end and nothing is left."""
        draining = self._stopping.is_set()
        if time.monotonic() > self._deadline:
            raise _Stopped
        try:
            wait_s, linger_s = (0.0, 0.0) if draining else (0.5, LINGER_S)
            batch = self.spool.next(self._most, wait_s, linger_s)
        except JournalError as error:
            log.warning("what waits for %s cannot be read: %s", self.endpoint.name, error)
            self._counters.add("forward.faults")
            self._pause(1.0)
            return True
        if batch is None:
            return not draining
        for requests in self.spool.requests(batch):
            self._deliver(requests, dict(TRIALS))
        if self._given_up:
            raise _Stopped
        self.spool.release(batch)
        return True

    def _deliver(self, requests: Sequence[Waiting], trials: dict[Outcome, int]) -> None:
        """Have requests of one signal taken, or refused for good.

        Raises:
            _Stopped: there is no more time.
        """
        joined = b"".join(one.payload for one in requests)
        answer = self._persist(requests[0], joined)
        if answer.outcome is Outcome.TAKEN:
            self._taken(requests, joined, answer)
            return
        if answer.outcome is Outcome.TOO_LARGE:
            self._most = max(min(self._most, len(joined) // 2), 1 << 16)
        trials[answer.outcome] -= 1
        halves = _halves(requests) if trials[answer.outcome] > 0 else None
        if halves is None:
            self._refused(requests, answer)
            return
        for half in halves:
            self._deliver(half, trials)

    def _persist(self, first: Waiting, payload: bytes) -> Answer:
        """Try until there is an answer for good."""
        delay, failures = FIRST_DELAY_S, 0
        while True:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise _Stopped
            answer = self._client.send(first.signal, payload, min(self.endpoint.timeout_s, left))
            self._counters.add(f"forward.requests.{first.signal}")
            if answer.outcome not in (Outcome.LATER, Outcome.LOGIN):
                self._well()
                return answer
            failures += 1
            self._counters.add(f"forward.retries.{answer.code.lower()}")
            self._failing(answer)
            if failures % RECONNECT_AFTER == 0:
                self._reconnect()
            told = answer.after_s
            self._pause(min(told, LONGEST_WAIT_S) if told is not None else delay * random.uniform(0.5, 1.0))
            delay = min(delay * 2, LONGEST_DELAY_S)

    def _pause(self, seconds: float) -> None:
        """Wait, but never longer than there is time."""
        until = time.monotonic() + seconds
        while (now := time.monotonic()) < until:
            if now >= self._deadline:
                raise _Stopped
            if self._stopping.is_set():
                # Woken once to learn of the deadline; from here on time is short.
                time.sleep(max(min(until, self._deadline) - now, 0.0))
            else:
                self._stopping.wait(until - now)

    def _reconnect(self) -> None:
        try:
            fresh = self._connect(self.endpoint)
        except ConfigError as error:
            log.warning("%s", error)
            return
        old, self._client = self._client, fresh
        old.close()

    # -- what came of it -------------------------------------------------------------------------------------------

    def _taken(self, requests: Sequence[Waiting], joined: bytes, answer: Answer) -> None:
        signal, spans = requests[0].signal, sum(one.spans for one in requests)
        self._counters.add("forward.bytes", len(joined))
        if answer.rejected:
            self._counters.add(f"forward.rejected.{signal}", answer.rejected)
            self._tell("%s rejected %d of a request's %s: %s", answer.rejected, signal, answer.message)
        elif answer.message:
            self._tell("%s warns: %s", answer.message)
        if signal == "traces":
            self._counters.add("forward.spans", max(spans - answer.rejected, 0))

    def _refused(self, requests: Sequence[Waiting], answer: Answer) -> None:
        signal, spans = requests[0].signal, sum(one.spans for one in requests)
        code = answer.code.lower()
        self._counters.add(f"forward.refused_requests.{code}", len(requests))
        if signal == "traces":
            self._counters.add(f"forward.refused_spans.{code}", spans)
        what = f"{spans} spans" if signal == "traces" else f"{len(requests)} requests of {signal}"
        self._tell("%s refused %s for good (%s): %s", what, answer.code, answer.message or "it says no more")

    def _tell(self, message: str, *parts: object) -> None:
        """A warning, one a minute; the counters have the rest."""
        now = time.monotonic()
        if now - self._refusals_told >= 60.0 or not self._refusals_told:
            self._refusals_told = now
            log.warning(message + "; more of these are counted and not logged for a minute", self.endpoint.name, *parts)

    def _failing(self, answer: Answer) -> None:
        first = self._failing_since is None
        if first:
            self._failing_since = time.monotonic()
        self._trouble = f"{answer.code}: {answer.message}" if answer.message else answer.code
        if first or answer.code != self._told:
            self._told = answer.code
            what = "does not let us in" if answer.outcome is Outcome.LOGIN else "does not take spans now"
            log.warning(
                "%s (%s) %s (%s); they wait in %s, up to %s",
                self.endpoint.name, self.endpoint.endpoint, what, self._trouble, self.spool.directory,
                _size(self.endpoint.max_bytes),
            )  # fmt: skip

    def _well(self) -> None:
        since, self._failing_since = self._failing_since, None
        if since is not None:
            self._told = ""
            log.warning("%s answers again, after %.0f s", self.endpoint.name, time.monotonic() - since)


def _halves(requests: Sequence[Waiting]) -> list[Sequence[Waiting]] | None:
    """Two parts of what was refused together; None where it cannot be parted."""
    if len(requests) > 1:
        middle = len(requests) // 2
        return [requests[:middle], requests[middle:]]
    signal, payload, _ = requests[0]
    try:
        parts = [REQUESTS[signal].FromString(payload) for _ in range(2)]
    except DecodeError:
        return None
    if not _part(parts[0], parts[1], _LEVELS[signal]):
        return None
    return [[Waiting(signal, part.SerializeToString(), _spans(part) if signal == "traces" else 0)] for part in parts]


def _part(first: Any, second: Any, levels: Sequence[str]) -> bool:
    """Leave the first half of a message in one and the second in the other of two equal ones; False if it is one."""
    name, below = levels[0], levels[1:]
    one, other = getattr(first, name), getattr(second, name)
    if len(one) > 1:
        middle = len(one) // 2
        del one[middle:]
        del other[:middle]
        return True
    return bool(len(one) and below) and _part(one[0], other[0], below)


def _spans(request: Any) -> int:
    return sum(len(scope.spans) for resource in request.resource_spans for scope in resource.scope_spans)


def _size(count: int) -> str:
    return f"{count / (1 << 20):.1f} MiB" if count >= 1 << 20 else f"{count / (1 << 10):.1f} KiB"
