"""The truth table: what a provider says that a call used, the meters that come of it, and what that costs, by hand.

In: usage as each provider writes it, in the answer of a kind of call. Out: `TABLE`, a `Truth` for each client and kind
of call, with the ways in which the call can be made (plain, raw, streamed; `every_client.Ask`), and `BOOK`, a price
book with one round price for each meter, the same for whoever bills, so that a cost is a sum that a person can check
and no price list changes it. Costs are in millionths of a US dollar: what tokens cost apart at `BOOK`'s prices.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

from . import anthropic_stub, bedrock_stub, conftest, every_client, google_stub
from .every_client import Ask, Client
from .small_stubs import (
    HELLO,
    NDJSON,
    OLLAMA_LAST,
    SSE,
    TOGETHER_MODEL,
    cohere_chat,
    cohere_events,
    lines,
    mistral_chunks,
    mistral_completion,
    mistral_page,
    ollama_part,
    openai_chunks,
    openai_completion,
    server_sent,
)
from .stub_server import StubServer

TOKENS: Mapping[str, str] = {
    "tokens.input.uncached": "1",
    "tokens.input.cache_read": "0.1",
    "tokens.input.cache_write": "1.25",
    "tokens.input.cache_write.5m": "1.5",
    "tokens.input.cache_write.30m": "1.75",
    "tokens.input.cache_write.1h": "2",
    "tokens.input.cache_write.12h": "3",
    "tokens.input.audio": "8",
    "tokens.input.audio.cache_read": "0.8",
    "tokens.input.image": "5",
    "tokens.output": "4",
    "tokens.output.reasoning": "7",
    "tokens.output.audio": "16",
    "tokens.output.image": "30",
    "tokens.output.citation": "9",
}
"""Meter → dollars for a million tokens, online and in the ordinary tier; a batch and the flex tier cost half of it, the
priority tier twice."""

OTHERS: Mapping[str, str] = {
    "characters": "0.000015",
    "images": "0.04",
    "pages": "0.001",
    "pages.annotated": "0.003",
    "audio.seconds": "0.0001",
    "video.seconds": "0.1",
    "rerank.search_units": "0.002",
    "web_searches": "0.01",
    "web_fetches": "0.005",
    "maps_searches": "0.025",
}
"""Meter → dollars for one."""


def book() -> str:
    """`TOKENS` and `OTHERS` as a price book."""
    rows = [f"  - {{meter: {meter}, amount: '{amount}'}}" for meter, amount in OTHERS.items()]
    for meter, amount in TOKENS.items():
        for factor, when in (
            ("1", ""),
            ("0.5", "processing: batch"),
            ("0.5", "service_tier: flex, processing: online"),
            ("2", "service_tier: priority, processing: online"),
        ):
            price = Decimal(amount) * Decimal(factor)
            rows.append(f"  - {{meter: {meter}, amount: '{price}', per: 1000000, when: {{{when}}}}}")
    return "\n".join(["price_book: {id: truth}", "prices:", *rows, ""])


BOOK = book()


@dataclass(frozen=True, kw_only=True, eq=False)
class Truth:
    """A kind of call of a client, what it is answered, and what that is.

    Attributes:
        client: how the client is made and instrumented.
        kind: kind of call, and what is special about its usage.
        calls: ways of making the call and getting this answer, by name.
        reply: queues the answer.
        meters: quantities by meter, in its unit.
        cost: millionths of a US dollar at `BOOK`'s prices; None: nothing is told, and nothing is guessed.
        needs: what the installed version of the client has to have.
    """

    client: Client
    kind: str
    calls: Mapping[str, Ask]
    reply: Callable[[StubServer], Any]
    meters: Mapping[str, int | str]
    cost: str | None
    needs: Callable[[], Any] = lambda: True

    def __str__(self) -> str:
        return f"{self.client.name}, {self.kind}"


def answers(*bodies: Any, **headers: str) -> Callable[[StubServer], Any]:
    """Bodies of JSON, one after the other."""

    def reply(stub: StubServer) -> None:
        for body in bodies:
            stub.json(body, **headers)

    return reply


def streams(pieces: Iterable[bytes], kind: str = SSE) -> Callable[[StubServer], Any]:
    return lambda stub: stub.stream(pieces, kind)


def call(path: str, **asked: Any) -> Ask:
    """A method of a client by its path, which has the same name on the asynchronous client."""
    return Ask(lambda client: method(client, path)(**asked))


def method(client: Any, path: str) -> Any:
    for part in path.split("."):
        client = getattr(client, part)
    return client


def ways(path: str, *, parsed: bool = False, **asked: Any) -> dict[str, Ask]:
    """A method of a client that Stainless made: itself, with its raw response, and with a streaming one."""
    owner, _, name = path.rpartition(".")
    found = {
        way: call(f"{owner}.{way}.{name}" if way else path, **asked)
        for way in ("", "with_raw_response", "with_streaming_response")
    }
    return found | ({"parse": call(f"{owner}.parse", **asked)} if parsed else {})


def changed(client: Client, **changes: Any) -> Client:
    return dataclasses.replace(client, **changes)


# -- OpenAI ------------------------------------------------------------------------------------------------------------

OPENAI = every_client.OPENAI
_CHAT: Any = {"model": "gpt-5-mini", "messages": HELLO}
_STREAMED: Any = {**_CHAT, "stream": True, "stream_options": {"include_usage": True}}
_RESPOND: Any = {"model": "gpt-5-mini", "input": "hello"}
_SOUND = ("a.wav", b"RIFFsound", "audio/wav")
_PICTURE = ("cat.png", b"\x89PNG", "image/png")

CHAT_USAGE = {
    "prompt_tokens": 1000,
    "completion_tokens": 200,
    "total_tokens": 1200,
    "prompt_tokens_details": {"cached_tokens": 300, "cache_write_tokens": 100, "audio_tokens": 50},
    "completion_tokens_details": {"reasoning_tokens": 80, "audio_tokens": 20},
}
CHAT_METERS: Mapping[str, int | str] = {
    "tokens.input.uncached": 550,
    "tokens.input.cache_read": 300,
    "tokens.input.cache_write": 100,
    "tokens.input.audio": 50,
    "tokens.output": 100,
    "tokens.output.reasoning": 80,
    "tokens.output.audio": 20,
}
CHAT_COST = "2385"  # 550 + 30 + 125 + 400 + 400 + 560 + 320

RESPONSE_USAGE = {
    "input_tokens": 1000,
    "input_tokens_details": {"cached_tokens": 300, "cache_write_tokens": 100},
    "output_tokens": 200,
    "output_tokens_details": {"reasoning_tokens": 80},
    "total_tokens": 1200,
}
RESPONSE_METERS: Mapping[str, int | str] = {
    "tokens.input.uncached": 600,
    "tokens.input.cache_read": 300,
    "tokens.input.cache_write": 100,
    "tokens.output": 120,
    "tokens.output.reasoning": 80,
    "web_searches": 2,
}
RESPONSE_TOKENS = 1795  # 600 + 30 + 125 + 480 + 560
LIFETIMES = {
    **RESPONSE_USAGE,
    "input_tokens_details": {
        "cached_tokens": 300,
        "cache_write_tokens": 100,
        "cache_write_tokens_details": {"ttl_30m_tokens": 60, "ttl_12h_tokens": 40},
    },
}
BARE_METERS: Mapping[str, int | str] = {"tokens.input.uncached": 1000, "tokens.output": 100}
BARE_COST = "1400"  # 1,000 + 400
COMPLETION = {
    "id": "cmpl-7",
    "object": "text_completion",
    "created": 1,
    "model": "gpt-3.5-turbo-instruct",
    "choices": [{"index": 0, "text": "Hello.", "finish_reason": "stop", "logprobs": None}],
    "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100},
}
VECTORS = {
    "object": "list",
    "model": "text-embedding-3-small",
    "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}],
    "usage": {"prompt_tokens": 1500, "total_tokens": 1500},
}
IMAGE_USAGE = {
    "input_tokens": 1100,
    "input_tokens_details": {"text_tokens": 100, "image_tokens": 1000},
    "output_tokens": 4000,
    "output_tokens_details": {"image_tokens": 4000, "text_tokens": 0},
    "total_tokens": 5100,
}
IMAGE_METERS: Mapping[str, int | str] = {
    "tokens.input.uncached": 100,
    "tokens.input.image": 1000,
    "tokens.output.image": 4000,
}
IMAGE_COST = "125100"  # 100 + 5,000 + 120,000
DRAWN = {"created": 1, "data": [{"b64_json": "aGk="}], "usage": IMAGE_USAGE}
DRAWING = {
    "type": "image_generation.completed",
    "b64_json": "aGk=",
    "background": "opaque",
    "created_at": 1,
    "output_format": "png",
    "quality": "high",
    "size": "1024x1024",
    "usage": IMAGE_USAGE,
}
HEARD_USAGE = {
    "type": "tokens",
    "input_tokens": 1200,
    "input_token_details": {"text_tokens": 200, "audio_tokens": 1000},
    "output_tokens": 100,
    "total_tokens": 1300,
}
HEARD_METERS: Mapping[str, int | str] = {
    "tokens.input.uncached": 200,
    "tokens.input.audio": 1000,
    "tokens.output": 100,
}
HEARD_COST = "8600"  # 200 + 8,000 + 400
HEARD = [
    {"type": "transcript.text.delta", "delta": "hello"},
    {"type": "transcript.text.done", "text": "hello", "usage": HEARD_USAGE},
]


def completion(usage: Any = CHAT_USAGE, tier: str = "default") -> dict[str, Any]:
    return conftest.completion(usage=usage, service_tier=tier)


def completion_chunks(usage: Any = CHAT_USAGE, tier: str = "default") -> list[bytes]:
    chunks = conftest.completion_chunks(usage=False)
    return server_sent([*chunks, {**chunks[0], "service_tier": tier, "choices": [], "usage": usage}])


def response(usage: Any = RESPONSE_USAGE, tier: str = "default", **more: Any) -> dict[str, Any]:
    return conftest.response(usage=usage, service_tier=tier, **more)


def response_events(usage: Any = RESPONSE_USAGE, tier: str = "default") -> list[bytes]:
    return server_sent(conftest.response_events(usage=usage, service_tier=tier), done=False, named="type")


def openai_has(module: str) -> Callable[[], bool]:
    def has() -> bool:
        from importlib.util import find_spec

        return find_spec(f"openai.{module}") is not None

    return has


_CHAT_WAYS = ways("chat.completions.create", parsed=True, **_CHAT)
_CHAT_STREAMS = {
    **ways("chat.completions.create", **_STREAMED),
    "stream": call("chat.completions.stream", **_CHAT, stream_options={"include_usage": True}),
}
_RESPONSE_WAYS = ways("responses.create", **_RESPOND) | {"parse": call("responses.parse", **_RESPOND)}
_RESPONSE_STREAMS = ways("responses.create", **_RESPOND, stream=True) | {"stream": call("responses.stream", **_RESPOND)}


def truth(client: Client, kind: str, calls: Any, reply: Any, meters: Any, cost: Any, needs: Any = None) -> Truth:
    given = {"calls": {"": calls} if isinstance(calls, Ask) else calls}
    return Truth(
        client=client, kind=kind, reply=reply, meters=meters, cost=cost, **given, **({"needs": needs} if needs else {})
    )


_OPENAI: list[Truth] = [
    truth(OPENAI, "chat", _CHAT_WAYS, answers(completion()), CHAT_METERS, CHAT_COST),
    truth(OPENAI, "chat streamed", _CHAT_STREAMS, streams(completion_chunks()), CHAT_METERS, CHAT_COST),
    truth(
        OPENAI,
        "chat, flex",
        call("chat.completions.create", **_CHAT),
        answers(completion(tier="flex")),
        CHAT_METERS,
        "1192.5",
    ),
    truth(
        OPENAI,
        "chat, priority",
        call("chat.completions.create", **_STREAMED),
        streams(completion_chunks(tier="priority")),
        CHAT_METERS,
        "4770",
    ),
    truth(
        OPENAI,
        "chat streamed without usage",
        call("chat.completions.create", **_CHAT, stream=True),
        streams(server_sent(conftest.completion_chunks(usage=False))),
        {},
        None,
    ),
    truth(OPENAI, "responses", _RESPONSE_WAYS, answers(response()), RESPONSE_METERS, str(RESPONSE_TOKENS + 20_000)),
    truth(
        OPENAI,
        "responses streamed",
        _RESPONSE_STREAMS,
        streams(response_events()),
        RESPONSE_METERS,
        str(RESPONSE_TOKENS + 20_000),
    ),
    truth(
        OPENAI,
        "responses, lifetimes of a cache",
        call("responses.create", **_RESPOND),
        answers(response(LIFETIMES, tool_usage=None)),
        {
            "tokens.input.uncached": 600,
            "tokens.input.cache_read": 300,
            "tokens.input.cache_write.30m": 60,
            "tokens.input.cache_write.12h": 40,
            "tokens.output": 120,
            "tokens.output.reasoning": 80,
        },
        "1895",  # 600 + 30 + 105 + 120 + 480 + 560
    ),
    truth(
        OPENAI,
        "completions",
        ways("completions.create", model="gpt-3.5-turbo-instruct", prompt="hello"),
        answers(COMPLETION),
        BARE_METERS,
        BARE_COST,
    ),
    truth(
        OPENAI,
        "completions streamed",
        ways("completions.create", model="gpt-3.5-turbo-instruct", prompt="hello", stream=True),
        streams(server_sent([{**COMPLETION, "usage": None}, {**COMPLETION, "choices": []}])),
        BARE_METERS,
        BARE_COST,
    ),
    truth(
        OPENAI,
        "embeddings",
        ways("embeddings.create", model="text-embedding-3-small", input=["a"], encoding_format="float"),
        answers(VECTORS),
        {"tokens.input.uncached": 1500},
        "1500",
    ),
    truth(
        OPENAI,
        "images",
        ways("images.generate", model="gpt-image-1", prompt="a cat")
        | {"edit": call("images.edit", model="gpt-image-1", prompt="a cat", image=_PICTURE)},
        answers(DRAWN),
        IMAGE_METERS,
        IMAGE_COST,
    ),
    truth(
        OPENAI,
        "images streamed",
        ways("images.generate", model="gpt-image-1", prompt="a cat", stream=True),
        streams(server_sent([DRAWING], done=False, named="type")),
        IMAGE_METERS,
        IMAGE_COST,
    ),
    truth(
        OPENAI,
        "images by number",
        call("images.generate", model="dall-e-3", prompt="a cat", n=3),
        answers({"created": 1, "data": [{"url": "https://example.org"}] * 3}),
        {"images": 3},
        "120000",
    ),
    truth(
        OPENAI,
        "transcription",
        ways("audio.transcriptions.create", model="gpt-4o-transcribe", file=_SOUND),
        answers({"text": "hello", "usage": HEARD_USAGE}),
        HEARD_METERS,
        HEARD_COST,
    ),
    truth(
        OPENAI,
        "transcription streamed",
        ways("audio.transcriptions.create", model="gpt-4o-transcribe", file=_SOUND, stream=True),
        streams(server_sent(HEARD, done=False)),
        HEARD_METERS,
        HEARD_COST,
    ),
    truth(
        OPENAI,
        "transcription by the second",
        call("audio.transcriptions.create", model="whisper-1", file=_SOUND),
        answers({"text": "hello", "usage": {"type": "duration", "seconds": 90.5}}),
        {"audio.seconds": "90.5"},
        "9050",
    ),
    truth(
        OPENAI,
        "translation",
        call("audio.translations.create", model="whisper-1", file=_SOUND, response_format="verbose_json"),
        answers({"text": "hello", "language": "en", "duration": 90.5}),
        {"audio.seconds": "90.5"},
        "9050",
    ),
    truth(
        OPENAI,
        "speech",
        call("audio.speech.create", model="tts-1", voice="alloy", input="Grüße " * 100),
        lambda stub: stub.raw(b"mp3", "audio/mpeg"),
        {"characters": 600},
        "9000",
    ),
]


# -- OpenAI, told later than asked for ---------------------------------------------------------------------------------

CREATED = 1_795_200_000


def then(asked: Ask, *fetches: Callable[[Any, Any], Any]) -> Ask:
    """A call, and what the program fetches with its result: each is made with the client and the result before it."""

    def sync(client: Any) -> Any:
        result = asked.sync(client)
        for fetch in fetches:
            result = fetch(client, result)
        return result

    async def asynchronous(client: Any) -> Any:
        result = await asked.of(True)(client)
        for fetch in fetches:
            result = await fetch(client, result)
        return result

    return Ask(sync, asynchronous)


numbers = itertools.count(1)
"""What is told later than asked for is known by its id: each answer has another."""


def video(name: str, status: str) -> dict[str, Any]:
    times = {"created_at": CREATED, "completed_at": CREATED + 60 if status == "completed" else None}
    about = {"id": name, "object": "video", "model": "sora-2", "seconds": "8", "size": "720x1280"}
    return {**about, **times, "progress": 0, "status": status}


def background(name: str, status: str, **more: Any) -> dict[str, Any]:
    about = {"id": name, "created_at": CREATED, "background": True, "status": status}
    return response(**about, **{"usage": None, "tool_usage": None, **more})


def later(bodies: Callable[[str], tuple[Any, ...]]) -> Callable[[StubServer], Any]:
    return lambda stub: answers(*bodies(f"truth_{next(numbers)}"))(stub)


def batched(stub: StubServer) -> None:
    number = next(numbers)
    body = {**completion(), "id": f"chatcmpl-truth-{number}", "created": CREATED}
    told = {"status_code": 200, "request_id": f"req_{number}", "body": body}
    line = {"id": f"b_{number}", "custom_id": f"c-{number}", "response": told, "error": None}
    stub.raw((json.dumps(line) + "\n").encode(), "application/octet-stream")


_OPENAI_LATER: list[Truth] = [
    truth(
        OPENAI,
        "a video",
        then(
            call("videos.create", model="sora-2", prompt="a cat", seconds="8"),
            lambda client, made: client.videos.retrieve(made.id),
        ),
        later(lambda name: (video(name, "queued"), video(name, "completed"))),
        {"video.seconds": 8},
        "800000",
        openai_has("resources.videos"),
    ),
    truth(
        OPENAI,
        "a response in the background",
        then(
            call("responses.create", **_RESPOND, background=True),
            lambda client, made: client.responses.retrieve(made.id),
        ),
        later(lambda name: (background(name, "queued"), background(name, "completed", usage=RESPONSE_USAGE))),
        {meter: count for meter, count in RESPONSE_METERS.items() if meter != "web_searches"},
        str(RESPONSE_TOKENS),
    ),
    truth(
        OPENAI,
        "a result of a batch, at half the price",
        Ask(lambda client: client.files.content("file-out")),
        batched,
        CHAT_METERS,
        "1192.5",
    ),
]

# -- those who speak as OpenAI does ------------------------------------------------------------------------------------

GROQ, TOGETHER, HUGGINGFACE = every_client.GROQ, every_client.TOGETHER, every_client.HUGGINGFACE
_GROQ: Any = {"model": every_client.GROQ_MODEL, "messages": HELLO}
_TOGETHER: Any = {"model": TOGETHER_MODEL, "messages": HELLO}
BARE_USAGE = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}
RANKED = {"object": "rerank", "id": "r", "model": "m", "results": [], "usage": {**BARE_USAGE, "completion_tokens": 0}}
GENERATED = {
    "generated_text": "Hello.",
    "details": {
        "finish_reason": "length",
        "generated_tokens": 100,
        "tokens": [],
        "prefill": [{"id": n, "text": "a", "logprob": None} for n in range(1000)],
    },
}


def compatible(usage: Any = BARE_USAGE) -> dict[str, Any]:
    return openai_completion("m", usage=usage)


def at(provider: str) -> Client:
    """OpenAI's client at an address that the user says is another provider's."""

    def make(how: every_client.Make, asynchronous: bool) -> Any:
        os.environ["TOLLSPAN_PROVIDERS"] = f"localhost:{urlsplit(how.url).port}={provider}"
        return OPENAI.make(how._replace(url=how.url.replace("127.0.0.1", "localhost")), asynchronous)

    return dataclasses.replace(OPENAI, name=f"openai at {provider}", make=make)


def spoken(provider: str, usage: dict[str, Any], meters: Any, cost: str) -> list[Truth]:
    """A chat with a provider that speaks as OpenAI does and counts in words of its own."""
    usage = {**BARE_USAGE, **usage}
    client = at(provider)
    return [
        truth(client, "chat", call("chat.completions.create", **_CHAT), answers(completion(usage)), meters, cost),
        truth(
            client,
            "chat streamed",
            call("chat.completions.create", **_STREAMED),
            streams(completion_chunks(usage)),
            meters,
            cost,
        ),
    ]


CACHED: Mapping[str, int | str] = {
    "tokens.input.uncached": 700,
    "tokens.input.cache_read": 300,
    "tokens.output": 100,
}

_COMPATIBLE: list[Truth] = [
    *spoken("deepseek", {"prompt_cache_hit_tokens": 300, "prompt_cache_miss_tokens": 700}, CACHED, "1130"),
    *spoken("moonshot_ai", {"cached_tokens": 300}, CACHED, "1130"),  # 700 + 30 + 400
    *spoken(
        "x_ai",
        {"completion_tokens_details": {"reasoning_tokens": 40}, "total_tokens": 1140},
        {**BARE_METERS, "tokens.output.reasoning": 40},
        "1680",  # 1,000 + 400 + 280
    ),
    *spoken(
        "perplexity",
        {"citation_tokens": 50, "num_search_queries": 2},
        {**BARE_METERS, "tokens.output.citation": 50, "web_searches": 2},
        "21850",  # 1,000 + 400 + 450, and 20,000 for the searches
    ),
    truth(GROQ, "chat", ways("chat.completions.create", **_GROQ), answers(compatible()), BARE_METERS, BARE_COST),
    truth(
        GROQ,
        "chat, cached and reasoned",
        call("chat.completions.create", **_GROQ),
        answers(
            compatible(
                {
                    **BARE_USAGE,
                    "prompt_tokens_details": {"cached_tokens": 300},
                    "completion_tokens_details": {"reasoning_tokens": 40},
                }
            )
        ),
        {
            "tokens.input.uncached": 700,
            "tokens.input.cache_read": 300,
            "tokens.output": 60,
            "tokens.output.reasoning": 40,
        },
        "1250",  # 700 + 30 + 240 + 280
    ),
    truth(
        GROQ,
        "chat streamed",
        ways("chat.completions.create", **_GROQ, stream=True),
        streams(server_sent(openai_chunks("m", x_groq={"id": "req_7", "usage": BARE_USAGE}))),
        BARE_METERS,
        BARE_COST,
    ),
    truth(
        TOGETHER, "chat", ways("chat.completions.create", **_TOGETHER), answers(compatible()), BARE_METERS, BARE_COST
    ),
    truth(
        TOGETHER,
        "chat streamed",
        ways("chat.completions.create", **_TOGETHER, stream=True),
        streams(server_sent(openai_chunks("m", usage=BARE_USAGE))),
        BARE_METERS,
        BARE_COST,
    ),
    truth(
        TOGETHER,
        "completions",
        call("completions.create", model=TOGETHER_MODEL, prompt="hello"),
        answers(COMPLETION),
        BARE_METERS,
        BARE_COST,
    ),
    truth(
        TOGETHER,
        "embeddings",
        call("embeddings.create", model="m", input="a"),
        answers(VECTORS),
        {"tokens.input.uncached": 1500},
        "1500",
    ),
    truth(
        TOGETHER,
        "rerank",
        call("rerank.create", model="m", query="q", documents=["a"]),
        answers(RANKED),
        {"tokens.input.uncached": 1000},
        "1000",
    ),
    truth(
        TOGETHER,
        "images",
        call("images.generate", model="m", prompt="a cat", n=2),
        answers({"id": "i", "model": "m", "object": "list", "data": [{"index": 0, "type": "url", "url": "u"}] * 2}),
        {"images": 2},
        "80000",
    ),
    truth(
        HUGGINGFACE,
        "chat",
        {
            "": call("chat_completion", messages=HELLO, model="m"),
            "by its other name": call("chat.completions.create", messages=HELLO, model="m"),
        },
        answers(compatible()),
        BARE_METERS,
        BARE_COST,
    ),
    truth(
        HUGGINGFACE,
        "chat streamed",
        call("chat_completion", messages=HELLO, model="m", stream=True),
        streams(server_sent(openai_chunks("m", usage=BARE_USAGE))),
        BARE_METERS,
        BARE_COST,
    ),
    truth(
        HUGGINGFACE,
        "text generation",
        call("text_generation", prompt="hello", max_new_tokens=100),
        answers([GENERATED]),
        BARE_METERS,
        BARE_COST,
    ),
    truth(
        every_client.LITELLM,
        "completion",
        Ask(lambda client: client()),
        answers(completion()),
        CHAT_METERS,
        CHAT_COST,
    ),
    truth(
        every_client.LITELLM,
        "completion streamed",
        Ask(lambda client: client(stream=True, stream_options={"include_usage": True})),
        streams(completion_chunks()),
        CHAT_METERS,
        CHAT_COST,
    ),
]

# -- Anthropic ---------------------------------------------------------------------------------------------------------

ANTHROPIC = every_client.ANTHROPIC
_MESSAGES: Any = {"model": anthropic_stub.MODEL, "max_tokens": 64, "messages": HELLO}
MESSAGE_USAGE = {
    "input_tokens": 1000,
    "cache_creation_input_tokens": 70,
    "cache_read_input_tokens": 500,
    "cache_creation": {"ephemeral_5m_input_tokens": 30, "ephemeral_1h_input_tokens": 40},
    "output_tokens": 200,
    "output_tokens_details": {"thinking_tokens": 50},
    "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 1},
    "service_tier": "standard",
}
MESSAGE_METERS: Mapping[str, int | str] = {
    "tokens.input.uncached": 1000,
    "tokens.input.cache_read": 500,
    "tokens.input.cache_write.5m": 30,
    "tokens.input.cache_write.1h": 40,
    "tokens.output": 150,
    "tokens.output.reasoning": 50,
    "web_searches": 2,
    "web_fetches": 1,
}
MESSAGE_COST = "27125"  # 1,000 + 50 + 45 + 80 + 600 + 350, and 25,000 for the searches and the page


def message(**usage: Any) -> dict[str, Any]:
    return anthropic_stub.message(usage={**MESSAGE_USAGE, **usage})


def message_events(usage: Any = MESSAGE_USAGE) -> list[bytes]:
    return server_sent(anthropic_stub.events(usage=usage, deltas=3), done=False, named="type")


def results(stub: StubServer) -> None:
    told = {"type": "succeeded", "message": message(service_tier="batch")}
    stub.json(anthropic_stub.batch(results_url=f"{stub.url}/v1/messages/batches/msgbatch_1/results"))
    line = {"custom_id": f"c-{next(numbers)}", "result": told}
    stub.raw((json.dumps(line) + "\n").encode(), "application/x-jsonl")


_ANTHROPIC: list[Truth] = [
    truth(
        ANTHROPIC,
        "messages",
        {**ways("messages.create", **_MESSAGES), "beta": call("beta.messages.create", **_MESSAGES)},
        answers(message()),
        MESSAGE_METERS,
        MESSAGE_COST,
    ),
    truth(
        ANTHROPIC,
        "messages streamed",
        {
            **ways("messages.create", **_MESSAGES, stream=True),
            "stream": call("messages.stream", **_MESSAGES),
            "beta": call("beta.messages.create", **_MESSAGES, stream=True),
            "beta stream": call("beta.messages.stream", **_MESSAGES),
        },
        streams(message_events()),
        MESSAGE_METERS,
        MESSAGE_COST,
    ),
    truth(
        ANTHROPIC,
        "messages, priority",
        call("messages.create", **_MESSAGES),
        answers(message(service_tier="priority")),
        MESSAGE_METERS,
        "29250",  # 2 × 2,125, and 25,000
    ),
    truth(
        ANTHROPIC,
        "messages, processed in the United States",
        call("messages.create", **_MESSAGES),
        answers(message(inference_geo="us")),
        MESSAGE_METERS,
        "27337.5",  # 1.1 × 2,125, and 25,000
    ),
    truth(
        ANTHROPIC,
        "a result of a batch, at half the price",
        Ask(lambda client: client.messages.batches.results("msgbatch_1")),
        results,
        MESSAGE_METERS,
        "26062.5",  # 1,062.5, and 25,000
    ),
]

# -- Google ------------------------------------------------------------------------------------------------------------

GOOGLE = every_client.GOOGLE
_GENERATE: Any = {"model": google_stub.MODEL, "contents": "hello"}
GEMINI_USAGE = {
    "promptTokenCount": 1000,
    "candidatesTokenCount": 200,
    "thoughtsTokenCount": 50,
    "toolUsePromptTokenCount": 30,
    "cachedContentTokenCount": 400,
    "totalTokenCount": 1280,
    "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 900}, {"modality": "AUDIO", "tokenCount": 100}],
    "cacheTokensDetails": [{"modality": "TEXT", "tokenCount": 380}, {"modality": "AUDIO", "tokenCount": 20}],
    "candidatesTokensDetails": [{"modality": "TEXT", "tokenCount": 200}],
    "toolUsePromptTokensDetails": [{"modality": "TEXT", "tokenCount": 30}],
}
GEMINI_METERS: Mapping[str, int | str] = {
    "tokens.input.uncached": 550,
    "tokens.input.cache_read": 380,
    "tokens.input.audio": 80,
    "tokens.input.audio.cache_read": 20,
    "tokens.output": 200,
    "tokens.output.reasoning": 50,
}
GEMINI_COST = "2394"  # 550 + 38 + 640 + 16 + 800 + 350
PAINTED = {
    "promptTokenCount": 300,
    "candidatesTokenCount": 1310,
    "totalTokenCount": 1610,
    "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 42}, {"modality": "IMAGE", "tokenCount": 258}],
    "candidatesTokensDetails": [{"modality": "TEXT", "tokenCount": 20}, {"modality": "IMAGE", "tokenCount": 1290}],
}


INTERACTION = {
    "id": "int-7",
    "object": "interaction",
    "status": "completed",
    "model": google_stub.MODEL,
    "service_tier": "flex",
    "steps": [],
    "usage": {
        "total_input_tokens": 1000,
        "total_cached_tokens": 400,
        "total_output_tokens": 200,
        "total_thought_tokens": 50,
        "total_tool_use_tokens": 30,
        "total_tokens": 1280,
        "input_tokens_by_modality": [{"modality": "text", "tokens": 900}, {"modality": "audio", "tokens": 100}],
        "cached_tokens_by_modality": [{"modality": "text", "tokens": 380}, {"modality": "audio", "tokens": 20}],
        "output_tokens_by_modality": [{"modality": "text", "tokens": 200}],
        "grounding_tool_count": [{"type": "google_search", "count": 3}, {"type": "google_maps", "count": 1}],
    },
}
INTERACTING = [
    {"event_type": "interaction.created", "interaction": {**INTERACTION, "status": "in_progress", "usage": None}},
    {"event_type": "interaction.completed", "interaction": INTERACTION},
]
_INTERACT: Any = {"model": google_stub.MODEL, "input": "hello"}


def interacts() -> bool:
    from importlib.util import find_spec

    return find_spec("google.genai._gaos") is not None


def both(path: str, **asked: Any) -> Ask:
    """A method of Google's client, whose asynchronous twin stands below ``aio``."""
    return Ask(call(path, **asked).sync, call(f"aio.{path}", **asked).sync)


