"""Slim spans: what a request that is not sampled used, on its way to the ledger.

In: spans that are recorded without being sampled (`sampler`), when they end. Out: a slim copy of each, handed to the
provider's exporters: times, identity, status, and the attributes that pricing and attribution need
(`slim_attributes`); `tollspan.slim` says what it is. A span that ended in an error, or of a trace that was asked for
(`keep`), is handed on whole, and `tollspan.slim` is false there. Where it stands: a span processor before the
provider's others.

The SDK's processors drop what has no sampled flag when it ends, each by itself, so the copy has the flag; it is on no
wire (OTLP's flags of the SDK do not have it), and every context that was propagated is without. A copy is handed to the
`BatchSpanProcessor` and `SimpleSpanProcessor` and to nobody else: what other processors make of spans, a vendor's
uploads or a count, is not for copies. There is no queue here, so nothing of ours has to be flushed or can be lost.
"""

from __future__ import annotations

import logging
import re
import threading
import weakref
from typing import Any, Final

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.trace import SpanContext, Status, TraceFlags

from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.keep import whole
from tollspan.instrumentation.slim_attributes import billed, needed
from tollspan.instrumentation.torch_resolver import stand_first
from tollspan.pricing.attributes import SLIM

ABOVE: Final = "tollspan"
"""Member of a trace state: id of the nearest span above that is sent."""

_ID: Final = re.compile("[0-9a-f]{16}")
_SEND: Final = guard("slim.send")
_log: Final = logging.getLogger(__name__)


class SlimSpans(SpanProcessor):
    """Hands on what is recorded and not sampled.

    Args:
        processors: the provider's own, which this one stands among.
    """

    def __init__(self, processors: Any) -> None:
        self._processors = processors
        self._seen: object = None
        self._takers: tuple[SpanProcessor, ...] = ()

    def on_end(self, span: ReadableSpan) -> None:
        context = span.context
        if context is None or context.trace_flags & TraceFlags.SAMPLED:
            return
        with _SEND:
            copy = copied(span, context)
            if copy is None:
                return
            several = self._processors._span_processors
            if several is not self._seen:
                self._takers = self._look(several)
                self._seen = several
            for taker in self._takers:
                taker.on_end(copy)

    @staticmethod
    def _look(several: tuple[SpanProcessor, ...]) -> tuple[SpanProcessor, ...]:
        takers = tuple(_takers(several))
        others = [each for each in several if not type(each).__module__.startswith("tollspan.")]
        if others and not takers:
            _log.warning(
                "tollspan: the usage of requests that are not sampled reaches no exporter: of the provider's span "
                "processors (%s) none is the SDK's BatchSpanProcessor or SimpleSpanProcessor. Add one with the "
                "exporter that leads to Tollspan.",
                ", ".join(sorted({type(each).__qualname__ for each in others})),
            )
        return takers


def _takers(several: tuple[SpanProcessor, ...]) -> list[SpanProcessor]:
    """Those of the processors that export, and would drop a span for its missing flag and nothing else."""
    found: list[SpanProcessor] = []
    for each in several:
        inner = getattr(each, "_span_processors", None)
        if isinstance(inner, tuple):
            found.extend(_takers(inner))
        elif type(each).on_end in (BatchSpanProcessor.on_end, SimpleSpanProcessor.on_end):
            found.append(each)
    return found


def copied(span: ReadableSpan, context: SpanContext) -> ReadableSpan | None:
    """What is sent of a span that was not sampled; None: nothing.

    Args:
        span: has ended.
        context: its own.
    """
    attributes = span.attributes or {}
    entire = whole(span)
    if not entire and not billed(attributes):
        return None
    copy = ReadableSpan(
        span.name,
        SpanContext(
            context.trace_id,
            context.span_id,
            False,
            TraceFlags(context.trace_flags | TraceFlags.SAMPLED),
            context.trace_state,
        ),
        _above(span.parent),
        span.resource,
        {**attributes, SLIM: False} if entire else {**needed(attributes), SLIM: True},
        span.events if entire else (),
        span.links if entire else (),
        span.kind,
        status=span.status if entire else Status(span.status.status_code),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )
    return copy


def _above(parent: SpanContext | None) -> SpanContext | None:
    """The nearest span above that is sent, where the parent is not."""
    if parent is None:
        return None
    nearest = parent.trace_state.get(ABOVE) if parent.trace_state else None
    if nearest is None or not _ID.fullmatch(nearest):
        return parent
    return SpanContext(parent.trace_id, int(nearest, 16), parent.is_remote, parent.trace_flags, parent.trace_state)


_watched: Final[weakref.WeakSet[Any]] = weakref.WeakSet()
_lock: Final = threading.Lock()


def watch(processors: Any) -> None:
    """Hand on what is recorded and not sampled by the provider whose span processors these are; again is harmless."""
    with _lock:
        if processors not in _watched:
            stand_first(processors, SlimSpans(processors))
            _watched.add(processors)


def send_from(provider: Any) -> None:
    """`watch` for a tracer provider of the SDK.

    Raises:
        TypeError: it is none.
    """
    processors = getattr(provider, "_active_span_processor", None)
    if processors is None:
        raise TypeError(f"{type(provider).__qualname__} is no tracer provider of the OpenTelemetry SDK")
    watch(processors)


def unseen(span: Any) -> bool:
    """Whether what is put on a recording span of ours will be left out when it is sent, as far as is known now."""
    context = span.get_span_context()
    return (
        bool(_watched)
        and not context.trace_flags & TraceFlags.SAMPLED
        and getattr(span, "_span_processor", None) in _watched
        and not whole(span)
    )
