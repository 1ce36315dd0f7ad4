"""One engine for every wrapped call: it opens the span, makes it current, closes it, and changes nothing else.

In: `WrapPoint` tables. A library's module says which functions to wrap and how to read a request, a response and an
error; nothing in it opens or closes a span. Out: one span a call, on whatever tracer provider the user set. Synchronous
and asynchronous calls differ in five lines; a result that outlives its call (a stream) takes the open `Call` along
(`tollspan.instrumentation.streams`).

What the engine holds to:

- The user's call is never inside a guard. Its result and its exceptions pass as the very objects they are; only a
  stream is replaced, by a proxy that is an instance of the same class.
- A call inside a call of the same layer is part of it and gets no span, so one request carries its usage once.
- What a table reads is guarded, block by block: a fault leaves the span with less to say and the program alone.
- A span that is not recorded costs its start and its place in the context, and nothing is read for it.
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Generator, Mapping, MutableMapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from time import perf_counter, time_ns
from types import MappingProxyType
from typing import Any, ClassVar, Final, NamedTuple

from opentelemetry import context as context_api
from opentelemetry import trace

# The keys under which suppression travels have no public name; the SDK's own exporters take them from here too.
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, Context, set_value
from opentelemetry.context.contextvars_context import ContextVarsRuntimeContext as _DefaultRuntime

# The module switches type checking off for itself, so checkers find no names in it.
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation import _SPAN_KEY

from tollspan.instrumentation.guard import guard, report
from tollspan.instrumentation.later import plain
from tollspan.instrumentation.switches import content_modes
from tollspan.instrumentation.tags import BAGGAGE, current_tags
from tollspan.instrumentation.wrapping import Patches
from tollspan.pricing.attributes import ERROR_TYPE, HTTP_STATUS, RETRIES

_log: Final = logging.getLogger(__name__)

_SUPPRESS_PLAIN: Final = "suppress_instrumentation"
_LONGEST_DESCRIPTION: Final = 512
"""Characters of an exception's message kept as the span's status description."""

_CODE: Final = re.compile(r"[a-z][a-z0-9_.-]{0,63}", re.IGNORECASE)

_NO_CONTEXT: Final = Context()

_process = object()
"""Stands for this process; a fork's child has another."""
_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})

# The API's functions hand on to the runtime's, and those to a context variable: two calls less for each. Where the
# runtime is another one than by default, the API's own functions do.
_runtime: Final[Any] = getattr(context_api, "_RUNTIME_CONTEXT", None)
_current: Final[Any] = getattr(_runtime, "_current_context", None) if type(_runtime) is _DefaultRuntime else None
get_current: Final[Callable[[], Context]] = context_api.get_current if _current is None else _current.get
attach: Final[Callable[[Context], object]] = context_api.attach if _current is None else _current.set
_put: Final = dict.__setitem__
"""For a `Context` that nobody has seen yet: later nothing can change it."""

# Guards by hand where every call passes: a context manager is two calls more.
_OPEN: Final = "calls.open"
_RESPONSE: Final = "calls.response"
_FINISH: Final = "calls.finish"
_ATTRIBUTES: Final = "calls.attributes"
_END: Final = "calls.end"
_BEGAN: Final = guard("calls.began")
_DEPART: Final = guard("calls.depart")
_PREPARE: Final = guard("calls.prepare")
_ERROR: Final = guard("calls.error")