def gemini_chunks() -> list[bytes]:
    early = {"promptTokenCount": 1000, "candidatesTokenCount": 3, "totalTokenCount": 1003}
    content = google_stub.content
    return server_sent([content(early, "Hel", None), content(GEMINI_USAGE, "lo.")], done=False)


def embeds_with_usage() -> bool:
    from google.genai import types

    return "usage_metadata" in types.EmbedContentResponse.model_fields


def vertex(how: every_client.Make, asynchronous: bool) -> Any:
    from google import genai
    from google.oauth2.credentials import Credentials

    place: Any = {"vertexai": True, "project": "p", "location": "us-central1"}
    return genai.Client(**place, credentials=Credentials(token="none"), http_options={"base_url": how.url})


def chatted(client: Any) -> Any:
    return client.chats.create(model=google_stub.MODEL).send_message("hello")


def chatted_async(client: Any) -> Any:
    return client.aio.chats.create(model=google_stub.MODEL).send_message("hello")


_GOOGLE: list[Truth] = [
    truth(
        GOOGLE,
        "content",
        {
            "": both("models.generate_content", **_GENERATE),
            "raw": both("models.generate_content", **_GENERATE, config={"should_return_http_response": True}),
            "a chat": Ask(chatted, chatted_async),
        },
        answers(google_stub.content(GEMINI_USAGE)),
        GEMINI_METERS,
        GEMINI_COST,
    ),
    truth(
        GOOGLE,
        "content streamed",
        both("models.generate_content_stream", **_GENERATE),
        streams(gemini_chunks()),
        GEMINI_METERS,
        GEMINI_COST,
    ),
    truth(
        GOOGLE,
        "an image in and out",
        both("models.generate_content", **_GENERATE),
        answers(google_stub.content(PAINTED)),
        {
            "tokens.input.uncached": 42,
            "tokens.input.image": 258,
            "tokens.output": 20,
            "tokens.output.image": 1290,
        },
        "40112",  # 42 + 1,290 + 80 + 38,700
    ),
    truth(
        GOOGLE,
        "an interaction that searched, flex",
        {
            "": both("interactions.create", **_INTERACT),
            "raw": both("interactions.with_raw_response.create", **_INTERACT),
        },
        answers(INTERACTION),
        {**GEMINI_METERS, "web_searches": 3, "maps_searches": 1},
        "56197",  # half of 2,394, and 55,000 for the searches
        interacts,
    ),
    truth(
        GOOGLE,
        "an interaction streamed",
        both("interactions.create", **_INTERACT, stream=True),
        streams(server_sent(INTERACTING)),
        {**GEMINI_METERS, "web_searches": 3, "maps_searches": 1},
        "56197",
        interacts,
    ),
    truth(
        GOOGLE,
        "embeddings",
        both("models.embed_content", model="gemini-embedding-001", contents=["a"]),
        answers(
            {
                "embeddings": [{"values": [1.0]}],
                "usageMetadata": {"promptTokenCount": 1000, "totalTokenCount": 1000},
            }
        ),
        {"tokens.input.uncached": 1000},
        "1000",
        embeds_with_usage,
    ),
    truth(
        changed(GOOGLE, name="google-genai on Vertex AI", make=vertex),
        "images",
        both("models.generate_images", model="imagen-4.0-generate-001", prompt="a cat"),
        answers({"predictions": [{"mimeType": "image/png", "bytesBase64Encoded": "aGk="}] * 2}),
        {"images": 2},
        "80000",
    ),
]

