"""Every client in one table: how it is made on a local server, how it is asked, and what the server answers.

In: the real clients. Out: `CLIENTS`, for tests of what holds for all of them. A new client is one more row: where it
comes from (`module`, `instrumentor`), `make`, its plain calls (`asks`) and streams (`streams`), and its answers as
functions of what they count. One function of a call serves the synchronous and the asynchronous client; where the two
have different names there are two (`Ask`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from . import anthropic_stub, bedrock_stub, conftest, google_stub
from .small_stubs import (
    GROQ_MODEL,
    HELLO,
    NDJSON,
    SSE,
    TOGETHER_MODEL,
    cohere_chat,
    cohere_events,
    lines,
    mistral_chunks,
    mistral_completion,
    ollama_part,
    openai_chunks,
    openai_completion,
    server_sent,
)

Counts = tuple[int, int] | None
"""Tokens of input and output that an answer tells; None: it tells none."""


class Ask(NamedTuple):
    """A call of the synchronous client, and of the asynchronous one where it is another."""

    sync: Callable[[Any], Any]
    asynchronous: Callable[[Any], Any] | None = None

    def of(self, asynchronous: bool) -> Callable[[Any], Any]:
        return self.asynchronous or self.sync if asynchronous else self.sync


class Make(NamedTuple):
    """What a client is made with: address, attempts after the first, seconds until it gives up."""

    url: str
    attempts: int = 0
    timeout: float = 30.0


@dataclass(frozen=True, kw_only=True)
class Client:
    """A client.

    Attributes:
        name: what the tests call it.
        module: has to be importable, else its tests are skipped.
        instrumentor: ``"module:Class"`` below ``tollspan.instrumentation``; several, separated by blanks.
        make: a client; the second argument says whether an asynchronous one.
        asks: plain calls by name; the first is *the* call.
        streams: calls that give a stream, a context manager of one, or something with a ``parse`` that does; the first
            is *the* stream.
        answer, events: body of an answer, and pieces of a streamed one, that tell these counts.
        kind: content type of a stream.
        garbage: a piece of a stream that no client can read.
        retrying, retrying_streams: it can try again by itself.
        silent: it can read answers that tell no usage.
        refusal: body of a refusal with this status.
        headers: headers of a refusal.
    """

    name: str
    module: str
    instrumentor: str
    make: Callable[[Make, bool], Any]
    asks: Mapping[str, Ask]
    streams: Mapping[str, Ask]
    answer: Callable[[Counts], Any]
    events: Callable[[Counts], list[bytes]]
    kind: str = SSE
    garbage: bytes = b'data: {"id": \n\n'
    retrying: bool = True
    retrying_streams: bool = True
    silent: bool = True
    refusal: Callable[[int], Any] = lambda status: {"message": f"no: {status}"}
    headers: Mapping[str, str] = field(default_factory=lambda: {"retry_after_ms": "1"})

    def __str__(self) -> str:
        return self.name


def usage(counts: Counts) -> dict[str, Any]:
    """A field of OpenAI's form, or nothing."""
    if counts is None:
        return {}
    return {"usage": {"prompt_tokens": counts[0], "completion_tokens": counts[1], "total_tokens": sum(counts)}}


def without(body: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in names}


# -- OpenAI, and those who speak as it does ----------------------------------------------------------------------------


def of_package(package: str, name: str) -> Callable[[Make, bool], Any]:
    """Clients that are made as OpenAI's is, by Stainless."""

    def make(how: Make, asynchronous: bool) -> Any:
        from importlib import import_module

        made = getattr(import_module(package), ("Async" if asynchronous else "") + name)
        return made(api_key="none", base_url=how.url, max_retries=how.attempts, timeout=how.timeout)

    return make


def completions(model: str, **more: Any) -> dict[str, Ask]:
    """Ways to ask for a chat completion that the clients made by Stainless have."""
    asked: Any = {"model": model, "messages": HELLO, **more}
    return {
        "create": Ask(lambda client: client.chat.completions.create(**asked)),
        "raw": Ask(lambda client: client.chat.completions.with_raw_response.create(**asked)),
        "streaming response": Ask(lambda client: client.chat.completions.with_streaming_response.create(**asked)),
    }


def openai_events(counts: Counts) -> list[bytes]:
    chunks = conftest.completion_chunks(usage=False)
    return server_sent([*chunks, {**chunks[0], "choices": [], **usage(counts)}] if counts else chunks)


