"""Videos of the openai client: billed once, when they are done, whoever asks after them."""

from __future__ import annotations

from typing import Any

import pytest

from tollspan.instrumentation import faults, once, tag
from tollspan.instrumentation.openai import OpenAIInstrumentor, videos
from tollspan.pricing import attributes as names

from .openai_bill import ledger

Video = pytest.importorskip("openai.types.video", reason="this version of the client makes no videos").Video

ASK: dict[str, Any] = {"model": "sora-2", "prompt": "a cat", "seconds": "8"}
ONCE = once.of("openai")
CREATED = 1_795_200_000


def video(status: str, **changed: Any) -> dict[str, Any]:
    return {
        "id": "video_7",
        "object": "video",
        "created_at": CREATED,
        "completed_at": CREATED + 60 if status == "completed" else None,
        "model": "sora-2",
        "progress": 0,
        "seconds": "8",
        "size": "720x1280",
        "status": status,
        **changed,
    }


@pytest.fixture(autouse=True)
def another_process() -> None:
    """Nothing is known of any video."""
    ONCE.forget()


def seconds(telemetry: Any) -> list[Any]:
    return [row["meters"] for row in ledger(telemetry.spans())]


def test_a_video_is_billed_when_it_is_done(openai_spans: Any, wire: Any) -> None:
    client = wire.json(video("queued")).json(video("in_progress")).json(video("completed")).client()
    with tag(tenant="acme"):
        asked = client.videos.create(**ASK)
    assert type(asked) is Video
    span = openai_spans.only()
    assert span.name == "video_generation sora-2"
    assert span.attributes[names.USAGE_DEFERRED] is True
    assert ledger(openai_spans.spans()) == []
    for _ in range(4):  # the last reply comes again and again
        client.videos.retrieve("video_7")
    (row,) = ledger(openai_spans.spans())
    assert (row["meters"], row["tenant"]) == ({"video.seconds": 8}, "acme")
    made = openai_spans.spans()[-1]
    assert [link.context.span_id for link in made.links] == [span.context.span_id]
    assert (made.start_time, made.end_time) == (CREATED * 10**9, (CREATED + 60) * 10**9)


def test_two_processes_that_poll_make_one_row(openai_spans: Any, wire: Any) -> None:
    client = wire.json(video("completed")).client()
    client.videos.retrieve("video_7")
    ONCE.forget()
    client.videos.with_raw_response.retrieve("video_7")
    assert len(openai_spans.spans()) == 2
    assert seconds(openai_spans) == [{"video.seconds": 8}]


async def test_create_and_poll_async(openai_spans: Any, wire: Any) -> None:
    client = wire.json(video("queued")).json(video("completed")).async_client()
    done = await client.videos.create_and_poll(**ASK, poll_interval_ms=1)
    assert done.status == "completed"
    assert seconds(openai_spans) == [{"video.seconds": 8}]


def test_a_video_that_fails_costs_nothing(openai_spans: Any, wire: Any) -> None:
    client = wire.json(video("queued")).json(video("failed", error={"code": "x", "message": "no"})).client()
    client.videos.create(**ASK)
    client.videos.retrieve("video_7")
    assert ledger(openai_spans.spans()) == []


def test_a_remix_is_a_video_of_its_own(openai_spans: Any, wire: Any) -> None:
    client = wire.json(video("completed")).json(video("completed", id="video_8")).client()
    client.videos.create(**ASK)
    client.videos.remix("video_7", prompt="a dog")
    assert seconds(openai_spans) == [{"video.seconds": 8}] * 2


def test_an_extension_is_billed_by_what_was_added(openai_spans: Any, wire: Any) -> None:
    client = wire.json(video("queued", id="video_9")).json(video("completed", id="video_9", seconds="12")).client()
    if not hasattr(client.videos, "extend"):
        pytest.skip("this version cannot extend videos")
    client.videos.extend(prompt="more", seconds="4", video=("a.mp4", b"mp4", "video/mp4"))
    client.videos.retrieve("video_9")
    assert seconds(openai_spans) == [{"video.seconds": 4}]


def test_a_fault_of_ours_never_reaches_the_program(
    faulty_telemetry: Any, wire: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(videos, "_fields", fault)
    counted = sum(faults().values())
    OpenAIInstrumentor().instrument(tracer_provider=faulty_telemetry.provider)
    try:
        client = wire.json(video("completed")).client()
        assert client.videos.create(**ASK).status == client.videos.retrieve("video_7").status == "completed"
    finally:
        OpenAIInstrumentor().uninstrument()
    assert sum(faults().values()) == counted + 2
