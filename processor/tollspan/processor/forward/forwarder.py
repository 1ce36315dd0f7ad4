"""All endpoints together: kept spans, and raw requests of other signals, go into every endpoint's spool.

In: kept spans; bytes of logs and metrics. Out: requests in spools, that `sender` empties.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import pyarrow as pa
from google.protobuf.message import DecodeError
from google.rpc.code_pb2 import INVALID_ARGUMENT, UNAVAILABLE

from tollspan.processor.addresses import same_address
from tollspan.processor.counters import Counters
from tollspan.processor.encode import Request, encode
from tollspan.processor.errors import ConfigError, JournalError, JournalFull
from tollspan.processor.forward.client import REQUESTS
from tollspan.processor.forward.costs import WRITTEN, Costs, attributes
from tollspan.processor.forward.sender import Sender, State
from tollspan.processor.forward.settings import SIGNALS, Endpoint, Forwarding, Signal, address
from tollspan.processor.forward.spool import Spool, Waiting
from tollspan.processor.identity import Rows
from tollspan.processor.intake import Refusal, Signals
from tollspan.processor.journal import Ticket
from tollspan.processor.summarize import Kept

log = logging.getLogger(__name__)

FOLDER: Final = "forward"
"""Of the journal's directory: a folder for each endpoint, by its name."""

DISK_S: Final = 30.0
"""A disk that takes longer than this for a sync is treated as full."""


class _Part(NamedTuple):
    """A request on its way to the disk, and its spans."""

    ticket: Ticket
    spans: int


class Spooled:
    """Kept spans on their way to the disk; `wait` before what they came from is released."""

    def __init__(self, parts: Sequence[_Part], dropped: Callable[[str, int, str], None]) -> None:
        self._parts, self._dropped = parts, dropped

    def wait(self) -> None:
        """Return when they are durable, or dropped and counted; raises nothing."""
        for ticket, spans in self._parts:
            try:
                ticket.wait(DISK_S)
            except JournalFull as error:
                self._dropped("full", spans, error.message)
            except (JournalError, TimeoutError) as error:
                self._dropped("disk", spans, str(error))


