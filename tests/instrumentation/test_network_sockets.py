"""Bytes of realtime and live connections, against what a relay between client and service has passed on."""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tollspan.instrumentation import network_sockets
from tollspan.instrumentation.google_genai import GoogleGenAIInstrumentor
from tollspan.instrumentation.mistral import MistralInstrumentor
from tollspan.instrumentation.openai import OpenAIInstrumentor

from .test_google_genai_usage import DONE, SAYS, LiveStub, talk
from .test_network import HERE, PREFIX
from .test_openai_realtime import SESSION, TRANSCRIBED, answered

server = pytest.importorskip("websockets.sync.server")

CLOSING = 16
"""Bytes that the closing of a connection takes at most, after its last call."""


class Relay:
    """Passes on what it is sent, and counts it.

    Attributes:
        sent, received: bytes as a client of it would count them.
    """

    def __init__(self, port: int) -> None:
        self.sent = self.received = 0
        self._to = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            service = socket.create_connection(("127.0.0.1", self._to))
            for ends in ((client, service, "sent"), (service, client, "received")):
                self._threads.append(threading.Thread(target=self._pass, args=ends, daemon=True))
                self._threads[-1].start()

    def _pass(self, source: socket.socket, sink: socket.socket, direction: str) -> None:
        try:
            while data := source.recv(65536):
                setattr(self, direction, getattr(self, direction) + len(data))
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for thread in self._threads:
            thread.join(5)


@pytest.fixture
def instrumented(telemetry: Any) -> Iterator[Callable[..., InMemorySpanExporter]]:
    """Instruments a client in a place that has prices for bytes."""
    used: list[Any] = []

    def instrument(kind: Any) -> InMemorySpanExporter:
        exporter = InMemorySpanExporter()
        provider = TracerProvider(resource=Resource(dict(HERE)))
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        kind().instrument(tracer_provider=provider)
        used.append(kind())
        return exporter

    yield instrument
    for each in used:
        each.uninstrument()
    assert not network_sockets._HOOKS._users


@pytest.fixture
def serving() -> Iterator[Callable[[list[Any]], Relay]]:
    """A service that sends these events, each list of them after a message of the client's, and then hangs up."""
    ended: list[Callable[[], None]] = []

    def serve(turns: list[Any]) -> Relay:
        def handle(connection: Any) -> None:
            for turn in turns:
                if turn and turn is not turns[0]:
                    connection.recv()
                for event in turn:
                    connection.send(json.dumps(event))

        made = server.serve(handle, "127.0.0.1", 0)
        threading.Thread(target=made.serve_forever, daemon=True).start()
        relay = Relay(made.socket.getsockname()[1])
        ended.extend((made.shutdown, relay.close))
        return relay

    yield serve
    for end in ended:
        end()


def told(exporter: InMemorySpanExporter) -> list[tuple[int, int]]:
    """Bytes sent and received, as each span tells."""
    found = []
    for span in exporter.get_finished_spans():
        said = {name: value for name, value in (span.attributes or {}).items() if name.startswith(PREFIX)}
        assert set(said) <= {f"{PREFIX}{way}.internet.bytes" for way in ("egress", "ingress")}
        found.append(
            tuple(int(said.get(f"{PREFIX}{way}.internet.bytes", 0)) for way in ("egress", "ingress"))  # type: ignore[arg-type]
        )
    return found  # type: ignore[return-value]


def check(told: list[tuple[int, int]], relay: Relay) -> None:
    """All that the relay passed on is told, but for the closing."""
    sent, received = (sum(column) for column in zip(*told, strict=True))
    assert 0 <= relay.sent - sent <= CLOSING
    assert 0 <= relay.received - received <= CLOSING


@pytest.fixture(autouse=True)
def internet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOLLSPAN_PLACES", "127.0.0.1=internet")


def test_the_responses_of_a_connection_tell_all_its_bytes(instrumented: Any, serving: Any) -> None:
    exporter = instrumented(OpenAIInstrumentor)
    relay = serving([[SESSION, TRANSCRIBED, *answered()], answered("resp_2")])
    client = openai.OpenAI(api_key="none", base_url=f"http://127.0.0.1:{relay.port}/v1")
    with client.realtime.connect(model="gpt-realtime") as connection:
        for event in connection:
            if event.type == "response.done" and event.response.id == "resp_1":
                connection.input_audio_buffer.append(audio="A" * 40_000)
    found = told(exporter)
    assert len(found) == 3
    assert found[2][0] > 40_000, "what was said before a response is that response's"
    check(found, relay)


