"""The drop-in exporter: ``OTEL_TRACES_EXPORTER=tollspan`` runs the pipeline in the user's process, without a service.

Configured by ``TOLLSPAN_STORE``, ``TOLLSPAN_PRICES`` and ``TOLLSPAN_KEEP``. `export` returns when the spans are durable
in the journal; pricing and writing happen on a thread of our own. A price book that changes is taken while the program
runs, and a broken one never is (`prices_file`). A fault here never reaches the program: exports fail, which the SDK
logs, and the reason is logged once.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from typing import Final

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from tollspan.processor.runtime import Runtime, RuntimeConfig
from tollspan.processor.store import StoreInUse

log = logging.getLogger(__name__)

DRAIN_S: Final = 5.0
"""Seconds that the end of the program waits for the store; the journal keeps what did not get there."""


class TollspanSpanExporter(SpanExporter):
    """Exports to a store through the same pipeline that the service runs.

    The store is opened at the first export, so that a program which forks before it works is served in the child that
    works; a child forked later cannot use its parent's embedded store and exports nothing (logged once).

    Args:
        config: where to and how; from the environment when not given.
    """

    def __init__(self, config: RuntimeConfig | None = None) -> None:
        self._config = config
        self._runtime: Runtime | None = None
        self._lock = threading.Lock()
        self._pid = 0
        self._broken = False
        self._closed = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Make the spans durable; SUCCESS once they are."""
        runtime = self._open()
        if runtime is None:
            return SpanExportResult.FAILURE
        try:
            runtime.journal.append(encode_spans(spans).SerializeToString()).wait()
        except Exception as error:  # noqa: BLE001  (the program's exporter thread must survive whatever happens here)
            log.error("tollspan could not keep %d spans: %s", len(spans), error)
            return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """True: what `export` accepted is durable already."""
        return True

    def shutdown(self) -> None:
        """Price and write what was accepted, and close the store."""
        with self._lock:
            runtime, self._runtime, self._closed = self._runtime, None, True
        if runtime is not None and self._pid == os.getpid():
            runtime.stop(DRAIN_S)

    def _open(self) -> Runtime | None:
        with self._lock:
            if self._closed or self._broken:
                return None
            if self._runtime is not None and self._pid != os.getpid():
                self._broken = True
                log.error(
                    "tollspan exporter: this process was forked after its parent opened the store, so its spans are "
                    "not recorded; run `tollspan serve` and export to it with OTLP instead"
                )
                return None
            if self._runtime is None:
                try:
                    config = self._config or RuntimeConfig.from_environment()
                    runtime = Runtime(config, wait_for_store=True)
                    runtime.start()
                except StoreInUse as error:
                    self._broken = True
                    log.error(
                        "tollspan exporter is off: %s For several processes run `tollspan serve` and export to it "
                        "with OTLP (OTEL_TRACES_EXPORTER=otlp).",
                        error.message,
                    )
                    return None
                except Exception as error:  # noqa: BLE001  (telemetry that cannot start must not stop the program)
                    self._broken = True
                    log.error("tollspan exporter is off: %s", error)
                    return None
                self._runtime, self._pid = runtime, os.getpid()
            return self._runtime
