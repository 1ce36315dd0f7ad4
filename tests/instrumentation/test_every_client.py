"""What holds for every client alike, through the real clients: a program cannot tell that we are there.

A program is run twice against the same server, once as it is and once with its client instrumented and everything on
that can be switched on. What it saw has to be the same, to the frames of an exception and what a stream is an instance
of; and each request has left one span, with the usage that the server told. What is tried stands in `PROGRAMS`, on whom
in `tests.instrumentation.every_client`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import gc
import importlib
import inspect
import ssl
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
from opentelemetry import context, trace
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import StatusCode

from tollspan.instrumentation import extras, faults, streams
from tollspan.pricing import attributes as names

from .every_client import CLIENTS, Ask, Client, Counts, Make
from .seen import Seen, name_of
from .stub_server import StubServer

COUNTS = (1000, 100)
SHORT = 0.2
"""Seconds after which an impatient client gives up."""

Program = Callable[["World", Callable[[Any], Any]], Awaitable[None]]


async def settled(value: Any) -> Any:
    """A result, waited for where the client is asynchronous."""
    return await value if inspect.isawaitable(value) else value


@dataclass
class World:
    """One run of a program: the client, the server, and what was seen."""

    client: Client
    asynchronous: bool
    stub: StubServer
    seen: Seen

    @contextlib.asynccontextmanager
    async def made(self, attempts: int = 0, timeout: float = 30.0) -> AsyncIterator[Any]:
        """The client."""
        made = self.client.make(Make(self.stub.url, attempts, timeout), self.asynchronous)
        if self.asynchronous and hasattr(made, "__aenter__"):
            async with made as entered:
                yield entered
            return
        yield made
        if self.asynchronous and hasattr(made, "aio"):
            await made.aio.aclose()
        if hasattr(made, "close"):
            await settled(made.close())

    def answers(self, counts: Counts = COUNTS) -> None:
        self.stub.json(self.client.answer(counts))

    def streams(self, counts: Counts = COUNTS, **how: Any) -> None:
        self.stub.stream(self.client.events(counts), self.client.kind, **how)

    def refuses(self, status: int) -> None:
        self.stub.json(self.client.refusal(status), status, **self.client.headers)

    async def ask(self, client: Any, ask: Callable[[Any], Any]) -> None:
        """A plain call, and what its result is parsed to."""
        result = await settled(ask(client))
        manager = enterable(result) and not hasattr(result, "parse")
        if manager:
            self.seen.stream("manager", result)
            entered = await self.enter(result)
            self.seen.stream("entered", entered)
            await self.parse(entered)
            await self.leave(result)
        else:
            self.seen.value("result", result)
            await self.parse(result)

    async def parse(self, result: Any) -> None:
        if hasattr(result, "parse"):
            for _ in "12":  # the second time gives the same
                self.seen.value("parsed", await settled(result.parse()))

    async def open(self, client: Any, ask: Callable[[Any], Any]) -> Any:
        """A stream, whatever stands before it; all of that is dropped with the stream."""
        made = await settled(ask(client))
        self.seen.stream("made", made)
        if enterable(made) and not readable(made) and not hasattr(made, "parse"):
            made = await self.enter(made)
            self.seen.stream("entered", made)
        if hasattr(made, "parse"):
            made = await settled(made.parse())
            self.seen.stream("parsed", made)
        return made

    async def read(self, stream: Any, most: int = -1) -> None:
        """Read a stream, at most so many chunks."""
        before, read = context.get_current(), 0
        if self.asynchronous and hasattr(stream, "__aiter__"):
            async for chunk in stream:
                self.seen.value("chunk", chunk)
                assert context.get_current() == before
                if (read := read + 1) == most:
                    break
        else:
            for chunk in stream:
                self.seen.value("chunk", chunk)
                assert context.get_current() == before
                if (read := read + 1) == most:
                    break

    async def enter(self, manager: Any) -> Any:
        return await manager.__aenter__() if asynchronously(manager) else manager.__enter__()

    async def leave(self, manager: Any, error: BaseException | None = None) -> Any:
        given = (type(error), error, error.__traceback__) if error is not None else (None, None, None)
        return await manager.__aexit__(*given) if asynchronously(manager) else manager.__exit__(*given)

    async def close(self, stream: Any) -> None:
        """Close a stream by whichever name it has for that."""
        for name in ("aclose", "close", "__aexit__") if self.asynchronous else ("close", "__exit__"):
            if hasattr(stream, name):
                args = (None, None, None) if name.startswith("__") else ()
                self.seen.note(name, repr(await settled(getattr(stream, name)(*args))))
                return


def asynchronously(value: Any) -> bool:
    return hasattr(value, "__aenter__") and not hasattr(value, "__enter__")


def enterable(value: Any) -> bool:
    return hasattr(value, "__enter__") or hasattr(value, "__aenter__")


def readable(value: Any) -> bool:
    return hasattr(value, "__iter__") or hasattr(value, "__aiter__")


# -- programs ----------------------------------------------------------------------------------------------------------


async def whole_call(world: World, ask: Callable[[Any], Any]) -> None:
    world.answers()
    async with world.made() as client:
        await world.ask(client, ask)


def refused(status: int) -> Program:
    async def program(world: World, ask: Callable[[Any], Any]) -> None:
        world.refuses(status)
        async with world.made() as client:
            with world.seen.failure():
                await world.ask(client, ask)

    return program


def again(status: int) -> Program:
    async def program(world: World, ask: Callable[[Any], Any]) -> None:
        world.refuses(status)
        world.answers()
        async with world.made(attempts=2) as client:
            await world.ask(client, ask)
        assert len(world.stub.requests) == 2

    return program


async def call_that_takes_too_long(world: World, ask: Callable[[Any], Any]) -> None:
    world.stub.stall()
    async with world.made(timeout=SHORT) as client:
        with world.seen.failure():
            await world.ask(client, ask)


async def call_without_an_answer(world: World, ask: Callable[[Any], Any]) -> None:
    world.stub.drop()
    async with world.made() as client:
        with world.seen.failure():
            await world.ask(client, ask)


async def call_with_a_garbled_answer(world: World, ask: Callable[[Any], Any]) -> None:
    world.stub.raw(b'{"id": ', "application/json")
    async with world.made() as client:
        with world.seen.failure():
            await world.ask(client, ask)


async def call_that_is_cancelled(world: World, ask: Callable[[Any], Any]) -> None:
    world.stub.stall()
    async with world.made() as client:
        task = asyncio.ensure_future(world.ask(client, ask))
        while not world.stub.requests and not task.done():
            await asyncio.sleep(0.005)
        # The server can have all of it before the client has come back from sending it, and waits for the answer.
        for _ in range(100):
            await asyncio.sleep(0)
        task.cancel()
        with world.seen.failure():
            await task


async def whole_stream(world: World, ask: Callable[[Any], Any]) -> None:
    world.streams()
    async with world.made() as client:
        stream = await world.open(client, ask)
        await world.read(stream)
        world.seen.note("read again", None)
        with world.seen.failure():
            await world.read(stream)
        with world.seen.failure():
            await world.close(stream)


async def stream_in_a_with(world: World, ask: Callable[[Any], Any]) -> None:
    world.streams()
    async with world.made() as client:
        made = await settled(ask(client))
        if not enterable(made):
            made = contextlib.nullcontext(made)
        entered = await world.enter(made)
        world.seen.note("is itself", entered is made)
        stream = await settled(entered.parse()) if hasattr(entered, "parse") else entered
        await world.read(stream)
        world.seen.note("left", repr(await world.leave(made)))


async def stream_left_in_a_with(world: World, ask: Callable[[Any], Any]) -> None:
    world.streams()
    async with world.made() as client:
        stream = await world.open(client, ask)
        if not enterable(stream):
            stream = contextlib.aclosing(stream) if hasattr(stream, "aclose") else stream
            stream = contextlib.closing(stream) if hasattr(stream, "close") else stream
        inside = await world.enter(stream)
        await world.read(inside, 1)
        error = LookupError("the program's own")
        world.seen.note("swallowed", repr(await world.leave(stream, error)))


async def stream_left(world: World, ask: Callable[[Any], Any]) -> None:
    world.streams()
    async with world.made() as client:
        stream = await world.open(client, ask)
        await world.read(stream, 1)
        del stream
        await collected(world)


async def stream_closed(world: World, ask: Callable[[Any], Any]) -> None:
    world.streams()
    async with world.made() as client:
        stream = await world.open(client, ask)
        await world.read(stream, 1)
        await world.close(stream)
        del stream
        await collected(world)


async def stream_never_read(world: World, ask: Callable[[Any], Any]) -> None:
    world.streams()
    async with world.made() as client:
        stream = await world.open(client, ask)
        del stream
        await collected(world)


async def stream_that_is_cut(world: World, ask: Callable[[Any], Any]) -> None:
    world.stub.stream(world.client.events(COUNTS)[:2], world.client.kind, breaking=True)
    async with world.made() as client:
        with world.seen.failure():
            stream = await world.open(client, ask)
            await world.read(stream)


async def stream_with_garbage(world: World, ask: Callable[[Any], Any]) -> None:
    world.stub.stream([*world.client.events(COUNTS)[:1], world.client.garbage], world.client.kind)
    async with world.made() as client:
        with world.seen.failure():
            await world.read(await world.open(client, ask))


async def refused_stream(world: World, ask: Callable[[Any], Any]) -> None:
    world.refuses(500)
    async with world.made() as client:
        with world.seen.failure():
            await world.read(await world.open(client, ask))


async def stream_at_the_second_attempt(world: World, ask: Callable[[Any], Any]) -> None:
    world.refuses(503)
    world.streams()
    async with world.made(attempts=2) as client:
        await world.read(await world.open(client, ask))
    assert len(world.stub.requests) == 2


async def stream_that_takes_too_long(world: World, ask: Callable[[Any], Any]) -> None:
    world.streams(slow=True)
    async with world.made(timeout=SHORT) as client:
        with world.seen.failure():
            await world.read(await world.open(client, ask))


async def stream_that_is_cancelled(world: World, ask: Callable[[Any], Any]) -> None:
    world.streams(slow=True)
    async with world.made() as client:

        async def work() -> None:
            await world.read(await world.open(client, ask))

        task = asyncio.ensure_future(work())
        while not any(label == "chunk" for label, _ in world.seen.lines) and not task.done():
            await asyncio.sleep(0.005)
        task.cancel()
        with world.seen.failure():
            await task
        del task
        await collected(world)


async def stream_thrown_into(world: World, ask: Callable[[Any], Any]) -> None:
    world.streams()
    async with world.made() as client:
        stream = await world.open(client, ask)
        await world.read(stream, 1)
        throw = getattr(stream, "throw", None) or getattr(stream, "athrow", None)
        if throw is not None:
            with world.seen.failure():
                await settled(throw(LookupError("the program's own")))
        del throw, stream
        await collected(world)


async def collected(world: World) -> None:
    """Have what is dropped finalized, by the loop where that does it."""
    for _ in range(3):
        gc.collect()
        if world.asynchronous:
            await asyncio.sleep(0)


WHOLE, FAILED, LATER, LEFT = "whole", "failed", "failed, maybe later", "left"


class Trial(NamedTuple):
    """A program, and what the span of its call says: the ``outcome``. ``of``: whom it is tried on."""

    name: str
    program: Program
    outcome: str
    of: str = ""


ONCE, RETRYING, RETRYING_STREAMS, ASYNC = "the first of its kind", "retrying", "retrying streams", "async"

ASKS = (
    Trial("whole", whole_call, WHOLE),
    Trial("400", refused(400), FAILED, ONCE),
    Trial("500", refused(500), FAILED),
    Trial("429 then well", again(429), WHOLE, RETRYING),
    Trial("no answer", call_without_an_answer, FAILED, ONCE),
    Trial("garbled", call_with_a_garbled_answer, LATER, ONCE),
    Trial("timeout", call_that_takes_too_long, FAILED, ONCE),
    Trial("cancelled", call_that_is_cancelled, FAILED, ASYNC),
)
STREAMS = (
    Trial("whole", whole_stream, WHOLE),
    Trial("in a with", stream_in_a_with, WHOLE, ONCE),
    Trial("left in a with", stream_left_in_a_with, LEFT),
    Trial("left", stream_left, LEFT),
    Trial("closed", stream_closed, LEFT),
    Trial("never read", stream_never_read, LEFT, ONCE),
    Trial("thrown into", stream_thrown_into, LEFT, ONCE),
    Trial("cut", stream_that_is_cut, FAILED),
    Trial("garbage", stream_with_garbage, LATER, ONCE),
    Trial("500", refused_stream, FAILED, ONCE),
    Trial("503 then well", stream_at_the_second_attempt, WHOLE, RETRYING_STREAMS),
    Trial("timeout", stream_that_takes_too_long, FAILED, ONCE),
    Trial("cancelled", stream_that_is_cancelled, FAILED, ASYNC),
)


def fits(trial: Trial, client: Client, asynchronous: bool, first: bool) -> bool:
    tried_on = {"": True, ONCE: first, ASYNC: asynchronous and first}
    return {**tried_on, RETRYING: client.retrying, RETRYING_STREAMS: client.retrying_streams}[trial.of]


MODES = {"sync": False, "async": True}
TRIALS = [
    pytest.param(client, asynchronous, ask, trial, id=f"{client}|{mode}|{kind}|{name}|{trial.name}")
    for client in CLIENTS
    for mode, asynchronous in MODES.items()
    for kind, calls, trials in (("call", client.asks, ASKS), ("stream", client.streams, STREAMS))
    for number, (name, ask) in enumerate(calls.items())
    for trial in trials
    if fits(trial, client, asynchronous, number == 0)
]
every_client = pytest.mark.parametrize("client", CLIENTS, ids=str)
both_modes = pytest.mark.parametrize("asynchronous", MODES.values(), ids=MODES)


# -- running them ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stub() -> Iterator[StubServer]:
    with StubServer() as made:
        yield made


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Two things would take most of the time: reading all certificates for each client that is made, and searching the
    libraries' own objects for garbage each time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl, "create_default_context", functools.cache(ssl.create_default_context))
        for client in CLIENTS:
            with contextlib.suppress(ImportError):
                importlib.import_module(client.module)
                client.make(Make("http://127.0.0.1:1"), False)
        gc.collect()
        gc.freeze()
        yield
        gc.unfreeze()


@pytest.fixture
def everything_on(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """All that can be switched on is on. Options for ``instrument``."""
    monkeypatch.setenv("TOLLSPAN_CLIENT_COST", "true")
    monkeypatch.setenv("TOLLSPAN_CLIENT_METRICS", "chunks")
    monkeypatch.setenv("TOLLSPAN_FINGERPRINT_KEY", "secret")
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "span_and_event")
    monkeypatch.setenv("TOLLSPAN_PEERS", "beside")  # another test may have imported one
    return {"meter_provider": MeterProvider([InMemoryMetricReader()]), "logger_provider": LoggerProvider()}


@contextlib.contextmanager
def instrumented(client: Client, **options: Any) -> Iterator[list[Any]]:
    """The client's instrumentors, switched on for a while."""
    made = []
    for each in client.instrumentor.split():
        module, _, name = each.partition(":")
        made.append(getattr(importlib.import_module(f"tollspan.instrumentation.{module}"), name)())
    for instrumentor in made:
        instrumentor.instrument(**options)
    try:
        yield made
    finally:
        for instrumentor in reversed(made):
            instrumentor.uninstrument()


