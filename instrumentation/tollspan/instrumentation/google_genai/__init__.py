"""Google GenAI: the ``google-genai`` client, version 2 and later, for the Gemini API and for Vertex AI.

In: the wrap points below; how requests and responses are read stands in `readers`, who is billed in `providers`,
further attempts in `attempts`; what is billed in another way has a module of its own: `videos`, `interactions`, `live`.
Out: one CLIENT span a request, ``generate_content {model}``, with what the provider counted.

What is wrapped is private to the client: the methods that send one request each. The public ones above them send
several, when they call the model's functions themselves or continue an answer that was cut, and tell the usage of the
last alone. Chats come through here too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Final

from tollspan.instrumentation.calls import Call, CallInstrumentor, WrapPoint
from tollspan.instrumentation.google_genai import attempts, interactions, live, readers, videos
from tollspan.instrumentation.streams import observe, observe_async
from tollspan.instrumentation.wrapping import Patches

__all__ = ["POINTS", "GoogleGenAIInstrumentor"]

_MODELS: Final = "google.genai.models:"
_OPERATIONS: Final = "google.genai.operations:"
_INTERACTIONS: Final = "google.genai._gaos.interactions:"
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
            asynchronous=bool(prefix),
        )
        for prefix, outlives in (("", _outlives), ("Async", _outlives_async))
    )
    others = (
        point
        for prefix in ("", "Async")
        for point in (
            WrapPoint(
                target=f"{_MODELS}{prefix}Models._generate_videos",
                request=videos.request,
                response=videos.submitted,
                finish=videos.finish,
                asynchronous=bool(prefix),
            ),
            WrapPoint(
                target=f"{_OPERATIONS}{prefix}Operations.get",
                request=videos.poll_request,
                response=videos.polled,
                finish=videos.finish,
                asynchronous=bool(prefix),
            ),
            WrapPoint(
                target=f"{_INTERACTIONS}{prefix}Interactions.create",
                request=interactions.request,
                response=interactions.read,
                finish=interactions.finish,
                outlives=interactions.outlives,
                asynchronous=bool(prefix),
            ),
            WrapPoint(
                target=f"{_INTERACTIONS}{prefix}Interactions.get",
                request=interactions.fetch_request,
                response=interactions.read,
                finish=interactions.finish,
                outlives=interactions.outlives,
                asynchronous=bool(prefix),
            ),
        )
    )
    turns = WrapPoint(
        # Not asynchronous: it returns an asynchronous generator at once.
        target=f"{_LIVE}AsyncSession.receive",
        request=live.request,
        finish=live.finish,
        outlives=live.outlives,
    )
    return (*whole, *streamed, *others, turns)


POINTS: Final = _points()
"""Every wrapped function."""


class GoogleGenAIInstrumentor(CallInstrumentor):
    """Spans for the ``google-genai`` client. See `CallInstrumentor`."""

    scope: ClassVar[str] = "tollspan.instrumentation.google_genai"
    requires: ClassVar[tuple[str, ...]] = ("google-genai >= 2",)
    points: ClassVar[tuple[WrapPoint, ...]] = POINTS

    def patch(self, patches: Patches) -> None:
        attempts.patch(patches)
        live.patch(patches)
