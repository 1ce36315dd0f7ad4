"""Who bills, and every client class: each gives one span, named after who bills."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from tollspan.instrumentation.anthropic import AnthropicInstrumentor
from tollspan.instrumentation.anthropic.providers import client_attributes
from tollspan.pricing import attributes as names

from .anthropic_stub import MODEL, Stub, events, message, serve

ASK: dict[str, Any] = {"model": MODEL, "max_tokens": 64, "messages": [{"role": "user", "content": "hello"}]}

AWS = {"api_key": None, "aws_region": "us-east-1", "aws_access_key": "a", "aws_secret_key": "b"}
CLIENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "Anthropic": ("anthropic", {}),
    "AnthropicBedrock": ("aws.bedrock", AWS),
    "AnthropicBedrockMantle": ("aws.bedrock", {"api_key": "k", "aws_region": "us-east-1"}),
    "AnthropicVertex": ("gcp.vertex_ai", {"api_key": None, "region": "eu", "project_id": "p", "access_token": "t"}),
    "AnthropicFoundry": ("azure.ai.inference", {}),
    "AnthropicAWS": ("anthropic", {**AWS, "workspace_id": "w"}),
}


@pytest.fixture
def stub() -> Iterator[Stub]:
    with serve() as stub:
        yield stub


@pytest.fixture
def spans(telemetry: Any) -> Iterator[Any]:
    AnthropicInstrumentor().instrument(tracer_provider=telemetry.provider)
    yield telemetry
    AnthropicInstrumentor().uninstrument()


def made(stub: Stub, kind: str) -> Any:
    name = kind.removeprefix("Async")
    if not hasattr(anthropic, kind):
        pytest.skip(f"this version has no {kind}")
    if name in ("AnthropicBedrock", "AnthropicBedrockMantle", "AnthropicAWS"):
        pytest.importorskip("boto3")
    if name == "AnthropicVertex":
        pytest.importorskip("google.auth")
    return stub.client(kind, **CLIENTS[name][1])


def check(telemetry: Any, kind: str, streamed: bool) -> None:
    attributes = telemetry.attributes()
    assert attributes[names.PROVIDER_NAME] == CLIENTS[kind.removeprefix("Async")][0]
    assert attributes[names.REQUEST_MODEL] == MODEL
    assert attributes[names.USAGE_INPUT_TOKENS] == 117
    assert attributes[names.USAGE_OUTPUT_TOKENS] == 20
    assert attributes.get(names.REQUEST_STREAM, False) is streamed


@pytest.mark.parametrize("beta", [False, True])
@pytest.mark.parametrize("kind", CLIENTS)
def test_every_client(spans: Any, stub: Stub, kind: str, beta: bool) -> None:
    client = made(stub.json(message()), kind)
    (client.beta if beta else client).messages.create(**ASK)
    check(spans, kind, streamed=False)


@pytest.mark.parametrize("kind", [f"Async{kind}" for kind in CLIENTS])
async def test_every_asynchronous_client(spans: Any, stub: Stub, kind: str) -> None:
    await made(stub.json(message()), kind).messages.create(**ASK)
    check(spans, kind, streamed=False)


@pytest.mark.parametrize("kind", CLIENTS)
def test_every_client_streams(spans: Any, stub: Stub, kind: str) -> None:
    if kind == "AnthropicBedrock":
        stub.event_stream([event for event in events() if event["type"] != "ping"])
    else:
        stub.stream(events())
    with made(stub, kind).messages.stream(**ASK) as stream:
        assert stream.get_final_text() == "Hello."
    check(spans, kind, streamed=True)


async def test_the_event_stream_of_bedrock_async(spans: Any, stub: Stub) -> None:
    stub.event_stream([event for event in events(deltas=3) if event["type"] != "ping"])
    async for _ in await made(stub, "AsyncAnthropicBedrock").beta.messages.create(**ASK, stream=True):
        pass
    check(spans, "AsyncAnthropicBedrock", streamed=True)
    assert stub.requests[0][1].endswith("/invoke-with-response-stream")


@pytest.mark.parametrize(
    ("url", "provider", "port"),
    [
        ("https://api.anthropic.com", "anthropic", 443),
        ("https://gateway.example.com/anthropic", "anthropic", 443),
        ("https://api.deepseek.com/anthropic", "deepseek", 443),
        ("https://api.moonshot.ai/anthropic", "moonshot_ai", 443),
        ("https://openrouter.ai/api", "openrouter", 443),
        ("https://mine.services.ai.azure.com/anthropic/", "azure.ai.inference", 443),
        ("http://127.0.0.1:8000", "anthropic", 8000),
    ],
)
def test_the_provider_is_who_bills(url: str, provider: str, port: int) -> None:
    attributes = client_attributes(anthropic.Anthropic(api_key="none", base_url=url))
    assert (attributes[names.PROVIDER_NAME], attributes[names.SERVER_PORT]) == (provider, port)


def test_a_subclass_of_a_client_is_billed_as_that() -> None:
    class Mine(anthropic.AnthropicFoundry):
        pass

    client = Mine(api_key="k", base_url="https://ai.example.com/anthropic")
    assert client_attributes(client)[names.PROVIDER_NAME] == "azure.ai.inference"


def test_a_client_whose_address_is_changed_is_billed_by_the_new_one() -> None:
    client = anthropic.Anthropic(api_key="none", base_url="https://api.anthropic.com")
    assert client_attributes(client)[names.PROVIDER_NAME] == "anthropic"
    client.base_url = "https://openrouter.ai/api"
    assert client_attributes(client)[names.PROVIDER_NAME] == "openrouter"
