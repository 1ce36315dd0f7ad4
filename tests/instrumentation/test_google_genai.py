"""The google-genai client, instrumented: every request gives one span with what the provider counted, and the program
sees what it would see without us."""

from __future__ import annotations

import asyncio
import gc
import inspect
import pickle
import sys
import warnings
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from google import genai
from google.genai import errors, types
from opentelemetry import context, trace
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

from tollspan.instrumentation import faults, tag
from tollspan.instrumentation.google_genai import POINTS, GoogleGenAIInstrumentor, attempts, readers
from tollspan.pricing import attributes as names

sys.path.insert(0, str(Path(__file__).parent))

from google_stub import MODEL, USAGE, GoogleStub, calling, chunks, content

ASK: dict[str, Any] = {"model": MODEL, "contents": "hello"}

COUNTS = {
    names.USAGE_INPUT_TOKENS: 1030,
    names.USAGE_OUTPUT_TOKENS: 250,
    names.USAGE_CACHE_READ_TOKENS: 400,
    names.USAGE_REASONING_TOKENS: 50,
    names.USAGE_AUDIO_INPUT_TOKENS: 100,
    names.USAGE_AUDIO_CACHE_READ_TOKENS: 20,
}


@pytest.fixture
def google() -> Iterator[GoogleStub]:
    """A Google service that nobody has told what to say yet."""
    stub = GoogleStub()
    yield stub
    stub.close()


@pytest.fixture
def google_spans(telemetry: Any) -> Iterator[Any]:
    """The google-genai client instrumented for this test."""
    GoogleGenAIInstrumentor().instrument(tracer_provider=telemetry.provider)
    yield telemetry
    GoogleGenAIInstrumentor().uninstrument()


def asked(google: GoogleStub, **more: Any) -> dict[str, Any]:
    return {
        names.OPERATION_NAME: "generate_content",
        names.PROVIDER_NAME: "gcp.gemini",
        names.REQUEST_MODEL: MODEL,
        names.SERVER_ADDRESS: "127.0.0.1",
        names.SERVER_PORT: google.server.server_port,
        names.RETRIES: 0,
        **more,
    }


def answered(google: GoogleStub, **more: Any) -> dict[str, Any]:
    return asked(
        google,
        **{
            names.RESPONSE_ID: "resp-7",
            names.RESPONSE_MODEL: MODEL,
            names.RESPONSE_FINISH_REASONS: ("stop",),
            **COUNTS,
            **more,
        },
    )


def streamed(attributes: dict[str, Any]) -> dict[str, Any]:
    """Attributes of a streamed call, whose one measured time is checked here."""
    assert attributes.pop(names.RESPONSE_TIME_TO_FIRST_CHUNK) > 0
    assert attributes.pop(names.REQUEST_STREAM) is True
    return attributes


def over_httpx(google: GoogleStub, **options: Any) -> Any:
    """A client whose asynchronous calls go through httpx, not aiohttp."""
    plain = google.client(**options)._api_client._async_httpx_client
    library = {kind.__module__.partition(".")[0] for kind in type(plain).__mro__} & {"httpx", "httpx2"}
    transport = import_module(library.pop()).AsyncHTTPTransport()
    return google.client(async_client_args={"transport": transport}, **options)


# -- every kind of call ----------------------------------------------------------------------------------------------


def test_generate(google_spans: Any, google: GoogleStub) -> None:
    result = google.json(content()).client().models.generate_content(**ASK)
    assert type(result) is types.GenerateContentResponse
    assert result.text == "Hello."
    span = google_spans.only()
    assert (span.name, span.kind) == (f"generate_content {MODEL}", SpanKind.CLIENT)
    assert span.status.status_code is StatusCode.UNSET
    assert google_spans.attributes() == answered(google)


async def test_generate_async(google_spans: Any, google: GoogleStub) -> None:
    client = over_httpx(google.json(content()))
    assert (await client.aio.models.generate_content(**ASK)).text == "Hello."
    assert google_spans.attributes() == answered(google)


