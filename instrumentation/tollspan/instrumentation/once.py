"""Spans of what is billed once and may be seen many times: derived identity.

A background response, a video, a run and the results of a batch are fetched by whoever polls: often several times, and
often by another process than the one that asked. What a fetch tells of usage goes on a span whose trace id, span id and
start are derived from the provider's own id and time of creation. However many processes see it, they all make the same
span, and the ledger keeps one row for it. In this process it is made once, unless it may be repeated.

Such a span is a trace of its own, linked to the call that asked for the work where this process made it, and bears that
call's tags. Results of batches come by the thousand and may be lost on the way to the collector: fetching them again
makes their spans again, so that nothing is lost for good. In: an id of the provider's, and what to say. Out: a span
that has ended.

Costs and client metrics are theirs as much as any call's (`extras`), with two differences: a span that is made again
counts once in this process' metrics, which cannot know of other processes; and there is no duration, because that of a
fetch is not the work's, and the time from asking to being done is the provider's queue.
"""

from __future__ import annotations

import functools
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from opentelemetry import trace
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, Context, get_current
from opentelemetry.trace import Link, SpanKind

from tollspan.instrumentation import extras, network_sockets
from tollspan.instrumentation.calls import _SUPPRESS_PLAIN, Call, CallInstrumentor, WrapPoint, awaited
from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.tags import current_tags
from tollspan.instrumentation.wrapping import Patches

SECOND: Final = 1_000_000_000
DAY: Final = 86_400 * SECOND
NAMESPACE: Final = "tollspan"
_REMEMBERED: Final = 65_536
_POINT: Final = WrapPoint(target="once:", request=lambda args, kwargs: None)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_EXTRAS: Final = guard("once.extras")
_FILL: Final = guard("once.fill")
_given: Final = threading.local()
"""``identity``: the ids of the span that this thread starts now."""

Fill = Callable[[Call], None]
"""Puts what is known in ``call.attributes``, as a reader does."""
Look = Callable[[Any, dict[str, Any], tuple[Any, ...], Any], None]
"""``(instance, kwargs, args, result)`` of a function that returned."""


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


def here(told: Any = None, span: trace.Span | None = None) -> Origin:
    """The origin of work that is asked for now, by ``span`` or by the current one."""
    context = get_current()
    asking = trace.get_current_span(context) if span is None else span
    return Origin(asking.get_span_context(), dict(current_tags(context)), told)


class Remembered:
    """The last so many ids and what is known of each. Safe in threads."""

    def __init__(self, most: int = _REMEMBERED) -> None:
        self._most = most
        self._free()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._free)
        self._known: dict[str, Any] = {}

    def _free(self) -> None:
        # One that the same thread can take twice: a stream that the garbage collector closes may be billed by that.
        self._lock = threading.RLock()

    def add(self, key: str, value: Any = None) -> bool:
        """Remember ``key``; False when it is known already, and then keeps what is known."""
        with self._lock:
            if key in self._known:
                return False
            if len(self._known) >= self._most:
                del self._known[next(iter(self._known))]
            self._known[key] = value
            return True

    def get(self, key: Any) -> Any:
        if not isinstance(key, str):
            return None
        with self._lock:
            return self._known.get(key)

    def clear(self) -> None:
        with self._lock:
            self._known.clear()


class _Derived:
    """An ``IdGenerator`` of the SDK (which need not be there): ids as given for one span by this thread, otherwise
    those of the generator underneath."""

    def __init__(self, underneath: Any) -> None:
        self._underneath = underneath

    def generate_trace_id(self) -> int:
        identity: tuple[int, int] | None = getattr(_given, "identity", None)
        made: int = self._underneath.generate_trace_id() if identity is None else identity[0]
        return made

    def generate_span_id(self) -> int:
        identity: tuple[int, int] | None = getattr(_given, "identity", None)
        made: int = self._underneath.generate_span_id() if identity is None else identity[1]
        return made

    def is_trace_id_random(self) -> bool:
        if getattr(_given, "identity", None) is not None:
            return True  # a digest's bits are spread as evenly
        return bool(getattr(self._underneath, "is_trace_id_random", bool)())


