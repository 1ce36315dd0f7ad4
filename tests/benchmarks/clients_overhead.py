"""What instrumentation adds to a call of each client beside OpenAI's, which has `openai_overhead.py` for itself.

    python tests/benchmarks/clients_overhead.py [client ...] [--rounds 48] [--calls 10] [--json]

Each client runs in two processes, one of them instrumented, on a mocked transport, and the two are asked in turn for a
round, so that the machine's moods fall on both alike. Ended spans are only counted, and nothing that is off by default
is on. Times are CPU time of the calling thread, in microseconds; what is added is the best tenth of the rounds with
ours less that of the rounds without: other work on the machine only ever adds. No two processes lie in memory alike,
which makes a per cent or two of a call: for a slow client that is tens of microseconds, and one run tells little.

Not a test: prints figures, and exits with 1 when a client is over the budget of 100 µs a call and 5 µs a chunk.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import statistics
import struct
import sys
import time
import zlib
from collections.abc import Callable
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

CHUNKS = 200
BUDGETS = {"added": 100.0, "chunk": 5.0}
"""Figure → at most so many µs."""

TEXT = "Your order is on its way. " * 20
ASKED: Any = [{"role": "user", "content": "Where is my order? " * 20}]


class Client(NamedTuple):
    """A client on a mocked transport.

    Attributes:
        instrumentor: ``"module:Class"``.
        make: makes it, and gives a plain call and one whose stream is read to its end.
    """

    instrumentor: str
    make: Callable[[], tuple[Callable[[], Any], Callable[[], Any]]]


def read(stream: Any) -> None:
    for _ in stream:
        pass


def transport(library: Any, answer: Any, stream: bytes, kind: str = "text/event-stream") -> Any:
    """Transport of ``httpx`` or ``httpx2``: a stream to who asks for one, by the body or by the address."""
    body = json.dumps(answer).encode()

    def respond(request: Any) -> Any:
        streamed = b'"stream":true' in request.content.replace(b" ", b"") or "stream" in str(request.url)
        headers = {"content-type": kind if streamed else "application/json"}
        return library.Response(200, headers=headers, content=stream if streamed else body)

    return library.MockTransport(respond)


def events(*bodies: Any, done: bool = False) -> bytes:
    """Server-sent events; a body with a type is an event of that name."""
    named = (f"event: {body['type']}\n" if "type" in body else "" for body in bodies)
    pieces = (f"{name}data: {json.dumps(body)}\n\n" for name, body in zip(named, bodies, strict=True))
    return ("".join(pieces) + ("data: [DONE]\n\n" if done else "")).encode()


# -- the clients -------------------------------------------------------------------------------------------------------


def anthropic() -> tuple[Callable[[], Any], Callable[[], Any]]:
    import anthropic
    import httpx2

    usage = {
        "input_tokens": 21,
        "cache_creation_input_tokens": 556,
        "cache_read_input_tokens": 1880,
        "cache_creation": {"ephemeral_5m_input_tokens": 456, "ephemeral_1h_input_tokens": 100},
        "output_tokens": 393,
        "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 0},
        "service_tier": "standard",
    }
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-sonnet-4-5"}
    answer = {**message, "content": [{"type": "text", "text": TEXT}], "stop_reason": "end_turn", "usage": usage}
    delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": " word"}}
    stream = events(
        {"type": "message_start", "message": {**answer, "content": [], "stop_reason": None}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *([delta] * (CHUNKS - 5)),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 393}},
        {"type": "message_stop"},
    )
    http = httpx2.Client(transport=transport(httpx2, answer, stream))
    client = anthropic.Anthropic(api_key="none", http_client=http)
    asked: Any = {"model": "claude-sonnet-4-5", "max_tokens": 400, "messages": ASKED}
    create = client.messages.create
    return lambda: create(**asked), lambda: read(create(**asked, stream=True))


def google() -> tuple[Callable[[], Any], Callable[[], Any]]:
    import httpx2
    from google import genai

    usage = {
        "promptTokenCount": 1000,
        "candidatesTokenCount": 200,
        "thoughtsTokenCount": 50,
        "cachedContentTokenCount": 400,
        "totalTokenCount": 1250,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 900}, {"modality": "AUDIO", "tokenCount": 100}],
        "candidatesTokensDetails": [{"modality": "TEXT", "tokenCount": 200}],
    }

    def content(text: str, **more: Any) -> dict[str, Any]:
        candidate = {"content": {"role": "model", "parts": [{"text": text}]}, "index": 0, **more}
        whole = {"candidates": [candidate], "modelVersion": "gemini-3.8-flash", "responseId": "r-1"}
        return {**whole, "usageMetadata": usage}

    stream = events(*([content(" word")] * (CHUNKS - 1)), content("", finishReason="STOP"))
    answer = content(TEXT, finishReason="STOP")
    http = httpx2.Client(transport=transport(httpx2, answer, stream))
    client = genai.Client(api_key="none", vertexai=False, http_options={"httpx_client": http})
    config: Any = {"temperature": 0.2, "max_output_tokens": 400}
    asked: Any = {"model": "gemini-3.8-flash", "contents": ASKED[0]["content"], "config": config}
    models = client.models
    return (
        lambda: models.generate_content(**asked),
        lambda: read(models.generate_content_stream(**asked)),
    )


def frame(kind: str, body: Any) -> bytes:
    """A message of AWS's event stream."""
    fields = {":event-type": kind, ":content-type": "application/json", ":message-type": "event"}
    packed = b"".join(
        struct.pack("!B", len(name)) + name.encode() + struct.pack("!BH", 7, len(value)) + value.encode()
        for name, value in fields.items()
    )
    payload = json.dumps(body).encode()
    prelude = struct.pack("!II", 16 + len(packed) + len(payload), len(packed))
    message = prelude + struct.pack("!I", zlib.crc32(prelude)) + packed + payload
    return message + struct.pack("!I", zlib.crc32(message))


