"""Results of message batches: every result is one billed call, whoever fetches it and however often.

In: the results of a batch as the program reads them, line by line. Out: one span for each that succeeded, with its
usage and ``tollspan.processing`` = ``batch``; what errored, expired or was cancelled is not billed and has none. The
reading itself is a span of its own (``fetch_response``), without usage.

A result may be read twice, by another process and on another day. So its span is no part of the reader's trace: its
trace id and span id are made from the ids of batch and request, and it starts and ends when the batch ended. Read again
it is the same span, and where spans are kept by those three it replaces itself. It links to whoever reads it, and to
the submission where that was made in this process; it has the submission's tags where those are known, else the
reader's.

A batch of many results makes as many spans as fast as the program reads; a span processor's queue has to hold them
(``OTEL_BSP_MAX_QUEUE_SIZE``). What one drops is not lost for good: reading the results again sends them again.
"""

from __future__ import annotations

import copy
import functools
import hashlib
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.context import Context, get_current
from opentelemetry.trace import Link, SpanKind

from tollspan.instrumentation.anthropic.providers import client_attributes
from tollspan.instrumentation.anthropic.readers import State, fields, options_of
from tollspan.instrumentation.calls import Call, Opening
from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.tags import current_tags
from tollspan.instrumentation.usage import usage_attributes
from tollspan.instrumentation.wrapping import Patches
from tollspan.pricing import attributes as names
from tollspan.pricing.usage_objects import read_usage

_SEEN: Final = guard("anthropic.batch")
_RESULT: Final = guard("anthropic.batch.result")

BATCH_ID: Final = "anthropic.message.batch.id"
"""Attribute that names the batch, as the client's own spans do."""

_FETCH: Final = "fetch_response"
_PATH: Final = "/v1/messages/batches/"
_RESULTS: Final = "/results"

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MOST_BATCHES: Final = 1024

_CLASSES: Final = tuple(
    f"anthropic.resources.{beta}messages.batches:{asynchronous}Batches"
    for beta in ("", "beta.")
    for asynchronous in ("", "Async")
)


class Known:
    """What this process knows of a batch.

    Attributes:
        submission: span that was current when it was submitted; None where it was submitted elsewhere.
        tags: tags of the submission.
        ended_ns: when its processing ended, ns since the epoch; None before that is known.
    """

    __slots__ = ("ended_ns", "submission", "tags")

    def __init__(self) -> None:
        self.submission: trace.SpanContext | None = None
        self.tags: dict[str, Any] | None = None
        self.ended_ns: int | None = None


class Fetching(State):
    """State of a call that fetches the results of a batch.

    Attributes:
        batch: id of the batch.
        results: who makes their spans.
    """

    __slots__ = ("batch", "results")

    def __init__(self, client: Any, provider: str, batch: str, results: Results) -> None:
        super().__init__(client, provider, streamed=True)
        self.batch = batch
        self.results = results


class _Ids:
    """Id generator that gives one span the ids that it has to have."""

    def __init__(self, identity: str) -> None:
        digest = hashlib.sha256(identity.encode()).digest()
        self._trace = int.from_bytes(digest[:16], "big") or 1
        self._span = int.from_bytes(digest[16:24], "big") or 1

    def generate_trace_id(self) -> int:
        return self._trace

    def generate_span_id(self) -> int:
        return self._span

    def is_trace_id_random(self) -> bool:
        return True  # a digest's bits are spread evenly, which is what samplers rely on