class Once:
    """The derived spans of one library.

    Args:
        library: last part of the instrumentation's scope.

    Attributes:
        scope: instrumentation scope of the spans.
        asked: provider's id of the work → `Origin`.
    """

    def __init__(self, library: str) -> None:
        self.scope = f"tollspan.instrumentation.{library}"
        self.asked = Remembered()
        self._made = Remembered()  # identity's key → the span's start, ns since the epoch
        self._provider: list[trace.TracerProvider | None] = []  # while instrumented; None in it is the global one
        self._tracer: tuple[trace.TracerProvider, trace.Tracer] | None = None
        self._after = guard(f"{library}.after")

    def start(self, provider: trace.TracerProvider | None) -> None:
        """The library is instrumented, with this tracer provider."""
        self._provider[:] = [provider]
        self._made.clear()

    def stop(self) -> None:
        """The library is not instrumented any more."""
        self._provider.clear()
        self._tracer = None

    def forget(self) -> None:
        """Know nothing of what was asked for and made, as another process would."""
        self.asked.clear()
        self._made.clear()

    def tracer(self) -> trace.Tracer | None:
        """The tracer of results; None while the library is not instrumented."""
        provider = self._used()
        if provider is None:
            return None
        kept = self._tracer
        if kept is None or kept[0] is not provider:
            # Asked for once: the SDK changes the program's filters of warnings whenever it is asked, and a warning that
            # was shown is shown again. Without a version: tracers are shared by all that describes them, and this one
            # has ids of its own.
            kept = self._tracer = (provider, provider.get_tracer(self.scope))
        return kept[1]

    def _used(self) -> trace.TracerProvider | None:
        """Where spans go; None while the library is not instrumented."""
        return (self._provider[0] or trace.get_tracer_provider()) if self._provider else None

    def flush(self, timeout_ms: int) -> bool | None:
        """Have what was made exported. Whether that went well, as far as the provider tells; None: it cannot be
        asked."""
        force = getattr(self._used(), "force_flush", None)
        return force(timeout_ms) is not False if callable(force) else None

    def emit(
        self,
        key: str,
        name: str,
        attributes: Mapping[str, Any],
        fill: Fill,
        *,
        start_ns: int | None,
        end_ns: int | None = None,
        origin: Origin | None = None,
        tags: Mapping[str, Any] | None = None,
        reader: trace.SpanContext | None = None,
        repeat: bool = False,
        namespace: str = NAMESPACE,
    ) -> bool:
        """Make the span of ``key``, unless this process has.

        Args:
            key: what the provider calls the thing that it bills, unique among all that it ever made.
            name: span name.
            attributes: attributes of the span, without tags.
            fill: puts the usage in ``call.attributes``.
            start_ns: when the provider says that the work was asked for, ns since the epoch. None: it does not say, and
                the day's beginning (UTC) stands for it, so that processes that see it on one day make the same span.
            end_ns: when it was done; None: at its start.
            origin: where it was asked for, when that is known. One without a span is none of this process.
            tags: tags in place of the current ones where the origin is not known.
            reader: span of the call that fetched it, which is linked as the origin is.
            repeat: make it even if this process has; it is the same span.
            namespace: whose id the key is, where more than one provider may have given it.

        Returns:
            Whether a span was made.
        """
        tracing = self.tracer()
        if tracing is None:
            return False
        known = f"{namespace}\0{key}"
        began = time.time_ns() // DAY * DAY if start_ns is None else start_ns
        first = self._made.add(known, began)
        if not first:
            if not repeat:
                return False
            if start_ns is None:
                began = self._made.get(known) or began
        asker = origin.span if origin is not None else None
        given = origin.tags if origin is not None and asker is not None else tags
        links = [Link(span) for span in (reader, asker) if span is not None and span.is_valid]
        opened = {**attributes, **(current_tags(get_current()) if given is None else given)}
        span = _start(tracing, identity_of(key, namespace), name, opened, links, began)
        self._filled(span, opened, fill, first)
        span.end(max(began, end_ns or began))
        return True

    def record(
        self,
        name: str,
        attributes: Mapping[str, Any],
        fill: Fill,
        *,
        start_ns: int | None = None,
        socket: Any = None,
    ) -> Call | None:
        """Make a span with ordinary ids in the current trace, for a call that this process saw only the end of.

        Args:
            name: span name.
            attributes: attributes of the span, without tags.
            fill: puts what is known in ``call.attributes``.
            start_ns: when it began, ns since the epoch; None: now, and how long it took is not known.
            socket: connection of the websockets library whose bytes it tells, see `network_sockets`.

        Returns:
            The call, which has ended; None while the library is not instrumented.
        """
        tracing = self.tracer()
        if tracing is None:
            return None
        context = get_current()
        opened = {**attributes, **current_tags(context)}
        span = tracing.start_span(name, context, SpanKind.CLIENT, attributes=opened, start_time=start_ns)
        seconds = None if start_ns is None else max(0.0, (time.time_ns() - start_ns) / SECOND)
        call = self._filled(span, opened, fill, True, seconds, socket)
        span.end()
        return call

    def after(self, patches: Patches, target: str, look: Look, asynchronous: bool) -> None:
        """Look at what a function returned, without a span for it: ``look(instance, kwargs, args, result)``,
        guarded."""
        patches.add(target, functools.partial(_looking, patches, look, asynchronous, self._after))

    def _filled(
        self,
        span: trace.Span,
        opened: dict[str, Any],
        fill: Fill,
        counts: bool,
        seconds: float | None = None,
        socket: Any = None,
    ) -> Call:
        """Put on a span what is known, and count it."""
        beside = extras.of(self.scope)
        metrics = beside.metrics if counts and beside.metrics is not None and beside.metrics.active() else None
        # A call that nobody made: what readers put their findings in.
        call = Call(_POINT, "", span, Context(), None)
        call._context = call._before  # nobody is to be inside of it, and its own would hold it until it is collected
        call.opened = opened
        if not call.recording and metrics is None:
            return call
        with _FILL:
            fill(call)
        with _EXTRAS:
            if beside.cost is not None:
                beside.cost.began(call, (), {})
                beside.cost.finish(call)
            if beside.capture is not None:
                beside.capture.finish(call)
            if socket is not None and beside.network is not None:
                beside.network.began(call, (), {})
                network_sockets.tell(call, socket)
                beside.network.finish(call)
        span.set_attributes(call.attributes)
        with _EXTRAS:
            if metrics is not None:
                metrics.record({**opened, **call.attributes}, seconds)
        return call