# -- Bedrock -----------------------------------------------------------------------------------------------------------

BEDROCK = every_client.BEDROCK
_CONVERSE: Any = {"modelId": bedrock_stub.MODEL, "messages": [{"role": "user", "content": [{"text": "hello"}]}]}
CONVERSE_USAGE = {
    "inputTokens": 1000,
    "outputTokens": 200,
    "totalTokens": 1770,
    "cacheReadInputTokens": 500,
    "cacheWriteInputTokens": 70,
    "cacheDetails": [{"ttl": "1h", "inputTokens": 40}, {"ttl": "5m", "inputTokens": 30}],
}
CONVERSE_METERS: Mapping[str, int | str] = {
    "tokens.input.uncached": 1000,
    "tokens.input.cache_read": 500,
    "tokens.input.cache_write.5m": 30,
    "tokens.input.cache_write.1h": 40,
    "tokens.output": 200,
}
CONVERSE_COST = "1975"  # 1,000 + 50 + 45 + 80 + 800
CLAUDE_USAGE = {
    key: value for key, value in MESSAGE_USAGE.items() if key not in ("server_tool_use", "output_tokens_details")
}
COUNTED = {"inputTokenCount": 1000, "outputTokenCount": 100}


def invoked(model: str) -> Ask:
    def sync(client: Any) -> Any:
        return client.invoke_model(modelId=model, body=b"{}")["body"].read()

    async def asynchronous(client: Any) -> Any:
        return await (await client.invoke_model(modelId=model, body=b"{}"))["body"].read()

    return Ask(sync, asynchronous)