async def test_generate_async_over_aiohttp_says_nothing_of_retries(google_spans: Any, google: GoogleStub) -> None:
    pytest.importorskip("aiohttp")
    client = google.json(content()).client()
    assert (await client.aio.models.generate_content(**ASK)).text == "Hello."
    await client.aio.aclose()
    expected = answered(google)
    del expected[names.RETRIES]
    assert google_spans.attributes() == expected


def test_stream(google_spans: Any, google: GoogleStub) -> None:
    stream = google.stream(chunks()).client().models.generate_content_stream(**ASK)
    assert inspect.isgenerator(stream)
    assert google_spans.spans() == []
    assert [chunk.text for chunk in stream] == ["Hel", "lo", "."]
    assert streamed(google_spans.attributes()) == answered(google)


async def test_stream_async(google_spans: Any, google: GoogleStub) -> None:
    client = over_httpx(google.stream(chunks()))
    stream = await client.aio.models.generate_content_stream(**ASK)
    assert inspect.isasyncgen(stream)
    assert [chunk.text async for chunk in stream] == ["Hel", "lo", "."]
    assert streamed(google_spans.attributes()) == answered(google)


def test_the_raw_response(google_spans: Any, google: GoogleStub) -> None:
    client = google.json(content()).client()
    result = client.models.generate_content(**ASK, config={"should_return_http_response": True})
    assert result.sdk_http_response.body.startswith("{")
    assert result.usage_metadata is None
    assert google_spans.attributes() == answered(google)


def test_vertex(google_spans: Any, google: GoogleStub) -> None:
    usage = {**USAGE, "trafficType": "ON_DEMAND_PRIORITY"}
    google.json(content(usage)).vertex().models.generate_content(**ASK)
    assert google.requests[0][0].endswith(
        f"projects/p/locations/us-central1/publishers/google/models/{MODEL}:generateContent"
    )
    assert google_spans.attributes() == answered(
        google,
        **{
            names.PROVIDER_NAME: "gcp.vertex_ai",
            names.CLOUD_REGION: "us-central1",
            names.OPENAI_RESPONSE_SERVICE_TIER: "priority",
        },
    )


def test_a_chat(google_spans: Any, google: GoogleStub) -> None:
    chat = google.json(content()).client().chats.create(model=MODEL)
    chat.send_message("hello")
    chat.send_message("and again")
    assert [span.attributes[names.USAGE_INPUT_TOKENS] for span in google_spans.spans()] == [1030, 1030]


def test_a_streamed_chat(google_spans: Any, google: GoogleStub) -> None:
    chat = google.stream(chunks()).client().chats.create(model=MODEL)
    assert len(list(chat.send_message_stream("hello"))) == 3
    assert streamed(google_spans.attributes()) == answered(google)


# -- several requests in one call ------------------------------------------------------------------------------------


def weather(city: str) -> str:
    """Weather of a city."""
    return f"rain in {city}"


def test_every_hop_of_automatic_function_calling_is_a_billed_call(google_spans: Any, google: GoogleStub) -> None:
    hop = calling(promptTokenCount=100, candidatesTokenCount=5, totalTokenCount=105)
    google.json(hop).json(content({"promptTokenCount": 150, "candidatesTokenCount": 8, "totalTokenCount": 158}))
    result = google.client().models.generate_content(**ASK, config={"tools": [weather]})
    assert result.text == "Hello."
    assert len(google.requests) == 2
    counts = [
        (span.attributes[names.USAGE_INPUT_TOKENS], span.attributes[names.USAGE_OUTPUT_TOKENS])
        for span in google_spans.spans()
    ]
    assert counts == [(100, 5), (150, 8)]


def test_every_hop_of_a_streamed_one_too(google_spans: Any, google: GoogleStub) -> None:
    google.stream([calling(promptTokenCount=100, candidatesTokenCount=5, totalTokenCount=105)]).stream(chunks())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stream = google.client().models.generate_content_stream(**ASK, config={"tools": [weather]})
        assert [chunk.text for chunk in stream][-1] == "."
    assert [span.attributes[names.USAGE_INPUT_TOKENS] for span in google_spans.spans()] == [100, 1030]


