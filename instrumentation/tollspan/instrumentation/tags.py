"""Tags: who an inference is for.

In: ``with tag(tenant="acme", feature="search"): ...`` round any piece of the user's program. Out: the span attributes
of `tollspan.pricing.attributes.TAGS` on every span inside. On the way tags are W3C baggage in the OpenTelemetry
context, so they go where baggage goes: into asyncio tasks by themselves, into threads and pools with the threading
instrumentation (which `TagsInstrumentor` switches on), and into other processes with the ``baggage`` propagator (on by
default). Who may set baggage on a request from outside may set tags; strip it at the edge where that matters.

Our own instrumentations read the tags themselves when a span starts, so nothing depends on the span processor;
`TagsInstrumentor` installs one so that everybody else's spans carry them too.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import AsyncGenerator, Callable, Collection, Generator, Mapping
from types import MappingProxyType, TracebackType
from typing import Any, ClassVar, Final, TypeVar, cast

from opentelemetry import baggage, trace
from opentelemetry.context import Context, attach, get_current, set_value

# The module switches type checking off for itself, so checkers find no names in it.
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]
from opentelemetry.instrumentation.threading import ThreadingInstrumentor
from opentelemetry.sdk.trace import Span, SpanProcessor

from tollspan.instrumentation.guard import guard
from tollspan.pricing.attributes import AGENT, AGENT_NAME, HTTP_ROUTE, ROUTE, TAGS

_F = TypeVar("_F", bound=Callable[..., Any])

_KEYS: Final = tuple(TAGS.values())
_HANDED_DOWN: Final = ((AGENT, AGENT_NAME), (ROUTE, HTTP_ROUTE))
"""Tags that spans of agents and servers have by the conventions' names, and that the spans inside them take over."""
BAGGAGE: Final[str | None] = getattr(baggage, "_BAGGAGE_KEY", None)
"""Where baggage stands in a context. Not public: without it, baggage is asked."""
_NONE: Final[Mapping[str, str]] = MappingProxyType({})
_FRAME: Final = "tollspan.tags.frame"
_STAMP: Final = guard("tags.stamp")
_INSTRUMENT: Final = guard("tags.instrument")


def current_tags(context: Context | None = None) -> Mapping[str, str]:
    """Tags in effect, as span attributes: attribute name → value. Only tags that are set and not empty.

    Args:
        context: where to look; None = the current context.
    """
    if context is not None and BAGGAGE is not None and BAGGAGE not in context:
        return _NONE
    entries = baggage.get_all(context)
    if not entries:
        return _NONE
    # Baggage of others may hold anything; an attribute of ours is a string.
    return {key: value for key in _KEYS if isinstance(value := entries.get(key), str) and value}


class tag:
    """Puts tags on every span inside: ``with tag(tenant="acme"): ...``, or ``@tag(feature="search")`` on a function.

    Nested tags merge, the inner one wins; an empty string takes a tag away for the inside. Blanks round a value are
    dropped. As a decorator it serves
    functions, coroutine functions, generators and asynchronous generators (there each step runs with the tags, and the
    code between the steps does not). One instance may be entered many times, from many threads and tasks.

    Args:
        tags: any of ``tenant``, ``team``, ``feature``, ``workflow``, ``variant``, ``agent``, ``route``.

    Raises:
        TypeError: an unknown tag, or a value that is not a string.
    """

    __slots__ = ("_entries",)

    def __init__(self, **tags: str) -> None:
        for name, value in tags.items():
            if name not in TAGS:
                raise TypeError(f"unknown tag {name!r}; valid tags are {', '.join(TAGS)}")
            if not isinstance(value, str):
                raise TypeError(f"tag {name!r} must be a str, not {type(value).__name__}")
        # Blanks at the ends do not survive a baggage header, and a tag has to be the same in every process.
        self._entries = {TAGS[name]: value.strip() for name, value in tags.items()}

    def __enter__(self) -> tag:
        before = get_current()
        context = before
        for key, value in self._entries.items():
            context = baggage.set_baggage(key, value, context)
        frame = _Frame(self, before)
        frame.context = set_value(_FRAME, frame, context)
        attach(frame.context)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Everything that has to be known to leave lives in the context itself, and leaving sets the context instead of
        # resetting a token: a token fails when a generator or task is finished from a context other than the one it
        # began in, and that must neither log errors nor leave tags behind in the wrong place.
        current = get_current()
        frame = top = cast("_Frame | None", current.get(_FRAME))
        while frame is not None and (frame.owner is not self or frame.left):
            frame = frame.below
        if frame is None:
            return  # closed from a context that these tags were never in
        frame.left = True
        if current is frame.context:
            attach(frame.before)
        else:
            attach(self._taken_out(current, frame, top))

    def _taken_out(self, current: Context, frame: _Frame, top: _Frame | None) -> Context:
        """``current`` without this tag, when something that was entered later has not been left yet."""
        later: set[str] = set()
        above = top
        while above is not None and above is not frame:
            if not above.left:
                later.update(above.owner._entries)
            above = above.below
        for key in self._entries:
            if key in later:
                continue
            value = frame.underneath(key)
            current = (
                baggage.remove_baggage(key, current) if value is None else baggage.set_baggage(key, value, current)
            )
        # Frames that were left are let go of: a context must not collect them for as long as its thread lives.
        while top is not None and top.left:
            top = top.below
        return set_value(_FRAME, top, current)

    def __call__(self, function: _F) -> _F:
        wrapper: Callable[..., Any]
        if inspect.iscoroutinefunction(function):

            async def wrapper(*args: Any, **kwargs: Any) -> Any:
                with self:
                    return await function(*args, **kwargs)

        elif inspect.isasyncgenfunction(function):

            async def wrapper(*args: Any, **kwargs: Any) -> Any:
                async with _closing(self, function(*args, **kwargs)) as steps:
                    reply = await steps.step()
                    while not steps.done:
                        try:
                            sent = yield reply
                        except GeneratorExit:
                            raise
                        except BaseException as error:  # noqa: BLE001 (thrown in by the consumer, handed on)
                            reply = await steps.step(error=error)
                        else:
                            reply = await steps.step(sent)

        elif inspect.isgeneratorfunction(function):

            def wrapper(*args: Any, **kwargs: Any) -> Any:
                return (yield from _Steps(self, function(*args, **kwargs)))

        else:

            def wrapper(*args: Any, **kwargs: Any) -> Any:
                with self:
                    return function(*args, **kwargs)

        return cast("_F", functools.wraps(function)(wrapper))


