"""Spans that nobody can take, parted from the rest of their request, so that the rest need not wait for them.

In: a request some of whose spans `decode` would leave out (`tollspan.processor.decode.check` counts them). Out: two
requests with the same resources and scopes: one of the good spans, for the journal, and one of the others, for people
to look at. Only such requests come here, so it may take a parse.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from tollspan.processor.counters import Counters
from tollspan.processor.decode.otlp_slim import strict
from tollspan.processor.decode.tables import BAD_PARENT_SPAN_ID, BAD_SPAN_ID, BAD_TRACE_ID
from tollspan.processor.quarantine import Quarantine

BAD_JSON: Final = "bad_json"
"""A span in OTLP/JSON that has a field of the wrong kind."""

MAX_SPANS: Final = 20_000
"""Requests of more spans are not parted, for that takes a step a span: they are journaled as they came, and `decode`
leaves the others out."""

_WORDS: Final = {
    BAD_TRACE_ID: "trace ids have 16 bytes, not all zero",
    BAD_SPAN_ID: "span ids have 8 bytes, not all zero",
    BAD_PARENT_SPAN_ID: "parent span ids have 8 bytes, or none",
    BAD_JSON: "not OTLP/JSON",
}


def split(payload: bytes) -> tuple[bytes, bytes]:
    """The good spans of a request and the others, as two requests.

    Args:
        payload: an ``ExportTraceServiceRequest`` that is well-formed.
    """
    return _without(payload, lambda span: not fits(span)), _without(payload, fits)


def fits(span: Any) -> bool:
    """Whether a span's identifiers are possible, as `decode` has it."""
    parent = span.parent_span_id
    return (
        len(span.trace_id) == 16
        and any(span.trace_id)
        and len(span.span_id) == 8
        and any(span.span_id)
        and len(parent) in (0, 8)
    )


def describe(rejected: Mapping[str, int]) -> str:
    """How many for which reason, in words: ``2 bad_trace_id (trace ids have …)``."""
    return "; ".join(
        f"{count} {reason} ({_WORDS[reason]})" if reason in _WORDS else f"{count} {reason}"
        for reason, count in sorted(rejected.items())
    )


def _without(payload: bytes, leave_out: Callable[[Any], bool]) -> bytes:
    # The strict reading takes text that is not UTF-8, and writes fields that it does not know as they came.
    request: Any = strict("Request").FromString(payload)
    for resource in request.resource_spans:
        for scope in resource.scope_spans:
            _remove(scope.spans, leave_out)
        _remove(resource.scope_spans, lambda scope: not scope.spans)
    _remove(request.resource_spans, lambda resource: not resource.scope_spans)
    return bytes(request.SerializeToString())


def _remove(messages: Any, leave_out: Callable[[Any], bool]) -> None:
    for number in reversed(range(len(messages))):
        if leave_out(messages[number]):
            del messages[number]


class Keeper:
    """Puts rejected spans into the quarantine, for people to look at; not all of them.

    Who sends rubbish sends much of it, and what is acknowledged needs the room: one request a second is kept, and only
    while the quarantine is mostly empty.

    Args:
        quarantine: where to.
        counters: counts ``receive.rejected_not_kept`` requests.
        every_s: seconds between two that are kept.
    """

    def __init__(self, quarantine: Quarantine, counters: Counters, every_s: float = 1.0) -> None:
        self._quarantine, self._counters, self._every_s = quarantine, counters, every_s
        self._lock, self._next = threading.Lock(), 0.0

    def __call__(self, payload: bytes, said: str) -> None:
        """Keep a request of rejected spans, if there is room."""
        with self._lock:
            now = time.monotonic()
            turn = now >= self._next
            if turn:
                self._next = now + self._every_s
        room = self._quarantine.limits.max_bytes // 4
        if turn and self._quarantine.size() + len(payload) <= room:
            self._quarantine.put(payload, "rejected", detail=said, retry=False)
        else:
            self._counters.add("receive.rejected_not_kept")