@functools.cache
def of(library: str) -> Once:
    """The one `Once` of a library, by the last part of its instrumentation's scope."""
    return Once(library)


class OnceInstrumentor(CallInstrumentor):
    """Instrumentor of a library that has derived spans; its `Once` is that of its scope's last part."""

    def _instrument(self, **kwargs: Any) -> None:
        of(self.scope.rpartition(".")[2]).start(kwargs.get("tracer_provider"))
        super()._instrument(**kwargs)

    def _uninstrument(self, **kwargs: Any) -> None:
        super()._uninstrument(**kwargs)
        of(self.scope.rpartition(".")[2]).stop()


def identity_of(key: str, namespace: str = NAMESPACE) -> tuple[int, int]:
    """Trace id and span id that ``key`` has in every process."""
    digest = hashlib.sha256(f"{namespace}\0{key}".encode()).digest()
    return int.from_bytes(digest[:16], "big") or 1, int.from_bytes(digest[16:24], "big") or 1


def suppressed() -> bool:
    """Whether somebody wants nothing to be seen of what is done now."""
    context = get_current()
    return bool(context.get(_SUPPRESS_INSTRUMENTATION_KEY) or context.get(_SUPPRESS_PLAIN))


def instant(when: Any) -> int | None:
    """A time as a provider gives it → ns since the epoch; None for what cannot be such a time.

    Args:
        when: seconds since the epoch, a `datetime` with a zone, or its text (RFC 3339).
    """
    if isinstance(when, str):
        return _written(when)
    if isinstance(when, datetime):
        return None if when.tzinfo is None else (when - _EPOCH) // timedelta(microseconds=1) * 1000
    if type(when) not in (int, float) or not 0 < when < 2**33:
        return None
    # A client makes floats of some whole numbers; both forms have to give the same instant.
    whole: int = int(when)
    rest: int = round((when - whole) * SECOND)
    return whole * SECOND + rest


def _written(text: str) -> int | None:
    # Nanoseconds are cut to what a datetime holds, so that a client that parses the time gives the same instant.
    head, dot, tail = text.partition(".")
    digits = len(tail) - len(tail.lstrip("0123456789"))
    try:
        return instant(datetime.fromisoformat(f"{head}{dot}{tail[: min(digits, 6)]}{tail[digits:]}"))
    except ValueError:
        return None


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
        tracing.id_generator = _Derived(ids)
    _given.identity = identity
    try:
        return start_span()
    finally:
        _given.identity = None


def _looking(
    patches: Patches, look: Look, asynchronous: bool, fence: guard, original: Callable[..., Any]
) -> Callable[..., Any]:
    def seen(args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        with fence:
            if patches.active and not suppressed():
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

    return awaited(original, run)