OF_THE_MOMENT = frozenset(
    {"authorization", "amz-sdk-invocation-id", "amz-sdk-request", "x-amz-date", "x-amzn-trace-id", "traceparent"}
)
"""Headers that differ between two equal requests. The last is sent by clients that trace themselves."""


def run(client: Client, asynchronous: bool, stub: StubServer, program: Program, ask: Ask) -> Seen:
    """Run a program once; returns what it saw."""
    stub.forget()
    gc.collect()  # what earlier programs left is not this one's
    gc.freeze()  # and is not to be searched again and again
    seen = Seen()
    world = World(client, asynchronous, stub, seen)
    before = context.get_current()

    async def in_loop() -> None:
        seen.in_loop()
        await program(world, ask.of(True))
        for _ in range(50):
            if len(asyncio.all_tasks()) > 1:
                await asyncio.sleep(0.002)
        seen.note("tasks", len(asyncio.all_tasks()))
        assert context.get_current() == before, "a context was left attached"

    with seen.watched():
        if asynchronous:
            asyncio.run(in_loop())
        else:
            driven(program(world, ask.of(False)))
    assert context.get_current() == before, "a context was left attached"
    for (path, body), headers in zip(stub.requests, stub.headers, strict=True):
        told = {name: value for name, value in headers.items() if name not in OF_THE_MOMENT}
        seen.note("request", (path, body, told))
    return seen