def invoked_stream(model: str) -> Ask:
    def sync(client: Any) -> Any:
        return client.invoke_model_with_response_stream(modelId=model, body=b"{}")["body"]

    async def asynchronous(client: Any) -> Any:
        return (await client.invoke_model_with_response_stream(modelId=model, body=b"{}"))["body"]

    return Ask(sync, asynchronous)


async def _conversed(client: Any) -> Any:
    return (await client.converse_stream(**_CONVERSE))["stream"]


CONVERSED = Ask(lambda client: client.converse_stream(**_CONVERSE)["stream"], _conversed)


def frames(events: Iterable[Any]) -> Callable[[StubServer], Any]:
    return streams([bedrock_stub.frame(event) for event in events], BEDROCK.kind)


def family(name: str, model: str, body: Any, meters: Any = BARE_METERS, cost: Any = BARE_COST, **tokens: int) -> Truth:
    """A model's own body, and the counts of tokens that stand in the headers."""
    return truth(
        BEDROCK,
        f"{name} invoked",
        invoked(model),
        lambda stub: stub.json(body, **bedrock_stub.headers_of(tokens)),
        meters,
        cost,
    )


def converse_tells_lifetimes() -> bool:
    import botocore.session

    shape = botocore.session.Session().get_service_model("bedrock-runtime").shape_for("TokenUsage")
    return "cacheDetails" in shape.members