OPENAI = Client(
    name="openai",
    module="openai",
    instrumentor="openai:OpenAIInstrumentor",
    make=of_package("openai", "OpenAI"),
    asks={
        **completions("gpt-5-mini"),
        "parse": Ask(lambda client: client.chat.completions.parse(model="gpt-5-mini", messages=HELLO)),
    },
    streams={
        **completions("gpt-5-mini", stream=True, stream_options={"include_usage": True}),
        "stream": Ask(
            lambda client: client.chat.completions.stream(
                model="gpt-5-mini", messages=HELLO, stream_options={"include_usage": True}
            )
        ),
    },
    answer=lambda counts: {**without(conftest.completion(), "usage"), **usage(counts)},
    events=openai_events,
)


def responses_events(counts: Counts) -> list[bytes]:
    return server_sent(conftest.response_events(usage=responses_usage(counts)), done=False, named="type")


def responses_usage(counts: Counts) -> dict[str, Any] | None:
    if counts is None:
        return None
    details = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
    return {"input_tokens": counts[0], "output_tokens": counts[1], "total_tokens": sum(counts), **details}


RESPONSES = Client(
    name="openai responses",
    module="openai",
    instrumentor="openai:OpenAIInstrumentor",
    make=of_package("openai", "OpenAI"),
    asks={
        "create": Ask(lambda client: client.responses.create(model="gpt-5-mini", input="hello")),
        "raw": Ask(lambda client: client.responses.with_raw_response.create(model="gpt-5-mini", input="hello")),
    },
    streams={
        "create": Ask(lambda client: client.responses.create(model="gpt-5-mini", input="hello", stream=True)),
        "stream": Ask(lambda client: client.responses.stream(model="gpt-5-mini", input="hello")),
    },
    answer=lambda counts: conftest.response(usage=responses_usage(counts)),
    events=responses_events,
)


def last_of_groq(counts: Counts) -> dict[str, Any]:
    return {"x_groq": {"id": "req_7", **usage(counts)}}


GROQ = Client(
    name="groq",
    module="groq",
    instrumentor="stainless:GroqInstrumentor",
    make=of_package("groq", "Groq"),
    asks=completions(GROQ_MODEL),
    streams=completions(GROQ_MODEL, stream=True),
    answer=lambda counts: {**without(openai_completion(GROQ_MODEL), "usage"), **usage(counts)},
    events=lambda counts: server_sent(openai_chunks(GROQ_MODEL, **last_of_groq(counts))),
)

TOGETHER = Client(
    name="together",
    module="together",
    instrumentor="stainless:TogetherInstrumentor",
    make=of_package("together", "Together"),
    asks=completions(TOGETHER_MODEL),
    streams=completions(TOGETHER_MODEL, stream=True),
    answer=lambda counts: {**without(openai_completion(TOGETHER_MODEL), "usage"), **usage(counts)},
    events=lambda counts: server_sent(openai_chunks(TOGETHER_MODEL, **usage(counts))),
)


def huggingface(how: Make, asynchronous: bool) -> Any:
    import huggingface_hub

    made = huggingface_hub.AsyncInferenceClient if asynchronous else huggingface_hub.InferenceClient
    return made(base_url=f"{how.url}/v1", api_key="none", timeout=how.timeout)


HUGGINGFACE = Client(
    name="huggingface",
    module="huggingface_hub",
    instrumentor="huggingface:HuggingFaceInstrumentor",
    make=huggingface,
    asks={"chat_completion": Ask(lambda client: client.chat_completion(HELLO, model="m"))},
    streams={"chat_completion": Ask(lambda client: client.chat_completion(HELLO, model="m", stream=True))},
    answer=lambda counts: {**without(openai_completion("m"), "usage"), **usage(counts)},
    events=lambda counts: server_sent(openai_chunks("m", **usage(counts))),
    retrying=False,
    retrying_streams=False,
)


def litellm(how: Make, asynchronous: bool) -> Any:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    import litellm

    given: Any = {"api_base": how.url, "api_key": "none", "max_retries": how.attempts, "timeout": how.timeout}
    given |= {"model": "openai/gpt-5-mini", "messages": HELLO}
    call = litellm.acompletion if asynchronous else litellm.completion
    return lambda **more: call(**given, **more)


LITELLM = Client(
    name="litellm",
    module="litellm",
    instrumentor="openai:OpenAIInstrumentor litellm:LiteLLMInstrumentor",
    make=litellm,
    asks={"completion": Ask(lambda client: client())},
    streams={"completion": Ask(lambda client: client(stream=True, stream_options={"include_usage": True}))},
    answer=OPENAI.answer,
    events=OPENAI.events,
)


# -- Anthropic ---------------------------------------------------------------------------------------------------------