class Results:
    """Spans of the results of batches, and what is known of the batches.

    Args:
        tracer: makes the spans.
    """

    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer
        self._known: OrderedDict[str, Known] = OrderedDict()

    # -- the reading -------------------------------------------------------------------------------------------------

    def request(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening | None:
        """Read the request for a batch's results; None for every other."""
        options = options_of(args, kwargs)
        batch = batch_of(options.url)
        if batch is None or options.method.lower() != "get":
            return None
        attributes = client_attributes(args[0]).copy()
        attributes |= {names.OPERATION_NAME: _FETCH, BATCH_ID: batch}
        return Opening(_FETCH, attributes, Fetching(args[0], attributes[names.PROVIDER_NAME], batch, self))

    # -- what becomes of a batch -------------------------------------------------------------------------------------

    def patch(self, patches: Patches) -> None:
        """Hook the submission of batches and the look at their state, which comes before their results."""
        for owner in _CLASSES:
            for method in ("create", "retrieve"):
                patches.add(f"{owner}.{method}", functools.partial(self._watch, method, "Async" in owner))

    def _watch(self, method: str, asynchronous: bool, original: Callable[..., Any]) -> Callable[..., Any]:
        if asynchronous:

            @functools.wraps(original)
            async def watched_async(*args: Any, **kwargs: Any) -> Any:
                result = await original(*args, **kwargs)
                self._note(method, result)
                return result

            return watched_async

        @functools.wraps(original)
        def watched(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            self._note(method, result)
            return result

        return watched

    def _note(self, method: str, result: Any) -> None:
        with _SEEN:
            batch = fields(result)
            identity = batch.get("id")
            if not isinstance(identity, str):
                return  # a raw response
            known = self._known.setdefault(identity, Known())
            if method == "create":
                known.submission = trace.get_current_span().get_span_context()
                known.tags = dict(current_tags(get_current()))
            ended = batch.get("ended_at")
            if isinstance(ended, datetime) and ended.tzinfo is not None:
                known.ended_ns = (ended - _EPOCH) // timedelta(microseconds=1) * 1000
            while len(self._known) > _MOST_BATCHES:
                self._known.popitem(last=False)

    # -- the results -------------------------------------------------------------------------------------------------

    def line(self, call: Call, line: Any) -> None:
        """One result came: make its span, if it is billed."""
        with _RESULT:
            self._line(call, fields(line))

    def _line(self, call: Call, line: Any) -> None:
        result = fields(line.get("result"))
        message = fields(result.get("message"))
        if result.get("type") != "succeeded" or not message:
            return
        state: Fetching = call.state
        batch = state.batch
        known = self._known.get(batch) or Known()
        model = message.get("model")
        linked = (call.span.get_span_context(), known.submission)
        links = [Link(context) for context in linked if context is not None and context.is_valid]
        span = _tracer_with(self._tracer, _Ids(f"{state.provider}\0{batch}\0{line.get('custom_id')}")).start_span(
            f"chat {model}" if isinstance(model, str) else "chat",
            Context(),
            SpanKind.CLIENT,
            {
                **client_attributes(state.client),
                names.OPERATION_NAME: "chat",
                names.PROCESSING: "batch",
                BATCH_ID: batch,
                **(current_tags(get_current()) if known.tags is None else known.tags),
            },
            links,
            start_time=known.ended_ns,
        )
        if span.is_recording():
            reason = message.get("stop_reason")
            told = (
                (names.RESPONSE_ID, message.get("id")),
                (names.RESPONSE_MODEL, model),
                (names.RESPONSE_FINISH_REASONS, [reason] if isinstance(reason, str) else None),
            )
            span.set_attributes({key: value for key, value in told if value is not None})
            reading = read_usage(state.provider, message.get("usage"), model=model)
            span.set_attributes(usage_attributes(reading, state.provider))
        span.end(known.ended_ns)


def batch_of(url: str) -> str | None:
    """Id of the batch whose results an URL gives; None for every other URL."""
    path = url.partition("?")[0]
    _, found, rest = path.partition(_PATH)
    batch = rest.removesuffix(_RESULTS)
    return batch if found and batch and rest.endswith(_RESULTS) and "/" not in batch else None


def _tracer_with(tracer: Any, ids: _Ids) -> Any:
    """``tracer``, giving a span these ids. One that is not the SDK's gives it ids of its own."""
    real = getattr(tracer, "_tracer", tracer)  # the API's proxy, where the provider came after us
    if not hasattr(real, "id_generator"):
        return real
    same = copy.copy(real)
    same.id_generator = ids
    return same