NOVA_METERS: Mapping[str, int | str] = {
    "tokens.input.uncached": 1000,
    "tokens.input.cache_read": 500,
    "tokens.input.cache_write": 70,
    "tokens.output": 200,
}
_IN_ALL = {name: value for name, value in CONVERSE_USAGE.items() if name != "cacheDetails"}
_TOLD = {"input": 1000, "output": 100}

_BEDROCK: list[Truth] = [
    truth(
        BEDROCK,
        "converse",
        call("converse", **_CONVERSE),
        answers(bedrock_stub.converse(usage=CONVERSE_USAGE)),
        CONVERSE_METERS,
        CONVERSE_COST,
        converse_tells_lifetimes,
    ),
    truth(
        BEDROCK,
        "converse streamed",
        CONVERSED,
        frames(bedrock_stub.converse_events(usage=CONVERSE_USAGE)),
        CONVERSE_METERS,
        CONVERSE_COST,
        converse_tells_lifetimes,
    ),
    truth(
        BEDROCK,
        "converse, flex",
        call("converse", **_CONVERSE),
        answers(bedrock_stub.converse(usage=CONVERSE_USAGE, serviceTier={"type": "flex"})),
        CONVERSE_METERS,
        "987.5",
        converse_tells_lifetimes,
    ),
    truth(
        BEDROCK,
        "converse, a cache of no told lifetime",
        call("converse", **_CONVERSE),
        answers(bedrock_stub.converse(usage=_IN_ALL)),
        NOVA_METERS,
        "1937.5",  # 1,000 + 50 + 87.5 + 800
    ),
    family("Claude", bedrock_stub.CLAUDE, {"usage": CLAUDE_USAGE}, CONVERSE_METERS, CONVERSE_COST),
    family(
        "Nova",
        bedrock_stub.MODEL,
        {
            "usage": {
                "inputTokens": 1000,
                "outputTokens": 200,
                "cacheReadInputTokenCount": 500,
                "cacheWriteInputTokenCount": 70,
            }
        },
        NOVA_METERS,
        "1937.5",
    ),
    family(
        "Titan",
        "amazon.titan-text-express-v1",
        {
            "inputTextTokenCount": 1000,
            "results": [{"tokenCount": 100, "outputText": "x", "completionReason": "FINISH"}],
        },
    ),
    family(
        "Llama",
        "meta.llama3-1-8b-instruct-v1:0",
        {"generation": "x", "prompt_token_count": 1000, "generation_token_count": 100, "stop_reason": "stop"},
    ),
    family("Mistral", "mistral.mistral-large-2402-v1:0", {"outputs": [{"text": "x"}]}, **_TOLD),
    family("DeepSeek", "us.deepseek.r1-v1:0", {"choices": [{"text": "x", "stop_reason": "stop"}]}, **_TOLD),
    family("OpenAI", "openai.gpt-oss-20b-1:0", {"choices": [], "usage": BARE_USAGE}, **_TOLD),
    family("AI21", "ai21.jamba-1-5-mini-v1:0", {"choices": [], "usage": BARE_USAGE}),
    family(
        "Cohere",
        "cohere.command-r-v1:0",
        {"text": "x", "meta": {"billed_units": {"input_tokens": 1000, "output_tokens": 100}}},
    ),
    family(
        "Titan's vectors",
        "amazon.titan-embed-text-v2:0",
        {"embedding": [0.5], "inputTextTokenCount": 1000},
        {"tokens.input.uncached": 1000},
        "1000",
    ),
    family("Images", "amazon.nova-canvas-v1:0", {"images": ["aGk=", "aGk="], "error": None}, {"images": 2}, "80000"),
    truth(
        BEDROCK,
        "Claude invoked, streamed",
        invoked_stream(bedrock_stub.CLAUDE),
        frames(bedrock_stub.chunks(*anthropic_stub.events(usage=CLAUDE_USAGE))),
        CONVERSE_METERS,
        CONVERSE_COST,
    ),
    truth(
        BEDROCK,
        "Llama invoked, streamed",
        invoked_stream("meta.llama3-1-8b-instruct-v1:0"),
        frames(
            bedrock_stub.chunks(
                {"generation": "Hel", "prompt_token_count": 1000, "generation_token_count": 1},
                {"generation": "lo.", "stop_reason": "stop", **bedrock_stub.metrics(**COUNTED)},
            )
        ),
        BARE_METERS,
        BARE_COST,
    ),
]

