"""A local server that speaks the wire of Mistral, Cohere, Ollama, Groq and Together: JSON, server-sent events, lines.

Field names and framing are those of the services' references and of the types of their clients; the clients under test
are the real ones. What a test is about stands in a `Case`: a client, a call of it, plain and streamed, and its answers.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.instrumentation.stub_server import StubServer

SmallStub = StubServer


def server_sent(events: Iterable[dict[str, Any]], done: bool = True, named: str | None = None) -> list[bytes]:
    """Frames of server-sent events; ``named``: the field of an event that is its name on the wire."""
    frames = []
    for event in events:
        name = f"event: {event[named]}\n" if named else ""
        frames.append(f"{name}data: {json.dumps(event)}\n\n".encode())
    return [*frames, b"data: [DONE]\n\n"] if done else frames


def mistral_page(number: int) -> dict[str, Any]:
    return {"index": number, "markdown": "# One", "images": [], "dimensions": None}


def lines(parts: Iterable[dict[str, Any]]) -> list[bytes]:
    """Parts as lines of JSON."""
    return [json.dumps(part).encode() + b"\n" for part in parts]


SSE = "text/event-stream"
NDJSON = "application/x-ndjson"


# -- what the services say ---------------------------------------------------------------------------------------------

MISTRAL_USAGE = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}


def mistral_completion(**changed: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": "Hello."}
    return {
        "id": "cmpl-7",
        "object": "chat.completion",
        "created": 1,
        "model": "mistral-small-latest",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": MISTRAL_USAGE,
        **changed,
    }


def mistral_chunks(usage: Any = MISTRAL_USAGE) -> list[dict[str, Any]]:
    whole = {"id": "cmpl-7", "object": "chat.completion.chunk", "created": 1, "model": "mistral-small-latest"}

    def part(text: str, reason: str | None = None, **more: Any) -> dict[str, Any]:
        choice = {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": reason}
        return {**whole, "choices": [choice], **more}

    last = {"usage": usage} if usage is not None else {}
    return [part("Hel"), part("lo"), part(".", "stop", **last)]


COHERE_USAGE = {
    "billed_units": {"input_tokens": 1000.0, "output_tokens": 100.0},
    "tokens": {"input_tokens": 1068.0, "output_tokens": 103.0},
}


def cohere_chat(**changed: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": [{"type": "text", "text": "Hello."}]}
    return {"id": "co-7", "finish_reason": "COMPLETE", "message": message, "usage": COHERE_USAGE, **changed}


def cohere_events(usage: Any = COHERE_USAGE) -> list[dict[str, Any]]:
    return [
        {"type": "message-start", "id": "co-7", "delta": {"message": {"role": "assistant"}}},
        {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": "Hello."}}}},
        {"type": "message-end", "id": "co-7", "delta": {"finish_reason": "COMPLETE", "usage": usage}},
    ]


def ollama_part(text: str, done: bool = False, **more: Any) -> dict[str, Any]:
    part = {
        "model": "llama3.2",
        "created_at": "2026-11-21T10:00:00Z",
        "message": {"role": "assistant", "content": text},
        "done": done,
    }
    return {**part, **more}


OLLAMA_LAST = {
    "done_reason": "stop",
    "total_duration": 4_883_583_458,
    "load_duration": 1_334_875,
    "prompt_eval_count": 1000,
    "prompt_eval_duration": 342_546_000,
    "eval_count": 100,
    "eval_duration": 4_535_599_000,
}


def openai_completion(model: str, **changed: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-7",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello."}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100},
        **changed,
    }


def openai_chunks(model: str, **last: Any) -> list[dict[str, Any]]:
    whole = {"id": "chatcmpl-7", "object": "chat.completion.chunk", "created": 1, "model": model}
    choices = [("Hel", None), ("lo", None), (".", "stop")]
    made: list[dict[str, Any]] = [
        {**whole, "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": reason}]}
        for text, reason in choices
    ]
    made[-1] |= last
    return made


# -- the clients -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A client and one call of it, as the tests that all clients have in common need it.

    Attributes:
        name: the client's distribution.
        client, async_client: the stub's URL → a client that asks it and tries once; a number of further attempts may
            be given where the client makes any.
        ask, stream: what is called on a client, which for an asynchronous one gives an awaitable; ``stream`` may also
            give the asynchronous iterator itself (``awaited`` false).
        body, pieces, kind: the answer, plain and streamed.
        retrying: the client can try again.
        usage: attributes of the usage.
    """

    name: str
    module: str
    instrumentor: str
    client: Callable[..., Any]
    async_client: Callable[..., Any]
    ask: Callable[[Any], Any]
    ask_async: Callable[[Any], Any]
    stream: Callable[[Any], Any]
    stream_async: Callable[[Any], Any]
    body: dict[str, Any]
    pieces: list[bytes]
    kind: str = SSE
    awaited: bool = True
    lazy: bool = False
    retrying: bool = True
    operation: str = "chat"
    model: str = ""
    provider: str = ""
    usage: dict[str, Any] = field(
        default_factory=lambda: {"gen_ai.usage.input_tokens": 1000, "gen_ai.usage.output_tokens": 100}
    )

    def __str__(self) -> str:
        return self.name


HELLO: Any = [{"role": "user", "content": "hello"}]


