"""Bedrock's calls whose usage comes apart from them: invocations that are answered later, and agents' models."""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from opentelemetry.trace import StatusCode

from tollspan.instrumentation import tag
from tollspan.instrumentation.bedrock import BedrockInstrumentor, agents, deferred
from tollspan.pricing import attributes as names

from .bedrock_stub import CLAUDE, REGION, Event, Stub, converse, serve
from .openai_bill import bill, ledger

REEL = "amazon.nova-reel-v1:1"
ARN = "arn:aws:bedrock:us-west-2:123456789012:async-invoke/abc"
STARTED = {"invocationArn": ARN}
DONE = {
    **STARTED,
    "modelArn": f"arn:aws:bedrock:us-west-2::foundation-model/{REEL}",
    "status": "Completed",
    "submitTime": "2026-11-21T10:00:00Z",
    "endTime": "2026-11-21T10:01:30Z",
    "outputDataConfig": {"s3OutputDataConfig": {"s3Uri": "s3://bucket"}},
}
SHOT = {"taskType": "TEXT_VIDEO", "videoGenerationConfig": {"durationSeconds": 6, "fps": 24}}


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
    deferred.ONCE.forget()
    BedrockInstrumentor().instrument(tracer_provider=telemetry.provider)
    yield telemetry
    BedrockInstrumentor().uninstrument()


# -- invocations that are answered later -------------------------------------------------------------------------------


def start(client: Any, model: str = REEL, **asked: Any) -> None:
    client.start_async_invoke(
        modelId=model, modelInput=asked or SHOT, outputDataConfig={"s3OutputDataConfig": {"s3Uri": "s3://bucket"}}
    )


def test_an_invocation_is_billed_once_when_it_is_completed(spans: Any, stub: Stub) -> None:
    client = stub.json(STARTED).json({**DONE, "status": "InProgress"}).json(DONE).client()
    with tag(tenant="acme"):
        start(client)
    for _ in range(3):
        client.get_async_invoke(invocationArn=ARN)
    asked, made = spans.spans()
    assert asked.attributes[names.USAGE_DEFERRED] is True
    assert asked.attributes[names.RESPONSE_ID] == ARN
    assert (made.name, made.links[0].context) == (f"generate_content {REEL}", asked.get_span_context())
    assert dict(made.attributes) == {
        names.OPERATION_NAME: "generate_content",
        names.PROVIDER_NAME: "aws.bedrock",
        names.REQUEST_MODEL: REEL,
        names.RESPONSE_ID: ARN,
        names.SERVER_ADDRESS: "127.0.0.1",
        names.SERVER_PORT: made.attributes[names.SERVER_PORT],
        names.CLOUD_REGION: REGION,
        names.TENANT: "acme",
        names.usage("video.seconds"): 6.0,
    }
    assert (made.end_time - made.start_time) / 1e9 == 90
    statuses = [(row["cost_status"], row["meters"]) for row in ledger(spans.spans())]
    assert statuses[0] == ("not_billed", {})
    assert statuses[1][1] == {"video.seconds": 6}


def test_another_process_makes_the_same_span_and_does_not_know_the_seconds(spans: Any, stub: Stub) -> None:
    client = stub.json(STARTED).json(DONE).client()
    start(client)
    client.get_async_invoke(invocationArn=ARN)
    deferred.ONCE.forget()
    client.get_async_invoke(invocationArn=ARN)
    _, made, again = spans.spans()
    assert made.get_span_context().span_id == again.get_span_context().span_id
    assert made.start_time == again.start_time
    assert names.usage("video.seconds") not in again.attributes


async def test_an_invocation_async(spans: Any, stub: Stub) -> None:
    pytest.importorskip("aiobotocore")
    async with stub.json(STARTED).json(DONE).async_client() as client:
        await client.start_async_invoke(
            modelId=REEL, modelInput=SHOT, outputDataConfig={"s3OutputDataConfig": {"s3Uri": "s3://bucket"}}
        )
        await client.get_async_invoke(invocationArn=ARN)
    assert spans.spans()[1].attributes[names.usage("video.seconds")] == 6


def test_one_that_failed_costs_nothing(spans: Any, stub: Stub) -> None:
    client = stub.json(STARTED).json({**DONE, "status": "Failed", "failureMessage": "no"}).client()
    start(client)
    client.get_async_invoke(invocationArn=ARN)
    assert len(spans.spans()) == 1


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [
        (SHOT, 6),
        ({"taskType": "MULTI_SHOT_AUTOMATED", "videoGenerationConfig": {"durationSeconds": 120}}, 120),
        ({"taskType": "MULTI_SHOT_MANUAL", "multiShotManualParams": {"shots": [{}, {}]}}, 12),
        ({"prompt": "a", "duration": "9s"}, 9),
        ({"inputText": "a"}, None),
        ({"duration": "long", "videoGenerationConfig": "x"}, None),
        ({}, None),
    ],
)
def test_seconds_that_are_asked_for(asked: dict[str, Any], seconds: float | None) -> None:
    assert deferred.seconds_of(asked) == seconds


