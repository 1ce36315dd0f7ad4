"""Anthropic's HTTP API as the stub speaks it: Messages, whole and as server-sent events, with prompt caching.

A prompt is cached up to its last block with ``cache_control``, where that head is long enough. Then its tokens are
either read from the cache or written to it, for five minutes or, with ``"ttl": "1h"``, for an hour. ``input_tokens`` of
the usage are those after the head only, as in the real API.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping

from stub_served import Json, Served, letter, pieces, tokens

PATHS = ("/v1/messages",)
REQUEST_ID = "request-id"

MODELS = ("claude-sonnet-4-6",)
CACHED_FROM = 1024
"""Tokens of the shortest head that is cached."""

FAULTS: dict[str, tuple[int, str, str]] = {
    "rate_limit": (429, "rate_limit_error", "This request would exceed your organization's rate limit."),
    "server": (529, "overloaded_error", "Overloaded"),
    "quota": (400, "invalid_request_error", "Your credit balance is too low to access the Anthropic API."),
    "refused": (400, "invalid_request_error", "Output blocked by content filtering policy"),
}


def refusal(headers: Mapping[str, str], body: Json) -> tuple[int, str, str] | None:
    """Status, type and message where the request is not one that can be served."""
    # Newer clients send the key as a bearer token, older ones in a header of its own; the API takes both.
    if not headers.get("authorization", "").startswith("Bearer ") and not headers.get("x-api-key"):
        return 401, "authentication_error", "x-api-key header is required"
    if not headers.get("anthropic-version"):
        return 400, "invalid_request_error", "anthropic-version: header is required"
    if body.get("model") not in MODELS:
        return 404, "not_found_error", f"model: {body.get('model')}"
    if not isinstance(body.get("max_tokens"), int):
        return 400, "invalid_request_error", "max_tokens: Field required"
    return None


def error(status: int, code: str, message: str) -> Json:
    return {"type": "error", "error": {"type": code, "message": message}}


def blocks(content: object) -> list[Json]:
    """Content as blocks; a string is one block of text."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return list(content) if isinstance(content, list) else []


def serve(body: Json, rng: random.Random) -> Served:
    """The answer to ``body``, drawn from ``rng``."""
    prompt = [*blocks(body.get("system")), *(block for turn in body["messages"] for block in blocks(turn["content"]))]
    sizes = [tokens(block.get("text", "")) + 4 for block in prompt]
    marked = [at for at, block in enumerate(prompt) if block.get("cache_control")]
    head = sum(sizes[: marked[-1] + 1]) if marked else 0
    if head < CACHED_FROM:
        head = 0
    hit = rng.random() < 0.8
    hour = bool(marked) and prompt[marked[-1]]["cache_control"].get("ttl") == "1h"
    text = letter(rng)
    return Served(
        id=f"{rng.getrandbits(96):024x}",
        model=body["model"],
        tier="standard",
        text=text,
        input_tokens=sum(sizes) + 3,
        cached_tokens=head if hit else 0,
        written_5m_tokens=0 if hit or hour else head,
        written_1h_tokens=head if hour and not hit else 0,
        output_tokens=tokens(text),
    )


def input_usage(served: Served) -> Json:
    """What is known of the usage before the first word."""
    written = served.written_5m_tokens + served.written_1h_tokens
    return {
        "input_tokens": served.input_tokens - served.cached_tokens - written,
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": served.cached_tokens,
        "cache_creation": {
            "ephemeral_5m_input_tokens": served.written_5m_tokens,
            "ephemeral_1h_input_tokens": served.written_1h_tokens,
        },
        "service_tier": served.tier,
        "inference_geo": "global",
    }


def message(served: Served, text: str | None, usage: Json) -> Json:
    """A message; ``text`` None: one that has only begun."""
    return {
        "id": f"msg_{served.id}",
        "type": "message",
        "role": "assistant",
        "model": served.model,
        "content": [] if text is None else blocks(text),
        "stop_reason": None if text is None else "end_turn",
        "stop_sequence": None,
        "usage": usage,
    }


def whole(path: str, served: Served, body: Json, created: int) -> Json:
    """The answer in one piece."""
    return message(served, served.text, input_usage(served) | {"output_tokens": served.output_tokens})


def events(path: str, served: Served, body: Json, created: int) -> Iterator[tuple[str | None, Json | str]]:
    """The answer as server-sent events: name and data of each.

    The input's usage comes first, with a placeholder for the output; ``message_delta`` has the counts at the end.
    """

    def of() -> Iterator[Json]:
        usage = input_usage(served)
        yield {"type": "message_start", "message": message(served, None, usage | {"output_tokens": 1})}
        yield {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
        yield {"type": "ping"}
        for piece in pieces(served.text):
            yield {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}}
        yield {"type": "content_block_stop", "index": 0}
        counts = {name: usage[name] for name in usage if name.endswith("input_tokens")}
        yield {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": counts | {"output_tokens": served.output_tokens},
        }
        yield {"type": "message_stop"}

    for event in of():
        yield event["type"], event