def driven(coroutine: Any) -> None:
    """Run a coroutine that waits for nothing, outside of any loop."""
    with contextlib.suppress(StopIteration):
        coroutine.send(None)
        raise AssertionError("a synchronous client made the program wait")


def needs(client: Client, asynchronous: bool = False) -> None:
    """Skip where the client is not installed."""
    pytest.importorskip(client.module, exc_type=ImportError)
    if asynchronous and client.name == "bedrock":
        pytest.importorskip("aiobotocore")


def usage_of(span: Any) -> dict[str, Any]:
    keys = (names.USAGE_INPUT_TOKENS, names.USAGE_OUTPUT_TOKENS)
    return {key: span.attributes[key] for key in keys if key in span.attributes}


def told(counts: Counts) -> dict[str, int]:
    """Attributes of counts."""
    if counts is None:
        return {}
    return dict(zip((names.USAGE_INPUT_TOKENS, names.USAGE_OUTPUT_TOKENS), counts, strict=True))


# -- the program as without us -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("client", "asynchronous", "ask", "trial"), TRIALS)
def test_a_program_sees_the_same_and_a_request_has_one_span(
    client: Client,
    asynchronous: bool,
    ask: Ask,
    trial: Trial,
    stub: StubServer,
    everything_on: dict[str, Any],
    telemetry: Any,
) -> None:
    needs(client, asynchronous)
    plain = run(client, asynchronous, stub, trial.program, ask)
    with instrumented(client, tracer_provider=telemetry.provider, **everything_on):
        watched = run(client, asynchronous, stub, trial.program, ask)
    if list(differences_of(plain, watched)):  # libraries fill in their classes when they are first used
        plain = run(client, asynchronous, stub, trial.program, ask)
    differences = list(differences_of(plain, watched))
    assert not differences, "\n".join(differences)
    check(telemetry.spans(), trial, watched)


