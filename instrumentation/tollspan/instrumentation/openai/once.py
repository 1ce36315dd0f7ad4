"""Spans of what is billed once and may be seen many times: derived identity.

A background response, a video and the results of a batch are fetched by whoever polls: often several times, and often
by another process than the one that asked. What a fetch tells of usage goes on a span whose trace id, span id and start
are derived from the provider's own id and time of creation. However many processes see it, they all make the same span,
and the ledger keeps one row for it. In this process it is made once, unless it may be repeated.

Such a span is a trace of its own, linked to the call that asked for the work where this process made it, and bears that
call's tags. Results of batches come by the thousand and may be lost on the way to the collector: fetching them again
makes their spans again, so that nothing is lost for good. In: an id of the provider's, and what to say. Out: a span
that has ended.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

from opentelemetry import trace
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, Context, get_current
from opentelemetry.trace import Link, SpanKind

from tollspan.instrumentation.calls import Call, WrapPoint
from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.tags import current_tags
from tollspan.instrumentation.wrapping import Patches

SCOPE: Final = "tollspan.instrumentation.openai.results"
"""A scope of its own, because a tracer is shared within one and this one has ids of its own."""

SECOND: Final = 1_000_000_000
_REMEMBERED: Final = 65_536
_POINT: Final = WrapPoint(target="openai:", request=lambda args, kwargs: None)
_AFTER: Final = guard("openai.after")


class Origin(NamedTuple):
    """Where work was asked for, as far as this process knows.

    Attributes:
        span: the span of the call that asked; None where there is none.
        tags: its tags, as attributes.
        told: anything else worth knowing when the result comes.
    """

    span: trace.SpanContext | None
    tags: dict[str, Any]
    told: Any = None


class Remembered:
    """The last so many ids and what is known of each. Safe in threads."""

    def __init__(self, most: int = _REMEMBERED) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._known: dict[str, Any] = {}

    def add(self, key: str, value: Any = None) -> bool:
        """Remember ``key``; False when it is known already, and then keeps what is known."""
        with self._lock:
            if key in self._known:
                return False
            if len(self._known) >= self._most:
                del self._known[next(iter(self._known))]
            self._known[key] = value
            return True

    def get(self, key: str) -> Any:
        with self._lock:
            return self._known.get(key)

    def clear(self) -> None:
        with self._lock:
            self._known.clear()


asked: Final = Remembered()
"""Provider's id of the work → `Origin`."""

_made: Final = Remembered()
"""Identities whose span this process has made → its start, ns since the epoch."""

_provider: list[trace.TracerProvider | None] = []
"""The tracer provider while the client is instrumented; None in it is the global one."""


class _Derived:
    """An ``IdGenerator`` of the SDK (which need not be there): ids as given for one span by this thread, otherwise
    those of the generator underneath."""

    def __init__(self, underneath: Any) -> None:
        self._underneath = underneath
        self.given = threading.local()

    def generate_trace_id(self) -> int:
        identity: tuple[int, int] | None = getattr(self.given, "identity", None)
        made: int = self._underneath.generate_trace_id() if identity is None else identity[0]
        return made

    def generate_span_id(self) -> int:
        identity: tuple[int, int] | None = getattr(self.given, "identity", None)
        made: int = self._underneath.generate_span_id() if identity is None else identity[1]
        return made

    def is_trace_id_random(self) -> bool:
        if getattr(self.given, "identity", None) is not None:
            return True  # a digest's bits are spread as evenly
        return bool(getattr(self._underneath, "is_trace_id_random", bool)())


def start(provider: trace.TracerProvider | None) -> None:
    """The client is instrumented, with this tracer provider."""
    _provider[:] = [provider]
    _made.clear()


def stop() -> None:
    """The client is not instrumented any more."""
    _provider.clear()


def tracer() -> trace.Tracer | None:
    """The tracer of results; None while the client is not instrumented."""
    return trace.get_tracer(SCOPE, tracer_provider=_provider[0]) if _provider else None


def flush(timeout_ms: int) -> bool | None:
    """Have what was made exported. Whether that went well, as far as the provider tells; None: it cannot be asked."""
    provider = (_provider[0] or trace.get_tracer_provider()) if _provider else None
    force = getattr(provider, "force_flush", None)
    return force(timeout_ms) is not False if callable(force) else None


def identity_of(key: str) -> tuple[int, int]:
    """Trace id and span id that ``key`` has in every process."""
    digest = hashlib.sha256(b"tollspan\0" + key.encode()).digest()
    return int.from_bytes(digest[:16], "big") or 1, int.from_bytes(digest[16:24], "big") or 1