async def test_every_hop_async(google_spans: Any, google: GoogleStub) -> None:
    google.json(calling(promptTokenCount=100, candidatesTokenCount=5, totalTokenCount=105)).json(content())
    await over_httpx(google).aio.models.generate_content(**ASK, config={"tools": [weather]})
    assert [span.attributes[names.USAGE_INPUT_TOKENS] for span in google_spans.spans()] == [100, 1030]


@pytest.mark.skipif(not hasattr(types.FinishReason, "CONTINUATION"), reason="this version does not continue answers")
@pytest.mark.parametrize("streaming", [False, True])
def test_every_hop_of_a_continued_answer_is_billed(google_spans: Any, google: GoogleStub, streaming: bool) -> None:
    cut = content({"promptTokenCount": 100, "candidatesTokenCount": 8, "totalTokenCount": 108}, reason="CONTINUATION")
    cut["candidates"][0]["continuationToken"] = "dG9rZW4="
    if streaming:
        google.stream([cut]).stream([content()])
        assert len(list(google.client().models.generate_content_stream(**ASK))) == 2
    else:
        google.json(cut).json(content())
        assert google.client().models.generate_content(**ASK).usage_metadata.prompt_token_count > 100
    assert [span.attributes[names.USAGE_INPUT_TOKENS] for span in google_spans.spans()] == [100, 1030]


def test_what_a_function_of_the_program_asks_is_a_call_of_its_own(google_spans: Any, google: GoogleStub) -> None:
    client = google.client()

    def ask_again(city: str) -> str:
        """Asks again."""
        return str(client.models.generate_content(**ASK).text)

    ask_again.__annotations__ = {"city": str, "return": str}  # older versions want the types themselves
    google.json(calling("ask_again", promptTokenCount=100, totalTokenCount=100)).json(content())
    client.models.generate_content(**ASK, config={"tools": [ask_again]})
    spans = google_spans.spans()
    assert [span.attributes[names.USAGE_INPUT_TOKENS] for span in spans] == [100, 1030, 1030]
    assert all(span.parent is None for span in spans)


# -- failures and attempts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "error"), [(400, errors.ClientError), (429, errors.ClientError), (503, errors.ServerError)]
)
def test_a_refusal_is_the_clients_own_exception(
    google_spans: Any, google: GoogleStub, status: int, error: type[Exception]
) -> None:
    with pytest.raises(error) as caught:
        google.error(status).client().models.generate_content(**ASK)
    assert caught.value.code == status
    assert google_spans.only().status.status_code is StatusCode.ERROR
    assert google_spans.attributes() == asked(
        google, **{names.ERROR_TYPE: f"google.genai.errors.{error.__name__}", names.HTTP_STATUS: status}
    )


def test_a_refused_stream(google_spans: Any, google: GoogleStub) -> None:
    stream = google.error(503).client().models.generate_content_stream(**ASK)
    with pytest.raises(errors.ServerError):
        next(stream)
    assert google_spans.attributes()[names.HTTP_STATUS] == 503


AGAIN = {"attempts": 3, "initial_delay": 0.001, "max_delay": 0.002}


def test_attempts_that_the_client_made_again_are_counted(google_spans: Any, google: GoogleStub) -> None:
    google.error(503).error(429).json(content())
    google.client(retry_options=AGAIN).models.generate_content(**ASK)
    assert len(google.requests) == 3
    assert google_spans.attributes() == answered(google, **{names.RETRIES: 2})


@pytest.mark.parametrize("make", ["over_httpx", "over_aiohttp"])
async def test_attempts_are_counted_async(google_spans: Any, google: GoogleStub, make: str) -> None:
    google.error(503).stream(chunks())
    options = {"retry_options": AGAIN}
    client = over_httpx(google, **options) if make == "over_httpx" else google.client(**options)
    async for _ in await client.aio.models.generate_content_stream(**ASK):
        pass
    await client.aio.aclose()
    assert streamed(google_spans.attributes()) == answered(google, **{names.RETRIES: 1})