class Forwarder:
    """All endpoints; `start` before use, `stop` once after.

    Args:
        endpoints: at least one, with names of their own.
        directory: of the spools.
        counters: see above.
        drain_s: see `Forwarding`.

    Raises:
        ConfigError: an endpoint, a certificate or the directory cannot be used; nothing stays open.
    """

    def __init__(
        self, endpoints: Sequence[Endpoint], directory: Path, counters: Counters, drain_s: float = 5.0
    ) -> None:
        names = [endpoint.name for endpoint in endpoints]
        if len(set(names)) < len(names):
            raise ConfigError(
                f"Forwarding endpoints share a name ({', '.join(names)}).", "Give each a name: its folder is called so."
            )
        self.directory, self.drain_s = directory, drain_s
        self._counters = counters
        self._senders: list[Sender] = []
        self._lock = threading.Lock()
        self._dropped_at: float | None = None
        self._told_at = 0.0
        try:
            for endpoint in endpoints:
                if endpoint.endpoint is None:
                    raise ConfigError(f"The forwarding endpoint {endpoint.name} has no address.", "Set its endpoint.")
                spool = Spool(directory / endpoint.name, endpoint.max_bytes)
                try:
                    self._senders.append(Sender(endpoint, spool, counters))
                except BaseException:
                    spool.close()
                    raise
        except BaseException:
            for sender in self._senders:
                sender.stop(0.0)
            raise
        for left in _left_behind(directory, names):
            log.warning(
                "%s waits for an endpoint that is not configured any more; name one %s to send it, or remove it",
                left, left.name,
            )  # fmt: skip
        for name in ("forward.spans", "forward.dropped_spans.full"):
            counters.add(name, 0)
        for sender in self._senders:
            sender.show(counters)

    @classmethod
    def of(cls, first: Endpoint, more: Forwarding, directory: Path, counters: Counters) -> Forwarder | None:
        """The forwarder that the configuration asks for; None where it names no endpoint.

        Raises:
            ConfigError: as above.
        """
        endpoints = [*([first] if first.endpoint is not None else ()), *more.endpoints]
        return cls(endpoints, directory, counters, more.drain_s) if endpoints else None

    def start(self) -> None:
        """Begin to send."""
        for sender in self._senders:
            endpoint = sender.endpoint
            what = ", ".join("kept spans" if signal == "traces" else signal for signal in endpoint.signals)
            log.info("%s: %s are sent on to %s (%s)", endpoint.name, what, endpoint.endpoint, endpoint.protocol)
            sender.start()

    def stop(self) -> None:
        """Send what is left within `Forwarding.drain_s`, and let go of the spools."""
        deadline = time.monotonic() + self.drain_s
        stops = [threading.Thread(target=sender.stop, args=(deadline,), daemon=True) for sender in self._senders]
        for each in stops:
            each.start()
        for each in stops:
            each.join()

    # -- spans -----------------------------------------------------------------------------------------------------

    @staticmethod
    def costs(ledger: pa.Table, rows: Rows, spans: int) -> Costs:
        """What to hold of a batch's ledger until its spans are decided; see `Costs.of`."""
        return Costs.of(ledger, rows, spans)

    def keep(self, kept: Sequence[Kept]) -> Spooled:
        """Take the kept spans of a round; raises nothing: what cannot be sent on is counted and stays in the store.

        Args:
            kept: they were held with costs.
        """
        parts: list[_Part] = []
        takers = [sender for sender in self._senders if "traces" in sender.endpoint.signals]
        for some in kept if takers else ():
            count = len(some.group)
            try:
                requests = self._encoded(some, min(sender.endpoint.request_bytes for sender in takers) // 2)
            except Exception:
                # A fault of ours: spans that cannot be sent on must not stop the line.
                log.exception("%d kept spans cannot be encoded; they are not sent on", count)
                self._drop("fault", count, "")
                continue
            self._counters.add("forward.spooled_spans", count)
            parts.extend(
                _Part(sender.spool.append(Waiting("traces", request.payload, request.spans)), request.spans)
                for sender in takers
                for request in requests
            )
        return Spooled(parts, self._drop)

    @staticmethod
    def _encoded(kept: Kept, limit: int) -> list[Request]:
        costs = Costs.together([held.costs.select(rows) for held, rows in kept.origins])
        extra = attributes(costs, kept.reason, kept.threshold)
        return encode(kept.spans, extra=extra, without=WRITTEN, limit=limit)

    def _drop(self, reason: str, spans: int, message: str) -> None:
        self._counters.add(f"forward.dropped_spans.{reason}", spans)
        with self._lock:
            now = self._dropped_at = time.monotonic()
            tell = now - self._told_at >= 60.0 or not self._told_at
            if tell:
                self._told_at = now
        if tell and message:
            log.error("kept spans are not sent on: %s They are in the store's table `spans`.", message)

    # -- logs and metrics ------------------------------------------------------------------------------------------

    @property
    def signals(self) -> Signals:
        """Who takes the raw requests of the other signals."""
        wanted = {signal for sender in self._senders for signal in sender.endpoint.signals}
        return {signal: self._passer(signal) for signal in SIGNALS if signal in wanted and signal != "traces"}

    def _passer(self, signal: Signal) -> Callable[[bytes], Refusal | None]:
        takers = [sender for sender in self._senders if signal in sender.endpoint.signals]

        def take(payload: bytes) -> Refusal | None:
            try:
                # Requests are joined on their way: one that is cut short would swallow a part of the next.
                REQUESTS[signal].FromString(payload)
            except DecodeError as error:
                return Refusal("malformed", INVALID_ARGUMENT, f"not an OTLP request of {signal}: {error}")
            full = [sender.endpoint.name for sender in takers if not sender.spool.has_room(len(payload))]
            if full:
                self._counters.add("forward.passed_refused")
                return Refusal("forward_full", UNAVAILABLE, f"What waits for {', '.join(full)} has reached its cap.")
            tickets = [sender.spool.append(Waiting(signal, payload, 0)) for sender in takers]
            try:
                for ticket in tickets:
                    ticket.wait(DISK_S)
            except (JournalError, TimeoutError) as error:
                self._counters.add("forward.passed_refused")
                said = error.message if isinstance(error, JournalError) else "The disk did not finish in time."
                return Refusal("forward_disk", UNAVAILABLE, said)
            self._counters.add(f"forward.passed.{signal}")
            return None

        return take

    # -- state -----------------------------------------------------------------------------------------------------

    @property
    def states(self) -> list[State]:
        """How things stand with each endpoint."""
        return [sender.state for sender in self._senders]

    @property
    def troubles(self) -> list[str]:
        """What a person should know, one sentence an endpoint; empty where all is well. None of it is unreadiness."""
        said = []
        for state in self.states:
            if state.trouble:
                waits = f"{state.waiting_bytes >> 20} of {state.max_bytes >> 20} MiB wait"
                said.append(f"forwarding to {state.name} fails for {state.failing_s:.0f} s ({state.trouble}); {waits}")
        if self._dropped_at is not None and time.monotonic() - self._dropped_at < 300.0:
            said.append("kept spans were not sent on in the last five minutes: there is no room for them")
        return said

    def not_to(self, own: Collection[str]) -> None:
        """Make sure that no endpoint is this process.

        Args:
            own: ``host:port`` that it listens on.

        Raises:
            ConfigError: one is; what it sent on would come in again for ever.
        """
        for sender in self._senders:
            host, _, port = address(sender.endpoint.endpoint or "").netloc.rpartition(":")
            for each in own:
                if same_address(host.strip("[]"), int(port), each):
                    raise ConfigError(
                        f"The forwarding endpoint {sender.endpoint.endpoint} is this service itself.",
                        "Name the receiver behind it, or turn forwarding off.",
                    )


def _left_behind(directory: Path, names: Sequence[str]) -> list[Path]:
    """Spools with something in them that nobody sends."""
    return [
        path
        for path in sorted(directory.iterdir() if directory.is_dir() else ())
        if path.is_dir() and path.name not in names and any(path.glob("segment-*.log"))
    ]
