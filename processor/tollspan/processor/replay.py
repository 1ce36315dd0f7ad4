"""Usage traces as OTLP spans: a file of timed token counts is sent to a receiver as if the calls were made again.

In: a `usage_trace.UsageTrace`. Out: one root span a row, encoded with the stock OTLP messages
and sent over OTLP/gRPC (`send`). This stands outside the line: it is a client of any OTLP receiver.

Trace and span ids come from the file's content and the row's number, so replaying a file again is a resend of the same
spans and not new ones. The trace says when a call began and what it used but not how long it took: a span ends where it
starts, and its duration is 0.
"""

from __future__ import annotations

import hashlib
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Final

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span

from tollspan.pricing import attributes as attr
from tollspan.processor.errors import ConfigError, TollspanError
from tollspan.processor.otlp_client import Delivery, OtlpClient
from tollspan.processor.usage_trace import NANO, UsageTrace

BATCH_SPANS: Final = 512
"""Spans a request, the default of the SDK's batch processor."""
REALTIME_TICK_S: Final = 0.25
"""At the trace's own pace, calls that begin within this time of each other share a request."""


@dataclass(frozen=True, slots=True)
class SpanTemplate:
    """What every span of a replay says besides its row.

    Attributes:
        provider: GenAI provider name, as in ``gen_ai.provider.name``.
        model: model asked for and served.
        service: ``service.name``.
        tenant: who pays; empty = not said.
        start_ns: instant that the first call is moved to, all others by as much; None = the times of the file.
    """

    provider: str
    model: str
    service: str = "tollspan-replay"
    tenant: str = ""
    start_ns: int | None = None


def span_ids(content: bytes, row: int) -> tuple[bytes, bytes]:
    """Trace id (16 bytes) and span id (8 bytes) of row ``row`` (from 0) of the file with this SHA-256."""
    digest = hashlib.sha256(b"tollspan replay\0" + content + row.to_bytes(8, "big")).digest()
    return digest[:16], digest[16:24]


class SpanMaker:
    """Rows of one trace as spans; what all spans share is encoded once."""

    def __init__(self, trace: UsageTrace, template: SpanTemplate) -> None:
        self._trace = trace
        self._shift = 0 if template.start_ns is None else template.start_ns - trace.first_ns
        if max(trace.start_ns) + self._shift >= 2**63:
            raise ConfigError("The replay would end after the year 2262.", "Give an earlier --start.")
        self._name = f"chat {template.model}"
        self._shared = [
            _string(attr.OPERATION_NAME, "chat"),
            _string(attr.PROVIDER_NAME, template.provider),
            _string(attr.REQUEST_MODEL, template.model),
            _string(attr.RESPONSE_MODEL, template.model),
        ]
        if template.tenant:
            self._shared.append(_string(attr.TENANT, template.tenant))
        self._service = _string(attr.SERVICE_NAME, template.service)

    def start_ns(self, row: int) -> int:
        """Start of the span of a row, moved."""
        return self._trace.start_ns[row] + self._shift

    def span(self, row: int) -> Span:
        """The span of a row."""
        trace_id, span_id = span_ids(self._trace.content, row)
        start = self.start_ns(row)
        return Span(
            trace_id=trace_id,
            span_id=span_id,
            name=self._name,
            kind=Span.SPAN_KIND_CLIENT,
            start_time_unix_nano=start,
            end_time_unix_nano=start,
            flags=0x103,  # sampled, id is random (W3C level 2), and the parent, of which there is none, is not remote
            attributes=[
                *self._shared,
                _int(attr.USAGE_INPUT_TOKENS, self._trace.input_tokens[row]),
                _int(attr.USAGE_OUTPUT_TOKENS, self._trace.output_tokens[row]),
            ],
        )

    def request(self, rows: range) -> ExportTraceServiceRequest:
        """One export request with the spans of ``rows``."""
        request = ExportTraceServiceRequest()
        resource = request.resource_spans.add()
        resource.resource.attributes.append(self._service)
        scope = ScopeSpans(spans=[self.span(row) for row in rows])
        scope.scope.name = "tollspan.replay"
        resource.scope_spans.append(scope)
        return request