def test_without_the_hook_nothing_is_said_about_attempts(
    google_spans: Any, google: GoogleStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "_hooked", set())
    google.json(content()).client().models.generate_content(**ASK)
    assert names.RETRIES not in google_spans.attributes()


def test_a_timeout(google_spans: Any, google: GoogleStub) -> None:
    with pytest.raises(Exception, match="timed out"):
        google.stall().client(timeout=50).models.generate_content(**ASK)
    attributes = google_spans.attributes()
    assert attributes[names.ERROR_TYPE].endswith("ReadTimeout")
    assert names.HTTP_STATUS not in attributes
    assert names.CALL_SENT not in attributes


def test_a_call_that_was_never_sent(google_spans: Any, google: GoogleStub) -> None:
    with pytest.raises(ValueError, match="audio_timestamp parameter is"):
        google.client().models.generate_content(**ASK, config={"audio_timestamp": True})
    assert google.requests == []
    assert google_spans.attributes()[names.CALL_SENT] is False


def test_an_error_within_a_stream(google_spans: Any, google: GoogleStub) -> None:
    refused = {"error": {"code": 503, "message": "overloaded", "status": "UNAVAILABLE"}}
    stream = google.stream([chunks()[0], refused]).client().models.generate_content_stream(**ASK)
    with pytest.raises(errors.ServerError, match="overloaded"):
        list(stream)
    attributes = google_spans.attributes()
    assert attributes[names.HTTP_STATUS] == 503
    # What was read is known; what was made before the error is not.
    assert attributes[names.USAGE_INPUT_TOKENS] == 1000
    assert names.USAGE_OUTPUT_TOKENS not in attributes


def test_a_connection_that_breaks_within_a_stream(google_spans: Any, google: GoogleStub) -> None:
    stream = google.stream(chunks()[:2], breaking=True).client().models.generate_content_stream(**ASK)
    with pytest.raises(Exception, match=r"peer closed|incomplete"):
        list(stream)
    attributes = google_spans.attributes()
    assert attributes[names.ERROR_TYPE].endswith("RemoteProtocolError")
    assert names.USAGE_OUTPUT_TOKENS not in attributes


async def test_a_cancelled_call_ends_its_span(google_spans: Any, google: GoogleStub) -> None:
    client = over_httpx(google.stall())
    task = asyncio.create_task(client.aio.models.generate_content(**ASK))
    while not google.requests:
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert google_spans.attributes()[names.ERROR_TYPE] == "asyncio.exceptions.CancelledError"


# -- streams that do not end well ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["drop", "close"])
def test_a_stream_left_early_tells_its_input_alone_and_is_marked(
    google_spans: Any, google: GoogleStub, how: str
) -> None:
    stream = google.stream(chunks()).client().models.generate_content_stream(**ASK)
    next(stream)
    if how == "close":
        stream.close()
    del stream
    attributes = google_spans.attributes()
    assert attributes[names.STREAM_ABANDONED] is True
    assert attributes[names.USAGE_INPUT_TOKENS] == 1000
    assert not [name for name in attributes if "output" in name]
    assert google_spans.only().status.status_code is StatusCode.UNSET


def test_a_stream_left_after_its_last_chunk_is_whole(google_spans: Any, google: GoogleStub) -> None:
    stream = google.stream(chunks()).client().models.generate_content_stream(**ASK)
    for _ in range(3):
        next(stream)
    stream.close()
    assert streamed(google_spans.attributes()) == answered(google)


async def test_an_asynchronous_stream_left_early(google_spans: Any, google: GoogleStub) -> None:
    stream = await over_httpx(google.stream(chunks())).aio.models.generate_content_stream(**ASK)
    async for _ in stream:
        break
    await stream.aclose()
    for _ in range(100):  # the client leaves the generator beneath its own to the event loop
        await asyncio.sleep(0)
    assert google_spans.attributes()[names.STREAM_ABANDONED] is True


