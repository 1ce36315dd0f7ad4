"""The clients of huggingface_hub, instrumented: what the body of an answer says is on the span, whatever of it the
client hands on, and who bills is told by the address."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest

hub = pytest.importorskip("huggingface_hub")

from huggingface_hub import AsyncInferenceClient, InferenceClient  # noqa: E402
from huggingface_hub.inference._providers import _common as providers  # noqa: E402
from opentelemetry.instrumentation.utils import suppress_instrumentation  # noqa: E402
from opentelemetry.trace import StatusCode  # noqa: E402

from tests.instrumentation.conftest import Body, completion, completion_chunks, server_sent  # noqa: E402
from tests.instrumentation.http_library import http_of  # noqa: E402
from tests.instrumentation.openai_bill import bill  # noqa: E402
from tollspan.instrumentation import huggingface as ours  # noqa: E402
from tollspan.instrumentation.huggingface import POINTS, HuggingFaceInstrumentor  # noqa: E402
from tollspan.pricing import attributes as names  # noqa: E402

httpx2 = http_of("huggingface_hub")

MODEL = "meta-llama/Llama-3.3-70B-Instruct"
MESSAGES = [{"role": "user", "content": "hello"}]
USAGE = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
TOKENS = {names.USAGE_INPUT_TOKENS: 100, names.USAGE_OUTPUT_TOKENS: 20}
TOKEN = "hf_none"


class Wire:
    """What answers in the place of the Hub and of every provider."""

    def __init__(self) -> None:
        self.replies: list[Callable[[], httpx2.Response]] = []
        self.requests: list[httpx2.Request] = []

    def body(self, content: bytes, kind: str = "application/json", status: int = 200, broken: Any = None) -> Wire:
        headers = {"content-type": kind}
        self.replies.append(lambda: httpx2.Response(status, headers=headers, stream=Body(content, broken)))
        return self

    def json(self, body: Any, status: int = 200) -> Wire:
        return self.body(json.dumps(body).encode(), status=status)

    def stream(self, events: list[dict[str, Any]], broken: Any = None) -> Wire:
        return self.body(server_sent(events, done=broken is None), "text/event-stream", broken=broken)

    def answer(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        reply = (self.replies.pop(0) if len(self.replies) > 1 else self.replies[0])()
        reply.request = request
        return reply

    async def answer_async(self, request: httpx2.Request) -> httpx2.Response:
        return self.answer(request)


@pytest.fixture
def hub_wire(monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    wire = Wire()
    hub.set_client_factory(lambda: httpx2.Client(transport=httpx2.MockTransport(wire.answer)))
    hub.set_async_client_factory(lambda: httpx2.AsyncClient(transport=httpx2.MockTransport(wire.answer_async)))
    tasks = {"together": "Llama-3.3-70B-Instruct-Turbo", "groq": "llama-3.3-70b-versatile"}
    monkeypatch.setattr(
        providers,
        "HARDCODED_MODEL_INFERENCE_MAPPING",
        {
            name: {
                MODEL: hub.hf_api.InferenceProviderMapping(
                    provider=name, providerId=model, hf_model_id=MODEL, task="conversational", status="live"
                )
            }
            for name, model in tasks.items()
        },
    )
    yield wire
    from huggingface_hub.utils import _http

    hub.set_client_factory(_http.default_client_factory)
    hub.set_async_client_factory(_http.default_async_client_factory)


@pytest.fixture
def spans(telemetry: Any) -> Iterator[Any]:
    HuggingFaceInstrumentor().instrument(tracer_provider=telemetry.provider)
    yield telemetry
    HuggingFaceInstrumentor().uninstrument()


def usage_of(span: Any) -> dict[str, Any]:
    return {
        name: value
        for name, value in (span.attributes or {}).items()
        if name.startswith(("gen_ai.usage.", names.USAGE_PREFIX))
    }


def answer(**changed: Any) -> dict[str, Any]:
    return {**completion(model=MODEL, usage=USAGE), **changed}


def chunks(usage: bool = True) -> list[dict[str, Any]]:
    made = [{**chunk, "model": MODEL} for chunk in completion_chunks(usage=False)]
    if usage:
        made.append({**made[0], "choices": [], "usage": USAGE})
    return made


# -- who bills -------------------------------------------------------------------------------------------------------

ENDPOINT = "https://x.us-east-1.aws.endpoints.huggingface.cloud/v1"
BILLED: dict[str, tuple[dict[str, Any], str, str]] = {
    "the router, provider named": ({"provider": "together", "token": TOKEN}, "huggingface_together", MODEL),
    "the router, provider after the model": ({"token": TOKEN, "model": f"{MODEL}:groq"}, "huggingface_groq", MODEL),
    "the router, a policy after the model": ({"token": TOKEN, "model": f"{MODEL}:cheapest"}, "huggingface", MODEL),
    "the router, of its own choice": ({"token": TOKEN}, "huggingface", MODEL),
    "a key of the provider's": ({"provider": "groq", "token": "gsk_none"}, "groq", "llama-3.3-70b-versatile"),
    "an endpoint": ({"base_url": ENDPOINT, "token": TOKEN}, "huggingface", MODEL),
}


@pytest.mark.parametrize(("client", "provider", "model"), BILLED.values(), ids=BILLED.keys())
def test_who_bills_is_told_by_the_address(
    spans: Any, hub_wire: Wire, client: dict[str, Any], provider: str, model: str
) -> None:
    hub_wire.json(answer())
    asked = None if "model" in client else MODEL
    InferenceClient(**client).chat_completion(MESSAGES, model=asked)
    attributes = spans.attributes()
    assert attributes[names.PROVIDER_NAME] == provider
    assert attributes[names.REQUEST_MODEL] == model
    assert attributes[names.SERVER_ADDRESS] == hub_wire.requests[-1].url.host


# -- every kind of call ----------------------------------------------------------------------------------------------


@pytest.fixture
def client() -> InferenceClient:
    return InferenceClient(provider="together", token=TOKEN)


@pytest.fixture
def async_client() -> AsyncInferenceClient:
    return AsyncInferenceClient(provider="together", token=TOKEN)


def test_a_chat(spans: Any, hub_wire: Wire, client: InferenceClient) -> None:
    hub_wire.json(answer())
    result = client.chat_completion(MESSAGES, model=MODEL, max_tokens=9, temperature=0.5)
    assert type(result) is hub.ChatCompletionOutput
    attributes = spans.attributes()
    assert usage_of(spans.only()) == TOKENS
    assert spans.only().name == f"chat {MODEL}"
    assert attributes[names.RESPONSE_ID] == "chatcmpl-7"
    assert attributes[names.RESPONSE_FINISH_REASONS] == ("stop",)
    assert (attributes[names.REQUEST_MAX_TOKENS], attributes[names.REQUEST_TEMPERATURE]) == (9, 0.5)


def test_a_chat_by_its_other_name(spans: Any, hub_wire: Wire, client: InferenceClient) -> None:
    hub_wire.json(answer())
    client.chat.completions.create(MESSAGES, model=MODEL)
    assert usage_of(spans.only()) == TOKENS


async def test_a_chat_async(spans: Any, hub_wire: Wire, async_client: AsyncInferenceClient) -> None:
    hub_wire.json(answer())
    await async_client.chat_completion(MESSAGES, model=MODEL)
    assert usage_of(spans.only()) == TOKENS


def test_a_stream(spans: Any, hub_wire: Wire, client: InferenceClient) -> None:
    hub_wire.stream(chunks())
    stream = client.chat_completion(MESSAGES, model=MODEL, stream=True)
    assert type(stream).__name__ == "generator"
    assert len(list(stream)) == 5
    attributes = spans.attributes()
    assert usage_of(spans.only()) == TOKENS
    assert attributes[names.RESPONSE_FINISH_REASONS] == ("stop",)
    assert attributes[names.REQUEST_STREAM] is True
    assert names.STREAM_ABANDONED not in attributes


async def test_a_stream_async(spans: Any, hub_wire: Wire, async_client: AsyncInferenceClient) -> None:
    hub_wire.stream(chunks())
    stream = await async_client.chat_completion(MESSAGES, model=MODEL, stream=True)
    assert len([chunk async for chunk in stream]) == 5
    assert usage_of(spans.only()) == TOKENS
    assert names.STREAM_ABANDONED not in spans.attributes()


def test_a_stream_without_usage_has_none(spans: Any, hub_wire: Wire, client: InferenceClient) -> None:
    hub_wire.stream(chunks(usage=False))
    list(client.chat_completion(MESSAGES, model=MODEL, stream=True))
    assert usage_of(spans.only()) == {}


def test_groqs_own_place_for_usage(spans: Any, hub_wire: Wire, client: InferenceClient) -> None:
    last = {**chunks(usage=False)[-1], "x_groq": {"id": "req", "usage": USAGE}}
    hub_wire.stream([*chunks(usage=False)[:-1], last])
    list(client.chat_completion(MESSAGES, model=MODEL, stream=True))
    assert usage_of(spans.only()) == TOKENS


def test_a_stream_left_early_is_abandoned(spans: Any, hub_wire: Wire, client: InferenceClient) -> None:
    hub_wire.stream(chunks())

    def work() -> None:
        for _ in client.chat_completion(MESSAGES, model=MODEL, stream=True):
            break

    work()
    gc.collect()
    assert spans.attributes()[names.STREAM_ABANDONED] is True


def test_a_stream_that_breaks_off(spans: Any, hub_wire: Wire, client: InferenceClient) -> None:
    error = httpx2.ReadError("gone")
    hub_wire.stream(chunks()[:2], broken=error)
    with pytest.raises(httpx2.ReadError) as raised:
        list(client.chat_completion(MESSAGES, model=MODEL, stream=True))
    assert raised.value is error
    assert spans.only().status.status_code is StatusCode.ERROR


GENERATED: dict[str, Any] = {
    "generated_text": "Hello.",
    "details": {"finish_reason": "length", "generated_tokens": 12, "tokens": []},
}
PREFILL = [{"id": 1, "text": "a", "logprob": None}, {"id": 2, "text": "b", "logprob": -1.0}]


@pytest.fixture
def endpoint() -> InferenceClient:
    return InferenceClient(model="http://tgi.example:8080", token="none")


def test_generated_text_is_counted_though_the_program_gets_a_string(
    spans: Any, hub_wire: Wire, endpoint: InferenceClient
) -> None:
    hub_wire.json([{**GENERATED, "details": {**GENERATED["details"], "prefill": PREFILL}}])
    assert endpoint.text_generation("hello", max_new_tokens=12) == "Hello."
    assert usage_of(spans.only()) == {names.USAGE_INPUT_TOKENS: 2, names.USAGE_OUTPUT_TOKENS: 12}
    assert spans.attributes()[names.OPERATION_NAME] == "text_completion"


def test_a_prompt_that_is_not_counted_is_absent(spans: Any, hub_wire: Wire, endpoint: InferenceClient) -> None:
    hub_wire.json(GENERATED)
    endpoint.text_generation("hello", details=True)
    assert usage_of(spans.only()) == {names.USAGE_OUTPUT_TOKENS: 12}


def test_streamed_text(spans: Any, hub_wire: Wire, endpoint: InferenceClient) -> None:
    token = {"index": 1, "token": {"id": 1, "text": "a", "logprob": -1.0, "special": False}, "generated_text": None}
    details = {"finish_reason": "length", "generated_tokens": 12, "input_length": 5, "seed": None}
    hub_wire.stream([{**token, "details": None}, {**token, "generated_text": "aa", "details": details}])
    assert list(endpoint.text_generation("hello", stream=True)) == ["a", "a"]
    assert usage_of(spans.only()) == {names.USAGE_INPUT_TOKENS: 5, names.USAGE_OUTPUT_TOKENS: 12}


def test_vectors_are_counted_without_being_parsed(spans: Any, hub_wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numpy")
    mapping = hub.hf_api.InferenceProviderMapping(
        provider="together", providerId="BAAI/bge", hf_model_id="BAAI/bge", task="feature-extraction", status="live"
    )
    monkeypatch.setattr(providers, "HARDCODED_MODEL_INFERENCE_MAPPING", {"together": {"BAAI/bge": mapping}})
    body = {"object": "list", "data": [{"embedding": [0.1, 0.2]}], "usage": {"prompt_tokens": 6, "total_tokens": 6}}
    hub_wire.json(body)
    vectors = InferenceClient(provider="together", token="key").feature_extraction("hello", model="BAAI/bge")
    assert vectors.shape[-1] == 2
    assert usage_of(spans.only()) == {names.USAGE_INPUT_TOKENS: 6}
    assert spans.only().name == "embeddings BAAI/bge"
    assert spans.attributes()[names.PROVIDER_NAME] == "together"


def test_other_tasks_are_seen(spans: Any, hub_wire: Wire, endpoint: InferenceClient) -> None:
    hub_wire.json([{"label": "good", "score": 0.9}])
    endpoint.text_classification("hello")
    assert spans.attributes()[names.OPERATION_NAME] == "inference"
    assert usage_of(spans.only()) == {}


# -- the program sees what it would see without us -------------------------------------------------------------------


def test_an_error_is_the_librarys_own(spans: Any, hub_wire: Wire, client: InferenceClient) -> None:
    hub_wire.json({"error": "no"}, 429)
    with pytest.raises(hub.errors.HfHubHTTPError):
        client.chat_completion(MESSAGES, model=MODEL)
    span = spans.only()
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes[names.HTTP_STATUS] == 429


def test_what_is_not_sent_has_no_span(spans: Any, hub_wire: Wire) -> None:
    with pytest.raises(ValueError, match="supported"):
        InferenceClient(provider="groq", token=TOKEN).text_generation("hello", model=MODEL)
    assert not spans.spans()


def test_suppressed_calls_have_no_span(spans: Any, hub_wire: Wire, client: InferenceClient) -> None:
    hub_wire.json(answer())
    with suppress_instrumentation():
        client.chat_completion(MESSAGES, model=MODEL)
    assert not spans.spans()


@pytest.mark.parametrize("hook", ["_billed_by", "_tell", "_of_details"])
def test_a_fault_of_ours_is_not_the_programs(
    faulty_telemetry: Any, hub_wire: Wire, client: InferenceClient, hook: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(*args: Any) -> Any:
        raise RuntimeError("ours")

    monkeypatch.setattr(ours, hook, fault)
    HuggingFaceInstrumentor().instrument(tracer_provider=faulty_telemetry.provider)
    try:
        hub_wire.json(answer()).stream(chunks()).json(GENERATED)
        assert client.chat_completion(MESSAGES, model=MODEL).usage.prompt_tokens == 100
        assert len(list(client.chat_completion(MESSAGES, model=MODEL, stream=True))) == 5
        assert InferenceClient(model="http://tgi.example:8080", token="none").text_generation("hello") == "Hello."
    finally:
        HuggingFaceInstrumentor().uninstrument()


def test_uninstrument_restores_the_identical_objects(telemetry: Any) -> None:
    def stood() -> list[Any]:
        return [
            InferenceClient.__dict__["_inner_post"],
            AsyncInferenceClient.__dict__["_inner_post"],
            providers.TaskProviderHelper.__dict__["prepare_request"],
        ]

    before = stood()
    HuggingFaceInstrumentor().instrument(tracer_provider=telemetry.provider)
    assert all(now is not then for now, then in zip(stood(), before, strict=True))
    HuggingFaceInstrumentor().uninstrument()
    assert all(now is then for now, then in zip(stood(), before, strict=True))
    assert len(POINTS) == 2


def test_dropped_streams_leave_nothing(spans: Any, hub_wire: Wire, client: InferenceClient) -> None:
    hub_wire.stream(chunks())
    for _ in range(50):
        next(iter(client.chat_completion(MESSAGES, model=MODEL, stream=True)))
    gc.collect()
    assert len(spans.spans()) == 50


# -- usage in, meters out, money -------------------------------------------------------------------------------------


def test_a_call_costs_what_it_costs_by_hand(spans: Any, hub_wire: Wire) -> None:
    hub_wire.json(answer())
    InferenceClient(provider="groq", token=TOKEN).chat_completion(MESSAGES, model=MODEL)
    meters, cost, status = bill(spans.spans())
    assert {meter: int(count) for meter, count in meters.items()} == {
        "tokens.input.uncached": 100,
        "tokens.output": 20,
    }
    # Hugging Face's price for Groq behind its router, USD for a million: 0.59 in, 0.79 out.
    assert (cost, status) == ((Decimal("0.59") * 100 + Decimal("0.79") * 20) / 1_000_000, "priced")