async def test_an_asynchronous_connection(instrumented: Any, serving: Any) -> None:
    exporter = instrumented(OpenAIInstrumentor)
    relay = serving([[SESSION, *answered()], answered("resp_2")])
    client = openai.AsyncOpenAI(api_key="none", base_url=f"http://127.0.0.1:{relay.port}/v1")
    async with client.realtime.connect(model="gpt-realtime") as connection:
        async for event in connection:
            if event.type == "response.done" and event.response.id == "resp_1":
                await connection.input_audio_buffer.append(audio="A" * 40_000)
    found = told(exporter)
    assert [sent > 40_000 for sent, _ in found] == [False, True]
    check(found, relay)


async def test_turns_of_a_live_session(instrumented: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = instrumented(GoogleGenAIInstrumentor)
    stub = LiveStub([[SAYS, SAYS, DONE], [SAYS, DONE]])
    relay = Relay(stub.port)
    stub.port = relay.port
    try:
        assert await talk(stub, monkeypatch, 2) == [3, 2]
    finally:
        await asyncio.to_thread(stub.close)
        await asyncio.to_thread(relay.close)
    found = told(exporter)
    assert len(found) == 2
    check(found, relay)


async def test_a_transcription(instrumented: Any) -> None:
    realtime = pytest.importorskip("tests.instrumentation.test_mistral_realtime")
    exporter = instrumented(MistralInstrumentor)
    async with realtime.service(realtime.HEARD) as client:
        relay = Relay(int(client.sdk_configuration.server_url.rpartition(":")[2]))
        made = type(client)(api_key="none", server_url=f"http://127.0.0.1:{relay.port}")
        await realtime.transcribe(made)
        await asyncio.to_thread(relay.close)
    found = told(exporter)
    assert len(found) == 1
    check(found, relay)


def test_a_connection_that_was_open_before_tells_from_its_second_response_on(instrumented: Any, serving: Any) -> None:
    relay = serving([[SESSION, *answered()], answered("resp_2")])
    client = openai.OpenAI(api_key="none", base_url=f"http://127.0.0.1:{relay.port}/v1")
    importlib.import_module("tollspan.instrumentation.openai.realtime")
    with client.realtime.connect(model="gpt-realtime") as connection:
        connection.recv()
        exporter = instrumented(OpenAIInstrumentor)
        for event in connection:
            if event.type == "response.done" and event.response.id == "resp_1":
                connection.input_audio_buffer.append(audio="A" * 40_000)
    first, second = told(exporter)
    assert first == (0, 0)
    assert second[0] > 40_000


@pytest.mark.parametrize("said", ["off", "auto"])
def test_it_can_be_switched_off(said: str, instrumented: Any, serving: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOLLSPAN_NETWORK", said)
    exporter = instrumented(OpenAIInstrumentor)
    assert bool(network_sockets._HOOKS._users) == (said != "off")
    relay = serving([[SESSION, *answered()]])
    client = openai.OpenAI(api_key="none", base_url=f"http://127.0.0.1:{relay.port}/v1")
    with client.realtime.connect(model="gpt-realtime") as connection:
        list(connection)
    assert bool(told(exporter)[0][1]) == (said != "off")


def test_connections_are_not_kept_and_servers_are_not_counted(instrumented: Any, serving: Any) -> None:
    instrumented(OpenAIInstrumentor)
    gc.collect()
    before = len(network_sockets._meters)
    relay = serving([[SESSION, *answered()]])
    client = openai.OpenAI(api_key="none", base_url=f"http://127.0.0.1:{relay.port}/v1")
    with client.realtime.connect(model="gpt-realtime") as connection:
        list(connection)
        assert len(network_sockets._meters) == before + 1
    del connection
    deadline = time.monotonic() + 10
    while gc.collect() is not None and len(network_sockets._meters) > before and time.monotonic() < deadline:
        time.sleep(0.02)  # the client's reading thread may still be on its way out
    assert len(network_sockets._meters) <= before