async def test_a_stream_that_is_cancelled_between_chunks(google_spans: Any, google: GoogleStub) -> None:
    client = over_httpx(google.stream(chunks(), slow=True))
    seen = asyncio.Event()

    async def read() -> None:
        async for _ in await client.aio.models.generate_content_stream(**ASK):
            seen.set()

    task = asyncio.create_task(read())
    await seen.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    attributes = google_spans.attributes()
    assert attributes[names.ERROR_TYPE] == "asyncio.exceptions.CancelledError"
    assert names.USAGE_OUTPUT_TOKENS not in attributes


def test_a_stream_never_read_asks_nothing(google_spans: Any, google: GoogleStub) -> None:
    google.stream(chunks()).client().models.generate_content_stream(**ASK)
    gc.collect()
    assert google.requests == []
    assert google_spans.spans() == []


def test_streams_leave_nothing_behind(google_spans: Any, google: GoogleStub) -> None:
    client = google.stream(chunks()).client()
    gone = []
    for number in range(20):
        stream = client.models.generate_content_stream(**ASK)
        chunk = next(stream)
        gone.append(weakref.ref(chunk))
        if number % 2:
            list(stream)
    del stream, chunk
    assert [reference() for reference in gone] == [None] * 20
    assert len(google_spans.spans()) == 20


# -- many at once ----------------------------------------------------------------------------------------------------


def test_threads_and_their_tags_keep_apart(google_spans: Any, google: GoogleStub) -> None:
    client = google.json(content()).client()

    def work(number: int) -> None:
        with tag(tenant=f"t{number}"):
            client.models.generate_content(model=f"m{number}", contents="hello")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(20)))
    seen = {(span.attributes[names.TENANT], span.name) for span in google_spans.spans()}
    assert seen == {(f"t{number}", f"generate_content m{number}") for number in range(20)}


async def test_interleaved_streams_keep_apart(google_spans: Any, google: GoogleStub) -> None:
    client = over_httpx(google.stream(chunks()))
    before = context.get_current()

    async def work(number: int) -> None:
        with tag(tenant=f"t{number}"):
            async for _ in await client.aio.models.generate_content_stream(**ASK):
                await asyncio.sleep(0)

    await asyncio.gather(*(asyncio.create_task(work(number)) for number in range(6)))
    assert context.get_current() is before
    spans = google_spans.spans()
    assert {span.attributes[names.TENANT] for span in spans} == {f"t{number}" for number in range(6)}
    assert all(span.parent is None and span.attributes[names.USAGE_INPUT_TOKENS] == 1030 for span in spans)


# -- nothing to see, faults of ours, and going away ------------------------------------------------------------------


def test_no_sdk(google: GoogleStub) -> None:
    GoogleGenAIInstrumentor().instrument(tracer_provider=trace.NoOpTracerProvider())
    try:
        client = google.json(content()).client()
        assert client.models.generate_content(**ASK).text == "Hello."
        google.replies.clear()
        stream = google.stream(chunks()).client().models.generate_content_stream(**ASK)
        assert len(list(stream)) == 3
    finally:
        GoogleGenAIInstrumentor().uninstrument()


def test_a_span_that_is_not_sampled_reads_nothing(
    google: GoogleStub, monkeypatch: pytest.MonkeyPatch, telemetry: Any
) -> None:
    def read(*_: Any) -> Any:
        raise AssertionError("nothing is to be read")

    monkeypatch.setattr(readers, "_note", read)
    GoogleGenAIInstrumentor().instrument(tracer_provider=TracerProvider(sampler=ALWAYS_OFF))
    try:
        assert google.json(content()).client().models.generate_content(**ASK).text == "Hello."
        google.replies.clear()
        assert len(list(google.stream(chunks()).client().models.generate_content_stream(**ASK))) == 3
    finally:
        GoogleGenAIInstrumentor().uninstrument()


def test_suppression(google_spans: Any, google: GoogleStub) -> None:
    with suppress_instrumentation():
        google.json(content()).client().models.generate_content(**ASK)
    assert google_spans.spans() == []