class Raw:
    """What botocore reads a body from."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def stream(self, *_: Any, **__: Any) -> Any:
        yield self._body

    def read(self, *_: Any) -> bytes:
        body, self._body = self._body, b""
        return body

    def close(self) -> None:
        pass


def bedrock() -> tuple[Callable[[], Any], Callable[[], Any]]:
    import botocore.session
    from botocore.awsrequest import AWSResponse

    usage = {
        "inputTokens": 100,
        "outputTokens": 20,
        "totalTokens": 1127,
        "cacheReadInputTokens": 1000,
        "cacheWriteInputTokens": 7,
    }
    metadata = {"usage": usage, "metrics": {"latencyMs": 551}, "serviceTier": {"type": "default"}}
    output = {"message": {"role": "assistant", "content": [{"text": TEXT}]}}
    answer = json.dumps({**metadata, "output": output, "stopReason": "end_turn"}).encode()
    stream = b"".join(
        (
            frame("messageStart", {"role": "assistant"}),
            *([frame("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": " word"}})] * (CHUNKS - 3)),
            frame("messageStop", {"stopReason": "end_turn"}),
            frame("metadata", metadata),
        )
    )

    def respond(request: Any, **_: Any) -> Any:
        streamed = request.url.endswith("converse-stream")
        kind = "application/vnd.amazon.eventstream" if streamed else "application/json"
        return AWSResponse(request.url, 200, {"Content-Type": kind}, Raw(stream if streamed else answer))

    client = botocore.session.Session().create_client(
        "bedrock-runtime", region_name="us-west-2", aws_access_key_id="none", aws_secret_access_key="none"
    )
    client.meta.events.register("before-send.bedrock-runtime.*", respond)
    messages = [{"role": "user", "content": [{"text": ASKED[0]["content"]}]}]
    asked: Any = {"modelId": "amazon.nova-pro-v1:0", "messages": messages, "inferenceConfig": {"maxTokens": 400}}
    return lambda: client.converse(**asked), lambda: read(client.converse_stream(**asked)["stream"])


def mistral() -> tuple[Callable[[], Any], Callable[[], Any]]:
    import httpx2
    from mistralai.client import Mistral

    usage = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}
    whole = {"id": "cmpl-1", "created": 1, "model": "mistral-small-latest"}
    message = {"role": "assistant", "content": TEXT}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    answer = {**whole, "object": "chat.completion", "choices": [choice], "usage": usage}

    def part(reason: str | None = None, **more: Any) -> dict[str, Any]:
        delta = {"role": "assistant", "content": " word"}
        return {**whole, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}], **more}

    stream = events(*([part()] * (CHUNKS - 1)), part("stop", usage=usage), done=True)
    http = httpx2.Client(transport=transport(httpx2, answer, stream))
    client = Mistral(api_key="none", client=http)
    asked: Any = {"model": "mistral-small-latest", "messages": ASKED, "temperature": 0.2, "max_tokens": 400}
    return lambda: client.chat.complete(**asked), lambda: read(client.chat.stream(**asked))


def cohere() -> tuple[Callable[[], Any], Callable[[], Any]]:
    import cohere
    import httpx

    usage = {
        "billed_units": {"input_tokens": 1000.0, "output_tokens": 100.0},
        "tokens": {"input_tokens": 1068.0, "output_tokens": 103.0},
    }
    message = {"role": "assistant", "content": [{"type": "text", "text": TEXT}]}
    answer = {"id": "co-1", "finish_reason": "COMPLETE", "message": message, "usage": usage}
    delta = {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": " word"}}}}
    stream = events(
        {"type": "message-start", "id": "co-1", "delta": {"message": {"role": "assistant"}}},
        *([delta] * (CHUNKS - 2)),
        {"type": "message-end", "id": "co-1", "delta": {"finish_reason": "COMPLETE", "usage": usage}},
    )
    http = httpx.Client(transport=transport(httpx, answer, stream))
    client = cohere.ClientV2(api_key="none", httpx_client=http)
    asked: Any = {"model": "command-a-03-2025", "messages": ASKED, "temperature": 0.2, "max_tokens": 400}
    return lambda: client.chat(**asked), lambda: read(client.chat_stream(**asked))


def ollama() -> tuple[Callable[[], Any], Callable[[], Any]]:
    import httpx
    import ollama

    last = {"done": True, "done_reason": "stop", "total_duration": 4_883_583_458}
    counts = {"prompt_eval_count": 1000, "prompt_eval_duration": 342, "eval_count": 100, "eval_duration": 453}

    def part(text: str, **more: Any) -> dict[str, Any]:
        message = {"role": "assistant", "content": text}
        return {"model": "llama3.2", "created_at": "2026-11-21T10:00:00Z", "message": message, "done": False, **more}

    lines = [part(" word")] * (CHUNKS - 1) + [part("", **last, **counts)]
    stream = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
    answer = part(TEXT, **last, **counts)
    client = ollama.Client(transport=transport(httpx, answer, stream, "application/x-ndjson"))
    asked: Any = {"model": "llama3.2", "messages": ASKED, "options": {"temperature": 0.2, "num_predict": 400}}
    return lambda: client.chat(**asked), lambda: read(client.chat(**asked, stream=True))


CLIENTS = {
    "anthropic": Client("tollspan.instrumentation.anthropic:AnthropicInstrumentor", anthropic),
    "google-genai": Client("tollspan.instrumentation.google_genai:GoogleGenAIInstrumentor", google),
    "bedrock": Client("tollspan.instrumentation.bedrock:BedrockInstrumentor", bedrock),
    "mistral": Client("tollspan.instrumentation.mistral:MistralInstrumentor", mistral),
    "cohere": Client("tollspan.instrumentation.cohere:CohereInstrumentor", cohere),
    "ollama": Client("tollspan.instrumentation.ollama:OllamaInstrumentor", ollama),
}


# -- the measurement ---------------------------------------------------------------------------------------------------


def work(name: str, ours: bool, pipe: Connection) -> None:
    """A client's process: for each ``(kind, calls)`` that comes in, the µs of a call go out."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider

    os.environ["ANTHROPIC_OPEN_TELEMETRY"] = "false"  # its own spans, which it would make in either case

    class Counting(SpanProcessor):
        counted = 0

        def on_end(self, span: ReadableSpan) -> None:
            self.counted += "gen_ai.usage.output_tokens" in (span.attributes or {})

    spans = Counting()
    provider = TracerProvider()
    provider.add_span_processor(spans)
    trace.set_tracer_provider(provider)
    module, _, kind = CLIENTS[name].instrumentor.partition(":")
    instrumentor = getattr(import_module(module), kind)()
    if ours:
        instrumentor.instrument()
    call, stream = CLIENTS[name].make()
    kinds = {"call": call, "stream": stream}
    for run, count in ((call, 100), (stream, 3)):  # the interpreter adapts to what it runs
        for _ in range(count):
            run()
    # A collection scans everything that was ever imported, and falls where it will.
    gc.collect()
    gc.freeze()
    pipe.send("ready")
    while (order := pipe.recv()) is not None:
        kind, calls = order
        run = kinds[kind]
        run()
        seen, began = spans.counted, time.thread_time_ns()
        for _ in range(calls):
            run()
        pipe.send((time.thread_time_ns() - began) / calls / 1000)
        if spans.counted - seen != calls * ours:
            raise SystemExit(f"{name}: {calls} times {kind}, {spans.counted - seen} spans with usage")


