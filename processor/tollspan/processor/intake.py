"""The way into the journal, whatever a request came by: checked, made durable, and only then acknowledged.

In: OTLP trace requests in protobuf form. Out: payloads in the journal, and for each request an answer: None (all of it
is durable), a `Partial` (all but some spans that nobody could take) or a `Refusal` that says whether to send it again.
`receive` and `receive_http` put these into the words of their protocol; both stand on one intake, so that a drain, the
bound on bodies in memory and the state that health checks are told hold for both.

Logs and metrics are not ours: they are refused for good, or handed to whoever passes them on (`Signals`).
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple, Protocol, TypeAlias

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from google.rpc.code_pb2 import INTERNAL, INVALID_ARGUMENT, UNAVAILABLE, UNIMPLEMENTED

from tollspan.processor.counters import Counters
from tollspan.processor.decode import Checked, check
from tollspan.processor.errors import JournalError, JournalFull
from tollspan.processor.journal import Journal, Ticket
from tollspan.processor.memory import LARGE_BYTES, give_back
from tollspan.processor.rejects import BAD_JSON, MAX_SPANS, describe, split

log = logging.getLogger(__name__)

RETRY_S: Final = 1.0
"""Delay asked of refused senders. Short, because the Python SDK tries again only within its deadline of 10 s."""
COMMIT_LIMIT_S: Final = 30.0
"""A disk that takes longer than this for a sync is treated as away."""
PROBE_S: Final = 1.0
"""Seconds between two looks at a journal that takes nothing."""
SOON_BYTES: Final = 1 << 20
"""Requests up to this size are looked at where they arrive (0.2 ms for a MiB), larger ones by a thread of their own."""
TRACES: Final = "traces"
OTHER_SIGNALS: Final = ("logs", "metrics")


@dataclass(frozen=True, slots=True)
class ReceiveSettings:
    """What both OTLP ports share.

    Attributes:
        max_held_bytes: bodies of requests in memory at the most, all connections together, as sent and decompressed;
            more is asked to come again. At least twice the largest request.
    """

    max_held_bytes: int = 512 << 20


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


class Partial(NamedTuple):
    """A request that was taken without some of its spans; sending these again will not help.

    Attributes:
        rejected: how many.
        message: which and why, for people.
    """

    rejected: int
    message: str


Answer: TypeAlias = Refusal | Partial | None

Check: TypeAlias = Callable[[bytes], Checked]

Signals: TypeAlias = Mapping[str, Callable[[bytes], Refusal | None]]
"""Who takes ``logs`` and ``metrics``: given a raw ``Export…ServiceRequest`` in protobuf form, on a thread that may
wait. None once it is durable, else the refusal."""

Keep: TypeAlias = Callable[[bytes, str], object]
"""Puts rejected spans where a person can read them: a request of them alone, and why."""

Answered: TypeAlias = Callable[[Answer], object]

SHUTTING_DOWN: Final = Refusal("draining", UNAVAILABLE, "The service is shutting down.")
TOO_MUCH: Final = Refusal("memory", UNAVAILABLE, "Too much comes in at once; send it again.")


SLOW_DISK: Final = Refusal("slow_disk", UNAVAILABLE, "The disk did not finish in time.")
"""It may become durable yet: the sender sends again, and the rows land on themselves."""
FAULT: Final = Refusal("fault", INTERNAL, "Internal error; the request was not stored.")
_LATER: Final = Refusal("later", INTERNAL, "")
"""Stands where there is no answer yet; nobody is told."""


class Identified(Protocol):
    """A sender that is logged in, see `tollspan.processor.senders`."""

    def over(self, size: int) -> Refusal | None:
        """The refusal for a request of so many bytes, where it is above the sender's limits."""

    def stamped(self, payload: bytes) -> bytes:
        """The request with the sender's tenant on it."""