# -- Mistral, Cohere, Ollama -------------------------------------------------------------------------------------------

MISTRAL, COHERE, OLLAMA = every_client.MISTRAL, every_client.COHERE, every_client.OLLAMA
_SMALL = "mistral-small-latest"
_DOCUMENT = {"type": "document_url", "document_url": "https://example.org/a.pdf"}
READ = {
    "pages": [mistral_page(number) for number in range(3)],
    "model": "mistral-ocr-latest",
    "usage_info": {"pages_processed": 3, "doc_size_bytes": 4096},
}


def suffixed(path: str, **asked: Any) -> Ask:
    """A method of Mistral's client, whose asynchronous twin ends in ``_async``."""
    return Ask(call(path, **asked).sync, call(f"{path}_async", **asked).sync)


_MISTRAL: list[Truth] = [
    truth(
        MISTRAL,
        "chat",
        {
            "chat": suffixed("chat.complete", model=_SMALL, messages=HELLO),
            "fim": suffixed("fim.complete", model=_SMALL, prompt="def"),
            "agents": suffixed("agents.complete", agent_id="ag", messages=HELLO),
        },
        answers(mistral_completion(usage=BARE_USAGE)),
        BARE_METERS,
        BARE_COST,
    ),
    truth(
        MISTRAL,
        "chat streamed",
        {
            "chat": suffixed("chat.stream", model=_SMALL, messages=HELLO),
            "fim": suffixed("fim.stream", model=_SMALL, prompt="def"),
            "agents": suffixed("agents.stream", agent_id="ag", messages=HELLO),
        },
        streams(server_sent(mistral_chunks(BARE_USAGE))),
        BARE_METERS,
        BARE_COST,
    ),
    truth(
        MISTRAL,
        "embeddings",
        suffixed("embeddings.create", model="mistral-embed", inputs=["a"]),
        answers({**VECTORS, "id": "emb-7", "usage": {**BARE_USAGE, "completion_tokens": 0, "total_tokens": 1000}}),
        {"tokens.input.uncached": 1000},
        "1000",
    ),
    truth(
        MISTRAL,
        "ocr",
        suffixed("ocr.process", model="mistral-ocr-latest", document=_DOCUMENT),
        answers(READ),
        {"pages": 3},
        "3000",
    ),
    truth(
        MISTRAL,
        "annotated ocr",
        suffixed(
            "ocr.process",
            model="mistral-ocr-latest",
            document=_DOCUMENT,
            document_annotation_format={"type": "json_object"},
        ),
        answers(READ),
        {"pages.annotated": 3},
        "9000",
    ),
    truth(
        MISTRAL,
        "transcription",
        suffixed("audio.transcriptions.complete", model="voxtral-mini-latest", file_url="https://example.org/a.mp3"),
        answers(
            {
                "model": "voxtral-mini-latest",
                "text": "Hello.",
                "language": None,
                "segments": [],
                "usage": {
                    "prompt_audio_seconds": 60,
                    "prompt_tokens": 4,
                    "completion_tokens": 100,
                    "total_tokens": 479,
                },
            }
        ),
        {"audio.seconds": 60, "tokens.input.uncached": 4, "tokens.output": 100},
        "6404",  # 6,000 + 4 + 400
    ),
    truth(
        MISTRAL,
        "a conversation that searched",
        suffixed("beta.conversations.start", model=_SMALL, inputs="hello"),
        answers(
            {
                "object": "conversation.response",
                "conversation_id": "conv-7",
                "outputs": [],
                "usage": {**BARE_USAGE, "connectors": {"web_search": 2}},
            }
        ),
        {**BARE_METERS, "web_searches": 2},
        "21400",
    ),
]

