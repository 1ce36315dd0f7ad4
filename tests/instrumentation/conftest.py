"""What the instrumentation's tests share: a tracer provider that keeps its spans, and OpenAI on a mock wire."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from opentelemetry import context
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tollspan.instrumentation import guard

from .http_library import httpx2


class Telemetry:
    """A tracer provider of the test's own, and what came out of it."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    def spans(self) -> list[ReadableSpan]:
        return list(self.exporter.get_finished_spans())

    def only(self) -> ReadableSpan:
        """The one span there is."""
        spans = self.spans()
        assert len(spans) == 1, [span.name for span in spans]
        return spans[0]

    def attributes(self) -> dict[str, Any]:
        """Attributes of the one span there is."""
        return dict(self.only().attributes or {})


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    """Spans of this test. Checks that the test left no context attached and that nothing of ours failed unnoticed."""
    before, faults = context.get_current(), guard.faults()
    telemetry = Telemetry()
    yield telemetry
    assert context.get_current() == before, "a context was left attached"
    assert guard.faults() == faults, "a fault of ours was swallowed in a test that expected none"


@pytest.fixture
def faulty_telemetry() -> Telemetry:
    """As `telemetry`, for tests that break something of ours on purpose."""
    return Telemetry()


def completion(**changed: Any) -> dict[str, Any]:
    """A chat completion as the service sends it."""
    return {
        "id": "chatcmpl-7",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-5-mini-2025-08-07",
        "service_tier": "default",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello."}, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": 100,
            "completion_tokens": 20,
            "total_tokens": 120,
            "prompt_tokens_details": {"cached_tokens": 80, "cache_write_tokens": 10, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 7, "audio_tokens": 0},
        },
        **changed,
    }


