"""A batch that serves many requests: each request's share of it.

In: the requests that a batch was made of, with a weight each, and the execution that served them all. Out: in each
request's own trace a span with that request's part of the CPU and device seconds, under the request's tags; the parts
add up to the whole, to the nanosecond. Where it stands: between `torch_observe.py` and `Execution`, for which a
`Shared` is the span.

The execution's own span then bears no usage, or the seconds would be billed twice, and says that it stands elsewhere.
How a device's time divides among the items of one batch nothing measures: every share says that it is estimated, and by
which rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, Status, Tracer

from tollspan.instrumentation.calls import get_current
from tollspan.instrumentation.device_clock import GPU_SECONDS
from tollspan.instrumentation.tags import current_tags
from tollspan.pricing import attributes

_SHARED: Final = frozenset({GPU_SECONDS, attributes.usage("cpu.seconds")})


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a batch.

    Attributes:
        context: where it came in, as ``opentelemetry.context.get_current()`` gave it there; also `Request.here`.
        weight: its part of the work, in whatever unit the batch's rule names; 0 or more.
    """

    context: Context
    weight: int = 1

    def __post_init__(self) -> None:
        if type(self.weight) is not int or self.weight < 0:
            raise ValueError(f"a weight is an integer of 0 or more, not {self.weight!r}")

    @classmethod
    def here(cls, weight: int = 1) -> Request:
        """The request that the calling code is handling."""
        return cls(get_current(), weight)

    @property
    def link(self) -> Link:
        return Link(trace.get_current_span(self.context).get_span_context())


def split(total: int, weights: Sequence[int]) -> list[int]:
    """``total`` in proportion to ``weights``, in whole units that add up to it: what rounding down leaves over goes one
    by one to those that it took the most from, the earlier first. Weights that are all 0 count as equal.

    Raises:
        ValueError: no weights.
    """
    if not weights:
        raise ValueError("nothing to split among")
    whole = sum(weights)
    if whole == 0:
        weights, whole = [1] * len(weights), len(weights)
    parts, rests = zip(*(divmod(total * weight, whole) for weight in weights), strict=True)
    shares = list(parts)
    dearest = sorted(range(len(rests)), key=lambda place: -rests[place])
    for place in dearest[: total - sum(shares)]:
        shares[place] += 1
    return shares


class Shared:
    """The span of an execution for many requests, which also ends a span for each of them.

    Args:
        tracer: makes the requests' spans.
        span: of the execution, open.
        name, about: of each request's span; ``about`` without the batch's tags.
        requests: one or more.
        rule: what the weights are: ``items``, ``tokens`` ...
    """

    def __init__(
        self, tracer: Tracer, span: Span, name: str, about: Mapping[str, Any], requests: Sequence[Request], rule: str
    ) -> None:
        self._span = span
        self._span_processor = getattr(span, "_span_processor", None)
        span.set_attribute(attributes.USAGE_ELSEWHERE, True)
        self._weights = [request.weight for request in requests]
        self._seconds: dict[str, float] = {}
        link = Link(span.get_span_context())
        shared = {**about, attributes.SHARE_RULE: rule, attributes.USAGE_ESTIMATED: True}
        self._parts = [
            tracer.start_span(
                name, request.context, SpanKind.INTERNAL, {**shared, **current_tags(request.context)}, [link]
            )
            for request in requests
        ]

    def set_attribute(self, key: str, value: Any) -> None:
        self.set_attributes({key: value})

    def set_attributes(self, about: Mapping[str, Any]) -> None:
        self._seconds.update((key, value) for key, value in about.items() if key in _SHARED)
        own = {key: value for key, value in about.items() if key not in _SHARED}
        self._span.set_attributes(own)
        for part in self._parts:
            part.set_attributes(own)

    def set_status(self, status: Status) -> None:
        self._span.set_status(status)
        for part in self._parts:
            part.set_status(status)

    def end(self, end_time: int | None = None) -> None:
        for key, seconds in self._seconds.items():
            shares = split(round(seconds * 1e9), self._weights)
            for part, nanoseconds in zip(self._parts, shares, strict=True):
                part.set_attribute(key, nanoseconds / 1e9)
        for part in self._parts:
            part.end(end_time)
        self._span.end(end_time)
