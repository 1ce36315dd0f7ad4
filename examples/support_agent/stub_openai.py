"""OpenAI's HTTP API as the stub speaks it: Chat Completions and Responses, whole and as server-sent events."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping

from stub_served import Json, Served, letter, pieces, tokens

PATHS = ("/v1/chat/completions", "/v1/responses")
REQUEST_ID = "x-request-id"

MODELS: dict[str, Json] = {
    "gpt-5": {"served": "gpt-5-2025-08-07", "reasoning": 16, "tiers": ("default", "flex", "priority")},
    "gpt-5-mini": {"served": "gpt-5-mini-2025-08-07", "reasoning": 8, "tiers": ("default", "flex", "priority")},
    "gpt-5-nano": {"served": "gpt-5-nano-2025-08-07", "reasoning": 3, "tiers": ("default", "flex")},
    "northwind-support-8b": {"served": "northwind-support-8b", "reasoning": None, "tiers": None},
}
"""Model → name of the snapshot served, most blocks of 64 reasoning tokens (None: the server gives no details, as most
self-hosted ones), and tiers on offer (None: the server knows no tiers)."""

FAULTS: dict[str, tuple[int, str, str]] = {
    "rate_limit": (429, "rate_limit_exceeded", "Rate limit reached for requests. Please try again shortly."),
    "server": (500, "server_error", "The server had an error while processing your request."),
    "quota": (429, "insufficient_quota", "You exceeded your current quota, please check your plan."),
    "refused": (400, "invalid_prompt", "Your prompt was flagged as potentially violating our usage policy."),
}


def refusal(headers: Mapping[str, str], body: Json) -> tuple[int, str, str] | None:
    """Status, code and message where the request is not one that can be served."""
    if not headers.get("authorization", "").startswith("Bearer "):
        return 401, "invalid_api_key", "You didn't provide an API key."
    if body.get("model") not in MODELS:
        return 404, "model_not_found", f"The model `{body.get('model')}` does not exist."
    return None


def error(status: int, code: str, message: str) -> Json:
    kind = "server_error" if status >= 500 else "requests" if status == 429 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


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


def serve(body: Json, rng: random.Random) -> Served:
    """The answer to ``body``, drawn from ``rng``."""
    model = MODELS[body["model"]]
    wants_json = body.get("response_format", {}).get("type", "text") != "text"
    if wants_json:
        text = json.dumps({"articles": rng.randrange(2, 5), "tone": rng.choice(["warm", "brief", "formal"])})
    else:
        text = letter(rng)
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


def whole(path: str, served: Served, body: Json, created: int) -> Json:
    """The answer in one piece."""
    if path == PATHS[0]:
        return chat_object(served, created)
    return response_object(served, body, created, "completed")


def events(path: str, served: Served, body: Json, created: int) -> Iterator[tuple[str | None, Json | str]]:
    """The answer as server-sent events: name and data of each."""
    if path == PATHS[0]:
        return chat_events(served, created, bool((body.get("stream_options") or {}).get("include_usage")))
    return response_events(served, body, created)


def chat_usage(served: Served) -> Json:
    usage: Json = {
        "prompt_tokens": served.input_tokens,
        "completion_tokens": served.output_tokens,
        "total_tokens": served.input_tokens + served.output_tokens,
    }
    if served.details:
        usage["prompt_tokens_details"] = {
            "cached_tokens": served.cached_tokens,
            "cache_write_tokens": 0,
            "audio_tokens": 0,
        }
        usage["completion_tokens_details"] = {
            "reasoning_tokens": served.reasoning_tokens,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        }
    return usage


def responses_usage(served: Served) -> Json:
    return {
        "input_tokens": served.input_tokens,
        "input_tokens_details": {"cached_tokens": served.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": served.output_tokens,
        "output_tokens_details": {"reasoning_tokens": served.reasoning_tokens},
        "total_tokens": served.input_tokens + served.output_tokens,
    }


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
        "usage": chat_usage(served),
        "service_tier": served.tier,
        "system_fingerprint": None,
    }


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
        yield None, {**base, "choices": [], "usage": chat_usage(served)}
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
        "usage": responses_usage(served) if done else None,
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
