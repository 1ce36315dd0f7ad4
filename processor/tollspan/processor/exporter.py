"""The drop-in exporter: ``OTEL_TRACES_EXPORTER=tollspan`` runs the pipeline in the user's process, without a service.

In: ended spans, from the SDK's span processor. Out: `SpanExportResult`, SUCCESS only for what is on disk; pricing and
writing happen on threads of our own. Configured like the service, by the environment (`tollspan.processor.config`).

    export ─▶ journal ──────▶ pipeline          this process owns the store
           └▶ inbox ─▶ its owner's journal      another process owns it, or it is still being opened

The store is opened by the first export, on a thread: until it is open, spans go into the inbox, so no caller waits for
an engine to start. Processes that share a store need no service: one of them owns it, the others put their spans into
the inbox, and one of those becomes the owner when the first is gone. A forked child cannot use its parent's engine; it
puts its spans into the inbox too, and the parent, `tollspan serve` or the next start takes them up.

The caller (the batch processor's thread, or the program's own under a `SimpleSpanProcessor`) waits for the disk no
longer than ``timeout_s``, and not at all while an earlier export still hangs. What waits in memory is bounded. A fault
here never reaches the program: the export fails, and the log says so now and then.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from tollspan.processor.config import RUNTIME, load, runtime_config
from tollspan.processor.errors import JournalInUse, TollspanError
from tollspan.processor.inbox import MAX_BYTES, Inbox, InboxWriter
from tollspan.processor.journal import Ticket
from tollspan.processor.journal.files import owner_of
from tollspan.processor.runtime import Runtime, RuntimeConfig, journal_directory, shared_inbox
from tollspan.processor.store import Embedded, StoreInUse, forks, locate, lock

log = logging.getLogger(__name__)

PROMOTE_S: Final = 2.0
"""Seconds between two looks whether the store that another process owns is free."""

LONGEST_S: Final = 60.0
"""The same where the look is to open everything, after the first ones."""

LOG_S: Final = 30.0
"""Seconds between two lines in the log about spans that are lost."""


@dataclass(frozen=True, slots=True)
class ExporterSettings:
    """How the drop-in exporter treats the program that it is in.

    Attributes:
        timeout_s: longest wait of an export for the disk.
        drain_s: longest wait at the end of the program for the store; the journal keeps what did not get there.
        inbox_max_bytes: bound on spans that wait for another process, on disk.
        pending_bytes: bound on spans that wait for the disk, in memory.
    """

    timeout_s: float = 10.0
    drain_s: float = 5.0
    inbox_max_bytes: int = MAX_BYTES
    pending_bytes: int = 64 << 20


class TollspanSpanExporter(SpanExporter):
    """Exports to a store through the same pipeline that the service runs; see the module.

    Nothing is opened and no thread started before the first export.

    Args:
        config: where to and how; from the environment when not given.
        settings: see `ExporterSettings`; from the environment when not given.
    """

    def __init__(self, config: RuntimeConfig | None = None, settings: ExporterSettings | None = None) -> None:
        self._config, self._settings = config, settings
        self._closed = False
        self._broken = False
        self._lost = 0
        self._told_at = 0.0
        self._begin()
        _watch_forks(self)

    def _begin(self) -> None:
        """State of this process: nothing is open."""
        self._lock = threading.RLock()
        self._runtime: Runtime | None = None
        self._writer: InboxWriter | None = None
        self._opener: threading.Thread | None = None
        self._stopping = threading.Event()
        self._hanging: Ticket | None = None

    # -- the SDK's interface ---------------------------------------------------------------------------------------

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Make the spans durable; SUCCESS once they are, FAILURE when they are not, or when nobody knows in time."""
        try:
            ticket = self._append(encode_spans(spans).SerializeToString())
            if ticket is None:
                return SpanExportResult.FAILURE
            hanging, timeout_s = self._hanging, self._given().timeout_s
            ticket.wait(0.0 if hanging is not None and not hanging.done() else timeout_s)
            self._hanging = None
        except TimeoutError:
            # It may become durable yet; the program does not wait for a disk that hangs.
            self._hanging = self._hanging if self._hanging is not None and not self._hanging.done() else ticket
            self._tell(len(spans), "the disk did not finish in time")
            return SpanExportResult.FAILURE
        except Exception as error:  # noqa: BLE001  (the program's thread must survive whatever happens here)
            self._tell(len(spans), str(error) or type(error).__name__)
            return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """True: what `export` accepted is durable already."""
        return True

    def shutdown(self, timeout_millis: int = 30000) -> None:
        """Price and write what was accepted, within ``drain_s``, and close everything; again is harmless."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            runtime, writer, opener = self._runtime, self._writer, self._opener
        self._stopping.set()
        try:
            self._drain(min(self._given().drain_s, timeout_millis / 1000), runtime, writer, opener)
        except Exception as error:  # noqa: BLE001  (the end of the program is not the place for an exception)
            log.error("tollspan exporter: %s", error)

    # -- ours ------------------------------------------------------------------------------------------------------

    def _drain(
        self, seconds: float, runtime: Runtime | None, writer: InboxWriter | None, opener: threading.Thread | None
    ) -> None:
        end = time.monotonic() + seconds
        if writer is not None and not writer.close(seconds):
            log.error("tollspan exporter: the disk did not take the last spans in time")
        if runtime is None and opener is not None:
            opener.join(max(0.0, end - time.monotonic()))
            runtime, self._runtime = self._runtime, None
        if runtime is not None:
            # It takes up the inbox before it stops.
            runtime.stop(max(0.1, end - time.monotonic()))
        elif writer is not None and (opener is None or not opener.is_alive()) and self._nobody_elses(writer):
            from tollspan.processor import drain

            drain.run(self._place(), max(0.1, end - time.monotonic()))

    def _nobody_elses(self, writer: InboxWriter) -> bool:
        """Whether spans wait that no running process will take up."""
        return bool(writer.inbox.waiting()) and not self._owned()

    def _append(self, payload: bytes) -> Ticket | None:
        """Hand a request to the journal, or to the inbox while there is none."""
        with self._lock:
            if self._closed or self._broken:
                return None
            if self._runtime is not None:
                return self._runtime.journal.append(payload)
            try:
                if self._writer is None:
                    # Where the store's owner looks, whoever it is.
                    folder = shared_inbox(locate(self._place().store), self._journal())
                    settings = self._given()
                    inbox = Inbox(folder, max_bytes=settings.inbox_max_bytes)
                    self._writer = InboxWriter(inbox, pending_bytes=settings.pending_bytes)
                self._open()
            except TollspanError as error:
                self._off(error)
                return None
            return self._writer.append(payload)

    def _place(self) -> RuntimeConfig:
        if self._config is None:
            read = load(sections=(*RUNTIME, "exporter"))
            self._config, self._settings = runtime_config(read), self._settings or read.get(ExporterSettings)
        return self._config

    def _given(self) -> ExporterSettings:
        return self._settings or ExporterSettings()

    def _journal(self) -> Path:
        config = self._place()
        location = locate(config.store)
        home = location.directory if isinstance(location, Embedded) else None
        return config.journal or journal_directory(config.store, home)

    def _owned(self) -> bool:
        """Whether another process owns the store or, where a server has it, the journal."""
        location = locate(self._place().store)
        if isinstance(location, Embedded):
            return lock.holder(location.directory) is not None
        return owner_of(self._journal()) is not None

    def _open(self) -> None:
        """Have a thread open the store; the caller holds the lock."""
        if self._opener is not None:
            return
        if forks.inherited() and isinstance(locate(self._place().store), Embedded):
            return
        opener = threading.Thread(target=self._become_owner, name="tollspan-exporter", daemon=True)
        try:
            opener.start()
        except RuntimeError:
            return  # the interpreter is at its end: the inbox takes the spans, and `drain` brings them on
        self._opener = opener

    def _become_owner(self) -> None:
        """Open the store, as soon as nobody else owns it."""
        told, pause = False, PROMOTE_S
        while not self._stopping.is_set():
            if told and self._owned():
                self._stopping.wait(PROMOTE_S)
                continue
            try:
                runtime = Runtime(self._place(), wait_for_store=True)
                runtime.start()
            except (StoreInUse, JournalInUse) as error:
                if not told:
                    log.info("%s Spans of this process go through its inbox.", error.message)
                told = True
                self._stopping.wait(pause)
                pause = min(2 * pause, LONGEST_S)
            except Exception as error:  # noqa: BLE001  (telemetry that cannot start must not stop the program)
                self._off(error)
                return
            else:
                with self._lock:
                    self._runtime = runtime
                return

    def _off(self, error: Exception) -> None:
        self._broken = True
        log.error("tollspan exporter is off: %s", error)

    def _tell(self, spans: int, reason: str) -> None:
        """Say now and then how many spans were not kept, and why."""
        self._lost += spans
        if time.monotonic() - self._told_at >= LOG_S or not self._told_at:
            log.error("tollspan could not keep %d spans: %s", self._lost, reason)
            self._lost, self._told_at = 0, time.monotonic()

    def _after_fork(self) -> None:
        """In a forked child: nothing of the parent's threads, files and locks is ours."""
        _inherited.append((self._runtime, self._writer))
        self._begin()
        for name in ("multiprocessing.util", "billiard.util"):
            # Their children end by `os._exit`, which runs no exit hooks but those that they know themselves.
            util = sys.modules.get(name)
            if util is not None:
                util.register_after_fork(self, _flush_at_the_end_of(util))

    def _flush(self) -> None:
        """Export what the span processors of this exporter still hold, and shut down."""
        provider = trace.get_tracer_provider()
        several = getattr(getattr(provider, "_active_span_processor", None), "_span_processors", ())
        for each in several:
            if getattr(each, "span_exporter", None) is self:
                each.force_flush()
        self.shutdown()


_exporters: Final[weakref.WeakSet[TollspanSpanExporter]] = weakref.WeakSet()
_inherited: Final[list[object]] = []
"""What a forked child has of its parent's and must not let go of: destructors would talk to threads that are gone."""
_watching: Final = threading.Event()


def _watch_forks(exporter: TollspanSpanExporter) -> None:
    _exporters.add(exporter)
    if not _watching.is_set():
        _watching.set()
        os.register_at_fork(after_in_child=_in_child)


def _in_child() -> None:
    for exporter in list(_exporters):
        exporter._after_fork()


def _flush_at_the_end_of(util: Any) -> Callable[[TollspanSpanExporter], None]:
    def begin(exporter: TollspanSpanExporter) -> None:
        util.Finalize(None, exporter._flush, exitpriority=0)

    return begin
