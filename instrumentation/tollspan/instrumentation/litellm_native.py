"""LiteLLM's functions that speak a provider's own protocol: Anthropic's messages, Google's content, Mistral's OCR.

In: what they return, which is what the provider sent: a dict or a model of it, or a stream of server-sent events as
bytes, cut anywhere. Out: for each protocol a `Native`, by which `tollspan.instrumentation.litellm` reads it. Of a model
that speaks another protocol LiteLLM asks by its own functions; those calls bear the usage then.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from tollspan.instrumentation.anthropic import readers as anthropic
from tollspan.instrumentation.anthropic.providers import ANTHROPIC
from tollspan.instrumentation.calls import Call
from tollspan.instrumentation.tables import given, told
from tollspan.instrumentation.usage import put_usage
from tollspan.pricing import attributes as names

_PAGES: Final = names.usage("pages")
_ANNOTATED: Final = names.usage("pages.annotated")
_DATA: Final = b"data:"


class Native(NamedTuple):
    """How one protocol is read.

    Attributes:
        whole: reads an answer.
        event: reads an event of a stream; True when nothing more is to come that matters.
        marks: one of these is in every event that `event` looks at.
    """

    whole: Callable[[Call, Mapping[str, Any]], None]
    event: Callable[[Call, Mapping[str, Any]], bool]
    marks: tuple[bytes, ...] = ()


def read_chunk(native: Native, call: Call, chunk: Any) -> bool:
    """Read a part of a stream. True when nothing more is to come that matters."""
    done = False
    for event in _events(native, call.state, chunk):
        done = native.event(call, event) or done
    return done


def _events(native: Native, state: Any, chunk: Any) -> Iterator[Mapping[str, Any]]:
    """Events that a part of a stream completes."""
    if isinstance(chunk, str):
        chunk = chunk.encode()
    if not isinstance(chunk, bytes):
        yield given(chunk)
        return
    *lines, state.pending = (state.pending + chunk).split(b"\n")
    for line in lines:
        if line.startswith(_DATA) and any(mark in line for mark in native.marks):
            event = json.loads(line[len(_DATA) :])
            if isinstance(event, dict):
                yield event


# -- Anthropic ---------------------------------------------------------------------------------------------------------


def _tell_messages(call: Call) -> None:
    model = call.attributes.get(names.RESPONSE_MODEL)
    put_usage(call, call.state.provider() or "", call.state.usage, model=model, form=ANTHROPIC)


def _message(call: Call, body: Mapping[str, Any]) -> None:
    anthropic.read_message(call, body)
    _tell_messages(call)


def _message_event(call: Call, event: Mapping[str, Any]) -> bool:
    done = anthropic.read_event(call, event)
    _tell_messages(call)
    return done


# -- Google ------------------------------------------------------------------------------------------------------------


def _content(call: Call, body: Mapping[str, Any]) -> None:
    told(call, body, responseId=names.RESPONSE_ID, modelVersion=names.RESPONSE_MODEL)
    candidates = [given(candidate) for candidate in body.get("candidates") or ()]
    reasons = [each["finishReason"].lower() for each in candidates if isinstance(each.get("finishReason"), str)]
    if reasons:
        call.attributes[names.RESPONSE_FINISH_REASONS] = reasons
    usage = body.get("usageMetadata")
    if usage is not None:
        model = call.attributes.get(names.RESPONSE_MODEL)
        put_usage(call, call.state.provider() or "", usage, model=model, response=body)


def _content_event(call: Call, event: Mapping[str, Any]) -> bool:
    _content(call, event)
    return names.RESPONSE_FINISH_REASONS in call.attributes and "usageMetadata" in event


# -- OCR ---------------------------------------------------------------------------------------------------------------


def _pages(call: Call, body: Mapping[str, Any]) -> None:
    told(call, body, model=names.RESPONSE_MODEL)
    usage = given(body.get("usage_info"))
    pages = usage.get("pages_processed")
    if type(pages) is int:
        # Annotated pages have a meter of their own.
        call.attributes[_ANNOTATED if call.state.annotated else _PAGES] = pages


MESSAGES: Final = Native(_message, _message_event, (b'"message_start"', b'"message_delta"'))
CONTENT: Final = Native(_content, _content_event, (b"usageMetadata", b"finishReason"))
PAGES: Final = Native(_pages, lambda call, event: False)
