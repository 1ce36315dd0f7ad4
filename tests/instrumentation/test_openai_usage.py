"""What requests and responses say reaches the span as it was said: given counts as given, nothing else."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion
from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN

from tollspan.instrumentation.calls import Call, WrapPoint
from tollspan.instrumentation.openai import readers
from tollspan.instrumentation.openai.providers import client_attributes
from tollspan.pricing import attributes as names

POINT = WrapPoint(target="openai:nothing", request=lambda args, kwargs: None)
ASK: dict[str, Any] = {"model": "m", "messages": []}


def call() -> Call:
    return Call(POINT, "k", INVALID_SPAN, Context(), readers.State(None, streamed=False))


def usage_of(usage: Any) -> dict[str, Any]:
    """Usage attributes of a chat completion with this usage, by their name after ``gen_ai.usage.``."""
    reading = call()
    readers.read_chat(reading, {"usage": usage})
    return {name.removeprefix("gen_ai.usage."): value for name, value in reading.attributes.items()}


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (None, {}),
        ({}, {}),
        ({"prompt_tokens": 5}, {"input_tokens": 5}),
        (
            {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
            {"input_tokens": 0, "output_tokens": 0},
        ),
        (
            {"prompt_tokens": 5, "completion_tokens": 3, "prompt_tokens_details": None},
            {"input_tokens": 5, "output_tokens": 3},
        ),
        (
            {
                "prompt_tokens": 9,
                "completion_tokens": 3,
                "prompt_tokens_details": {"audio_tokens": 4, "image_tokens": 2},
            },
            {"input_tokens": 9, "output_tokens": 3, "audio.input_tokens": 4, "image.input_tokens": 2},
        ),
        # Not counts, so not given.
        ({"prompt_tokens": "5", "completion_tokens": 2.5, "prompt_tokens_details": {"cached_tokens": True}}, {}),
        # A count that cannot be right is passed on: it is for the processor to say so, not for us to hide it.
        ({"prompt_tokens": -1}, {"input_tokens": -1}),
    ],
)
def test_a_count_is_there_exactly_when_the_provider_gave_it(usage: Any, expected: dict[str, int]) -> None:
    assert usage_of(usage) == expected


TOKENS = st.integers(0, 10**6)


@given(TOKENS, TOKENS, TOKENS.filter(bool), st.sampled_from(["inside", "beside", "no total"]))
def test_output_includes_reasoning_whichever_way_the_provider_counts(
    prompt: int, text: int, reasoning: int, convention: str
) -> None:
    completion = text if convention == "beside" else text + reasoning
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }
    if convention != "no total":
        usage["total_tokens"] = prompt + text + reasoning
    assert usage_of(usage) == {
        "input_tokens": prompt,
        "output_tokens": text + reasoning,
        "reasoning.output_tokens": reasoning,
    }


def test_a_dict_and_the_clients_model_of_it_read_the_same(wire: Any) -> None:
    # `cache_write_tokens` and the like may be newer than the client: what it does not declare counts as well.
    body = wire.completion()
    body["usage"]["prompt_tokens_details"]["image_tokens"] = 3
    as_dict, as_model = call(), call()
    readers.read_chat(as_dict, body)
    readers.read_chat(as_model, ChatCompletion.construct(**body))
    assert as_dict.attributes == as_model.attributes
    assert as_dict.attributes[names.USAGE_IMAGE_INPUT_TOKENS] == 3


def test_fields_that_the_client_does_not_declare_are_read() -> None:
    class Newer(openai.BaseModel):
        declared: int

    assert readers._fields(Newer.construct(declared=1, undeclared=2)) == {"declared": 1, "undeclared": 2}
    assert readers._fields(None) == {}
    assert readers._fields("text") == {}


def test_usage_that_every_chunk_repeats_is_assigned_and_not_added(wire: Any) -> None:
    reading = call()
    chunks = wire.completion_chunks(usage=False)
    for number, chunk in enumerate(chunks, 1):
        chunk["usage"] = {"prompt_tokens": 10, "completion_tokens": number, "total_tokens": 10 + number}
        assert readers.read_chat_chunk(reading, chunk) is False
    assert reading.attributes[names.USAGE_INPUT_TOKENS] == 10
    assert reading.attributes[names.USAGE_OUTPUT_TOKENS] == len(chunks)


def test_reasoning_beside_the_output_is_added_once_though_every_chunk_repeats_it() -> None:
    reading = call()
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "total_tokens": 22,
        "completion_tokens_details": {"reasoning_tokens": 7},
    }
    for _ in range(3):
        readers.read_chat_chunk(reading, {"id": "x", "choices": [{"index": 0}], "usage": usage})
    assert reading.attributes[names.USAGE_OUTPUT_TOKENS] == 12


def test_finish_reasons_stand_in_the_order_of_their_choices() -> None:
    reading = call()
    for index, reason in ((2, "length"), (0, "stop"), (1, "content_filter")):
        readers.read_chat_chunk(reading, {"id": "x", "choices": [{"index": index, "finish_reason": reason}]})
    assert reading.attributes[names.RESPONSE_FINISH_REASONS] == ["stop", "content_filter", "length"]


# -- requests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_parameters", "expected"),
    [
        ({"temperature": 0}, {names.REQUEST_TEMPERATURE: 0.0}),
        ({"top_p": 0.5, "max_tokens": 10}, {names.REQUEST_TOP_P: 0.5, names.REQUEST_MAX_TOKENS: 10}),
        ({"max_completion_tokens": 20}, {names.REQUEST_MAX_TOKENS: 20}),
        ({"service_tier": "flex"}, {names.OPENAI_REQUEST_SERVICE_TIER: "flex"}),
        ({"service_tier": "auto"}, {}),
        ({"temperature": openai.omit, "service_tier": openai.NOT_GIVEN, "stream": False, "max_tokens": None}, {}),
    ],
)
def test_request_parameters(openai_spans: Any, wire: Any, given_parameters: Any, expected: dict[str, Any]) -> None:
    wire.json(wire.completion()).client().chat.completions.create(**ASK, **given_parameters)
    attributes = openai_spans.attributes()
    asked = {name: value for name, value in attributes.items() if ".request." in name and name != names.REQUEST_MODEL}
    assert asked == expected
    assert all(type(asked[name]) is type(value) for name, value in expected.items())


@pytest.mark.parametrize("conversation", ["conv_1", {"id": "conv_1"}])
def test_the_conversation_of_a_response(openai_spans: Any, wire: Any, conversation: Any) -> None:
    wire.json(wire.response()).client().responses.create(model="m", input="x", conversation=conversation)
    assert openai_spans.attributes()[names.CONVERSATION_ID] == "conv_1"


def test_a_request_without_a_model(openai_spans: Any, wire: Any) -> None:
    wire.json(wire.response()).client().responses.create(prompt={"id": "pmpt_1"})
    assert openai_spans.only().name == "chat"
    assert names.REQUEST_MODEL not in openai_spans.attributes()


# -- who bills -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "provider", "server", "port"),
    [
        ("https://api.openai.com/v1", "openai", "api.openai.com", 443),
        ("https://eu.api.openai.com/v1", "openai", "eu.api.openai.com", 443),
        ("https://my-resource.openai.azure.com/openai/v1", "azure.ai.openai", "my-resource.openai.azure.com", 443),
        ("https://api.groq.com/openai/v1", "groq", "api.groq.com", 443),
        ("https://api.deepseek.com", "deepseek", "api.deepseek.com", 443),
        ("https://api.x.ai/v1", "x_ai", "api.x.ai", 443),
        ("https://openrouter.ai/api/v1", "openrouter", "openrouter.ai", 443),
        ("https://api.together.xyz/v1", "together", "api.together.xyz", 443),
        ("https://us-central1-aiplatform.googleapis.com/v1", "gcp.vertex_ai", None, 443),
        ("https://bedrock-runtime.us-west-2.amazonaws.com/openai/v1", "aws.bedrock", None, 443),
        ("http://127.0.0.1:8000/v1", "openai", "127.0.0.1", 8000),
        ("http://vllm.internal/v1", "openai", "vllm.internal", 80),
        ("https://api.x.ai.example.com/v1", "openai", "api.x.ai.example.com", 443),
        ("https://notopenrouter.ai/v1", "openai", "notopenrouter.ai", 443),
    ],
)
def test_the_provider_is_who_bills(url: str, provider: str, server: str | None, port: int) -> None:
    attributes = client_attributes(openai.OpenAI(api_key="none", base_url=url))
    assert attributes[names.PROVIDER_NAME] == provider
    assert attributes[names.SERVER_PORT] == port
    assert server is None or attributes[names.SERVER_ADDRESS] == server


def test_an_azure_client_behind_an_address_of_its_own() -> None:
    client = openai.AzureOpenAI(api_key="none", api_version="1", base_url="https://ai.example.com/openai")
    assert client_attributes(client)[names.PROVIDER_NAME] == "azure.ai.openai"


def test_a_client_whose_address_is_changed_is_billed_by_the_new_one() -> None:
    client = openai.OpenAI(api_key="none", base_url="https://api.openai.com/v1")
    assert client_attributes(client)[names.PROVIDER_NAME] == "openai"
    client.base_url = "https://api.groq.com/openai/v1"
    assert client_attributes(client)[names.PROVIDER_NAME] == "groq"
