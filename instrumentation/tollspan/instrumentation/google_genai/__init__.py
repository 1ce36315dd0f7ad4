"""Google GenAI: the ``google-genai`` client, version 2 and later, for the Gemini API and for Vertex AI.

In: the wrap points below; how requests and responses are read stands in `readers`, what is asked for as a whole in
`asked`, who is billed in `providers`, further attempts in `attempts`; what is billed in another way has a module of its
own: `videos`, `interactions`, `live`, `batches`. Out: one CLIENT span a request, ``generate_content {model}``, with
what the provider counted.

What is wrapped is private to the client: the methods that send one request each. The public ones above them send
several, when they call the model's functions themselves or continue an answer that was cut, and tell the usage of the
last alone. Chats come through here too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Final

from tollspan.instrumentation.calls import Call, WrapPoint
from tollspan.instrumentation.google_genai import (
    asked,
    attempts,
    batches,
    early_interactions,
    interactions,
    live,
    readers,
    videos,
)
from tollspan.instrumentation.once import OnceInstrumentor
from tollspan.instrumentation.streams import observe, observe_async
from tollspan.instrumentation.wrapping import Patches

__all__ = ["POINTS", "GoogleGenAIInstrumentor"]

_MODELS: Final = "google.genai.models:"
_INTERACTIONS: Final = (
    ("google.genai._gaos.interactions:%sInteractions.", interactions.outlives),
    (f"{early_interactions.PACKAGE}.resources.interactions:%sInteractionsResource.", early_interactions.outlives),
)
"""Class of the client for interactions, by version; how its results are watched that outlive a call."""
_LIVE: Final = "google.genai.live:"

_Reader = Callable[[Call, Any], None]

METHODS: Final[tuple[tuple[str, str, _Reader], ...]] = (
    ("_generate_content", readers.GENERATE, readers.read_content),
    ("_embed_content", readers.EMBED, readers.read_embeddings),
    ("_generate_images", readers.IMAGES, readers.read_images),
    ("_edit_image", readers.IMAGES, readers.read_images),
    ("_upscale_image", readers.IMAGES, readers.read_images),
    ("recontext_image", readers.IMAGES, readers.read_images),
    ("segment_image", readers.IMAGES, readers.read_images),
)
"""Method of ``Models`` and ``AsyncModels`` that sends one request; its operation; how its response is read."""


def _outlives(call: Call, result: Any) -> Any:
    return observe(call, result, readers.read_chunk)


def _outlives_async(call: Call, result: Any) -> Any:
    return observe_async(call, result, readers.read_chunk)


def _points() -> tuple[WrapPoint, ...]:
    whole = (
        WrapPoint(
            target=f"{_MODELS}{prefix}Models.{method}",
            request=readers.request_reader(operation),
            response=response,
            finish=readers.finish,
            asked=asked.generation,
            asynchronous=bool(prefix),
        )
        for method, operation, response in METHODS
        for prefix in ("", "Async")
    )
    streamed = (
        WrapPoint(
            target=f"{_MODELS}{prefix}Models._generate_content_stream",
            request=readers.request_reader(readers.GENERATE, streamed=True),
            finish=readers.finish,
            outlives=outlives,
            asked=asked.generation,
            asynchronous=bool(prefix),
        )
        for prefix, outlives in (("", _outlives), ("Async", _outlives_async))
    )
    making_videos = (
        WrapPoint(
            target=f"{_MODELS}{prefix}Models._generate_videos",
            request=videos.request,
            response=videos.submitted,
            finish=videos.finish,
            asked=asked.generation,
            asynchronous=bool(prefix),
        )
        for prefix in ("", "Async")
    )
    interacting = (
        WrapPoint(
            target=target % prefix + method,
            request=request,
            response=interactions.read,
            finish=interactions.finish,
            outlives=outlives,
            asked=whole_request,
            asynchronous=bool(prefix),
        )
        for target, outlives in _INTERACTIONS
        for method, request, whole_request in (
            ("create", interactions.request, asked.interaction),
            ("get", interactions.fetch_request, asked.nothing),
        )
        for prefix in ("", "Async")
    )
    turns = WrapPoint(
        # Not asynchronous: it returns an asynchronous generator at once.
        target=f"{_LIVE}AsyncSession.receive",
        request=live.request,
        finish=live.finish,
        outlives=live.outlives,
        asked=asked.nothing,
    )
    return (*whole, *streamed, *making_videos, *interacting, turns)


POINTS: Final = _points()
"""Every wrapped function."""


class GoogleGenAIInstrumentor(OnceInstrumentor):
    """Spans for the ``google-genai`` client. See `CallInstrumentor`."""

    scope: ClassVar[str] = "tollspan.instrumentation.google_genai"
    requires: ClassVar[tuple[str, ...]] = ("google-genai >= 2",)
    points: ClassVar[tuple[WrapPoint, ...]] = POINTS

    def patch(self, patches: Patches) -> None:
        attempts.patch(patches)
        live.patch(patches)
        early_interactions.patch(patches)
        videos.patch(patches)
        batches.patch(patches)
