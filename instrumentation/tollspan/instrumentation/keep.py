"""What the program says of its traces: ``keep_trace("the customer complained")`` and ``drop_trace()``.

In: a call anywhere inside a request. Out: a mark on the current span (`tollspan.sampling.keep`), by which the tail
sampler keeps or drops the whole trace, whatever else its rules say of it. Where the current span is not recorded or has
ended, a span of no length bears the mark. Where it stands: beside `tags`; `sampler` and `slim` ask it.

A trace that was not sampled at its head has no bodies that could be kept, so from here on they are made: every span of
it that starts or ends later in this process is sent whole (`slim`), and baggage tells the services that it calls. The
baggage names the trace, so it means nothing in another one, wherever a context is carried to. Whoever may set baggage
on a request from outside may have its trace kept; strip it at the edge where that matters.
"""

from __future__ import annotations

from typing import Final

from opentelemetry import baggage, trace
from opentelemetry.context import Context, attach
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import Span, StatusCode, TraceFlags, format_trace_id

from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.tags import BAGGAGE
from tollspan.pricing.attributes import SAMPLING_KEEP, SAMPLING_NOTE

MOST: Final = 4096
"""Marked traces that are remembered, of those that were not sampled; the oldest is forgotten first."""
LONGEST_NOTE: Final = 512
"""Characters of a reason."""
_SCOPE: Final = "tollspan.instrumentation.keep"
_MARK: Final = guard("keep.mark")

_marks: Final[dict[int, bool]] = {}
"""Trace id → whether it is to be kept, for traces that were not sampled."""


def keep_trace(reason: str | None = None) -> bool:
    """Ask that the current trace be kept, all of it that is still there. Never raises.

    Args:
        reason: why, in the program's words; stands on the span as `tollspan.sampling.note`.

    Returns:
        Whether there is a current trace.
    """
    return _mark(True, reason)


def drop_trace(reason: str | None = None) -> bool:
    """Ask that the current trace's spans be dropped, but for where `keep_trace` was called too. Costs stay.

    Args and result as of `keep_trace`.
    """
    return _mark(False, reason)


def _mark(keep: bool, reason: str | None) -> bool:
    with _MARK:
        span = trace.get_current_span()
        where = span.get_span_context()
        if not where.is_valid:
            return False
        sampled = where.trace_flags & TraceFlags.SAMPLED
        if not sampled:
            remember(where.trace_id, keep)
            if keep:
                # Not taken out again: whoever made the span current puts back the context from before it.
                attach(baggage.set_baggage(SAMPLING_KEEP, format_trace_id(where.trace_id)))
        about: dict[str, str | bool] = {SAMPLING_KEEP: keep}
        if reason:
            about[SAMPLING_NOTE] = str(reason)[:LONGEST_NOTE]
        if span.is_recording():
            if not keep and _says_keep(span):
                return True
            span.set_attributes(about)
        elif keep or sampled:
            name = "keep_trace" if keep else "drop_trace"
            trace.get_tracer(_SCOPE).start_span(name, attributes=about).end()
        return True
    return False


def _says_keep(span: Span) -> bool:
    return bool((getattr(span, "attributes", None) or {}).get(SAMPLING_KEEP))


def remember(trace_id: int, keep: bool) -> None:
    """Note the mark of a trace that was not sampled; to keep outweighs to drop."""
    _marks[trace_id] = keep or _marks.get(trace_id, False)
    while len(_marks) > MOST:
        try:
            del _marks[next(iter(_marks))]
        except (KeyError, RuntimeError, StopIteration):
            break  # another thread is at it


def asked_for(trace_id: int, context: Context | None) -> bool:
    """Whether a trace that was not sampled is to be kept, by a mark in this process or in the context's baggage."""
    if _marks and _marks.get(trace_id):
        return True
    if context is not None and (BAGGAGE is None or BAGGAGE in context):
        asked = baggage.get_baggage(SAMPLING_KEEP, context)
        if asked is not None and asked == format_trace_id(trace_id):
            remember(trace_id, True)
            return True
    return False


def whole(span: Span | ReadableSpan) -> bool:
    """Whether a span of a trace that was not sampled is sent as it is: it was asked for, or ended in an error."""
    where = span.get_span_context()
    asked = _marks.get(where.trace_id) if where is not None else None
    if asked is not None:
        return asked
    status = getattr(span, "status", None)
    return status is not None and status.status_code is StatusCode.ERROR