_COMMAND: Any = {"model": "command-a-03-2025", "messages": HELLO}
BILLED = {
    "billed_units": {"input_tokens": 1000.0, "output_tokens": 100.0},
    "tokens": {"input_tokens": 1068.0, "output_tokens": 103.0},
}


def cohere_of_the_first(how: every_client.Make, asynchronous: bool) -> Any:
    import cohere

    return (cohere.AsyncClient if asynchronous else cohere.Client)(api_key="none", base_url=how.url)


FIRST = changed(COHERE, name="cohere v1", make=cohere_of_the_first)


def meta(**billed: float) -> dict[str, Any]:
    return {"api_version": {"version": "1"}, "billed_units": billed}


TALKED = {
    "text": "Hello.",
    "generation_id": "gen-7",
    "finish_reason": "COMPLETE",
    "meta": {**meta(input_tokens=1000.0, output_tokens=100.0), "tokens": BILLED["tokens"]},
}
_RERANKED = {"id": "r-7", "results": [{"index": 0, "relevance_score": 0.9}], "meta": meta(search_units=2.0)}

_COHERE: list[Truth] = [
    truth(
        COHERE,
        "chat, as billed and not as processed",
        {"": call("chat", **_COMMAND), "raw": call("with_raw_response.chat", **_COMMAND)},
        answers(cohere_chat(usage=BILLED)),
        BARE_METERS,
        BARE_COST,
    ),
    truth(
        COHERE,
        "chat streamed",
        call("chat_stream", **_COMMAND),
        streams(server_sent(cohere_events(BILLED), done=False, named="type")),
        BARE_METERS,
        BARE_COST,
    ),
    truth(
        COHERE,
        "embed",
        call("embed", model="embed-v4.0", input_type="search_query", texts=["a"], embedding_types=["float"]),
        answers({"id": "emb-7", "embeddings": {"float": [[0.1]]}, "texts": ["a"], "meta": meta(input_tokens=1000.0)}),
        {"tokens.input.uncached": 1000},
        "1000",
    ),
    truth(
        COHERE,
        "rerank",
        call("rerank", model="rerank-v3.5", query="q", documents=["a"]),
        answers(_RERANKED),
        {"rerank.search_units": 2},
        "4000",
    ),
    truth(
        FIRST,
        "chat",
        call("chat", model="command-a-03-2025", message="hello"),
        answers(TALKED),
        BARE_METERS,
        BARE_COST,
    ),
    truth(
        FIRST,
        "chat streamed",
        call("chat_stream", model="command-a-03-2025", message="hello"),
        streams(
            lines(
                [
                    {"event_type": "stream-start", "generation_id": "gen-7", "is_finished": False},
                    {
                        "event_type": "stream-end",
                        "finish_reason": "COMPLETE",
                        "response": TALKED,
                        "is_finished": True,
                    },
                ]
            ),
            "application/stream+json",
        ),
        BARE_METERS,
        BARE_COST,
    ),
]

