"""A span that is made when somebody looks at it, or else after the call that it tells of.

In: a call in flight, with what its span will say. Out: the very span that the tracer would have made at once, with the
call's own times. Where it stands: in place of `torch_execution.Execution` for calls that are too short to carry a span
of the SDK, which costs fifteen microseconds in a loop of its own and five times as much in the midst of a model's work.

* Only where nobody can tell: all the provider's span processors are the SDK's own `BatchSpanProcessor`, which hands
  spans on in its own time anyway, or ours. With any other the span is made at once (`Batched`).
* Inside the call a `LaterSpan` is the current span. Whatever is asked of it, the ids before all, makes the span: what
  runs inside has it for a parent, and what it is told is on it.
* A thread (a `Resolver` that asks no device) makes and ends the spans, in batches; the provider's flush and shutdown
  wait for it. Where too many wait the calls that come next do it: a span is late, but never lost.
* A forked child forgets those of its parent, which ends them itself.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Mapping
from time import time_ns
from typing import Any, Final

from opentelemetry.context import Context
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import INVALID_SPAN, Span, SpanContext, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation import _SPAN_KEY

from tollspan.instrumentation.calls import attach, get_current
from tollspan.instrumentation.cpu_clock import CPU
from tollspan.instrumentation.guard import guard, report
from tollspan.instrumentation.tags import current_tags
from tollspan.instrumentation.torch_execution import LONGEST_DESCRIPTION, error_type
from tollspan.instrumentation.torch_resolver import Drain, Resolver
from tollspan.pricing import attributes

INTERVAL: Final = 0.1
"""Seconds between two looks of the thread: each takes the interpreter lock from a model's work, and its caches."""
MOST_PENDING: Final = 256
"""Calls whose spans are not made yet; from then on each further one makes two."""
MOST_WAITING: Final = 1024
"""From then on also while the thread is at it."""

_MAKE: Final = "later.make"
_SETTLE: Final = "later.settle"
_BATCHED: Final = guard("later.batched")
_CPU_SECONDS: Final = attributes.usage("cpu.seconds")
_put: Final = dict.__setitem__
"""For a `Context` that nobody has seen yet."""


def whole(about: dict[str, Any], batch: int | None, length: int | None, before: Context) -> dict[str, Any]:
    """The attributes that a span begins with, as a dict of its own. The arguments are those of `LaterSpan`."""
    about = about.copy()
    if batch is not None:
        about[attributes.BATCH_SIZE] = batch
    if length is not None:
        about[attributes.SEQUENCE_LENGTH] = length
    if tags := current_tags(before):
        about.update(tags)
    return about


