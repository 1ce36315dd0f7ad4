"""Audio of the openai client: transcription and translation by tokens or seconds, speech by characters or tokens."""

from __future__ import annotations

import gc
from decimal import Decimal
from typing import Any

import openai
import pytest
from openai import Stream
from openai._legacy_response import HttpxBinaryResponseContent
from openai._response import StreamedBinaryAPIResponse
from openai.types.audio import Transcription, TranscriptionVerbose, Translation, TranslationVerbose

from tollspan.instrumentation import faults
from tollspan.instrumentation.openai import OpenAIInstrumentor, media
from tollspan.pricing import attributes as names

from .openai_bill import bill, ledger, reply

SOUND = ("a.wav", b"RIFF", "audio/wav")
TOKENS = {
    "type": "tokens",
    "input_tokens": 1200,
    "input_token_details": {"text_tokens": 200, "audio_tokens": 1000},
    "output_tokens": 100,
    "total_tokens": 1300,
}
BY_TOKENS = (
    {"tokens.input.uncached": 200, "tokens.input.audio": 1000, "tokens.output": 100},
    Decimal("0.0075"),
    "priced",
)
"""200 × $2.50 + 1,000 × $6 + 100 × $10, by the million."""

BY_SECONDS = ({"audio.seconds": Decimal("90.5")}, Decimal("0.00905"), "priced")
"""90.5 s of $0.36 an hour."""

SPEAK: dict[str, Any] = {"model": "tts-1", "voice": "alloy", "input": "Grüße " * 100}
SPOKEN = ({"characters": 600}, Decimal("0.009"), "priced")
"""600 characters × $15 / 1,000,000."""


def test_transcription_by_tokens(openai_spans: Any, wire: Any) -> None:
    client = wire.json({"text": "hello", "usage": TOKENS}).client()
    assert type(client.audio.transcriptions.create(model="gpt-4o-transcribe", file=SOUND)) is Transcription
    assert openai_spans.only().name == "transcription gpt-4o-transcribe"
    assert bill(openai_spans.spans()) == BY_TOKENS


async def test_transcription_by_seconds_async(openai_spans: Any, wire: Any) -> None:
    client = wire.json({"text": "hello", "usage": {"type": "duration", "seconds": 90.5}}).async_client()
    await client.audio.transcriptions.create(model="whisper-1", file=SOUND)
    assert openai_spans.attributes()[names.usage("audio.seconds")] == 90.5
    assert bill(openai_spans.spans()) == BY_SECONDS


@pytest.mark.parametrize("usage", [None, {"type": "duration", "seconds": 90.5}])
def test_verbose_transcription(openai_spans: Any, wire: Any, usage: Any) -> None:
    body = {"task": "transcribe", "text": "hello", "language": "en", "duration": 90.5, "usage": usage}
    result = (
        wire.json(body)
        .client()
        .audio.transcriptions.create(model="whisper-1", file=SOUND, response_format="verbose_json")
    )
    assert type(result) is TranscriptionVerbose
    assert bill(openai_spans.spans()) == BY_SECONDS


def test_transcription_raw(openai_spans: Any, wire: Any) -> None:
    client = wire.json({"text": "hello", "usage": TOKENS}).client()
    raw = client.audio.transcriptions.with_raw_response.create(model="gpt-4o-transcribe", file=SOUND)
    assert raw.parse().text == "hello"
    assert bill(openai_spans.spans()) == BY_TOKENS


def test_transcription_as_text_tells_nothing(openai_spans: Any, wire: Any) -> None:
    client = reply(wire, b"hello\n", "text/plain").client()
    result = client.audio.transcriptions.create(model="whisper-1", file=SOUND, response_format="text")
    assert result == "hello\n"
    assert bill(openai_spans.spans()) == ({}, None, "unpriced")


def test_streamed_transcription(openai_spans: Any, wire: Any) -> None:
    events = [
        {"type": "transcript.text.delta", "delta": "hel"},
        {"type": "transcript.text.delta", "delta": "lo"},
        {"type": "transcript.text.done", "text": "hello", "usage": TOKENS},
    ]
    client = wire.stream(events).client()
    stream = client.audio.transcriptions.create(model="gpt-4o-transcribe", file=SOUND, stream=True)
    assert isinstance(stream, Stream)
    assert [event.type for event in stream][-1] == "transcript.text.done"
    assert bill(openai_spans.spans()) == BY_TOKENS


def test_translation(openai_spans: Any, wire: Any) -> None:
    client = wire.json({"text": "hello"}).client()
    assert type(client.audio.translations.create(model="whisper-1", file=SOUND)) is Translation
    assert bill(openai_spans.spans()) == ({}, None, "unpriced")


