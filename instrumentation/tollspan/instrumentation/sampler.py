"""Head sampling that loses no cost: ``OTEL_TRACES_SAMPLER=tollspan``, ``OTEL_TRACES_SAMPLER_ARG=0.1``.

In: the beginning of a span. Out: the SDK's decision on it. Parents decide for their children, near and remote; a trace
that begins here is sampled with the given probability, by OpenTelemetry's consistent probability sampling: its 56 bits
of randomness against a threshold, which stands as ``ot=th`` in its trace state from then on, for the tail sampler and
everybody else who counts.

What is new is what becomes of a trace that is not sampled. Its spans that will be billed are recorded all the same,
without the sampled flag, so that nobody outside takes the trace for a sampled one; `slim` sends them to the exporters
when they end, with what pricing and attribution need. All others are dropped, as by any sampler. In a trace that was
asked for (`keep_trace`) every span is recorded.

A dropped span leaves a hole between those above and beneath it, and a call is billed once only where the processor can
see what stands in what. So the trace state of a dropped span says which is the nearest span above it that is sent
(``tollspan=<span id>``), also to the services that it calls, and a span that is sent names that one as its parent.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Any, Final

from opentelemetry.context import Context, get_current
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, TraceFlags, TraceState, format_span_id
from opentelemetry.trace.propagation import _SPAN_KEY
from opentelemetry.util.types import Attributes

from tollspan.instrumentation import slim
from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.keep import asked_for
from tollspan.instrumentation.later_spans import LaterSpan
from tollspan.instrumentation.slim_attributes import billed

RANDOM_BITS: Final = 56
"""Bits of a trace's randomness, and the scale of thresholds."""
ABOVE: Final = slim.ABOVE
_RANDOMNESS: Final = 2**RANDOM_BITS - 1
_DIGITS: Final = RANDOM_BITS // 4
_FRAMES: Final = 8
"""Callers that are looked through for the tracer: samplers may stand around this one."""

_WATCH: Final = guard("sampler.watch")
_log: Final = logging.getLogger(__name__)


def threshold(rate: float) -> int:
    """Rejection threshold on the scale of 2⁵⁶ for a share of traces to sample."""
    return int(min(max(round((1.0 - rate) * 2**RANDOM_BITS), 0), 2**RANDOM_BITS))


def from_argument(argument: str | None) -> Sampler:
    """What ``OTEL_TRACES_SAMPLER=tollspan`` makes of ``OTEL_TRACES_SAMPLER_ARG``; everything is sampled without it.

    What is no share is told of in the log, and everything is sampled: the SDK's own samplers do so too.
    """
    text = (argument or "").strip()
    if not text:
        return TollspanSampler()
    try:
        return TollspanSampler(float(text))
    except ValueError:
        _log.error(
            "tollspan: OTEL_TRACES_SAMPLER_ARG=%s is no share of traces. Give a number from 0 to 1, as 0.1 for one in "
            "ten. Every trace is sampled until then.",
            text,
        )
        return TollspanSampler()


class TollspanSampler(Sampler):
    """Samples a share of traces, and has what the others used sent all the same.

    A provider that is made by hand is given one: ``TracerProvider(sampler=TollspanSampler(0.1))``. It finds the
    provider's processors by itself; one instance is for one provider.

    Args:
        rate: share of traces, 0 to 1.

    Raises:
        ValueError: the rate is no share.
    """

    def __init__(self, rate: float = 1.0) -> None:
        if not 0.0 <= rate <= 1.0:
            raise ValueError(f"the share of traces to sample must be from 0 to 1, not {rate}")
        self.rate = rate
        self.threshold = threshold(rate)
        digits = f"{self.threshold:0{_DIGITS}x}".rstrip("0") or "0"
        self._state = TraceState([("ot", f"th:{digits}")])
        self._unsent = True

    def get_description(self) -> str:
        return f"TollspanSampler{{{self.rate}}}"

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        context = get_current() if parent_context is None else parent_context
        parent = context.get(_SPAN_KEY)
        above = parent.get_span_context() if isinstance(parent, Span) else None
        if above is None or not above.is_valid:
            if trace_id & _RANDOMNESS >= self.threshold:
                return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes, self._state)
            above = None
        elif above.trace_flags & TraceFlags.SAMPLED:
            return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes, above.trace_state)
        if billed(attributes) or asked_for(trace_id, context):
            if self._unsent:
                self._watch()
            return SamplingResult(Decision.RECORD_ONLY, attributes, _without(above))
        return _DROPPED if above is None else SamplingResult(Decision.DROP, None, _over(above, parent))

    def _watch(self) -> None:
        """Find the tracer that asks, and have its provider's exporters given what is recorded.

        Nothing leads from a sampler to its provider, so it is looked for among the callers: the SDK's tracer.
        """
        with _WATCH:
            frame: Any = sys._getframe(2)
            for _ in range(_FRAMES):
                processors = getattr(frame.f_locals.get("self"), "span_processor", None)
                if processors is not None:
                    slim.watch(processors)
                    self._unsent = False
                    return
                frame = frame.f_back
                if frame is None:
                    break
            self._unsent = False
            _log.warning(
                "tollspan: the usage of requests that are not sampled reaches no exporter, because the sampler was not "
                "asked by a tracer of the SDK. Call tollspan.instrumentation.slim.send_from(provider) once."
            )


_DROPPED: Final = SamplingResult(Decision.DROP)


def _without(above: SpanContext | None) -> TraceState | None:
    """Trace state of a span that is sent itself."""
    if above is None:
        return None
    state = above.trace_state
    return state.delete(ABOVE) if ABOVE in state else state


def _over(above: SpanContext, parent: object) -> TraceState:
    """Trace state of a dropped span: what stands beneath it is beneath the nearest that is sent."""
    state = above.trace_state
    sent = isinstance(parent, (ReadableSpan, LaterSpan))
    if not sent and (ABOVE in state or not above.is_remote):
        return state  # the nearest is still the one that is said, or there is none
    # Of a remote span that says nothing nobody knows whether it is sent; if it is not, nothing else is either.
    return state.update(ABOVE, format_span_id(above.span_id))