class _Frame:
    """One entered `tag`: kept in the context that it made."""

    __slots__ = ("before", "below", "context", "left", "owner")

    def __init__(self, owner: tag, before: Context) -> None:
        self.owner = owner
        self.before = before
        self.below = cast("_Frame | None", before.get(_FRAME))
        self.context = before
        self.left = False

    def underneath(self, key: str) -> object | None:
        """Value of ``key`` without this tag, and without those below it that have been left since."""
        before = self.before
        frame = self.below
        while frame is not None:
            if key in frame.owner._entries:
                if not frame.left:
                    return frame.owner._entries[key]
                before = frame.before
            frame = frame.below
        return baggage.get_baggage(key, before)


class _Steps(Generator[Any, Any, Any]):
    """A generator whose every step runs inside a tag."""

    __slots__ = ("_inner", "_tag")

    def __init__(self, owner: tag, inner: Generator[Any, Any, Any]) -> None:
        self._tag = owner
        self._inner = inner

    def send(self, value: Any) -> Any:
        with self._tag:
            return self._inner.send(value)

    def throw(self, *error: Any) -> Any:
        with self._tag:
            return self._inner.throw(*error)

    def close(self) -> None:
        with self._tag:
            self._inner.close()


class _closing:
    """An asynchronous generator whose every step runs inside a tag, closed on leaving."""

    __slots__ = ("_inner", "_tag", "done")

    def __init__(self, owner: tag, inner: AsyncGenerator[Any, Any]) -> None:
        self._tag = owner
        self._inner = inner
        self.done = False

    async def __aenter__(self) -> _closing:
        return self

    async def __aexit__(self, *_: object) -> None:
        if not self.done:
            with self._tag:
                await self._inner.aclose()

    async def step(self, value: Any = None, error: BaseException | None = None) -> Any:
        with self._tag:
            try:
                return await (self._inner.asend(value) if error is None else self._inner.athrow(error))
            except StopAsyncIteration:
                self.done = True
                return None


class TagSpanProcessor(SpanProcessor):
    """Stamps the tags of the parent context on every span that starts; an attribute that is already there stays.

    Where no tag says it, agent and route are those of the parent span, if it is of this process and the SDK's.
    """

    def __init__(self) -> None:
        self.active = True

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        if not self.active:
            return
        with _STAMP:
            tags = current_tags(parent_context)
            parent = trace.get_current_span(parent_context)
            above = (parent.attributes or _NONE) if isinstance(parent, Span) else _NONE
            if not tags and not above:
                return
            present = span.attributes or _NONE
            missing = {key: value for key, value in tags.items() if key not in present}
            for key, convention in _HANDED_DOWN:
                # What a span says by the convention's name is nearer than what its parent took over.
                value = above.get(convention) or above.get(key)
                if value and key not in tags and key not in present and convention not in present:
                    missing[key] = str(value)
            if missing:
                span.set_attributes(missing)


class TagsInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Tags on everybody's spans, and across threads.

    ``instrument(tracer_provider=...)`` adds a `TagSpanProcessor` to the given or the global tracer provider, which has
    to be set before. The SDK cannot remove a processor, so ``uninstrument()`` silences it.
    """

    _processors: ClassVar[weakref.WeakKeyDictionary[Any, TagSpanProcessor]] = weakref.WeakKeyDictionary()
    _switched_threads_on = False
    _launched = False

    def instrumentation_dependencies(self) -> Collection[str]:
        return ()

    def instrument(self, **kwargs: Any) -> None:
        # The launcher checks dependencies itself and says so. It also loads the threading instrumentation by that
        # one's own entry point (unless the user disabled it), and would warn if it found it switched on already.
        self._launched = bool(kwargs.get("skip_dep_check"))
        super().instrument(**kwargs)

    def _instrument(self, **kwargs: Any) -> None:
        with _INSTRUMENT:
            threads = ThreadingInstrumentor()
            if not self._launched and not threads.is_instrumented_by_opentelemetry:
                threads.instrument()
                self._switched_threads_on = True
            provider = kwargs.get("tracer_provider") or trace.get_tracer_provider()
            processor = self._processors.get(provider)
            if processor is not None:
                processor.active = True
            elif hasattr(provider, "add_span_processor"):
                processor = self._processors[provider] = TagSpanProcessor()
                provider.add_span_processor(processor)

    def _uninstrument(self, **kwargs: Any) -> None:
        with _INSTRUMENT:
            for processor in self._processors.values():
                processor.active = False
            if self._switched_threads_on:
                ThreadingInstrumentor().uninstrument()
                self._switched_threads_on = False