@pytest.mark.parametrize("duration", [90.5, "90.5"])
async def test_verbose_translation(openai_spans: Any, wire: Any, duration: Any) -> None:
    client = wire.json({"text": "hello", "language": "en", "duration": duration}).async_client()
    result = await client.audio.translations.create(model="whisper-1", file=SOUND, response_format="verbose_json")
    assert type(result) is TranslationVerbose
    assert openai_spans.only().name == "translation whisper-1"
    assert bill(openai_spans.spans()) == BY_SECONDS


# -- speech ------------------------------------------------------------------------------------------------------------


def test_speech(openai_spans: Any, wire: Any) -> None:
    result = reply(wire, b"ID3sound", "audio/mpeg").client().audio.speech.create(**SPEAK)
    assert type(result) is HttpxBinaryResponseContent
    assert result.content == b"ID3sound"
    assert bill(openai_spans.spans()) == SPOKEN
    assert not [value for value in openai_spans.attributes().values() if "Gr" in str(value)]


async def test_speech_async_streamed(openai_spans: Any, wire: Any) -> None:
    client = reply(wire, b"ID3sound", "audio/mpeg").async_client()
    async with client.audio.speech.with_streaming_response.create(**SPEAK) as response:
        assert openai_spans.spans() == []
        assert b"".join([piece async for piece in response.iter_bytes()]) == b"ID3sound"
    assert bill(openai_spans.spans()) == SPOKEN


def test_speech_streamed_and_left_early(openai_spans: Any, wire: Any) -> None:
    client = reply(wire, b"ID3sound", "audio/mpeg").client()
    with client.audio.speech.with_streaming_response.create(**SPEAK) as response:
        assert isinstance(response, StreamedBinaryAPIResponse)
        next(response.iter_bytes(1))
    del response
    gc.collect()
    assert bill(openai_spans.spans()) == SPOKEN


def test_speech_raw(openai_spans: Any, wire: Any) -> None:
    raw = reply(wire, b"ID3sound", "audio/mpeg").client().audio.speech.with_raw_response.create(**SPEAK)
    assert raw.content == b"ID3sound"
    assert bill(openai_spans.spans()) == SPOKEN


def test_speech_that_is_refused_costs_nothing(openai_spans: Any, wire: Any) -> None:
    with pytest.raises(openai.BadRequestError):
        wire.error(400).client().audio.speech.create(**SPEAK)
    assert bill(openai_spans.spans()) == ({}, None, "not_billed")


def test_speech_as_events_tells_its_tokens(openai_spans: Any, wire: Any) -> None:
    usage = '{"input_tokens":14,"output_tokens":101,"total_tokens":115}'
    body = (
        'data: {"type":"speech.audio.delta","audio":"aGVsbG8="}\n\n'
        f'data: {{"type":"speech.audio.done","usage":{usage}}}\n\n'
    ).encode()
    client = reply(wire, body, "text/event-stream; charset=utf-8").client()
    result = client.audio.speech.create(**{**SPEAK, "model": "gpt-4o-mini-tts"}, stream_format="sse")
    assert result.content == body
    # 14 × $0.60 + 101 × $12, by the million.
    assert bill(openai_spans.spans()) == (
        {"tokens.input.uncached": 14, "tokens.output.audio": 101},
        Decimal("0.0012204"),
        "priced",
    )


def test_speech_billed_by_tokens_that_are_not_told_has_no_price(openai_spans: Any, wire: Any) -> None:
    reply(wire, b"ID3sound", "audio/mpeg").client().audio.speech.create(**{**SPEAK, "model": "gpt-4o-mini-tts"})
    (row,) = ledger(openai_spans.spans())
    assert (row["cost"], row["cost_status"]) == (None, "unpriced")


@pytest.mark.parametrize("broken", ["_fields", "put_usage", "_outlives_speech"])
def test_a_fault_of_ours_never_reaches_the_program(
    faulty_telemetry: Any, wire: Any, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def fault(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(media, broken, fault)
    counted = sum(faults().values())
    OpenAIInstrumentor().instrument(tracer_provider=faulty_telemetry.provider)
    try:
        reply(wire, b"ID3sound", "audio/mpeg")
        assert wire.client().audio.speech.create(**SPEAK).content == b"ID3sound"
        wire.replies.clear()
        client = wire.json({"text": "hello", "usage": TOKENS}).client()
        assert client.audio.transcriptions.create(model="gpt-4o-transcribe", file=SOUND).text == "hello"
    finally:
        OpenAIInstrumentor().uninstrument()
    assert len(faulty_telemetry.spans()) == 2
    assert sum(faults().values()) > counted