_OLLAMA: list[Truth] = [
    truth(
        OLLAMA,
        "chat",
        call("chat", model="llama3.2", messages=HELLO),
        answers(ollama_part("Hello.", True, **OLLAMA_LAST)),
        BARE_METERS,
        BARE_COST,
    ),
    truth(
        OLLAMA,
        "chat streamed",
        call("chat", model="llama3.2", messages=HELLO, stream=True),
        streams(lines([ollama_part("Hello."), ollama_part("", True, **OLLAMA_LAST)]), NDJSON),
        BARE_METERS,
        BARE_COST,
    ),
    truth(
        OLLAMA,
        "generate",
        call("generate", model="llama3.2", prompt="hello"),
        answers(
            {
                "model": "llama3.2",
                "created_at": "2026-11-21T10:00:00Z",
                "response": "Hello.",
                "done": True,
                **OLLAMA_LAST,
            }
        ),
        BARE_METERS,
        BARE_COST,
    ),
    truth(
        OLLAMA,
        "embed",
        call("embed", model="llama3.2", input=["a"]),
        answers({"model": "llama3.2", "embeddings": [[0.1]], "prompt_eval_count": 1000}),
        {"tokens.input.uncached": 1000},
        "1000",
    ),
]

TABLE: tuple[Truth, ...] = (
    *_OPENAI,
    *_OPENAI_LATER,
    *_COMPATIBLE,
    *_ANTHROPIC,
    *_GOOGLE,
    *_BEDROCK,
    *_MISTRAL,
    *_COHERE,
    *_OLLAMA,
)