# -- agents ------------------------------------------------------------------------------------------------------------


def traced(step: str, **told: Any) -> Event:
    return "trace", {"agentId": "A", "sessionId": "s", "trace": {step: told}}


def asks(identity: str, model: str, step: str = "orchestrationTrace") -> list[Event]:
    usage = {"inputTokens": 100, "outputTokens": 20}
    metadata = {"usage": usage, "clientRequestId": f"req-{identity}", "startTime": "2026-11-21T10:00:00Z"}
    return [
        traced(step, modelInvocationInput={"traceId": identity, "foundationModel": model, "text": "{}"}),
        traced(step, modelInvocationOutput={"traceId": identity, "metadata": metadata}),
    ]


NOVA = "us.amazon.nova-pro-v1:0"
ANSWER: Event = ("chunk", {"bytes": base64.b64encode(b"Hello.").decode()})
TALK = [
    *asks("1", NOVA, "preProcessingTrace"),
    *asks("2", CLAUDE),
    traced("orchestrationTrace", rationale={"traceId": "2", "text": "because"}),
    *asks("3", CLAUDE, "routingClassifierTrace"),
    ANSWER,
]


def ask(client: Any, **changed: Any) -> list[Any]:
    result = client.invoke_agent(agentId="A", agentAliasId="B", sessionId="sess", inputText="hello", **changed)
    return list(result["completion"])


def test_each_model_that_an_agent_asked_is_billed(spans: Any, stub: Stub) -> None:
    client = stub.events(TALK).client("bedrock-agent-runtime")
    with tag(tenant="acme"):
        assert len(ask(client, enableTrace=True)) == len(TALK)
    *made, agent = spans.spans()
    assert (agent.name, agent.status.status_code) == ("invoke_agent", StatusCode.UNSET)
    assert [span.name for span in made] == [f"chat {NOVA}", f"chat {CLAUDE}", f"chat {CLAUDE}"]
    assert {span.parent.span_id for span in made} == {agent.get_span_context().span_id}
    assert [span.attributes[names.RESPONSE_ID] for span in made] == ["req-1", "req-2", "req-3"]
    rows = ledger(spans.spans())
    assert [row["meters"] for row in rows] == [{"tokens.input.uncached": 100, "tokens.output": 20}] * 3
    assert [row["tenant"] for row in rows] == ["acme"] * 3
    # Nova Pro: 100 × $0.80 + 20 × $3.20, by the million.
    assert rows[0]["cost"] == Decimal("0.000144")


def test_an_inline_agent(spans: Any, stub: Stub) -> None:
    client = stub.events(TALK).client("bedrock-agent-runtime")
    result = client.invoke_inline_agent(
        foundationModel=CLAUDE, instruction="x" * 40, sessionId="sess", inputText="hello", enableTrace=True
    )
    assert len(list(result["completion"])) == len(TALK)
    assert [span.name for span in spans.spans()][1:] == [f"chat {CLAUDE}", f"chat {CLAUDE}", f"invoke_agent {CLAUDE}"]


def test_an_agent_whose_trace_is_not_asked_for_is_on_no_bill_and_the_log_says_so_once(
    spans: Any, stub: Stub, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agents, "_said", [])
    client = stub.events([ANSWER]).client("bedrock-agent-runtime")
    with caplog.at_level(logging.WARNING):
        ask(client)
        ask(client)
    assert caplog.text.count("enableTrace") == 1
    assert [span.name for span in spans.spans()] == ["invoke_agent"] * 2
    assert ledger(spans.spans()) == []


def test_a_model_that_the_trace_does_not_name_is_unpriced(spans: Any, stub: Stub) -> None:
    client = stub.events([asks("1", CLAUDE)[1], ANSWER]).client("bedrock-agent-runtime")
    ask(client, enableTrace=True)
    assert bill(spans.spans())[1:] == (None, "unpriced")


# -- models of the account's own ---------------------------------------------------------------------------------------


def test_the_model_of_an_application_inference_profile_is_not_guessed(spans: Any, stub: Stub) -> None:
    arn = "arn:aws:bedrock:us-west-2:123456789012:application-inference-profile/abc123"
    messages = [{"role": "user", "content": [{"text": "hello"}]}]
    stub.json(converse()).client().converse(modelId=arn, messages=messages)
    meters, cost, status = bill(spans.spans())
    assert meters["tokens.input.uncached"] == 100
    assert (cost, status) == (None, "unpriced")