def measure(names: list[str], rounds: int, calls: int) -> dict[str, dict[str, float]]:
    """Figures by client: ``call`` µs a call not instrumented, ``added`` µs a call, ``chunk`` µs added a chunk."""
    return {name: measure_one(name, rounds, calls) for name in names}


def measure_one(name: str, rounds: int, calls: int) -> dict[str, float]:
    """Figures of a client: two processes, asked in turn."""
    spawn = multiprocessing.get_context("spawn")
    pipes, workers = [], []
    for ours in (False, True):
        here, there = spawn.Pipe()
        worker = spawn.Process(target=work, args=(name, ours, there), daemon=True)
        worker.start()
        there.close()
        pipes.append(here)
        workers.append(worker)
    times: dict[str, list[list[float]]] = {"call": [[], []], "stream": [[], []]}
    try:
        for pipe in pipes:
            pipe.recv()
        for kind, count in (("call", calls), ("stream", max(2, calls // 5))):
            for _ in range(rounds):
                for pipe, each in zip(pipes, times[kind], strict=True):
                    pipe.send((kind, count))
                    each.append(pipe.recv())
        for pipe in pipes:
            pipe.send(None)
    except EOFError:
        raise SystemExit(f"{name}: no figures") from None
    for worker in workers:
        worker.join(10)
    added = {kind: best(ours) - best(alone) for kind, (alone, ours) in times.items()}
    return {
        "call": best(times["call"][0]),
        "added": added["call"],
        # What a streamed call adds over its chunks is what it adds in all, less what any call adds.
        "chunk": (added["stream"] - added["call"]) / CHUNKS,
    }


def best(times: list[float]) -> float:
    return statistics.quantiles(times, n=10)[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("clients", nargs="*", metavar="client", help=f"any of {', '.join(CLIENTS)}; all by default")
    parser.add_argument("--rounds", type=int, default=48)
    parser.add_argument("--calls", type=int, default=10)
    parser.add_argument("--json", action="store_true", help="one JSON object, nothing else")
    options = parser.parse_args()
    figures = measure(options.clients or list(CLIENTS), options.rounds, options.calls)
    if options.json:
        print(json.dumps(figures))
    else:
        print(f"{'':16}{'µs/call':>10}{'added':>10}{'added/chunk':>13}")
        for name, each in figures.items():
            print(f"{name:16}{each['call']:10.0f}{each['added']:10.1f}{each['chunk']:13.2f}")
    over = [
        f"{name}: {each[key]:.1f} µs {key}, at most {most:g}"
        for name, each in figures.items()
        for key, most in BUDGETS.items()
        if each[key] > most
    ]
    print(*over, sep="\n", file=sys.stderr)
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