class LaterSpan(Span):
    """An execution in flight, as `torch_execution.Execution`, and at once the span that is current inside.

    Args:
        tracer: makes the span.
        pending: takes it when it is over.
        name: the span's.
        about: its attributes, without tags; not changed afterwards, by nobody.
        batch: its batch size; None: not said.
        length: its sequence length; None: not said.
        before: the context outside.
        key: where in the context inside it stands, beside being the current span.
    """

    __slots__ = (
        "_about",
        "_batch",
        "_before",
        "_context",
        "_cpu",
        "_ended",
        "_known",
        "_length",
        "_name",
        "_pending",
        "_span",
        "_started",
        "_tracer",
        "_used",
    )

    def __init__(
        self,
        tracer: Tracer,
        pending: Pending,
        name: str,
        about: dict[str, Any],
        batch: int | None,
        length: int | None,
        before: Context,
        key: str | None = None,
    ) -> None:
        self._span: Span | None = None
        self._tracer = tracer
        self._pending = pending
        self._name = name
        self._about = about
        self._batch = batch
        self._length = length
        self._before: Context | None = before
        self._known: dict[str, Any] | None = None
        self._ended: int | None = None
        inside: Context | None = Context(before)
        _put(inside, _SPAN_KEY, self)  # type: ignore[arg-type]
        if key is not None:
            _put(inside, key, self)  # type: ignore[arg-type]
        self._context = inside
        attach(inside)  # type: ignore[arg-type]
        self._started = time_ns()
        self._cpu = CPU.begin()

    @property
    def ended(self) -> bool:
        """It is over, and a context that outlives it is no inside of it."""
        return self._ended is not None

    def close(self, error: BaseException | None = None, about: Mapping[str, Any] | None = None) -> None:
        """The execution is over: its span will be ended as of now. As of `torch_execution.Execution`."""
        self._used = CPU.end(self._cpu)
        self._ended = time_ns()
        # Set rather than reset by a token: what the model leaves attached is not to make the user's call fail.
        current = get_current()
        if current is self._context or current.get(_SPAN_KEY) is self:
            attach(self._before)  # type: ignore[arg-type]
        self._context = None  # it holds this
        if error is not None or about:
            known = self._known = dict(about or ())
            if error is not None:
                known[attributes.ERROR_TYPE] = error_type(error)
                known[_DESCRIPTION] = str(error)[:LONGEST_DESCRIPTION] or None
        self._pending.add(self)

    # -- off the hot path ----------------------------------------------------------------------------------------------

    def made(self) -> Span:
        """The span itself."""
        span = self._span
        if span is None:
            with self._pending.making:
                span = self._span
                if span is None:
                    span = self._span = self._make({})
        return span

    def _make(self, more: Mapping[str, Any]) -> Span:
        assert self._before is not None
        try:
            about = whole(self._about, self._batch, self._length, self._before)
            about.update(more)
            return self._tracer.start_span(self._name, self._before, SpanKind.INTERNAL, about, start_time=self._started)
        except Exception as fault:  # noqa: BLE001
            report(_MAKE, fault)
            return INVALID_SPAN

    def settle(self) -> None:
        """Makes the span if nobody has looked, and ends it."""
        known = self._known or {}
        failed, description = _DESCRIPTION in known, known.pop(_DESCRIPTION, None)
        cpu_ns, source = self._used
        known[_CPU_SECONDS], known[attributes.CPU_TIME_SOURCE] = cpu_ns / 1e9, source
        with self._pending.making:
            span = self._span
            if span is None:
                span = self._span = self._make(known)
                known = {}
        self._before = None
        if span.is_recording():
            if known:
                span.set_attributes(known)
            if failed:
                span.set_status(Status(StatusCode.ERROR, description))
        span.end(self._ended)

    # -- a span, to whoever looks --------------------------------------------------------------------------------------

    def get_span_context(self) -> SpanContext:
        return self.made().get_span_context()

    def is_recording(self) -> bool:
        return self._ended is None and self.made().is_recording()

    def end(self, end_time: int | None = None) -> None:
        self.made().end(end_time)

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        self.made().set_attributes(attributes)

    def set_attribute(self, key: str, value: Any) -> None:
        self.made().set_attribute(key, value)

    def add_event(self, name: str, attributes: Any = None, timestamp: int | None = None) -> None:
        self.made().add_event(name, attributes, timestamp)

    def add_link(self, context: SpanContext, attributes: Any = None) -> None:
        self.made().add_link(context, attributes)

    def update_name(self, name: str) -> None:
        self.made().update_name(name)

    def set_status(self, status: Any, description: str | None = None) -> None:
        self.made().set_status(status, description)

    def record_exception(
        self, exception: BaseException, attributes: Any = None, timestamp: int | None = None, escaped: bool = False
    ) -> None:
        self.made().record_exception(exception, attributes, timestamp, escaped)

    def __getattr__(self, name: str) -> Any:
        # What the SDK's spans have beside: attributes, parent, start_time ...
        if name.startswith("__") or name in LaterSpan.__slots__:
            raise AttributeError(name)
        return getattr(self.made(), name)