_MESSAGES: Any = {"model": anthropic_stub.MODEL, "max_tokens": 64, "messages": HELLO}


def anthropic_usage(counts: Counts) -> dict[str, Any]:
    return {} if counts is None else {"input_tokens": counts[0], "output_tokens": counts[1]}


def anthropic_events(counts: Counts) -> list[bytes]:
    if counts is not None:
        return server_sent(anthropic_stub.events(usage=anthropic_usage(counts)), done=False, named="type")
    events = anthropic_stub.events()
    for event in events:
        event.pop("usage", None)
    events[0]["message"] = without(events[0]["message"], "usage")
    return server_sent(events, done=False, named="type")


ANTHROPIC = Client(
    name="anthropic",
    module="anthropic",
    instrumentor="anthropic:AnthropicInstrumentor",
    make=of_package("anthropic", "Anthropic"),
    asks={
        "create": Ask(lambda client: client.messages.create(**_MESSAGES)),
        "raw": Ask(lambda client: client.messages.with_raw_response.create(**_MESSAGES)),
        "streaming response": Ask(lambda client: client.messages.with_streaming_response.create(**_MESSAGES)),
        "beta": Ask(lambda client: client.beta.messages.create(**_MESSAGES)),
    },
    streams={
        "create": Ask(lambda client: client.messages.create(**_MESSAGES, stream=True)),
        "stream": Ask(lambda client: client.messages.stream(**_MESSAGES)),
        "raw": Ask(lambda client: client.messages.with_raw_response.create(**_MESSAGES, stream=True)),
        "beta": Ask(lambda client: client.beta.messages.create(**_MESSAGES, stream=True)),
    },
    answer=lambda counts: {
        **without(anthropic_stub.message(), "usage"),
        **({"usage": anthropic_usage(counts)} if counts else {}),
    },
    events=anthropic_events,
    silent=False,
    refusal=lambda status: {"type": "error", "error": {"type": "api_error", "message": f"no: {status}"}},
)


# -- Google ------------------------------------------------------------------------------------------------------------


def google(how: Make, asynchronous: bool) -> Any:
    from google import genai
    from google.genai import types

    again = types.HttpRetryOptions(attempts=how.attempts + 1, initial_delay=0.001, max_delay=0.001, jitter=0.0)
    options = types.HttpOptions(base_url=how.url, timeout=int(how.timeout * 1000), retry_options=again)
    return genai.Client(api_key="none", vertexai=False, http_options=options)


def google_usage(counts: Counts) -> dict[str, Any] | None:
    if counts is None:
        return None
    return {"promptTokenCount": counts[0], "candidatesTokenCount": counts[1], "totalTokenCount": sum(counts)}


def google_events(counts: Counts) -> list[bytes]:
    content = google_stub.content
    chunks = [content(None, "Hel", None), content(None, "lo", None), content(google_usage(counts), ".")]
    return server_sent(chunks, done=False)


_GENERATE: Any = {"model": google_stub.MODEL, "contents": "hello"}

GOOGLE = Client(
    name="google-genai",
    module="google.genai",
    instrumentor="google_genai:GoogleGenAIInstrumentor",
    make=google,
    asks={
        "generate_content": Ask(
            lambda client: client.models.generate_content(**_GENERATE),
            lambda client: client.aio.models.generate_content(**_GENERATE),
        )
    },
    streams={
        "generate_content": Ask(
            lambda client: client.models.generate_content_stream(**_GENERATE),
            lambda client: client.aio.models.generate_content_stream(**_GENERATE),
        )
    },
    answer=lambda counts: google_stub.content(google_usage(counts)),
    events=google_events,
    refusal=google_stub.refusal,
)


# -- Bedrock -----------------------------------------------------------------------------------------------------------

_CONVERSE: Any = {"modelId": bedrock_stub.MODEL, "messages": [{"role": "user", "content": [{"text": "hello"}]}]}


def bedrock(how: Make, asynchronous: bool) -> Any:
    stub = bedrock_stub.Stub(how.url)
    # urllib3 has no limit for the whole; a read that waits this long fails.
    config: Any = {"retries": {"total_max_attempts": how.attempts + 1}, "read_timeout": how.timeout}
    return stub.async_client(**config) if asynchronous else stub.client(**config)


def bedrock_usage(counts: Counts) -> dict[str, Any]:
    if counts is None:
        return {}
    return {"usage": {"inputTokens": counts[0], "outputTokens": counts[1], "totalTokens": sum(counts)}}


