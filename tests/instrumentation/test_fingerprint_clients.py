"""Fingerprints of the smaller clients: the same request has the same one however it is made, and no other has it.

What a fingerprint was made of is looked at too: no key, no token and no address of the client's is among it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tollspan.instrumentation import fingerprint
from tollspan.instrumentation.cohere import CohereInstrumentor
from tollspan.instrumentation.credentials import is_credential
from tollspan.instrumentation.huggingface import HuggingFaceInstrumentor
from tollspan.instrumentation.litellm import LiteLLMInstrumentor
from tollspan.instrumentation.mistral import MistralInstrumentor
from tollspan.instrumentation.ollama import OllamaInstrumentor
from tollspan.instrumentation.openai import OpenAIInstrumentor
from tollspan.instrumentation.stainless import GroqInstrumentor, TogetherInstrumentor
from tollspan.pricing import attributes as names

from .small_stubs import (
    COHERE,
    GROQ,
    HELLO,
    MISTRAL,
    OLLAMA,
    OLLAMA_LAST,
    SSE,
    TOGETHER,
    Case,
    SmallStub,
    cohere_chat,
    cohere_client,
    mistral_client,
    mistral_completion,
    ollama_client,
    ollama_part,
    openai_chunks,
    openai_completion,
    server_sent,
)

INSTRUMENTORS: dict[str, Any] = {
    "mistralai": MistralInstrumentor,
    "cohere": CohereInstrumentor,
    "ollama": OllamaInstrumentor,
    "groq": GroqInstrumentor,
    "together": TogetherInstrumentor,
    "openai": OpenAIInstrumentor,
    "huggingface_hub": HuggingFaceInstrumentor,
    "litellm": LiteLLMInstrumentor,
}
CASES = [MISTRAL, COHERE, OLLAMA, GROQ, TOGETHER]
SECRET = "none-of-your-business"
OTHER: Any = [{"role": "user", "content": "hello?"}]


@pytest.fixture
def stub() -> Iterator[SmallStub]:
    made = SmallStub()
    yield made
    made.close()


@pytest.fixture
def forms(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Canonical forms of the requests of this test."""
    made: list[str] = []
    own = fingerprint.Fingerprints.of

    def of(self: Any, form: str) -> str:
        made.append(form)
        return own(self, form)

    monkeypatch.setattr(fingerprint.Fingerprints, "of", of)
    return made


@pytest.fixture
def keyed(monkeypatch: pytest.MonkeyPatch, telemetry: Any) -> Iterator[Callable[[str], Any]]:
    """Switch fingerprints on for a client."""
    on = []

    def switch(name: str) -> Any:
        pytest.importorskip(name)
        monkeypatch.setenv("TOLLSPAN_FINGERPRINT_KEY", "secret of the tests")
        made = INSTRUMENTORS[name]()
        made.instrument(tracer_provider=telemetry.provider)
        on.append(made)
        return telemetry

    yield switch
    for made in on:
        made.uninstrument()


def found(telemetry: Any) -> list[str | None]:
    """Fingerprints of the calls since it was last asked for, in order."""
    spans = telemetry.spans()
    telemetry.exporter.clear()
    return [span.attributes.get(names.REQUEST_FINGERPRINT) for span in spans]


def same(telemetry: Any, calls: int) -> str:
    """The fingerprint that all of so many calls have."""
    prints = found(telemetry)
    assert len(prints) == calls
    (fingerprint,) = set(prints)
    assert fingerprint
    return fingerprint


# -- what all of them have in common -----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_sync_or_not_and_streamed_or_not_it_is_the_same(keyed: Any, stub: SmallStub, case: Case) -> None:
    telemetry = keyed(case.name)
    stub.json(case.body).json(case.body).stream(case.pieces, case.kind).stream(case.pieces, case.kind)
    case.ask(case.client(stub.url))
    asynchronous = case.async_client(stub.url)
    await case.ask_async(asynchronous)
    list(case.stream(case.client(stub.url)))
    made = case.stream_async(asynchronous)
    async for _ in await made if case.awaited else made:
        pass
    same(telemetry, 4)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_another_server_is_the_same_request(keyed: Any, stub: SmallStub, forms: list[str], case: Case) -> None:
    telemetry = keyed(case.name)
    second = SmallStub()
    try:
        case.ask(case.client(stub.json(case.body).url))
        case.ask(case.client(second.json(case.body).url))
    finally:
        second.close()
    same(telemetry, 2)
    assert "127.0.0.1" not in "".join(forms)