@pytest.mark.parametrize("reader", ["_note", "whole_usage", "fields", "put_usage", "client_attributes", "_served_tier"])
async def test_a_fault_in_our_readers_never_reaches_the_program(
    faulty_telemetry: Any, google: GoogleStub, monkeypatch: pytest.MonkeyPatch, reader: str
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(readers, reader, broken)
    counted = sum(faults().values())
    GoogleGenAIInstrumentor().instrument(tracer_provider=faulty_telemetry.provider)
    try:
        assert google.json(content()).client().models.generate_content(**ASK).text == "Hello."
        google.replies.clear()
        google.stream(chunks())
        assert len(list(google.client().models.generate_content_stream(**ASK))) == 3
        stream = await over_httpx(google).aio.models.generate_content_stream(**ASK)
        assert len([chunk async for chunk in stream]) == 3
    finally:
        GoogleGenAIInstrumentor().uninstrument()
    assert len(faulty_telemetry.spans()) == (0 if reader in ("fields", "client_attributes") else 3)
    assert sum(faults().values()) > counted


def patched() -> dict[str, Any]:
    """Every object that we put a wrapper in the place of, by target; what the version does not have is absent."""
    targets = [
        *(point.target for point in POINTS),
        "google.genai._api_client:BaseApiClient._request_once",
        "google.genai._api_client:BaseApiClient._async_request_once",
        "google.genai.live:AsyncLive.connect",
    ]
    found = {}
    for target in targets:
        module, _, path = target.partition(":")
        owner, _, name = path.partition(".")
        try:
            kept = vars(getattr(import_module(module), owner))
        except ImportError:
            continue
        if name in kept:
            found[target] = kept[name]
    return found


def test_uninstrument_puts_back_the_very_objects(telemetry: Any, google: GoogleStub) -> None:
    before = patched()
    GoogleGenAIInstrumentor().instrument(tracer_provider=telemetry.provider)
    during = patched()
    assert before.keys() == during.keys()
    assert all(during[target] is not before[target] for target in before)
    taken = google.json(content()).client().models._generate_content
    GoogleGenAIInstrumentor().uninstrument()
    after = patched()
    assert all(after[target] is before[target] for target in before)
    taken(**ASK)
    assert telemetry.spans() == []


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.target)
def test_what_is_wrapped_looks_to_introspection_as_it_did(telemetry: Any, point: Any) -> None:
    before = patched().get(point.target)
    if before is None:
        pytest.skip("the installed version does not have it")
    GoogleGenAIInstrumentor().instrument(tracer_provider=telemetry.provider)
    during = patched()[point.target]
    GoogleGenAIInstrumentor().uninstrument()
    assert inspect.signature(during) == inspect.signature(before)
    assert inspect.iscoroutinefunction(during) == inspect.iscoroutinefunction(before)
    assert during.__wrapped__ is before
    assert pickle.loads(pickle.dumps(before)) is before


def test_a_stream_that_is_open_when_we_go_is_finished(telemetry: Any, google: GoogleStub) -> None:
    GoogleGenAIInstrumentor().instrument(tracer_provider=telemetry.provider)
    stream = google.stream(chunks()).client().models.generate_content_stream(**ASK)
    next(stream)
    GoogleGenAIInstrumentor().uninstrument()
    assert len(list(stream)) == 2
    assert streamed(telemetry.attributes()) == answered(google)


def test_results_and_errors_pickle_as_they_did(google_spans: Any, google: GoogleStub) -> None:
    result = google.json(content()).client().models.generate_content(**ASK)
    assert pickle.loads(pickle.dumps(result)) == result
    google.replies.clear()
    with pytest.raises(errors.ServerError) as caught:
        google.error(503).client().models.generate_content(**ASK)
    caught.value.response = None
    assert pickle.loads(pickle.dumps(caught.value)).code == 503


def test_it_imports_nothing_of_the_client() -> None:
    import subprocess

    program = (
        "import sys; from tollspan.instrumentation.google_genai import GoogleGenAIInstrumentor;"
        "GoogleGenAIInstrumentor().instrument(); assert not any(n.startswith('google.genai') for n in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_the_version_that_is_installed_is_one_that_is_instrumented() -> None:
    assert int(genai.__version__.partition(".")[0]) >= 2