class Opening(NamedTuple):
    """What a span begins with.

    Attributes:
        name: span name, ``{operation} {model}``.
        attributes: attributes known before the call; a fresh dict, the engine adds to it. `LaterAttributes` where
            reading them is most of what a call costs that is not sampled.
        state: anything that the point wants to find again on `Call.state`.
    """

    name: str
    attributes: MutableMapping[str, Any]
    state: Any = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class WrapPoint:
    """One function of a library, and how to read its calls. All functions given here may raise: they are guarded.

    Attributes:
        target: ``"package.module:Class.method"``; see `Patches.add`.
        request: ``(args, kwargs) -> Opening``, before the call; ``args[0]`` is the instance of a method. None: this
            call is not to be traced.
        prepare: ``(call, kwargs)``, before a call whose span is recorded; the one hook that may change what is asked
            for, by changing ``kwargs``, where a user has switched that on. Whatever it changes it does last.
        response: ``(call, result)``, after a call that returned; puts what it reads in ``call.attributes``.
        error: ``(call, error)``, after a call or its stream raised; for what the library's errors tell in ways of its
            own.
        finish: ``(call)``, last, however the call ended; for what is measured rather than read.
        outlives: ``(call, result)``: for a result that goes on after the call (a stream). Returns what the user gets in
            its place, which then has to see to it that ``call.end()`` is called; None for an ordinary result.
        asked: ``(args, kwargs) -> mapping``, everything that is asked for, by the names that the provider gives it, for
            a call whose keyword arguments are not that already; called only where somebody wants the whole request.
        content: ``(args, asked) -> Transcript | None``, see `tollspan.instrumentation.content`; called only where
            somebody wants content.
        asynchronous: the function returns an awaitable. Said here because introspection is wrong about decorated
            functions (``AsyncCompletions.create`` does not look like a coroutine function).
        layer: calls of one layer that happen inside each other are one request; the outermost bears the usage.
        apart: ``(outer, kwargs)``, for a call inside ``outer``, an open call of its layer: whether it is a request of
            its own all the same, as each attempt of a library that calls itself is.
        kind: span kind.
        began: ``(call, args, kwargs)``, when the span has started and before `prepare`.
        wanted: whether a call is to be read although nobody will see its span.
        late: whether the span is to start where the request leaves (`Call.depart`) and not where the call begins.
        above: ``(context before the call) -> span``, of one that starts late: somebody's span of the same call that was
            opened without being made current. None: there is none.

    The last four are for what stands beside the spans (`tollspan.instrumentation.extras`), not for a library's table.
    """

    target: str
    request: Callable[[tuple[Any, ...], dict[str, Any]], Opening | None]
    prepare: Callable[[Call, dict[str, Any]], None] | None = None
    response: Callable[[Call, Any], None] | None = None
    error: Callable[[Call, BaseException], None] | None = None
    finish: Callable[[Call], None] | None = None
    outlives: Callable[[Call, Any], Any] | None = None
    asked: Callable[[tuple[Any, ...], dict[str, Any]], Mapping[str, Any]] | None = None
    content: Callable[[tuple[Any, ...], Mapping[str, Any]], Any] | None = None
    asynchronous: bool = False
    apart: Callable[[Call, dict[str, Any]], bool] | None = None
    layer: str = "gen_ai"
    kind: SpanKind = SpanKind.CLIENT
    began: Callable[[Call, tuple[Any, ...], dict[str, Any]], None] | None = None
    wanted: Callable[[], bool] | None = None
    late: Callable[[], bool] | None = None
    above: Callable[[Context], trace.Span | None] | None = None


class Late(NamedTuple):
    """A span that has yet to start."""

    tracer: trace.Tracer
    name: str
    attributes: dict[str, Any]
    started_ns: int


