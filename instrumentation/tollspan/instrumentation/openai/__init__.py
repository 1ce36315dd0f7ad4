"""OpenAI: every call of the ``openai`` client that is billed, version 2 and later.

In: the wrap points below. How requests and responses are read stands in `readers` for ``chat.completions`` and
``responses``, in `media` for embeddings, legacy completions, images, audio and moderation, in `videos` for videos, in
`background` for responses that are fetched, in `assistants` for runs, in `batches` for the results of batches, in
`realtime` for connections and in `live` for live sessions; who is billed in `providers`, raw responses in `results`,
further attempts in `retries`. Out: one CLIENT span a request, ``{operation} {model}``, with what the provider counted.
What is asked for by one call and told by another stands on a span of its own, made once (`once`). ``stream()`` of
either API reaches ``create``, and so gets its span there.
"""

from __future__ import annotations

import functools
from importlib import import_module
from typing import Any, ClassVar, Final

from tollspan.instrumentation import stream_usage
from tollspan.instrumentation.calls import WrapPoint
from tollspan.instrumentation.once import OnceInstrumentor
from tollspan.instrumentation.openai import (
    assistants,
    background,
    media,
    readers,
    videos,
)
from tollspan.instrumentation.openai.results import RAW, outliving
from tollspan.instrumentation.openai.retries import RETRIES
from tollspan.instrumentation.wrapping import Patches

__all__ = ["POINTS", "OpenAIInstrumentor"]

_CHAT: Final = "openai.resources.chat.completions.completions:"
_RESPONSES: Final = "openai.resources.responses.responses:"


_BETA_RESPONSES: Final = "openai.resources.beta.responses.responses:"


def _points() -> tuple[WrapPoint, ...]:
    chat = (
        readers.request_reader("chat_completions", readers.CHAT_LIMITS),
        readers.read_chat,
        outliving(readers.read_chat_chunk),
    )
    responses = (
        readers.request_reader("responses", readers.RESPONSES_LIMITS),
        readers.read_response,
        outliving(readers.read_response_event),
    )
    fetched = background.request, background.read_fetched, outliving(background.read_fetched_event)
    apis = (
        *((f"{_CHAT}%sCompletions.{method}", *chat) for method in ("create", "parse")),
        *(
            (f"{package}%sResponses.{method}", *api)
            for package in (_RESPONSES, _BETA_RESPONSES)
            for methods, api in ((("create", "parse", "compact"), responses), (("retrieve", "cancel"), fetched))
            for method in methods
        ),
        *media.APIS,
        *videos.APIS,
        *assistants.APIS,
    )
    return tuple(
        WrapPoint(
            target=target % prefix,
            request=request,
            response=response,
            finish=RETRIES.known,
            outlives=outlives,
            asynchronous=bool(prefix),
        )
        for target, request, response, outlives in apis
        for prefix in ("", "Async")
    )


LATER: Final[dict[str, tuple[str, ...]]] = {
    "batches": ("openai.resources.batches", "openai.resources.files"),
    "live": ("openai.resources.live.live", "openai.resources.live.sideband", "openai.resources.live.forks"),
    "realtime": (
        "openai.resources.realtime.realtime",
        "openai.resources.beta.realtime.realtime",
        "openai.resources.responses.responses",
        "openai.resources.beta.responses.responses",
    ),
}
"""Module of ours that few programs need → modules of the client, of which the first to be imported brings it."""

POINTS: Final = _points()
"""Every wrapped function: each API, synchronous and asynchronous, plain and parsed."""


class OpenAIInstrumentor(stream_usage.AskingInstrumentor, OnceInstrumentor):
    """Spans for the ``openai`` client. See `CallInstrumentor`."""

    scope: ClassVar[str] = "tollspan.instrumentation.openai"
    requires: ClassVar[tuple[str, ...]] = ("openai >= 2",)
    points: ClassVar[tuple[WrapPoint, ...]] = POINTS
    streams: ClassVar[tuple[str, ...]] = ("Completions.create",)

    def patch(self, patches: Patches) -> None:
        RAW.patch(patches, "openai", legacy=True)
        RETRIES.patch(patches)
        videos.patch(patches)
        assistants.patch(patches)
        brought: set[str] = set()
        for ours, theirs in LATER.items():
            for module in theirs:
                patches.when_imported(module, functools.partial(_bring, ours, patches, brought))


def _bring(ours: str, patches: Patches, brought: set[str], module: Any) -> None:
    if ours not in brought:
        brought.add(ours)
        import_module(f"{__name__}.{ours}").patch(patches)
