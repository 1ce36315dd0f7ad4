"""What is said in calls of AWS's newer SDK: what botocore's say; and their fingerprints are the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tollspan.instrumentation.bedrock import BedrockInstrumentor
from tollspan.pricing import attributes as names

from . import anthropic_stub
from .bedrock_stub import CLAUDE, MODEL, REGION, Stub, chunks, converse, serve
from .content_form import check

client_module = pytest.importorskip("aws_sdk_bedrock_runtime.client")
from aws_sdk_bedrock_runtime import models  # noqa: E402
from aws_sdk_bedrock_runtime.config import AsyncBedrockRuntimeConfig  # noqa: E402
from smithy_core.documents import Document  # noqa: E402

from .test_content_bedrock import ASK, CALLED, CLAUDES, HELLO, MIXED, MIXED_SAID, TOOLS, answer  # noqa: E402

MESSAGES = [models.Message(role="user", content=[models.ContentBlockText("hello")])]


@pytest.fixture
def stub() -> Iterator[Stub]:
    with serve() as stub:
        yield stub


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch, telemetry: Any) -> Iterator[Any]:
    """Spans with content and fingerprints."""
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "span_only")
    monkeypatch.setenv("TOLLSPAN_FINGERPRINT_KEY", "secret of the tests")
    BedrockInstrumentor().instrument(tracer_provider=telemetry.provider)
    yield telemetry
    BedrockInstrumentor().uninstrument()


async def client_of(stub: Stub) -> Any:
    config = await AsyncBedrockRuntimeConfig.resolve(
        endpoint_uri=stub.url, region=REGION, aws_access_key_id="none", aws_secret_access_key="none"
    )
    return client_module.AsyncBedrockRuntimeClient(config)


async def test_a_call_with_tools(spans: Any, stub: Stub) -> None:
    called = {"toolUse": {"toolUseId": "t2", "name": "weather", "input": {"city": "Rome"}}}
    stub.json(converse(output={"message": {"role": "assistant", "content": [called]}}, stopReason="tool_use"))
    schema = models.ToolInputSchemaJson(Document({"type": "object", "properties": {}}))
    tool = models.ToolSpecification(name="weather", description="Tells it.", input_schema=schema)
    async with await client_of(stub) as client:
        await client.converse(
            models.ConverseInput(
                model_id=MODEL,
                messages=MESSAGES,
                system=[models.SystemContentBlockText("Be brief.")],
                tool_config=models.ToolConfiguration(tools=[models.ToolToolSpec(tool)]),
            )
        )
    assert check(spans.attributes()) == {
        names.SYSTEM_INSTRUCTIONS: [{"type": "text", "content": "Be brief."}],
        names.INPUT_MESSAGES: HELLO,
        names.OUTPUT_MESSAGES: [{"role": "assistant", "parts": [CALLED], "finish_reason": "tool_call"}],
        names.TOOL_DEFINITIONS: TOOLS,
    }
    assert names.REQUEST_FINGERPRINT in spans.attributes()


async def test_a_stream(spans: Any, stub: Stub) -> None:
    async with await client_of(stub.events(MIXED)) as client:
        async for _ in (
            await client.converse_stream(models.ConverseStreamInput(model_id=MODEL, messages=MESSAGES))
        ).output_stream:
            pass
    assert check(spans.attributes()) == {names.INPUT_MESSAGES: HELLO, names.OUTPUT_MESSAGES: MIXED_SAID}


async def test_bodies(spans: Any, stub: Stub) -> None:
    body = json.dumps(CLAUDES).encode()
    async with await client_of(stub.invoked(anthropic_stub.message())) as client:
        await client.invoke_model(models.InvokeModelInput(model_id=CLAUDE, body=body))
        stub.replies.clear()
        stub.events(chunks(*anthropic_stub.events()))
        streamed = models.InvokeModelWithResponseStreamInput(model_id=CLAUDE, body=body)
        async for _ in (await client.invoke_model_with_response_stream(streamed)).output_stream:
            pass
    one, other = spans.spans()
    for span in (one, other):
        assert check(span.attributes) == {names.INPUT_MESSAGES: HELLO, names.OUTPUT_MESSAGES: answer()}
    assert one.attributes[names.REQUEST_FINGERPRINT] == other.attributes[names.REQUEST_FINGERPRINT]


async def test_a_request_has_the_fingerprint_that_it_has_through_botocore(spans: Any, stub: Stub) -> None:
    pytest.importorskip("botocore")
    async with await client_of(stub.json(converse())) as client:
        await client.converse(models.ConverseInput(model_id=MODEL, messages=MESSAGES))
    stub.client().converse(**ASK)
    one, other = (span.attributes[names.REQUEST_FINGERPRINT] for span in spans.spans())
    assert one == other