class Call:
    """A call whose span is open.

    Attributes:
        point: the table row that it came through.
        span: its span.
        attributes: attributes to set when it ends. Assign; counts that a provider repeats are not to be added.
        opened: attributes that its span began with. Not to be changed.
        state: what `Opening.state` was.
        started: `time.perf_counter` at the start, seconds.
        retries: HTTP attempts made again; None when the client does not tell.
        recording: False when nobody will see the span and nobody else wants to know; nothing is worth reading then.
        content: what was said, where the user has asked for it.
        gaps: seconds between the chunks of its stream, where somebody wants them.
        network: its HTTP requests (`tollspan.instrumentation.network_http`), where somebody counts their bytes.
        sent: a request is known to have gone out. False tells nothing by itself: few clients say when they send.
        ended: the span has ended.
    """

    __slots__ = (
        "_before",
        "_context",
        "_key",
        "_late",
        "_once",
        "_process",
        "attributes",
        "content",
        "ended",
        "gaps",
        "network",
        "opened",
        "point",
        "recording",
        "retries",
        "sent",
        "span",
        "started",
        "state",
    )

    def __init__(
        self, point: WrapPoint, key: str, span: trace.Span, before: Context, state: Any, late: Late | None = None
    ) -> None:
        self.point = point
        self.span = span
        self.attributes: dict[str, Any] = {}
        self.opened = _NOTHING
        self.state = state
        self.retries: int | None = None
        self.sent = False
        self.content: Any = None
        self.gaps: list[float] | None = None
        self.network: list[Any] | None = None
        self.recording = late is not None or span.is_recording() or (point.wanted is not None and point.wanted())
        self.ended = False
        self._late = late
        self._once = threading.Lock()
        self._process = _process
        self._key = key
        self._before = before
        # What `set_span_in_context` and `set_value` would do, in one copy: every call pays for it.
        self._context = inside = Context(before)
        if late is None:
            _put(inside, _SPAN_KEY, span)
        _put(inside, key, self)
        self.started = perf_counter()

    def enter(self) -> Context:
        """Make this call's span current; returns the context to give to `leave`."""
        before = get_current()
        attach(self._context)
        return before

    def leave(self, before: Context) -> None:
        """Put back the context that was current before `enter`.

        Sets it rather than resetting a token: a coroutine that is thrown away is finished wherever the garbage
        collector happens to run, where a token fails and where this call's context is not to be put anywhere.
        """
        current = get_current()
        if current is self._context or current.get(self._key) is self:
            attach(before)

    @property
    def departed(self) -> bool:
        """Its request has left, and its span has started."""
        return self._late is None

    def depart(self) -> None:
        """The request leaves: start the span, if that was put off until now.

        Somebody else's span that was opened inside this call becomes its parent, provided that both go the same way: it
        is then the sum of what is below it, and the call is billed once, here.
        """
        late, self._late = self._late, None
        if late is None:
            return
        with _DEPART:
            current = get_current()
            inside = current.get(self._key) is self
            point = self.point
            if inside and (current.get(_SUPPRESS_INSTRUMENTATION_KEY) or current.get(_SUPPRESS_PLAIN)):
                # By a peer that means to tell of the call alone. What `prepare` changed has to be undone all the same.
                self.recording = point.prepare is not None
                return
            above = point.above(self._before) if point.above is not None else None
            if inside and _same_way(late.tracer, trace.get_current_span(current)):
                parent = current
            else:
                parent = self._before
            if above is not None and trace.get_current_span(parent) is trace.get_current_span(self._before):
                parent = set_span_in_context(above, parent)
            self.span = late.tracer.start_span(
                late.name, parent, point.kind, late.attributes, start_time=late.started_ns
            )
            # What `prepare` changed has to be undone on what comes back, whoever sees the span.
            self.recording = (
                self.span.is_recording() or point.prepare is not None or (point.wanted is not None and point.wanted())
            )
            self._context = set_value(self._key, self, set_span_in_context(self.span, parent))
            if inside:
                # Whoever opened a span in between puts back what was there before it; `leave` does the same.
                attach(self._context)

    def forget(self) -> None:
        """There is to be no span of this call after all: for one whose span starts late, before it has."""
        self._late = None

    def returned(self, result: Any) -> Any:
        """The call returned: read the result, end the span, hand on what the user gets."""
        current = get_current()
        if current is self._context or current.get(self._key) is self:  # `leave`, without a call
            attach(self._before)
        if self._late is not None:
            self.depart()
        if self.recording:
            try:
                point = self.point
                if point.outlives is not None:
                    substitute = point.outlives(self, result)
                    if substitute is not None:
                        return substitute
                if point.response is not None:
                    point.response(self, result)
            except Exception as error:  # noqa: BLE001
                report(_RESPONSE, error)
        self.end()
        return result

    def raised(self, error: BaseException) -> None:
        """The call raised: note the error, end the span. The exception is only looked at."""
        self.leave(self._before)
        if self._late is not None:
            self.depart()
        self.note_error(error)
        self.end()

    def note_error(self, error: BaseException) -> None:
        """Put an exception's type and HTTP status on the span and set its status to ERROR."""
        if not self.recording:
            return
        with _ERROR:
            kind = type(error)
            name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
            self.attributes[ERROR_TYPE] = name
            status = getattr(error, "status_code", None)
            if status is None and isinstance(error, Exception):
                status = getattr(error, "code", None)  # google-genai; elsewhere a code may be anything
                if type(status) is int and not 400 <= status <= 599:
                    status = None
            if type(status) is int:
                self.attributes[HTTP_STATUS] = status
            if self.point.error is not None:
                self.point.error(self, error)
            self.note_failure(name, str(error), getattr(error, "code", None))

    def note_failure(self, kind: str, description: str | None = None, code: object = None) -> None:
        """Set the span's status to ERROR with ``error.type`` = ``kind``, for a failure that no exception tells of.

        What a model's client or server says of an error repeats prompts, answers and keys: it becomes the status'
        description only where the user has asked for content. Else that is the provider's ``code``, if it is a name.
        """
        self.attributes[ERROR_TYPE] = kind
        if self.point.layer == "gen_ai" and "span" not in content_modes():
            description = code if isinstance(code, str) and _CODE.fullmatch(code) else None
        short = description[:_LONGEST_DESCRIPTION] if description else None
        self.span.set_status(Status(StatusCode.ERROR, short))

    def end(self) -> None:
        """End the span with what is known. Only the first time counts, whichever thread it comes from."""
        if not self._once.acquire(False):
            return
        self.ended = True
        if self._process is not _process:
            return  # a fork's copy: the parent ends its own span, and a second one would stand beside it
        if self._late is not None:
            self.depart()
        if self.recording:
            finish = self.point.finish
            if finish is not None:
                try:
                    finish(self)
                except Exception as error:  # noqa: BLE001
                    report(_FINISH, error)
            try:
                if self.retries is not None:
                    self.attributes[RETRIES] = self.retries
                if self.attributes:
                    self.span.set_attributes(self.attributes)
            except Exception as error:  # noqa: BLE001
                report(_ATTRIBUTES, error)
        try:
            self.span.end()
        except Exception as error:  # noqa: BLE001
            report(_END, error)
        # The context holds this call: let go of it, so that nothing is left to the garbage collector.
        self._context = self._before = _NO_CONTEXT