_DESCRIPTION: Final = ""
"""Where the status' description stands among what is known at the end: no attribute's name."""


class Pending:
    """Calls that are over and whose spans are not made yet: a clock to `Resolver`, which polls it."""

    def __init__(self, resolver: Resolver) -> None:
        self.resolver = resolver
        self._calls: deque[LaterSpan] = deque()
        self._start()
        resolver.add(self)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=_made_before_fork, after_in_child=self._forked)

    def _start(self) -> None:
        # Reentrant: the garbage collector may run a model in a destructor of the user's at any line.
        self.making = threading.RLock()
        self._settling = threading.RLock()

    def _forked(self) -> None:
        self._calls.clear()
        self._start()

    def add(self, call: LaterSpan) -> None:
        """A call that is over. On the hot path."""
        calls = self._calls
        calls.append(call)
        if len(calls) <= MOST_PENDING:
            self.resolver.wake()
        elif self._settling.acquire(blocking=len(calls) > MOST_WAITING):
            try:
                self._settle(2)
            finally:
                self._settling.release()

    @property
    def held(self) -> int:
        """Spans that are to be ended."""
        return len(self._calls)

    def poll(self) -> int:
        """Makes and ends the spans; returns how many there were."""
        with self._settling:  # whoever flushes waits for those that the thread has taken
            return self._settle(len(self._calls))

    def _settle(self, count: int) -> int:
        calls = self._calls
        for done in range(count):
            try:
                call = calls.popleft()
            except IndexError:
                return done
            try:
                call.settle()
            except Exception as fault:  # noqa: BLE001
                report(_SETTLE, fault)
        return count

    def expire(self) -> None:
        """There is no time left."""
        self.poll()


def _made_before_fork() -> None:
    """Parent and child are to know the span that is current by the same ids."""
    span = get_current().get(_SPAN_KEY)
    if isinstance(span, LaterSpan):
        span.made()


class Maker(Resolver):
    """Whose clocks have nothing to wait for: what was over when somebody flushes is made by one look."""

    def drain(self, seconds: float) -> bool:
        self.poll()
        return True


PENDING: Final = Pending(Maker(INTERVAL))
"""The process's own. Its thread asks no device, and so is not the one that does."""


class _Unseen:
    _span_processors = ()


_UNSEEN: Final = _Unseen()


class Batched:
    """Whether a tracer's spans may be made later.

    Args:
        tracer: may stand for one that the program's provider makes later.
        resolver: is to hear of the provider's flush and shutdown before the other processors do.
    """

    def __init__(self, tracer: Tracer, resolver: Resolver) -> None:
        self._tracer = tracer
        self._resolver = resolver
        self._processors: Any = _UNSEEN
        self._seen: object = None
        self._may = False

    def __call__(self) -> bool:
        processors = self._processors
        # Whoever adds a processor makes the tuple anew.
        if processors._span_processors is not self._seen:
            self._may = False
            with _BATCHED:
                self._may = self._look()
        return self._may

    def _look(self) -> bool:
        # None of this is public. What cannot be told is not so.
        tracer: Any = getattr(self._tracer, "_tracer", self._tracer)
        processors: Any = getattr(tracer, "span_processor", None)
        those = getattr(processors, "_span_processors", None)
        if not isinstance(those, tuple):
            return False
        if _batching(those):
            self._resolver.watch_processors(processors)
            those = processors._span_processors
        self._processors, self._seen = processors, those
        return _batching(those) and any(type(each) is Drain and each.resolver is self._resolver for each in those)


def _batching(processors: tuple[object, ...]) -> bool:
    """Whether these hand spans on in their own time, and have no other use for the instants in between."""
    kinds = [type(each) for each in processors]
    return BatchSpanProcessor in kinds and all(
        kind is BatchSpanProcessor or kind.__module__.startswith(_OURS) for kind in kinds
    )


_OURS: Final = "tollspan.instrumentation."