def _string(key: str, value: str) -> KeyValue:
    return KeyValue(key=key, value=AnyValue(string_value=value))


def _int(key: str, value: int) -> KeyValue:
    return KeyValue(key=key, value=AnyValue(int_value=value))


def batches_now(count: int, size: int = BATCH_SPANS) -> Iterator[range]:
    """Row ranges of ``size``, as fast as they are taken."""
    for first in range(0, count, size):
        yield range(first, min(first + size, count))


def batches_in_time(
    start_ns: array[int],
    *,
    size: int = BATCH_SPANS,
    clock: Callable[[], int] = time.monotonic_ns,
    sleep: Callable[[float], object] = time.sleep,
) -> Iterator[range]:
    """Row ranges at the trace's own pace: each comes when the first of its calls is due, counted from the first row.

    A row that lies before its predecessor is due at once; rows keep their order.
    """
    began, origin = clock(), start_ns[0]
    tick = int(REALTIME_TICK_S * NANO)
    row = 0
    while row < len(start_ns):
        due = began + start_ns[row] - origin
        while (ahead := due - clock()) > 0:
            sleep(ahead / NANO)
        last = row + 1
        horizon = start_ns[row] + tick
        while last < len(start_ns) and last - row < size and start_ns[last] <= horizon:
            last += 1
        yield range(row, last)
        row = last


@dataclass(slots=True)
class Outcome:
    """What became of the spans: every span sent was either accepted or refused, or `failure` says what happened."""

    sent: int = 0
    accepted: int = 0
    refused: int = 0
    reasons: list[str] = field(default_factory=list)
    failure: TollspanError | None = None

    def add(self, spans: int, delivery: Delivery) -> None:
        self.accepted += spans - delivery.refused
        self.refused += delivery.refused
        if delivery.reason and delivery.reason not in self.reasons:
            self.reasons.append(delivery.reason)


def send(
    maker: SpanMaker,
    batches: Iterator[range],
    client: OtlpClient,
    *,
    parallel: int = 4,
    progress: Callable[[int], object] = lambda spans: None,
) -> Outcome:
    """Send row ranges, up to ``parallel`` requests at a time, and wait for every answer.

    Args:
        maker: makes the spans.
        batches: row ranges, taken one by one as requests are free.
        client: where to.
        progress: called with the number of spans of each request that was answered, from this thread.

    Returns:
        What became of them. When the receiver cannot be reached any more nothing further is sent and
        ``failure`` is set; the spans of requests that were under way are then neither accepted nor refused.
    """
    outcome = Outcome()
    stop = threading.Event()
    under_way: dict[Future[Delivery], int] = {}

    def deliver(rows: range) -> Delivery:
        return client.export(maker.request(rows), stop)

    def collect(done: set[Future[Delivery]]) -> None:
        for future in done:
            spans = under_way.pop(future)
            try:
                outcome.add(spans, future.result())
            except TollspanError as error:
                outcome.failure = outcome.failure or error
                stop.set()
            else:
                progress(spans)

    with ThreadPoolExecutor(parallel, thread_name_prefix="replay") as pool:
        try:
            for rows in batches:
                outcome.sent += len(rows)
                under_way[pool.submit(deliver, rows)] = len(rows)
                # Answers that are there already are taken at once: at the trace's own pace the next batch may be far.
                finished = {future for future in under_way if future.done()}
                if len(under_way) - len(finished) >= parallel:
                    finished = wait(under_way, return_when=FIRST_COMPLETED).done
                collect(finished)
                if outcome.failure is not None:
                    break
            while under_way:
                collect(wait(under_way, return_when=FIRST_COMPLETED).done)
        except BaseException:
            stop.set()  # Ctrl-C: requests that wait for another attempt give up, so that the pool can end
            raise
    return outcome