def emit(
    key: str,
    name: str,
    attributes: Mapping[str, Any],
    fill: Callable[[Call], None],
    *,
    start_ns: int | None,
    end_ns: int | None = None,
    origin: Origin | None = None,
    tags: Mapping[str, Any] | None = None,
    repeat: bool = False,
) -> bool:
    """Make the span of ``key``, unless this process has.

    Args:
        key: what the provider calls the thing that it bills, unique among all that it ever made.
        name: span name.
        attributes: attributes of the span, without tags.
        fill: puts the usage in ``call.attributes``, as a reader does.
        start_ns: when the provider says that the work was asked for, ns since the epoch. None: it does not say, so that
            only this process' own repetitions are seen to be the same.
        end_ns: when it was done; None: at its start.
        origin: where it was asked for, when that is known.
        tags: tags in place of the current ones where the origin is not known.
        repeat: make it even if this process has; it is the same span.

    Returns:
        Whether a span was made.
    """
    tracing = tracer()
    if tracing is None:
        return False
    began = time.time_ns() if start_ns is None else start_ns
    # With a start that the provider tells, a repetition is the same without our remembering it.
    if not (repeat and start_ns is not None) and not _made.add(key, began):
        if not repeat:
            return False
        began = _made.get(key) or began
    given: Mapping[str, Any] = origin.tags if origin else current_tags(get_current()) if tags is None else tags
    links = [Link(origin.span)] if origin and origin.span and origin.span.is_valid else []
    span = _start(tracing, identity_of(key), name, {**attributes, **given}, links, began)
    if span.is_recording():
        # A call that nobody made: what readers put their findings in.
        call = Call(_POINT, "", span, Context(), None)
        fill(call)
        span.set_attributes(call.attributes)
    span.end(max(began, end_ns or began))
    return True


def record(
    tracing: trace.Tracer,
    name: str,
    attributes: Mapping[str, Any],
    fill: Callable[[Call], None],
    *,
    start_ns: int | None = None,
) -> Call:
    """Make a span with ordinary ids in the current trace, for a call that this process saw only the end of.

    Args:
        tracing: from `tracer`.
        name: span name.
        attributes: attributes of the span, without tags.
        fill: puts what is known in ``call.attributes``.
        start_ns: when it began, ns since the epoch; None: now.

    Returns:
        The call, which has ended.
    """
    context = get_current()
    span = tracing.start_span(
        name, context, SpanKind.CLIENT, attributes={**attributes, **current_tags(context)}, start_time=start_ns
    )
    call = Call(_POINT, "", span, Context(), None)
    if call.recording:
        fill(call)
    call.end()
    return call


def _start(
    tracing: Any, identity: tuple[int, int], name: str, attributes: Mapping[str, Any], links: Iterable[Link], began: int
) -> trace.Span:
    def start_span() -> trace.Span:
        span: trace.Span = tracing.start_span(
            name, Context(), SpanKind.CLIENT, attributes=attributes, links=links, start_time=began
        )
        return span

    # The SDK's tracers say where their ids come from; with any other the span has the ids that it gets.
    ids = getattr(tracing, "id_generator", None)
    if hasattr(ids, "generate_trace_id") and not isinstance(ids, _Derived):
        ids = tracing.id_generator = _Derived(ids)
    if not isinstance(ids, _Derived):
        return start_span()
    ids.given.identity = identity
    try:
        return start_span()
    finally:
        ids.given.identity = None


def after(
    patches: Patches, target: str, look: Callable[[Any, dict[str, Any], tuple[Any, ...], Any], None], asynchronous: bool
) -> None:
    """Look at what a function returned, without a span for it: ``look(instance, kwargs, args, result)``, guarded."""

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def seen(args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
            with _AFTER:
                if patches.active and not get_current().get(_SUPPRESS_INSTRUMENTATION_KEY):
                    look(args[0], kwargs, args[1:], result)

        if not asynchronous:

            @functools.wraps(original)
            def call_sync(*args: Any, **kwargs: Any) -> Any:
                result = original(*args, **kwargs)
                seen(args, kwargs, result)
                return result

            return call_sync

        async def run(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            result = await original(*args, **kwargs)
            seen(args, kwargs, result)
            return result

        if inspect.iscoroutinefunction(original):

            @functools.wraps(original)
            async def call_async(*args: Any, **kwargs: Any) -> Any:
                return await run(args, kwargs)

        else:

            @functools.wraps(original)
            def call_async(*args: Any, **kwargs: Any) -> Any:
                return run(args, kwargs)

        return call_async

    patches.add(target, make)


def instant(seconds: Any) -> int | None:
    """Seconds since the epoch, as the provider writes them → ns; None for what cannot be such a time."""
    if type(seconds) not in (int, float) or not 0 < seconds < 2**33:
        return None
    # The client makes floats of some whole numbers; both forms have to give the same instant.
    whole: int = int(seconds)
    rest: int = round((seconds - whole) * SECOND)
    return whole * SECOND + rest
