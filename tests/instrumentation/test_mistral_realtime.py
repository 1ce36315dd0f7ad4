"""Realtime connections of the mistralai client: one span for each session, with what it was told to have used."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from decimal import Decimal
from typing import Any

import pytest
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.trace import StatusCode

from tollspan.instrumentation import faults, mistral_realtime, tag
from tollspan.instrumentation.mistral import MistralInstrumentor
from tollspan.pricing import attributes as names

from .openai_bill import bill

pytest.importorskip("mistralai.extra.realtime", exc_type=ImportError)
server = pytest.importorskip("websockets.asyncio.server")

try:
    from mistralai.client import Mistral
except ImportError:
    from mistralai import Mistral  # version 1

HEARS = "voxtral-mini-transcribe-realtime-2602"
SPEAKS = "voxtral-mini-tts-2603"
USAGE = {"prompt_audio_seconds": 90, "prompt_tokens": 4, "completion_tokens": 20, "total_tokens": 24}
HEARD = [
    {"type": "transcription.language", "audio_language": "en"},
    {"type": "transcription.text.delta", "text": "Hel"},
    {"type": "transcription.text.delta", "text": "lo."},
    {"type": "transcription.done", "model": HEARS, "text": "Hello.", "language": "en", "usage": USAGE},
]
SPOKEN = [
    {"type": "speech.audio.delta", "audio_data": "aGk="},
    {"type": "speech.audio.done", "usage": {"prompt_tokens": 6, "completion_tokens": 0, "total_tokens": 6}},
]
SESSIONS: dict[str, dict[str, Any]] = {
    "transcriptions": {"model": HEARS, "audio_format": {"encoding": "pcm_s16le", "sample_rate": 16000}},
    "speech": {
        "model": SPEAKS,
        "is_ref_audio": False,
        "streaming_mode": "responsive",
        "response_format": "mp3",
        "expressiveness": 0.5,
    },
}
FAILED = {"type": "error", "error": {"message": "too fast", "code": 3001}}


@asynccontextmanager
async def service(events: list[dict[str, Any]]) -> AsyncIterator[Mistral]:
    """A client of a service that sends these events to whoever has nothing more to say, and then waits."""

    async def handle(socket: Any) -> None:
        kind = socket.request.path.split("/")[3]
        session = {"request_id": "req_7", **SESSIONS[kind]}
        await socket.send(json.dumps({"type": "session.created", "session": session}))
        async for message in socket:
            if json.loads(message)["type"].endswith(".end"):
                for event in events:
                    await socket.send(json.dumps(event))

    async with server.serve(handle, "127.0.0.1", 0) as running:
        port = next(iter(running.sockets)).getsockname()[1]
        yield Mistral(api_key="none", server_url=f"http://127.0.0.1:{port}")


@pytest.fixture
def spans(telemetry: Any) -> Any:
    MistralInstrumentor().instrument(tracer_provider=telemetry.provider)
    yield telemetry
    MistralInstrumentor().uninstrument()


async def sound() -> AsyncIterator[bytes]:
    yield b"\0" * 64


async def words() -> AsyncIterator[str]:
    yield "Hello."


async def transcribe(client: Mistral) -> list[Any]:
    return [event async for event in client.audio.realtime.transcribe_stream(sound(), HEARS)]


async def by_hand(client: Mistral) -> list[Any]:
    async with await client.audio.realtime.connect(HEARS) as connection:
        await connection.send_audio(b"\0" * 64)
        await connection.end_audio()
        events = []
        async for event in connection:
            events.append(event)
            if event.type == "transcription.done":
                break
        return events


@pytest.mark.parametrize("reading", [transcribe, by_hand])
async def test_a_transcription(spans: Any, reading: Callable[..., Any]) -> None:
    async with service(HEARD) as client:
        with tag(tenant="acme"):
            events = await reading(client)
    assert [event.type for event in events] == ["session.created", *(event["type"] for event in HEARD)]
    assert spans.only().name == f"transcription {HEARS}"
    attributes = spans.attributes()
    assert attributes.pop(names.SERVER_PORT) > 0
    assert attributes == {
        names.OPERATION_NAME: "transcription",
        names.PROVIDER_NAME: "mistral_ai",
        names.REQUEST_MODEL: HEARS,
        names.REQUEST_STREAM: True,
        names.RESPONSE_MODEL: HEARS,
        names.RESPONSE_ID: "req_7",
        names.SERVER_ADDRESS: "127.0.0.1",
        names.TENANT: "acme",
        names.USAGE_INPUT_TOKENS: 4,
        names.USAGE_OUTPUT_TOKENS: 20,
        names.usage("audio.seconds"): 90.0,
    }


async def test_what_a_transcription_costs(spans: Any) -> None:
    async with service(HEARD) as client:
        await transcribe(client)
    meters, cost, status = bill(spans.spans())
    assert meters["audio.seconds"] == 90
    # 0.36 USD an hour; the tokens beside have no price.
    assert (cost, status) == (Decimal("0.009"), "partial")


async def test_speech(spans: Any) -> None:
    async with service(SPOKEN) as client:
        events = [event async for event in client.audio.realtime_speech.speak_stream(words(), SPEAKS)]
    assert [event.type for event in events][-1] == "speech.audio.done"
    assert spans.only().name == f"speech {SPEAKS}"
    assert spans.attributes()[names.USAGE_INPUT_TOKENS] == 6


async def test_an_event_that_the_client_cannot_parse_is_read_all_the_same(spans: Any) -> None:
    async with service([{"type": "transcription.done", "model": HEARS, "usage": USAGE}]) as client:
        events = await transcribe(client)
    assert type(events[-1]).__name__ == "UnknownRealtimeEvent"
    assert spans.attributes()[names.usage("audio.seconds")] == 90


async def test_a_session_that_fails(spans: Any) -> None:
    async with service([HEARD[1], FAILED]) as client:
        await transcribe(client)
    assert spans.only().status.status_code is StatusCode.ERROR
    assert spans.attributes()[names.ERROR_TYPE] == "3001"
    assert names.STREAM_ABANDONED not in spans.attributes()


async def test_a_session_that_is_left_is_unpriced(spans: Any) -> None:
    async with service(HEARD) as client:
        async with aclosing(client.audio.realtime.transcribe_stream(sound(), HEARS)) as events:
            async for event in events:
                if event.type == "transcription.text.delta":
                    break
        async with await client.audio.realtime.connect(HEARS):
            pass  # nothing was asked for, so there is nothing to tell
    assert spans.attributes()[names.STREAM_ABANDONED] is True
    assert bill(spans.spans()) == ({}, None, "unpriced")


async def test_suppressed_and_uninstrumented_sessions_are_left_alone(telemetry: Any) -> None:
    MistralInstrumentor().instrument(tracer_provider=telemetry.provider)
    async with service(HEARD) as client:
        with suppress_instrumentation():
            assert len(await transcribe(client)) == 5
        MistralInstrumentor().uninstrument()
        assert len(await transcribe(client)) == 5
    assert telemetry.spans() == []


@pytest.mark.parametrize("broken", ["address_attributes", "given", "put_usage"])
async def test_a_fault_of_ours_never_reaches_the_program(
    faulty_telemetry: Any, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def fault(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(mistral_realtime, broken, fault)
    counted = sum(faults().values())
    MistralInstrumentor().instrument(tracer_provider=faulty_telemetry.provider)
    try:
        async with service(HEARD) as client:
            assert len(await transcribe(client)) == 5
    finally:
        MistralInstrumentor().uninstrument()
    assert sum(faults().values()) > counted