def completion_chunks(usage: bool = True, words: int = 3) -> list[dict[str, Any]]:
    """The chunks of a streamed chat completion, with the usage chunk at the end or without."""
    whole = {"id": "chatcmpl-7", "object": "chat.completion.chunk", "created": 1, "model": "gpt-5-mini-2025-08-07"}
    chunks: list[dict[str, Any]] = [
        {**whole, "choices": [{"index": 0, "delta": {"content": f"w{n} "}, "finish_reason": None}]}
        for n in range(words)
    ]
    chunks.append({**whole, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    if usage:
        chunks.append({**whole, "service_tier": "flex", "choices": [], "usage": completion()["usage"]})
    return chunks


def response(**changed: Any) -> dict[str, Any]:
    """An object of the Responses API as the service sends it."""
    return {
        "id": "resp_7",
        "object": "response",
        "created_at": 1,
        "model": "gpt-5-mini-2025-08-07",
        "status": "completed",
        "service_tier": "priority",
        "output": [
            {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": "Hello.", "annotations": []}],
            }
        ],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "tool_usage": {"web_search": {"num_requests": 2}},
        "usage": {
            "input_tokens": 100,
            "input_tokens_details": {"cached_tokens": 80, "cache_write_tokens": 10},
            "output_tokens": 20,
            "output_tokens_details": {"reasoning_tokens": 7},
            "total_tokens": 120,
        },
        **changed,
    }


def response_events(last: str = "response.completed", **changed: Any) -> list[dict[str, Any]]:
    """The events of a streamed response."""
    status = last.partition(".")[2]
    text = {"item_id": "msg_1", "output_index": 0, "content_index": 0, "logprobs": []}
    item = {"id": "msg_1", "type": "message", "role": "assistant", "status": "in_progress", "content": []}
    part = {"type": "output_text", "text": "", "annotations": []}
    events: list[dict[str, Any]] = [
        {
            "type": "response.created",
            "response": response(status="in_progress", usage=None, output=[], tool_usage=None),
        },
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        {"type": "response.content_part.added", **text, "part": part},
        {"type": "response.output_text.delta", **text, "delta": "Hel"},
        {"type": "response.output_text.delta", **text, "delta": "lo."},
        {"type": last, "response": response(**{"status": status, **changed})},
    ]
    return [{**event, "sequence_number": number} for number, event in enumerate(events)]


def server_sent(events: list[dict[str, Any]], done: bool = True) -> bytes:
    """Events in the framing of server-sent events."""
    lines = [
        (f"event: {event['type']}\n" if "type" in event else "") + f"data: {json.dumps(event)}\n\n" for event in events
    ]
    return ("".join(lines) + ("data: [DONE]\n\n" if done else "")).encode()


class Body(httpx2.SyncByteStream, httpx2.AsyncByteStream):
    """A response body that comes in two pieces, and then breaks off when it has an error."""

    def __init__(self, body: bytes, error: Exception | None = None) -> None:
        self.pieces, self.error = (body[: len(body) // 2], body[len(body) // 2 :]), error

    def __iter__(self) -> Iterator[bytes]:
        yield from self.pieces
        if self.error is not None:
            raise self.error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            yield piece
        if self.error is not None:
            raise self.error


Reply = httpx2.Response | Exception | Callable[[httpx2.Request], httpx2.Response]


class Wire:
    """A service that gives the replies it was told to, in order, the last one again and again."""

    completion = staticmethod(completion)
    completion_chunks = staticmethod(completion_chunks)
    response = staticmethod(response)
    response_events = staticmethod(response_events)

    def __init__(self) -> None:
        self.replies: list[Callable[[], Reply]] = []
        self.requests: list[httpx2.Request] = []

    def json(self, body: Any, status: int = 200, **headers: str) -> Wire:
        headers = {"content-type": "application/json", **headers}
        content = json.dumps(body).encode()
        self.replies.append(lambda: httpx2.Response(status, headers=headers, stream=Body(content)))
        return self

    def error(self, status: int) -> Wire:
        """A refusal that may be tried again at once."""
        return self.json({"error": {"message": f"no: {status}"}}, status, **{"retry-after-ms": "1"})

    def raises(self, error: Exception) -> Wire:
        self.replies.append(lambda: error)
        return self

    def stream(self, events: list[dict[str, Any]], breaking: Exception | None = None) -> Wire:
        """Server-sent events, which break off with an error when one is given."""
        headers = {"content-type": "text/event-stream"}
        content = server_sent(events, done=breaking is None)
        self.replies.append(lambda: httpx2.Response(200, headers=headers, stream=Body(content, breaking)))
        return self

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        reply = (self.replies.pop(0) if len(self.replies) > 1 else self.replies[0])()
        if isinstance(reply, Exception):
            raise reply
        return reply if isinstance(reply, httpx2.Response) else reply(request)

    async def _answer_async(self, request: httpx2.Request) -> httpx2.Response:
        return self._answer(request)

    def client(self, **options: Any) -> Any:
        """A real synchronous client of this service."""
        import openai

        transport = httpx2.MockTransport(self._answer)
        return openai.OpenAI(**{"api_key": "none", "http_client": httpx2.Client(transport=transport), **options})

    def async_client(self, **options: Any) -> Any:
        """A real asynchronous client of this service."""
        import openai

        transport = httpx2.MockTransport(self._answer_async)
        http = httpx2.AsyncClient(transport=transport)
        return openai.AsyncOpenAI(**{"api_key": "none", "http_client": http, **options})


@pytest.fixture
def wire() -> Wire:
    """An OpenAI service that nobody has told what to say yet."""
    return Wire()


@pytest.fixture
def openai_spans(telemetry: Telemetry) -> Iterator[Telemetry]:
    """The openai client instrumented for this test."""
    from tollspan.instrumentation.openai import OpenAIInstrumentor

    OpenAIInstrumentor().instrument(tracer_provider=telemetry.provider)
    yield telemetry
    OpenAIInstrumentor().uninstrument()


@pytest.fixture
def heard(switched: Any) -> Any:
    """Spans with content, of the client that the module's ``switched`` instruments."""
    return switched(OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT="span_only")


@pytest.fixture
def keyed(switched: Any) -> Any:
    """Spans with fingerprints, likewise."""
    return switched(TOLLSPAN_FINGERPRINT_KEY="secret of the tests")
