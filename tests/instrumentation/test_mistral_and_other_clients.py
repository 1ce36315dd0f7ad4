"""What holds for every client with a plain table: one span a request with its usage, and the program as without us."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import inspect
import pickle
import subprocess
import sys
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any

import pytest
from opentelemetry import context, trace
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

from tollspan.instrumentation import faults, tag
from tollspan.pricing import attributes as names

from .small_stubs import COHERE, GROQ, MISTRAL, OLLAMA, TOGETHER, Case, SmallStub

CASES = [MISTRAL, COHERE, OLLAMA, GROQ, TOGETHER]


def instrumentor(case: Case) -> Any:
    module = importlib.import_module(f"tollspan.instrumentation.{case.module}")
    return getattr(module, case.instrumentor)()


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    pytest.importorskip(found.name)
    return found


@pytest.fixture
def stub() -> Iterator[SmallStub]:
    made = SmallStub()
    yield made
    made.close()


@pytest.fixture
def spans(telemetry: Any, case: Case) -> Iterator[Any]:
    """The case's client instrumented for this test."""
    made = instrumentor(case)
    made.instrument(tracer_provider=telemetry.provider)
    yield telemetry
    made.uninstrument()


def expected(case: Case, stub: SmallStub, **more: Any) -> dict[str, Any]:
    """What the span of the case's call says, beside the answer's id and the finish reason."""
    retries = {names.RETRIES: 0} if case.retrying else {}
    return {
        names.OPERATION_NAME: case.operation,
        names.PROVIDER_NAME: case.provider,
        names.REQUEST_MODEL: case.model,
        names.SERVER_ADDRESS: "127.0.0.1",
        names.SERVER_PORT: stub.port,
        **retries,
        **case.usage,
        **more,
    }


def check(spans: Any, case: Case, stub: SmallStub, **more: Any) -> None:
    attributes = spans.attributes()
    assert attributes.pop(names.RESPONSE_MODEL, case.model) == case.model
    attributes.pop(names.RESPONSE_ID, None)
    attributes.pop(names.OPENAI_API_TYPE, None)
    assert len(attributes.pop(names.RESPONSE_FINISH_REASONS)) == 1
    if names.REQUEST_STREAM in more:
        assert attributes.pop(names.RESPONSE_TIME_TO_FIRST_CHUNK) > 0
    assert attributes == expected(case, stub, **more)
    span = spans.only()
    assert (span.name, span.kind, span.status.status_code) == (
        f"{case.operation} {case.model}",
        SpanKind.CLIENT,
        StatusCode.UNSET,
    )


async def opened(case: Case, client: Any) -> Any:
    """The asynchronous stream of the case's call."""
    made = case.stream_async(client)
    return await made if case.awaited else made


STREAMED = {names.REQUEST_STREAM: True}


# -- one span a request ------------------------------------------------------------------------------------------------


def test_a_call(case: Case, spans: Any, stub: SmallStub) -> None:
    case.ask(case.client(stub.json(case.body).url))
    check(spans, case, stub)


async def test_a_call_async(case: Case, spans: Any, stub: SmallStub) -> None:
    await case.ask_async(case.async_client(stub.json(case.body).url))
    check(spans, case, stub)


def test_a_stream(case: Case, spans: Any, stub: SmallStub) -> None:
    stream = case.stream(case.client(stub.stream(case.pieces, case.kind).url))
    assert len(list(stream)) == 3
    check(spans, case, stub, **STREAMED)


async def test_a_stream_async(case: Case, spans: Any, stub: SmallStub) -> None:
    stream = await opened(case, case.async_client(stub.stream(case.pieces, case.kind).url))
    assert len([chunk async for chunk in stream]) == 3
    check(spans, case, stub, **STREAMED)


def test_what_the_program_gets_is_of_the_same_types(case: Case, telemetry: Any, stub: SmallStub) -> None:
    stub.json(case.body).json(case.body)
    stub.stream(case.pieces, case.kind)
    made = instrumentor(case)

    def look() -> Any:
        result = case.ask(case.client(stub.url))
        copied = pickle.loads(pickle.dumps(result))
        return type(result), repr(result), type(copied)

    plain = look()
    plain_stream_kind: Any = None
    made.instrument(tracer_provider=telemetry.provider)
    try:
        assert look() == plain
        stream = case.stream(case.client(stub.url))
        plain_stream_kind = stream.__class__
        watched = list(stream)
    finally:
        made.uninstrument()
    stub.stream(case.pieces, case.kind)
    bare = case.stream(case.client(stub.url))
    assert isinstance(bare, plain_stream_kind)
    assert [(type(one), repr(one)) for one in bare] == [(type(one), repr(one)) for one in watched]


