"""Asking for the usage of streams, for the clients whose wire has it: what is asked, what the program sees, what it
costs. OpenAI's own client has its tests in `test_openai_completions`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pkgutil import resolve_name
from typing import Any

import pytest

from tollspan.instrumentation import faults, stream_usage
from tollspan.instrumentation.stream_usage import OLD_VARIABLE, VARIABLE

from .every_client import CLIENTS, Client, Make
from .openai_bill import ledger
from .small_stubs import SSE, openai_chunks, server_sent
from .stub_server import StubServer

HELLO = [{"role": "user", "content": "hello"}]
USAGE = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}
ASKED = {"include_usage": True}

Stream = Callable[..., Any]
"""``(client, **more)`` → a stream of three chunks with a choice each."""

STREAMS: dict[str, Stream] = {
    "together": lambda client, **more: client.chat.completions.create(model="m", messages=HELLO, stream=True, **more),
    "huggingface": lambda client, **more: client.chat_completion(HELLO, model="m", stream=True, **more),
    "litellm": lambda client, **more: client(stream=True, **more),
}
CLIENT = pytest.mark.parametrize("client", [client for client in CLIENTS if client.name in STREAMS], ids=str)


def chunks(usage: Any = USAGE) -> list[bytes]:
    made = openai_chunks("m")
    return server_sent([*made, {**made[0], "choices": [], "usage": usage}] if usage else made)


@pytest.fixture
def stub() -> Iterator[StubServer]:
    with StubServer() as stub:
        yield stub.stream(chunks(), SSE)


@pytest.fixture
def asking(client: Client, telemetry: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The client instrumented with the option on."""
    yield from _asking(client, telemetry, monkeypatch)


@pytest.fixture
def faulty_asking(client: Client, faulty_telemetry: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The same, for a test that breaks something of ours on purpose."""
    yield from _asking(client, faulty_telemetry, monkeypatch)


def _asking(client: Client, telemetry: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    pytest.importorskip(client.module)
    monkeypatch.setenv(VARIABLE, "true")
    instrumentors = [resolve_name(f"tollspan.instrumentation.{each}")() for each in client.instrumentor.split()]
    for instrumentor in instrumentors:
        instrumentor.instrument(tracer_provider=telemetry.provider)
    yield telemetry
    for instrumentor in instrumentors:
        instrumentor.uninstrument()


def asked(stub: StubServer) -> Any:
    """The stream options of the last request."""
    return stub.requests[-1][1].get("stream_options")


def meters(telemetry: Any) -> dict[str, Any]:
    (row,) = ledger(telemetry.spans())
    found: dict[str, Any] = row["meters"]
    return found


def texts(stream: Any) -> list[str]:
    """Texts of chunks that have a choice each, as a program reads them that knows of no others."""
    return [chunk.choices[0].delta.content or "" for chunk in stream]


@CLIENT
def test_usage_is_asked_for_and_its_chunk_hidden(client: Client, asking: Any, stub: StubServer) -> None:
    made = client.make(Make(stub.url), False)
    assert "".join(texts(STREAMS[client.name](made))) == "Hello."
    assert asked(stub) == ASKED
    assert meters(asking) == {"tokens.input.uncached": 1000, "tokens.output": 100}


@CLIENT
async def test_usage_is_asked_for_and_its_chunk_hidden_async(client: Client, asking: Any, stub: StubServer) -> None:
    made = client.make(Make(stub.url), True)
    stream = await STREAMS[client.name](made)
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "Hello."
    assert asked(stub) == ASKED
    assert meters(asking) == {"tokens.input.uncached": 1000, "tokens.output": 100}


@CLIENT
async def test_it_is_hidden_too_where_it_cannot_be_read(
    client: Client, faulty_asking: Any, stub: StubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = faults().get("stream_usage.hidden", 0)
    monkeypatch.setattr(resolve_name("tollspan.instrumentation.usage"), "_tables", dict)
    # Held: a client of Hugging Face's that nobody holds closes what its streams are read from.
    made, made_async = (client.make(Make(stub.url), asynchronous) for asynchronous in (False, True))
    assert "".join(texts(STREAMS[client.name](made))) == "Hello."
    stream = await STREAMS[client.name](made_async)
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "Hello."
    if client.name != "litellm":  # which hides it itself
        assert faults()["stream_usage.hidden"] == before + 2


@CLIENT
def test_the_program_sees_what_it_sees_without_us(client: Client, asking: Any, stub: StubServer) -> None:
    made = client.make(Make(stub.url), False)
    seen = [repr(chunk.choices) for chunk in STREAMS[client.name](made)]
    for instrumentor in client.instrumentor.split():
        resolve_name(f"tollspan.instrumentation.{instrumentor}")().uninstrument()
    stub.forget()
    stub.stream(chunks(usage=None), SSE)
    assert seen == [repr(chunk.choices) for chunk in STREAMS[client.name](made)]


@CLIENT
@pytest.mark.parametrize("include", [True, False])
def test_an_explicit_choice_is_respected(client: Client, asking: Any, stub: StubServer, include: bool) -> None:
    options = {"stream_options": {"include_usage": include}}
    if client.name == "together":  # its client has no such argument
        options = {"extra_body": options}
    made = client.make(Make(stub.url), False)
    list(STREAMS[client.name](made, **options))
    assert asked(stub) == {"include_usage": include}


@CLIENT
def test_other_calls_are_left_alone(client: Client, asking: Any, stub: StubServer) -> None:
    stub.forget()
    stub.json(client.answer((1000, 100)))
    next(iter(client.asks.values())).sync(client.make(Make(stub.url), False))
    assert asked(stub) is None


@pytest.mark.parametrize("client", [client for client in CLIENTS if client.name == "huggingface"], ids=str)
def test_other_options_of_a_hugging_face_stream_stay(client: Client, asking: Any, stub: StubServer) -> None:
    made = client.make(Make(stub.url), False)
    texts(STREAMS[client.name](made, extra_body={"stream_options": {"other": 1}}))
    assert asked(stub) == {"other": 1, "include_usage": True}


@pytest.mark.parametrize("client", [client for client in CLIENTS if client.name == "litellm"], ids=str)
def test_litellm_over_another_protocol_is_asked_for_nothing(client: Client, asking: Any, stub: StubServer) -> None:
    import litellm

    stub.forget()
    stub.stream(next(each for each in CLIENTS if each.name == "anthropic").events((7, 9)), SSE)
    given: Any = {"model": "anthropic/claude-sonnet-4-5", "messages": HELLO, "api_base": stub.url, "api_key": "none"}
    list(litellm.completion(**given, stream=True))
    assert asked(stub) is None


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [(VARIABLE, "true", True), (VARIABLE, "1", True), (VARIABLE, "false", False), (OLD_VARIABLE, "true", True)],
)
def test_the_variable_and_its_old_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str, wanted: bool) -> None:
    monkeypatch.setenv(name, value)
    assert stream_usage.wanted() is wanted


def test_the_new_name_goes_before_the_old_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OLD_VARIABLE, "true")
    monkeypatch.setenv(VARIABLE, "false")
    assert not stream_usage.wanted()


def test_the_old_name_is_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    stream_usage._say_new_name.cache_clear()
    monkeypatch.setenv(OLD_VARIABLE, "true")
    with caplog.at_level(logging.WARNING):
        assert [stream_usage.wanted(), stream_usage.wanted()] == [True, True]
    assert [VARIABLE in record.message for record in caplog.records] == [True]


def test_off_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (VARIABLE, OLD_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    assert not stream_usage.wanted()