def mistral_client(url: str, attempts: int = 0, **options: Any) -> Any:
    try:
        from mistralai.client import Mistral
        from mistralai.client.utils import BackoffStrategy, RetryConfig
    except ImportError:  # version 1
        from mistralai import Mistral
        from mistralai.utils import BackoffStrategy, RetryConfig

    retries = RetryConfig("backoff", BackoffStrategy(1, 2, 1.0, 5000), True) if attempts else None
    more = {"retry_config": retries} if retries else {}
    return Mistral(api_key="none", server_url=url, **more, **options)


def cohere_client(url: str, attempts: int = 0, **options: Any) -> Any:
    import cohere

    return cohere.ClientV2(api_key="none", base_url=url, **_attempts(cohere.ClientV2, attempts), **options)


def cohere_async(url: str, attempts: int = 0, **options: Any) -> Any:
    import cohere

    return cohere.AsyncClientV2(api_key="none", base_url=url, **_attempts(cohere.AsyncClientV2, attempts), **options)


def _attempts(kind: Any, attempts: int) -> dict[str, Any]:
    # Older versions make one attempt unless a call asks for more.
    return {"max_retries": attempts} if "max_retries" in inspect.signature(kind).parameters else {}


def ollama_client(url: str, **options: Any) -> Any:
    import ollama

    return ollama.Client(url, **options)


def ollama_async(url: str, **options: Any) -> Any:
    import ollama

    return ollama.AsyncClient(url, **options)


def stainless(package: str, name: str) -> Callable[..., Any]:
    def make(url: str, attempts: int = 0, **options: Any) -> Any:
        import importlib

        client = getattr(importlib.import_module(package), name)
        return client(api_key="none", base_url=url, max_retries=attempts, **options)

    return make


MISTRAL = Case(
    name="mistralai",
    module="mistral",
    instrumentor="MistralInstrumentor",
    client=mistral_client,
    async_client=mistral_client,
    ask=lambda client: client.chat.complete(model="mistral-small-latest", messages=HELLO),
    ask_async=lambda client: client.chat.complete_async(model="mistral-small-latest", messages=HELLO),
    stream=lambda client: client.chat.stream(model="mistral-small-latest", messages=HELLO),
    stream_async=lambda client: client.chat.stream_async(model="mistral-small-latest", messages=HELLO),
    body=mistral_completion(),
    pieces=server_sent(mistral_chunks()),
    model="mistral-small-latest",
    provider="mistral_ai",
)

COHERE = Case(
    name="cohere",
    module="cohere",
    instrumentor="CohereInstrumentor",
    client=cohere_client,
    async_client=cohere_async,
    ask=lambda client: client.chat(model="command-a-03-2025", messages=HELLO),
    ask_async=lambda client: client.chat(model="command-a-03-2025", messages=HELLO),
    stream=lambda client: client.chat_stream(model="command-a-03-2025", messages=HELLO),
    stream_async=lambda client: client.chat_stream(model="command-a-03-2025", messages=HELLO),
    body=cohere_chat(),
    pieces=server_sent(cohere_events(), named="type", done=False),
    awaited=False,
    lazy=True,
    model="command-a-03-2025",
    provider="cohere",
)

OLLAMA = Case(
    name="ollama",
    module="ollama",
    instrumentor="OllamaInstrumentor",
    client=ollama_client,
    async_client=ollama_async,
    ask=lambda client: client.chat(model="llama3.2", messages=HELLO),
    ask_async=lambda client: client.chat(model="llama3.2", messages=HELLO),
    stream=lambda client: client.chat(model="llama3.2", messages=HELLO, stream=True),
    stream_async=lambda client: client.chat(model="llama3.2", messages=HELLO, stream=True),
    body=ollama_part("Hello.", True, **OLLAMA_LAST),
    pieces=lines([ollama_part("Hel"), ollama_part("lo."), ollama_part("", True, **OLLAMA_LAST)]),
    kind=NDJSON,
    lazy=True,
    retrying=False,
    model="llama3.2",
    provider="ollama",
)

GROQ_MODEL = "llama-3.3-70b-versatile"
GROQ_LAST = {"x_groq": {"id": "req_7", "usage": {"prompt_tokens": 1000, "completion_tokens": 100}}}
TOGETHER_MODEL = "meta-llama/Llama-3.3-70B-Instruct-Turbo"


def _stainless_case(package: str, name: str, model: str, provider: str, **last: Any) -> Case:
    def ask(client: Any) -> Any:
        return client.chat.completions.create(model=model, messages=HELLO)

    def stream(client: Any) -> Any:
        return client.chat.completions.create(model=model, messages=HELLO, stream=True)

    return Case(
        name=package,
        module="stainless",
        instrumentor=f"{name}Instrumentor",
        client=stainless(package, name),
        async_client=stainless(package, f"Async{name}"),
        ask=ask,
        ask_async=ask,
        stream=stream,
        stream_async=stream,
        body=openai_completion(model),
        pieces=server_sent(openai_chunks(model, **last)),
        model=model,
        provider=provider,
    )


GROQ = _stainless_case("groq", "Groq", GROQ_MODEL, "groq", **GROQ_LAST)
TOGETHER = _stainless_case(
    "together", "Together", TOGETHER_MODEL, "together", usage=openai_completion(TOGETHER_MODEL)["usage"]
)