def differences_of(plain: Seen, watched: Seen) -> Iterator[str]:
    """What a program saw that it would not have seen without us."""
    for (label, there), (other, here) in zip(plain.lines, watched.lines, strict=False):
        if label != other:
            yield f"{other} in the place of {label}"
            return
        yield from between(label, there, here)
    if len(plain.lines) != len(watched.lines):
        yield f"{len(watched.lines)} observations in the place of {len(plain.lines)}"


def between(label: str, there: Any, here: Any) -> Iterator[str]:
    """Where plain data differs."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in {**there, **here}:
            yield from between(f"{label}.{key}", there.get(key), here.get(key))
    elif isinstance(there, tuple) and isinstance(here, tuple) and len(there) == len(here):
        for number, pair in enumerate(zip(there, here, strict=True)):
            yield from between(f"{label}.{number}", *pair)
    elif isinstance(there, list) and isinstance(here, list) and there != here:
        added, gone = [one for one in here if one not in there], [one for one in there if one not in here]
        yield f"{label}: {added} added, {gone} gone" if added or gone else f"{label}: {here} in place of {there}"
    elif there != here:
        yield f"{label}: {here!r} in place of {there!r}"


def check(spans: list[Any], trial: Trial, seen: Seen) -> None:
    """What the spans of a program say."""
    requests = sum(label == "request" for label, _ in seen.lines)
    if not requests and not spans:
        return  # nothing was asked for, as the stream that would have asked was not read
    (span,) = spans
    attributes = span.attributes
    error = attributes.get(names.ERROR_TYPE)
    assert (span.status.status_code is StatusCode.ERROR) == (error is not None)
    if trial.outcome == WHOLE:
        assert usage_of(span) == told(COUNTS)
        assert error is None
        assert attributes.get(names.RETRIES, 0) == requests - 1
        assert names.STREAM_ABANDONED not in attributes
        return
    assert names.USAGE_OUTPUT_TOKENS not in attributes
    if trial.outcome == LEFT:
        assert error is None
        assert attributes.get(names.STREAM_ABANDONED) or attributes.get(names.CALL_SENT) is False
    else:
        raised = None if seen.error is None else name_of(seen.error).removeprefix("builtins.")
        # What a raw response cannot be parsed to, the program learns after the call.
        assert error == raised or (error is None and trial.outcome == LATER)


# -- what was used -----------------------------------------------------------------------------------------------------


@every_client
@both_modes
@pytest.mark.parametrize("counts", [COUNTS, (7, 0), (0, 0), None], ids=str)
def test_what_the_server_counted_is_on_the_span_of_every_call(
    client: Client, asynchronous: bool, counts: Counts, stub: StubServer, telemetry: Any
) -> None:
    needs(client, asynchronous)
    if counts is None and not client.silent:
        pytest.skip("the client itself cannot read an answer without usage")

    async def program(world: World, ask: Callable[[Any], Any]) -> None:
        plain = ask in [each.of(asynchronous) for each in client.asks.values()]
        (world.answers if plain else world.streams)(counts)
        async with world.made() as made:
            if plain:
                await world.ask(made, ask)
            else:
                await world.read(await world.open(made, ask))

    calls = {**{("call", name): ask for name, ask in client.asks.items()}}
    calls |= {("stream", name): ask for name, ask in client.streams.items()}
    found = {}
    with instrumented(client, tracer_provider=telemetry.provider):
        for call, ask in calls.items():
            run(client, asynchronous, stub, program, ask)
            found[call] = usage_of(telemetry.only())
            telemetry.exporter.clear()
    assert found == dict.fromkeys(calls, told(counts))


# -- faults of ours ----------------------------------------------------------------------------------------------------


class Ours(RuntimeError):
    """A fault of ours."""


def broken(*_: Any, **__: Any) -> Any:
    raise Ours("a fault of ours")


class BrokenProcessor(SpanProcessor):
    """Fails where a span starts or ends."""

    def __init__(self, at: str) -> None:
        setattr(self, at, broken)


class BrokenTracer(trace.NoOpTracer):
    start_span = broken


class BrokenTracers(trace.TracerProvider):
    def get_tracer(self, *_: Any, **__: Any) -> trace.Tracer:
        return BrokenTracer()


def provider_with(at: str) -> Callable[[pytest.MonkeyPatch], dict[str, Any]]:
    def prepared(_: pytest.MonkeyPatch) -> dict[str, Any]:
        provider = TracerProvider()
        provider.add_span_processor(BrokenProcessor(at))
        return {"tracer_provider": provider}

    return prepared


def method(target: str) -> Callable[[pytest.MonkeyPatch], dict[str, Any]]:
    """A method of ours that fails: ``"module:Class.method"`` below ``tollspan.instrumentation``."""

    def prepared(patch: pytest.MonkeyPatch) -> dict[str, Any]:
        patch.setattr(f"tollspan.instrumentation.{target.replace(':', '.')}", broken)
        return {}

    return prepared


def hook(name: str, before: bool = True) -> Callable[[pytest.MonkeyPatch], dict[str, Any]]:
    """A hook of every wrap point that fails; ``before`` or after everything that is switched on is put round it."""

    def prepared(patch: pytest.MonkeyPatch) -> dict[str, Any]:
        original = extras.extended

        def changed(points: Any) -> list[Any]:
            return [
                dataclasses.replace(point, **{name: broken}) if point.layer == "gen_ai" else point for point in points
            ]

        def extended(points: Any, *args: Any) -> Any:
            if before:
                return original(changed(points), *args)
            return changed(original(points, *args))

        patch.setattr(extras, "extended", extended)
        return {}

    return prepared


def chunk_reader(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    original = streams.Reading.__init__

    def init(self: Any, call: Any, source: Any, read: Any, *more: Any) -> None:
        original(self, call, source, broken, *more)

    patch.setattr(streams.Reading, "__init__", init)
    return {}


FAULTS: dict[str, Callable[[pytest.MonkeyPatch], dict[str, Any]]] = {
    **{name: hook(name) for name in ("request", "response", "error", "finish", "outlives", "asked", "content")},
    **{name: hook(name, before=False) for name in ("prepare", "began", "wanted", "late")},
    "reader of chunks": chunk_reader,
    "tracer": lambda _: {"tracer_provider": BrokenTracers()},
    "start of a span": provider_with("on_start"),
    "end of a span": provider_with("on_end"),
    "metrics at the beginning": method("metrics:ClientMetrics.began"),
    "metrics at the end": method("metrics:ClientMetrics.finish"),
    "cost": method("cost:LocalCost.finish"),
    "fingerprint": method("fingerprint:Fingerprints.of"),
    "what was said": method("content:Capture.finish"),
}

_plain: dict[tuple[Any, ...], Seen] = {}


def as_it_is(client: Client, asynchronous: bool, stub: StubServer, program: Program, ask: Ask) -> Seen:
    """What a program sees without us. Run once."""
    key = (client.name, asynchronous, program, ask)
    if key not in _plain:
        run(client, asynchronous, stub, program, ask)  # libraries fill in their classes when they are first used
        _plain[key] = run(client, asynchronous, stub, program, ask)
    return _plain[key]


def programs(client: Client) -> list[tuple[Program, Ask]]:
    """Programs of the first calls of a client."""
    ask, stream = next(iter(client.asks.values())), next(iter(client.streams.values()))
    return [(whole_call, ask), (whole_stream, stream), (fails, ask)]


fails = refused(500)


IN_BOTH_MODES = {"request", "response", "outlives", "reader of chunks", "end of a span"}


@every_client
@pytest.mark.parametrize(
    ("fault", "asynchronous"),
    [(fault, mode) for fault in FAULTS for mode in MODES.values() if not mode or fault in IN_BOTH_MODES],
)
def test_a_fault_of_ours_never_reaches_the_program_and_is_counted(
    client: Client,
    asynchronous: bool,
    fault: str,
    stub: StubServer,
    everything_on: dict[str, Any],
    faulty_telemetry: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needs(client, asynchronous)
    plain = [as_it_is(client, asynchronous, stub, *each) for each in programs(client)]
    options = {"tracer_provider": faulty_telemetry.provider, **everything_on, **FAULTS[fault](monkeypatch)}
    counted = sum(faults().values())
    with instrumented(client, **options):
        watched = [run(client, asynchronous, stub, *each) for each in programs(client)]
    for there, here in zip(plain, watched, strict=True):
        assert list(differences_of(there, here)) == []
    assert sum(faults().values()) > counted


# -- nobody looks ------------------------------------------------------------------------------------------------------

NOBODY: dict[str, Callable[[], Any]] = {
    "not sampled": lambda: TracerProvider(sampler=ALWAYS_OFF),
    "no-op": trace.NoOpTracerProvider,
    "no provider": lambda: None,
}


@every_client
@both_modes
@pytest.mark.parametrize("why", [*NOBODY, "SDK disabled", "suppressed"])
def test_nothing_changes_where_nobody_looks(
    client: Client,
    asynchronous: bool,
    why: str,
    stub: StubServer,
    telemetry: Any,
    everything_on: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needs(client, asynchronous)
    plain = [as_it_is(client, asynchronous, stub, *each) for each in programs(client)]
    if why == "SDK disabled":
        monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
        telemetry.provider = TracerProvider()
    provider = NOBODY[why]() if why in NOBODY else telemetry.provider
    options = {**everything_on, "meter_provider": NoOpMeterProvider()} if why != "suppressed" else everything_on
    quiet = suppress_instrumentation() if why == "suppressed" else contextlib.nullcontext()
    with instrumented(client, tracer_provider=provider, **options), quiet:
        watched = [run(client, asynchronous, stub, *each) for each in programs(client)]
    for there, here in zip(plain, watched, strict=True):
        assert list(differences_of(there, here)) == []
    assert telemetry.spans() == []


# -- many --------------------------------------------------------------------------------------------------------------


class Counting(SpanProcessor):
    """Counts the spans that end, and keeps none."""

    def __init__(self) -> None:
        self.ended = 0

    def on_end(self, span: Any) -> None:
        self.ended += 1


class Blind(Seen):
    """Sees nothing, and so keeps nothing."""

    def note(self, label: str, fact: Any) -> None: ...

    def value(self, label: str, value: Any) -> None: ...

    def stream(self, label: str, stream: Any) -> None: ...


async def many(world: World, client: Any, ask: Callable[[Any], Any], count: int) -> int:
    """Streams of one client: read to the end, left, closed, never read. Returns how many objects the collector found
    that their last reference had not freed."""
    found = 0
    for number in range(count):
        stream = await world.open(client, ask)
        if number % 4 < 3:
            await world.read(stream, -1 if number % 4 == 0 else 1)
        if number % 4 == 2:
            await world.close(stream)
        del stream
        world.stub.requests.clear()
        world.stub.headers.clear()
        if number % 20 == 19:
            # Here and not inside of a client's pool, whose lock is not one that can be taken twice.
            if world.asynchronous:
                await asyncio.sleep(0.001)
            found += gc.collect()
    return found


def ours() -> int:
    """Objects of ours that are alive, and the SDK's spans."""
    ours = ("tollspan.", "opentelemetry.sdk.trace")
    return sum(str(type(each).__module__).startswith(ours) for each in gc.get_objects())


