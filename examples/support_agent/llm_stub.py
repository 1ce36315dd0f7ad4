"""A local server that speaks OpenAI's HTTP API well enough for the real ``openai`` client, and counts what it served.

    python llm_stub.py [--port 0] [--tally FILE] [--ready FILE] [--seed 0] [--pace 0.002] [--faults on|off]

It answers ``POST /v1/chat/completions`` and ``POST /v1/responses``, in one piece or as server-sent events, and
``GET /v1/models``. Standard library only, and nothing of Tollspan: its tally is the provider's own record, the one a
bill would be made from.

What it serves depends only on the seed and the request, never on time or order, so a run can be repeated: the answer,
the token counts (prompt cache hits in steps of 128 from 1,024 on, reasoning counted inside the output), the tier served
(``priority`` is sometimes served as ``default``, as the real one does when it ramps), and the faults: about one call in
fifteen meets a 429 or 500 that the client's next attempt gets past, about one in sixty fails whatever the client does.

The tally has one JSON line for each HTTP request answered, written when its last byte has left:

    {"path", "attempt", "stream", "request_model", "model", "service_tier", "status", "error", "complete", "usage"}

``usage`` is ``{"input", "cached", "output", "reasoning"}`` (input includes cached, output includes reasoning) or null
where nothing was generated. ``complete`` is false when the client went away before the end: the provider has generated
and bills those tokens although the client never saw its usage, so they belong to the bill but no client can know them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Json = dict[str, Any]

MODELS: dict[str, Json] = {
    "gpt-5": {"served": "gpt-5-2025-08-07", "reasoning": 16, "tiers": ("default", "flex", "priority")},
    "gpt-5-mini": {"served": "gpt-5-mini-2025-08-07", "reasoning": 8, "tiers": ("default", "flex", "priority")},
    "gpt-5-nano": {"served": "gpt-5-nano-2025-08-07", "reasoning": 3, "tiers": ("default", "flex")},
    "northwind-support-8b": {"served": "northwind-support-8b", "reasoning": None, "tiers": None},
}
"""Model → name of the snapshot served, most blocks of 64 reasoning tokens (None: the server gives no details, as most
self-hosted ones), and tiers on offer (None: the server knows no tiers)."""

SENTENCES = (
    "Thank you for writing to us.",
    "I am sorry that this has not gone as it should.",
    "I looked at your order and our records show that it left the warehouse on time.",
    "The carrier has scanned the parcel, so it is on its way to you.",
    "You can return the item within thirty days, and the refund is paid within five working days after it arrives.",
    "If anything is damaged, a photo is enough and we send you a new one.",
    "I have opened a trace with the carrier and you will hear from us within two working days.",
    "You find the details in your account under orders.",
    "Please use the newest link in your inbox, the older ones have expired.",
    "Your plan includes free returns, so there is nothing to pay for the label.",
    "Is there anything else that I can do for you?",
)

PROVIDER_FAULTS: dict[str, tuple[int, str, str]] = {
    "rate_limit": (429, "rate_limit_exceeded", "Rate limit reached for requests. Please try again shortly."),
    "server": (500, "server_error", "The server had an error while processing your request."),
    "quota": (429, "insufficient_quota", "You exceeded your current quota, please check your plan."),
    "refused": (400, "invalid_prompt", "Your prompt was flagged as potentially violating our usage policy."),
}


@dataclass(frozen=True, slots=True)
class Served:
    """What one request is answered with, decided from the seed and the request alone."""

    id: str
    model: str
    tier: str | None
    text: str
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    details: bool

    @property
    def tally(self) -> Json:
        return {
            "input": self.input_tokens,
            "cached": self.cached_tokens,
            "output": self.output_tokens,
            "reasoning": self.reasoning_tokens,
        }

    def chat_usage(self) -> Json:
        usage: Json = {
            "prompt_tokens": self.input_tokens,
            "completion_tokens": self.output_tokens,
            "total_tokens": self.input_tokens + self.output_tokens,
        }
        if self.details:
            usage["prompt_tokens_details"] = {
                "cached_tokens": self.cached_tokens,
                "cache_write_tokens": 0,
                "audio_tokens": 0,
            }
            usage["completion_tokens_details"] = {
                "reasoning_tokens": self.reasoning_tokens,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            }
        return usage

    def responses_usage(self) -> Json:
        return {
            "input_tokens": self.input_tokens,
            "input_tokens_details": {"cached_tokens": self.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": self.output_tokens,
            "output_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
            "total_tokens": self.input_tokens + self.output_tokens,
        }


def prompt_texts(body: Json) -> list[str]:
    """Texts of the prompt, the constant head first; for both APIs."""
    texts: list[str] = [body["instructions"]] if isinstance(body.get("instructions"), str) else []
    turns = body.get("messages", body.get("input", []))
    if isinstance(turns, str):
        return [*texts, turns]
    for turn in turns:
        content = turn.get("content") or ""
        texts.append(content if isinstance(content, str) else " ".join(part.get("text", "") for part in content))
    return texts


def tokens(text: str) -> int:
    """About four characters a token."""
    return -(-len(text) // 4)


def serve(body: Json, rng: random.Random) -> Served:
    """The answer to ``body``, drawn from ``rng``."""
    model = MODELS[body["model"]]
    wants_json = body.get("response_format", {}).get("type", "text") != "text"
    if wants_json:
        text = json.dumps({"articles": rng.randrange(2, 5), "tone": rng.choice(["warm", "brief", "formal"])})
    else:
        text = " ".join([SENTENCES[0], *rng.sample(SENTENCES[1:-1], rng.randrange(2, 6)), SENTENCES[-1]])
    texts = prompt_texts(body)
    head = tokens(texts[0]) if texts else 0
    hit = head >= 1024 and rng.random() < 0.75
    reasoning = 64 * rng.randrange(model["reasoning"] + 1) if model["reasoning"] else 0
    tier: str | None = None
    if model["tiers"]:
        asked = body.get("service_tier")
        tier = asked if asked in model["tiers"] else "default"
        if tier == "priority" and rng.random() < 0.1:
            tier = "default"
    return Served(
        id=f"{rng.getrandbits(96):024x}",
        model=model["served"],
        tier=tier,
        text=text,
        input_tokens=sum(tokens(t) + 4 for t in texts) + 3,
        cached_tokens=head // 128 * 128 if hit and model["reasoning"] is not None else 0,
        output_tokens=tokens(text) + reasoning,
        reasoning_tokens=reasoning,
        details=model["reasoning"] is not None,
    )


def fault_for(rng: random.Random, attempt: int) -> str | None:
    """Key of `PROVIDER_FAULTS` that this attempt meets, or None."""
    draw = rng.randrange(1000)
    if draw < 35:
        return "rate_limit" if attempt == 0 else None
    if draw < 55:
        return "server" if attempt == 0 else None
    if draw < 65:
        return ("rate_limit", "server")[attempt] if attempt < 2 else None
    if draw < 72:
        return "server"
    if draw < 77:
        return "quota"
    return "refused" if draw < 82 else None


def chat_object(served: Served, created: int) -> Json:
    return {
        "id": f"chatcmpl-{served.id}",
        "object": "chat.completion",
        "created": created,
        "model": served.model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": served.text, "refusal": None, "annotations": []},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": served.chat_usage(),
        "service_tier": served.tier,
        "system_fingerprint": None,
    }


def pieces(text: str) -> Iterator[str]:
    """The text in deltas of three words."""
    split = text.split(" ")
    for at in range(0, len(split), 3):
        yield (" " if at else "") + " ".join(split[at : at + 3])


def chat_events(served: Served, created: int, include_usage: bool) -> Iterator[tuple[str | None, Json | str]]:
    """Server-sent events of a streamed chat completion; with ``include_usage`` the last chunk has no choices."""
    base = {
        "id": f"chatcmpl-{served.id}",
        "object": "chat.completion.chunk",
        "created": created,
        "model": served.model,
        "service_tier": served.tier,
        "system_fingerprint": None,
    }
    if include_usage:
        base["usage"] = None

    def chunk(delta: Json, finish: str | None = None) -> Json:
        return {**base, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]}

    yield None, chunk({"role": "assistant", "content": "", "refusal": None})
    for piece in pieces(served.text):
        yield None, chunk({"content": piece})
    yield None, chunk({}, "stop")
    if include_usage:
        yield None, {**base, "choices": [], "usage": served.chat_usage()}
    yield None, "[DONE]"


def response_object(served: Served, body: Json, created: int, status: str) -> Json:
    done = status == "completed"
    output: list[Json] = []
    if done:
        if served.reasoning_tokens:
            output.append({"id": f"rs_{served.id}", "type": "reasoning", "summary": []})
        output.append(message_item(served, "completed"))
    return {
        "id": f"resp_{served.id}",
        "object": "response",
        "created_at": created,
        "status": status,
        "completed_at": created if done else None,
        "error": None,
        "incomplete_details": None,
        "instructions": body.get("instructions"),
        "metadata": body.get("metadata") or {},
        "model": served.model,
        "output": output,
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": "medium", "summary": None},
        "service_tier": served.tier if done else "auto",
        "store": bool(body.get("store", True)),
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": served.responses_usage() if done else None,
    }


def message_item(served: Served, status: str) -> Json:
    content = [{"type": "output_text", "text": served.text, "annotations": [], "logprobs": []}]
    return {
        "id": f"msg_{served.id}",
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": content if status == "completed" else [],
    }


def response_events(served: Served, body: Json, created: int) -> Iterator[tuple[str | None, Json | str]]:
    """Server-sent events of a streamed response, in the real API's order; usage comes in ``response.completed``."""
    at = {"item_id": f"msg_{served.id}", "content_index": 0}
    index = 0

    def events() -> Iterator[Json]:
        nonlocal index
        yield {"type": "response.created", "response": response_object(served, body, created, "in_progress")}
        yield {"type": "response.in_progress", "response": response_object(served, body, created, "in_progress")}
        if served.reasoning_tokens:
            item = {"id": f"rs_{served.id}", "type": "reasoning", "summary": []}
            yield {"type": "response.output_item.added", "output_index": index, "item": item}
            yield {"type": "response.output_item.done", "output_index": index, "item": item}
            index += 1
        here = {**at, "output_index": index}
        empty = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        item = message_item(served, "in_progress")
        yield {"type": "response.output_item.added", "output_index": index, "item": item}
        yield {"type": "response.content_part.added", **here, "part": empty}
        for piece in pieces(served.text):
            yield {"type": "response.output_text.delta", **here, "delta": piece, "logprobs": []}
        yield {"type": "response.output_text.done", **here, "text": served.text, "logprobs": []}
        yield {"type": "response.content_part.done", **here, "part": {**empty, "text": served.text}}
        item = message_item(served, "completed")
        yield {"type": "response.output_item.done", "output_index": index, "item": item}
        yield {"type": "response.completed", "response": response_object(served, body, created, "completed")}

    for number, event in enumerate(events()):
        yield event["type"], {**event, "sequence_number": number}


