"""Bedrock through AWS's newer SDK for Python: what botocore's calls say, and sessions that speak both ways.

The SDK wants Python 3.12. Its calls go to the local server; for sessions, which go over HTTP/2, it has a transport of
its own for tests.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.trace import StatusCode

from tollspan.instrumentation import faults, tag
from tollspan.instrumentation.bedrock import BedrockInstrumentor, readers, sdk
from tollspan.pricing import attributes as names

from .bedrock_stub import CLAUDE, MODEL, REGION, Event, Stub, chunks, converse, converse_events, frame, metrics, serve

client_module = pytest.importorskip("aws_sdk_bedrock_runtime.client")
from aws_sdk_bedrock_runtime import models  # noqa: E402
from aws_sdk_bedrock_runtime.config import AsyncBedrockRuntimeConfig  # noqa: E402
from smithy_core.aio.eventstream import DuplexEventStream  # noqa: E402
from smithy_core.documents import Document  # noqa: E402
from smithy_http.testing import MockHTTPClient  # noqa: E402

SONIC = "amazon.nova-2-sonic-v1:0"
USAGE = {
    names.USAGE_INPUT_TOKENS: 1107,
    names.USAGE_OUTPUT_TOKENS: 20,
    names.USAGE_CACHE_READ_TOKENS: 1000,
    names.USAGE_CACHE_WRITE_TOKENS: 7,
    names.usage("tokens.input.cache_write.5m"): 3,
    names.usage("tokens.input.cache_write.1h"): 4,
}
ASKED = {
    names.OPERATION_NAME: "chat",
    names.PROVIDER_NAME: "aws.bedrock",
    names.REQUEST_MODEL: MODEL,
    names.SERVER_ADDRESS: "127.0.0.1",
    names.CLOUD_REGION: REGION,
}
ANSWERED = {**USAGE, names.OPENAI_RESPONSE_SERVICE_TIER: "default"}
CONVERSE = {**ASKED, **ANSWERED, names.REQUEST_MAX_TOKENS: 64, names.RESPONSE_FINISH_REASONS: ("end_turn",)}
MESSAGE = {
    "id": "msg_bdrk_7",
    "type": "message",
    "content": [{"type": "text", "text": "Hello."}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 100, "output_tokens": 20},
}
HELLO = {"messages": [models.Message(role="user", content=[models.ContentBlockText("hello")])]}


@pytest.fixture(scope="module")
def server() -> Iterator[Stub]:
    with serve() as stub:
        yield stub


@pytest.fixture
def stub(server: Stub) -> Stub:
    server.replies, server.requests = [], []
    return server


@pytest.fixture
def spans(telemetry: Any) -> Iterator[Any]:
    BedrockInstrumentor().instrument(tracer_provider=telemetry.provider)
    yield telemetry
    BedrockInstrumentor().uninstrument()


_clients: list[Any] = []


@pytest.fixture(autouse=True)
async def closed() -> Any:
    """Closes the clients of a test."""
    yield
    while _clients:
        await _clients.pop().close()


async def client_of(endpoint: str, **options: Any) -> Any:
    config = await AsyncBedrockRuntimeConfig.resolve(
        endpoint_uri=endpoint,
        region=REGION,
        aws_access_key_id="none",
        aws_secret_access_key="none",
        max_attempts=1,
        **options,
    )
    _clients.append(client_module.AsyncBedrockRuntimeClient(config))
    return _clients[-1]


def told(telemetry: Any) -> dict[str, Any]:
    """Attributes of the one span, without what differs from run to run."""
    attributes: dict[str, Any] = telemetry.attributes()
    assert attributes.pop(names.SERVER_PORT) > 0
    if names.RESPONSE_TIME_TO_FIRST_CHUNK in attributes:
        assert attributes.pop(names.RESPONSE_TIME_TO_FIRST_CHUNK) > 0
    return attributes


def ask(kind: Any) -> Any:
    return kind(model_id=MODEL, **HELLO, inference_config=models.InferenceConfiguration(max_tokens=64))


# -- calls that botocore has too ---------------------------------------------------------------------------------------


async def test_converse(spans: Any, stub: Stub) -> None:
    result = await (await client_of(stub.json(converse()).url)).converse(ask(models.ConverseInput))
    assert type(result) is models.ConverseOperationOutput
    assert spans.only().name == f"chat {MODEL}"
    assert told(spans) == CONVERSE


async def test_a_client_that_finds_its_configuration_itself(
    spans: Any, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (
        ("AWS_ENDPOINT_URL", stub.json(converse()).url),
        ("AWS_REGION", REGION),
        ("AWS_ACCESS_KEY_ID", "none"),
        ("AWS_SECRET_ACCESS_KEY", "none"),
    ):
        monkeypatch.setenv(name, value)
    _clients.append(client_module.AsyncBedrockRuntimeClient())
    await _clients[-1].converse(input=ask(models.ConverseInput))
    assert told(spans) == CONVERSE


async def test_converse_stream(spans: Any, stub: Stub) -> None:
    client = await client_of(stub.events(converse_events()).url)
    result = await client.converse_stream(ask(models.ConverseStreamInput))
    async with result as stream:
        events = [event async for event in stream.output_stream]
    assert len(events) == len(converse_events())
    assert told(spans) == {
        **CONVERSE,
        names.REQUEST_STREAM: True,
        names.RESPONSE_FINISH_REASONS: ("max_tokens",),
    }


async def test_invoke(spans: Any, stub: Stub) -> None:
    client = await client_of(stub.invoked(MESSAGE, {}, {"X-Amzn-Bedrock-Service-Tier": "flex"}).url)
    result = await client.invoke_model(models.InvokeModelInput(model_id=CLAUDE, body=b"{}"))
    assert json.loads(result.body) == MESSAGE
    assert told(spans) == {
        **ASKED,
        names.REQUEST_MODEL: CLAUDE,
        names.RESPONSE_ID: "msg_bdrk_7",
        names.RESPONSE_FINISH_REASONS: ("end_turn",),
        names.USAGE_INPUT_TOKENS: 100,
        names.USAGE_OUTPUT_TOKENS: 20,
        names.OPENAI_RESPONSE_SERVICE_TIER: "flex",
    }


async def test_invoke_stream(spans: Any, stub: Stub) -> None:
    counted = metrics(inputTokenCount=100, outputTokenCount=20)
    client = await client_of(
        stub.events(chunks({"type": "content_block_delta"}, {"type": "message_stop", **counted})).url
    )
    result = await client.invoke_model_with_response_stream(
        models.InvokeModelWithResponseStreamInput(model_id=CLAUDE, body=b"{}")
    )
    assert len([event async for event in result.output_stream]) == 2
    assert told(spans)[names.USAGE_INPUT_TOKENS] == 100
    assert told(spans)[names.USAGE_OUTPUT_TOKENS] == 20


async def test_an_invocation_that_is_answered_later(spans: Any, stub: Stub) -> None:
    arn = "arn:aws:bedrock:us-west-2:123456789012:async-invoke/sdk"
    where = {"s3OutputDataConfig": {"s3Uri": "s3://bucket"}}
    done = {"status": "Completed", "submitTime": "2026-11-21T10:00:00Z", "outputDataConfig": where, "modelArn": "m"}
    stub.json({"invocationArn": arn}).json({"invocationArn": arn, **done})
    client = await client_of(stub.url)
    await client.start_async_invoke(
        models.StartAsyncInvokeInput(
            model_id="amazon.nova-reel-v1:1",
            model_input=Document({"videoGenerationConfig": {"durationSeconds": 6}}),
            output_data_config=models.AsyncInvokeOutputDataConfigS3OutputDataConfig(
                models.AsyncInvokeS3OutputDataConfig(s3_uri="s3://bucket")
            ),
        )
    )
    await client.get_async_invoke(models.GetAsyncInvokeInput(invocation_arn=arn))
    asked, made = spans.spans()
    assert asked.attributes[names.USAGE_DEFERRED] is True
    assert made.attributes[names.usage("video.seconds")] == 6


async def test_a_refused_call(spans: Any, stub: Stub) -> None:
    client = await client_of(stub.error(400, "ValidationException").url)
    with pytest.raises(models.ValidationException):
        await client.converse(ask(models.ConverseInput))
    assert spans.only().status.status_code is StatusCode.ERROR
    assert told(spans)[names.HTTP_STATUS] == 400


async def test_a_stream_left_early(spans: Any, stub: Stub) -> None:
    client = await client_of(stub.events(converse_events()).url)
    result = await client.converse_stream(ask(models.ConverseStreamInput))
    async for _ in result.output_stream:
        break
    await result.close()
    assert told(spans)[names.STREAM_ABANDONED] is True


# -- sessions ----------------------------------------------------------------------------------------------------------


def spoken(kind: str, **body: Any) -> Event:
    event = json.dumps({"event": {kind: {"sessionId": "sess_7", "promptName": "p", "completionId": "c", **body}}})
    return "chunk", {"bytes": base64.b64encode(event.encode()).decode()}


def used(times: int) -> Event:
    """Usage after so many turns."""

    def counts(times: int) -> dict[str, Any]:
        return {
            "input": {"speechTokens": 100 * times, "textTokens": 50 * times},
            "output": {"speechTokens": 40 * times, "textTokens": 20 * times},
        }

    return spoken(
        "usageEvent",
        details={"delta": counts(1), "total": counts(times)},
        totalInputTokens=150 * times,
        totalOutputTokens=60 * times,
        totalTokens=210 * times,
    )


SOUND = spoken("audioOutput", content="aGk=", contentId="7")
TALK = [
    spoken("completionStart"),
    used(1),
    SOUND,
    spoken("contentEnd", stopReason="PARTIAL_TURN"),
    used(2),
    spoken("completionEnd", stopReason="END_TURN"),
]


class Transport(MockHTTPClient):
    """Takes what is sent, as HTTP/2 does while it answers."""

    async def send(self, request: Any, **options: Any) -> Any:
        async def take() -> None:
            async for _ in request.body:
                pass

        self.taking = asyncio.create_task(take())
        return await super().send(request, **options)


async def session(events: list[Event], status: int = 200) -> Any:
    transport = Transport()
    if status == 200:
        headers, body = {"Content-Type": "application/vnd.amazon.eventstream"}, b"".join(map(frame, events))
    else:
        headers = {"Content-Type": "application/json", "x-amzn-ErrorType": "ValidationException"}
        body = b'{"message": "no"}'
    transport.add_response(status, list(headers.items()), body)
    client = await client_of("https://bedrock-runtime.us-west-2.amazonaws.com", transport=transport)
    asked = models.InvokeModelWithBidirectionalStreamOperationInput(model_id=SONIC)
    return await client.invoke_model_with_bidirectional_stream(asked)


async def by_receiving(stream: Any) -> int:
    _, receiver = await stream.await_output()
    count = 0
    while await receiver.receive() is not None:
        count += 1
    return count


async def by_iterating(stream: Any) -> int:
    async with stream as entered:
        await entered.await_output()
        return len([event async for event in entered.output_stream])


async def by_asking_twice(stream: Any) -> int:
    _, receiver = await stream.await_output()
    assert await receiver.receive() is not None
    return 1 + await by_receiving(stream)


@pytest.mark.parametrize("read", [by_receiving, by_iterating, by_asking_twice])
async def test_a_session(spans: Any, read: Any) -> None:
    with tag(tenant="acme"):
        stream = await session(TALK)
    assert isinstance(stream, DuplexEventStream)
    assert await read(stream) == len(TALK)
    span = spans.only()
    assert (span.name, span.status.status_code) == (f"chat {SONIC}", StatusCode.UNSET)
    assert told(spans) == {
        **ASKED,
        names.SERVER_ADDRESS: f"bedrock-runtime.{REGION}.amazonaws.com",
        names.REQUEST_MODEL: SONIC,
        names.REQUEST_STREAM: True,
        names.TENANT: "acme",
        names.CONVERSATION_ID: "sess_7",
        names.RESPONSE_FINISH_REASONS: ("end_turn",),
        # The last totals, not their sum.
        names.USAGE_INPUT_TOKENS: 300,
        names.USAGE_OUTPUT_TOKENS: 120,
        names.USAGE_AUDIO_INPUT_TOKENS: 200,
        names.USAGE_AUDIO_OUTPUT_TOKENS: 80,
    }


async def test_what_a_session_costs(spans: Any) -> None:
    bill = pytest.importorskip("tests.instrumentation.openai_bill").bill
    await by_receiving(await session(TALK))
    meters, cost, status = bill(spans.spans())
    assert meters == {
        "tokens.input.uncached": 100,
        "tokens.input.audio": 200,
        "tokens.output": 40,
        "tokens.output.audio": 80,
    }
    # 100 × $0.33 + 200 × $3 + 40 × $2.75 + 80 × $12, by the million.
    assert (cost, status) == (Decimal("0.001703"), "priced")


@pytest.mark.parametrize("how", ["drop", "close", "never asked"])
async def test_a_session_left_early(spans: Any, how: str) -> None:
    stream = await session(TALK)
    if how != "never asked":
        _, receiver = await stream.await_output()
        for _ in range(3):
            await receiver.receive()
        del receiver
    if how == "close":
        await stream.close()
    del stream
    gc.collect()
    attributes = told(spans)
    assert attributes[names.STREAM_ABANDONED] is True
    assert attributes.get(names.USAGE_INPUT_TOKENS) == (None if how == "never asked" else 150)


async def test_a_session_that_is_refused(spans: Any) -> None:
    stream = await session([], status=400)
    with pytest.raises(models.ValidationException):
        await stream.await_output()
    assert told(spans)[names.HTTP_STATUS] == 400
    assert spans.only().status.status_code is StatusCode.ERROR


async def test_an_error_inside_a_session(spans: Any) -> None:
    stream = await session([*TALK[:2], ("modelStreamErrorException", {"message": "broken"})])
    with pytest.raises(models.ModelStreamErrorException):
        await by_receiving(stream)
    assert spans.only().status.status_code is StatusCode.ERROR
    assert told(spans)[names.USAGE_INPUT_TOKENS] == 150


# -- the program is left alone -----------------------------------------------------------------------------------------


async def test_suppressed_and_uninstrumented_calls_are_left_alone(telemetry: Any, stub: Stub) -> None:
    kind = client_module.AsyncBedrockRuntimeClient
    before = {method: vars(kind)[method] for method in sdk.METHODS}
    BedrockInstrumentor().instrument(tracer_provider=telemetry.provider)
    assert all(inspect.iscoroutinefunction(vars(kind)[method]) for method in before)
    client = await client_of(stub.json(converse()).url)
    with suppress_instrumentation():
        await client.converse(ask(models.ConverseInput))
    BedrockInstrumentor().uninstrument()
    await client.converse(ask(models.ConverseInput))
    assert telemetry.spans() == []
    assert all(vars(kind)[method] is was for method, was in before.items())


def test_a_program_without_botocore_is_instrumented_when_it_imports_the_client() -> None:
    program = (
        "import sys, importlib.util\n"
        "there = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *of: None if name == 'botocore' else there(name, *of)\n"
        "from tollspan.instrumentation import launch\n"
        "launch.BedrockInstrumentor().instrument()\n"
        "assert not [name for name in sys.modules if name.startswith('aws_sdk')]\n"
        "from aws_sdk_bedrock_runtime.client import AsyncBedrockRuntimeClient as Client\n"
        "assert hasattr(Client.converse, '__wrapped__')\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_request_in_the_names_of_the_wire() -> None:
    assert sdk.plain(ask(models.ConverseInput))["messages"] == [{"role": "user", "content": [{"text": "hello"}]}]


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (sdk, "opened"),
        (sdk, "plain"),
        (sdk, "_answer"),
        (sdk, "_standing"),
        (sdk, "put_usage"),
        (readers, "put_usage"),
    ],
)
async def test_a_fault_of_ours_never_reaches_the_program(
    faulty_telemetry: Any, stub: Stub, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    def fault(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(owner, name, fault)
    counted = sum(faults().values())
    BedrockInstrumentor().instrument(tracer_provider=faulty_telemetry.provider)
    try:
        client = await client_of(stub.json(converse()).url)
        await client.converse(ask(models.ConverseInput))
        assert await by_receiving(await session(TALK)) == len(TALK)
        stub.replies.clear()
        stub.events(converse_events())
        result = await client.converse_stream(ask(models.ConverseStreamInput))
        assert len([event async for event in result.output_stream]) == len(converse_events())
    finally:
        BedrockInstrumentor().uninstrument()
    assert sum(faults().values()) > counted