def left_behind(client: Client, asynchronous: bool, stub: StubServer, count: int) -> tuple[float, float]:
    """Objects of ours that a stream leaves in memory, and objects that it leaves to the collector."""
    found = []

    async def program(world: World, ask: Callable[[Any], Any]) -> None:
        world = dataclasses.replace(world, seen=Blind())
        world.streams()

        async def some(count: int) -> int:
            async with world.made() as made:
                await many(world, made, ask, WARM)  # what a client remembers
                return await many(world, made, ask, count)

        await some(0)
        gc.collect()
        before, cycles = ours(), 0
        # By several clients: by itself one never gets back the connection of a stream that was left.
        for done in range(0, count, POOL):
            cycles += await some(min(count - done, POOL))
            gc.collect()
        found.append(((ours() - before) / count, cycles / count))

    gc.collect()
    gc.disable()
    try:
        run(client, asynchronous, stub, program, next(iter(client.streams.values())))
    finally:
        gc.enable()
    return found[0]


WARM = 40
POOL = 100
"""Streams of one client, of which it may keep the connections of half: of a hundred, where it is Mistral's."""


@every_client
@both_modes
@pytest.mark.parametrize("count", [100, pytest.param(10_000, marks=[pytest.mark.soak, pytest.mark.timeout(1200)])])
def test_streams_leave_nothing_behind(
    client: Client, asynchronous: bool, count: int, stub: StubServer, everything_on: dict[str, Any]
) -> None:
    needs(client, asynchronous)
    _, plain = left_behind(client, asynchronous, stub, WARM)
    counting, provider = Counting(), TracerProvider()
    provider.add_span_processor(counting)
    with instrumented(client, tracer_provider=provider, **everything_on):
        grown, watched = left_behind(client, asynchronous, stub, count)
    # One way in four of leaving a stream, if it leaked, would leave a call, a span, a reading and more.
    assert grown < 0.5, f"{grown} objects a stream stay"
    # Where a client's stream is a cycle by itself, what it holds of ours goes with it.
    assert watched <= plain * 1.1 + 0.5, f"{watched} objects a stream are left to the collector, {plain} without us"
    made = WARM + sum(WARM + min(count - done, POOL) for done in range(0, count, POOL))
    assert counting.ended in (made, made * 3 // 4)  # a stream that asks when it is read, and is not


@every_client
def test_a_span_stands_under_the_span_of_its_thread(client: Client, stub: StubServer, telemetry: Any) -> None:
    needs(client)
    stub.forget()
    stub.json(client.answer(COUNTS))
    tracer = telemetry.provider.get_tracer("the program's")
    ask = next(iter(client.asks.values())).sync
    together = threading.Barrier(8)

    def work(number: int) -> None:
        together.wait(20)
        with tracer.start_as_current_span(f"thread {number}"):
            for _ in range(50):
                ask(made)

    with instrumented(client, tracer_provider=telemetry.provider), ThreadPoolExecutor(8) as pool:
        # Made here: a client may be functions, which whoever has taken them before keeps as they were.
        made = client.make(Make(stub.url), False)
        list(pool.map(work, range(8)))
    under(telemetry.spans(), 50)


@every_client
async def test_a_span_stands_under_the_span_of_its_task(client: Client, stub: StubServer, telemetry: Any) -> None:
    needs(client, asynchronous=True)
    stub.forget()
    world = World(client, True, stub, Blind())
    world.streams()
    tracer = telemetry.provider.get_tracer("the program's")
    ask = next(iter(client.streams.values())).of(True)

    async def work(made: Any, number: int) -> None:
        with tracer.start_as_current_span(f"task {number}"):
            for _ in range(5):
                await world.read(await world.open(made, ask))

    with instrumented(client, tracer_provider=telemetry.provider):
        async with world.made() as made:
            await asyncio.gather(*(work(made, number) for number in range(8)))
    under(telemetry.spans(), 5)


def under(spans: list[Any], each: int) -> None:
    """Eight spans of the program have so many calls below them each, with their usage."""
    parents = {span.context.span_id: span for span in spans if span.parent is None}
    calls = [span for span in spans if span.parent is not None]
    assert Counter(parents[call.parent.span_id].name for call in calls) == {
        span.name: each for span in parents.values()
    }
    assert len(parents) == 8
    assert all(usage_of(call) == told(COUNTS) for call in calls)