def bedrock_events(counts: Counts) -> list[bytes]:
    *events, (name, last) = bedrock_stub.converse_events()
    events.append((name, {**without(last, "usage"), **bedrock_usage(counts)}))
    return [bedrock_stub.frame(event) for event in events]


async def _stream_of(client: Any) -> Any:
    return (await client.converse_stream(**_CONVERSE))["stream"]


BEDROCK = Client(
    name="bedrock",
    module="botocore",
    instrumentor="bedrock:BedrockInstrumentor",
    make=bedrock,
    asks={"converse": Ask(lambda client: client.converse(**_CONVERSE))},
    streams={"converse": Ask(lambda client: client.converse_stream(**_CONVERSE)["stream"], _stream_of)},
    answer=lambda counts: {**without(bedrock_stub.converse(), "usage"), **bedrock_usage(counts)},
    events=bedrock_events,
    kind="application/vnd.amazon.eventstream",
    garbage=bytes(64),
    headers={"x_amzn_ErrorType": "ThrottlingException"},
)


# -- Mistral, Cohere, Ollama -------------------------------------------------------------------------------------------


def mistral(how: Make, asynchronous: bool) -> Any:
    from .small_stubs import mistral_client

    return mistral_client(how.url, how.attempts, timeout_ms=int(how.timeout * 1000))


_MISTRAL: Any = {"model": "mistral-small-latest", "messages": HELLO}

MISTRAL = Client(
    name="mistral",
    module="mistralai",
    instrumentor="mistral:MistralInstrumentor",
    make=mistral,
    asks={
        "complete": Ask(
            lambda client: client.chat.complete(**_MISTRAL), lambda client: client.chat.complete_async(**_MISTRAL)
        )
    },
    streams={
        "stream": Ask(
            lambda client: client.chat.stream(**_MISTRAL), lambda client: client.chat.stream_async(**_MISTRAL)
        )
    },
    answer=lambda counts: {**without(mistral_completion(), "usage"), **usage(counts)},
    events=lambda counts: server_sent(mistral_chunks(usage(counts).get("usage"))),
    silent=False,
)


def cohere(how: Make, asynchronous: bool) -> Any:
    from .small_stubs import cohere_async, cohere_client

    return (cohere_async if asynchronous else cohere_client)(how.url, how.attempts, timeout=how.timeout)


def cohere_usage(counts: Counts) -> dict[str, Any] | None:
    if counts is None:
        return None
    return {"billed_units": {"input_tokens": float(counts[0]), "output_tokens": float(counts[1])}}


_COHERE: Any = {"model": "command-a-03-2025", "messages": HELLO}

COHERE = Client(
    name="cohere",
    module="cohere",
    instrumentor="cohere:CohereInstrumentor",
    make=cohere,
    asks={
        "chat": Ask(lambda client: client.chat(**_COHERE)),
        "raw": Ask(lambda client: client.with_raw_response.chat(**_COHERE)),
    },
    streams={"chat": Ask(lambda client: client.chat_stream(**_COHERE))},
    answer=lambda counts: cohere_chat(usage=cohere_usage(counts)),
    events=lambda counts: server_sent(cohere_events(cohere_usage(counts)), done=False, named="type"),
    retrying_streams=False,
)


def ollama(how: Make, asynchronous: bool) -> Any:
    from .small_stubs import ollama_async, ollama_client

    return (ollama_async if asynchronous else ollama_client)(how.url, timeout=how.timeout)


def ollama_last(text: str, counts: Counts) -> dict[str, Any]:
    told = {"prompt_eval_count": counts[0], "eval_count": counts[1]} if counts else {}
    return ollama_part(text, True, done_reason="stop", **told)


_OLLAMA: Any = {"model": "llama3.2", "messages": HELLO}

OLLAMA = Client(
    name="ollama",
    module="ollama",
    instrumentor="ollama:OllamaInstrumentor",
    make=ollama,
    asks={"chat": Ask(lambda client: client.chat(**_OLLAMA))},
    streams={"chat": Ask(lambda client: client.chat(**_OLLAMA, stream=True))},
    answer=lambda counts: ollama_last("Hello.", counts),
    events=lambda counts: lines([ollama_part("Hel"), ollama_part("lo."), ollama_last("", counts)]),
    kind=NDJSON,
    garbage=b'{"id": \n',
    retrying=False,
    retrying_streams=False,
)

CLIENTS = (
    OPENAI,
    RESPONSES,
    ANTHROPIC,
    GOOGLE,
    BEDROCK,
    MISTRAL,
    COHERE,
    OLLAMA,
    GROQ,
    TOGETHER,
    HUGGINGFACE,
    LITELLM,
)