def _forked() -> None:
    global _process
    _process = object()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def open_call(layer: str = "gen_ai") -> Call | None:
    """The call of ``layer`` that the current context is inside of, if any."""
    call = get_current().get(_GEN_AI if layer == "gen_ai" else _key(layer))
    return call if isinstance(call, Call) and not call.ended else None


def wrap(point: WrapPoint, tracer: trace.Tracer, patches: Patches, original: Callable[..., Any]) -> Callable[..., Any]:
    """The function that stands in for ``original`` while ``patches`` is active."""
    begin = functools.partial(_begin, point, _key(point.layer), tracer)

    if not point.asynchronous:

        @functools.wraps(original)
        def call_sync(*args: Any, **kwargs: Any) -> Any:
            call = begin(args, kwargs) if patches.active else None
            if call is None:
                return original(*args, **kwargs)
            try:
                result = original(*args, **kwargs)
            except BaseException as error:
                call.raised(error)
                raise
            return call.returned(result)

        return _generating(original, call_sync)

    async def run(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = begin(args, kwargs) if patches.active else None
        if call is None:
            return await original(*args, **kwargs)
        try:
            result = await original(*args, **kwargs)
        except BaseException as error:
            call.raised(error)
            raise
        return call.returned(result)

    return awaited(original, run)


def awaited(original: Callable[..., Any], run: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
    """A function that does ``run(args, kwargs)`` and looks to introspection exactly as ``original`` does.

    What returns an awaitable need not look like a coroutine function.
    """
    if inspect.iscoroutinefunction(original):

        @functools.wraps(original)
        async def call_async(*args: Any, **kwargs: Any) -> Any:
            return await run(args, kwargs)

    else:

        @functools.wraps(original)
        def call_async(*args: Any, **kwargs: Any) -> Any:
            return run(args, kwargs)

    return call_async


def _generating(original: Callable[..., Any], call: Callable[..., Any]) -> Callable[..., Any]:
    """``call``, which stands in for ``original``, as a generator function if that is one.

    Nothing of a generator runs before its first value is asked for, and so there is no call before that.
    """
    if inspect.isgeneratorfunction(original):

        @functools.wraps(original)
        def generate(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
            return (yield from call(*args, **kwargs))

        return generate
    if inspect.isasyncgenfunction(original):

        @functools.wraps(original)
        async def generate_async(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            values = call(*args, **kwargs)
            coming = values.__anext__()
            while True:
                try:
                    value = await coming
                except StopAsyncIteration:
                    return
                try:
                    sent = yield value
                except GeneratorExit:
                    await values.aclose()
                    raise
                except BaseException as error:  # noqa: BLE001 (it is thrown on)
                    coming = values.athrow(error)
                else:
                    coming = values.__anext__() if sent is None else values.asend(sent)

        return generate_async
    return call


def _key(layer: str) -> str:
    return "tollspan.call." + layer


_GEN_AI: Final = _key("gen_ai")
"""Asked for on the way of every request."""

DATA_KEY: Final = _key("data")
"""Key in the context of the open call of a data store."""
CALL_KEYS: Final = (_GEN_AI, DATA_KEY)
"""Keys in the context of the open calls that have requests of their own."""


def _same_way(tracer: trace.Tracer, span: trace.Span) -> bool:
    """Whether a span is exported where the tracer's spans are. Not public, so what cannot be told is not so."""
    # A tracer taken before the program set its provider stands for one that came later.
    tracer = getattr(tracer, "_real_tracer", None) or tracer
    theirs = getattr(span, "_span_processor", None)
    return theirs is not None and theirs is getattr(tracer, "span_processor", None)


def _begin(
    point: WrapPoint, key: str, tracer: trace.Tracer, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Call | None:
    """Start the span of a call and make it current. None: the call is to be made as if we were not there."""
    try:
        context = get_current()
        if context.get(_SUPPRESS_INSTRUMENTATION_KEY) or context.get(_SUPPRESS_PLAIN):
            return None
        outer = context.get(key)
        # A context outlives its call where a task or thread was started inside; only an open call is an outer one.
        inside = outer is not None and not outer.ended  # type: ignore[attr-defined]
        if inside and (point.apart is None or not point.apart(outer, kwargs)):  # type: ignore[arg-type]
            return None
        opening = point.request(args, kwargs)
        if opening is None:
            return None
        name, attributes, state = opening
        # Most calls of most programs have no baggage.
        if (BAGGAGE is None or BAGGAGE in context) and (tags := current_tags(context)):
            attributes.update(tags)
        if point.late is not None and point.late():
            late = Late(tracer, name, plain(attributes), time_ns())
            call = Call(point, key, trace.INVALID_SPAN, context, state, late)
        else:
            call = Call(point, key, tracer.start_span(name, context, point.kind, attributes), context, state)
        if call.recording:
            call.opened = plain(attributes)
        if point.began is not None and call.recording:
            with _BEGAN:
                point.began(call, args, kwargs)
        if point.prepare is not None and call.recording:
            with _PREPARE:
                point.prepare(call, kwargs)
        attach(call._context)
        return call
    except Exception as error:  # noqa: BLE001
        report(_OPEN, error)
        return None


def begin(point: WrapPoint, tracer: trace.Tracer, *args: Any) -> Call | None:
    """Start the span of a block of the program's own and make it current, as a call of a wrapped function would.

    Whoever calls this calls `Call.returned` or `Call.raised` when the block ends. None: the block has no span.
    """
    return _begin(point, _key(point.layer), tracer, args, {})


class CallInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Instrumentor of one library: a table of wrap points under a scope name.

    ``instrument(tracer_provider=..., meter_provider=..., logger_provider=...)`` patches the library when the program
    imports it; each provider is the global one when none is given. ``uninstrument()`` puts the original objects back.

    Attributes:
        scope: instrumentation scope of the spans, the module's name.
        requires: versions of the library that are instrumented, as requirement strings.
        points: the wrap points.
        after: module that has to be imported as a whole before anything is patched, for a library whose modules take
            each other's functions while it is imported. None: each module by itself.
    """

    scope: ClassVar[str]
    requires: ClassVar[tuple[str, ...]]
    points: ClassVar[tuple[WrapPoint, ...]]
    after: ClassVar[str | None] = None

    _patches: Patches | None = None

    def instrumentation_dependencies(self) -> Collection[str]:
        return self.requires

    def patch(self, patches: Patches) -> None:
        """Add patches of other shapes than a call, where a library needs them."""

    def _instrument(self, **kwargs: Any) -> None:
        # The launcher skips this check, expecting it in the distribution's metadata, which one distribution for many
        # libraries cannot give.
        conflict = self._check_dependency_conflicts()
        if conflict is not None and conflict.found is not None:
            _log.warning("not instrumented: %s", conflict)
            return
        # Imported here: they stand on this module.
        from tollspan.instrumentation import extras

        tracer = trace.get_tracer(self.scope, _version(), kwargs.get("tracer_provider"))
        self._patches = patches = Patches()
        for point in extras.extended(self.points, self.scope, _version(), patches, kwargs):
            patches.add(point.target, functools.partial(wrap, point, tracer, patches), after=self.after)
        self.patch(patches)

    def _uninstrument(self, **kwargs: Any) -> None:
        if self._patches is not None:
            self._patches.remove()
            self._patches = None


@functools.cache
def _version() -> str | None:
    try:
        return version("tollspan")
    except PackageNotFoundError:
        return None