class Bodies:
    """A bound on the bytes of requests that are in memory and not yet in the journal, of all connections together."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._lock, self._held = threading.Lock(), 0

    @property
    def held(self) -> int:
        """Bytes held now."""
        return self._held

    def hold(self, size: int) -> bool:
        """Count ``size`` bytes as held until `free`, if there is room for them."""
        with self._lock:
            if self._held + size > self.most:
                return False
            self._held += size
            return True

    def free(self, size: int) -> None:
        """Undo `hold`."""
        with self._lock:
            self._held -= size
        if size >= LARGE_BYTES:
            give_back()


class Intake:
    """Takes requests into the journal.

    Args:
        journal: where payloads are made durable.
        check: what is asked of a payload before the journal; `tollspan.processor.decode.check` when None.
        counters: counts ``receive.*``: ``requests`` whose body arrived, ``accepted``, ``spans`` and ``bytes`` made
            durable, ``empty``, ``refused.<reason>`` (requests), ``partial`` requests and ``rejected.<reason>`` (spans).
        signals: takes logs and metrics; what is missing there is refused.
        keep: gets rejected spans; None: they are only counted and logged.
        max_held_bytes: see `ReceiveSettings`.

    Attributes:
        bodies: receivers hold the bytes of requests here while they have them.
        trouble: why nothing can be taken: the service drains, or the disk takes nothing; '' when all is well.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        check: Check | None = None,
        counters: Counters | None = None,
        signals: Signals | None = None,
        keep: Keep | None = None,
        max_held_bytes: int = 512 << 20,
    ) -> None:
        self.journal = journal
        self.counters = counters or Counters()
        self.bodies = Bodies(max_held_bytes)
        self.trouble = ""
        self._check = check or _check
        self._signals, self._keep = dict(signals or {}), keep
        self._told: set[str] = set()
        self._state = threading.Condition()
        self._draining = False
        # Single operations on a dict are atomic: who takes a request out is the one that answers it.
        self._in_flight: dict[_Flight, float] = {}
        self._listeners: list[Callable[[str], object]] = []
        self._saying = threading.Lock()
        self._probing = False
        self._probe_size = 0
        self._timed = self.counters.histogram("receive.seconds")

    @property
    def draining(self) -> bool:
        """No new requests are taken any more."""
        return self._draining

    def take(
        self,
        payload: bytes,
        remaining_s: float | None = None,
        sender: Identified | None = None,
        left_out: int = 0,
        why: str = "",
    ) -> Answer:
        """Make ``payload`` durable.

        Args:
            remaining_s: for how long the sender still waits; None where it does not say.
            sender: who sends it, where senders log in: its limits hold, and its tenant is the payload's.
            left_out: spans that are not in the payload, for they are no OTLP/JSON.
            why: what is wrong with the first of these.
        """
        return self._waited(len(payload), lambda: self._take(payload, remaining_s, sender, left_out, why))

    def take_soon(
        self, payload: bytes, answered: Answered, remaining_s: float | None = None, sender: Identified | None = None
    ) -> Callable[[], object] | None:
        """As `take`, but without waiting, for a payload that is no larger than `SOON_BYTES`.

        Args:
            answered: called once with the answer: by this thread, the journal's, or the one that calls `give_up_late`.

        Returns:
            What is left to do by a thread that may wait, where spans have to be parted; ``answered`` is called there.
        """
        flight = self._begin(len(payload), answered)
        if flight is None:
            self.refuse(SHUTTING_DOWN)
            answered(SHUTTING_DOWN)
            return None
        left: list[Callable[[], object]] = []

        def work() -> Answer:
            found = self._look_at(payload, sender)
            if not isinstance(found, Checked):
                return found
            if found.rejected:
                rest = partial(self._guarded, flight, lambda: self._take_rest(payload, remaining_s, sender, found))
                left.append(lambda: flight.end(rest()))
            else:
                self._store_soon(flight, payload, remaining_s, sender, found.spans)
            return _LATER

        answer = self._guarded(flight, work)
        if answer is not _LATER:
            flight.end(answer)
        return left[0] if left else None

    def give_up_late(self) -> None:
        """Answer those of `take_soon` for whom the disk took too long; called every now and then."""
        now = time.monotonic()
        for flight, due in list(self._in_flight.items()):
            if due < now and flight.end(SLOW_DISK):
                self._doubt(flight.size)

    def take_other(self, signal: str, payload: bytes, sender: Identified | None = None) -> Refusal | None:
        """Hand on a request of ``logs`` or ``metrics``; None when it is durable with whoever takes them."""
        refusal = self.refusal_of(signal)
        if refusal is not None:
            self.refuse(refusal)
            return refusal
        answer = self._waited(len(payload), lambda: self._hand_on(signal, payload, sender))
        return answer if isinstance(answer, Refusal) else None

    def refusal_of(self, signal: str) -> Refusal | None:
        """The refusal that all requests of a signal get, where nobody takes it; said once in the log."""
        if signal == TRACES or signal in self._signals:
            return None
        if signal not in self._told:
            self._told.add(signal)
            log.warning(
                "%s are sent here and refused: Tollspan takes traces. Set OTEL_%s_EXPORTER=none at the sender, send"
                " them elsewhere, or have Tollspan forward them.",
                signal,
                signal.upper(),
            )
        said = (
            f"Tollspan takes traces and no {signal}: set OTEL_{signal.upper()}_EXPORTER=none, or send them elsewhere."
        )
        return Refusal(signal, UNIMPLEMENTED, said)

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
        self._say("draining")
        with self._state:
            return self._state.wait_for(lambda: not self._in_flight, timeout=grace_s)

    def tell(self, listener: Callable[[str], object]) -> None:
        """Call ``listener`` with `trouble` now and whenever it changes, from any thread."""
        with self._saying:
            self._listeners.append(listener)
            listener(self.trouble)

    def _begin(self, size: int, answered: Answered | None = None) -> _Flight | None:
        """Count a request as in flight; None, and nothing is counted, when no new ones are taken."""
        flight = _Flight(self, size, answered)
        # In this order, so that a drain sees either this one, or this one the drain.
        self._in_flight[flight] = math.inf
        if self._draining:
            self._in_flight.pop(flight)
            self._left()
            return None
        self.counters.add("receive.requests")
        return flight

    def _left(self) -> None:
        if self._draining:
            with self._state:
                self._state.notify_all()

    def _waited(self, size: int, work: Callable[[], Answer]) -> Answer:
        """Do it as a request in flight, on a thread that may wait."""
        flight = self._begin(size)
        if flight is None:
            self.refuse(SHUTTING_DOWN)
            return SHUTTING_DOWN
        answer = self._guarded(flight, work)
        flight.end(answer)
        return answer

    def _guarded(self, flight: _Flight, work: Callable[[], Answer]) -> Answer:
        """Do it; whatever goes wrong is a refusal."""
        try:
            return work()
        except JournalError as error:
            return self._not_stored(flight, error)
        except TimeoutError:
            self._doubt(flight.size)
            return SLOW_DISK
        except MemoryError:
            return TOO_MUCH
        except Exception:
            log.exception("a request of %d bytes met a fault of ours; it is not acknowledged", flight.size)
            return FAULT

    def _not_stored(self, flight: _Flight, error: JournalError) -> Refusal:
        self._doubt(flight.size)
        return Refusal(
            "journal_full" if isinstance(error, JournalFull) else "journal_error", UNAVAILABLE, error.message
        )

    def _take(
        self, payload: bytes, remaining_s: float | None, sender: Identified | None, left_out: int, why: str
    ) -> Answer:
        found = self._look_at(payload, sender, left_out)
        if not isinstance(found, Checked):
            return found
        if found.rejected or left_out:
            return self._take_rest(payload, remaining_s, sender, found, left_out, why)
        self._store(payload, remaining_s, sender, found.spans)
        return None

    def _look_at(self, payload: bytes, sender: Identified | None, left_out: int = 0) -> Checked | Refusal | None:
        """What there is to be stored, or the answer."""
        if not payload and not left_out:
            self.counters.add("receive.empty")
            return None
        over = sender.over(len(payload)) if sender is not None else None
        if over is not None:
            return over
        found = self._check(payload)
        if found.error is not None:
            log.debug("refused a request of %d bytes: %s", len(payload), found.error)
            return Refusal("malformed", INVALID_ARGUMENT, found.error)
        return found

    def _take_rest(
        self,
        payload: bytes,
        remaining_s: float | None,
        sender: Identified | None,
        found: Checked,
        left_out: int = 0,
        why: str = "",
    ) -> Answer:
        """Store what is good of a request, and put the rest aside."""
        rejected = {**found.rejected, BAD_JSON: left_out} if left_out else found.rejected
        said = describe(rejected) + (f"; the first: {why}" if why else "")
        bad = b""
        if found.rejected and found.spans <= MAX_SPANS:
            payload, bad = split(payload)
        good = found.spans - sum(found.rejected.values())
        if good:
            self._store(payload, remaining_s, sender, good)
        # Counted only now: a request that the journal refuses comes again, with the same spans.
        self.counters.add_all({f"receive.rejected.{reason}": count for reason, count in rejected.items()})
        if bad and self._keep is not None:
            try:
                self._keep(sender.stamped(bad) if sender is not None else bad, said)
            except Exception:
                log.exception("rejected spans could not be kept")
        log.debug("rejected spans of a request: %s", said)
        if not good:
            return Refusal("no_good_span", INVALID_ARGUMENT, f"No span of this request can be taken: {said}.")
        self.counters.add("receive.partial")
        return Partial(sum(rejected.values()), f"Spans that cannot be taken: {said}.")

    def _store(self, payload: bytes, remaining_s: float | None, sender: Identified | None, spans: int) -> None:
        """Have the payload made durable.

        Raises:
            JournalError, TimeoutError: it is not.
        """
        if sender is not None:
            payload = sender.stamped(payload)
        self.journal.append(payload).wait(_patience_s(remaining_s))
        self.counters.add_all({"receive.accepted": 1, "receive.bytes": len(payload), "receive.spans": spans})

    def _store_soon(
        self, flight: _Flight, payload: bytes, remaining_s: float | None, sender: Identified | None, spans: int
    ) -> None:
        """Have the payload made durable, and end the flight when it is."""
        if sender is not None:
            payload = sender.stamped(payload)
        counts = {"receive.accepted": 1, "receive.bytes": len(payload), "receive.spans": spans}

        def done(error: JournalError | None) -> None:
            if error is None:
                flight.end(None, counts)
            else:
                flight.end(self._not_stored(flight, error))

        self._in_flight[flight] = time.monotonic() + _patience_s(remaining_s)
        self.journal.append(payload, done)

    def _hand_on(self, signal: str, payload: bytes, sender: Identified | None) -> Answer:
        over = sender.over(len(payload)) if sender is not None else None
        answer = over if over is not None else self._signals[signal](payload)
        if answer is None:
            self.counters.add(f"receive.{signal}")
        return answer

    # -- what health checks are told -----------------------------------------------------------------------------------

    def _doubt(self, size: int) -> None:
        """The journal refused: find out whether it still takes anything, and go on asking until it does.

        Senders cannot be relied on for that: a service that is not ready is sent nothing.
        """
        with self._state:
            self._probe_size = min(size, self._probe_size) if self._probing else size
            if self._probing or self._draining:
                return
            self._probing = True
        threading.Thread(target=self._probe, name="tollspan-probe", daemon=True).start()

    def _probe(self) -> None:
        ticket: Ticket | None = None
        while True:
            refused = self.journal.refusal(self._probe_size)
            if refused is None:
                # An empty request: it holds no span, and its record tries the disk as any other does.
                try:
                    ticket = ticket or self.journal.append(b"")
                    ticket.wait(PROBE_S)
                    ticket = None
                except TimeoutError:
                    refused = JournalFull("The disk does not finish in time.")
                except JournalError as error:
                    refused, ticket = error, None
                except Exception:
                    log.exception("the journal cannot be asked whether it takes anything")
                    refused, ticket = JournalFull("The journal does not answer."), None
            with self._state:
                if refused is None or self.journal.closed or self._draining:
                    self._probing = False
                    break
            self._say(refused.message)
            with self._state:
                self._state.wait_for(lambda: self._draining, PROBE_S)
        self._say("" if refused is None else refused.message)

    def _say(self, trouble: str) -> None:
        """Change `trouble`, and tell who listens."""
        with self._saying:
            before, self.trouble = self.trouble, "draining" if self._draining else trouble
            if self.trouble == before:
                return
            if self._draining:
                pass
            elif trouble:
                log.warning("nothing can be taken: %s Senders are asked to come again.", trouble)
            else:
                log.warning("requests are taken again")
            for listener in self._listeners:
                listener(self.trouble)


class _Flight:
    """A request that is neither answered nor forgotten: it is answered once, whoever comes first with an answer."""

    __slots__ = ("_answered", "_began", "_intake", "size")

    def __init__(self, intake: Intake, size: int, answered: Answered | None) -> None:
        self._intake, self.size, self._answered = intake, size, answered
        self._began = time.perf_counter()

    def end(self, answer: Answer, counts: Mapping[str, int] | None = None) -> bool:
        """Answer it, and count ``counts`` before; False, and nothing is done, where it has been answered."""
        intake = self._intake
        if intake._in_flight.pop(self, None) is None:
            return False
        if counts is not None:
            intake.counters.add_all(counts)
        intake._timed.observe(time.perf_counter() - self._began)
        if isinstance(answer, Refusal):
            intake.refuse(answer)
        intake._left()
        if self._answered is not None:
            self._answered(answer)
        return True


def _patience_s(remaining_s: float | None) -> float:
    """Seconds that a request waits for the disk."""
    return COMMIT_LIMIT_S if remaining_s is None else min(remaining_s, COMMIT_LIMIT_S)


def _check(payload: bytes) -> Checked:
    # Looked up at each call: the decoder may be replaced while the service runs.
    return check(payload)