def test_prompts_models_and_parameters_matter(keyed: Any, stub: SmallStub) -> None:
    telemetry = keyed("groq")
    create = GROQ.client(stub.json(GROQ.body).url).chat.completions.create
    create(model="m", messages=HELLO)
    create(model="m", messages=OTHER)
    create(model="n", messages=HELLO)
    create(model="m", messages=HELLO, temperature=0)
    assert len(set(found(telemetry))) == 4


# -- one by one --------------------------------------------------------------------------------------------------------


def test_ollama_by_position_by_name_and_by_the_modules_functions(
    keyed: Any, stub: SmallStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    telemetry = keyed("ollama")
    import ollama

    client = ollama_client(stub.json({**ollama_part("Hello.", True, **OLLAMA_LAST), "embeddings": [[0.1]]}).url)
    monkeypatch.setattr(ollama.chat.__self__, "_client", client._client)
    client.chat("llama3.2", HELLO)
    client.chat(model="llama3.2", messages=HELLO, keep_alive="1h")
    client.chat("llama3.2", [ollama.Message(role="user", content="hello")], options=None)
    ollama.chat("llama3.2", HELLO)
    ollama.chat(model="llama3.2", messages=iter(HELLO))  # the client makes a list of it
    one = same(telemetry, 5)
    client.chat("llama3.2", OTHER)
    client.chat("llama3.2", HELLO, options={"seed": 1})
    client.embed("llama3.2", "hello")
    assert len({one, *found(telemetry)}) == 4


def test_mistral_by_dict_and_by_model(keyed: Any, stub: SmallStub) -> None:
    telemetry = keyed("mistralai")
    try:
        from mistralai.client import models
    except ImportError:  # version 1
        from mistralai import models  # type: ignore[attr-defined, no-redef]
    client = mistral_client(stub.json(mistral_completion()).url)
    client.chat.complete(model="m", messages=HELLO)
    client.chat.complete(model="m", messages=[models.UserMessage(content="hello")], timeout_ms=9000)
    client.chat.complete(model="m", messages=HELLO, http_headers={"Authorization": SECRET}, stop=None)
    one = same(telemetry, 3)
    client.chat.complete(model="m", messages=[models.SystemMessage(content="hello")])
    client.chat.complete(model="m", messages=OTHER)
    assert len({one, *found(telemetry)}) == 3


def test_cohere_by_dict_by_model_and_raw(keyed: Any, stub: SmallStub) -> None:
    telemetry = keyed("cohere")
    import cohere

    client = cohere_client(stub.json(cohere_chat()).url)
    client.chat(model="m", messages=HELLO)
    client.chat(model="m", messages=[cohere.UserChatMessageV2(content="hello")])
    client.with_raw_response.chat(model="m", messages=HELLO, request_options={"additional_headers": {"a": SECRET}})
    one = same(telemetry, 3)
    client.chat(model="m", messages=[cohere.SystemChatMessageV2(content="hello")])
    client.chat(model="m", messages=HELLO, seed=1)
    client.chat(model="m", messages=HELLO, request_options={"additional_body_parameters": {"seed": 2}})
    assert len({one, *found(telemetry)}) == 4


def test_the_first_api_of_cohere(keyed: Any, stub: SmallStub, forms: list[str]) -> None:
    telemetry = keyed("cohere")
    import cohere

    client = cohere.Client(api_key=SECRET, base_url=stub.json({"text": "Hello.", "generation_id": "g"}).url)
    connector = {"id": "crm", "user_access_token": SECRET}
    client.chat(message="hello", connectors=[connector])
    client.chat(message="hello", connectors=[cohere.ChatConnector(id="crm", user_access_token="another")])
    same(telemetry, 2)
    client.chat(message="hello?", connectors=[connector])
    client.chat(message="hello")
    assert len(set(found(telemetry))) == 2
    assert forms
    assert SECRET not in "".join(forms)


def hub(stub: SmallStub, **options: Any) -> Any:
    import huggingface_hub

    return huggingface_hub.InferenceClient(base_url=stub.url, token=SECRET, **options)


def test_the_hub_by_position_by_name_and_streamed(keyed: Any, stub: SmallStub, forms: list[str]) -> None:
    telemetry = keyed("huggingface_hub")
    stub.json(openai_completion("m")).json(openai_completion("m")).stream(server_sent(openai_chunks("m")), SSE)
    client = hub(stub, headers={"X-Api-Key": SECRET})
    client.chat_completion(HELLO)
    hub(stub, timeout=9).chat.completions.create(messages=HELLO)
    list(client.chat_completion(HELLO, stream=True))
    one = same(telemetry, 3)
    stub.replies.clear()
    stub.json(openai_completion("m"))
    client.chat_completion(OTHER)
    client.chat_completion(HELLO, seed=1)
    assert len({one, *found(telemetry)}) == 3
    assert not [form for form in forms if SECRET in form or "127.0.0.1" in form]


def test_tasks_of_the_hub_differ_and_data_count(keyed: Any, stub: SmallStub) -> None:
    telemetry = keyed("huggingface_hub")
    import huggingface_hub

    client = huggingface_hub.InferenceClient(model=stub.json([{"label": "a", "score": 1.0}]).url, token=SECRET)
    client.text_classification("hello")
    client.token_classification("hello")
    client.audio_classification(b"RIFF")
    client.audio_classification(b"RIFG")
    client.audio_classification(b"RIFF")
    words, tokens, one, other, again = found(telemetry)
    assert one == again
    assert len({words, tokens, one, other}) == 4


CREDENTIALS = (
    "api_key",
    "apiKey",
    "X-Api-Key",
    "Authorization",
    "access_token",
    "hf_token",
    "token",
    "client_secret",
    "aws_secret_access_key",
    "private_key",
    "db_password",
    "Cookie",
    "vertex_credentials",
    "idToken",
    "clientSecret",
    "credentialSecret",
    "apiKeyString",
    "XApiKey",
    "githubToken",
    "AccountKey",
    "passphrase",
)
OTHERS = (
    "max_tokens",
    "maxOutputTokens",
    "key",
    "keywords",
    "tokens",
    "tokenizer",
    "secretary",
    "monkey",
    "authors",
    "logit_bias",
)


@pytest.mark.parametrize("name", [*CREDENTIALS, *OTHERS])
def test_credentials_are_known_by_their_names(name: str) -> None:
    assert is_credential(name) is (name in CREDENTIALS)


def test_what_a_remote_tool_is_trusted_with_does_not_matter(keyed: Any, wire: Any, forms: list[str]) -> None:
    telemetry = keyed("openai")
    client = wire.json(wire.response()).client()
    for secret in (SECRET, "another"):
        tool = {"type": "mcp", "server_label": "crm", "authorization": secret, "headers": {"X-Mine": secret}}
        client.responses.create(model="m", input="hello", tools=[tool])
    same(telemetry, 2)
    assert SECRET not in "".join(forms)


# -- what has none -----------------------------------------------------------------------------------------------------


def test_what_may_be_read_only_once_has_none_and_is_not_read(keyed: Any, stub: SmallStub) -> None:
    telemetry = keyed("groq")
    client = GROQ.client(stub.json({"text": "hello"}).json(GROQ.body).url)
    client.audio.transcriptions.create(model="whisper-large-v3", file=io.BytesIO(b"RIFF"))
    client.chat.completions.create(model="m", messages=(message for message in HELLO))
    assert found(telemetry) == [None, None]
    assert b"RIFF" in stub.requests[0][1]
    assert stub.requests[1][1]["messages"] == HELLO


def test_what_is_fetched_has_none(keyed: Any, wire: Any) -> None:
    telemetry = keyed("openai")
    wire.json(wire.response()).client().responses.retrieve("resp_7")
    assert found(telemetry) == [None]


# -- LiteLLM -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def lite(monkeypatch: pytest.MonkeyPatch, keyed: Any) -> Any:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    litellm = pytest.importorskip("litellm")
    return keyed("litellm"), litellm


async def test_litellm_however_it_is_called(lite: Any, stub: SmallStub, forms: list[str]) -> None:
    telemetry, litellm = lite
    there = {"api_base": stub.json(openai_completion("m")).url, "api_key": SECRET}
    litellm.completion("openai/m", HELLO, **there)
    litellm.completion(model="m", messages=HELLO, custom_llm_provider="openai", timeout=9, num_retries=0, **there)
    await litellm.acompletion(model="openai/m", messages=HELLO, metadata={"trace": "7"}, extra_headers={"a": SECRET}, **there)  # fmt: skip  # noqa: E501
    litellm.completion("openai/m", HELLO, litellm_call_id="7", logger_fn=print, aws_secret_access_key=SECRET, **there)
    one = same(telemetry, 4)
    litellm.completion("openai/m", OTHER, **there)
    litellm.completion("openai/m", HELLO, temperature=0, **there)
    litellm.completion("openai/m", HELLO, top_k=3, **there)
    assert len({one, *found(telemetry)}) == 4
    assert not [form for form in forms if SECRET in form or stub.url in form]


def test_a_routers_attempts_are_the_same_request(lite: Any, stub: SmallStub, forms: list[str]) -> None:
    telemetry, litellm = lite
    there = {"api_base": stub.url, "api_key": SECRET, "max_retries": 0}
    params = {"model": "openai/m", "rpm": 100, **there}
    router = litellm.Router(model_list=[{"model_name": "fast", "litellm_params": params}], num_retries=1)
    stub.json({"error": {"message": "no"}}, 500).json(openai_completion("m"))
    router.completion(model="fast", messages=HELLO)
    litellm.completion("openai/m", HELLO, **there)
    same(telemetry, 3)
    assert not [form for form in forms if SECRET in form or stub.url in form], forms


def test_other_functions_of_litellm(lite: Any, stub: SmallStub, wire: Any) -> None:
    telemetry, litellm = lite
    there = {"api_base": stub.json(wire.response()).url, "api_key": SECRET}
    litellm.responses("hello", "openai/m", **there)
    litellm.responses(input="hello", model="openai/m", **there)
    same(telemetry, 2)
    stub.replies.clear()
    stub.json({"object": "list", "model": "m", "data": [], "usage": {"prompt_tokens": 8, "total_tokens": 8}})
    litellm.embedding("openai/m", ["hello"], **there)
    litellm.embedding(model="openai/m", input=["hello"], **there)
    same(telemetry, 2)


def test_a_workflow_has_none_beside_its_attempts(lite: Any, stub: SmallStub) -> None:
    telemetry, litellm = lite
    stub.json({"error": {"message": "no"}}, 500).json(openai_completion("m"))
    there = {"api_base": stub.url, "api_key": SECRET, "max_retries": 0}
    litellm.completion("openai/m", HELLO, fallbacks=["openai/n"], **there)
    *attempts, workflow = found(telemetry)
    assert workflow is None
    assert attempts
    assert all(attempts)


def test_an_answer_from_the_cache_has_none(lite: Any, stub: SmallStub) -> None:
    for needed in ("orjson", "soundfile"):  # LiteLLM's cache imports them and the distribution does not ask for them
        pytest.importorskip(needed)
    telemetry, litellm = lite
    there = {"api_base": stub.json(openai_completion("m")).url, "api_key": SECRET}
    litellm.cache = litellm.Cache(type="local")
    try:
        litellm.completion("openai/m", HELLO, caching=True, **there)
        litellm.completion("openai/m", HELLO, caching=True, **there)
    finally:
        litellm.cache = None
    first, again = found(telemetry)
    assert len(stub.requests) == 1
    assert first
    assert again is None