def test_tags_reach_the_span(case: Case, spans: Any, stub: SmallStub) -> None:
    with tag(tenant="acme"):
        case.ask(case.client(stub.json(case.body).url))
    assert spans.attributes()[names.TENANT] == "acme"


def test_concurrent_calls_have_a_span_each(case: Case, spans: Any, stub: SmallStub) -> None:
    client = case.client(stub.json(case.body).url)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: case.ask(client), range(24)))
    assert len(spans.spans()) == 24
    assert {span.attributes[names.USAGE_INPUT_TOKENS] for span in spans.spans()} == {1000}


async def test_concurrent_streams_have_a_span_each(case: Case, spans: Any, stub: SmallStub) -> None:
    client = case.async_client(stub.stream(case.pieces, case.kind).url)

    async def work() -> int:
        return len([chunk async for chunk in await opened(case, client)])

    assert await asyncio.gather(*(work() for _ in range(8))) == [3] * 8
    assert len(spans.spans()) == 8
    assert {span.attributes[names.USAGE_OUTPUT_TOKENS] for span in spans.spans()} == {100}


# -- streams that do not come to their end -----------------------------------------------------------------------------


def test_a_stream_left_early_is_abandoned(case: Case, spans: Any, stub: SmallStub) -> None:
    def work() -> None:
        for _ in case.stream(case.client(stub.stream(case.pieces, case.kind, slow=True).url)):
            break

    work()
    gc.collect()
    attributes = spans.attributes()
    assert attributes[names.STREAM_ABANDONED] is True
    assert names.CALL_SENT not in attributes
    assert names.USAGE_OUTPUT_TOKENS not in attributes


async def test_an_async_stream_left_early_is_abandoned(case: Case, spans: Any, stub: SmallStub) -> None:
    client = case.async_client(stub.stream(case.pieces, case.kind, slow=True).url)

    async def work() -> None:
        async with contextlib.aclosing(Closing(await opened(case, client))) as closing:
            async for _ in closing.stream:
                break

    await work()
    gc.collect()
    await asyncio.sleep(0)
    attributes = spans.attributes()
    assert attributes[names.STREAM_ABANDONED] is True
    assert names.USAGE_OUTPUT_TOKENS not in attributes