class StubServer(ThreadingHTTPServer):
    """The server, its settings, and the tally that all its threads write to."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, *, tally: Path | None, seed: int, pace: float, faults: bool) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.seed = seed
        self.pace = pace
        self.faults = faults
        self._tally = tally.open("a", encoding="utf-8") if tally else None
        self._changed = threading.Condition()
        self._in_flight = 0

    def record(self, **line: Any) -> None:
        """Append one line to the tally; it is on file, complete, when this returns."""
        if self._tally is None:
            return
        with self._changed:
            self._tally.write(json.dumps(line) + "\n")
            self._tally.flush()

    def enter(self) -> None:
        with self._changed:
            self._in_flight += 1

    def leave(self) -> None:
        with self._changed:
            self._in_flight -= 1
            self._changed.notify_all()

    def drain(self, timeout: float) -> None:
        """Wait until no request is being answered, so that the tally is whole when the process ends."""
        with self._changed:
            self._changed.wait_for(lambda: self._in_flight == 0, timeout)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: StubServer
    protocol_version = "HTTP/1.1"
    # Streams are many small writes; with Nagle's algorithm each would wait for the client's delayed acknowledgement.
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        """Silence the access log: the tally is the record."""

    def do_GET(self) -> None:
        if self.path.split("?")[0] == "/v1/models":
            listed = [{"id": name, "object": "model", "created": 0, "owned_by": "stub"} for name in MODELS]
            self._json(200, {"object": "list", "data": listed})
        else:
            self._error(404, "unknown_url", f"Unknown request URL: GET {self.path}")

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.enter()
        try:
            self._answer(self.path.split("?")[0], raw)
        finally:
            self.server.leave()

    def _answer(self, path: str, raw: bytes) -> None:
        try:
            body = json.loads(raw)
        except ValueError:
            return self._error(400, "invalid_json", "We could not parse the JSON body of your request.")
        if path not in ("/v1/chat/completions", "/v1/responses"):
            return self._error(404, "unknown_url", f"Unknown request URL: POST {path}")
        if not self.headers.get("authorization", "").startswith("Bearer "):
            return self._error(401, "invalid_api_key", "You didn't provide an API key.")
        if body.get("model") not in MODELS:
            return self._error(404, "model_not_found", f"The model `{body.get('model')}` does not exist.")

        attempt = int(self.headers.get("x-stainless-retry-count", 0))
        digest = hashlib.sha256(f"{self.server.seed}:{path}:".encode() + raw).digest()
        rng = random.Random(digest)
        line: Json = {
            "path": path,
            "attempt": attempt,
            "stream": bool(body.get("stream")),
            "request_model": body["model"],
            "model": None,
            "service_tier": None,
            "status": 200,
            "error": None,
            "complete": True,
            "usage": None,
        }
        fault = fault_for(rng, attempt) if self.server.faults else None
        if fault:
            status, code, message = PROVIDER_FAULTS[fault]
            line |= {"status": status, "error": code}
            retry = {"retry-after-ms": str(rng.randrange(5, 40))} if status != 400 else {}
            line["complete"] = self._sent(lambda: self._error(status, code, message, retry))
        else:
            served = serve(body, rng)
            created = int(time.time())
            line |= {"model": served.model, "service_tier": served.tier, "usage": served.tally}
            chat = path == "/v1/chat/completions"
            if body.get("stream"):
                include = bool((body.get("stream_options") or {}).get("include_usage"))
                events = chat_events(served, created, include) if chat else response_events(served, body, created)
                line["complete"] = self._sent(lambda: self._stream(events))
            else:
                time.sleep(self.server.pace * 5)
                whole = chat_object(served, created) if chat else response_object(served, body, created, "completed")
                line["complete"] = self._sent(lambda: self._json(200, whole))
        self.server.record(**line)

    def _sent(self, send: Any) -> bool:
        """Whether the client was there to the end; a client that hangs up is no error of ours."""
        try:
            send()
        except (BrokenPipeError, ConnectionResetError, ConnectionAbortedError):
            self.close_connection = True
            return False
        return True

    def _json(self, status: int, body: Json, headers: dict[str, str] | None = None) -> None:
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(raw)))
        self.send_header("x-request-id", f"req_{random.getrandbits(64):016x}")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)

    def _error(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        kind = "server_error" if status >= 500 else "requests" if status == 429 else "invalid_request_error"
        body = {"error": {"message": message, "type": kind, "param": None, "code": code}}
        self._json(status, body, headers)

    def _stream(self, events: Iterator[tuple[str | None, Json | str]]) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("transfer-encoding", "chunked")
        self.send_header("x-request-id", f"req_{random.getrandbits(64):016x}")
        self.end_headers()
        for name, data in events:
            text = data if isinstance(data, str) else json.dumps(data)
            raw = (f"event: {name}\n" if name else "").encode() + f"data: {text}\n\n".encode()
            self.wfile.write(f"{len(raw):x}\r\n".encode() + raw + b"\r\n")
            time.sleep(self.server.pace)
        self.wfile.write(b"0\r\n\r\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="A local stand-in for OpenAI's HTTP API that counts what it serves.")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--tally", type=Path, help="append one JSON line for each request answered")
    parser.add_argument("--ready", type=Path, help="write {'base_url': ...} here when the server listens")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pace", type=float, default=0.002, help="seconds between two chunks of a stream")
    parser.add_argument("--faults", choices=["on", "off"], default="on")
    args = parser.parse_args()

    server = StubServer(args.port, tally=args.tally, seed=args.seed, pace=args.pace, faults=args.faults == "on")
    base_url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    for number in (signal.SIGTERM, signal.SIGINT):
        # shutdown() waits for serve_forever() to return, which runs in this very thread.
        signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
    print(f"serving {', '.join(MODELS)}\nOPENAI_BASE_URL={base_url} OPENAI_API_KEY=stub", file=sys.stderr, flush=True)
    if args.ready:
        partial = args.ready.with_name(args.ready.name + ".part")
        partial.write_text(json.dumps({"base_url": base_url, "pid": os.getpid()}))
        partial.replace(args.ready)
    server.serve_forever(poll_interval=0.05)
    server.drain(timeout=10)
    server.server_close()


if __name__ == "__main__":
    main()