class Closing:
    """Closes a stream, by whichever name it has for that."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    async def aclose(self) -> None:
        close = getattr(self.stream, "aclose", None) or getattr(self.stream, "close", None)
        await (close() if close is not None else self.stream.__aexit__(None, None, None))


def test_a_stream_that_nobody_reads_says_that_nothing_was_sent_where_nothing_was(
    case: Case, spans: Any, stub: SmallStub
) -> None:
    stream = case.stream(case.client(stub.stream(case.pieces, case.kind).url))
    del stream
    gc.collect()
    assert len(stub.requests) == (0 if case.lazy else 1)
    if case is COHERE:  # its call begins when the stream is read
        assert spans.spans() == []
    elif case.lazy:
        assert spans.attributes()[names.CALL_SENT] is False
    else:
        assert names.CALL_SENT not in spans.attributes()
        assert spans.attributes()[names.STREAM_ABANDONED] is True


def test_abandoned_streams_leave_nothing_behind(case: Case, spans: Any, stub: SmallStub) -> None:
    client = case.client(stub.stream(case.pieces, case.kind).url)
    seen = []
    # Streams of some clients are cycles of their own. Where one is collected while the pool that it came from holds its
    # lock, the client locks up, with us or without: collected here, between two calls.
    gc.disable()
    try:
        for _ in range(20):
            stream = case.stream(client)
            next(iter(stream))
            seen.append(weakref.ref(stream))
            del stream
            assert seen[-1]() is None
            gc.collect()
    finally:
        gc.enable()
    assert len(spans.spans()) == 20


def test_a_stream_that_breaks_off_ends_with_the_clients_error(case: Case, spans: Any, stub: SmallStub) -> None:
    stream = case.stream(case.client(stub.stream(case.pieces[:1], case.kind, breaking=True).url))
    with pytest.raises(Exception) as caught:
        list(stream)
    assert spans.attributes()[names.ERROR_TYPE].endswith(type(caught.value).__qualname__)
    assert names.USAGE_OUTPUT_TOKENS not in spans.attributes()
    assert spans.only().status.status_code is StatusCode.ERROR


async def test_a_cancelled_stream_ends_its_span(case: Case, spans: Any, stub: SmallStub) -> None:
    client = case.async_client(stub.stream(case.pieces, case.kind, slow=True).url)
    first = asyncio.Event()

    async def work() -> None:
        async for _ in await opened(case, client):
            first.set()

    task = asyncio.create_task(work())
    await asyncio.wait({task, waiting := asyncio.create_task(first.wait())}, return_when=asyncio.FIRST_COMPLETED)
    assert waiting.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    del task
    gc.collect()
    await asyncio.sleep(0)
    assert len(spans.spans()) == 1


async def test_a_cancelled_call_ends_its_span(case: Case, spans: Any, stub: SmallStub) -> None:
    task = asyncio.ensure_future(case.ask_async(case.async_client(stub.stall().url)))
    while not stub.requests and not task.done():
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert spans.attributes()[names.ERROR_TYPE].endswith("CancelledError")


def test_the_span_is_current_only_while_a_chunk_is_read(case: Case, spans: Any, stub: SmallStub) -> None:
    before = context.get_current()
    for _ in case.stream(case.client(stub.stream(case.pieces, case.kind).url)):
        assert context.get_current() == before
        assert not trace.get_current_span().get_span_context().is_valid


# -- failures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 429, 500, 503])
def test_a_refusal_is_the_clients_own_and_stands_on_the_span(
    case: Case, spans: Any, stub: SmallStub, status: int
) -> None:
    stub.json({"message": "no", "error": "no", "detail": "no"}, status)
    with pytest.raises(Exception) as caught:
        case.ask(case.client(stub.url))
    attributes = spans.attributes()
    assert attributes[names.HTTP_STATUS] == status
    assert attributes[names.ERROR_TYPE].endswith(type(caught.value).__qualname__)
    assert names.USAGE_INPUT_TOKENS not in attributes


@pytest.mark.parametrize("status", [400, 500])
async def test_a_refused_stream(case: Case, spans: Any, stub: SmallStub, status: int) -> None:
    stub.json({"message": "no", "error": "no", "detail": "no"}, status)
    with pytest.raises(Exception):
        list(case.stream(case.client(stub.url)))
    assert spans.attributes()[names.HTTP_STATUS] == status
    spans.exporter.clear()
    with pytest.raises(Exception):
        _ = [chunk async for chunk in await opened(case, case.async_client(stub.url))]
    assert spans.attributes()[names.HTTP_STATUS] == status


def test_further_attempts_are_counted_on_the_one_span(case: Case, spans: Any, stub: SmallStub) -> None:
    if not case.retrying:
        pytest.skip("this client makes one attempt")
    stub.json({"message": "no"}, 503, retry_after_ms="1").json({"message": "no"}, 503, retry_after_ms="1")
    stub.json(case.body)
    case.ask(case.client(stub.url, attempts=2))
    assert len(stub.requests) == 3
    check(spans, case, stub, **{names.RETRIES: 2})


async def test_further_attempts_are_counted_on_the_one_span_async(case: Case, spans: Any, stub: SmallStub) -> None:
    if not case.retrying:
        pytest.skip("this client makes one attempt")
    stub.json({"message": "no"}, 503, retry_after_ms="1").json(case.body)
    await case.ask_async(case.async_client(stub.url, attempts=2))
    check(spans, case, stub, **{names.RETRIES: 1})


def test_the_program_gets_the_very_exception_without_our_frames_in_its_tail(
    case: Case, telemetry: Any, stub: SmallStub
) -> None:
    stub.json({"message": "no"}, 400)
    made = instrumentor(case)

    def tail() -> tuple[Any, list[str]]:
        try:
            case.ask(case.client(stub.url))
        except Exception as error:
            frames = [frame.frame.f_code.co_name for frame in inspect.getinnerframes(error.__traceback__)]  # type: ignore[arg-type]
            return (type(error), str(error)), frames[-1:]
        raise AssertionError("no error")

    plain = tail()
    made.instrument(tracer_provider=telemetry.provider)
    try:
        assert tail()[1] == plain[1]
        assert tail()[0][0] is plain[0][0]
    finally:
        made.uninstrument()


# -- switched off, or broken -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", ["request", "response", "finish", "outlives"])
def test_a_fault_of_ours_never_reaches_the_program(
    case: Case, faulty_telemetry: Any, stub: SmallStub, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    def fault(*_: Any) -> Any:
        raise RuntimeError("a fault of ours")

    made = instrumentor(case)
    points = tuple(dataclasses.replace(point, **{broken: fault}) for point in made.points)
    monkeypatch.setattr(type(made), "points", points)
    made.instrument(tracer_provider=faulty_telemetry.provider)
    before = sum(faults().values())
    try:
        case.ask(case.client(stub.json(case.body).url))
        stub.stream(case.pieces, case.kind)
        stub.replies.pop(0)
        assert len(list(case.stream(case.client(stub.url)))) == 3
    finally:
        made.uninstrument()
    assert sum(faults().values()) > before
    if broken != "request":
        assert len(faulty_telemetry.spans()) == 2


@pytest.mark.parametrize("reader", ["put_usage", "told"])
def test_a_fault_in_a_reader_never_reaches_the_program(
    case: Case, faulty_telemetry: Any, stub: SmallStub, reader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(f"tollspan.instrumentation.{case.module}")

    def fault(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(module, reader, fault)
    made = instrumentor(case)
    made.instrument(tracer_provider=faulty_telemetry.provider)
    try:
        case.ask(case.client(stub.json(case.body).url))
        stub.stream(case.pieces, case.kind)
        stub.replies.pop(0)
        assert len(list(case.stream(case.client(stub.url)))) == 3
    finally:
        made.uninstrument()
    assert len(faulty_telemetry.spans()) == 2


def test_suppressed_calls_have_no_span(case: Case, spans: Any, stub: SmallStub) -> None:
    with suppress_instrumentation():
        case.ask(case.client(stub.json(case.body).url))
    assert spans.spans() == []


@pytest.mark.parametrize("provider", [TracerProvider(sampler=ALWAYS_OFF), trace.NoOpTracerProvider(), None])
async def test_nothing_changes_where_nobody_records(case: Case, stub: SmallStub, provider: Any) -> None:
    made = instrumentor(case)
    made.instrument(**({"tracer_provider": provider} if provider is not None else {}))
    before = faults()
    try:
        client = case.client(stub.json(case.body).url)
        case.ask(client)
        stub.stream(case.pieces, case.kind)
        stub.replies.pop(0)
        assert len(list(case.stream(client))) == 3
        stream = await opened(case, case.async_client(stub.url))
        assert len([chunk async for chunk in stream]) == 3
    finally:
        made.uninstrument()
    assert faults() == before


def test_uninstrument_restores_the_identical_objects(case: Case, telemetry: Any) -> None:
    made = instrumentor(case)
    case.client("http://127.0.0.1:1")  # imports what is imported lazily

    def standing() -> list[Any]:
        found = []
        for point in made.points:
            with contextlib.suppress(ImportError, AttributeError, KeyError):
                module, _, path = point.target.partition(":")
                owner: Any = importlib.import_module(module)
                *parts, name = path.split(".")
                for part in parts:
                    owner = getattr(owner, part)
                found.append(vars(owner)[name])
        return found

    before = standing()
    assert before
    made.instrument(tracer_provider=telemetry.provider)
    assert all(now is not then for now, then in zip(standing(), before, strict=True))
    made.uninstrument()
    assert all(now is then for now, then in zip(standing(), before, strict=True))


def test_every_target_of_the_current_version_is_there(case: Case) -> None:
    major = int(version(case.name).partition(".")[0])
    if major < {"mistralai": 3, "cohere": 7, "groq": 1, "together": 3}.get(case.name, 0):
        pytest.skip("an older version, which need not have all")
    case.client("http://127.0.0.1:1")
    modules = {"mistral": "mistralai."}.get(case.module, case.name)
    for point in instrumentor(case).points:
        module, _, path = point.target.partition(":")
        if not module.startswith(modules) or module.partition(".")[0] not in case.name:
            continue
        try:
            owner: Any = importlib.import_module(module)
        except ModuleNotFoundError:
            assert case.module == "mistral"  # an older version's place
            continue
        for part in path.split("."):
            owner = getattr(owner, part)


def test_instrumenting_imports_no_client() -> None:
    code = (
        "import sys\n"
        "from tollspan.instrumentation.cohere import CohereInstrumentor\n"
        "from tollspan.instrumentation.mistral import MistralInstrumentor\n"
        "from tollspan.instrumentation.ollama import OllamaInstrumentor\n"
        "from tollspan.instrumentation.stainless import GroqInstrumentor, TogetherInstrumentor\n"
        "for made in (CohereInstrumentor, MistralInstrumentor, OllamaInstrumentor, GroqInstrumentor,"
        " TogetherInstrumentor):\n"
        "    made().instrument()\n"
        "clients = {'cohere', 'mistralai', 'ollama', 'groq', 'together', 'openai', 'httpx', 'httpx2'}\n"
        "assert clients.isdisjoint(sys.modules), clients.intersection(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
